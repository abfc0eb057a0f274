"""The access log, one line of JSON for each call, and the slow-call log.

A thread writes the access log: a disk that hangs holds up no call. Lines that it cannot write are dropped,
and counted."""

import json
import os
import queue
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import structlog

from fastlane_grpc.call_record import CallRecord
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.supervisor import ALONE, Supervisor
from fastlane_grpc.text.redaction import mask_secrets

# What is written for the server's own log, stderr.
STDERR = "-"
# Lines that wait for the thread. With more, the disk does not keep up, and further lines are dropped.
_MOST_WAITING = 10_000
_MOST_TOGETHER = 1000
# Between two lines of the server's log about lines that were dropped.
_TELL_SECONDS = 60.0
_CLOSE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class CallLog:
    """Both logs of one server. Calls end on the loop; `close` ends the thread."""

    def __init__(
        self,
        destination: str | None,
        *,
        slow_seconds: float | None = None,
        supervisor: Supervisor = ALONE,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        """`destination`: the path of the access log, `-` for stderr; None: none. `slow_seconds`: from when on a call
        is slow; None: never. CannotServe."""
        self._slow_seconds = slow_seconds
        self._file: _LogFile | _Stderr | None = None
        if destination:
            self._file = _Stderr() if destination == STDERR else _LogFile(Path(destination))
        # None ends the thread.
        self._lines: queue.Queue[str | None] = queue.Queue(most_waiting)
        # Lines that did not fit into the queue; counted on the loop.
        self._overflown = 0
        self._thread = supervisor.thread("access-log", self._run, restart=True) if self._file else None
        if self._thread:
            self._thread.start()

    def end(self, record: CallRecord, code: str) -> None:
        """Log a call that has ended with this code: the name of gRPC's, or HTTP's number."""
        seconds = perf_counter() - record.start_seconds
        if self._slow_seconds is not None and seconds >= self._slow_seconds and not record.is_stream:
            waits = {f"{what}_seconds": round(waited, 6) for what, waited in record.waits.items()}
            rest = max(seconds - sum(record.waits.values()), 0.0)
            log.warning("slow call", **_fields(record, code, seconds), **waits, other_seconds=round(rest, 6))
        if self._file is None:
            return
        line = json.dumps({"time": _now(), **_fields(record, code, seconds)}, ensure_ascii=False)
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._overflown += 1

    def close(self) -> None:
        """Write the lines that wait, for a limited time."""
        if self._thread is None:
            return
        with suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSE_SECONDS)
        self._thread.join(_CLOSE_SECONDS)

    # ---- on the thread

    def _run(self) -> None:
        assert self._file is not None, "the thread runs for a file"
        told_time, told_overflown, unwritten = float("-inf"), 0, 0
        while True:
            lines, is_last = self._gather()
            try:
                self._file.write(lines)
            except OSError as error:
                unwritten += len(lines)
                fault = error.strerror or str(error)
            else:
                fault = "lines come faster than they can be written"
            overflown = self._overflown
            dropped = unwritten + overflown - told_overflown
            if dropped and time.monotonic() - told_time > _TELL_SECONDS:
                told_time, told_overflown, unwritten = time.monotonic(), overflown, 0
                log.warning("lines of the access log were dropped", lines=dropped, fault=fault)
            if is_last:
                self._file.close()
                return

    def _gather(self) -> tuple[Sequence[str], bool]:
        """Return lines that wait, one at least, and whether they are the last."""
        lines: list[str] = []
        with suppress(queue.Empty):
            while len(lines) < _MOST_TOGETHER:
                line = self._lines.get(block=not lines)
                if line is None:
                    return lines, True
                lines.append(line)
        return lines, False


class _Stderr:
    """The server's own log. structlog's lock for it keeps lines of both logs whole."""

    def __init__(self) -> None:
        self._logger = structlog.WriteLogger(sys.stderr)

    def write(self, lines: Sequence[str]) -> None:
        """Write the lines. OSError."""
        if lines:
            self._logger.msg("\n".join(lines))

    def close(self) -> None:
        """Do nothing."""


class _LogFile:
    """A file that lines are appended to. A file that was moved away is begun anew, as programs that rotate logs
    expect."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        # What a line lacks that was written in part, on a full disk.
        self._lacks_newline = False
        try:
            self._open()
        except OSError as error:
            raise CannotServe(
                f"cannot write the access log {path}: {error.strerror}; set access_log to another file, or off"
            ) from error

    def write(self, lines: Sequence[str]) -> None:
        """Append the lines. OSError."""
        if not lines:
            return
        self._open()
        data = ("\n" if self._lacks_newline else "").encode() + "".join(f"{line}\n" for line in lines).encode(
            errors="replace"
        )
        while data:
            written = os.write(self._file, data)
            self._lacks_newline = data[written - 1 : written] != b"\n"
            data = data[written:]

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        if self._file >= 0 and self._is_there():
            return
        self.close()
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        self._lacks_newline = False

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False


def _fields(record: CallRecord, code: str, seconds: float) -> dict[str, object]:
    """Return what both logs tell of a call. What is not known is left out."""
    fields: dict[str, object] = {"door": record.door, "method": record.method, "path": record.path}
    fields |= {"peer": record.peer, "caller": mask_secrets(record.caller)}
    fields |= {name: mask_secrets(value) for name, value in record.ids.items()}
    fields |= {"trace": mask_secrets(record.trace)}
    fields = {name: value for name, value in fields.items() if value}
    return {**fields, "code": code, "seconds": round(seconds, 6), "bytes_sent": record.bytes_sent}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
