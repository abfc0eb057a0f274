"""Keys that sign webhooks, as the Standard Webhooks specification has them, and the file that names them."""

import base64
import binascii
import hashlib
import hmac
import re
from pathlib import Path

from fastlane_grpc.errors import CannotServe

PREFIX = "whsec_"
# The key of webhooks that name none.
DEFAULT_NAME = "default"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MIN_BYTES, _MAX_BYTES = 24, 64
_MAX_FILE_BYTES = 1 << 20


class UnknownKey(Exception):
    """No key of that name can be read. The message has no secret."""


def key_fault(secret: str) -> str:
    """Return what is wrong with a secret; empty: nothing. The secret is not in the text."""
    try:
        key_of(secret)
    except ValueError as error:
        return str(error)
    return ""


def key_of(secret: str) -> bytes:
    """Return the key that a secret stands for. ValueError, which does not name the secret."""
    fault = f"must be {PREFIX} and the base64 of {_MIN_BYTES} to {_MAX_BYTES} bytes"
    if not secret.startswith(PREFIX):
        raise ValueError(fault)
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(fault) from None
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ValueError(fault)
    return key


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header `webhook-signature`."""
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


class SigningKeys:
    """The keys in a file of lines NAME=whsec_BASE64. The file is read anew when it has changed: a key can be replaced
    without a restart."""

    def __init__(self, path: Path | None) -> None:
        """CannotServe: the file cannot be read, or has a bad line."""
        self._path = path
        self._keys: dict[str, bytes] = {}
        # The file that was read, as far as its attributes tell.
        self._version: tuple[int, ...] = ()
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise CannotServe(f"cannot read webhook_secrets: {_words(error)}") from None

    def key(self, name: str) -> bytes:
        """Return the key of this name. UnknownKey."""
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise UnknownKey(f"webhook_secrets cannot be read: {_words(error)}") from None
        if name not in self._keys:
            raise UnknownKey(f"webhook_secrets has no key {name!r}")
        return self._keys[name]

    def has(self, name: str) -> bool:
        """Return whether there is a key of this name."""
        try:
            self.key(name)
        except UnknownKey:
            return False
        return True

    def _read(self) -> None:
        if self._path is None:
            return
        status = self._path.stat()
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version == self._version:
            return
        if status.st_size > _MAX_FILE_BYTES:
            raise ValueError(f"{self._path} has more than {_MAX_FILE_BYTES} bytes")
        keys: dict[str, bytes] = {}
        for number, line in enumerate(self._path.read_text("utf-8").splitlines(), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, _, secret = text.partition("=")
            if not _NAME.fullmatch(name.strip()):
                raise ValueError(f"line {number} of {self._path} must be NAME={PREFIX}BASE64")
            try:
                keys[name.strip()] = key_of(secret.strip())
            except ValueError as error:
                raise ValueError(f"line {number} of {self._path}: the key {error}") from None
        self._keys, self._version = keys, version


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
