"""The copy of a record that a relay writes: the permission that is given once, and pieces that fit."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.capture.relayed_record import (
    MAX_RECORD_BYTES,
    Permission,
    PieceInvalid,
    RelayedRecord,
    StartRevoked,
    check_start,
    close,
    decide,
    is_received,
    is_unsynced,
    new_pod,
    note_unbegun,
    permission,
    pod_number,
    unbegun,
)
from fastlane_grpc.model import Source
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.record.format import BLOCK_BYTES
from tests.sparse_disk import sparse_disk

GRANTED, REVOKED = Permission.GRANTED, Permission.REVOKED


def opened(directory: Path, max_bytes: int = 0) -> RelayedRecord:
    record = RelayedRecord(directory, max_bytes)
    record.open()
    return record


@pytest.mark.parametrize("first", [GRANTED, REVOKED])
def test_the_first_decision_stays(tmp_path: Path, first: Permission) -> None:
    directory = tmp_path / "execution"
    assert permission(directory) is None
    assert decide(directory, first) is first
    for wanted in (GRANTED, REVOKED):
        assert decide(directory, wanted) is first
    assert permission(directory) is first
    assert [path.name for path in directory.iterdir()] == ["relay"]


def test_a_grant_and_a_revocation_at_once_are_one_decision(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        for number in range(50):
            directory = tmp_path / str(number)
            decided = threads.map(decide, [directory, directory], [GRANTED, REVOKED])
            assert len({*decided, permission(directory)}) == 1


def test_a_revoked_start_has_no_record(tmp_path: Path) -> None:
    decide(tmp_path, REVOKED)
    with pytest.raises(StartRevoked):
        opened(tmp_path)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("offset", "size"),
    [(4, 5), (6, 5), (0, 5), (5, 0), (2 * BLOCK_BYTES, 0), (1 << 63, 5), (MAX_RECORD_BYTES, 1)],
    ids=["overlap", "gap", "again", "empty", "skipped blocks alone", "huge", "beyond the largest file"],
)
def test_a_piece_that_does_not_fit_changes_nothing(tmp_path: Path, offset: int, size: int) -> None:
    record = opened(tmp_path)
    record.store(0, b"first")
    with pytest.raises(PieceInvalid):
        record.store(offset, b"x" * size)
    assert (tmp_path / "log").read_bytes() == b"first"
    record.store(5, b" second")
    assert (record.finish(12), (tmp_path / "log").read_bytes()) == (12, b"first second")
    record.close()


def test_only_whole_blocks_are_skipped(tmp_path: Path) -> None:
    record = opened(tmp_path)
    record.store(0, b"first")
    with pytest.raises(PieceInvalid):
        record.store(3 * BLOCK_BYTES + 1, b"later")
    record.store(3 * BLOCK_BYTES, b"later")
    assert record.finish(3 * BLOCK_BYTES + 5) == 3 * BLOCK_BYTES + 5
    record.close()


def test_a_copy_that_lacks_the_first_block_to_go_keeps_its_size_limit(tmp_path: Path) -> None:
    writer = RecordWriter.create(tmp_path / "whole", execution_id="e", capture="recorder")
    for _ in range(40):
        writer.write([(Source.STDOUT, bytes(60_000))], 1)
    writer.close()
    content = (tmp_path / "whole").read_bytes()
    record = opened(tmp_path, 8 * BLOCK_BYTES)
    for number in (0, 1, 2, *range(20, -(-len(content) // BLOCK_BYTES))):
        record.store(number * BLOCK_BYTES, content[number * BLOCK_BYTES :][:BLOCK_BYTES])
    record.close()
    assert (tmp_path / "log").stat().st_blocks * 512 <= 9 * BLOCK_BYTES


@settings(max_examples=30)
@given(content=st.binary(min_size=1, max_size=3 * BLOCK_BYTES), cuts=st.lists(st.integers(1, 60_000), max_size=12))
def test_a_copy_that_is_broken_off_anywhere_goes_on_at_its_last_block(content: bytes, cuts: list[int]) -> None:
    with TemporaryDirectory() as directory:
        for cut in [*cuts, len(content)]:
            record = opened(Path(directory))
            assert record.position == record.size - record.size % BLOCK_BYTES
            if piece := content[record.position : record.position + max(cut, BLOCK_BYTES + 1)]:
                record.store(record.position, piece)
            record.close()
        while (record := opened(Path(directory))).size < len(content):
            record.store(record.position, content[record.position : record.position + 2 * BLOCK_BYTES])
            record.close()
        record.close()
        assert (Path(directory) / "log").read_bytes() == content


def test_a_copy_that_its_disk_did_not_take_is_cut_back_to_what_it_took(tmp_path: Path) -> None:
    piece = os.urandom(4 * BLOCK_BYTES)
    with sparse_disk(tmp_path) as disk:
        directory = disk.path / "execution"
        directory.mkdir()
        record, synced = opened(directory), 0
        with pytest.raises(OSError, match="No space left"):
            while True:
                record.store(record.position, piece)
                synced = record.sync()
        end = record.position
        assert is_unsynced(directory)
        disk.make_room()
        # The kernel would say now that all is well.
        with pytest.raises(OSError, match="earlier part"):
            record.sync()
        with pytest.raises(OSError, match="earlier part"):
            record.finish(end)
        assert not is_received(directory)
        record.close()
        record = opened(directory)
        assert (record.position, record.size, is_unsynced(directory)) == (synced, synced, False)
        record.store(synced, piece)
        assert record.finish(end) == end
        record.close()
        with (directory / "log").open("rb") as log:
            os.posix_fadvise(log.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert log.read() == piece * (end // len(piece))


# Stores pieces until the disk does not take one, prints up to where it has taken them, and is killed.
STORES_UNTIL_KILLED = """
import os, signal, sys
from pathlib import Path
from fastlane_grpc.capture.relayed_record import RelayedRecord
record, synced = RelayedRecord(Path(sys.argv[1]), 0), 0
record.open()
try:
    while True:
        record.store(record.position, os.urandom(int(sys.argv[2])))
        synced = record.sync()
except OSError:
    os.write(2, b"%d" % synced)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_server_cuts_back_a_copy_that_its_disk_did_not_take(tmp_path: Path) -> None:
    with sparse_disk(tmp_path) as disk:
        directory = disk.path / "execution"
        directory.mkdir()
        words = [sys.executable, "-c", STORES_UNTIL_KILLED, str(directory), str(4 * BLOCK_BYTES)]
        killed = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        assert killed.returncode == -signal.SIGKILL
        synced = int(killed.stderr)
        assert is_unsynced(directory)
        disk.make_room()
        # The full disk may not have taken up to where that was: then the node sends all that it has.
        record = RelayedRecord(directory, 0, kept_from=synced)
        record.open()
        assert (record.position, record.size, is_unsynced(directory)) == (synced, synced, False)
        record.close()


@pytest.mark.parametrize("noted", ["", "\0\0\0", "no number"])
def test_a_copy_is_sent_again_as_a_whole_if_it_is_not_known_what_its_disk_took(tmp_path: Path, noted: str) -> None:
    record = opened(tmp_path)
    record.store(0, bytes(2 * BLOCK_BYTES))
    record.close()
    (tmp_path / "relay-unsynced").write_text(noted)
    assert is_unsynced(tmp_path)
    record = opened(tmp_path)
    assert (record.position, record.size, is_unsynced(tmp_path)) == (0, 0, False)
    record.close()


def test_a_copy_is_never_cut_back_to_where_its_node_has_nothing_more(tmp_path: Path) -> None:
    piece = os.urandom(4 * BLOCK_BYTES)
    with sparse_disk(tmp_path) as disk:
        directory = disk.path / "execution"
        directory.mkdir()
        record = opened(directory)
        record.store(0, piece)
        punched = record.sync()
        record.close()
        # The next server, which has not synced it yet.
        record = opened(directory)
        while record.position < 32 << 20:
            record.store(record.position, piece)
        with pytest.raises(OSError, match="No space left"):
            record.sync()
        record.close()
        record = RelayedRecord(directory, 0, kept_from=punched)
        record.open()
        assert record.position == punched
        record.close()


def test_a_new_pod_is_decided_about_anew_until_one_was_granted(tmp_path: Path) -> None:
    directory = tmp_path / "execution"
    first = new_pod(directory)
    assert (pod_number(directory), permission(directory)) == (first, None)
    decide(directory, REVOKED)
    second = new_pod(directory)
    assert second != first
    assert (pod_number(directory), permission(directory)) == (second, None)
    decide(directory, GRANTED)
    with pytest.raises(FileExistsError):
        new_pod(directory)
    assert (pod_number(directory), permission(directory)) == (second, GRANTED)


def test_a_pod_whose_command_never_ran_may_be_replaced_and_stores_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "execution"
    new_pod(directory)
    opened(directory).close()
    note_unbegun(directory, "")
    with pytest.raises(StartRevoked, match="no command of this pod would run"):
        opened(directory)
    with pytest.raises(StartRevoked):
        check_start(directory)
    new_pod(directory)
    assert (unbegun(directory), permission(directory)) == (None, None)
    check_start(directory)
    opened(directory).close()
    assert permission(directory) is GRANTED


def test_a_closed_record_stores_nothing_more(tmp_path: Path) -> None:
    record = opened(tmp_path)
    record.store(0, b"first")
    close(tmp_path)
    with pytest.raises(StartRevoked, match="closed"):
        record.store(5, b"second")
    record.close()
    with pytest.raises(StartRevoked):
        opened(tmp_path)
    assert (tmp_path / "log").read_bytes() == b"first"


def test_two_relays_do_not_store_at_once(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(BlockingIOError):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_record_of_which_something_is_missing_is_not_finished(tmp_path: Path) -> None:
    record = opened(tmp_path)
    record.store(0, b"first")
    with pytest.raises(PieceInvalid, match="ends at 6"):
        record.finish(6)
    assert not (tmp_path / "relay-end").exists()
    record.finish(5)
    assert (tmp_path / "relay-end").exists()
    record.close()
