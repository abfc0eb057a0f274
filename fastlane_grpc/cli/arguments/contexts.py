"""Contexts: servers by name, in a file of the user, with what it takes to reach each of them.

A context is used as a whole. A token of one server is never sent to another one, because some other variable is set."""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from fastlane_grpc.cli.errors import WRONG_USE, Failure

# The name of no context: the server of this machine.
DEFAULT = "default"
VARIABLE = "FASTLANE_CONTEXT"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Context:
    """A server: its address, the files of TLS, and the file of a token. None: without."""

    address: str
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None


@dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts by name, and the name of the current one; empty: none is."""

    current: str = ""
    by_name: Mapping[str, Context] = field(default_factory=dict)

    def find(self, name: str) -> Context:
        """Return the context of this name. Failure."""
        if name not in self.by_name:
            raise Failure(f"there is no context {name!r}; see `fastlane context ls`", WRONG_USE)
        return self.by_name[name]

    def added(self, name: str, context: Context) -> "Contexts":
        """Return these and one more. Failure: the name is taken, or is none."""
        if not _NAME.fullmatch(name) or name == DEFAULT:
            raise Failure(
                f"{name!r} cannot be the name of a context: use up to 63 letters, digits, `.`, `_`, `@` and `-`, and "
                f"not {DEFAULT!r}",
                WRONG_USE,
            )
        if name in self.by_name:
            raise Failure(f"there is a context {name!r}: remove it first, or choose another name")
        return replace(self, by_name={**self.by_name, name: context})

    def removed(self, name: str) -> "Contexts":
        """Return these without that one. Failure."""
        self.find(name)
        left = {each: context for each, context in self.by_name.items() if each != name}
        return Contexts("" if self.current == name else self.current, left)

    def using(self, name: str) -> "Contexts":
        """Return these with another current one. Failure."""
        if name == DEFAULT:
            return replace(self, current="")
        self.find(name)
        return replace(self, current=name)


def file_of(environ: Mapping[str, str]) -> Path:
    """Return the path of the user's file."""
    home = environ.get("XDG_CONFIG_HOME", "")
    # A relative one is to be ignored, as the specification says.
    directory = Path(home) if home.startswith("/") else Path(environ.get("HOME") or "/") / ".config"
    return directory / "fastlane" / "contexts.json"


def read(environ: Mapping[str, str]) -> Contexts:
    """Return what the file holds; without a file, no contexts. Failure: it is damaged, or cannot be read."""
    path = file_of(environ)
    try:
        with path.open("rb") as file:
            stored = json.loads(file.read(_MAX_BYTES))
        names = {each.name for each in fields(Context)}
        by_name = {
            str(name): Context(**{key: _text(value) for key, value in kept.items() if key in names})
            for name, kept in stored["contexts"].items()
        }
        return Contexts(_text(stored["current"]), by_name)
    except (FileNotFoundError, NotADirectoryError):
        return Contexts()
    except OSError as error:
        raise Failure(f"cannot read the contexts in {path}: {error.strerror}", WRONG_USE) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Failure(f"the file of contexts {path} is damaged: mend it, or delete it", WRONG_USE) from error


def change(environ: Mapping[str, str], how: Callable[[Contexts], Contexts]) -> Contexts:
    """Replace the contexts in the file by what the function makes of them, at once. Return them. Failure."""
    path = file_of(environ)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            changed = how(read(environ))
            stored = {
                "current": changed.current,
                "contexts": {
                    name: {key: value for key, value in asdict(context).items() if value is not None}
                    for name, context in changed.by_name.items()
                },
            }
            _write(path, (json.dumps(stored, indent=2) + "\n").encode())
    except OSError as error:
        raise Failure(f"cannot write the contexts in {path}: {error.strerror}") from error
    return changed


def in_force(environ: Mapping[str, str], named: str | None) -> Context | None:
    """Return the context that commands use: the one that is named, that of FASTLANE_CONTEXT, or the current one. None:
    none of them. Failure."""
    name = named or environ.get(VARIABLE, "")
    if name == DEFAULT:
        return None
    contexts = read(environ)
    name = name or contexts.current
    return contexts.find(name) if name else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a context holds texts")
    return value


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    # One that a crash left behind may have another mode.
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
