"""Collects the outputs of an execution from its container that has ended, into one archive beside its log."""

import errno
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

from fastlane_grpc.backend import Backend, BackendDown, BackendRefuses, Handle
from fastlane_grpc.capture.capture import Capture
from fastlane_grpc.capture.recorder import MOUNT_TARGET
from fastlane_grpc.capture.relayed_outputs import OutputsTooLarge
from fastlane_grpc.inputs import ArchiveInvalid, rewritten
from fastlane_grpc.model import Outputs, OutputsFault

# An engine that answers this ping is not down: only the files cannot be read.
_PING_SECONDS = 5.0


# Opens the archive of a path in the container; None: the container has no such path.
_Open: TypeAlias = Callable[[str], BinaryIO | None]


def collect(
    backend: Backend, capture: Capture, handle: Handle, paths: Sequence[str], file: Path, max_bytes: int
) -> Outputs:
    """Write the archive, on disk when this returns. An archive of an earlier try is replaced.

    Raises BackendDown: nothing is kept, and a later try may collect everything.
    """
    try:
        with _opening(backend, capture, handle, paths, file.parent) as opened:
            return _collect(opened, paths, file, max_bytes)
    except OutputsTooLarge:
        outputs = Outputs(
            fault=OutputsFault.TOO_LARGE, detail=f"the outputs take more than {max_bytes} bytes (max_output_bytes)"
        )
    except (BackendRefuses, ArchiveInvalid) as error:
        outputs = Outputs(fault=OutputsFault.UNAVAILABLE, detail=f"the engine does not give the outputs: {error}")
    except BackendDown as error:
        # Raised where the engine is down. One that answers would not give these files next time, either.
        backend.ping(_PING_SECONDS)
        outputs = Outputs(fault=OutputsFault.UNAVAILABLE, detail=f"the engine does not give the outputs: {error}")
    except OSError as error:
        no_room = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        outputs = Outputs(
            fault=OutputsFault.NO_ROOM if no_room else OutputsFault.UNAVAILABLE,
            detail=f"the outputs cannot be written: {error.strerror}",
        )
    file.unlink(missing_ok=True)
    return outputs


@contextmanager
def _opening(
    backend: Backend, capture: Capture, handle: Handle, paths: Sequence[str], directory: Path
) -> Iterator[_Open]:
    """Return what opens the archive of a path: the backend, or the capture for one that has no files."""
    if not backend.has_files:
        yield partial(capture.kept, paths)
        return
    with _mounted_again(backend, handle, directory):
        yield partial(backend.archive, handle)


@contextmanager
def _mounted_again(backend: Backend, handle: Handle, directory: Path) -> Iterator[None]:
    """Create anew, and empty, the directory that the recorder was given: an engine mounts all of a container's
    directories again to read its files, and finds no file if one is missing."""
    mount = directory / backend.mount_name(handle, MOUNT_TARGET)
    if mount == directory:
        yield
        return
    mount.mkdir(mode=0o700, exist_ok=True)
    try:
        yield
    finally:
        # Not empty, it is deleted with the log.
        with suppress(OSError):
            mount.rmdir()


def _collect(opened_at: _Open, paths: Sequence[str], file: Path, max_bytes: int) -> Outputs:
    missing, entries = [], 0
    file.unlink(missing_ok=True)
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(opened, "wb") as target:
        archive = _Archive(target.write, max_bytes)
        for path in paths:
            source = opened_at(path)
            if source is None:
                missing.append(path)
                continue
            with source:
                for block, is_header in rewritten(source, path):
                    archive.write(block)
                    entries += is_header
        if entries:
            archive.write(bytes(2 * tarfile.BLOCKSIZE))
        target.flush()
        os.fsync(target.fileno())
    if not entries:
        file.unlink()
        return Outputs(missing=tuple(missing))
    return Outputs(archive.size, archive.sha256, entries, tuple(missing))


class _Archive:
    """An archive that is written: its size and checksum so far."""

    def __init__(self, write: Callable[[bytes], object], max_bytes: int) -> None:
        self.size = 0
        self._write = write
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, block: bytes) -> None:
        self.size += len(block)
        if self.size > self._max_bytes:
            raise OutputsTooLarge
        self._digest.update(block)
        self._write(block)
