"""The files of a backup on their way: into a directory or a tar, and out of one. Holes stay holes in a directory."""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from fastlane_grpc.backup.manifest import BackupError, belongs

# What is read at once. A piece of zeros becomes a hole.
_PIECE = 64 << 10
_ZEROS = bytes(_PIECE)


class Target(Protocol):
    """The place that a backup is written to."""

    def add(self, name: str, source: BinaryIO, size: int) -> None:
        """Add a file of `size` bytes. A source that is shorter by then is filled with zeros, which read as a gap."""


class DirectoryTarget:
    """A directory, which is made, readable by this user alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, source: BinaryIO, size: int) -> None:
        path = self._directory / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "xb", opener=lambda file, flags: os.open(file, flags, 0o600)) as target:
            left = size
            while left and (piece := source.read(min(_PIECE, left))):
                left -= len(piece)
                if piece == _ZEROS[: len(piece)]:
                    target.seek(len(piece), os.SEEK_CUR)
                else:
                    target.write(piece)
            target.truncate(size)


class TarTarget:
    """A tar, written to a stream from its beginning to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._tar = tarfile.TarFile.open(fileobj=stream, mode="w|")

    def add(self, name: str, source: BinaryIO, size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        self._tar.addfile(member, _Filled(source, size))

    def close(self) -> None:
        self._tar.close()


class _Filled(io.RawIOBase):
    """The first `size` bytes of a source, with zeros where it ends before."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source, self._left = source, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        piece = self._source.read(wanted)
        self._left -= wanted
        return piece + bytes(wanted - len(piece))


@contextmanager
def opened_target(target: str, output: BinaryIO) -> Iterator[Target]:
    """Open the target: a new tar where its name ends with .tar, `-` for a tar on `output`, else a new directory.

    A tar that could not be finished is removed; a directory stays, without a manifest. BackupError.
    """
    path = Path(target)
    try:
        if target == "-":
            tar = TarTarget(output)
            yield tar
            tar.close()
            output.flush()
        elif path.suffix == ".tar":
            with open(path, "xb", opener=lambda file, flags: os.open(file, flags, 0o600)) as stream:
                try:
                    tar = TarTarget(stream)
                    yield tar
                    tar.close()
                    stream.flush()
                    os.fsync(stream.fileno())
                except BaseException:
                    path.unlink()
                    raise
        else:
            path.mkdir(mode=0o700)
            yield DirectoryTarget(path)
            os.sync()
    except FileExistsError as error:
        raise BackupError(f"{error.filename} exists already: name a new directory or tar") from error
    except OSError as error:
        raise BackupError(f"the backup failed at {error.filename or target}: {error.strerror}") from error


def files_of(source: str, stream: BinaryIO) -> Iterator[tuple[str, BinaryIO, int]]:
    """Yield name, contents and size of each file of a backup: of a directory, of a tar, or, for `-`, of a tar that
    comes on `stream`.

    BackupError: a name that no backup has, or something else than a plain file. TarError: the tar is damaged or cut
    off, which a read of the contents may find, too. OSError.
    """
    if source == "-":
        yield from _files_of_tar(stream)
    elif Path(source).is_dir():
        yield from _files_of_directory(Path(source))
    else:
        with Path(source).open("rb") as tar:
            yield from _files_of_tar(tar)


def _files_of_directory(directory: Path) -> Iterator[tuple[str, BinaryIO, int]]:
    for folder, _, names in os.walk(directory, onerror=_raise):
        for name in sorted(names):
            path = Path(folder) / name
            inside = str(path.relative_to(directory))
            _check(inside, path.is_file() and not path.is_symlink())
            with path.open("rb") as file:
                yield inside, file, os.fstat(file.fileno()).st_size


def _raise(error: OSError) -> None:
    raise error


def _files_of_tar(stream: BinaryIO) -> Iterator[tuple[str, BinaryIO, int]]:
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isdir():
                continue
            _check(name, member.isreg())
            contents = tar.extractfile(member)
            assert contents is not None, "a plain file has contents"
            yield name, contents, member.size  # type: ignore[misc]


def _check(name: str, is_file: bool) -> None:
    if not belongs(name):
        raise BackupError(f"{name[:200]!r} is no file of a backup: this is not a backup that `fastlane backup` made")
    if not is_file:
        raise BackupError(f"{name} is not a plain file: this is not a backup that `fastlane backup` made")
