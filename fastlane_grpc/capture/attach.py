"""Capture by attach: reads the engine's attached stream into the record, with a gap wherever output may be lost.

The record is honest, not exact. Some two seconds after the container's end the engine drops what is still in its pipes,
without an error. The engine also drops all output of times without an attached reader.
"""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from fastlane_grpc.backend import CannotRun, Image
from fastlane_grpc.capture.capture import ContainerEnd, ReadSecrets, Wait, not_kept
from fastlane_grpc.capture.container_files import ContainerFiles
from fastlane_grpc.capture.frames import Frames, Pieces
from fastlane_grpc.capture.handoff import CommandStatus, Delivery
from fastlane_grpc.capture.record_retries import retry_until_written
from fastlane_grpc.capture.server_record import ServerRecord
from fastlane_grpc.machine.shortage import outlast
from fastlane_grpc.model import Cause, Reason, Source
from fastlane_grpc.record import RecordWriter, Trailer
from fastlane_grpc.supervisor import thread

# A stream that ended sooner than this after the container was not cut short by the engine, which waits 2 s for that.
SURE_SECONDS = 1.9
# The longest wait for the end of the stream after the engine reported the container's end.
DRAIN_SECONDS = 5
RETRY_SECONDS = 0.5
# The engine sends a flood in pieces of some 5 KB. A pause of this length between two reads lets the pieces gather,
# which saves nine tenths of the reads and of the processor time. Output after a silence is read at once.
GATHER_SECONDS = 0.0004

_UNSURE = "some output may be missing: it is not certain that the engine handed over all of it"

log = structlog.get_logger(__name__)


class OutputStream(Protocol):
    """The attached stream of a container, in the frames of Docker (`capture/frames.py`)."""

    def read_into(self, buffer: memoryview) -> int:
        """Read at least one byte into the buffer, and return the number; 0 at the end. Raises OSError."""

    def set_timeout(self, seconds: float | None) -> None:
        """Set how long a read waits from now on before it raises TimeoutError; None: without a limit."""

    def cut(self) -> None:
        """Close the stream. A thread that reads gets the end of the stream, or an OSError."""


class OutputSource(Protocol):
    """A backend that hands over the output of its containers."""

    @property
    def local(self) -> bool:
        """Whether the backend shares the clock of this machine."""

    def attach(self, container_id: str) -> OutputStream:
        """Attach to a container, and return its output from now on. Raises BackendDown and BackendRefuses."""


class AttachCapture:
    """Implements Capture. `log_line` is called with the engine's own messages about its stream."""

    name = "attach"
    kill_signal = "SIGKILL"
    is_running = False
    delivered = True
    start_granted = True
    unbegun = None

    def __init__(
        self,
        source: OutputSource,
        files: ContainerFiles,
        path: Path,
        execution_id: str,
        *,
        max_log_bytes: int,
        log_line: Callable[[str], None],
    ) -> None:
        self.files = files
        self._source = source
        self._execution_id = execution_id
        self._log_line = log_line
        self._record = ServerRecord(path, execution_id, capture=self.name, max_log_bytes=max_log_bytes)
        self._follower: _Follower | None = None
        self._whole = True  # no gap of unknown size so far
        self._gap_at: int | None = None  # bytes in the record when the last gap of unknown size was written

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        return body

    def use_secrets(self, read: ReadSecrets) -> None:
        raise CannotRun(
            Reason.SECRET_UNAVAILABLE,
            "the host captures output by attach, which cannot mask the secrets of the job: they need the recorder",
        )

    def use_stdin(self, content: Path) -> None:
        raise CannotRun(
            Reason.INPUT_UNAVAILABLE,
            "the host captures output by attach, which hands no standard input to the job: it needs the recorder",
        )

    def discard_secrets(self) -> None:
        """Do nothing, as there are none."""

    @property
    def following(self) -> bool:
        return self._follower is not None

    @property
    def first_byte_time(self) -> datetime | None:
        return self._record.first_byte_time

    def open(self, container_id: str) -> None:
        self._record.open()
        self._follow(container_id)

    def resume(self, container_id: str | None) -> None:
        self._mark_gap(retry_until_written(self._record.open))
        if container_id is not None:
            self._log_line("what was printed during the break may be missing")
            self._follow(container_id)

    def release_start_resources(self) -> bool:
        return True

    def revoke(self) -> CommandStatus | None:
        return None

    def signal(self, number: int) -> Delivery:
        return Delivery.NOT_SENT

    def abandon_unwritten(self) -> None:
        if self._follower:
            self._follower.abandoning.set()

    def drain(self, end: ContainerEnd | None, wait: Wait) -> str:
        """Wait for the end of the stream, whatever happens: the engine keeps nothing of it for a later `resume`."""
        follower, self._follower = self._follower, None
        record = self._record.writer
        if follower is None or record is None:
            return "" if self._whole else _UNSURE
        sure = follower.drain(end)
        for source, lost in follower.lost.items():
            retry_until_written(partial(record.gap, source, lost, Cause.STORE, time.time_ns()))
        # Never certain for an engine on another machine, whose clock differs.
        if end is not None and not (sure and self._source.local):
            self._mark_gap(record)
        if follower.lost:
            return "some output could not be stored: " + ", ".join(
                f"{lost} bytes of {name.name.lower()}" for name, lost in follower.lost.items()
            )
        return not_kept(record.totals()) if self._whole else _UNSURE

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        return self._record.seal(exit_code, facts)

    def trailer(self) -> Trailer | None:
        return self._record.trailer()

    def detach(self) -> None:
        if self._follower:
            self._follower.stop()
        self._record.close()
        self._follower = None

    def _follow(self, container_id: str) -> None:
        assert self._record.writer is not None
        request = self._source.attach(container_id)
        self._follower = _Follower(request, self._record.writer, self._log_line, self._execution_id)

    def _mark_gap(self, record: RecordWriter) -> None:
        """Write a gap of unknown size for both sources: once for the same position in the record."""
        self._whole = False
        position = sum(total.bytes for total in record.totals())
        if position == self._gap_at:
            return
        for source in (Source.STDOUT, Source.STDERR):
            retry_until_written(partial(record.gap, source, None, Cause.ENGINE, time.time_ns()))
        self._gap_at = position


class _Follower:
    """One attached stream, and the thread that writes the stream into the record."""

    def __init__(
        self, request: OutputStream, record: RecordWriter, log_line: Callable[[str], None], execution_id: str
    ) -> None:
        self.abandoning = threading.Event()
        # Bytes that were read and could not be stored, by source.
        self.lost: dict[Source, int] = {}
        self._request = request
        self._record = record
        self._log_line = log_line
        self._execution_id = execution_id
        self._failing = False
        self._stopped = False
        # The time of the stream's end, if the stream ended between two frames and without an error; else None.
        self._end_time: datetime | None = None
        request.set_timeout(None)
        # If the thread fails, the stream is cut, and the rest is a gap: without a reader the container would block on a
        # full pipe.
        self._thread = thread(f"attach-{execution_id}", self._run, on_failure=lambda error: request.cut())
        outlast(self._thread.start)

    def drain(self, end: ContainerEnd | None) -> bool:
        """Wait for the end of the stream; True if the stream was certainly whole."""
        if end is not None:
            self._thread.join(DRAIN_SECONDS)
            # On a full disk the end is not late, but queued behind output that waits to be stored.
            while self._failing and self._thread.is_alive():
                self._thread.join(DRAIN_SECONDS)
        self.stop()
        if end is None or end.end_time is None or self._end_time is None:
            return False
        return end.witnessed and (self._end_time - end.end_time).total_seconds() < SURE_SECONDS

    def stop(self) -> None:
        self._stopped = True
        self.abandoning.set()
        self._request.cut()
        self._thread.join()

    def _run(self) -> None:
        frames = Frames()
        while True:
            asked = time.monotonic()
            try:
                size = self._request.read_into(frames.room)
            except OSError:
                return
            flooded = time.monotonic() - asked < GATHER_SECONDS
            if size == 0:
                if frames.between and not frames.broken and not self._stopped:
                    self._end_time = datetime.now(UTC)
                return
            pieces = frames.take(size)
            if pieces:
                self._write(pieces)
            for error in frames.errors():
                self._log_line(f"the engine says of the output: {error}")
            frames.recycle()
            if flooded:
                time.sleep(GATHER_SECONDS)

    def _write(self, pieces: Pieces) -> None:
        while True:
            try:
                if self.lost:
                    self._write_pending_gaps()
                self._record.write(pieces, time.time_ns())
            except OSError as error:
                if not self._failing:
                    log.warning("output cannot be stored", execution_id=self._execution_id, error=str(error))
                self._failing = True
                if self.abandoning.wait(RETRY_SECONDS):
                    self._lose(pieces)
                    return
            else:
                self._failing = False
                return

    def _write_pending_gaps(self) -> None:
        for source in list(self.lost):
            self._record.gap(source, self.lost[source], Cause.STORE, time.time_ns())
            del self.lost[source]

    def _lose(self, pieces: Pieces) -> None:
        stored = self._record.taken
        for source, data in pieces:
            lost = max(len(data) - stored, 0)
            stored = max(stored - len(data), 0)
            if lost:
                self.lost[source] = self.lost.get(source, 0) + lost
