"""The log that a node keeps of a container, read into a record again and again, each time from where it was left.

A node rotates its log: of a container that printed a lot it hands out the newest file alone. Each answer is a
contiguous piece of that file. So output is whole as long as each answer has the line at which the one before ended.
Otherwise the record gets a gap of unknown size. A stream that follows the log proves nothing: it can end early, without
an error, when the node rotates the log.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from fastlane_grpc.capture.stamped_lines import stamped_lines
from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import RecordWriter

# What is written to the record at a time.
BATCH_BYTES = 1 << 20
# Lines asked for, until more of them come between two answers.
FEWEST_LINES = 200
RETRY_SECONDS = 0.5

log = structlog.get_logger(__name__)


class NodeLog(Protocol):
    """The log that the node of one container keeps."""

    def read(self, last_lines: int | None) -> Iterator[bytes]:
        """Yield the last lines of the log as it is now, each with its time; None: all that the node has.

        Raises LogNotThere, BackendDown, BackendRefuses and OSError.
        """


class LogNotThere(Exception):
    """The container has not begun, or it is gone."""


class ReadingStopped(Exception):
    """The reader was told to stop."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a log: so many bytes behind the beginning of the first of the lines with this time."""

    time_ns: int
    size: int

    def after(self, size: int) -> "Place":
        return Place(self.time_ns, self.size + size)


class NodeLogReader:
    """Reads the log of a node into `record`. Used by one thread at a time; any thread may call `stop`.

    The place that was reached is noted in the file `note`, so that the next server goes on there.
    """

    def __init__(self, node_log: NodeLog, record: RecordWriter, note: Path, *, is_new: bool) -> None:
        """`is_new`: nothing can have been rotated away before the first answer."""
        self.stopping = threading.Event()
        # Held while something is written.
        self._writing = threading.Lock()
        # No gap of unknown size so far.
        self.whole = True
        self._node_log = node_log
        self._record = record
        self._note = note
        self._is_new = is_new
        self._last_lines = FEWEST_LINES
        # The size of the output in the record at its last gap.
        self._gap_at: int | None = None
        # Bytes in the record behind the place: they were written and not noted any more.
        self._ahead = 0
        self._place = self._noted()
        if self._place is None and self._written() > 0:
            self._is_new = False

    def read_on(self) -> int:
        """Write into the record what is new, and return the number of its bytes.

        Raises what `NodeLog.read` raises, after all that came before was written, and ReadingStopped.
        """
        place = self._place
        if place is None:
            return self._first()
        for last_lines in (self._last_lines, None):
            answer = _Answer(self, place, self._ahead, is_part=last_lines is not None)
            answer.take(self._node_log.read(last_lines))
            if answer.found:
                return answer.size
        # The line at which the last answer ended is not there any more. All lines that are there came after it.
        self.mark_gap()
        return self._all()

    def stop(self) -> None:
        """Write nothing from now on: when this returns, the record is somebody else's."""
        with self._writing:
            self.stopping.set()

    def mark_gap(self) -> None:
        """Write that something may be missing here: once for the same place in the record."""
        self.whole = False
        if self._gap_at == self._written():
            return
        self._gap_at = self._written()
        self._store(lambda: self._record.gap(Source.STDOUT, None, Cause.ENGINE, time.time_ns()))

    def _first(self) -> int:
        """Read the log for the first time."""
        if self._written() == 0:
            try:
                return self._all()
            except LogNotThere:
                # It has not begun, so nothing is missed.
                self._is_new = True
                raise
        # The record has output, and the place of its end is not known any more: what the node has may be in it.
        self.mark_gap()
        answer = _Answer(self, None, 0, is_part=False, drops=True)
        answer.take(self._node_log.read(None))
        return 0

    def _all(self) -> int:
        answer = _Answer(self, None, 0, is_part=False, doubts=self._place is None and self._written() == 0)
        answer.take(self._node_log.read(None))
        self._is_new = True
        return answer.size

    def is_doubtful(self, size: int) -> bool:
        """Whether something may have been rotated away before the first `size` bytes, a batch of a first answer."""
        return not self._is_new or size >= BATCH_BYTES

    def write(self, data: bytes, begin: Place, end: Place, time_ns: int, lines: int) -> None:
        """Write a piece of the log between two places into the record. `lines`: how many lines of it are new."""
        if not data and not self._ahead and end == self._place:
            return
        if self._place is None or begin.time_ns != self._place.time_ns:
            # Before the piece: what is written behind it is then known, whatever happens between the two.
            self._reach(begin)
        if data:
            self._store(lambda: self._record.write([(Source.STDOUT, data)], time_ns))
            self._last_lines = max(FEWEST_LINES, 4 * lines)
        self._reach(end)

    def _reach(self, place: Place) -> None:
        self._place, self._ahead = place, 0

        def note() -> None:
            new = self._note.with_suffix(".new")
            new.write_text(f"{self._written()} {place.time_ns} {place.size}")
            new.replace(self._note)

        self._store(note)

    def _noted(self) -> Place | None:
        """Return the place that an earlier server noted; None: there is none that fits to the record."""
        try:
            written, time_ns, size = (int(number) for number in self._note.read_text().split())
        except (OSError, ValueError):
            return None
        self._ahead = self._written() - written
        return Place(time_ns, size) if self._ahead >= 0 else None

    def _written(self) -> int:
        return next((total.bytes for total in self._record.totals() if total.source is Source.STDOUT), 0)

    def _store(self, write: Callable[[], None]) -> None:
        """Write to the disk, and try again until there is room. Raises ReadingStopped."""
        is_told = False
        while True:
            try:
                with self._writing:
                    if self.stopping.is_set():
                        raise ReadingStopped
                    return write()
            except OSError as error:
                if not is_told:
                    log.warning("output cannot be stored; trying again", file=os.fspath(self._note), error=str(error))
                is_told = True
            if self.stopping.wait(RETRY_SECONDS):
                raise ReadingStopped


class _Answer:
    """One answer of a node, as it is taken into the record from `place` on; None: from its beginning.

    `ahead`: bytes behind the place that the record has already. `is_part`: the answer may begin anywhere.
    """

    def __init__(
        self,
        reader: NodeLogReader,
        place: Place | None,
        ahead: int,
        *,
        is_part: bool,
        drops: bool = False,
        doubts: bool = False,
    ) -> None:
        """`drops`: only the place of the end is wanted. `doubts`: it is the first answer."""
        self.found = place is None
        self.size = 0
        self._reader = reader
        self._sought = place
        self._ahead = ahead
        self._is_part = is_part
        self._is_first = True
        self._is_cut = False
        self._drops = drops
        self._doubts = doubts
        # Bytes of the lines with the time of the place, and behind them, that the record has already.
        self._skip = 0
        self._begin: Place | None = None
        self._end: Place | None = None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._batch_time_ns = 0
        self._lines = 0

    def take(self, answer: Iterator[bytes]) -> None:
        """Write what is behind the place. `found` says whether the answer has the place."""
        try:
            for line in stamped_lines(answer):
                if line.begins and not self._begins(line.time_ns):
                    continue
                if self._end is None:
                    continue
                had = min(self._skip, len(line.content))
                self._skip -= had
                self._end = self._end.after(len(line.content))
                self._add(line.content[had:], line.time_ns)
        finally:
            if self._end is not None and self._skip == 0:
                self._flush()
        if self._skip:
            # The node has less than it had before: somebody truncated its log.
            self._reader.mark_gap()
            self._skip = 0
            self._flush()

    def _begins(self, time_ns: int) -> bool:
        """Note the beginning of a line. False: it is before the place."""
        if not self.found:
            assert self._sought is not None
            if self._is_part and self._is_first:
                # The lines with this time may have begun before the answer.
                self._is_cut = time_ns == self._sought.time_ns
            self._is_first = False
            if self._is_cut or time_ns != self._sought.time_ns:
                return False
            self.found = True
            self._skip = self._sought.size + self._ahead
        elif self._end is not None and time_ns == self._end.time_ns:
            return True
        elif self._skip > self._ahead:
            # The lines with the time of the place are shorter than they were: they are others.
            self._flush_gap()
        self._end = Place(time_ns, 0)
        self._begin = self._begin or self._end
        return True

    def _flush_gap(self) -> None:
        self._reader.mark_gap()
        self._skip = self._ahead

    def _add(self, content: bytes, time_ns: int) -> None:
        if not content or self._drops:
            return
        self._batch.append(content)
        self._lines += 1
        self._batch_bytes += len(content)
        self._batch_time_ns = time_ns
        if self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        assert self._begin is not None
        assert self._end is not None
        if self._doubts and self._reader.is_doubtful(self._batch_bytes):
            self._reader.mark_gap()
        self._doubts = False
        self.size += self._batch_bytes
        self._reader.write(b"".join(self._batch), self._begin, self._end, self._batch_time_ns, self._lines)
        self._batch, self._batch_bytes, self._begin = [], 0, self._end
