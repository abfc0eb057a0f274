"""Outputs of executions: their archive, received and unpacked. What it holds was written by a container, which may be
hostile: nothing of it is written outside of the directory that it is unpacked to."""

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastlane_grpc.client.inputs import stays_within
from fastlane_grpc.v1 import fastlane_pb2 as pb

if TYPE_CHECKING:
    import tarfile

_BLOCK_BYTES = 1 << 20
# At the end of an archive, `tarfile` reads once or twice in vain.
_MOST_EMPTY_READS = 3


class OutputsDamaged(Exception):
    """The archive that was received has another checksum than the server told of."""


class CannotUnpack(Exception):
    """The archive has an entry that cannot be written; says which one, and why."""


class Parts:
    """An archive that is received part by part, into a file."""

    def __init__(self, execution_id: str, file: BinaryIO) -> None:
        self._execution_id = execution_id
        self._file = file
        self._offset = 0
        self._digest = hashlib.sha256()

    def next(self) -> pb.ReadOutputsRequest:
        """Return the next request."""
        return pb.ReadOutputsRequest(execution_id=self._execution_id, offset=self._offset)

    def note(self, response: pb.ReadOutputsResponse) -> bool:
        """Write a part. Return whether it was the last one. OutputsDamaged."""
        self._file.write(response.data)
        self._digest.update(response.data)
        self._offset += len(response.data)
        if response.data and self._offset < response.size_bytes:
            return False
        if (self._offset, self._digest.hexdigest()) != (response.size_bytes, response.sha256):
            raise OutputsDamaged(f"{self._offset} bytes were received, which do not have the checksum of the server")
        return True


def unpack_outputs(archive: BinaryIO, directory: Path, path: str = "") -> Sequence[Path]:
    """Unpack an archive below a directory, which is created if need be. Return the paths of the files.

    With the `path` of a file or directory in the container, only that is unpacked, and `directory` is the path that it
    gets. Files get their contents, permissions and times, and replace files of the same name. They belong to the
    caller, and nothing gets a setuid or setgid bit. Links that lead out of the directory are refused. CannotUnpack,
    OSError.
    """
    import tarfile

    wanted = path.strip("/")
    files: list[Path] = []
    links: list[tuple[str, str]] = []
    try:
        with tarfile.open(fileobj=_Ending(archive), mode="r|") as entries:  # type: ignore[call-overload]
            for entry in entries:
                # The list of entries grows otherwise.
                entries.members = []
                name = _name_below(entry.name, wanted)
                if name is None:
                    continue
                if entry.isdir():
                    with _opened_directory(directory, name):
                        pass
                elif entry.isreg():
                    content = entries.extractfile(entry)
                    assert content is not None, "a plain file has contents"
                    _write(directory, name, entry, content)
                    files.append(directory / name if name else directory)
                elif entry.islnk():
                    target = _name_below(entry.linkname, wanted)
                    if target is None:
                        raise CannotUnpack(f"{entry.name!r} is a link to {entry.linkname!r}, which is not unpacked")
                    _link(directory, name, target)
                    files.append(directory / name)
                elif entry.issym():
                    if not stays_within(name, entry.linkname):
                        raise CannotUnpack(
                            f"{entry.name!r} is a symbolic link to {entry.linkname!r}, "
                            f"which may lead out of {directory}"
                        )
                    links.append((name, entry.linkname))
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise CannotUnpack(f"the archive is damaged: {error}") from error
    # Last of all, so that nothing is written through one.
    for name, target in links:
        _symlink(directory, name, target)
        files.append(directory / name)
    return files


class _Ending:
    """An archive that ends. An entry may claim any size: `tarfile` would pass over an exabyte that is not there, read
    by read, for years."""

    def __init__(self, archive: BinaryIO) -> None:
        self._archive = archive
        self._empty_reads = 0

    def read(self, size: int) -> bytes:
        block = self._archive.read(size)
        self._empty_reads += not block
        if self._empty_reads > _MOST_EMPTY_READS:
            raise EOFError("it ends before its entries do")
        return block


def _name_below(name: str, wanted: str) -> str | None:
    """Return the name below what is wanted, empty for that itself; None: it is not wanted. CannotUnpack."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise CannotUnpack(f"{name[:200]!r} leads out of the archive")
    name = posixpath.normpath(name)
    if not wanted:
        return name
    if name == wanted:
        return ""
    return name[len(wanted) + 1 :] if name.startswith(f"{wanted}/") else None


@contextmanager
def _opened_directory(directory: Path, name: str) -> Iterator[int]:
    """Open a directory below, which is created if need be. A symbolic link on the way is not followed: OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in name.split("/") if name not in {"", "."} else ():
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=opened)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened)
            os.close(opened)
            opened = below
        yield opened
    finally:
        os.close(opened)


@contextmanager
def _free_name(directory: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield the directory of a name, and its last part, which nothing has."""
    # The file itself was wanted: it gets the path of the directory.
    above, last = (directory.parent, directory.name) if not name else (directory, posixpath.basename(name))
    with _opened_directory(above, posixpath.dirname(name)) as opened:
        with suppress(FileNotFoundError):
            os.unlink(last, dir_fd=opened)
        yield opened, last


def _write(directory: Path, name: str, entry: "tarfile.TarInfo", content: BinaryIO) -> None:
    with _free_name(directory, name) as (above, last):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(last, flags, stat.S_IMODE(entry.mode) & 0o777, dir_fd=above), "wb") as file:
            while block := content.read(_BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.utime(file.fileno(), (entry.mtime, entry.mtime))


def _link(directory: Path, name: str, target: str) -> None:
    with (
        _opened_directory(directory, posixpath.dirname(target)) as source,
        _free_name(directory, name) as (above, last),
    ):
        os.link(posixpath.basename(target), last, src_dir_fd=source, dst_dir_fd=above, follow_symlinks=False)


def _symlink(directory: Path, name: str, target: str) -> None:
    with _free_name(directory, name) as (above, last):
        os.symlink(target, last, dir_fd=above)
