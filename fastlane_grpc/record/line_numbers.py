"""Lines by number: where the line of a number begins, and the number of the line at an offset.

The headers of blocks count newlines, so a record is its own index: bisection over the headers finds the block, and a
scan of that block finds the line. Nothing is kept in memory."""

from collections.abc import Mapping

from fastlane_grpc.model import Source
from fastlane_grpc.record.format import BLOCK_BYTES, Chunk, RecordState
from fastlane_grpc.record.scan import Position, Scan, block_count, last_block, last_block_that
from fastlane_grpc.record.seek import LineStart, ReadStart, after_newlines, chunks_in_block


class NumberedLines:
    """The lines of some sources together, numbered from 1 in the order of their newlines.

    A number never changes. Newlines that were punched out or damaged keep their numbers, as far as headers count them;
    those in other gaps have none. An unfinished line has no number yet: it belongs to what comes after the last
    newline.

    `limits`: count only the newlines before these offsets."""

    def __init__(self, fd: int, sources: frozenset[Source], limits: Mapping[Source, int] | None = None) -> None:
        self._fd = fd
        self._blocks = block_count(fd)
        self._newlines = (
            {source: newlines_before(fd, source, limits[source]) for source in sorted(sources)}
            if limits is not None
            else _newlines(fd, sources)
        )

    @property
    def count(self) -> int:
        """The number of the last line."""
        return sum(self._newlines.values())

    def begin(self, number: int) -> ReadStart:
        """Return the start of the line of this number in each of the sources; that of the unfinished lines, if there
        are not so many.

        In the middle of missing bytes, the start is before them."""
        before = min(number - 1, self.count)
        block = last_block_that(self._fd, self._blocks, lambda _, state: sum(self._before(state).values()) <= before)
        if before <= 0 or block is None:
            return ReadStart(dict.fromkeys(self._newlines, 0), 0)
        passed, starts = self._before(block[1]), dict[Source, LineStart]()
        left = before - sum(passed.values())
        for chunk in chunks_in_block(self._fd, *block, self._newlines):
            if not left:
                break
            most = min(left, self._newlines[chunk.source] - passed[chunk.source])
            if newlines := min(chunk.data.count(b"\n"), most):
                starts[chunk.source] = after_newlines(chunk, newlines)
                passed[chunk.source] += newlines
                left -= newlines
        for source, newlines in passed.items():
            if source not in starts:
                starts[source] = self._after_newline(source, newlines)
        return ReadStart(
            {source: start.offset for source, start in starts.items()}, min(start.sequence for start in starts.values())
        )

    def _before(self, state: RecordState) -> dict[Source, int]:
        return {source: min(state.sources[source - 1].newlines, most) for source, most in self._newlines.items()}

    def _after_newline(self, source: Source, number: int) -> LineStart:
        """Return the start after the newline of this number of the source; 0: its first byte."""
        block = last_block_that(self._fd, self._blocks, lambda _, state: state.sources[source - 1].newlines < number)
        if block is None:
            return LineStart()
        its = block[1].sources[source - 1]
        start, found = LineStart(its.offset, block[1].sequence), its.newlines
        for chunk in chunks_in_block(self._fd, *block, {source}):
            newlines = min(chunk.data.count(b"\n"), number - found)
            if newlines:
                start, found = after_newlines(chunk, newlines), found + newlines
            if found == number:
                return start
        return start


def newlines_before(fd: int, source: Source, offset: int) -> int:
    """Return the number of newlines of the source before the offset. Of missing bytes around it none are counted."""
    block = last_block_that(fd, block_count(fd), lambda _, state: state.sources[source - 1].offset <= offset)
    if block is None:
        return 0
    newlines = block[1].sources[source - 1].newlines
    for chunk in chunks_in_block(fd, *block, {source}):
        if chunk.offset >= offset:
            break
        newlines += chunk.data.count(b"\n", 0, offset - chunk.offset)
    return newlines


def _newlines(fd: int, sources: frozenset[Source]) -> dict[Source, int]:
    block = last_block(fd)
    if block is None:
        return dict.fromkeys(sorted(sources), 0)
    newlines = {source: block[1].sources[source - 1].newlines for source in sorted(sources)}
    for entry in Scan(fd, Position.of_block(*block)).entries(BLOCK_BYTES):
        if isinstance(entry, Chunk) and entry.source in newlines:
            newlines[entry.source] += entry.data.count(b"\n")
    return newlines
