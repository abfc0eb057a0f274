"""Files for jobs: what goes into the container before its start, and how a directory becomes one input."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastlane_grpc.v1 import fastlane_pb2 as pb

if TYPE_CHECKING:
    import tarfile

# A part of a content that is sent in one call.
PART_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """A file in the container, from its start. Its content is here, or was stored by `upload`."""

    path: str
    """Absolute path in the container."""
    content: bytes | None = None
    """Content of a small file: with all else of the job, at most 2 MiB."""
    sha256: str = ""
    """What `upload` returned, for a content that is not here."""
    mode: int = 0
    """Permissions, as 0o755; 0: 0o644."""
    uid: int = 0
    gid: int = 0
    unpack: bool = False
    """The content is a tar archive, unpacked into the directory `path`."""

    def message(self) -> pb.Input:
        return pb.Input(
            path=self.path,
            content=self.content or b"",
            sha256=self.sha256,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            unpack=self.unpack,
        )


@dataclass(frozen=True, slots=True)
class Stdin:
    """The standard input of a command. Its content is here, or was stored by `upload`."""

    content: bytes | None = None
    """A small content: with all else of the job, at most 2 MiB."""
    sha256: str = ""
    """What `upload` returned, for a content that is not here."""

    def message(self) -> pb.Stdin:
        return pb.Stdin(content=self.content or b"", sha256=self.sha256)


def stdin_message(stdin: Stdin | bytes | None) -> pb.Stdin | None:
    """Return the message of an argument; bytes are the content."""
    if stdin is None:
        return None
    return (Stdin(stdin) if isinstance(stdin, bytes) else stdin).message()


class CannotPack(Exception):
    """A directory has an entry that no input can have; says which, and why."""


@contextmanager
def packed(directory: Path) -> Iterator[BinaryIO]:
    """Yield a tar archive of the directory, for an Input with `unpack`: the same bytes for the same files.

    The archive is a temporary file, which is deleted in the end. It has plain files, directories, and symbolic links
    that stay within the directory, with their modes and times. All belong to the owner of the input. CannotPack,
    OSError.
    """
    # Imported here: most commands need neither.
    import tarfile
    from tempfile import TemporaryFile

    with TemporaryFile(prefix="fastlane-input-") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            _add_tree(archive, directory)
        file.seek(0)
        yield file


class Parts:
    """The requests that store a content, one after the other."""

    def __init__(self, content: BinaryIO) -> None:
        digest, self._size = hashlib.sha256(), 0
        content.seek(0)
        while block := content.read(PART_BYTES):
            digest.update(block)
            self._size += len(block)
        self.sha256 = digest.hexdigest()
        self._content = content
        self._offset: int | None = None

    def next(self) -> pb.UploadInputRequest:
        """Return the next request. The first one asks how much is stored already."""
        if self._offset is None:
            return pb.UploadInputRequest(sha256=self.sha256, size_bytes=self._size)
        self._content.seek(self._offset)
        data = self._content.read(PART_BYTES)
        return pb.UploadInputRequest(sha256=self.sha256, size_bytes=self._size, offset=self._offset, data=data)

    def note(self, response: pb.UploadInputResponse) -> bool:
        """Note a response. Return whether the whole content is stored."""
        self._offset = response.received_bytes
        return response.complete


def _add_tree(archive: "tarfile.TarFile", directory: Path) -> None:
    _add(archive, directory, ".")
    for folder, folders, names in os.walk(directory, onerror=_raise):
        folders.sort()
        for name in sorted([*folders, *names]):
            path = Path(folder) / name
            _add(archive, path, str(path.relative_to(directory)))


def _add(archive: "tarfile.TarFile", path: Path, name: str) -> None:
    import tarfile

    status = path.lstat()
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    elif stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
        if not stays_within(name, entry.linkname):
            raise CannotPack(f"{path} is a symbolic link to {entry.linkname}, which may lead out of the directory")
        archive.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            # The file that was opened, as it is now: it may have been replaced.
            entry.size = os.fstat(file.fileno()).st_size
            try:
                archive.addfile(entry, file)
            except OSError as error:
                raise CannotPack(f"{path} became shorter while it was read") from error
    else:
        raise CannotPack(f"{path} is no plain file, directory or symbolic link")
    # The list of entries grows otherwise.
    archive.members = []  # type: ignore[attr-defined]


def stays_within(name: str, target: str) -> bool:
    """Return whether a symbolic link of this name, below a directory, leads to something below that directory.

    Whatever the other links of the directory are: so ".." is taken at the beginning of the target alone. Behind a name
    that is itself a link, it would lead elsewhere than it looks.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in {"", "."}]
    ups = len([*takewhile(lambda part: part == "..", parts)])
    return ups <= name.count("/") and ".." not in parts[ups:]


def _raise(error: OSError) -> None:
    raise error
