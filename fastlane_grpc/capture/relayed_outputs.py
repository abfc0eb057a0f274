"""The files that a job in a pod keeps, which its relay copies to the directory of its record.

A program in the pod writes one file: the archive of each path, as an engine gives it, and an index as JSON. Behind them
are the size of the index (4 bytes, little-endian), the SHA-256 of everything before, and `fastlane`. The index has for
each path the begin and the size of its archive, or null for a path that the container does not have. Otherwise it has
`fault` and `detail`. Nothing in the file is trusted.
"""

import errno
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastlane_grpc.backend import BackendRefuses, Diagnosis, RefusalKind
from fastlane_grpc.capture.container_files import OutputsTooLarge
from fastlane_grpc.capture.relayed_record import PieceInvalid, StartRevoked, permission_granted, write_anew
from fastlane_grpc.text.sanitize import one_line

# Bytes that the file may have beyond the limit of outputs: ends of archives, and the index.
SPARE_BYTES = 1 << 20
# Names in the directory of a record: how many bytes are expected, as a number; the file as far as it has come, and
# whole; and what says that the disk had no room for it.
_EXPECTED, _PART, _WHOLE = "relay-outputs", "relay-outputs.part", "relay-outputs.whole"
_DROPPED = "relay-outputs.dropped"
_END = b"fastlane"
_SUM_BYTES, _LENGTH_BYTES = 32, 4
_TAIL_BYTES = _LENGTH_BYTES + _SUM_BYTES + len(_END)
_MAX_INDEX_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
_DETAIL_CHARACTERS = 300
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OutputsDamaged(Exception):
    """The copy is not the file of the pod. It was dropped, and may be sent again."""


def expect(directory: Path, most_bytes: int) -> None:
    """Note that the job keeps files, of so many bytes in sum at most."""
    write_anew(directory, _EXPECTED, str(most_bytes))


def expected(directory: Path) -> int | None:
    """Return how many bytes a job may keep; None: it keeps nothing."""
    try:
        return int((directory / _EXPECTED).read_text())
    except FileNotFoundError:
        return None


def discard(directory: Path) -> None:
    """Delete what was copied."""
    for name in (_PART, _WHOLE, _DROPPED):
        (directory / name).unlink(missing_ok=True)


class RelayedOutputs:
    """The copy of the file of one pod, for one relay. Used by one thread at a time.

    A piece is to be stored at `position`. A disk without room drops everything, and does not hold up the relay.
    """

    def __init__(self, directory: Path) -> None:
        self.position = 0
        self._directory = directory
        self._most_bytes = 0
        self._resumed = self._dropped = False

    def open(self) -> None:
        """Find out what was copied before. Raises OSError."""
        self._most_bytes = (expected(self._directory) or 0) + 2 * SPARE_BYTES
        for name in (_WHOLE, _PART):
            with suppress(FileNotFoundError):
                self.position = (self._directory / name).stat().st_size
                self._resumed = self.position > 0
                return

    def store(self, offset: int, piece: bytes) -> None:
        """Write a piece at its place. Raises StartRevoked, PieceInvalid and OSError."""
        if not permission_granted(self._directory):
            raise StartRevoked("the record of this execution is closed")
        end = offset + len(piece)
        if expected(self._directory) is None or offset != self.position or end > self._most_bytes:
            raise PieceInvalid(f"{len(piece)} bytes of outputs at {offset}, after {self.position}")
        if not self._dropped:
            try:
                self._append(offset, piece)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._dropped = True
                (self._directory / _PART).unlink(missing_ok=True)
                with suppress(OSError):
                    (self._directory / _DROPPED).touch()
        self.position = end

    def finish(self) -> None:
        """Check the copy, and put it on disk. Raises OutputsDamaged and OSError."""
        part = self._directory / _PART
        if self._dropped or not part.exists():
            return
        with part.open("rb") as file:
            if not _is_whole(file):
                part.unlink()
                # Bytes from before a break may be of another disk. What has come at once is no better next time.
                if self._resumed:
                    raise OutputsDamaged
                return
            try:
                os.fsync(file.fileno())
            except OSError:
                # A second sync would say that all is well. Sent again, the file is written anew.
                part.unlink()
                raise
        part.replace(self._directory / _WHOLE)

    def _append(self, offset: int, piece: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = os.open(self._directory / _PART, flags, 0o600)
        try:
            place, rest = offset, memoryview(piece)
            while rest:
                written = os.pwrite(opened, rest, place)
                place, rest = place + written, rest[written:]
        finally:
            os.close(opened)


def kept(directory: Path, paths: Sequence[str], path: str) -> BinaryIO | None:
    """Open the archive of one of the paths that a job keeps; None: the container did not have it.

    Raises OutputsTooLarge, BackendRefuses and OSError.
    """
    try:
        file = (directory / _WHOLE).open("rb")
    except FileNotFoundError:
        if (directory / _DROPPED).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise _unavailable("they did not come from its node") from None
    try:
        end = file.seek(0, os.SEEK_END)
        index, begin = _index(file, end)
        if fault := index.get("fault"):
            raise _failure(fault, one_line(str(index.get("detail", "")), _DETAIL_CHARACTERS))
        places = index.get("paths")
        place = places[paths.index(path)] if isinstance(places, list) and len(places) == len(paths) else {}
        if place is None:
            file.close()
            return None
        offset, size = (place.get(name) if isinstance(place, dict) else None for name in ("begin", "size"))
        if not (isinstance(offset, int) and isinstance(size, int) and 0 <= offset <= offset + size <= begin):
            raise _unavailable("their index is damaged")
        return io.BufferedReader(_Part(file, offset, size))
    except BaseException:
        file.close()
        raise


def _index(file: BinaryIO, end: int) -> tuple[Mapping[str, Any], int]:
    """Return the index of a whole file, and where it begins."""
    file.seek(end - _TAIL_BYTES)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    begin = end - _TAIL_BYTES - length
    if begin < 0 or length > _MAX_INDEX_BYTES:
        raise _unavailable("their index is damaged")
    file.seek(begin)
    try:
        index: Any = json.loads(file.read(length))
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict):
        raise _unavailable("their index is damaged")
    return index, begin


def _failure(fault: object, detail: str) -> Exception:
    if fault == "too_large":
        return OutputsTooLarge()
    if fault == "no_room":
        return OSError(errno.ENOSPC, f"the node has no room for them: {detail}")
    return _unavailable(detail)


def _unavailable(text: str) -> BackendRefuses:
    return BackendRefuses(Diagnosis(text, text, text, RefusalKind.FINAL))


def _is_whole(file: BinaryIO) -> bool:
    """Whether the file has its end, and the checksum of everything before it."""
    size = file.seek(0, os.SEEK_END)
    if size < _TAIL_BYTES:
        return False
    left = file.seek(0) + size - _SUM_BYTES - len(_END)
    digest = hashlib.sha256()
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            return False
        digest.update(block)
        left -= len(block)
    return file.read() == digest.digest() + _END


class _Part(io.RawIOBase):
    """The bytes of a file from an offset on, and of a size. Closes the file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file = file
        self._left = size
        file.seek(offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(min(len(buffer), self._left))
        buffer[: len(block)] = block
        self._left -= len(block)
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()
