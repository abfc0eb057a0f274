"""The record between processes, beside a writer that dies, and on a disk that is full."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, RecordWriter, Trailer
from fastlane_grpc.record.format import BLOCK_BYTES, pack_frame_header
from tests.record_model import (
    NOTHING,
    Entry,
    check_truth,
    entries_of,
    everything,
    overwrite,
    punch,
    reading,
    segments,
    text,
)

OUT, ERR = Source.STDOUT, Source.STDERR

# Writes `sys.argv[2]` times, in sizes from nothing to three blocks. Begins when it is told to.
WRITER = """
import random, sys
from pathlib import Path
from fastlane_grpc.model import Source
from fastlane_grpc.record import RecordWriter

choose = random.Random(1)
writer = RecordWriter.create(Path(sys.argv[1]), execution_id="e", capture="attach")
print("made", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    size = choose.choice([choose.randint(0, 200), choose.randint(0, 200_000)])
    writer.write([(Source.STDOUT, choose.randbytes(size)), (Source.STDERR, b"%d\\n" % number)], number + 1)
writer.seal(0, {}, 1)
"""


def start_writer(path: Path, writes: int) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(writes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"made\n"
    return process


def begin(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def follow(reader: RecordReader, trailer: list[Trailer]) -> Iterator[Entry]:
    """All entries up to the trailer, looked for again and again."""
    position = Position.BEGIN
    while not trailer:
        segment = reader.read(position)
        yield from segment.entries
        position = segment.next
        if segment.trailer:
            trailer.append(segment.trailer)


def test_what_one_process_writes_another_reads_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with start_writer(path, 400) as process, reading(path) as reader:
        assert reader.trailer() is None
        begin(process)
        trailer: list[Trailer] = []
        reached, crcs, sequence = dict(NOTHING), dict(NOTHING), 0
        for entry in follow(reader, trailer):
            assert isinstance(entry, Chunk)
            assert (entry.offset, entry.sequence) == (reached[entry.source], sequence + 1)
            reached[entry.source] += len(entry.data)
            crcs[entry.source] = crc32(entry.data, crcs[entry.source])
            sequence = entry.sequence
        assert process.wait() == 0
    assert reached[OUT] > 10_000_000
    assert [(total.source, total.bytes, total.crc32) for total in trailer[0].totals] == [
        (source, reached[source], crcs[source]) for source in (OUT, ERR)
    ]


@pytest.mark.parametrize("writes", [5, 30, 100])
def test_a_record_whose_writer_was_killed_is_read_and_resumed(tmp_path: Path, writes: int) -> None:
    path = tmp_path / "log"
    entries: list[Entry] = []
    position = Position.BEGIN
    with start_writer(path, 100_000) as process, reading(path) as reader:
        begin(process)
        while sum(entry.source is ERR for entry in entries) < writes:
            segment = reader.read(position)
            entries += segment.entries
            position = segment.next
        process.kill()
        process.wait()
        writer = RecordWriter.resume(path)
        writer.write([(ERR, b"resumed")], 1)
        writer.seal(None, {}, 1)
        found = segments(reader, position)
        entries += entries_of(found)
        assert found[-1].trailer is not None
        assert entries == entries_of(segments(reader))
    assert not any(isinstance(entry, Gap) for entry in entries)
    last = entries[-1]
    assert isinstance(last, Chunk)
    assert last.data.endswith(b"resumed")


def test_a_reader_beside_a_writer_that_is_torn_again_and_again_sees_no_damage(tmp_path: Path) -> None:
    """A torn frame is cut off and another one written in its place, while the reader looks."""
    path = tmp_path / "log"
    RecordWriter.create(path, execution_id="e", capture="attach").close()
    content = {OUT: bytearray(), ERR: bytearray()}

    def write() -> None:
        for number in range(300):
            writer = RecordWriter.resume(path)
            content[OUT] += text(number, 20_000)
            writer.write([(OUT, text(number, 20_000))], number + 1)
            writer.close()
            place = path.stat().st_size
            size = min(40_000, -place % BLOCK_BYTES - 16)
            if size > 100:
                overwrite(path, place, pack_frame_header(1, size, number + 1, 7) + text(number, size // 2))
        RecordWriter.resume(path).seal(0, {}, 1)

    thread = threading.Thread(target=write)
    with reading(path) as reader:
        thread.start()
        entries = list(follow(reader, []))
        thread.join()
    assert not any(isinstance(entry, Gap) for entry in entries)
    assert check_truth(entries, content, NOTHING)[OUT] == 300 * 20_000


def test_blocks_that_are_punched_out_are_gaps_for_those_who_come_late(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = RecordWriter.create(path, execution_id="e", capture="attach")
    for number in range(100):
        writer.write([(OUT, text(number, 20_000)), (ERR, b"%d" % number)], number)
    content = {
        OUT: b"".join(text(number, 20_000) for number in range(100)),
        ERR: b"".join(b"%d" % number for number in range(100)),
    }
    with reading(path) as reader:
        early = reader.read(Position.BEGIN)
        on_disk = path.stat().st_blocks
        punch(path, 3 * BLOCK_BYTES, 20 * BLOCK_BYTES)
        assert path.stat().st_blocks < on_disk
        trailer = writer.seal(0, {}, 100)
        for begin_at in (Position.BEGIN, early.next):
            found = segments(reader, begin_at)
            gaps = [entry for entry in entries_of(found) if isinstance(entry, Gap)]
            assert [(gap.source, gap.cause) for gap in gaps] == [(OUT, Cause.STORE), (ERR, Cause.STORE)]
            assert check_truth(entries_of(found), content, begin_at.offsets)[OUT] == 2_000_000
            assert found[-1].trailer == trailer
    # The totals are of what was written, whatever was taken away later.
    assert [total.crc32 for total in trailer.totals] == [crc32(content[OUT]), crc32(content[ERR])]


def test_its_name_and_its_end_are_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be had here: that the kernel is asked has to do."""
    synced: list[str] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
    writer = RecordWriter.create(tmp_path / "log", execution_id="e", capture="attach")
    assert synced == [str(tmp_path)]
    writer.seal(0, {}, 1)
    assert synced == [str(tmp_path), str(tmp_path / "log")]


def test_a_read_that_catches_a_file_in_the_middle_of_a_change_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read is not one step: it may bring old bytes beside new ones. That is no damage, though what follows is
    there."""
    path = tmp_path / "log"
    writer = RecordWriter.create(path, execution_id="e", capture="attach")
    writer.write([(OUT, text(1, 200_000))], 1)
    whole = everything(path)
    pread, reads = os.pread, []

    def mixed(fd: int, size: int, place: int) -> bytes:
        raw = pread(fd, size, place)
        reads.append(place)
        return raw if len(reads) > 1 else raw[:1_000] + bytes(100) + raw[1_100:]

    monkeypatch.setattr(os, "pread", mixed)
    with reading(path) as reader:
        assert list(reader.read(Position.BEGIN).entries) == whole


def test_a_torn_end_that_cannot_be_cut_off_at_once_is_cut_off_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    writer = RecordWriter.create(path, execution_id="e", capture="attach")
    size = path.stat().st_size
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", fail)
        pwritev = os.pwritev
        broken.setattr(
            os,
            "pwritev",
            lambda fd, parts, place: fail() if place > size else pwritev(fd, [b"".join(parts)[:100_000]], place),
        )
        with pytest.raises(OSError, match="Input/output"):
            writer.write([(OUT, bytes(200_000))], 1)
    writer.gap(OUT, 200_000 - writer.taken, Cause.STORE, 2)
    trailer = writer.seal(0, {}, 3)
    with reading(path) as reader:
        assert segments(reader)[-1].trailer == reader.trailer() == trailer
    assert path.read_bytes().endswith(b'"facts":{}}')


def fail(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MiB; in no directory any more, only open: so it goes with this process, whatever
    happens."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], capture_output=True).returncode
        != 0
    ):
        pytest.skip("needs the right to mount a tmpfs")
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        subprocess.run(["umount", "--lazy", directory], check=True)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize("free_pages", [0, 1, 2, 3, 15, 16, 17, 18, 33, 40, 60])
def test_on_a_full_disk_a_write_waits_for_room_and_nothing_is_lost_or_doubled(
    small_disk: Path, free_pages: int
) -> None:
    path, ballast = small_disk / "log", small_disk / "ballast"
    writer = RecordWriter.create(path, execution_id="e", capture="attach")
    writer.write([(OUT, b"begin")], 1)
    ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - free_pages * 4096))
    pieces = [(OUT, text(1, 70_000)), (ERR, text(2, 50_000)), (OUT, text(3, 150_000))]
    with reading(path) as reader:
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                writer.write(pieces, 2)
        early = segments(reader)
        assert early[-1].next.file_offset == path.stat().st_size
        ballast.unlink()
        writer.write([*pieces, (ERR, b"more")], 3)
        trailer = writer.seal(0, {}, 4)
        late = segments(reader, early[-1].next)
        content = {OUT: b"begin" + pieces[0][1] + pieces[2][1], ERR: pieces[1][1] + b"more"}
        assert check_truth(entries_of(early + late), content, NOTHING) == {OUT: 220_005, ERR: 50_004, Source.SYSTEM: 0}
        assert late[-1].trailer == trailer
    assert [total.crc32 for total in trailer.totals] == [crc32(content[OUT]), crc32(content[ERR])]
    assert everything(path) == entries_of(early + late)
