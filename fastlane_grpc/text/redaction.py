"""Redaction of secrets in text that is shown: values with secret names, credentials in URLs and headers, tokens.

Redaction takes linear time. A text that was redacted does not change when it is redacted again."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial

# Shown in place of a secret.
REDACTED = "***"

# Each secret is found by one of these characters near it, but for a bearer token. Most texts have none of them.
_MARKS = re.compile(r"[=:_-]")

# How often a text is searched at most. One round is enough for all but contrived texts.
_ROUNDS = 4

# The start and the end of a secret in a text.
_Span = tuple[int, int]

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
    _hides: Callable[[str], bool] = field(init=False, repr=False, compare=False)
    _hides_cached: Callable[[str], bool] = field(init=False, repr=False, compare=False)
    # Every secret name contains one of these, in some case.
    _pieces: Sequence[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        secret = [entry for entry in self.entries if not entry.startswith("!")]
        hidden = [re.escape(entry).replace(r"\*", "[^_]*") for entry in secret]
        # Without entries nothing matches.
        pattern = f"_(?:{'|'.join(hidden)})s?_" if hidden else r"(?!)"
        shown = tuple(entry[1:] for entry in self.entries if entry.startswith("!"))
        hides = partial(_hides, re.compile(pattern), shown)
        object.__setattr__(self, "_hides", hides)
        object.__setattr__(self, "_hides_cached", lru_cache(4096)(hides))
        pieces = {max(re.split(r"[*_]", entry), key=len) for entry in secret}
        object.__setattr__(self, "_pieces", tuple(pieces))

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
        return (self._hides_cached if len(name) <= _CACHED_CHARACTERS else self._hides)(name)

    def shown(self, name: str, value: str) -> str:
        """Return the value of the variable without secrets."""
        return REDACTED if self.hides(name) else self.mask(value)

    def shown_all(self, variables: Mapping[str, str]) -> Mapping[str, str]:
        """Return all variables without secrets."""
        return {name: self.shown(name, value) for name, value in variables.items()}

    def shown_header(self, name: str, value: str) -> str:
        """Return the value of an HTTP header without secrets."""
        is_secret = self.hides(name.replace("-", "_")) or _HEADER.match(f"{name}: x")
        return REDACTED if is_secret else self.mask(value)

    def mask(self, text: str) -> str:
        """Return the text with `***` in place of each secret in it.

        These are secrets: the value after a secret name and `=`, as in `--password=x`, `?token=x` or `;password=x`; a
        JSON string with a secret name; the password of a URL; a token in place of the user of a URL; the value of an
        Authorization header and of similar ones; a bearer token; a token with a well-known prefix, as `ghp_`."""
        return _masked(text, self._finders())

    def mask_command(self, text: str) -> str:
        """Return a command line without secrets: as `mask`, and without `x` in `--password x`."""
        return _masked(text, (*self._finders(), self._option_values))

    def mask_word(self, word: str) -> str:
        """Return one word of a command line without secrets. It may be a script of a shell. The value in `--password=x`
        is all the rest of the word, blanks too."""
        option = _OPTION.match(word)
        if option and option.end() < len(word) and self.hides(option[1]):
            return f"{word[: option.end()]}{REDACTED}"
        return self.mask_command(word)

    def mask_words(self, words: Sequence[str]) -> Sequence[str]:
        """Return the words of a command line without secrets. A word may be the value of the option before it."""
        shown = tuple(map(self.mask_word, words))
        secret = {number for number in range(1, len(words)) if self._is_secret_value(words, number)}
        return tuple(REDACTED if number in secret else word for number, word in enumerate(shown)) if secret else shown

    def holds_mask(self, text: str) -> bool:
        """Return whether the text holds `***` where a secret belongs."""
        if REDACTED not in text:
            return False
        finders = (*self._finders(), self._option_values)
        return any(text[slice(*span)] == REDACTED for find in finders for span in find(text))

    def is_mask(self, words: Sequence[str], number: int) -> bool:
        """Return whether this word of a command line is `***` where the value of a secret option belongs."""
        return words[number] == REDACTED and self._is_secret_value(words, number)

    def _is_secret_value(self, words: Sequence[str], number: int) -> bool:
        option = _OPTION_ALONE.fullmatch(words[number - 1]) if number and words[number - 1].startswith("-") else None
        return bool(option and words[number] and not words[number].startswith("-") and self._takes_secret(option[1]))

    def _takes_secret(self, option: str) -> bool:
        # `--no-password` is a switch.
        return not option.lower().startswith("no-") and self.hides(option)

    def _option_values(self, text: str) -> Iterator[_Span]:
        lowered = text.lower() if "-" in text else ""
        if not any(piece in lowered for piece in self._pieces):
            return
        for option in _OPTION_AND_BLANK.finditer(text):
            value = _VALUE.match(text, option.end()) if self._takes_secret(option[1]) else None
            if value and value.lastindex and value[value.lastindex]:
                yield value.span(value.lastindex)

    def _finders(self) -> Sequence[Callable[[str], Iterable[_Span]]]:
        return (_header_values, self._json_values, self._named_values, _tokens, _url_credentials)

    def _json_values(self, text: str) -> Iterable[_Span]:
        if '"' not in text or ":" not in text:
            return ()
        return self._values(text, _JSON_NAME, lambda _: _JSON_VALUE)

    def _named_values(self, text: str) -> Iterable[_Span]:
        if "=" not in text:
            return ()
        return self._values(text, _NAME, lambda name: _VALUES.get(text[max(name.start() - 1, 0)], _VALUE))

    def _values(
        self, text: str, names: "re.Pattern[str]", pattern: "Callable[[re.Match[str]], re.Pattern[str]]"
    ) -> Iterator[_Span]:
        lowered = text.lower()
        if not any(piece in lowered for piece in self._pieces):
            return
        end = 0
        for name in names.finditer(text):
            if name.start() < end or not self.hides(name[1]):
                continue
            value = pattern(name).match(text, name.end())
            if value and value.lastindex and value[value.lastindex]:
                yield value.span(value.lastindex)
                end = value.end()


def mask_secrets(text: str) -> str:
    """Return the text without secrets, by the default names."""
    return _DEFAULT_NAMES.mask(text)


def _masked(text: str, finders: Sequence[Callable[[str], Iterable[_Span]]]) -> str:
    if not _MARKS.search(text) and "bearer " not in text.lower():
        return text
    # What one finder removes may end what another one found: `a://X-Key:"x@h`. A second round settles that.
    for _ in range(_ROUNDS):
        before = text
        for find in finders:
            if spans := find(text):
                text = _without(text, spans)
        if text == before:
            break
    return text


def _without(text: str, spans: Iterable[_Span]) -> str:
    pieces: list[str] = []
    done = 0
    for start, end in spans:
        pieces += text[done:start], REDACTED
        done = end
    return "".join([*pieces, text[done:]]) if done else text


def _hides(hidden: "re.Pattern[str]", shown: Sequence[str], name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    # With and without the words that are digits, so that "PASSWORD2", "PgPass" and "pg_pass" are found.
    letters = [word for word in words if not word.isdigit()]
    plain = re.sub(r"[\W_]+", "_", name).strip("_").lower()
    if not any(hidden.search(f"_{form}_") for form in {plain, "_".join(words), "_".join(letters)}):
        return False
    return not any(fnmatchcase(plain, each) for each in shown)


_CACHED_CHARACTERS = 100
_DEFAULT_NAMES = SecretNames()


# --------------------------------------------------------------------------------------------------------- named values

# `name=` and `"name": "`. Repetitions are possessive: the search is linear.
_NAME = re.compile(r"(?<![\w.-])([\w.-]++)=")
_JSON_NAME = re.compile(r'"([\w.-]++)"\s*+:\s*+"')
# An option or a variable with its value in one word: `--password=x`, `PASSWORD=x`.
_OPTION = re.compile(r"-*+([\w.-]++)=")
# An option whose value is the next word: `--password x`, `-password x`.
_OPTION_ALONE = re.compile(r"--?+(\w[\w.-]*+)")
_OPTION_AND_BLANK = re.compile(r"(?<![\w.-])--?+(\w[\w.-]*+)[ \t]++(?!-)")


def _value_until(end: str) -> "re.Pattern[str]":
    """Return the pattern of a value that ends at a blank or at `end`. A quote ends it only where the text goes on as
    after the end of a quotation."""
    rest = rf"""(?:[^\s"'{end}]|["'](?!$|[\s,;:)\]}}{end}]))*+"""
    return re.compile(rf""""([^"]*+)|'([^']*+)|({rest})""")


# By the character before the name.
_VALUES = {"?": _value_until("&"), "&": _value_until("&"), ";": _value_until(";"), ",": _value_until(",")}
_VALUE = _value_until("")
_JSON_VALUE = re.compile(r'((?:[^"\\]|\\.)*+)', re.DOTALL)


# --------------------------------------------------------------------------------------------------- headers and tokens

_HEADER_NAMES = ["authorization", "cookie", "set-cookie", "private-token", "api-key"]
_HEADER = re.compile(
    rf"""(?<![\w-])(?:(?:[\w]++-)*?(?:{"|".join(_HEADER_NAMES)})|x-[\w-]*?(?:key|token|secret))[ \t]*+:[ \t]*+"""
    r"""([^\r\n"']++)""",
    re.IGNORECASE,
)
# Prefixes by which issuers mark their tokens.
_PREFIXES = (
    "flt_ gh[pousr]_ github_pat_ glpat- gldt- glrt- xox[abeoprs]- npm_ pypi- hf_ dop_v1_ sk- sk_live_ rk_live_ shpat_"
)
_TOKEN = re.compile(
    rf"""(?<![A-Za-z0-9])(?:(?:{"|".join(_PREFIXES.split())})|(?i:bearer)[ ]++(?=\*|[\w.~+/-]*?[0-9]))"""
    r"""([\w.~+/-]{16,}+=*+|\*\*\*)"""
)


def _header_values(text: str) -> Iterable[_Span]:
    return (header.span(1) for header in _HEADER.finditer(text)) if ":" in text else ()


def _tokens(text: str) -> Iterable[_Span]:
    return (token.span(1) for token in _TOKEN.finditer(text))


# ---------------------------------------------------------------------------------------------------------------- URLs

# The text after `scheme://` up to the colon before a password. A slash ends the part that can hold a password.
_USER = re.compile(r"[^/?#:]*:")
# A port and the start of a path. A password may begin like them.
_PORT = re.compile(r"[0-9]{1,5}[/?#]")
# A version or a digest in place of a host, as in `host:8080/path@1.2`. Such a text has a port and no password.
_VERSION = re.compile(r"v?[0-9]+(?:\.[0-9]+){0,2}(?![\w.])|sha[0-9]+:")
# A user that is a token: long, and of letters and digits.
_TOKEN_USER = re.compile(r"(?=[^@:/?#]*[0-9])(?=[^@:/?#]*[A-Za-z])[A-Za-z0-9_]{20,}(?=[@:])|\*\*\*(?=[@:])")
_BLANKS = re.compile(r"\S+")


def _url_credentials(text: str) -> Iterable[_Span]:
    """Return the spans of the password, and of a token in place of the user, of each `scheme://user:password@host`.

    A password ends at the last @ before a blank: passwords with an unescaped /, : or @ occur."""
    if "://" not in text or "@" not in text:
        return ()
    return (span for word in _BLANKS.finditer(text) for span in _credentials(text, word.start(), word.end()))


def _credentials(text: str, start: int, end: int) -> Iterator[_Span]:
    end = text.rfind("@", start, end)
    # In `host:8080/path?mail=me@host`, the start of the query that the @ is in.
    query = text.rfind("?", start, max(text.rfind("=", start, max(end, 0)), 0))
    version = _VERSION.match(text, end + 1)
    while (start := text.find("://", start, max(end, 0)) + 3) > 2:
        # A URL needs a scheme. This also bounds how much longer a text can become, as responses have a limit.
        if not text[max(start - 4, 0) : start - 3].isalnum():
            continue
        if token := _TOKEN_USER.match(text, start, end + 1):
            yield token.span()
        user = _USER.match(text, start, end)
        if user and not (_PORT.match(text, user.end(), end) and (version or query > start)):
            yield user.end(), end
            return
