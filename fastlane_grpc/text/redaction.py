"""Which values are secrets: names of variables, by their words, and the passwords inside URLs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

# What is shown in place of a secret.
REDACTED = "***"

# Entries of `SecretNames`. A plural is meant with each: "key" is "keys" too.
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
# This entry of a list stands for all of the above.
DEFAULT = "default"

_ENTRY = re.compile(r"!?[a-z0-9*]+(?:_[a-z0-9*]+)*")
# "APIKey2" is "API", "Key" and "2"; "DB_PWD" is "DB" and "PWD".
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+")


@dataclass(frozen=True, slots=True)
class SecretNames:
    """The names of variables whose values are secrets: a list of entries, in lower case.

    An entry is one or more words, joined by `_`, that stand in the name one after the other. `*` in a word stands for
    any letters or digits. An entry that begins with `!` is a whole name that is no secret, whatever the others say."""

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
        """Whether the value of a variable of this name is a secret."""
        # The names of programs are few and short; a cache of long ones would be a way to fill the memory.
        return (_hides_cached if len(name) <= _CACHED_CHARACTERS else _hides)(self._hidden, self._shown, name)

    def shown(self, name: str, value: str) -> str:
        """Return the value of the variable as it may be shown."""
        return REDACTED if self.hides(name) else mask_url_passwords(value)

    def shown_all(self, variables: Mapping[str, str]) -> Mapping[str, str]:
        """Return all variables as they may be shown."""
        return {name: self.shown(name, value) for name, value in variables.items()}


def _hides(hidden: "re.Pattern[str]", shown: Sequence[str], name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    # As its words, and as its letters alone: "PASSWORD2", "PgPass" and "pg_pass" are found as well.
    letters = [word for word in words if not word.isdigit()]
    plain = re.sub(r"[\W_]+", "_", name).strip("_").lower()
    if any(fnmatchcase(plain, each) for each in shown):
        return False
    return any(hidden.search(f"_{form}_") for form in (plain, "_".join(words), "_".join(letters)))


_CACHED_CHARACTERS = 100
_hides_cached = lru_cache(4096)(_hides)


# ---------------------------------------------------------------------------------------------------------------- URLs

# What follows `scheme://` up to the colon before a password. A slash before it ends the part in which one may be.
_USER = re.compile(r"[^/?#:]*:")
# `host:8080/path@2` has a port and no password.
_PORT = re.compile(r"[0-9]{1,5}[/?#]")
_BLANKS = re.compile(r"(\s+)")


def mask_url_passwords(text: str) -> str:
    """Return the text with `***` in place of the password of each `scheme://user:password@host` in it.

    A password ends at the last @ before a blank: it may hold /, : and @, although it ought not to.
    """
    if "://" not in text or "@" not in text:
        return text
    return "".join(map(_masked, _BLANKS.split(text)))


def holds_masked_password(text: str) -> bool:
    """Whether the text holds a URL whose password is `***`, as it is shown."""
    words = text.split() if f":{REDACTED}@" in text else ()
    return any(word[slice(*span)] == REDACTED for word in words if (span := _password(word)))


def _masked(word: str) -> str:
    span = _password(word)
    return word if span is None else f"{word[: span[0]]}{REDACTED}{word[span[1] :]}"


def _password(word: str) -> tuple[int, int] | None:
    """Return where the first password of a URL in the word begins and ends; None if there is none. Takes linear
    time."""
    end, place = word.rfind("@"), 0
    while (place := word.find("://", place, max(end, 0)) + 3) > 2:
        # Without a scheme it is no URL. That also bounds how much longer a text can become: answers have a limit.
        user = _USER.match(word, place, end) if word[place - 4 : place - 3].isalnum() else None
        if user and not _PORT.match(word, user.end(), end):
            return user.end(), end
    return None
