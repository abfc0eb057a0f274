"""Bearer tokens: their roles, and the file of the data directory that holds their hashes.

The file is the only place where tokens are made and revoked: a program that may write into the data directory owns the
server anyway, and no call over the network can make a token."""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from fastlane_grpc.pools import matcher, read_pattern

FILE_NAME = "tokens.json"
# The prefix lets programs that search for leaked secrets find a token.
PREFIX = "flt_"
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


class Role(IntEnum):
    """The calls that a token allows. Each role includes those before it."""

    VIEW = 1
    SUBMIT = 2
    OPERATE = 3


class TokensUnusable(Exception):
    """The file of tokens cannot be read or written; the message says why."""


class TokenRefused(Exception):
    """A token that cannot be made or revoked; the message says why."""


@dataclass(frozen=True, slots=True)
class TaskPattern:
    """Names of tasks as globs, separated by commas; see `pools.read_pattern`."""

    text: str

    def matches(self, task_id: str) -> bool:
        return _matcher(self.text).match(task_id) is not None


_matcher = cache(matcher)


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored. `digest`: the SHA-256 of its text in hex; empty: it stands for the client certificate
    with the common name `certificate`. `tasks` None: all."""

    name: str
    role: Role
    tasks: TaskPattern | None
    create_time: datetime
    expire_time: datetime | None
    digest: str = ""
    certificate: str = ""

    def is_expired(self, now: datetime) -> bool:
        return self.expire_time is not None and now >= self.expire_time


def digest_of(text: str) -> str:
    """Return the hash by which a token is known.

    A slow, salted hash protects secrets that people choose. These have 256 random bits: nobody finds one that has a
    given hash, and each call computes one."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class TokenFile:
    """The tokens of a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FILE_NAME

    def stamp(self) -> tuple[int, int, int] | None:
        """Return what changes with each change of the file; None: there is no file. TokensUnusable."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TokensUnusable(f"cannot read {self.path}: {error.strerror}") from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def read(self) -> Sequence[Token]:
        """Return all tokens, expired ones too. TokensUnusable."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise TokensUnusable(f"cannot read {self.path}: {error.strerror}") from error
        try:
            return tuple(map(_token_of, json.loads(content)["tokens"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokensUnusable(f"{self.path} is damaged: restore it, or delete it and create tokens anew") from error

    def create(
        self,
        name: str,
        role: Role,
        *,
        tasks: TaskPattern | None = None,
        expire_time: datetime | None = None,
        certificate: str = "",
    ) -> str:
        """Store a token and return its text, which is stored nowhere; empty for a certificate. TokenRefused,
        TokensUnusable."""
        if not _NAME.fullmatch(name):
            raise TokenRefused(f"{name[:80]!r} cannot be a name: give 1 to 63 of letters, digits, . _ @ and -")
        text = "" if certificate else PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        token = Token(name, role, tasks, datetime.now(UTC), expire_time, digest_of(text) if text else "", certificate)

        def add(tokens: Sequence[Token]) -> Sequence[Token]:
            if any(each.name == name for each in tokens):
                raise TokenRefused(f"there is a token {name!r}: revoke it first, or choose another name")
            if certificate and any(each.certificate == certificate for each in tokens):
                raise TokenRefused(f"there is a token for the certificate {certificate!r}: revoke it first")
            return [*tokens, token]

        self._change(add)
        return text

    def revoke(self, name: str) -> None:
        """Delete a token. TokenRefused, TokensUnusable."""

        def remove(tokens: Sequence[Token]) -> Sequence[Token]:
            left = [each for each in tokens if each.name != name]
            if len(left) == len(tokens):
                raise TokenRefused(f"there is no token {name[:80]!r}; see `fastlane token ls`")
            return left

        self._change(remove)

    def _change(self, change: Callable[[Sequence[Token]], Sequence[Token]]) -> None:
        try:
            with self._locked():
                self._write(change(self.read()))
        except OSError as error:
            raise TokensUnusable(f"cannot write {self.path}: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep others from changing the file at the same time."""
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def _write(self, tokens: Sequence[Token]) -> None:
        """Replace the file as a whole: a crash leaves the old one or the new one."""
        content = json.dumps({"version": 1, "tokens": [_json_of(each) for each in tokens]}, indent=1).encode()
        new = self.path.with_suffix(".new")
        with suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, content)
            if os.geteuid() == 0:
                # The server may run as another user, the owner of its data directory.
                owner = self.path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _json_of(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "role": token.role.name.lower(),
        "tasks": token.tasks.text if token.tasks else None,
        "create_time": token.create_time.isoformat(),
        "expire_time": token.expire_time.isoformat() if token.expire_time else None,
        "sha256": token.digest,
        "certificate": token.certificate,
    }


def _token_of(stored: dict[str, Any]) -> Token:
    tasks, expire = stored["tasks"], stored["expire_time"]
    return Token(
        str(stored["name"]),
        Role[stored["role"].upper()],
        TaskPattern(read_pattern(tasks)) if tasks is not None else None,
        datetime.fromisoformat(stored["create_time"]),
        datetime.fromisoformat(expire) if expire is not None else None,
        stored["sha256"],
        stored["certificate"],
    )
