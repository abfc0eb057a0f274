"""A record that the server writes, beyond its size limit: the layout of the recorder's, and as true as without a
limit."""

import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.model import Cause, LogTotals, Source
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, RecordWriter
from fastlane_grpc.record.format import BLOCK_BYTES, BLOCK_HEADER_BYTES, unpack_block_header
from tests.record_model import (
    NOTHING,
    Lose,
    Told,
    Write,
    check_truth,
    everything,
    losses,
    reading,
    scratch,
    sources,
    text,
)
from tests.recorder_program import disk, walk

OUT, ERR = Source.STDOUT, Source.STDERR
# As the recorder's tests have them; one is more than all that is kept of the newest.
PIECES = [
    (OUT if number % 2 else ERR, size) for number, size in enumerate([100_000, 30, 65_352, 20_000, 300_000, 1_000] * 9)
]

large = st.builds(
    Write, st.lists(st.tuples(sources, st.integers(0, 90_000)), max_size=4).map(tuple), st.integers(0, 1_000)
)
limited_steps = st.lists(st.one_of(large, large, large, losses), min_size=5, max_size=30)


def new(path: Path, limit: int) -> Told:
    return Told(path, RecordWriter.create(path, execution_id="e", capture="attach", max_bytes=limit))


def good_blocks(path: Path) -> list[int]:
    data = path.read_bytes()
    return [
        number
        for number, place in enumerate(range(0, len(data), BLOCK_BYTES))
        if unpack_block_header(data[place : place + BLOCK_HEADER_BYTES], number)
    ]


def check_totals(told: Told) -> None:
    """What readers are told is missing is what the totals say, and they are over every byte, kept or not."""
    entries = everything(told.path)
    assert check_truth(entries, told.content, NOTHING) == {
        source: len(content) for source, content in told.content.items()
    }
    missing = dict.fromkeys(Source, 0)
    for entry in entries:
        if isinstance(entry, Gap):
            missing[entry.source] += entry.missing_bytes or 0
    with reading(told.path) as reader:
        trailer = reader.trailer()
    assert trailer is not None
    assert trailer.totals == tuple(
        LogTotals(
            source, len(content), missing[source], None if source in told.lossy else zlib.crc32(told.seen[source])
        )
        for source, content in told.content.items()
        if content or source in told.lossy
    )


@pytest.mark.parametrize("limit", [4 * BLOCK_BYTES, 5 * BLOCK_BYTES + 1, 20 * BLOCK_BYTES])
def test_beyond_the_limit_the_head_and_the_newest_part_are_kept(limit: int) -> None:
    with disk("tmpfs", "size=16m") as (directory, _):
        told = new(directory / "log", limit)
        for seed, (source, size) in enumerate(PIECES):
            pieces = [(source, text(seed, size))]
            told.writer.write(pieces, seed)
            told.keep(pieces)
            assert told.path.stat().st_blocks * 512 <= limit
        told.seal()
        check_totals(told)
        walked, blocks = walk(told.path), good_blocks(told.path)
    head = limit // BLOCK_BYTES // 2
    tail = limit // BLOCK_BYTES - head
    last = blocks[-1]
    assert blocks in ([*range(head), *range(last - tail + 1, last + 1)], [*range(head), *range(last - tail, last + 1)])
    assert head * BLOCK_BYTES * 0.95 < sum(walked.head.values()) < head * BLOCK_BYTES
    assert walked.gaps == []
    assert walked.punched == {source: len(told.content[source]) - len(walked.content[source]) for source in Source}


def test_within_the_limit_nothing_is_missing(tmp_path: Path) -> None:
    told = new(tmp_path / "log", 10 * BLOCK_BYTES)
    for seed in range(9):
        told.writer.write([(OUT, text(seed, 65_300))], seed)
        told.keep([(OUT, text(seed, 65_300))])
    told.seal()
    assert good_blocks(told.path) == list(range(9))
    check_totals(told)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_was_missing_in_a_block_that_is_punched_out_is_missing_once(tmp_path: Path, resumed: bool) -> None:
    told = new(tmp_path / "log", 4 * BLOCK_BYTES)
    for step in (
        Write(((OUT, 150_000),), 1),
        Lose(OUT, 1_000, 1),
        Lose(ERR, 70_000, 1),
        *[Write(((OUT, 60_000), (ERR, 30_000)), 1)] * 10,
    ):
        told.tell(step)
    if resumed:
        told.writer.close()
        told.writer = RecordWriter.resume(told.path, max_bytes=4 * BLOCK_BYTES)
        told.tell(Write(((OUT, 300_000),), 1))
    told.seal()
    check_totals(told)


@settings(max_examples=60)
@given(steps=limited_steps, blocks=st.integers(4, 9), close_after=st.sets(st.integers(0, 30), max_size=3))
def test_whatever_is_written_under_a_limit_readers_get_it_or_are_told(
    steps: list[Write | Lose], blocks: int, close_after: set[int]
) -> None:
    """Also where other writers go on with it, and where gaps of known and of unknown size are among what is punched
    out."""
    with scratch() as path:
        told = new(path, blocks * BLOCK_BYTES)
        for number, step in enumerate(steps):
            told.tell(step)
            if number in close_after:
                totals = told.writer.totals()
                told.writer.close()
                told.writer = RecordWriter.resume(path, max_bytes=blocks * BLOCK_BYTES)
                assert told.writer.totals() == totals
        totals = told.writer.totals()
        assert told.seal().totals == totals
        kept = good_blocks(path)
        assert len(kept) <= blocks + 1
        assert kept[: blocks // 2] == list(range(min(blocks // 2, len(kept))))
        assert all(after == before + 1 for before, after in pairwise(kept[blocks // 2 :]))
        check_totals(told)


def test_a_reader_is_told_of_what_was_punched_out_where_it_stood(tmp_path: Path) -> None:
    told = new(tmp_path / "log", 4 * BLOCK_BYTES)
    told.writer.write([(OUT, text(0, 150_000))], 0)
    told.keep([(OUT, text(0, 150_000))])
    reader, position, reached = RecordReader(told.path), Position.BEGIN, 0
    segment = reader.read(position)
    for seed in range(1, 30):
        told.writer.write([(OUT, text(seed, 50_000))], seed)
        told.keep([(OUT, text(seed, 50_000))])
    told.seal()
    gaps = []
    while True:
        for entry in segment.entries:
            assert entry.offset == reached
            if isinstance(entry, Chunk):
                assert entry.data == told.content[OUT][reached : reached + len(entry.data)]
                reached += len(entry.data)
            else:
                gaps.append((entry.source, entry.cause))
                reached += entry.missing_bytes or 0
        if segment.trailer:
            break
        segment = reader.read(segment.next)
    reader.close()
    assert (reached, gaps) == (len(told.content[OUT]), [(OUT, Cause.SIZE_LIMIT)])


@pytest.mark.parametrize("lose", [False, True])
def test_where_nothing_can_be_punched_out_the_head_is_kept_and_the_rest_counted(lose: bool) -> None:
    with disk("ramfs", "mode=777") as (directory, _):
        told = new(directory / "log", 4 * BLOCK_BYTES)
        for seed, (source, size) in enumerate([(OUT, 200_000), (ERR, 50_000), (OUT, 300_000), (ERR, 10)]):
            pieces = [(source, text(seed, size))]
            told.writer.write(pieces, seed)
            told.keep(pieces)
            assert told.path.stat().st_size <= 4 * BLOCK_BYTES + (1000 if lose else 0)
            if lose and seed == 2:
                told.tell(Lose(ERR, 7, 1))
                told.tell(Lose(OUT, None, 1))
        if not lose:
            assert told.path.stat().st_size > 4 * BLOCK_BYTES - 100
        told.seal()
        check_totals(told)
        causes = [entry.cause for entry in everything(told.path) if isinstance(entry, Gap)]
    assert Cause.SIZE_LIMIT in causes
    assert (Cause.ENGINE in causes) == lose


def test_where_nothing_can_be_punched_out_the_next_writer_goes_on_counting() -> None:
    with disk("ramfs", "mode=777") as (directory, _):
        told = new(directory / "log", 4 * BLOCK_BYTES)
        for seed in range(8):
            pieces = [(OUT, text(seed, 60_000))]
            told.writer.write(pieces, seed)
            told.keep(pieces)
            if seed == 5:
                told.writer.close()
                told.writer = RecordWriter.resume(told.path, max_bytes=4 * BLOCK_BYTES)
                told.lossy.add(OUT)
        told.seal()
        check_totals(told)
        assert told.path.stat().st_size <= 4 * BLOCK_BYTES + 1000
