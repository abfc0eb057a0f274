"""Tokens by which a server knows the relays of its pods, and the key that they are made from."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from fastlane_grpc.errors import CannotServe

# The file of the key in a data directory.
KEY_FILE = "relay-key"
KEY_BYTES = 32


class RelayTokens:
    """The tokens of relays: one for each pod of an execution, made from a key that only the server has."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def kept_in(cls, data_dir: Path) -> "RelayTokens":
        """Return the tokens of the key in a data directory, which is made if it is not there. Raises CannotServe.

        The key outlives servers: relays of pods that run use their tokens with the next one.
        """
        path = data_dir / KEY_FILE
        try:
            try:
                key = _read(path)
            except FileNotFoundError:
                _make(path)
                key = _read(path)
        except OSError as error:
            raise CannotServe(f"cannot use {path}, the key of relays: {error.strerror}") from error
        if len(key) != KEY_BYTES:
            raise CannotServe(
                f"{path}, the key of relays, is damaged: it has {len(key)} bytes and not {KEY_BYTES}; restore it from "
                "a backup, or remove it: the output of pods that run now is then cut off"
            )
        return cls(key)

    def token(self, execution_id: str, pod: str) -> str:
        """Return the token of a pod of an execution, by the pod's number."""
        return hmac.new(self._key, f"{execution_id}/{pod}".encode(), hashlib.sha256).hexdigest()

    def admits(self, execution_id: str, pod: str, token: str) -> bool:
        """Whether this is the token of the pod."""
        return hmac.compare_digest(self.token(execution_id, pod).encode(), token.encode())


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NOFOLLOW)) as file:
        return file.read(KEY_BYTES + 1)


def _make(path: Path) -> None:
    """Make the key, for this user alone. It is on disk, and whole, before it has its name."""
    new = path.with_suffix(".new")
    with open(new, "wb", opener=lambda file, flags: os.open(file, flags | os.O_NOFOLLOW, 0o600)) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
