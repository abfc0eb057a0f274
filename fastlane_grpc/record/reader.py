"""Reading a record, while it is written and after, by any number of readers. Each gets the same entries in the same
order."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from fastlane_grpc.model import LogTotals, Source
from fastlane_grpc.record.format import BLOCK_BYTES, SOURCES, Chunk, Gap, RecordState, Trailer, unpack_start
from fastlane_grpc.record.line_numbers import NumberedLines, newlines_before
from fastlane_grpc.record.open_file import open_record
from fastlane_grpc.record.scan import Position, Scan, block_count, last_block, last_block_that
from fastlane_grpc.record.seek import LastLines, ReadStart, position_at_end, position_at_time

SEGMENT_BYTES = 4 * BLOCK_BYTES
_END_OF_TIME = 1 << 64
_END_OF_OFFSETS = 1 << 62


@dataclass(frozen=True, slots=True)
class Segment:
    """Entries of a record, and the position after them. With a `trailer` they are the last ones. No entry and no
    trailer: nothing new."""

    entries: tuple[Chunk | Gap, ...]
    next: Position
    trailer: Trailer | None = None


class RecordReader:
    """One record, open for reading. Any number of threads may read at once; only `close` must come last."""

    def __init__(self, path: Path) -> None:
        """Open the record. Raise FileNotFoundError if there is none: no name, or the name of something else."""
        self._file = FileIO(path, "r", opener=lambda path, flags: open_record(Path(path), flags))

    def read(self, position: Position, *, max_bytes: int = SEGMENT_BYTES, before_ns: int | None = None) -> Segment:
        """Return the segment that follows `position`, up to the next multiple of `max_bytes` (whole blocks) in the
        file: the segments of all readers have the same ends.

        With `before_ns` it ends before the first entry, or the trailer, of that time or later. A read that reaches the
        trailer answers it, and so does every read from its `next`, which lies before the trailer.
        """
        scan = Scan(self._file.fileno(), position)
        entries: list[Chunk | Gap] = []
        limit = _END_OF_TIME if before_ns is None else before_ns
        for entry in scan.entries(max(max_bytes // BLOCK_BYTES, 1) * BLOCK_BYTES):
            if entry.time_ns >= limit:
                break
            if isinstance(entry, Trailer):
                return Segment(tuple(entries), scan.position, entry)
            entries.append(entry)
        return Segment(tuple(entries), scan.position if entries else position)

    def locate(self, offsets: Mapping[Source, int], sequence: int) -> Position:
        """The last place before which no source has come further than its `offsets` (of one that is not named: 0).

        A gap of unknown size that lies exactly there is before it if its sequence is not more than `sequence`. The next
        entries may begin before `offsets`, where these lie within a frame or in damage: `unread` takes off what the
        caller has."""
        block = self._last_block_within(offsets, sequence)
        if block is None:
            return Position.BEGIN
        scan = Scan(self._file.fileno(), Position.of_block(*block))
        for entry in scan.entries(BLOCK_BYTES):
            if isinstance(entry, Trailer) or not _had(entry, offsets, sequence):
                return scan.position
        # Where there is nothing yet the file may be emptied and begun anew, by another capture: nothing of it is
        # passed.
        return scan.position if scan.position.sequence else Position.BEGIN

    def since(self, time_ns: int) -> ReadStart:
        """Return the point before the first entry of that time or later; the end if there is none yet."""
        position = position_at_time(self._file.fileno(), time_ns)
        return ReadStart(position.offsets, position.sequence)

    def end(self) -> ReadStart:
        """Return the point after all entries so far."""
        position = position_at_end(self._file.fileno())
        return ReadStart(position.offsets, position.sequence)

    def last_lines(self, count: int, sources: frozenset[Source]) -> tuple[ReadStart, int] | None:
        """Return where the last `count` lines (1 or more) of these sources together begin, and the time of their first
        entry.

        A line counts where it ends; one without an end ends at its last byte. A source of which none is among them
        begins at its end, and one that is not in `sources` with the first of the lines. None: there are no more lines
        than that.
        """
        lines = LastLines(self._file.fileno(), sources)
        found = lines.offsets_before(count)
        if found is None:
            return None
        begins, sequence = found
        ends = {source: lines.end(source) for source in sources}
        return self._start_of_lines(begins, ends, sequence)

    def lines(self, sources: frozenset[Source], limits: Mapping[Source, int] | None = None) -> NumberedLines:
        """Return the lines of these sources by number, as far as they end before these limits."""
        return NumberedLines(self._file.fileno(), sources, limits)

    def line(self, number: int, lines: NumberedLines) -> tuple[ReadStart, int]:
        """Return where the line of this number begins, and the time of the first entry there. A source that is not
        counted begins with the first of the lines."""
        begin = lines.begin(number)
        return self._start_of_lines(begin.offsets, {}, begin.sequence)

    def newlines_before(self, offsets: Mapping[Source, int]) -> int:
        """Return the number of newlines before these offsets, those of missing bytes included as far as it is known."""
        return sum(newlines_before(self._file.fileno(), source, offset) for source, offset in offsets.items())

    def totals(self) -> tuple[LogTotals, ...]:
        """Return what each source holds by now, of a record that lost nothing."""
        position = position_at_end(self._file.fileno())
        return tuple(
            LogTotals(source, offset, 0, crc32)
            for source, offset, crc32 in zip(SOURCES, position.reached, position.crc32s, strict=True)
            if offset
        )

    def trailer(self) -> Trailer | None:
        """Find the trailer from the end of the file. None if there is none yet."""
        block = last_block(self._file.fileno())
        if block is None:
            return None
        scan = Scan(self._file.fileno(), Position.of_block(*block))
        return next((entry for entry in scan.entries(BLOCK_BYTES) if isinstance(entry, Trailer)), None)

    def is_of(self, execution_id: str) -> bool:
        """Whether the record is that of this execution, as far as its START tells."""
        return unpack_start(os.pread(self._file.fileno(), BLOCK_BYTES, 0)) in {"", execution_id}

    def close(self) -> None:
        self._file.close()

    def _start_of_lines(
        self, begins: Mapping[Source, int], ends: Mapping[Source, int], sequence: int
    ) -> tuple[ReadStart, int]:
        # A source without a line among them does not keep the position back.
        position = self.locate({source: begins.get(source, _END_OF_OFFSETS) for source in Source}, sequence)
        # None: the block was punched out just now.
        first = next(Scan(self._file.fileno(), position).entries(BLOCK_BYTES), None)
        return ReadStart(
            {**position.offsets, **ends, **begins}, position.sequence
        ), first.time_ns if first else position.time_ns

    def _last_block_within(self, offsets: Mapping[Source, int], sequence: int) -> tuple[int, RecordState] | None:
        """Locate a block by bisection: the sums in the headers only grow."""
        fd = self._file.fileno()
        return last_block_that(fd, block_count(fd), lambda number, state: _within(state, offsets, sequence))


def unread(entries: Iterable[Chunk | Gap], offsets: Mapping[Source, int], sequence: int) -> tuple[Chunk | Gap, ...]:
    """Return the entries that a reader at `offsets` and `sequence` has not had. The first one of a source may be
    cut."""
    return tuple(_cut(entry, offsets.get(entry.source, 0)) for entry in entries if not _had(entry, offsets, sequence))


def _had(entry: Chunk | Gap, offsets: Mapping[Source, int], sequence: int) -> bool:
    offset = offsets.get(entry.source, 0)
    if isinstance(entry, Chunk):
        return entry.offset + len(entry.data) <= offset
    if entry.missing_bytes is not None:
        return entry.offset + entry.missing_bytes <= offset
    return (entry.offset, entry.sequence) <= (offset, sequence)


def _within(state: RecordState, offsets: Mapping[Source, int], sequence: int) -> bool:
    """Whether a reader at `offsets` and `sequence` has had everything before `state`."""
    return all(
        (its.offset, its.gap_sequence) <= (offsets.get(source, 0), sequence)
        for source, its in zip(SOURCES, state.sources, strict=True)
    )


def _cut(entry: Chunk | Gap, offset: int) -> Chunk | Gap:
    had = offset - entry.offset
    if had <= 0:
        return entry
    if isinstance(entry, Chunk):
        return entry._replace(offset=offset, data=entry.data[had:])
    if entry.missing_bytes is None:
        return entry
    return entry._replace(offset=offset, missing_bytes=entry.missing_bytes - had)
