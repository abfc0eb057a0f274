"""What a record must hold, kept beside it while it is written; for the tests of `record`."""

import ctypes
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st

from fastlane_grpc.model import Cause, LogTotals, Source
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, RecordWriter, Segment, Trailer
from fastlane_grpc.record.format import BLOCK_BYTES

Entry = Chunk | Gap


@contextmanager
def scratch() -> Iterator[Path]:
    """A path for a record, for tests that run many times."""
    with TemporaryDirectory() as directory:
        yield Path(directory) / "log"


def text(seed: int, size: int) -> bytes:
    """Bytes of every value, with line ends among them; the same for the same seed."""
    return random.Random(seed).randbytes(size).replace(b"\x00", b"\n")


@dataclass(frozen=True)
class Write:
    """One call of `write`. A negative size: so much that this many bytes, less one, are left of the block
    afterwards."""

    pieces: tuple[tuple[Source, int], ...]
    after_ns: int


@dataclass(frozen=True)
class Lose:
    """One call of `gap`."""

    source: Source
    missing_bytes: int | None
    after_ns: int


sources = st.sampled_from(Source)
small_sizes = st.integers(0, 300)
# Around what a block holds in one frame, and what is left of one.
edge_sizes = st.one_of(st.integers(65_340, 65_380), st.integers(65_530, 65_540), st.integers(-40, -1))
large_sizes = st.integers(0, 200_000)
sizes = st.one_of(small_sizes, small_sizes, edge_sizes, large_sizes)
times = st.integers(-5, 1_000)
writes = st.builds(Write, st.lists(st.tuples(sources, sizes), max_size=6).map(tuple), times)
losses = st.builds(Lose, sources, st.one_of(st.none(), st.integers(1, 100_000)), times)
steps = st.lists(st.one_of(writes, writes, writes, losses), max_size=25)


@dataclass
class Told:
    """A record being written, and what it was told. `content` holds zeros for what is missing."""

    path: Path
    writer: RecordWriter
    content: dict[Source, bytearray] = field(default_factory=lambda: {source: bytearray() for source in Source})
    seen: dict[Source, bytearray] = field(default_factory=lambda: {source: bytearray() for source in Source})
    lossy: set[Source] = field(default_factory=set)
    time_ns: int = 1_000_000

    @classmethod
    def new(cls, path: Path) -> "Told":
        return cls(path, RecordWriter.create(path, execution_id="e", capture="attach"))

    def tell(self, step: Write | Lose) -> None:
        time_ns = self.time_ns + step.after_ns
        self.time_ns = max(time_ns, self.time_ns)
        if isinstance(step, Lose):
            self.writer.gap(step.source, step.missing_bytes, Cause.ENGINE, time_ns)
            self.content[step.source] += bytes(step.missing_bytes or 0)
            self.lossy.add(step.source)
            return
        pieces = [(source, text(self.time_ns + i, self._size(size))) for i, (source, size) in enumerate(step.pieces)]
        self.writer.write(pieces, time_ns)
        self.keep(pieces)

    def keep(self, pieces: Iterable[tuple[Source, bytes]]) -> None:
        for source, data in pieces:
            self.content[source] += data
            self.seen[source] += data

    def totals(self) -> tuple[LogTotals, ...]:
        return tuple(
            LogTotals(
                source,
                len(self.content[source]),
                len(self.content[source]) - len(self.seen[source]),
                None if source in self.lossy else zlib.crc32(self.seen[source]),
            )
            for source in Source
            if self.content[source] or source in self.lossy
        )

    def seal(self) -> Trailer:
        return self.writer.seal(0, {}, self.time_ns)

    def _size(self, size: int) -> int:
        if size >= 0:
            return size
        room = -self.path.stat().st_size % BLOCK_BYTES
        return max(room - 16 + size + 1, 0)


@contextmanager
def reading(path: Path) -> Iterator[RecordReader]:
    reader = RecordReader(path)
    try:
        yield reader
    finally:
        reader.close()


def segments(
    reader: RecordReader, position: Position = Position.BEGIN, *, max_bytes: int = 4 * BLOCK_BYTES
) -> list[Segment]:
    """All that there is after `position`, as it is cut; the last one has the trailer or nothing."""
    found = [reader.read(position, max_bytes=max_bytes)]
    while found[-1].entries and found[-1].trailer is None:
        found.append(reader.read(found[-1].next, max_bytes=max_bytes))
    return found


def entries_of(found: Iterable[Segment]) -> list[Entry]:
    return [entry for segment in found for entry in segment.entries]


def everything(path: Path) -> list[Entry]:
    with reading(path) as reader:
        return entries_of(segments(reader))


def end(entry: Entry) -> int:
    return entry.offset + (len(entry.data) if isinstance(entry, Chunk) else entry.missing_bytes or 0)


def check_truth(
    entries: Iterable[Entry], content: Mapping[Source, bytes | bytearray], begin: Mapping[Source, int]
) -> dict[Source, int]:
    """Nothing told twice or out of order, nothing passed over, no byte that was not written; the answer is how far each
    source has come."""
    reached = dict(begin)
    sequence = time_ns = 0
    for entry in entries:
        assert entry.offset == reached[entry.source]
        assert entry.sequence >= sequence
        assert entry.time_ns >= time_ns
        reached[entry.source], sequence, time_ns = end(entry), entry.sequence, entry.time_ns
        if isinstance(entry, Chunk):
            assert entry.data == content[entry.source][entry.offset : end(entry)]
    return reached


NOTHING = dict.fromkeys(Source, 0)


def overwrite(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def zero(path: Path, place: int, size: int) -> None:
    """Zeros, as far as the file goes."""
    overwrite(path, place, bytes(min(size, path.stat().st_size - place)))


def punch(path: Path, place: int, size: int) -> None:
    """A hole; zeros where the file system has none."""
    with path.open("r+b") as file:
        if _libc.fallocate(file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_long(place), ctypes.c_long(size)) != 0:
            zero(path, place, size)


_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
