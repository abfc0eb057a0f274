"""Start positions within a record: its last lines, or what came since some time.

Found by bisection over the headers of blocks, and a walk within one or a few blocks: what it costs hardly depends on
how much there is."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

from fastlane_grpc.model import Source
from fastlane_grpc.record.format import BLOCK_BYTES, Chunk, RecordState, SourceState, Trailer
from fastlane_grpc.record.scan import Position, Scan, block_count, last_block, last_block_that, next_block


@dataclass(frozen=True, slots=True)
class ReadStart:
    """The offsets at which a reader starts. A gap of unknown size exactly there is passed if its sequence is not more
    than `sequence`."""

    offsets: Mapping[Source, int]
    sequence: int


def position_at_time(fd: int, time_ns: int) -> Position:
    """Return the position before the first chunk or gap of that time or later; the end if there is none."""
    block = last_block_that(fd, block_count(fd), lambda number, state: state.time_ns < time_ns)
    scan = Scan(fd, Position.of_block(*block) if block else Position.BEGIN)
    for entry in scan.entries(BLOCK_BYTES):
        if entry.time_ns >= time_ns:
            break
    return scan.position


def position_at_end(fd: int) -> Position:
    """Return the position after the last whole frame."""
    block = last_block(fd)
    scan = Scan(fd, Position.of_block(*block) if block else Position.BEGIN)
    for _ in scan.entries(BLOCK_BYTES):
        pass
    return scan.position


@dataclass(frozen=True, slots=True)
class LineStart:
    """The start of a line: after a newline, or at the start of a source. `sequence` is that of the newline's chunk."""

    offset: int = 0
    sequence: int = 0


@dataclass(slots=True)
class _Source:
    """The contents of one source. `open_at`: the offset after its last byte, if no line ends there; then this is the
    end of one more."""

    newlines: int = 0
    offset: int = 0
    open_at: int | None = None

    @property
    def lines(self) -> int:
        return self.newlines + (self.open_at is not None)


@dataclass(slots=True)
class _Hole:
    """The part that the size limit punched out: the first block after the hole, and the newlines of each source in the
    hole."""

    block: int
    newlines: Mapping[Source, int]


@dataclass(slots=True)
class _Passed:
    """The lines before those that are wanted: how many of each source, and the last one's end where it was come by on
    the way."""

    lines: dict[Source, int]
    ends: dict[Source, LineStart] = field(default_factory=dict)


class LastLines:
    """The lines of some sources together, as they are at one moment, in the order of their ends; one that has no end
    yet ends at its last byte. Lines that a hole took are not counted. Those in damage are: that it is damage is not
    known before it is read."""

    def __init__(self, fd: int, sources: frozenset[Source]) -> None:
        self._fd = fd
        self._sources = sorted(sources)
        self._all = {source: _Source() for source in self._sources}
        self._hole: _Hole | None = None
        self._blocks = 0
        if block := last_block(fd):
            self._blocks = block[0] + 1
            self._hole = self._hole_of(block[1].punched_from)
            self._count(*block)

    def offsets_before(self, count: int) -> tuple[Mapping[Source, int], int] | None:
        """Return the offset at which the first of the last `count` lines begins in each source that has one of them.
        Also return the least sequence at which any of these may begin. None: there are no more lines than that."""
        before = sum(its.lines for its in self._all.values()) - count
        block = self._last_block(lambda number, state: sum(self._lines_before(number, state).values()) <= before)
        if before <= 0 or block is None:
            return None
        passed = self._pass(block, before)
        wanted = [source for source in self._sources if passed.lines[source] < self._all[source].lines]
        begins = {
            source: passed.ends.get(source) or self._after_newline(source, passed.lines[source]) for source in wanted
        }
        return {source: place.offset for source, place in begins.items()}, min(
            place.sequence for place in begins.values()
        )

    def end(self, source: Source) -> int:
        """The offset after its last byte."""
        return self._all[source].offset

    # ---- what there is

    def _hole_of(self, punched_from: int) -> _Hole | None:
        beyond = next_block(self._fd, punched_from) if punched_from else None
        if beyond is None or beyond[0] == punched_from:
            return None
        head = next_block(self._fd, punched_from - 1, punched_from) or beyond
        newlines = {source: head[1].sources[source - 1].newlines for source in self._sources}
        if head is not beyond:
            for chunk in self._chunks(*head):
                newlines[chunk.source] += chunk.data.count(b"\n")
        return _Hole(
            beyond[0], {source: beyond[1].sources[source - 1].newlines - newlines[source] for source in self._sources}
        )

    def _count(self, number: int, state: RecordState) -> None:
        """Counts what there is in all, from the last block."""
        missing = {source: state.sources[source - 1].missing_bytes for source in self._sources}
        for source, newlines in self._newlines_before(number, state).items():
            self._all[source] = _Source(newlines, state.sources[source - 1].offset)
        last: dict[Source, Chunk] = {}
        scan = Scan(self._fd, Position.of_block(number, state))
        for entry in scan.entries(BLOCK_BYTES):
            if isinstance(entry, Chunk) and entry.source in self._all:
                self._all[entry.source].newlines += entry.data.count(b"\n")
                last[entry.source] = entry
        for source, its in self._all.items():
            its.offset = scan.position.offsets[source]
            chunk = last.get(source) or self._last_chunk(source, state.sources[source - 1].offset - missing[source])
            if chunk and not chunk.data.endswith(b"\n"):
                its.open_at = chunk.offset + len(chunk.data)

    def _last_chunk(self, source: Source, bytes_kept: int) -> Chunk | None:
        """The last one of the source that is there, of those that end within its first `bytes_kept`, missing ones not
        counted."""
        while bytes_kept > 0:
            block = self._last_block(_keeps_less(source, bytes_kept))
            if block is None:
                return None
            chunks = [chunk for chunk in self._chunks(*block) if chunk.source is source]
            if chunks:
                return chunks[-1]
            # They were in what is missing after this block.
            bytes_kept = _bytes_kept(block[1].sources[source - 1])
        return None

    # ---- what is before the lines that are wanted

    def _pass(self, block: tuple[int, RecordState], before: int) -> _Passed:
        """Pass this number of lines; the last one ends in the block or right before it.

        Where damage took some of these, fewer are passed: what is wanted begins with the damage then, which leaves no
        more lines than that.
        """
        passed = _Passed(self._lines_before(*block))
        left = before - sum(passed.lines.values())
        for chunk in self._chunks(*block):
            if not left:
                break
            left -= self._pass_lines(chunk, passed, left)
        return passed

    def _pass_lines(self, chunk: Chunk, passed: _Passed, most: int) -> int:
        """Passes as many lines of the chunk as end in it, but not more than `most`; how many."""
        newlines = min(chunk.data.count(b"\n"), most)
        if newlines:
            passed.ends[chunk.source] = after_newlines(chunk, newlines)
        lines = newlines
        if lines < most and chunk.offset + len(chunk.data) == self._all[chunk.source].open_at:
            lines += 1
        passed.lines[chunk.source] += lines
        return lines

    def _after_newline(self, source: Source, number: int) -> LineStart:
        """Return the position after the newline of this number, from 1, in the block; 0 is the start."""
        block = self._last_block(lambda its, state: self._newlines_before(its, state)[source] < number)
        if block is None:
            return LineStart()
        found = self._newlines_before(*block)[source]
        place = LineStart(block[1].sources[source - 1].offset, block[1].sequence)
        for chunk in self._chunks(*block):
            newlines = chunk.data.count(b"\n") if chunk.source is source else 0
            if found + newlines >= number:
                return after_newlines(chunk, number - found)
            if newlines:
                # If it is not found it is in damage: then all that is between the last line before and the next one is
                # told.
                place, found = after_newlines(chunk, newlines), found + newlines
        return place

    # ---- blocks

    def _lines_before(self, number: int, state: RecordState) -> dict[Source, int]:
        """Lines of each source that end before this block."""
        lines = self._newlines_before(number, state)
        for source, its in self._all.items():
            if its.open_at is not None and state.sources[source - 1].offset >= its.open_at:
                lines[source] += 1
        return lines

    def _newlines_before(self, number: int, state: RecordState) -> dict[Source, int]:
        gone = self._hole.newlines if self._hole and number >= self._hole.block else {}
        return {source: state.sources[source - 1].newlines - gone.get(source, 0) for source in self._sources}

    def _last_block(self, true: Callable[[int, RecordState], bool]) -> tuple[int, RecordState] | None:
        return last_block_that(self._fd, self._blocks, true)

    def _chunks(self, number: int, state: RecordState) -> Iterator[Chunk]:
        """Yield the chunks of the wanted sources in this block."""
        return chunks_in_block(self._fd, number, state, self._all)


def chunks_in_block(fd: int, number: int, state: RecordState, sources: Container[Source]) -> Iterator[Chunk]:
    """Yield the chunks of these sources in the block that begins with `state`."""
    beyond = next_block(fd, number + 1)
    scan = Scan(fd, Position.of_block(number, state))
    for entry in scan.entries(BLOCK_BYTES):
        # A walk that finds nothing in this block goes on in the next one.
        if isinstance(entry, Trailer) or (beyond and entry.sequence > beyond[1].sequence):
            return
        if isinstance(entry, Chunk) and entry.source in sources:
            yield entry


def after_newlines(chunk: Chunk, newlines: int) -> LineStart:
    """Return the position after this number of newlines of the chunk."""
    at = 0
    for _ in range(newlines):
        at = chunk.data.index(b"\n", at) + 1
    return LineStart(chunk.offset + at, chunk.sequence)


def _keeps_less(source: Source, than: int) -> Callable[[int, RecordState], bool]:
    return lambda number, state: _bytes_kept(state.sources[source - 1]) < than


def _bytes_kept(source: SourceState) -> int:
    return source.offset - source.missing_bytes
