"""Where the last lines of a record begin, and what came since some time: found by bisection, told by a model that looks
at every byte."""

import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import Chunk, RecordReader, RecordWriter, unread
from fastlane_grpc.record.format import BLOCK_BYTES, pack_block_header, unpack_block_header
from tests.record_model import (
    Entry,
    Lose,
    Told,
    Write,
    check_truth,
    end,
    entries_of,
    everything,
    punch,
    reading,
    scratch,
    segments,
    steps,
    zero,
)

settings.register_profile(
    "begin", max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
begin = settings.get_profile("begin")

OUT, ERR, SYSTEM = Source.STDOUT, Source.STDERR, Source.SYSTEM
BOTH = frozenset({OUT, ERR})
NEWLINE = re.compile(b"\n")

seeds = st.integers(0, 1 << 32)
counts = st.one_of(st.integers(1, 5), st.integers(1, 1000))
counted = st.sets(st.sampled_from([OUT, ERR, SYSTEM]), min_size=1).map(frozenset)


def last_lines(entries: Sequence[Entry], count: int, sources: frozenset[Source]) -> Mapping[Source, int] | None:
    """Where the first of the last lines of each source begins, for those that have one; None: there are no more lines
    than that."""
    lines: list[tuple[tuple[int, int], Source, int]] = []
    begins, last = dict.fromkeys(sources, 0), dict[Source, tuple[int, int]]()
    for number, entry in enumerate(entries):
        if not isinstance(entry, Chunk) or entry.source not in sources:
            continue
        for newline in NEWLINE.finditer(entry.data):
            lines.append(((number, newline.start()), entry.source, begins[entry.source]))
            begins[entry.source] = entry.offset + newline.end()
        if entry.data.endswith(b"\n"):
            last.pop(entry.source, None)
        else:
            last[entry.source] = (number, len(entry.data) - 1)
    lines += [(place, source, begins[source]) for source, place in last.items()]
    lines.sort()
    if len(lines) <= count:
        return None
    found: dict[Source, int] = {}
    for _, source, offset in lines[-count:]:
        found.setdefault(source, offset)
    return found


def check_last_lines(reader: RecordReader, whole: Sequence[Entry], count: int, sources: frozenset[Source]) -> None:
    expected, found = last_lines(whole, count, sources), reader.last_lines(count, sources)
    if expected is None:
        assert found is None
        return
    assert found is not None
    point, time_ns = found
    rest = unread(
        entries_of(segments(reader, reader.locate(point.offsets, point.sequence))), point.offsets, point.sequence
    )
    assert rest[0].time_ns == time_ns
    assert list(rest) == list(unread(whole, point.offsets, point.sequence))
    for source in sources:
        if source in expected:
            assert point.offsets[source] == expected[source]
            # All that came after the newline before it, gaps of unknown size too.
            assert [entry for entry in rest if entry.source is source] == after(whole, source, expected[source])
        else:
            assert point.offsets[source] == max((end(entry) for entry in whole if entry.source is source), default=0)
            assert not any(isinstance(entry, Chunk) and entry.source is source for entry in rest)
    # Who was not counted begins with the first line.
    first = next(
        number
        for number, entry in enumerate(whole)
        if entry.sequence == rest[0].sequence and entry.source is rest[0].source
    )
    for source in set(Source) - sources:
        assert point.offsets[source] == max(
            (end(entry) for entry in whole[:first] if entry.source is source), default=0
        )


def after(whole: Sequence[Entry], source: Source, offset: int) -> list[Entry]:
    """The entries of a source after the byte before `offset`; the first one cut."""
    its = [entry for entry in whole if entry.source is source]
    if offset == 0:
        return its
    number = next(
        number for number, entry in enumerate(its) if isinstance(entry, Chunk) and entry.offset < offset <= end(entry)
    )
    return [*unread([its[number]], {source: offset}, 0), *its[number + 1 :]]


@begin
@given(steps=steps, cases=st.lists(st.tuples(counts, counted), min_size=1, max_size=8), sealed=st.booleans())
@example(steps=[], cases=[(1, BOTH)], sealed=False)
def test_the_last_lines_begin_where_the_model_says(
    steps: list[Write | Lose], cases: list[tuple[int, frozenset[Source]]], sealed: bool
) -> None:
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        if sealed:
            told.seal()
        whole = everything(path)
        with reading(path) as reader:
            for count, sources in cases:
                check_last_lines(reader, whole, count, sources)


LINES = st.lists(
    st.tuples(
        st.sampled_from([OUT, ERR]),
        st.sampled_from([b"\n", b"a\n", b"b", b"c\nd", b"e\n\nf\n", b"g" * 9_000, b"h" * 65_352]),
    ),
    max_size=60,
)


@begin
@given(pieces=LINES, repeat=st.integers(1, 40), cases=st.lists(st.tuples(counts, counted), min_size=1, max_size=8))
@example(pieces=[(OUT, b"a\n"), (ERR, b"b")], repeat=1, cases=[(1, BOTH), (2, BOTH)])
def test_short_lines_and_split_ones_too(
    pieces: list[tuple[Source, bytes]], repeat: int, cases: list[tuple[int, frozenset[Source]]]
) -> None:
    with scratch() as path:
        told = Told.new(path)
        for number in range(repeat):
            told.writer.write(pieces, number)
        whole = everything(path)
        with reading(path) as reader:
            for count, sources in cases:
                check_last_lines(reader, whole, count, sources)


@begin
@given(steps=steps, cases=st.lists(st.tuples(counts, counted), min_size=1, max_size=5), seed=seeds)
def test_lines_that_the_size_limit_took_are_not_counted(
    steps: list[Write | Lose], cases: list[tuple[int, frozenset[Source]]], seed: int
) -> None:
    with scratch() as path:
        told = Told.new(path)
        for step in [*steps, Write(((OUT, 150_000), (ERR, 100_000)), 1), *steps]:
            told.tell(step)
        blocks = -(-path.stat().st_size // BLOCK_BYTES)
        choose = random.Random(seed)
        first = choose.randrange(1, blocks - 1)
        beyond = choose.randrange(first, blocks)
        limit(path, first)
        punch(path, first * BLOCK_BYTES, (beyond - first) * BLOCK_BYTES)
        whole = everything(path)
        with reading(path) as reader:
            for count, sources in cases:
                check_last_lines(reader, whole, count, sources)


def limit(path: Path, punched_from: int) -> None:
    """As if the writer had a size limit that lets it punch from this block on."""
    with path.open("r+b") as file:
        for number in range(-(-path.stat().st_size // BLOCK_BYTES)):
            state = unpack_block_header(os.pread(file.fileno(), 168, number * BLOCK_BYTES), number)
            assert state is not None
            os.pwrite(
                file.fileno(),
                pack_block_header(number, state._replace(punched_from=punched_from)),
                number * BLOCK_BYTES,
            )


@begin
@given(steps=steps, case=st.tuples(counts, counted), seed=seeds, places=st.integers(1, 4), torn=st.booleans())
def test_damage_and_a_torn_end_break_nothing(
    steps: list[Write | Lose], case: tuple[int, frozenset[Source]], seed: int, places: int, torn: bool
) -> None:
    with scratch() as path:
        told = Told.new(path)
        for step in [*steps, Write(((OUT, 150_000), (ERR, 100_000)), 1), *steps]:
            told.tell(step)
        choose = random.Random(seed)
        for _ in range(places):
            zero(path, choose.randrange(path.stat().st_size), choose.choice([1, 30, 300, BLOCK_BYTES]))
        if torn:
            os.truncate(path, choose.randrange(1, path.stat().st_size))
        with reading(path) as reader:
            for point in (
                reader.last_lines(*case),
                (reader.since(choose.randrange(told.time_ns)), 0),
                (reader.end(), 0),
            ):
                if point is None:
                    continue
                offsets, sequence = point[0].offsets, point[0].sequence
                rest = unread(entries_of(segments(reader, reader.locate(offsets, sequence))), offsets, sequence)
                check_truth(rest, told.content, offsets)


@begin
@given(steps=steps, seed=seeds, damaging=st.booleans())
def test_what_came_since_a_time_begins_with_its_first_entry(
    steps: list[Write | Lose], seed: int, damaging: bool
) -> None:
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        choose = random.Random(seed)
        if damaging:
            zero(path, choose.randrange(path.stat().st_size), BLOCK_BYTES)
        whole = everything(path)
        times = [entry.time_ns + more for entry in whole for more in (-1, 0, 1)]
        with reading(path) as reader:
            for time_ns in (*choose.sample(times, min(10, len(times))), 0, 1 << 63):
                point = reader.since(time_ns)
                rest = entries_of(segments(reader, reader.locate(point.offsets, point.sequence)))
                if not damaging:
                    assert rest == [entry for entry in whole if entry.time_ns >= time_ns]
                else:
                    expected = [entry for entry in whole if entry.time_ns >= time_ns]
                    assert rest == expected or rest[-len(expected) :] == expected


def test_the_begin_is_found_in_a_large_record_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    writer = RecordWriter.create(path, execution_id="e", capture="attach")
    writer.write([(ERR, b"the only one\n")], 1)
    for number in range(2_000):
        writer.write([(OUT, b"%9d\n" % number * 3_000)], number + 2)
    asked: list[int] = []
    pread = os.pread

    def counting(fd: int, size: int, place: int) -> bytes:
        asked.append(size)
        return pread(fd, size, place)

    monkeypatch.setattr(os, "pread", counting)
    with reading(path) as reader:
        found = reader.last_lines(1_000_000, BOTH)
        assert found is not None
        assert found[0].offsets == {OUT: 10 * 5_000_000, ERR: 13, SYSTEM: 0}
        assert reader.since(1_000).offsets[OUT] == 30_000 * 998
    assert sum(asked) < 20 * BLOCK_BYTES < path.stat().st_size / 40


def test_a_line_without_an_end_counts_where_its_last_byte_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = RecordWriter.create(path, execution_id="e", capture="attach")
    writer.write([(ERR, b"old\nprompt> "), (OUT, b"1\n2\n3\n")], 1)
    writer.gap(ERR, 5, Cause.ENGINE, 1)
    with reading(path) as reader:
        found = reader.last_lines(3, BOTH)
        assert found is not None
        assert found[0].offsets == {OUT: 0, ERR: 17, SYSTEM: 0}
        found = reader.last_lines(4, BOTH)
        assert found is not None
        assert found[0].offsets == {OUT: 0, ERR: 4, SYSTEM: 0}
        assert reader.last_lines(5, BOTH) is None
