"""The tar archive of the inputs of a job, which an engine unpacks at the root of its container; and the archives of an
engine, which become the outputs of an execution.

An archive of a caller is read entry by entry and written anew below its path. Nothing of it is unpacked here. What it
names stays below that path: an entry that would not is refused.
"""

import math
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from fastlane_grpc.model import Input

# Entries of one archive.
MAX_ENTRIES = 500_000
# Headers that hold a long name, or the like, are read into memory.
_MAX_HEADER_BYTES = 1 << 16
_HEADERS = frozenset((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK))
_ENTRIES = frozenset((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE))
_DEVICES = frozenset((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE))
# Zeros at the end of an archive.
_END_BYTES = 2 * tarfile.BLOCKSIZE
# At the end of an archive, `tarfile` reads once or twice in vain.
_MOST_EMPTY_READS = 3
_DEFAULT_MODE = 0o644
_DIRECTORY_MODE = 0o755
_BLOCK_BYTES = 1 << 18


class ArchiveInvalid(Exception):
    """The content is no tar archive, or has an entry that is not taken; says which one, and why."""


def check_archive(content: BinaryIO) -> None:
    """Read all entries of an archive. ArchiveInvalid."""
    for _ in _entries(content, "/"):
        pass


def archive_of(inputs: Sequence[Input], opened: Callable[[str], BinaryIO]) -> Iterator[bytes]:
    """Yield the archive of all inputs in blocks. `opened` opens a content by its checksum.

    Raises ArchiveInvalid, also for a content that cannot be read.
    """
    for each in inputs:
        try:
            with opened(each.sha256) as content:
                for entry, contents in _entries_of(each, content):
                    entry.uid, entry.gid = each.uid, each.gid
                    yield entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
                    if contents is not None:
                        yield from _padded(contents, entry.size)
        except OSError as error:
            # The sender of the archive would take an OSError for a failure of its connection.
            raise ArchiveInvalid(f"the content of {each.path} cannot be read: {error.strerror}") from error
    yield bytes(_END_BYTES)


def _padded(contents: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left > 0:
        block = contents.read(min(left, _BLOCK_BYTES))
        if not block:
            raise ArchiveInvalid(f"{left} bytes are missing at its end")
        left -= len(block)
        yield block
    yield bytes(-size % tarfile.BLOCKSIZE)


def rewritten(content: BinaryIO, path: str) -> Iterator[tuple[bytes, bool]]:
    """Yield the archive of a path in a container as blocks, and whether a block begins an entry. ArchiveInvalid.

    An engine's archive begins with the last name of the path. Here names begin with the whole path. Devices and pipes
    are left out.
    """
    below, prefix = path.strip("/"), posixpath.basename(path)
    whole = _Whole(content)
    try:
        with tarfile.open(fileobj=whole, mode="r|", tarinfo=_BoundedTarInfo) as archive:  # type: ignore[call-overload]
            for entry in archive:
                # The list of entries grows otherwise.
                archive.members = []
                if entry.type not in _ENTRIES:
                    continue
                new = tarfile.TarInfo(_moved(entry.name, prefix, below))
                new.type, new.mode, new.mtime, new.size = entry.type, entry.mode & 0o7777, entry.mtime, 0
                new.uid, new.gid = entry.uid, entry.gid
                new.linkname = _moved(entry.linkname, prefix, below) if entry.islnk() else entry.linkname
                contents = archive.extractfile(entry) if entry.isreg() else None
                if contents is not None:
                    new.size = entry.size
                yield new.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"), True
                if contents is not None:
                    for block in _padded(contents, entry.size):
                        yield block, False
        whole.check_end()
    except (tarfile.TarError, RecursionError, ValueError, OverflowError, EOFError) as error:
        raise ArchiveInvalid(f"its archive of {path} is damaged: {error}") from error


class _Whole:
    """An archive that is read, and its last bytes: an archive that is cut between two entries looks complete else.

    An entry may claim any size. `tarfile` would pass over an exabyte that is not there, read by read, for years."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self._last = b""
        self._empty_reads = 0

    def read(self, size: int) -> bytes:
        block = self._content.read(size)
        self._last = (self._last + block)[-_END_BYTES:]
        self._empty_reads += not block
        if self._empty_reads > _MOST_EMPTY_READS:
            raise tarfile.ReadError("it ends before its entries do")
        return block

    def check_end(self) -> None:
        """Read to the end. ArchiveInvalid: it is not the end of an archive."""
        while self.read(_BLOCK_BYTES):
            pass
        if self._last != bytes(_END_BYTES):
            raise ArchiveInvalid("it is cut off")


def _moved(name: str, prefix: str, below: str) -> str:
    """Return a name of an engine's archive as a path in the container, without the slash at its beginning."""
    name = posixpath.normpath(name.strip("/"))
    if name == prefix:
        return below
    if not name.startswith(f"{prefix}/") or ".." in name.split("/"):
        raise ArchiveInvalid(f"it has the entry {name[:200]!r}, which is not in {prefix!r}")
    return below + name[len(prefix) :]


def _entries_of(each: Input, content: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    if each.unpack:
        yield from _entries(content, each.path)
        return
    file = tarfile.TarInfo(each.path.lstrip("/"))
    file.size, file.mode = each.size_bytes, each.mode or _DEFAULT_MODE
    yield file, content


def _entries(content: BinaryIO, path: str) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """Yield the entries of an archive, renamed to be below a path, first the directory of the path. ArchiveInvalid."""
    below = path.strip("/")
    top = tarfile.TarInfo(below)
    top.type, top.mode = tarfile.DIRTYPE, _DIRECTORY_MODE
    yield top, None
    links: set[str] = set()
    count = 0
    try:
        with tarfile.open(fileobj=_Whole(content), mode="r|", tarinfo=_BoundedTarInfo) as archive:  # type: ignore[call-overload]
            for entry in archive:
                count += 1
                if count > MAX_ENTRIES:
                    raise ArchiveInvalid(f"it has more than {MAX_ENTRIES} entries")
                renamed = _renamed(entry, below, links)
                yield renamed, archive.extractfile(entry) if entry.isreg() else None
                # The list of entries grows otherwise.
                archive.members = []
    except (tarfile.TarError, RecursionError, ValueError, OverflowError, EOFError) as error:
        raise ArchiveInvalid(f"it is not a tar archive, or is damaged: {error}") from error


def _renamed(entry: tarfile.TarInfo, below: str, links: set[str]) -> tarfile.TarInfo:
    if entry.type not in _ENTRIES:
        raise ArchiveInvalid(f"{entry.name[:200]!r} is no plain file, directory or link")
    if not math.isfinite(entry.mtime):
        # It could not be written into the archive for the engine.
        raise ArchiveInvalid(f"the time of {entry.name[:200]!r} is not a number")
    name = _checked(entry.name, entry.name, links)
    new = tarfile.TarInfo(posixpath.normpath(posixpath.join(below, name)))
    new.type, new.mode, new.mtime = entry.type, entry.mode & 0o7777, entry.mtime
    if entry.isreg():
        new.size = entry.size
    elif entry.issym():
        if not entry.linkname or "\0" in entry.linkname:
            raise ArchiveInvalid(f"the symbolic link {entry.name[:200]!r} has no target")
        links.add(name)
        new.linkname = entry.linkname
    elif entry.islnk():
        new.linkname = posixpath.join(below, _checked(entry.linkname, entry.name, links))
    elif name in links:
        raise ArchiveInvalid(f"{entry.name[:200]!r} is there twice, once as a symbolic link")
    return new


def _checked(name: str, named: str, links: set[str]) -> str:
    """Return the name in its normal form. ArchiveInvalid."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ArchiveInvalid(f"the entry {named[:200]!r} leads out of the archive")
    normal = posixpath.normpath(name)
    above = posixpath.dirname(normal)
    while links and above:
        if above in links:
            raise ArchiveInvalid(f"the entry {named[:200]!r} is below a symbolic link")
        above = posixpath.dirname(above)
    return normal


class _BoundedTarInfo(tarfile.TarInfo):
    """A header that is read only if it is of a known type and takes little memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS:
            if self.size > _MAX_HEADER_BYTES:
                raise ArchiveInvalid(f"a header takes {self.size} bytes; at most {_MAX_HEADER_BYTES} are allowed")
        elif self.type not in _ENTRIES and self.type not in _DEVICES:
            raise ArchiveInvalid(f"{self.name[:200]!r} is of an unknown type: sparse files are refused, too")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]
