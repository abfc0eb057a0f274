"""The last lines of what a container printed, for mails. Reads records, so it is no work for the loop."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Source
from fastlane_grpc.record import Chunk, Gap, RecordReader, unread
from fastlane_grpc.text.redaction import SecretNames
from fastlane_grpc.text.sanitize import one_line

LINES = 20
MAX_LINE_CHARACTERS = 500
# Of each source, what is read at most.
_MAX_BYTES = 16 << 10
# Of the record, what is read at most for one source: a quarter of a megabyte each.
_MAX_STRETCHES = 64
_OUTPUT = (Source.STDOUT, Source.STDERR)
_ANY = 1 << 62


class LogEnd:
    """A reader of the ends of logs, on a thread of its own."""

    def __init__(self, logs: Logs, secret_names: SecretNames) -> None:
        self._logs = logs
        self._secret_names = secret_names
        self._thread = ThreadPoolExecutor(1, "log-end")

    async def lines(self, execution_id: str) -> Sequence[str] | None:
        """Return the last lines of an execution's output, printable and without secrets. None: no log is kept."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, execution_id)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read(self, execution_id: str) -> Sequence[str] | None:
        try:
            reader = RecordReader(self._logs.output_path(execution_id))
        except OSError:
            return None
        try:
            lines = _last_lines(_last_entries(reader))
        except OSError:
            return None
        finally:
            reader.close()
        return [one_line(self._secret_names.mask(line), MAX_LINE_CHARACTERS) for line in lines]


def _last_entries(reader: RecordReader) -> list[Chunk | Gap]:
    """Return the entries with the last lines, in their order. Of a line that is very long, only its end."""
    end, found = reader.end(), reader.last_lines(LINES, frozenset(_OUTPUT))
    entries: list[Chunk | Gap] = []
    # Each source by itself: the other one may have printed gigabytes since.
    for source in _OUTPUT:
        begin = found[0].offsets.get(source, 0) if found else 0
        begin = max(begin, end.offsets.get(source, 0) - _MAX_BYTES)
        entries += _entries_of(reader, source, begin, end.offsets.get(source, 0))
    return sorted(entries, key=lambda entry: entry.sequence)


def _entries_of(reader: RecordReader, source: Source, begin: int, end: int) -> Iterator[Chunk | Gap]:
    """Yield the entries of one source between two offsets, of as much of the record as may be read."""
    offsets = dict.fromkeys(Source, _ANY) | {source: begin}
    position = reader.locate(offsets, _ANY)
    for _ in range(_MAX_STRETCHES):
        stretch = reader.read(position)
        for entry in unread(stretch.entries, offsets, _ANY):
            yield entry
            begin = entry.offset + (len(entry.data) if isinstance(entry, Chunk) else entry.missing_bytes or 0)
        if stretch.trailer or not stretch.entries or begin >= end:
            return
        position = stretch.next


def _last_lines(entries: Iterable[Chunk | Gap]) -> list[str]:
    """Return the lines of both sources, in the order of their ends."""
    lines: list[str] = []
    unended = dict.fromkeys(_OUTPUT, b"")
    for entry in entries:
        if isinstance(entry, Gap):
            lines.append("[output is missing here]")
        elif entry.source in unended:
            *ended, unended[entry.source] = (unended[entry.source] + entry.data).split(b"\n")
            lines += map(_decoded, ended)
    lines += (_decoded(line) for line in unended.values() if line)
    return lines[-LINES:]


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
