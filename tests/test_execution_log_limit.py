"""A log beyond its limit, whichever way the bytes take: the head and the newest part are kept, and readers are told of
the rest."""

import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastlane_grpc.model import CaptureMode, Cause, Source, State
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, Segment
from fastlane_grpc.record.format import BLOCK_BYTES
from tests.engine import EngineHarness, opened

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

LIMIT = 4 << 20


@pytest.fixture
def limited(tmp_path: Path, image: str, capture: CaptureMode) -> Iterator[EngineHarness]:
    with opened(tmp_path, image, capture=capture, max_log_bytes=LIMIT) as harness:
        yield harness


def test_beyond_its_limit_a_log_keeps_its_head_and_its_newest_part(limited: EngineHarness) -> None:
    execution = limited.sh("seq 1 5000000; echo the end >&2")
    whole = b"".join(b"%d\n" % number for number in range(1, 5_000_001))
    path = limited.logs.output_path(execution.id)
    assert path.stat().st_blocks * 512 <= LIMIT + (128 << 10)
    output = limited.output(execution.id)
    [gap] = output.gaps
    assert (gap.source, gap.cause) == (Source.STDOUT, Cause.SIZE_LIMIT)
    assert gap.missing_bytes is not None
    at, head, tail = 0, b"", b""
    for entry in output.entries:
        if isinstance(entry, Gap):
            at = len(head)
        elif isinstance(entry, Chunk) and entry.source is Source.STDOUT:
            head, tail = (head, tail + entry.data) if at else (head + entry.data, tail)
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert min(len(head), len(tail)) > LIMIT // 2 - (256 << 10)
    total = execution.logs[0]
    assert (total.bytes, total.missing_bytes, total.crc32) == (
        len(whole),
        len(whole) - len(head) - len(tail),
        zlib.crc32(whole),
    )
    assert (output.stderr, gap.missing_bytes) == (b"the end\n", total.missing_bytes)
    assert re.search(r"not all output was kept: \d+ bytes of stdout are missing", limited.system(execution.id))


def test_lines_beyond_the_limit_keep_their_numbers(limited: EngineHarness) -> None:
    execution = limited.sh("seq 1 1000000; echo the end >&2")
    whole = b"".join(b"%d\n" % number for number in range(1, 1_000_001))
    [gap] = limited.output(execution.id).gaps
    assert gap.missing_bytes is not None
    with closing(RecordReader(limited.logs.output_path(execution.id))) as reader:
        lines = reader.lines(frozenset({Source.STDOUT}))
        assert lines.count == 1_000_000
        newest = gap.offset + gap.missing_bytes
        first = reader.newlines_before({Source.STDOUT: newest})
        assert first == whole.count(b"\n", 0, newest)
        starts = {number: len(b"".join(b"%d\n" % each for each in range(1, number))) for number in (2, 777, 100_000)}
        starts |= {first + 2: whole.index(b"\n", newest) + 1, 999_999: len(whole) - len(b"999999\n1000000\n")}
        for number, offset in starts.items():
            assert lines.begin(number).offsets == {Source.STDOUT: offset}
        assert reader.lines(frozenset({Source.STDOUT, Source.STDERR})).count == 1_000_001


def test_a_log_below_its_limit_is_whole(limited: EngineHarness) -> None:
    execution = limited.sh("head -c 3000000 /dev/zero")
    output = limited.output(execution.id)
    assert (output.stdout, output.gaps) == (bytes(3_000_000), [])


@pytest.mark.parametrize("pause_after", [1, 40])
def test_who_reads_while_the_old_is_taken_away_gets_what_was_written_or_is_told(
    limited: EngineHarness, pause_after: int
) -> None:
    going = limited.go("sh -c", "seq 1 3000000; echo seen >&2")
    whole = b"".join(b"%d\n" % number for number in range(1, 3_000_001))
    limited.wait_for_output(going.id)
    reader, segment, reached, segments = (
        RecordReader(limited.logs.output_path(going.id)),
        Segment((), Position.BEGIN),
        0,
        0,
    )
    while not segment.trailer:
        segment = reader.read(segment.next, max_bytes=BLOCK_BYTES)
        for entry in (entry for entry in segment.entries if entry.source is Source.STDOUT):
            assert entry.offset == reached
            if isinstance(entry, Chunk):
                assert entry.data == whole[reached : reached + len(entry.data)]
                reached += len(entry.data)
            else:
                assert (entry.cause, entry.missing_bytes is None) == (Cause.SIZE_LIMIT, False)
                reached += entry.missing_bytes or 0
        segments += 1
        if segments == pause_after:
            # So far behind that the place where it reads is taken away.
            limited.wait_for_stderr(going.id, b"seen\n")
    reader.close()
    assert reached == len(whole)
    assert going.result().state is State.SUCCEEDED
