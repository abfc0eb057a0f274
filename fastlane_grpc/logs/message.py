"""Messages of a log, as bytes or as text: entries of a record, cut at the same points for every reader, each with the
cursor after it."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.model import Source
from fastlane_grpc.record import Chunk, Gap

# Chunks in one message at the most. A segment has 256 KiB with 16 for each frame; so many chunks stay far below 512 KiB
# on the wire.
MESSAGE_CHUNKS = 4096
# Bytes of their data. A byte that is not UTF-8 becomes three as text.
MESSAGE_BYTES = 256 * 1024
TEXT_MESSAGE_BYTES = 96 * 1024


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A chunk as lossy UTF-8. `offset` is that of the first byte that `text` was made from."""

    source: Source
    offset: int
    time_ns: int
    text: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Message:
    """Chunks, or one gap, that are sent at once, and the cursor after them.

    `first_line`: the number of the first line that ends after it, where a reader that counts lines needs it."""

    cursor: Cursor
    chunks: Sequence[Chunk | TextChunk] = ()
    gap: Gap | None = None
    first_line: int | None = None


class Encoding(Protocol):
    """The encoding of a log's messages for one transport. Two encodings of one name make the same bytes: these are
    cached by the name."""

    name: str

    def message(self, value: Message) -> bytes:
        """Return the message as it is sent."""


def messages(
    cursor: Cursor, entries: Iterable[Chunk | Gap], sources: frozenset[Source], max_bytes: int = MESSAGE_BYTES
) -> Iterator[Message]:
    """Make messages of the entries of these sources. `cursor` is the one before them. Entries of other sources only
    move the cursor."""
    run: list[Chunk] = []
    run_bytes = 0
    offsets, sequence = dict(cursor.offsets), cursor.sequence
    for entry in entries:
        full = isinstance(entry, Gap) or len(run) == MESSAGE_CHUNKS or run_bytes + len(entry.data) > max_bytes
        if run and full and entry.source in sources:
            yield Message(Cursor.at(cursor.execution_id, offsets, sequence), run)
            run, run_bytes = [], 0
        offsets[entry.source] = max(offsets[entry.source], end(entry))
        if entry.source is not Source.SYSTEM:
            sequence = max(sequence, entry.sequence)
        if entry.source not in sources:
            continue
        if isinstance(entry, Gap):
            yield Message(Cursor.at(cursor.execution_id, offsets, sequence), gap=entry)
            continue
        run.append(entry)
        run_bytes += len(entry.data)
    if run:
        yield Message(Cursor.at(cursor.execution_id, offsets, sequence), run)


def after(cursor: Cursor, entries: Iterable[Chunk | Gap]) -> Cursor:
    """Return the cursor after all of these entries."""
    offsets, sequence = dict(cursor.offsets), cursor.sequence
    for entry in entries:
        offsets[entry.source] = max(offsets[entry.source], end(entry))
        if entry.source is not Source.SYSTEM:
            sequence = max(sequence, entry.sequence)
    return Cursor.at(cursor.execution_id, offsets, sequence)


def before(entries: Iterable[Chunk | Gap], cursor: Cursor) -> Sequence[Chunk | Gap]:
    """Return the entries before the cursor. An entry around it is cut."""
    return [cut for entry in entries if (cut := _before(entry, cursor.offsets[entry.source], cursor.sequence))]


def _before(entry: Chunk | Gap, offset: int, sequence: int) -> Chunk | Gap | None:
    if isinstance(entry, Gap) and entry.missing_bytes is None:
        return entry if (entry.offset, entry.sequence) <= (offset, sequence) else None
    size = min(end(entry), offset) - entry.offset
    if size <= 0:
        return None
    if isinstance(entry, Chunk):
        return entry._replace(data=entry.data[:size]) if size < len(entry.data) else entry
    return entry._replace(missing_bytes=size)


def end(entry: Chunk | Gap) -> int:
    """Return the offset after the entry."""
    return entry.offset + (len(entry.data) if isinstance(entry, Chunk) else entry.missing_bytes or 0)


class TextDecoder:
    """Decodes the bytes of one reader. The bytes of an incomplete character, and the cursor, are held back until the
    rest has arrived."""

    def __init__(self) -> None:
        self._decoders = {source: codecs.getincrementaldecoder("utf-8")("replace") for source in Source}
        self._last: dict[Source, Chunk] = {}

    def decode(self, message: Message) -> Iterator[Message]:
        if message.gap is not None:
            yield from self._before_gap(message.cursor, message.gap)
            yield replace(message, cursor=self.held_back(message.cursor))
            return
        chunks = [self._text(chunk) for chunk in message.chunks if isinstance(chunk, Chunk)]
        yield Message(self.held_back(message.cursor), chunks)

    def held_back(self, cursor: Cursor) -> Cursor:
        """Return the cursor before the bytes that are held back, so that a reader that resumes there gets the whole
        character."""
        offsets = {source: offset - self._held(source) for source, offset in cursor.offsets.items()}
        return Cursor.at(cursor.execution_id, offsets, cursor.sequence)

    def flush(self) -> Sequence[TextChunk]:
        """Return what is held back, as it is, at the end of the log."""
        return [chunk for source in Source if (chunk := self._flush(source))]

    def _text(self, chunk: Chunk) -> TextChunk:
        begin = chunk.offset - self._held(chunk.source)
        self._last[chunk.source] = chunk
        return TextChunk(
            chunk.source, begin, chunk.time_ns, self._decoders[chunk.source].decode(chunk.data), chunk.sequence
        )

    def _before_gap(self, cursor: Cursor, gap: Gap) -> Iterator[Message]:
        left = self._flush(gap.source)
        if left is not None:
            before = Cursor.at(cursor.execution_id, {**cursor.offsets, gap.source: gap.offset}, gap.sequence - 1)
            yield Message(self.held_back(before), [left])

    def _flush(self, source: Source) -> TextChunk | None:
        held = self._held(source)
        if not held:
            return None
        last = self._last[source]
        text = self._decoders[source].decode(b"", final=True)
        return TextChunk(source, end(last) - held, last.time_ns, text, last.sequence)

    def _held(self, source: Source) -> int:
        return len(self._decoders[source].getstate()[0])
