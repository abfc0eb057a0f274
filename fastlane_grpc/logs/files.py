"""The files of logs: the records of each execution, and fastlane's own lines about it. A line that cannot be written
never delays or fails what it is about."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from fastlane_grpc.machine.file_tree import Deletion, disk_bytes
from fastlane_grpc.model import LogTotals, Source, told_line
from fastlane_grpc.record import RecordReader, RecordSealed, RecordWriter

# The limit on fastlane's own lines about one execution, whatever an engine or a registry says, and however often.
MAX_SYSTEM_BYTES = 1 << 20
# The limits on what is deleted at once of one execution. The rest is set aside.
DELETE_ENTRIES, DELETE_SECONDS = 2_000, 0.1
# The limits of one step on what was set aside, and the pauses after a directory that could not be deleted.
STEP_ENTRIES, STEP_SECONDS = 5_000, 0.1
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30.0, 3600.0

log = structlog.get_logger(__name__)


class Logs:
    """Directories by day, then execution; in each the record `log` (what the container wrote) and `system` (fastlane's
    lines).

    The path follows from the id alone: a UUIDv7 carries its time. May be called from any thread.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Called with the id of an execution that has a new record, so that its readers open it. Set by Tails.
        self.on_new_record: Callable[[str], None] = lambda execution_id: None
        self._writers: dict[str, RecordWriter] = {}
        self._lock = threading.RLock()
        self.left_over = LeftOver(directory / "deleted")

    def path(self, execution_id: str) -> Path:
        """Return the directory of this execution's records, which may not exist yet."""
        made = datetime.fromtimestamp(int(execution_id.replace("-", "")[:12], 16) / 1000, UTC)
        return self.directory / f"{made:%Y-%m-%d}" / execution_id

    def output_path(self, execution_id: str) -> Path:
        return self.path(execution_id) / "log"

    def system_path(self, execution_id: str) -> Path:
        return self.path(execution_id) / "system"

    def system(self, execution_id: str, line: str) -> None:
        """Add one of fastlane's own lines, if there is room for it.

        The text may hold the words of a caller, an engine or a registry. It becomes one printable line, so that nobody
        can forge another line."""
        try:
            with self._lock:
                new = execution_id not in self._writers
                writer = self._writer(execution_id)
                writer.write([(Source.SYSTEM, told_line(line).encode() + b"\n")], time.time_ns())
        except (OSError, RecordSealed) as error:
            self._forget(execution_id)
            log.warning("a system line was dropped", execution_id=execution_id, error=str(error))
        else:
            if new:
                self.new_record(execution_id)

    def new_record(self, execution_id: str) -> None:
        """Note that an execution has a record that was not there before."""
        self.on_new_record(execution_id)

    def seal_system(self, execution_id: str) -> Sequence[LogTotals]:
        """Seal fastlane's lines and return their totals; empty if there are none. Later calls, also after a restart,
        return the same."""
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
        except RecordSealed:
            return self._sealed_totals(execution_id)
        except OSError as error:
            log.warning("a system record cannot be opened", execution_id=execution_id, error=str(error))
            return ()

    def close_system(self, execution_id: str) -> tuple[Sequence[LogTotals], int]:
        """Close fastlane's lines about an execution that goes back to the queue; a later line opens them again. Return
        their totals, and the bytes that the log takes on the disk."""
        self._forget(execution_id)
        return self.system_totals(execution_id), self.room(execution_id)

    def system_totals(self, execution_id: str) -> Sequence[LogTotals]:
        """Return the totals of fastlane's lines so far; empty if there are none."""
        try:
            reader = RecordReader(self.system_path(execution_id))
        except OSError:
            return ()
        try:
            return reader.totals()
        finally:
            reader.close()

    def outputs_path(self, execution_id: str) -> Path:
        """Return the path of the archive of the execution's outputs, which may not exist."""
        return self.path(execution_id) / "outputs"

    def room(self, execution_id: str) -> int:
        """Return the bytes of the disk that the execution's two records and its outputs take; 0: it has no directory.

        What a container left beside the records does not count: it would cost other jobs their logs. A directory
        counts at least 1, so that retention deletes it later."""
        directory = self.path(execution_id)
        try:
            directory.lstat()
        except FileNotFoundError:
            return 0
        except OSError:
            return 1
        return max(sum(_bytes_of(directory / name) for name in ("log", "system", "outputs")), 1)

    def set_aside(self, execution_id: str) -> None:
        """Set aside what the container of a final execution has left beside the records, to be deleted in steps."""
        for box in list(self.path(execution_id).glob("box-*")):
            try:
                self.left_over.take(box, f"{execution_id}-{box.name}")
            except FileNotFoundError:
                continue
            except OSError as error:
                # A directory that the container gave to another user cannot be moved. Retention moves it with the log.
                log.warning(
                    "what a container left is still beside its log", execution_id=execution_id, error=str(error)
                )

    def delete(self, execution_id: str) -> bool:
        """Delete the log, and the directory of its day if that is empty then. A reader that has a record open reads on.

        False: a part is deleted, and the rest is set aside. OSError: the log, or a part of it, is still in its place.
        """
        self._forget(execution_id)
        directory = self.path(execution_id)
        deletion, gone = Deletion(directory), False
        try:
            gone = deletion.step(entries=DELETE_ENTRIES, seconds=DELETE_SECONDS)
        except OSError as error:
            log.warning(
                "a log cannot be deleted; the rest of it is set aside", execution_id=execution_id, error=str(error)
            )
        finally:
            deletion.close()
        if not gone:
            self.left_over.take(directory, execution_id)
        # The day may have other logs. A log that is about to be made in there fails once and is tried again.
        with suppress(OSError):
            directory.parent.rmdir()
        return gone

    def close(self) -> None:
        """Close what is open. Nothing is sealed: the next server resumes it."""
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
        """Close the writer, if there is one. The next line resumes after what is in the file."""
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
                writer = RecordWriter.create(
                    path, execution_id=execution_id, capture="system", max_bytes=MAX_SYSTEM_BYTES
                )
            self._writers[execution_id] = writer
        return writer


class LeftOver:
    """Directories below one directory that are to be deleted and that no row names. May be used from any thread.

    Each is deleted in bounded steps. One that cannot be deleted is logged once and tried again, with growing
    pauses."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._deletions: dict[str, _SetAside] = {}
        self._looked = False

    def take(self, path: Path, name: str) -> None:
        """Move a directory here. Raise OSError if it cannot be moved."""
        if not path.is_dir() or path.is_symlink():
            raise NotADirectoryError(f"{path} is not a directory")
        taken = _SetAside(self.directory / name)
        with self._lock:
            # With the lock: the directory is removed when it is empty.
            self.directory.mkdir(parents=True, exist_ok=True)
            path.rename(self.directory / name)
            self._deletions[name] = taken

    def due_seconds(self) -> float | None:
        """Return how long until there is something to do; None if there is nothing. Does not block."""
        due = [each.due for each in tuple(self._deletions.values())]
        return max(min(due) - time.monotonic(), 0.0) if due else None

    def step(self) -> bool:
        """Delete a part of what is due. Return whether there is more that is due."""
        self._look()
        with self._lock:
            due = [(name, each) for name, each in self._deletions.items() if each.due <= time.monotonic()]
        if not due:
            return False
        name, first = due[0]
        gone = first.step()
        with self._lock:
            del self._deletions[name]
            if not gone:
                # Behind the others: a container that still runs may fill it for ever.
                self._deletions[name] = first
            if not self._deletions:
                with suppress(OSError):
                    self.directory.rmdir()
        if len(due) > 1:
            first.close()
        return True

    def _look(self) -> None:
        """Find, once, what an earlier server has left."""
        if self._looked:
            return
        try:
            names = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            names = []
        with self._lock:
            for name in names:
                self._deletions.setdefault(name, _SetAside(self.directory / name))
        self._looked = True


class _SetAside:
    """One directory that was set aside."""

    def __init__(self, path: Path) -> None:
        self.due = 0.0
        self._path = path
        self._deletion = Deletion(path)
        self._pause = FIRST_PAUSE_SECONDS
        self._told = False

    def step(self) -> bool:
        """Delete a part. Return whether the directory is gone."""
        try:
            return self._deletion.step(entries=STEP_ENTRIES, seconds=STEP_SECONDS)
        except Exception as error:
            if not self._told:
                log.warning(
                    "what a container left cannot be deleted",
                    path=str(self._path),
                    bytes=_room(self._path),
                    error=str(error),
                )
            self._told = True
            self.due = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
            return False

    def close(self) -> None:
        self._deletion.close()


def _room(directory: Path) -> int:
    try:
        return disk_bytes(directory)
    except OSError:
        return 0


def _bytes_of(file: Path) -> int:
    try:
        return file.lstat().st_blocks * 512
    except OSError:
        return 0
