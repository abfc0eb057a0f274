"""Collects the outputs of an execution from its container that has ended, into one archive beside its log."""

import errno
import hashlib
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fastlane_grpc.backend import Backend, BackendDown, BackendRefuses, Handle
from fastlane_grpc.capture.container_files import ContainerFiles, OpenOutput, OutputsTooLarge
from fastlane_grpc.inputs import ArchiveInvalid, rewritten
from fastlane_grpc.model import Outputs, OutputsFault

# An engine that answers this ping is not down: only the files cannot be read.
_PING_SECONDS = 5.0


def collect(
    backend: Backend, files: ContainerFiles, handle: Handle, paths: Sequence[str], file: Path, max_bytes: int
) -> Outputs:
    """Write the archive, on disk when this returns. An archive of an earlier try is replaced.

    Raises BackendDown: nothing is kept, and a later try may collect everything.
    """
    try:
        with files.outputs(handle, paths) as open_output:
            return _collect(open_output, paths, file, max_bytes)
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


def _collect(open_output: OpenOutput, paths: Sequence[str], file: Path, max_bytes: int) -> Outputs:
    missing, entries = [], 0
    file.unlink(missing_ok=True)
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(opened, "wb") as target:
        archive = _Archive(target.write, max_bytes)
        for path in paths:
            source = open_output(path)
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
