"""A scan of the frames of a record, from any position on. It yields what was written, in order; the rest is a gap."""

import errno
import os
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record.format import (
    BLOCK_BYTES,
    BLOCK_HEADER_BYTES,
    FRAME_CHECKED_BYTES,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    GAP,
    NO_FRAME,
    PADDING,
    SOURCES,
    START,
    TRAILER,
    Chunk,
    Gap,
    RecordState,
    Trailer,
    unpack_block_header,
    unpack_gap,
    unpack_trailer,
)


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a record, after a frame or at the start of a block, and all that is needed to go on from there.

    `sequence` and `time_ns` are those of the last entry before it; `reached` and `crc32s` are by source, in the order
    of their numbers."""

    BEGIN: ClassVar["Position"]

    file_offset: int
    sequence: int
    time_ns: int
    reached: tuple[int, int, int]
    crc32s: tuple[int, int, int]

    @property
    def offsets(self) -> Mapping[Source, int]:
        """The offset of each of the three sources, in bytes."""
        return dict(zip(SOURCES, self.reached, strict=True))

    @classmethod
    def of_block(cls, number: int, state: RecordState) -> "Position":
        """Return the start of a block, by its header."""
        stdout, stderr, system = state.sources
        return cls(
            number * BLOCK_BYTES,
            state.sequence,
            state.time_ns,
            (stdout.offset, stderr.offset, system.offset),
            (stdout.crc32, stderr.crc32, system.crc32),
        )


Position.BEGIN = Position.of_block(0, RecordState())


class _Ending(Enum):
    """The reason why the scan of one block ended."""

    PASSED = 1
    NOT_YET = 2
    DAMAGED = 3


class Scan:
    """A scan that has come to a position."""

    def __init__(self, fd: int, position: Position) -> None:
        self._fd = fd
        self._file_offset = position.file_offset
        self._sequence = position.sequence
        self._time_ns = position.time_ns
        # By kind of frame, which is the number of the source: the first place is unused.
        self._offsets = [0, *position.reached]
        self._crc32s = [0, *position.crc32s]

    @property
    def position(self) -> Position:
        _, stdout, stderr, system = self._offsets
        _, stdout_crc32, stderr_crc32, system_crc32 = self._crc32s
        return Position(
            self._file_offset,
            self._sequence,
            self._time_ns,
            (stdout, stderr, system),
            (stdout_crc32, stderr_crc32, system_crc32),
        )

    def entries(self, span: int) -> Iterator[Chunk | Gap | Trailer]:
        """Yield the entries that follow, up to the first multiple of `span` in the file after at least one entry, or up
        to damage.

        The walk has passed an entry when the next one is asked for, not before. It never passes a trailer.
        """
        first = self._sequence
        place = self._file_offset
        while self._sequence == first and (raw := os.pread(self._fd, span - place % span, place)):
            base = place
            while place < base + len(raw):
                ending = yield from self._block(raw, base, place)
                if ending is _Ending.NOT_YET:
                    return
                if ending is _Ending.DAMAGED:
                    beyond = self._beyond_damage(raw, base, place)
                    if beyond is None:
                        return
                    place = beyond
                    break
                place = _block_end(place)

    def _block(self, raw: bytes, base: int, place: int) -> Generator[Chunk | Gap | Trailer, None, _Ending]:
        """Walks from `place` to the end of its block; `raw` is what is in the file from `base` on."""
        at, end, block_end = place - base, len(raw), _block_end(place) - base
        if place % BLOCK_BYTES == 0:
            if end - at < BLOCK_HEADER_BYTES:
                return _Ending.NOT_YET
            state = unpack_block_header(raw, place // BLOCK_BYTES, at)
            if state is None or not self._may_lead_to(state):
                return _Ending.DAMAGED
            yield from self._take_over(state, place)
            at += BLOCK_HEADER_BYTES
        offsets, crc32s = self._offsets, self._crc32s
        while block_end - at >= FRAME_HEADER_BYTES:
            payload_at = at + FRAME_HEADER_BYTES
            if payload_at > end:
                return _Ending.NOT_YET
            time_ns, length, kind, _, check = FRAME_HEADER.unpack_from(raw, at)
            if kind == PADDING:
                return _Ending.PASSED if raw[at:payload_at] == NO_FRAME else _Ending.DAMAGED
            frame_end = payload_at + length
            if frame_end > block_end:
                return _Ending.DAMAGED
            if frame_end > end:
                return _Ending.NOT_YET
            payload = raw[payload_at:frame_end]
            is_data = kind <= len(SOURCES)
            crc32 = zlib.crc32(payload, crc32s[kind] if is_data else 0)
            if zlib.crc32(raw[at : at + FRAME_CHECKED_BYTES], crc32) != check:
                return _Ending.DAMAGED
            if time_ns < self._time_ns:
                # No writer that follows the format lets time go back; readers rely on it whoever wrote.
                time_ns = self._time_ns
            if is_data and length:
                yield Chunk(SOURCES[kind - 1], offsets[kind], time_ns, payload, self._sequence + 1)
                offsets[kind] += length
                crc32s[kind] = crc32
                self._sequence += 1
                self._time_ns = time_ns
            elif kind == GAP and (gap := self._gap(payload, time_ns)):
                yield gap
                offsets[gap.source] += gap.missing_bytes or 0
                self._sequence += 1
                self._time_ns = time_ns
            elif kind == TRAILER and (trailer := unpack_trailer(payload, time_ns)):
                yield trailer
                return _Ending.NOT_YET
            elif kind != START:
                return _Ending.DAMAGED
            at = frame_end
            self._file_offset = base + at
        return _Ending.PASSED

    def _gap(self, payload: bytes, time_ns: int) -> Gap | None:
        content = unpack_gap(payload)
        if content is None:
            return None
        source, missing_bytes, cause = content
        return Gap(source, self._offsets[source], missing_bytes, cause, self._sequence + 1, time_ns)

    def _may_lead_to(self, state: RecordState) -> bool:
        """Whether a record that has come here can come to `state`: nothing goes back, and without an entry between
        nothing moves."""
        reached = [source.offset for source in state.sources]
        if state.sequence == self._sequence:
            return reached == self._offsets[1:] and [source.crc32 for source in state.sources] == self._crc32s[1:]
        return state.sequence > self._sequence and all(
            its >= ours for its, ours in zip(reached, self._offsets[1:], strict=True)
        )

    def _take_over(self, state: RecordState, place: int) -> Iterator[Gap]:
        """Goes on by a block's header. What is between its state and ours is missing."""
        if state.sequence == self._sequence:
            return
        time_ns = max(state.time_ns, self._time_ns)
        # All are passed at once: between them there is no place that a position could tell.
        yield from self._gaps_before(state, place, time_ns)
        position = Position.of_block(place // BLOCK_BYTES, state)
        self._file_offset = place
        self._sequence = state.sequence
        self._time_ns = time_ns
        self._offsets[1:] = position.reached
        self._crc32s[1:] = position.crc32s

    def _gaps_before(self, state: RecordState, place: int, time_ns: int) -> list[Gap]:
        gaps = []
        cause = Cause.SIZE_LIMIT if self._ends_in_punched_block(state, place) else Cause.STORE
        for source, its in zip(SOURCES, state.sources, strict=True):
            ours = self._offsets[source]
            if its.offset > ours:
                gaps.append(Gap(source, ours, its.offset - ours, cause, state.sequence, time_ns))
            elif its.gap_sequence > self._sequence:
                # A gap of unknown size is among what is lost. It keeps its sequence, by which a reader knows whether it
                # had it.
                gaps.append(Gap(source, ours, None, cause, its.gap_sequence, time_ns))
        # By its sequence a reader knows that it had a gap of unknown size: so that comes before the others of the same
        # sequence.
        return sorted(gaps, key=lambda gap: (gap.sequence, gap.missing_bytes is not None))

    def _ends_in_punched_block(self, state: RecordState, place: int) -> bool:
        """Whether what is missing before `place` was taken away on purpose: such blocks read as zeros."""
        block = place // BLOCK_BYTES - 1
        punched = 0 < state.punched_from <= block
        return punched and os.pread(self._fd, BLOCK_HEADER_BYTES, block * BLOCK_BYTES) == bytes(BLOCK_HEADER_BYTES)

    def _beyond_damage(self, raw: bytes, base: int, place: int) -> int | None:
        """Return where to continue after damage in the block of `place`; None if no good block follows yet."""
        begin, end = max(base, place - place % BLOCK_BYTES), _block_end(place)
        # A read beside a writer that cuts off a torn end and writes anew may mix both. Only what stays is damage.
        if os.pread(self._fd, end - begin, begin) != raw[begin - base : end - base]:
            return self._file_offset
        block = next_block(self._fd, end // BLOCK_BYTES)
        return None if block is None else block[0] * BLOCK_BYTES


def next_block(fd: int, number: int, before: int | None = None) -> tuple[int, RecordState] | None:
    """Return the first block with a good header from `number` on, but before `before`, and its state."""
    while before is None or number < before:
        raw = os.pread(fd, BLOCK_HEADER_BYTES, number * BLOCK_BYTES)
        if len(raw) < BLOCK_HEADER_BYTES:
            return None
        state = unpack_block_header(raw, number)
        if state is not None:
            return number, state
        number = max(number + 1, _data_from(fd, number * BLOCK_BYTES) // BLOCK_BYTES)
    return None


def last_block_that(fd: int, before: int, true: Callable[[int, RecordState], bool]) -> tuple[int, RecordState] | None:
    """Return the last block before `before` that has a good header and satisfies the predicate. The predicate is true
    up to some block, and false after it."""
    found = None
    low, high = 0, before
    while low < high:
        middle = (low + high) // 2
        block = next_block(fd, middle, high)
        if block and true(*block):
            found, low = block, block[0] + 1
        else:
            high = middle
    return found


def last_block(fd: int) -> tuple[int, RecordState] | None:
    """Return the last block with a good header, and its state."""
    for number in reversed(range(block_count(fd))):
        state = unpack_block_header(os.pread(fd, BLOCK_HEADER_BYTES, number * BLOCK_BYTES), number)
        if state is not None:
            return number, state
    return None


def punched_bytes(fd: int, punched_from: int) -> tuple[int, int, int]:
    """Return the bytes of each source in the blocks that were punched out from block `punched_from` on; 0: none."""
    beyond = next_block(fd, punched_from) if punched_from else None
    if beyond is None or beyond[0] == punched_from:
        return 0, 0, 0
    before = next_block(fd, punched_from - 1, punched_from)
    if before is None:
        return 0, 0, 0  # It is damaged: what is missing there is not told from what was punched out.
    # What a gap stood for was missing before.
    missing = [its.missing_bytes for its in before[1].sources]
    scan = Scan(fd, Position.of_block(*before))
    for entry in scan.entries(BLOCK_BYTES):
        if isinstance(entry, Gap):
            missing[entry.source - 1] += entry.missing_bytes or 0
    stdout, stderr, system = (
        its.offset - its.missing_bytes - (reached - gone)
        for its, reached, gone in zip(beyond[1].sources, scan.position.reached, missing, strict=True)
    )
    return stdout, stderr, system


def block_count(fd: int) -> int:
    """Return the number of blocks, an incomplete last one included."""
    return -(-os.fstat(fd).st_size // BLOCK_BYTES)


def _block_end(place: int) -> int:
    return place - place % BLOCK_BYTES + BLOCK_BYTES


def _data_from(fd: int, place: int) -> int:
    """The first place from `place` on that is in no hole: what was punched out may be long, and is passed in one
    step."""
    try:
        return os.lseek(fd, place, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(fd).st_size
