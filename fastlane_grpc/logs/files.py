"""Where each execution's records are, and fastlane's own lines about it. A line of ours never holds up or fails what it tells of."""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from fastlane_grpc.model import LogTotals, Source, told_line
from fastlane_grpc.record import RecordReader, RecordWriter, Sealed

# Of fastlane's own lines about one execution: whatever an engine or a registry has to say, and however often.
MAX_SYSTEM_BYTES = 1 << 20

log = structlog.get_logger(__name__)


class Logs:
    """Directories by day, then execution; in each the record `log` (what the container wrote) and `system` (fastlane's lines).

    The path follows from the id alone: a UUIDv7 carries its time. May be called from any thread.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Told the id of an execution whose system record is new, so that those who wait for it open it. Set by whoever reads.
        self.on_new_record: Callable[[str], None] = lambda execution_id: None
        self._writers: dict[str, RecordWriter] = {}
        self._lock = threading.RLock()

    def path(self, execution_id: str) -> Path:
        """The directory of this execution's records; it may not be there yet."""
        made = datetime.fromtimestamp(int(execution_id.replace("-", "")[:12], 16) / 1000, UTC)
        return self.directory / f"{made:%Y-%m-%d}" / execution_id

    def output_path(self, execution_id: str) -> Path:
        return self.path(execution_id) / "log"

    def system_path(self, execution_id: str) -> Path:
        return self.path(execution_id) / "system"

    def system(self, execution_id: str, line: str) -> None:
        """Adds one of fastlane's own lines, if there is room for it.

        It may hold the words of a caller, an engine or a registry: it is written as one printable line, so that nobody forges another.
        """
        try:
            with self._lock:
                new = execution_id not in self._writers
                writer = self._writer(execution_id)
                writer.write([(Source.SYSTEM, told_line(line).encode() + b"\n")], time.time_ns())
        except (OSError, Sealed) as error:
            self._forget(execution_id)
            log.warning("a system line was dropped", execution_id=execution_id, error=str(error))
        else:
            if new:
                self.on_new_record(execution_id)

    def system_if_first(self, execution_id: str, line: str) -> None:
        """Adds the line if there is none yet, and keeps nothing open: those that wait may be many."""
        with self._lock:
            if execution_id not in self._writers and not self.system_path(execution_id).exists():
                self.system(execution_id, line)
                self._forget(execution_id)

    def seal_system(self, execution_id: str) -> Sequence[LogTotals]:
        """Ends fastlane's lines, and says how much they are; empty if there are none. Later calls, after a restart too, say the same."""
        try:
            with self._lock:
                if execution_id not in self._writers and not self.system_path(execution_id).exists():
                    return ()
                writer = self._writer(execution_id)
                try:
                    writer.seal(None, {}, time.time_ns())
                except OSError as error:
                    # No room for a trailer: the lines are there all the same, and so many.
                    log.warning("a system record was not sealed", execution_id=execution_id, error=str(error))
                finally:
                    self._writers.pop(execution_id).close()
                return writer.totals()
        except Sealed:
            return self._sealed_totals(execution_id)
        except OSError as error:
            log.warning("a system record cannot be opened", execution_id=execution_id, error=str(error))
            return ()

    def waiting_lines(self, execution_id: str) -> tuple[Sequence[LogTotals], int]:
        """How much fastlane's lines about one that waits are by now, and the room that they take. Nothing of it stays open: one that is
        stopped while it waits has nobody who would close it."""
        self._forget(execution_id)
        return self.system_totals(execution_id), self.room(execution_id)

    def system_totals(self, execution_id: str) -> Sequence[LogTotals]:
        """How much fastlane's lines are by now; empty if there are none."""
        try:
            reader = RecordReader(self.system_path(execution_id))
        except OSError:
            return ()
        try:
            return reader.totals()
        finally:
            reader.close()

    def room(self, execution_id: str) -> int:
        """How much of the disk its records take, in bytes; 0: there are none. Some file systems count none for small ones: that is 1."""
        directory = self.path(execution_id)
        try:
            files = [directory.lstat(), *(path.lstat() for path in directory.iterdir())]
        except OSError:
            return 0
        return max(sum(file.st_blocks * 512 for file in files), 1)

    def delete(self, execution_id: str) -> None:
        """Takes away all that there is of it, and the directory of its day with the last one. Who has a record open reads on.

        OSError: it is there still, or a part of it.
        """
        self._forget(execution_id)
        directory = self.path(execution_id)
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
        # Others may be in it. One that is about to be made in there does not find it, and is tried again.
        with suppress(OSError):
            directory.parent.rmdir()

    def close(self) -> None:
        """Closes what is open; nothing is sealed, a next server goes on with it."""
        with self._lock:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()

    def _sealed_totals(self, execution_id: str) -> Sequence[LogTotals]:
        reader = RecordReader(self.system_path(execution_id))
        try:
            trailer = reader.trailer()
        finally:
            reader.close()
        return trailer.totals if trailer else ()

    def _forget(self, execution_id: str) -> None:
        """After a write that failed half-way: the next line goes on from what is in the file."""
        with self._lock:
            if writer := self._writers.pop(execution_id, None):
                writer.close()

    def _writer(self, execution_id: str) -> RecordWriter:
        writer = self._writers.get(execution_id)
        if writer is None:
            path = self.system_path(execution_id)
            if path.exists():
                writer = RecordWriter.resume(path, max_bytes=MAX_SYSTEM_BYTES)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = RecordWriter.create(path, execution_id=execution_id, capture="system", max_bytes=MAX_SYSTEM_BYTES)
            self._writers[execution_id] = writer
        return writer
