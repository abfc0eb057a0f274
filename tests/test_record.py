"""The record by examples: its bytes, its edges, its ends."""

import json
import os
import stat
import struct
import zlib
from pathlib import Path

import pytest

from fastlane_grpc.model import Cause, LogTotals, Source
from fastlane_grpc.record import (
    Chunk,
    Gap,
    NotARecord,
    Position,
    RecordReader,
    RecordSealed,
    RecordWriter,
    Segment,
    Trailer,
    unread,
)
from fastlane_grpc.record.format import (
    BLOCK_BYTES,
    BLOCK_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    RecordState,
    pack_block_header,
)
from tests.record_model import NOTHING, check_truth, entries_of, everything, overwrite, reading, segments, text, zero

OUT, ERR, SYSTEM = Source.STDOUT, Source.STDERR, Source.SYSTEM


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def create(path: Path) -> RecordWriter:
    return RecordWriter.create(path, execution_id="0190", capture="attach")


def header_by_hand(
    number: int, time: int, sequence: int, first: int, *sources: tuple[int, int, int, int, int, int]
) -> bytes:
    checked = struct.pack("<HHIQQQQ", 1, 168, 0, number, time, sequence, first) + b"".join(
        struct.pack("<QQQQII", *its) for its in sources
    )
    return b"\xabFLR" + struct.pack("<I", zlib.crc32(checked)) + checked


def frame_by_hand(kind: int, time: int, payload: bytes, running: int) -> bytes:
    header = struct.pack("<QHBB", time, len(payload), kind, 0)
    return header + struct.pack("<I", zlib.crc32(header, running)) + payload


def test_the_bytes_of_a_record_are_those_of_its_description(path: Path) -> None:
    """Written by hand from the description of the format: other programs rely on it, so a change of it must not go
    unnoticed."""
    writer = create(path)
    writer.write([(OUT, b"one\n"), (OUT, b"two\n"), (ERR, b"oops")], 1_000)
    writer.gap(ERR, 5, Cause.ENGINE, 2_000)
    writer.gap(OUT, None, Cause.STORE, 3_000)
    writer.write([(ERR, bytes(MAX_PAYLOAD_BYTES))], 4_000)
    writer.seal(3, {"reason": "é"}, 5_000)
    raw = path.read_bytes()

    none = (0, 0, 0, 0, 0, 0)
    start = b'{"execution_id":"0190","capture":"attach"}'
    (start_time,) = struct.unpack_from("<Q", raw, 168)
    block = header_by_hand(0, 0, 1, 0, none, none, none) + frame_by_hand(16, start_time, start, zlib.crc32(start))
    out_crc, err_crc = zlib.crc32(b"one\ntwo\n"), zlib.crc32(b"oops")
    block += frame_by_hand(1, 1_000, b"one\ntwo\n", out_crc) + frame_by_hand(2, 1_000, b"oops", err_crc)
    for time, gap in (2_000, struct.pack("<BB6xQ", 2, 3, 5)), (3_000, struct.pack("<BB6xQ", 1, 4, 2**64 - 1)):
        block += frame_by_hand(17, time, gap, zlib.crc32(gap))
    rest = bytes(BLOCK_BYTES - len(block) - 16)
    err_crc = zlib.crc32(rest, err_crc)
    block += frame_by_hand(2, 4_000, rest, err_crc)
    left = bytes(MAX_PAYLOAD_BYTES - len(rest))
    err = (9 + len(rest), 0, 5, 0, err_crc, 1)
    block += header_by_hand(1, 4_000, 6, 1_000, (8, 2, 0, 4, out_crc, 1), err, none)
    block += frame_by_hand(2, 4_000, left, zlib.crc32(left, err_crc))
    assert raw.startswith(block)

    trailer = raw[len(block) + 16 :]
    assert raw[len(block) :] == frame_by_hand(18, 5_000, trailer, zlib.crc32(trailer))
    assert json.loads(trailer.decode("ascii")) == {
        "exit_code": 3,
        "totals": [
            {"source": 1, "bytes": 8, "missing_bytes": 0, "newlines": 2, "crc32": None},
            {"source": 2, "bytes": 9 + MAX_PAYLOAD_BYTES, "missing_bytes": 5, "newlines": 0, "crc32": None},
        ],
        "facts": {"reason": "é"},
    }


def test_what_is_written_is_read_as_it_was_received(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"a"), (OUT, memoryview(b"b")), (ERR, b""), (ERR, b"c"), (OUT, b"d")], 10)
    writer.gap(ERR, 7, Cause.ENGINE, 20)
    writer.write([(SYSTEM, b"e")], 15)
    trailer = writer.seal(0, {"detail": "well"}, 5)
    entries = (
        Chunk(OUT, 0, 10, b"ab", 1),
        Chunk(ERR, 0, 10, b"c", 2),
        Chunk(OUT, 2, 10, b"d", 3),
        Gap(ERR, 1, 7, Cause.ENGINE, 4, 20),
        Chunk(SYSTEM, 0, 20, b"e", 5),
    )
    totals = (
        LogTotals(OUT, 3, 0, zlib.crc32(b"abd")),
        LogTotals(ERR, 8, 7, None),
        LogTotals(SYSTEM, 1, 0, zlib.crc32(b"e")),
    )
    assert trailer == Trailer(20, totals, 0, {"detail": "well"})
    with reading(path) as reader:
        segment = reader.read(Position.BEGIN)
        assert segment.entries == entries
        assert segment.trailer == reader.trailer() == trailer
        assert segment.next.offsets == {OUT: 3, ERR: 8, SYSTEM: 1}
        assert segment.next.sequence == 5
        assert reader.read(segment.next) == Segment((), segment.next, trailer)


def test_a_record_without_output_ends_as_well(path: Path) -> None:
    writer = create(path)
    assert writer.first_byte_time_ns is None
    assert everything(path) == []
    trailer = writer.seal(None, {}, 1)
    with reading(path) as reader:
        assert reader.read(Position.BEGIN) == Segment((), reader.locate(NOTHING, 0), trailer)


def test_nothing_new_is_the_same_position_again(path: Path) -> None:
    writer = create(path)
    with reading(path) as reader:
        assert reader.read(Position.BEGIN) == Segment((), Position.BEGIN, None)
        writer.write([(OUT, b"a")], 1)
        position = reader.read(Position.BEGIN).next
        assert reader.read(position) == Segment((), position, None)
        assert reader.trailer() is None


def test_a_record_is_made_once_and_is_private(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"a")], 1)
    with pytest.raises(FileExistsError):
        create(path)
    assert len(everything(path)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_record_that_cannot_be_made_leaves_nothing(path: Path) -> None:
    with pytest.raises(ValueError, match="shorten"):
        RecordWriter.create(path, execution_id="x" * BLOCK_BYTES, capture="attach")
    assert not path.exists()


def test_time_never_goes_back_not_even_over_a_resume(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"a")], 100)
    writer.write([(OUT, b"b")], 50)
    writer.close()
    writer = RecordWriter.resume(path)
    writer.gap(OUT, None, Cause.ENGINE, 60)
    writer.write([(OUT, b"c")], 200)
    assert writer.seal(0, {}, 150).time_ns == 200
    assert [entry.time_ns for entry in everything(path)] == [100, 100, 100, 200]


def test_the_time_of_the_first_byte_outlives_its_block(path: Path) -> None:
    writer = create(path)
    writer.gap(ERR, None, Cause.ENGINE, 5)
    writer.write([(OUT, bytes(200_000))], 7)
    writer.write([(OUT, b"a")], 9)
    assert writer.first_byte_time_ns == 7
    writer.close()
    writer = RecordWriter.resume(path)
    assert writer.first_byte_time_ns == 7


def test_nothing_is_added_to_a_sealed_record(path: Path) -> None:
    writer = create(path)
    trailer = writer.seal(0, {}, 1)
    with pytest.raises(RecordSealed):
        writer.write([(OUT, b"a")], 2)
    with pytest.raises(RecordSealed, match="log is sealed"):
        RecordWriter.resume(path)
    with reading(path) as reader:
        assert segments(reader)[-1].trailer == trailer


def test_a_closed_record_is_not_written(path: Path) -> None:
    writer = create(path)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write([(OUT, b"a")], 2)


def test_facts_that_do_not_fit_are_refused_and_others_can_be_sealed(path: Path) -> None:
    writer = create(path)
    with pytest.raises(ValueError, match="shorten"):
        writer.seal(0, {"detail": "x" * BLOCK_BYTES}, 1)
    with pytest.raises(ValueError, match="exit code"):
        writer.seal(1 << 40, {}, 1)
    assert writer.seal(0, {"detail": "x" * 60_000}, 1).facts == {"detail": "x" * 60_000}


@pytest.mark.parametrize("missing", [0, -1])
def test_a_gap_has_a_size_or_none_is_known(path: Path, missing: int) -> None:
    with pytest.raises(ValueError, match="none"):
        create(path).gap(OUT, missing, Cause.ENGINE, 1)


@pytest.mark.parametrize("left", range(40))
def test_a_block_may_end_with_any_number_of_bytes_left(path: Path, left: int) -> None:
    """Room for a frame, for its header alone, for less: the next frame is where both look for it, also after a
    resume."""
    writer = create(path)
    content = text(left, BLOCK_BYTES - path.stat().st_size - 16 - left)
    writer.write([(OUT, content)], 1)
    writer.close()
    writer = RecordWriter.resume(path)
    writer.gap(ERR, None, Cause.ENGINE, 2)
    writer.write([(OUT, content)], 3)
    trailer = writer.seal(0, {}, 4)
    with reading(path) as reader:
        found = segments(reader)
    assert check_truth(entries_of(found), {OUT: content * 2, ERR: b""}, NOTHING) == {
        OUT: len(content) * 2,
        ERR: 0,
        SYSTEM: 0,
    }
    assert found[-1].trailer == trailer


def test_a_gap_at_the_end_of_a_block_goes_to_the_next(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, bytes(BLOCK_BYTES - path.stat().st_size - 16 - 31))], 1)
    writer.gap(OUT, 1, Cause.ENGINE, 2)
    assert path.stat().st_size == BLOCK_BYTES + BLOCK_HEADER_BYTES + 32
    assert everything(path)[-1].sequence == 2


def test_many_small_pieces_go_into_one_frame_and_many_frames_into_one_write(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"x")] * 5_000, 1)
    assert len(everything(path)) == 1
    # More parts than one call of the kernel takes.
    writer.write([(Source(1 + i % 2), b"%d\n" % i) for i in range(5_000)], 2)
    entries = everything(path)
    assert len(entries) == 5_001
    assert b"".join(entry.data for entry in entries[1:] if isinstance(entry, Chunk)) == b"".join(
        b"%d\n" % i for i in range(5_000)
    )


def test_segments_end_at_every_fourth_block(path: Path) -> None:
    writer = create(path)
    for i in range(100):
        writer.write([(OUT, text(i, 30_000))], i)
    trailer = writer.seal(0, {}, 101)
    with reading(path) as reader:
        found = segments(reader)
    assert len(found) == -(-path.stat().st_size // (4 * BLOCK_BYTES)) == 12
    for number, segment in enumerate(found):
        assert (
            segment.next.file_offset // (4 * BLOCK_BYTES) == number or segment.next.file_offset % (4 * BLOCK_BYTES) == 0
        )
        assert sum(len(entry.data) for entry in segment.entries if isinstance(entry, Chunk)) <= 4 * BLOCK_BYTES
    assert [segment.trailer for segment in found] == [None] * 11 + [trailer]


def test_a_read_ends_before_a_time(path: Path) -> None:
    writer = create(path)
    for time in (10, 20, 20, 30):
        writer.write([(OUT, b"a")], time)
    trailer = writer.seal(0, {}, 40)
    with reading(path) as reader:
        early = reader.read(Position.BEGIN, before_ns=20)
        assert [entry.time_ns for entry in early.entries] == [10]
        assert reader.read(early.next, before_ns=20) == Segment((), early.next, None)
        late = reader.read(early.next, before_ns=40)
        assert [entry.time_ns for entry in late.entries] == [20, 20, 30]
        assert late.trailer is None
        assert reader.read(late.next, before_ns=41) == Segment((), late.next, trailer)


def test_a_gap_of_unknown_size_is_told_by_its_sequence(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"abc")], 1)
    writer.gap(OUT, None, Cause.ENGINE, 2)
    writer.gap(OUT, None, Cause.ENGINE, 3)
    writer.write([(ERR, bytes(100_000))], 4)
    writer.write([(OUT, b"def")], 5)
    writer.write([(ERR, bytes(100_000))], 6)
    cursor = {OUT: 3, ERR: 0}
    with reading(path) as reader:
        assert [reader.locate(cursor, sequence).sequence for sequence in range(5)] == [1, 1, 2, 3, 3]
        assert reader.locate({OUT: 3, ERR: 100_000}, 1).sequence == 1
        assert reader.locate({OUT: 3, ERR: 100_000}, 5).sequence == 5
        assert reader.locate({OUT: 4, ERR: 100_000}, 1).sequence == 5
        assert reader.locate({OUT: 6, ERR: 100_000}, 0).sequence == 6
        assert reader.locate({OUT: 6, ERR: 200_000}, 0) == segments(reader)[-1].next


def test_a_place_inside_a_frame_is_read_from_its_begin_and_cut(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"abcdef")], 1)
    writer.gap(OUT, 10, Cause.ENGINE, 2)
    with reading(path) as reader:
        position = reader.locate({OUT: 2}, 0)
        entries = reader.read(position).entries
    assert position.sequence == 0
    assert unread(entries, {OUT: 2}, 0) == (Chunk(OUT, 2, 1, b"cdef", 1), Gap(OUT, 6, 10, Cause.ENGINE, 2, 2))
    assert unread(entries, {OUT: 9}, 0) == (Gap(OUT, 9, 7, Cause.ENGINE, 2, 2),)
    assert unread(entries, {OUT: 16}, 0) == ()


def test_a_place_beyond_the_end_is_the_end(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, bytes(300_000))], 1)
    with reading(path) as reader:
        assert reader.locate({OUT: 1 << 60, ERR: 1 << 60}, 1 << 60) == segments(reader)[-1].next
        assert reader.locate({ERR: 1 << 60}, 1 << 60).offsets == NOTHING


def test_a_lost_block_is_a_gap_in_every_source_that_was_in_it(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"begin")], 1)
    writer.write([(OUT, bytes(70_000)), (ERR, bytes(10_000))], 2)
    writer.gap(SYSTEM, None, Cause.ENGINE, 3)
    writer.write([(ERR, bytes(52_000))], 4)
    writer.write([(OUT, b"end")], 5)
    trailer = writer.seal(0, {}, 6)
    zero(path, BLOCK_BYTES, BLOCK_BYTES)
    with reading(path) as reader:
        found = segments(reader)
        # A reader that had the gap of unknown size before the block was lost does not get it again.
        had = {OUT: 70_005, ERR: 10_000}
        rest = unread(reader.read(reader.locate(had, 5)).entries, had, 5)
        assert SYSTEM not in [entry.source for entry in rest]
    entries = entries_of(found)
    lost = [entry for entry in entries if isinstance(entry, Gap)]
    assert [(gap.source, gap.missing_bytes is None, gap.cause) for gap in lost] == [
        (SYSTEM, True, Cause.STORE),
        (OUT, False, Cause.STORE),
        (ERR, False, Cause.STORE),
    ]
    assert check_truth(entries, {OUT: b"begin" + bytes(70_000) + b"end", ERR: bytes(62_000)}, NOTHING) == {
        OUT: 70_008,
        ERR: 62_000,
        SYSTEM: 0,
    }
    assert entries[-1] == Chunk(OUT, 70_005, 5, b"end", entries[-1].sequence)
    assert found[-1].trailer == trailer


def test_damage_in_the_last_block_is_waited_for_and_cut_off_by_a_resume(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"good")], 1)
    size = path.stat().st_size
    writer.write([(OUT, b"torn")], 2)
    writer.close()
    zero(path, size + 4, 12)
    with reading(path) as reader:
        position = reader.read(Position.BEGIN).next
        assert reader.read(position) == Segment((), position, None)
        writer = RecordWriter.resume(path)
        assert path.stat().st_size == size
        writer.write([(OUT, b"new")], 3)
        assert reader.read(position).entries == (Chunk(OUT, 4, 3, b"new", 2),)


@pytest.mark.parametrize("byte", range(16))
def test_a_damaged_frame_header_costs_its_block_and_no_more(path: Path, byte: int) -> None:
    """Whatever it says now: another source, a length that goes beyond the block or the file, another time."""
    writer = create(path)
    before = bytes(BLOCK_BYTES - path.stat().st_size - 16 - 400)
    writer.write([(OUT, before)], 1)
    place = path.stat().st_size
    writer.write([(ERR, bytes(384))], 2)
    writer.write([(OUT, b"after")], 3)
    trailer = writer.seal(0, {}, 4)
    overwrite(path, place + byte, bytes([path.read_bytes()[place + byte] ^ 0xFF]))
    with reading(path) as reader:
        found = segments(reader)
    assert entries_of(found) == [
        Chunk(OUT, 0, 1, before, 1),
        Gap(ERR, 0, 384, Cause.STORE, 2, 2),
        Chunk(OUT, len(before), 3, b"after", 3),
    ]
    assert found[-1].trailer == trailer


def test_zeros_in_place_of_frames_are_a_gap_as_well(path: Path) -> None:
    """As after a power cut: a page that was never written, in a block that looks fine until there."""
    writer = create(path)
    writer.write([(OUT, b"a" * 100)], 1)
    size = path.stat().st_size
    for _ in range(10):
        writer.write([(OUT, bytes([65]) * 10_000)], 2)
    zero(path, size, BLOCK_BYTES - size)
    entries = everything(path)
    assert isinstance(entries[1], Gap)
    assert check_truth(entries, {OUT: b"a" * 100 + b"A" * 100_000}, NOTHING)[OUT] == 100_100


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\0" * 200_000, b"no record\n" * 20_000])
def test_a_file_that_is_no_record_is_read_as_empty_and_resumed_anew(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with reading(path) as reader:
        assert reader.read(Position.BEGIN) == Segment((), Position.BEGIN, None)
        assert reader.locate({OUT: 5}, 1) == Position.BEGIN
        assert reader.trailer() is None
    writer = RecordWriter.resume(path)
    writer.write([(OUT, b"a")], 1)
    assert everything(path) == [Chunk(OUT, 0, 1, b"a", 1)]


def test_a_long_hole_is_passed_in_one_step(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"a")], 1)
    writer.close()
    tebibyte = (1 << 40) // BLOCK_BYTES
    state = RecordState()
    state = RecordState(9, 5, 1, (state.sources[0]._replace(offset=1_000, crc32=7), *state.sources[1:]))
    with path.open("r+b") as file:
        file.seek(tebibyte * BLOCK_BYTES)
        file.write(pack_block_header(tebibyte, state))
    writer = RecordWriter.resume(path)
    writer.write([(OUT, b"b")], 6)
    writer.seal(0, {}, 6)
    with reading(path) as reader:
        assert entries_of(segments(reader)) == [
            Chunk(OUT, 0, 1, b"a", 1),
            Gap(OUT, 1, 999, Cause.STORE, 9, 5),
            Chunk(OUT, 1_000, 6, b"b", 10),
        ]
        assert reader.locate({OUT: 500}, 5).sequence == 1
        assert reader.locate({OUT: 1_000}, 9).sequence == 9


def test_a_reader_that_has_the_file_open_reads_on_after_it_is_removed(path: Path) -> None:
    writer = create(path)
    writer.write([(OUT, b"a")], 1)
    reader = RecordReader(path)
    path.unlink()
    assert reader.read(Position.BEGIN).entries == (Chunk(OUT, 0, 1, b"a", 1),)
    reader.close()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "directory", "link", "device"])
def test_what_is_no_file_in_place_of_a_record_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "link":
            (tmp_path / "other").touch()
            path.symlink_to("other")
        case _:
            path = Path("/dev/zero")
    for opening in (RecordReader, RecordWriter.resume):
        with pytest.raises(NotARecord, match="not a regular file"):
            opening(path)
