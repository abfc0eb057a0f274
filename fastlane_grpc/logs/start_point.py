"""Start points: where a reader without a cursor starts that does not want the whole log. Reads records, so it is no
work for the loop."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.model import Source
from fastlane_grpc.record import ReadStart, RecordReader

_OUTPUT = frozenset({Source.STDOUT, Source.STDERR})
_FIRST_BYTE = ReadStart(dict.fromkeys(Source, 0), 0)


@dataclass(frozen=True, slots=True)
class StartPoint:
    """The last `tail_lines` lines (0: what comes from now on), what was received at a time or later (in nanoseconds
    since 1970), or the line of the number `start_line`. The latest of them counts; with none, the first byte."""

    tail_lines: int | None = None
    since_ns: int | None = None
    start_line: int | None = None


def cursor_at(
    execution_id: str,
    output: RecordReader | None,
    system: RecordReader | None,
    begin: StartPoint,
    sources: frozenset[Source],
    end: Cursor | None = None,
) -> Cursor:
    """Return the cursor for the start point `begin` of a reader of these sources, in two records as they are now. None:
    a record that does not exist yet.

    `end`: where the reader ends. Its last lines are those before it, and the cursor is not after it."""
    begins = [_FIRST_BYTE]
    if begin.since_ns is not None:
        begins.append(_both(_since(output, begin.since_ns), _since(system, begin.since_ns)))
    if begin.start_line is not None:
        begins.append(_line(output, system, begin.start_line, sources))
    if begin.tail_lines is not None and end is not None:
        begins.append(_lines_before(output, system, begin.tail_lines, sources, end))
    elif begin.tail_lines == 0:
        begins.append(_both(output.end() if output else _FIRST_BYTE, system.end() if system else _FIRST_BYTE))
    elif begin.tail_lines is not None:
        begins.append(_last_lines(output, system, begin.tail_lines, sources))
    latest = _latest(begins)
    offsets = latest.offsets
    if end is not None:
        offsets = {source: min(offset, end.offsets[source]) for source, offset in offsets.items()}
    return Cursor.at(execution_id, offsets, latest.sequence)


def counted(sources: frozenset[Source]) -> frozenset[Source]:
    """Return those of these sources whose lines are counted: fastlane's own lines only if no output is wanted."""
    return sources & _OUTPUT or sources


def _last_lines(
    output: RecordReader | None, system: RecordReader | None, count: int, sources: frozenset[Source]
) -> ReadStart:
    """Find the last lines of the output, or of fastlane's own lines if no output is wanted."""
    record = output if sources & _OUTPUT else system
    found = record.last_lines(count, counted(sources)) if record else None
    return _with_other(found, output, system, sources) if found else _FIRST_BYTE


def _line(
    output: RecordReader | None, system: RecordReader | None, number: int, sources: frozenset[Source]
) -> ReadStart:
    record = output if sources & _OUTPUT else system
    if record is None or number <= 1:
        return _FIRST_BYTE
    return _with_other(record.line(number, record.lines(counted(sources))), output, system, sources)


def _lines_before(
    output: RecordReader | None, system: RecordReader | None, count: int, sources: frozenset[Source], end: Cursor
) -> ReadStart:
    """Find the last lines of those that end before a cursor."""
    record = output if sources & _OUTPUT else system
    if record is None:
        return _FIRST_BYTE
    lines = record.lines(counted(sources), end.offsets)
    if count >= lines.count:
        return _FIRST_BYTE
    return _with_other(record.line(lines.count - count + 1, lines), output, system, sources)


def _with_other(
    found: tuple[ReadStart, int], output: RecordReader | None, system: RecordReader | None, sources: frozenset[Source]
) -> ReadStart:
    """Combine the start of lines in the record that was counted with the same moment in the other one."""
    begin, time_ns = found
    if sources & _OUTPUT:
        # A line of ours comes before the output of its time.
        return _both(begin, _since(system, time_ns + 1))
    return _both(_since(output, time_ns), begin)


def _since(record: RecordReader | None, time_ns: int) -> ReadStart:
    return record.since(time_ns) if record else _FIRST_BYTE


def _both(output: ReadStart, system: ReadStart) -> ReadStart:
    """Combine two starts. Cursors count the sequence of the output alone."""
    return ReadStart({**output.offsets, Source.SYSTEM: system.offsets[Source.SYSTEM]}, output.sequence)


def _latest(begins: Iterable[ReadStart]) -> ReadStart:
    """Return the latest offset of each source and the latest sequence: of two starts at the same offset, the later one
    has passed more gaps of unknown size."""
    begins = list(begins)
    offsets = {source: max(begin.offsets[source] for begin in begins) for source in Source}
    return ReadStart(offsets, max(begin.sequence for begin in begins))
