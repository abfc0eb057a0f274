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
    """The last `tail_lines` lines (0: what comes from now on), or what was received at a time or later, in nanoseconds
    since 1970. With both, the later point counts; with neither, the first byte."""

    tail_lines: int | None = None
    since_ns: int | None = None


def cursor_at(
    execution_id: str,
    output: RecordReader | None,
    system: RecordReader | None,
    begin: StartPoint,
    sources: frozenset[Source],
) -> Cursor:
    """Return the cursor for the start point `begin` of a reader of these sources, in two records as they are now. None:
    a record that does not exist yet."""
    begins = [_FIRST_BYTE]
    if begin.since_ns is not None:
        begins.append(_both(_since(output, begin.since_ns), _since(system, begin.since_ns)))
    if begin.tail_lines == 0:
        begins.append(_both(output.end() if output else _FIRST_BYTE, system.end() if system else _FIRST_BYTE))
    elif begin.tail_lines is not None:
        begins.append(_last_lines(output, system, begin.tail_lines, sources))
    latest = _latest(begins)
    return Cursor.at(execution_id, latest.offsets, latest.sequence)


def _last_lines(
    output: RecordReader | None, system: RecordReader | None, count: int, sources: frozenset[Source]
) -> ReadStart:
    """Find the last lines of the output, or of fastlane's own lines if no output is wanted. Other sources start where
    the first line does."""
    counted, other = (output, system) if sources & _OUTPUT else (system, output)
    found = counted.last_lines(count, sources & _OUTPUT or sources) if counted else None
    if found is None:
        return _FIRST_BYTE
    begin, time_ns = found
    if counted is output:
        # A line of ours comes before the output of its time.
        return _both(begin, _since(other, time_ns + 1))
    return _both(_since(other, time_ns), begin)


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
