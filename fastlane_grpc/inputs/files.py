"""The files of contents, each named by its SHA-256. An input of a job names its content by that.

A content arrives in parts, or whole with the job. The parts are a file too, so that an upload goes on after a restart.
A content that no job uses is deleted an hour after its last use.
"""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# How long a content is kept that no job uses, after its last use.
UNUSED_SECONDS = 3600.0
# Contents that are looked up in the store together.
_AT_ONCE = 500
_BLOCK_BYTES = 1 << 20
_NAME = re.compile(r"([0-9a-f]{64})(\.part)?")
_PART = ".part"


class WrongChecksum(Exception):
    """The whole content has another checksum than the one it was uploaded for. It is deleted."""


class InputFiles:
    """The contents below one directory. May be called from any thread; every method reads or writes the disk.

    Every method may raise OSError.
    """

    def __init__(self, directory: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._wall_clock = wall_clock
        # Held while a file is used or deleted: what was just found must not be deleted as unused.
        self._lock = threading.Lock()

    def path(self, sha256: str) -> Path:
        """Return the path of a content, which may not exist."""
        return self.directory / sha256

    def use(self, sha256: str) -> int | None:
        """Return the size of a content, and keep it for an hour from now; None: there is no such content."""
        with self._lock:
            return self._use(sha256)

    def keep(self, content: bytes) -> str:
        """Store a whole content, on disk when this returns. Return its checksum."""
        sha256 = hashlib.sha256(content).hexdigest()
        with self._lock:
            if self._use(sha256) is None:
                self._replace_part(sha256, content)
                self._complete(sha256)
        return sha256

    def add(self, sha256: str, size_bytes: int, offset: int, data: bytes) -> int:
        """Store a part of a content. Return the number of bytes that are stored: `size_bytes` if it is complete.

        Bytes that are stored already, and those after a gap, are ignored. Raises WrongChecksum.
        """
        with self._lock:
            if self._use(sha256) is not None:
                return size_bytes
            received = self._append(sha256, offset, data)
            if received < size_bytes:
                return received
        # Without the lock, as it takes a second for each gigabyte or so.
        correct = self._checksum(self._part(sha256)) == sha256 and received == size_bytes
        with self._lock:
            if self._use(sha256) is not None:
                return size_bytes
            if not correct:
                self._part(sha256).unlink(missing_ok=True)
                raise WrongChecksum(sha256)
            self._complete(sha256)
        return size_bytes

    def open(self, sha256: str) -> BinaryIO:
        """Open a content. FileNotFoundError."""
        return self.path(sha256).open("rb")

    def shared(self, sha256: str, size_bytes: int) -> Path:
        """Return the path of a content that any user can read, as the user of a container has to.

        The directory above is closed to all others. FileNotFoundError; OSError for a content of another size.
        """
        path = self.path(sha256)
        path.chmod(0o644)
        if path.stat().st_size != size_bytes:
            raise OSError(errno.EIO, "it is not whole")
        return path

    def delete_unused(self, in_use: Callable[[Collection[str]], Set[str]]) -> int:
        """Delete what no job uses and nobody has used for an hour. Return how many files were deleted.

        `in_use` returns those of some checksums that jobs name.
        """
        deleted = 0
        for names in _in_groups(self._unused_names()):
            jobs_name = in_use({name.removesuffix(_PART) for name in names})
            for name in names:
                if name.endswith(_PART) or name not in jobs_name:
                    deleted += self._delete_if_unused(name)
        return deleted

    def _unused_names(self) -> Iterator[str]:
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and self._is_unused(self.directory / entry.name):
                    yield entry.name

    def _delete_if_unused(self, name: str) -> bool:
        with self._lock:
            if not self._is_unused(self.directory / name):
                return False
            (self.directory / name).unlink(missing_ok=True)
            return True

    def _is_unused(self, path: Path) -> bool:
        try:
            return path.lstat().st_mtime < self._wall_clock() - UNUSED_SECONDS
        except FileNotFoundError:
            return False

    # ---- with the lock

    def _use(self, sha256: str) -> int | None:
        path = self.path(sha256)
        try:
            now = self._wall_clock()
            os.utime(path, (now, now))
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def _append(self, sha256: str, offset: int, data: bytes) -> int:
        """Append what is new of a part, and return the number of bytes that are stored."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        opened = os.open(self._part(sha256), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(opened, "r+b") as file:
            received = file.seek(0, os.SEEK_END)
            if offset <= received < offset + len(data):
                file.write(data[received - offset :])
                received = offset + len(data)
            file.flush()
            now = self._wall_clock()
            os.utime(file.fileno(), (now, now))
        return received

    def _replace_part(self, sha256: str, content: bytes) -> None:
        self._part(sha256).unlink(missing_ok=True)
        self._append(sha256, 0, content)

    def _complete(self, sha256: str) -> None:
        """Give a part its name as a content, on disk."""
        with self._part(sha256).open("rb") as file:
            os.fsync(file.fileno())
        self._part(sha256).rename(self.path(sha256))
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _part(self, sha256: str) -> Path:
        return self.directory / f"{sha256}{_PART}"

    def _checksum(self, path: Path) -> str:
        digest = hashlib.sha256()
        # Completed by another call meanwhile: then nobody asks for the checksum of the part.
        with suppress(FileNotFoundError), path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()


def _in_groups(names: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    for name in names:
        group.append(name)
        if len(group) == _AT_ONCE:
            yield group
            group = []
    if group:
        yield group
