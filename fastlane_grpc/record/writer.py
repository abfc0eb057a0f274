"""Writing a record: one writer, one thread at a time. What was written never changes. A write that fails leaves whole
frames."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import FileIO
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Self
from zlib import crc32

from fastlane_grpc.model import Cause, LogTotals, Source
from fastlane_grpc.record.format import (
    BLOCK_BYTES,
    BLOCK_HEADER_BYTES,
    FRAME_HEADER_BYTES,
    GAP,
    SOURCES,
    START,
    TRAILER,
    Chunk,
    RecordState,
    Sources,
    SourceState,
    Trailer,
    pack_block_header,
    pack_frame_header,
    pack_gap,
    pack_start,
    pack_trailer,
    totals_of,
    unpack_trailer,
)
from fastlane_grpc.record.limit import Limit
from fastlane_grpc.record.open_file import open_record
from fastlane_grpc.record.scan import Position, Scan, last_block, punched_bytes

# The kernel's IOV_MAX: it takes no more parts in one call.
_MAX_PARTS = os.sysconf("SC_IOV_MAX")


class RecordSealed(Exception):
    """The record has its trailer: nothing can be added."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"the record {path} is sealed: nothing can be added to it")


class RecordWriter:
    """One record, open for writing; made by `create` or `resume`.

    With `max_bytes` its head and its newest part are kept, where the file system has no holes its head alone: the rest
    is counted."""

    def __init__(self, path: Path, file: FileIO, size: int, state: RecordState, max_bytes: int | None) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._limit = None if max_bytes is None else Limit(file.fileno(), max_bytes, state.punched_from)
        self._state = state._replace(punched_from=self._limit.head) if self._limit else state
        # Another writer's doing, if this one has no limit.
        self._punched_before = punched_bytes(file.fileno(), state.punched_from)
        # All that came, once it is not stored any more: the limit is reached, and nothing can be punched out.
        self._seen: RecordState | None = None
        self._taken = 0
        self._torn = False
        self._trailer: Trailer | None = None

    @classmethod
    def create(cls, path: Path, *, execution_id: str, capture: str, max_bytes: int | None = None) -> Self:
        """Make the file, which must not exist, and write START. Its name survives a power cut; its content does from
        the next `sync` on."""
        payload = pack_start(execution_id, capture)
        file = FileIO(path, "x+", opener=_open_private)
        try:
            writer = cls(path, file, 0, RecordState(), max_bytes)
            frames = writer._frames()
            frames.add_other(START, payload, time.time_ns(), frames.state)
            writer._append(frames)
            _sync_directory(path.parent)
        except BaseException:
            file.close()
            path.unlink()
            raise
        return writer

    @classmethod
    def resume(cls, path: Path, *, max_bytes: int | None = None) -> Self:
        """Resume after the last whole frame; a torn frame is cut off. RecordSealed if there is a trailer."""
        file = FileIO(path, "r+", opener=_open_private)
        try:
            size, state = _end_of(path, file.fileno())
            os.ftruncate(file.fileno(), size)
            return cls(path, file, size, state, max_bytes)
        except BaseException:
            file.close()
            raise

    def write(self, pieces: Iterable[tuple[Source, bytes | memoryview]], time_ns: int) -> None:
        """Append the pieces. Neighbours of one source become one frame, as far as the block goes.
        Readers see them at once.

        After an OSError (no room, quota, I/O), the file ends with a whole frame. The same pieces may be written again,
        with more behind them: bytes that are in the file already are not written twice. To give up on the pieces
        instead, call `gap`, `seal` or `close`; `taken` is the number of their bytes in the file."""
        frames = self._frames()
        runs = _runs(pieces, self._taken)
        if self._seen is None:
            for source, data in runs:
                frames.add_data(source, data, time_ns)
            before = self._state
            if not self._append_within_limit(frames):
                self._seen, runs = self._state, _runs(runs, _bytes_between(before, self._state))
        self._taken = 0
        if self._seen is not None:
            self._seen = _after_runs(self._seen, runs, time_ns)

    def gap(self, source: Source, missing_bytes: int | None, cause: Cause, time_ns: int) -> None:
        """Append a gap: bytes of `source` are missing here. None: their number is unknown."""
        if missing_bytes is not None and missing_bytes <= 0:
            raise ValueError(f"a gap of {missing_bytes} bytes is none")
        self._taken = 0
        self._write_pending_gaps(time_ns)
        self._append_gap(source, missing_bytes, cause, time_ns)
        if self._seen is not None:
            self._seen = _after_gap(self._seen, source, missing_bytes, time_ns)

    def seal(self, exit_code: int | None, facts: Mapping[str, object], time_ns: int) -> Trailer:
        """Write the trailer, sync and close. After an OSError it may be called again."""
        self._taken = 0
        if self._trailer is None:
            self._write_pending_gaps(time_ns)
            self._trailer = self._append_trailer(exit_code, facts, max(time_ns, self._state.time_ns))
        self.sync()
        self.close()
        return self._trailer

    @property
    def taken(self) -> int:
        """The number of bytes, from the first piece on, that are in the file after a write raised OSError."""
        return self._taken

    @property
    def first_byte_time_ns(self) -> int | None:
        """The time of the first data; None before it."""
        return self._state.first_byte_time_ns or None

    def totals(self) -> tuple[LogTotals, ...]:
        """Return one total for each source that wrote or lost something."""
        return totals_of(self._in_all())

    def sync(self) -> None:
        """Sync what was written to the disk."""
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed and self._trailer is None:
            with suppress(OSError):
                self._write_pending_gaps(self._state.time_ns)
        self._file.close()

    def _frames(self) -> "_Frames":
        if self._trailer is not None:
            raise RecordSealed(self._path)
        return _Frames(self._size, self._state)

    def _write_pending_gaps(self, time_ns: int) -> None:
        """Append a gap for the bytes of each source that were counted and not stored."""
        seen = self._seen.sources if self._seen is not None else ()
        for source, its in zip(SOURCES, seen, strict=False):
            if (missing_bytes := its.offset - self._state.sources[source - 1].offset) > 0:
                self._append_gap(source, missing_bytes, Cause.SIZE_LIMIT, time_ns)

    def _append_gap(self, source: Source, missing_bytes: int | None, cause: Cause, time_ns: int) -> None:
        frames = self._frames()
        state = _after_gap(self._state, source, missing_bytes, time_ns)
        frames.add_other(GAP, pack_gap(source, missing_bytes, cause), state.time_ns, state)
        self._append(frames)

    def _append_trailer(self, exit_code: int | None, facts: Mapping[str, object], time_ns: int) -> Trailer:
        payload = pack_trailer(self._in_all(), exit_code, facts)
        trailer = unpack_trailer(payload, time_ns)
        if trailer is None:
            raise ValueError(f"exit code {exit_code!r} does not fit a trailer")
        frames = self._frames()
        frames.add_other(TRAILER, payload, time_ns, self._state)
        self._append(frames)
        return trailer

    def _in_all(self) -> RecordState:
        """Return the state of all that was received, stored or not. What the size limit punched out counts as missing;
        only the totals say so."""
        punched = self._limit.punched if self._limit else self._punched_before
        seen = self._state if self._seen is None else self._seen
        stdout, stderr, system = (
            its._replace(missing_bytes=its.offset - stored.offset + stored.missing_bytes + gone)
            for its, stored, gone in zip(seen.sources, self._state.sources, punched, strict=True)
        )
        return seen._replace(sources=(stdout, stderr, system))

    def _append_within_limit(self, frames: "_Frames") -> bool:
        """Append the frames. False: only as many as the limit allows were appended."""
        if self._limit is None:
            self._append(frames)
            return True
        whole = self._limit.evict_blocks(_last_block(frames.size))
        if not whole:
            frames.cut(self._limit.end)
        self._append(frames)
        # Of frames for more blocks than are kept, the first are too old as soon as they are there. All are there now:
        # what fails is not the write, and is tried again before the next one.
        with suppress(OSError):
            self._limit.evict_blocks(_last_block(self._size))
        return whole

    def _append(self, frames: "_Frames") -> None:
        if self._torn:
            self._cut_off_torn_end()
        reached = self._size
        try:
            while reached < frames.size:
                reached += os.pwritev(self._file.fileno(), frames.parts_from(reached), reached)
        except OSError:
            self._keep_whole_frames(frames, reached)
            raise
        self._size, self._state = frames.ends[-1]

    def _keep_whole_frames(self, frames: "_Frames", reached: int) -> None:
        # Readers may have passed them already, so what is whole stays, whatever the caller does next.
        before = self._state
        self._size, self._state = next(end for end in reversed(frames.ends) if end[0] <= reached)
        self._taken += _bytes_between(before, self._state)
        self._torn = True
        with suppress(OSError):
            self._cut_off_torn_end()

    def _cut_off_torn_end(self) -> None:
        os.ftruncate(self._file.fileno(), self._size)
        self._torn = False


class _Frames:
    """Frames to be appended. `ends`: the size of the file and the state of the record after each of them."""

    def __init__(self, size: int, state: RecordState) -> None:
        self.ends = [(size, state)]
        self.state = state
        self.size = size
        self._begin = size
        self._parts: list[bytes | memoryview] = []

    def add_data(self, source: Source, data: bytes, time_ns: int) -> None:
        begin = 0
        while begin < len(data):
            self._begin_frame(payload_bytes=1)
            end = min(begin + self._room() - FRAME_HEADER_BYTES, len(data))
            payload = memoryview(data)[begin:end]
            state = _after_data(self.state, source, payload, data.count(b"\n", begin, end), time_ns)
            self._add(source, payload, state.time_ns, state.sources[source - 1].crc32, state)
            begin = end

    def add_other(self, kind: int, payload: bytes, time_ns: int, state: RecordState) -> None:
        self._begin_frame(payload_bytes=len(payload))
        self._add(kind, payload, time_ns, crc32(payload), state)

    def cut(self, size: int) -> None:
        """Leave out the frames that end beyond that size of the file. The file itself may be larger."""
        self.ends = [end for end in self.ends if end[0] <= max(size, self._begin)]
        self.size, self.state = self.ends[-1]
        self._parts = [memoryview(b"".join(self._parts))[: self.size - self._begin]]

    def parts_from(self, place: int) -> list[bytes | memoryview]:
        """Return the content of the file from offset `place` on, in no more parts than one system call takes."""
        if place == self._begin and len(self._parts) <= _MAX_PARTS:
            return self._parts
        return [memoryview(b"".join(self._parts))[place - self._begin :]]

    def _begin_frame(self, *, payload_bytes: int) -> None:
        room = self._room()
        if room < FRAME_HEADER_BYTES + payload_bytes:
            number = (self.size + room) // BLOCK_BYTES
            self._parts += (bytes(room), pack_block_header(number, self.state))
            self.size += room + BLOCK_HEADER_BYTES

    def _room(self) -> int:
        """Return the bytes left in the block; 0 at the start of the next one."""
        return -self.size % BLOCK_BYTES

    def _add(
        self, kind: int, payload: bytes | memoryview, time_ns: int, payload_crc32: int, state: RecordState
    ) -> None:
        self._parts += (pack_frame_header(kind, len(payload), time_ns, payload_crc32), payload)
        self.size += FRAME_HEADER_BYTES + len(payload)
        self.state = state
        self.ends.append((self.size, state))


def _runs(pieces: Iterable[tuple[Source, bytes | memoryview]], skip: int) -> list[tuple[Source, bytes]]:
    """Return the pieces without their first `skip` bytes. Neighbours of one source become one."""
    runs = []
    for source, run in groupby(pieces, key=itemgetter(0)):
        data = b"".join(piece for _, piece in run)
        runs.append((source, data[skip:]))
        skip = max(skip - len(data), 0)
    return runs


def _bytes_between(before: RecordState, after: RecordState) -> int:
    return sum(now.offset - then.offset for now, then in zip(after.sources, before.sources, strict=True))


def _last_block(size: int) -> int:
    return (size - 1) // BLOCK_BYTES


def _after_data(
    state: RecordState, source: Source, data: bytes | memoryview, newlines: int, time_ns: int
) -> RecordState:
    sequence, last_time_ns, first_byte_time_ns, sources, punched_from = state
    offset, newlines_before, missing_bytes, _, crc, lossy = sources[source - 1]
    time_ns = max(time_ns, last_time_ns)
    changed = SourceState(offset + len(data), newlines_before + newlines, missing_bytes, 0, crc32(data, crc), lossy)
    return RecordState(
        sequence + 1, time_ns, first_byte_time_ns or time_ns, _with(sources, source, changed), punched_from
    )


def _after_runs(state: RecordState, runs: Iterable[tuple[Source, bytes]], time_ns: int) -> RecordState:
    for source, data in runs:
        state = _after_data(state, source, data, data.count(b"\n"), time_ns)
    return state


def _after_gap(state: RecordState, source: Source, missing_bytes: int | None, time_ns: int) -> RecordState:
    its = state.sources[source - 1]
    sequence = state.sequence + 1
    changed = its._replace(
        offset=its.offset + (missing_bytes or 0),
        missing_bytes=its.missing_bytes + (missing_bytes or 0),
        gap_sequence=sequence if missing_bytes is None else 0,
        lossy=True,
    )
    return state._replace(
        sequence=sequence, time_ns=max(time_ns, state.time_ns), sources=_with(state.sources, source, changed)
    )


def _with(sources: Sources, source: Source, changed: SourceState) -> Sources:
    stdout, stderr, system = sources
    if source == Source.STDOUT:
        return changed, stderr, system
    if source == Source.STDERR:
        return stdout, changed, system
    return stdout, stderr, changed


def _end_of(path: Path, fd: int) -> tuple[int, RecordState]:
    """Return the end of the last whole frame and the state there, from the last good block alone, however long the
    record is."""
    block = last_block(fd)
    if block is None:
        return 0, RecordState()
    state = block[1]
    scan = Scan(fd, Position.of_block(*block))
    for entry in scan.entries(BLOCK_BYTES):
        if isinstance(entry, Trailer):
            raise RecordSealed(path)
        if isinstance(entry, Chunk):
            state = _after_data(state, entry.source, entry.data, entry.data.count(b"\n"), entry.time_ns)
        else:
            state = _after_gap(state, entry.source, entry.missing_bytes, entry.time_ns)
    # The header stays, though no frame may follow: after damage it is all that says how far the sources had come.
    return max(scan.position.file_offset, block[0] * BLOCK_BYTES + BLOCK_HEADER_BYTES), state


def _open_private(path: str, flags: int) -> int:
    # What a job prints may be secret: nobody but the server's user reads it.
    return open_record(Path(path), flags, 0o600)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
