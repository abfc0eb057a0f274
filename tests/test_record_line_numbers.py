"""Lines by number in a record: bisection over its headers, against a model that looks at every byte."""

import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastlane_grpc.model import Source
from fastlane_grpc.record import Chunk, RecordReader, RecordWriter, unread
from fastlane_grpc.record.format import BLOCK_BYTES
from tests.record_model import (
    Entry,
    Lose,
    Told,
    Write,
    check_truth,
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
    "lines", max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
lines = settings.get_profile("lines")

OUT, ERR, SYSTEM = Source.STDOUT, Source.STDERR, Source.SYSTEM
BOTH = frozenset({OUT, ERR})

seeds = st.integers(0, 1 << 32)
counted = st.sets(st.sampled_from([OUT, ERR, SYSTEM]), min_size=1).map(frozenset)


def newlines_of(
    entries: Sequence[Entry], sources: frozenset[Source], limits: Mapping[Source, int] | None = None
) -> list[tuple[Source, int]]:
    """The source of each newline, and the offset after it, in the order of the record."""
    return [
        (entry.source, entry.offset + place + 1)
        for entry in entries
        if isinstance(entry, Chunk) and entry.source in sources
        for place in (found.start() for found in re.finditer(b"\n", entry.data))
        if limits is None or entry.offset + place < limits[entry.source]
    ]


def begins_of(newlines: Sequence[tuple[Source, int]], number: int, sources: frozenset[Source]) -> dict[Source, int]:
    """Where the line of this number begins in each source: after the newlines before it."""
    return {**dict.fromkeys(sources, 0), **dict(newlines[: number - 1])}


def rest_from(reader: RecordReader, offsets: Mapping[Source, int], sequence: int) -> Sequence[Entry]:
    return unread(entries_of(segments(reader, reader.locate(offsets, sequence))), offsets, sequence)


def some_numbers(choose: random.Random, count: int) -> list[int]:
    return sorted({1, 2, count, count + 1, count + 7, *(choose.randrange(1, count + 2) for _ in range(6))} - {0})


@lines
@given(steps=steps, sources=counted, seed=seeds, sealed=st.booleans())
@example(steps=[], sources=BOTH, seed=0, sealed=False)
def test_a_line_begins_where_the_model_says(
    steps: list[Write | Lose], sources: frozenset[Source], seed: int, sealed: bool
) -> None:
    choose = random.Random(seed)
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        if sealed:
            told.seal()
        whole = everything(path)
        newlines = newlines_of(whole, sources)
        with reading(path) as reader:
            numbered = reader.lines(sources)
            assert numbered.count == len(newlines)
            for number in some_numbers(choose, len(newlines)):
                point, _ = reader.line(number, numbered)
                begins = begins_of(newlines, number, sources)
                assert {source: point.offsets[source] for source in sources} == begins
                # What is sent from there has each later byte of the sources that are counted, once.
                rest = rest_from(reader, point.offsets, point.sequence)
                for source in sources:
                    text = b"".join(each.data for each in rest if isinstance(each, Chunk) and each.source is source)
                    its = [each for each in whole if each.source is source]
                    expected = unread(its, {source: begins[source]}, 0)
                    assert text == b"".join(each.data for each in expected if isinstance(each, Chunk))
                assert reader.newlines_before(begins) == min(number - 1, len(newlines))


@lines
@given(steps=steps, sources=counted, seed=seeds)
def test_lines_before_a_limit_end_before_it(steps: list[Write | Lose], sources: frozenset[Source], seed: int) -> None:
    choose = random.Random(seed)
    with scratch() as path:
        told = Told.new(path)
        for step in steps:
            told.tell(step)
        whole = everything(path)
        with reading(path) as reader:
            for _ in range(5):
                limits = {source: choose.randrange(len(told.content[source]) + 2) for source in Source}
                newlines = newlines_of(whole, sources, limits)
                numbered = reader.lines(sources, limits)
                assert numbered.count == len(newlines)
                assert reader.newlines_before({source: limits[source] for source in sources}) == len(newlines)
                for number in some_numbers(choose, len(newlines)):
                    point, _ = reader.line(number, numbered)
                    begins = begins_of(newlines, number, sources)
                    assert {source: point.offsets[source] for source in sources} == begins


@lines
@given(steps=steps, sources=counted, seed=seeds)
def test_lines_keep_their_numbers_when_others_are_punched_out(
    steps: list[Write | Lose], sources: frozenset[Source], seed: int
) -> None:
    choose = random.Random(seed)
    with scratch() as path:
        told = Told.new(path)
        for step in [*steps, Write(((OUT, 150_000), (ERR, 100_000)), 1), *steps]:
            told.tell(step)
        newlines = newlines_of(everything(path), sources)
        blocks = -(-path.stat().st_size // BLOCK_BYTES)
        first = choose.randrange(1, blocks - 1)
        punch(path, first * BLOCK_BYTES, choose.randrange(1, blocks - first) * BLOCK_BYTES)
        kept = set(newlines_of(everything(path), sources))
        with reading(path) as reader:
            numbered = reader.lines(sources)
            assert numbered.count == len(newlines)
            for number in some_numbers(choose, len(newlines)):
                point, _ = reader.line(number, numbered)
                begins = begins_of(newlines, number, sources)
                # Where a line before it is gone, it begins at the gap.
                assert all(point.offsets[source] <= begins[source] for source in sources)
                if set(newlines[: number - 1]) <= kept:
                    assert {source: point.offsets[source] for source in sources} == begins
                check_truth(rest_from(reader, point.offsets, point.sequence), told.content, point.offsets)
            for source, offset in choose.sample(sorted(kept), min(5, len(kept))):
                number = sum(its is source and end <= offset for its, end in newlines)
                assert reader.newlines_before({source: offset}) == number


@lines
@given(steps=steps, sources=counted, seed=seeds, places=st.integers(1, 4), torn=st.booleans())
def test_damage_moves_the_start_of_a_line_but_breaks_nothing(
    steps: list[Write | Lose], sources: frozenset[Source], seed: int, places: int, torn: bool
) -> None:
    choose = random.Random(seed)
    with scratch() as path:
        told = Told.new(path)
        for step in [*steps, Write(((OUT, 150_000), (ERR, 100_000)), 1), *steps]:
            told.tell(step)
        for _ in range(places):
            zero(path, choose.randrange(path.stat().st_size), choose.choice([1, 30, 300, BLOCK_BYTES]))
        if torn:
            os.truncate(path, choose.randrange(1, path.stat().st_size))
        limits = {source: choose.randrange(len(told.content[source]) + 2) for source in Source}
        with reading(path) as reader:
            for numbered in (reader.lines(sources), reader.lines(sources, limits)):
                for number in some_numbers(choose, numbered.count):
                    point, _ = reader.line(number, numbered)
                    check_truth(rest_from(reader, point.offsets, point.sequence), told.content, point.offsets)


def test_a_line_of_a_large_record_is_found_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        point, time_ns = reader.line(5_000_002, reader.lines(BOTH))
        assert point.offsets == {OUT: 10 * 5_000_000, ERR: 13, SYSTEM: 0}
        assert time_ns == 5_000_000 // 3_000 + 2
        assert reader.newlines_before({OUT: 10 * 5_000_000, ERR: 13}) == 5_000_001
    assert sum(asked) < 20 * BLOCK_BYTES < path.stat().st_size / 40
