"""The record under random writes, reads, tears and damage: every byte is told once and right, or a gap says what is
missing."""

import os
import random
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, RecordSealed, RecordWriter, unread
from fastlane_grpc.record.format import (
    BLOCK_BYTES,
    GAP,
    SOURCES,
    START,
    TRAILER,
    RecordState,
    SourceState,
    pack_block_header,
    pack_frame_header,
    pack_gap,
)
from tests.record_model import (
    NOTHING,
    Entry,
    Lose,
    Told,
    Write,
    check_truth,
    end,
    entries_of,
    everything,
    overwrite,
    punch,
    reading,
    scratch,
    segments,
    steps,
    text,
    writes,
    zero,
)

settings.register_profile(
    "record", max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
record = settings.get_profile("record")

seeds = st.integers(0, 1 << 32)
ONE_OF_EACH = [
    Write(((Source.STDOUT, 5), (Source.STDERR, 70_000), (Source.SYSTEM, 1)), 1),
    Lose(Source.STDOUT, None, 1),
]


@record
@given(steps=steps, spans=st.lists(st.integers(1, 10).map(lambda blocks: blocks * BLOCK_BYTES), min_size=1, max_size=5))
def test_whatever_is_written_is_read_once_and_right_whichever_way_it_is_read(
    steps: list[Write | Lose], spans: list[int]
) -> None:
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        trailer = told.seal()
        assert trailer.totals == told.totals()
        with reading(path) as reader:
            entries: list[Entry] = []
            segment = reader.read(Position.BEGIN, max_bytes=spans[0])
            while segment.trailer is None:
                assert segment.entries
                entries += segment.entries
                segment = reader.read(segment.next, max_bytes=spans[len(entries) % len(spans)])
            entries += segment.entries
            assert segment.trailer == reader.trailer() == trailer
        assert check_truth(entries, told.content, NOTHING) == {source: len(told.content[source]) for source in Source}
        assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
        assert segment.next.offsets == {source: len(told.content[source]) for source in Source}
        assert sum(isinstance(entry, Gap) for entry in entries) == sum(isinstance(step, Lose) for step in steps)


@record
@given(steps=steps, close_after=st.sets(st.integers(0, 25)))
def test_a_record_that_was_resumed_is_the_same_as_one_that_was_not(
    steps: list[Write | Lose], close_after: set[int]
) -> None:
    with scratch() as path, scratch() as other:
        straight, resumed = Told.new(path), Told.new(other)
        for number, step in enumerate(steps):
            straight.tell(step)
            resumed.tell(step)
            if number in close_after:
                resumed.writer.close()
                resumed.writer = RecordWriter.resume(other)
                assert resumed.writer.totals() == straight.writer.totals()
                assert resumed.writer.first_byte_time_ns == straight.writer.first_byte_time_ns
        straight.seal()
        resumed.seal()
        assert without_start_time(path) == without_start_time(other)


@record
@given(
    steps=steps,
    more=st.lists(writes, min_size=1, max_size=4),
    seed=seeds,
    junk=st.sampled_from(["none", "zeros", "noise"]),
)
@example(steps=ONE_OF_EACH, more=[Write(((Source.STDOUT, 70_000),), 1)], seed=1, junk="none")
def test_a_torn_end_is_waited_for_then_cut_off_and_gone_on_from(
    steps: list[Write | Lose], more: list[Write], seed: int, junk: str
) -> None:
    """Cut anywhere: what is whole is read, the rest is not there yet; who resumes goes on from what is whole, and so
    does the reader."""
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        whole = everything(path)
        told.writer.close()
        cut = random.Random(seed).randint(0, path.stat().st_size)
        os.truncate(path, cut)
        if junk != "none":
            with path.open("ab") as file:
                file.write(bytes(seed % 5_000) if junk == "zeros" else text(seed, seed % 5_000))
        size = path.stat().st_size
        with reading(path) as reader:
            found = segments(reader)
            before = entries_of(found)
            assert before == whole[: len(before)]
            position = found[-1].next
            reached = position.offsets
            told.writer = RecordWriter.resume(path)
            assert path.stat().st_size <= size
            assert sum(total.bytes for total in told.writer.totals()) == sum(reached.values())
            for source in Source:
                del told.content[source][reached[source] :]
            for write in more:
                told.tell(write)
            after = entries_of(segments(reader, position))
            assert [entry.sequence for entry in before + after] == list(range(1, len(before + after) + 1))
            check_truth(before + after, told.content, NOTHING)
            told.seal()
            assert entries_of(segments(reader)) == before + after
            assert segments(reader)[-1].trailer == reader.trailer() is not None


@record
@given(
    steps=steps, seed=seeds, way=st.sampled_from(["flip", "zero", "punch", "noise", "page"]), places=st.integers(1, 3)
)
@example(steps=[Write(((Source.STDOUT, 300_000),), 1)], seed=1, way="punch", places=1)
@example(steps=[Write(((Source.STDOUT, 65_340), (Source.STDERR, 131_060)), 0)], seed=31181, way="page", places=3)
def test_damage_is_a_gap_and_nothing_more(steps: list[Write | Lose], seed: int, way: str, places: int) -> None:
    """No byte that is told is wrong, what is not told is in the gaps, and every block that is well is read."""
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        trailer = told.seal()
        by_block = entries_by_block(path)
        choose = random.Random(seed)
        last = last_block(path)
        damaged = {damage(path, choose, way) for _ in range(places)}
        with reading(path) as reader:
            found = segments(reader)
            entries = entries_of(found)
            reached = check_truth(entries, told.content, NOTHING)
            chunks = {entry for entry in entries if isinstance(entry, Chunk)}
            for number, those in by_block.items():
                if number not in damaged:
                    assert chunks.issuperset(entry for entry in those if isinstance(entry, Chunk))
            if last not in damaged:
                assert found[-1].trailer == reader.trailer() == trailer
                assert reached == {source: len(told.content[source]) for source in Source}
            else:
                check_cuts_resume_right(path, told.content)


@record
@given(steps=steps, seed=seeds, damaging=st.booleans())
@example(steps=ONE_OF_EACH, seed=1, damaging=False)
def test_any_place_is_found_and_read_on_from(steps: list[Write | Lose], seed: int, damaging: bool) -> None:
    """For any offsets, also within frames, gaps and damage: what follows joins without a seam."""
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        told.writer.write([(Source.STDOUT, bytes(200_000))], told.time_ns)
        told.content[Source.STDOUT] += bytes(200_000)
        told.seal()
        choose = random.Random(seed)
        if damaging:
            zero(path, choose.randrange(last_block(path)) * BLOCK_BYTES, BLOCK_BYTES)
        whole = everything(path)
        with reading(path) as reader:
            for _ in range(20):
                offsets = {source: choose.randint(0, len(told.content[source])) for source in Source}
                if choose.random() < 0.5:
                    entry = choose.choice(whole)
                    offsets[entry.source] = choose.choice([entry.offset, end(entry)])
                sequence = choose.randint(0, len(whole) + 1)
                position = reader.locate(offsets, sequence)
                assert all(position.offsets[source] <= offsets[source] for source in Source)
                if not damaging:
                    assert position.sequence == last_within(whole, offsets, sequence)
                rest = unread(entries_of(segments(reader, position)), offsets, sequence)
                assert check_truth(rest, told.content, offsets) == {
                    source: len(told.content[source]) for source in Source
                }


@record
@given(steps=steps, seed=seeds, damaging=st.booleans())
@example(steps=[Write(((Source.STDOUT, -33),), 0), Lose(Source.STDERR, None, 0)], seed=0, damaging=True)
def test_who_goes_on_after_an_entry_gets_the_next_ones_and_no_gap_twice(
    steps: list[Write | Lose], seed: int, damaging: bool
) -> None:
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        told.seal()
        if damaging and last_block(path):
            zero(path, random.Random(seed).randrange(last_block(path)) * BLOCK_BYTES, BLOCK_BYTES)
        whole = everything(path)
        offsets, sequence = dict(NOTHING), 0
        with reading(path) as reader:
            for number, entry in enumerate(whole):
                rest = entries_of(segments(reader, reader.locate(offsets, sequence)))
                assert list(unread(rest, offsets, sequence)) == whole[number:]
                offsets[entry.source], sequence = end(entry), entry.sequence


@record
@given(steps=steps, seed=seeds)
def test_readers_beside_the_writer_and_late_ones_cut_alike(steps: list[Write | Lose], seed: int) -> None:
    """A live reader may get shorter segments, but where a late one is cut, it is cut too."""
    with scratch() as path:
        told = Told.new(path)
        choose = random.Random(seed)
        live: list[Entry] = []
        live_cuts, position = set(), Position.BEGIN
        with reading(path) as reader:
            for step in steps:
                told.tell(step)
                for _ in range(choose.randint(0, 3)):
                    segment = reader.read(position)
                    position = segment.next
                    live += segment.entries
                    live_cuts.add(position.sequence)
            told.seal()
            for segment in segments(reader, position):
                live += segment.entries
                live_cuts.add(segment.next.sequence)
            late = segments(reader)
            assert live == entries_of(late)
            assert live_cuts.issuperset(segment.next.sequence for segment in late)


@record
@given(steps=steps, times=st.lists(st.integers(1_000_000, 1_010_000), max_size=5))
def test_a_record_can_be_read_up_to_any_time(steps: list[Write | Lose], times: list[int]) -> None:
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        told.seal()
        whole = everything(path)
        with reading(path) as reader:
            entries: list[Entry] = []
            position = Position.BEGIN
            for before_ns in sorted(times):
                while (segment := reader.read(position, before_ns=before_ns)).entries:
                    entries += segment.entries
                    position = segment.next
                assert segment.trailer is None or segment.trailer.time_ns < before_ns
                assert entries == [entry for entry in whole if entry.time_ns < before_ns]


@record
@example(blocks=["frames"], tail=0, seed=17450)
@given(
    blocks=st.lists(st.sampled_from(["noise", "zeros", "header", "frames"]), max_size=6),
    tail=st.integers(0, BLOCK_BYTES),
    seed=seeds,
)
def test_a_reader_survives_any_bytes(blocks: list[str], tail: int, seed: int) -> None:
    with scratch() as path:
        choose = random.Random(seed)
        raw = b"".join(any_block(choose, number, kind) for number, kind in enumerate([*blocks, "frames"]))
        path.write_bytes(raw[: max(len(raw) - tail, 0)])
        offsets = {source: choose.randint(0, 100_000) for source in Source}
        with reading(path) as reader:
            found = segments(reader)
            assert len(found) <= len(raw) // BLOCK_BYTES + 2
            check_order(entries_of(found))
            assert sum(len(entry.data) for entry in entries_of(found) if isinstance(entry, Chunk)) <= len(raw)
            position = reader.locate(offsets, choose.randint(0, 100))
            assert all(position.offsets[source] <= offsets[source] for source in Source)
            segments(reader, position)
            reader.trailer()
        with suppress(RecordSealed):
            writer = RecordWriter.resume(path)
            assert path.stat().st_size <= len(raw)
            writer.write([(Source.STDOUT, b"a")], 1)


@record
@given(
    before=steps,
    pieces=st.lists(writes, min_size=1, max_size=4),
    room=st.integers(0, 150_000),
    repeat=st.integers(1, 3),
)
def test_a_write_without_room_leaves_whole_frames_and_may_be_made_again(
    before: list[Write | Lose], pieces: list[Write], room: int, repeat: int
) -> None:
    """Each try finds a little more room. A reader that reads between and within the tries sees every byte once."""
    with scratch() as path:
        told = Told.new(path)
        for step in before:
            told.tell(step)
        whole = [
            (source, text(number, abs(size)))
            for number, (source, size) in enumerate(piece for write in pieces for piece in write.pieces)
        ]
        begin = told.path.stat().st_size
        entries: list[Entry] = []
        with reading(path) as reader:
            for attempt in range(1, repeat + 1):
                with file_size_limit(begin + room * attempt // repeat), looking_at_each_part(reader, entries):
                    try:
                        told.writer.write(whole, told.time_ns + attempt)
                    except OSError:
                        size = path.stat().st_size
                        assert told.writer.taken < sum(len(data) for _, data in whole)
                    else:
                        break
                position = look(reader, entries)
                assert position.file_offset == size or position == Position.BEGIN
            else:
                told.writer.write(whole, told.time_ns + 10)
            told.keep(whole)
            told.tell(Write(((Source.STDERR, 10),), 20))
            trailer = told.seal()
            look(reader, entries)
            assert entries == entries_of(segments(reader))
        assert trailer.totals == told.totals()
        assert check_truth(entries, told.content, NOTHING) == {source: len(told.content[source]) for source in Source}


@record
@given(
    sizes=st.lists(st.tuples(st.sampled_from(Source), st.integers(1, 70_000)), min_size=1, max_size=5),
    room=st.integers(0, 200_000),
)
def test_who_gives_up_on_a_write_is_told_how_much_of_it_is_there(sizes: list[tuple[Source, int]], room: int) -> None:
    with scratch() as path:
        told = Told.new(path)
        pieces = [(source, text(number, size)) for number, (source, size) in enumerate(sizes)]
        with file_size_limit(path.stat().st_size + room):
            try:
                told.writer.write(pieces, 1)
            except OSError:
                taken = told.writer.taken
            else:
                return
        lost = dict(NOTHING)
        for source, data in pieces:
            told.content[source] += data
            lost[source] += max(len(data) - taken, 0)
            taken = max(taken - len(data), 0)
        for source, missing in lost.items():
            if missing:
                told.writer.gap(source, missing, Cause.STORE, 2)
        told.writer.write([(Source.STDOUT, b"on")], 3)
        told.content[Source.STDOUT] += b"on"
        assert check_truth(everything(path), told.content, NOTHING) == {
            source: len(told.content[source]) for source in Source
        }


@pytest.mark.parametrize("room", [0, 1, 167, 168, 190])
def test_without_room_for_its_begin_a_record_is_not_made(tmp_path: Path, room: int) -> None:
    with file_size_limit(room), pytest.raises(OSError, match="too large"):
        RecordWriter.create(tmp_path / "log", execution_id="e", capture="attach")
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_its_trailer_a_record_can_be_sealed_later(tmp_path: Path) -> None:
    told = Told.new(tmp_path / "log")
    told.tell(Write(((Source.STDOUT, -20),), 1))
    with file_size_limit(BLOCK_BYTES + 200), pytest.raises(OSError, match="too large"):
        told.seal()
    assert len(everything(told.path)) == 1
    trailer = told.seal()
    with reading(told.path) as reader:
        assert segments(reader)[-1].trailer == trailer


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Beyond it a write fails, to the byte: as a full disk, but cheaper. The signal that goes with it is ignored by
    Python."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def looking_at_each_part(reader: RecordReader, entries: list[Entry]) -> Iterator[None]:
    """The reader comes between the calls by which one write goes to the file."""
    pwritev = os.pwritev

    def write_and_look(fd: int, parts: Sequence[bytes], place: int) -> int:
        written = pwritev(fd, parts, place)
        look(reader, entries)
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", write_and_look)
        yield


def look(reader: RecordReader, entries: list[Entry]) -> Position:
    """Adds what is new to `entries`, by where these end."""
    offsets = dict(NOTHING)
    for entry in entries:
        offsets[entry.source] = end(entry)
    sequence = entries[-1].sequence if entries else 0
    found = segments(reader, reader.locate(offsets, sequence))
    assert found[0].entries == unread(found[0].entries, offsets, sequence)
    entries += entries_of(found)
    return found[-1].next


def without_start_time(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[:168] + raw[176:180] + raw[184:]


def entries_by_block(path: Path) -> dict[int, tuple[Entry, ...]]:
    with reading(path) as reader:
        found = segments(reader, max_bytes=BLOCK_BYTES)
    return {(segment.next.file_offset - 1) // BLOCK_BYTES: segment.entries for segment in found if segment.entries}


def damage(path: Path, choose: random.Random, way: str) -> int:
    """Damages one place, and says in which block."""
    size = path.stat().st_size
    place = choose.randrange(size)
    number = place // BLOCK_BYTES
    if way == "flip":
        old = path.read_bytes()[place]
        overwrite(path, place, bytes([old ^ choose.randint(1, 255)]))
    elif way == "page":
        zero(path, place - place % 4096, 4096)
    elif way == "noise":
        noise = choose.randbytes(choose.randint(1, 5_000))
        overwrite(path, place, noise[: min(size, (number + 1) * BLOCK_BYTES) - place])
    elif way == "zero":
        zero(path, number * BLOCK_BYTES, BLOCK_BYTES)
    else:
        punch(path, number * BLOCK_BYTES, BLOCK_BYTES)
    return number


def last_block(path: Path) -> int:
    return (path.stat().st_size - 1) // BLOCK_BYTES


def check_cuts_resume_right(path: Path, content: Mapping[Source, bytearray]) -> None:
    """Where the end is damaged, it is cut off; what is told then is still true."""
    try:
        writer = RecordWriter.resume(path)
    except RecordSealed:
        return
    before = everything(path)
    reached = check_truth(before, content, NOTHING)
    writer.write([(Source.STDERR, b"on")], 1)
    assert everything(path)[: len(before)] == before
    assert everything(path)[-1].offset == reached[Source.STDERR]


def last_within(entries: list[Entry], offsets: Mapping[Source, int], sequence: int) -> int:
    """The sequence of the last entry that a reader at `offsets` has had, and all before it."""
    found = 0
    for entry in entries:
        place = offsets[entry.source]
        if end(entry) > place:
            break
        if (
            isinstance(entry, Gap)
            and entry.missing_bytes is None
            and entry.offset == place
            and entry.sequence > sequence
        ):
            break
        found = entry.sequence
    return found


def any_block(choose: random.Random, number: int, kind: str) -> bytes:
    """A block of noise, or one whose header, and whose frames, are well made but make no sense together."""
    if kind in ("noise", "zeros"):
        return choose.randbytes(BLOCK_BYTES) if kind == "noise" else bytes(BLOCK_BYTES)
    state = any_state(choose, number)
    crc32s = [0, *(source.crc32 for source in state.sources)]
    raw = pack_block_header(number, state)
    while kind == "frames" and len(raw) < BLOCK_BYTES - 2_000 and choose.random() < 0.98:
        gap = pack_gap(choose.choice(SOURCES), 7, Cause.ENGINE)
        payload = choose.choice(
            [choose.randbytes(choose.randint(1, 900)), b"", b"{}", b'{"totals":[{}]}', b"[" * 1_900, gap]
        )
        frame_kind = choose.choice([1, 2, 3, GAP, GAP, choose.choice([0, 4, START, TRAILER, 255])])
        crc = crc32(payload, crc32s[frame_kind] if frame_kind in SOURCES else 0)
        if frame_kind in SOURCES:
            crc32s[frame_kind] = crc
        length = len(payload) if choose.random() < 0.95 else choose.randrange(65_536)
        raw += pack_frame_header(frame_kind, length, choose.getrandbits(64), crc) + payload
    left = BLOCK_BYTES - len(raw)
    return raw + choose.choice([bytes(left), choose.randbytes(left)])


def any_state(choose: random.Random, number: int) -> RecordState:
    stdout, stderr, system = (
        SourceState(
            choose.randrange(number * 1_000 + 1), 0, 0, choose.randrange(number * 3 + 1), choose.getrandbits(32)
        )
        for _ in SOURCES
    )
    return RecordState(
        choose.randrange(number * 3 + 1),
        choose.getrandbits(63),
        0,
        (stdout, stderr, system),
        choose.choice([0, 0, 1, number, choose.getrandbits(32)]),
    )


def check_order(entries: list[Entry]) -> None:
    """Whatever the file says: offsets, sequences and times only go on, and no chunk is empty."""
    reached, sequence, time_ns = dict(NOTHING), 0, 0
    for entry in entries:
        assert entry.offset == reached[entry.source]
        assert entry.sequence >= sequence
        assert entry.time_ns >= time_ns
        assert isinstance(entry, Gap) or entry.data
        reached[entry.source], sequence, time_ns = end(entry), entry.sequence, entry.time_ns
