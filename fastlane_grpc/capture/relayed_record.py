"""A record that is written on another machine, and copied here byte for byte by a relay.

The relay asks for the record before it lets a recorder begin. That grant, and a revocation, are one file that is made
once: whichever of the two comes first stays, whatever is killed. So without a grant the command never ran.
"""

import os
import secrets
from contextlib import suppress
from enum import Enum
from pathlib import Path

from fastlane_grpc.record import open_record
from fastlane_grpc.record.format import BLOCK_BYTES
from fastlane_grpc.record.limit import Limit

# A file cannot be larger: a hostile relay must not make one that no program can read.
MAX_RECORD_BYTES = 1 << 50


class Permission(Enum):
    """Whether a recorder may begin."""

    GRANTED = "granted"
    REVOKED = "revoked"


class StartRevoked(Exception):
    """The start of the execution was revoked: its command must not run."""


class PieceInvalid(Exception):
    """A piece of a record does not fit to what was received before."""


def permission(directory: Path) -> Permission | None:
    """Return what was decided for the record in this directory; None: nothing yet."""
    try:
        return Permission((directory / "relay").read_text())
    except FileNotFoundError:
        return None


def decide(directory: Path, wanted: Permission) -> Permission:
    """Decide whether a recorder may begin, and return the decision: an earlier one stays. It is on disk."""
    decided = permission(directory)
    if decided is not None:
        return decided
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f"relay-{secrets.token_hex(4)}.new"
    try:
        with new.open("w") as file:
            file.write(wanted.value)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            (directory / "relay").hardlink_to(new)
    finally:
        new.unlink(missing_ok=True)
    _sync(directory)
    return Permission((directory / "relay").read_text())


class RelayedRecord:
    """The copy of one record, for one relay. Used by one thread at a time.

    `max_bytes` is the size limit of the recorder; 0: none. A piece is to be stored at `position`.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.position = self.size = 0
        self._directory = directory
        self._max_bytes = max_bytes
        self._limit: Limit | None = None
        self._file = -1

    def open(self) -> None:
        """Grant the start, and open the record. Raises StartRevoked, and OSError: then it may be called again."""
        if decide(self._directory, Permission.GRANTED) is Permission.REVOKED:
            raise StartRevoked("the start of this execution was revoked")
        if self._file < 0:
            self._file = open_record(self._directory / "log", os.O_RDWR | os.O_CREAT)
        self._limit = Limit(self._file, self._max_bytes, 0) if self._max_bytes else None
        # The last block is sent again: a machine that went down may have lost what was not synced of it.
        self.size = os.fstat(self._file).st_size
        self.position = self.size - self.size % BLOCK_BYTES

    def store(self, offset: int, piece: bytes) -> None:
        """Write a piece at its place, which is `position`, or a later block after blocks that were punched out.

        Raises PieceInvalid, and OSError: then the same piece may be stored again.
        """
        end = offset + len(piece)
        skips = offset > self.position and not offset % BLOCK_BYTES and self._limit is not None
        if not piece or end > MAX_RECORD_BYTES or not (offset == self.position or skips):
            raise PieceInvalid(f"a piece of {len(piece)} bytes at {offset}, after {self.position}")
        place, rest = offset, memoryview(piece)
        while rest:
            written = os.pwrite(self._file, rest, place)
            place, rest = place + written, rest[written:]
        begun = range(-(-offset // BLOCK_BYTES), -(-end // BLOCK_BYTES))
        self.position, self.size = end, max(self.size, end)
        if self._limit is not None and begun:
            self._limit.evict_blocks(begun[-1])

    def sync(self) -> int:
        """Bring everything to the disk, and return the size of the record."""
        os.fsync(self._file)
        return self.size

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
