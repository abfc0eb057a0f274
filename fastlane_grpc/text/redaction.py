"""Redaction of secrets: values of variables, judged by the words of their names, and passwords inside URLs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

# Shown in place of a secret.
REDACTED = "***"

# Entries of `SecretNames`. Each stands for its plural too: "key" also means "keys".
DEFAULT_ENTRIES = (
    "*password",
    "*passwd",
    "*passphrase",
    "*passcode",
    *("pass", "pgpass", "sshpass", "dbpass", "*sqlpass", "rootpass", "adminpass", "userpass", "mypass", "smtppass"),
    *("*pwd", "!pwd", "!oldpwd"),
    *("*secret", "*token", "*credential", "cred"),
    *(
        "key",
        "*apikey",
        "*accesskey",
        "*authkey",
        "*privatekey",
        "*secretkey",
        "*signingkey",
        "*encryptionkey",
        "*sshkey",
        "*masterkey",
    ),
    *("auth", "!ssh_auth_sock", "!*max_tokens", "oauth", "authorization", "bearer"),
    *("*cookie", "jwt", "otp", "pat", "client_id", "clientid"),
    *("dsn", "connection_string", "*connectionstring", "connstr"),
)
# The entry of a list that stands for all of DEFAULT_ENTRIES.
DEFAULT = "default"

_ENTRY = re.compile(r"!?[a-z0-9*]+(?:_[a-z0-9*]+)*")
# "APIKey2" is "API", "Key" and "2"; "DB_PWD" is "DB" and "PWD".
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+")


@dataclass(frozen=True, slots=True)
class SecretNames:
    """The names of variables whose values are secrets: a list of entries in lower case.

    An entry is one or more words, joined by `_`, that follow each other in the name. `*` in a word matches any letters
    and digits. An entry that begins with `!` is a whole name that is not secret; such an entry wins over the others."""

    entries: Sequence[str] = DEFAULT_ENTRIES
    _hidden: "re.Pattern[str]" = field(init=False, repr=False, compare=False)
    _shown: Sequence[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        hidden = [re.escape(entry).replace(r"\*", "[^_]*") for entry in self.entries if not entry.startswith("!")]
        # Without entries nothing matches.
        pattern = f"_(?:{'|'.join(hidden)})s?_" if hidden else r"(?!)"
        object.__setattr__(self, "_hidden", re.compile(pattern))
        object.__setattr__(self, "_shown", tuple(entry[1:] for entry in self.entries if entry.startswith("!")))

    @classmethod
    def read(cls, text: str) -> "SecretNames":
        """Read entries that are separated by commas. Raises ValueError that names the entry at fault."""
        entries: list[str] = []
        for entry in (each.strip().lower() for each in text.split(",")):
            if entry == DEFAULT:
                entries += DEFAULT_ENTRIES
            elif _ENTRY.fullmatch(entry):
                entries.append(entry)
            else:
                raise ValueError(
                    f"{entry!r} in it is not an entry: words of a-z, 0-9 and * joined by _, "
                    f"after an optional !; or {DEFAULT}"
                )
        return cls(tuple(entries))

    def __str__(self) -> str:
        text = ",".join(self.entries)
        return text.replace(",".join(DEFAULT_ENTRIES), DEFAULT)

    def hides(self, name: str) -> bool:
        """Return whether the value of a variable with this name is a secret."""
        # Real names are few and short. A cache of long names would let callers fill the memory.
        return (_hides_cached if len(name) <= _CACHED_CHARACTERS else _hides)(self._hidden, self._shown, name)

    def shown(self, name: str, value: str) -> str:
        """Return the value of the variable without secrets."""
        return REDACTED if self.hides(name) else mask_url_passwords(value)

    def shown_all(self, variables: Mapping[str, str]) -> Mapping[str, str]:
        """Return all variables without secrets."""
        return {name: self.shown(name, value) for name, value in variables.items()}


def _hides(hidden: "re.Pattern[str]", shown: Sequence[str], name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    # With and without the words that are digits, so that "PASSWORD2", "PgPass" and "pg_pass" are found.
    letters = [word for word in words if not word.isdigit()]
    plain = re.sub(r"[\W_]+", "_", name).strip("_").lower()
    if any(fnmatchcase(plain, each) for each in shown):
        return False
    return any(hidden.search(f"_{form}_") for form in (plain, "_".join(words), "_".join(letters)))


_CACHED_CHARACTERS = 100
_hides_cached = lru_cache(4096)(_hides)


# ---------------------------------------------------------------------------------------------------------------- URLs

# The text after `scheme://` up to the colon before a password. A slash ends the part that can hold a password.
_USER = re.compile(r"[^/?#:]*:")
# `host:8080/path@2` has a port and no password.
_PORT = re.compile(r"[0-9]{1,5}[/?#]")
_BLANKS = re.compile(r"(\s+)")


def mask_url_passwords(text: str) -> str:
    """Return the text with `***` in place of the password of each `scheme://user:password@host` in it.

    A password ends at the last @ before a blank: passwords with an unescaped /, : or @ occur."""
    if "://" not in text or "@" not in text:
        return text
    return "".join(map(_masked, _BLANKS.split(text)))


def holds_masked_password(text: str) -> bool:
    """Return whether the text holds a URL whose password is `***`."""
    words = text.split() if f":{REDACTED}@" in text else ()
    return any(word[slice(*span)] == REDACTED for word in words if (span := _password(word)))


def _masked(word: str) -> str:
    span = _password(word)
    return word if span is None else f"{word[: span[0]]}{REDACTED}{word[span[1] :]}"


def _password(word: str) -> tuple[int, int] | None:
    """Return the start and end of the first password of a URL in the word; None: there is none. Takes linear time."""
    end, start = word.rfind("@"), 0
    while (start := word.find("://", start, max(end, 0)) + 3) > 2:
        # A URL needs a scheme. This also bounds how much longer a text can become, as responses have a limit.
        user = _USER.match(word, start, end) if word[start - 4 : start - 3].isalnum() else None
        if user and not _PORT.match(word, user.end(), end):
            return user.end(), end
    return None
