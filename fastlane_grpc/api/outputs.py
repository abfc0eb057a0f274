"""Outputs of executions: parts of their archives, and the lists of what is in them."""

import asyncio
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from fastlane_grpc.errors import OutputsNotFound, StoreFailed
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import OutputEntry, OutputKind
from fastlane_grpc.record import open_record
from fastlane_grpc.store import ListPage

MAX_PART_BYTES = 1 << 20


class OutputReader:
    """Reads archives for the calls. Lives on the loop; the disk is read by a thread of its own."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._thread = ThreadPoolExecutor(1, "outputs")

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def part(self, execution_id: str, offset: int, size: int) -> bytes:
        """Return a part of the archive; empty at its end. OutputsNotFound, StoreFailed."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._part, execution_id, offset, size)

    async def entries(self, execution_id: str, offset: int, count: int) -> ListPage[OutputEntry]:
        """Return at most so many entries, from the one at `offset` of the archive on. OutputsNotFound, StoreFailed."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._entries, execution_id, offset, count
        )

    def _entries(self, execution_id: str, offset: int, count: int) -> ListPage[OutputEntry]:
        entries: list[OutputEntry] = []
        offsets: list[int] = []
        try:
            with os.fdopen(open_record(self._logs.outputs_path(execution_id), os.O_RDONLY), "rb") as file:
                file.seek(offset)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for entry in archive:
                        offsets.append(entry.offset)
                        if len(entries) == count:
                            break
                        entries.append(_entry(entry))
        except FileNotFoundError:
            raise OutputsNotFound(execution_id, "they were pruned") from None
        except (OSError, tarfile.TarError, ValueError, OverflowError) as error:
            raise StoreFailed(f"the outputs cannot be read: {error}") from error
        # Behind each entry the next page can begin with the one after it.
        behind = [(each,) for each in offsets[1:]]
        return ListPage(entries, behind, behind[-1] if len(offsets) > len(entries) else None)

    def _part(self, execution_id: str, offset: int, size: int) -> bytes:
        try:
            file = open_record(self._logs.outputs_path(execution_id), os.O_RDONLY)
            try:
                return os.pread(file, size, offset)
            finally:
                os.close(file)
        except FileNotFoundError:
            raise OutputsNotFound(execution_id, "they were pruned") from None
        except OSError as error:
            raise StoreFailed(f"the outputs cannot be read: {error.strerror}") from error


def _entry(entry: tarfile.TarInfo) -> OutputEntry:
    kind = _KINDS.get(entry.type, OutputKind.FILE)
    target = _text(entry.linkname)
    return OutputEntry(
        path=f"/{_text(entry.name)}",
        kind=kind,
        size_bytes=entry.size,
        mode=entry.mode & 0o7777,
        uid=entry.uid,
        gid=entry.gid,
        modify_time=datetime.fromtimestamp(entry.mtime, UTC),
        target=f"/{target}" if kind is OutputKind.HARD_LINK else target,
        content_offset=entry.offset_data if kind is OutputKind.FILE else 0,
    )


_KINDS = {
    tarfile.DIRTYPE: OutputKind.DIRECTORY,
    tarfile.SYMTYPE: OutputKind.SYMBOLIC_LINK,
    tarfile.LNKTYPE: OutputKind.HARD_LINK,
}


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
