"""The two names of a record: what is told of it is told by the record alone, whatever a container made in the directory
it was given."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings

from fastlane_grpc.capture.handoff import CommandStatus, RecordHandoff
from fastlane_grpc.capture.handoff_watcher import HandoffWatcher
from fastlane_grpc.logs import Logs
from tests.hostile_tree import few_descriptors, make_deep, make_tree, trees
from tests.recorder_program import eventually


@contextmanager
def claimed(directory: Path) -> Iterator[tuple[RecordHandoff, Path]]:
    """A handoff whose record a recorder has taken, has begun and has locked."""
    handoff = RecordHandoff(directory)
    mounted = handoff.make()
    recorder = os.open(mounted / "log", os.O_RDWR)
    fcntl.flock(recorder, fcntl.LOCK_EX)
    (mounted / "log").unlink()
    os.write(recorder, b"begun")
    try:
        yield handoff, mounted
    finally:
        os.close(recorder)


def clear(handoff: RecordHandoff) -> None:
    until = time.monotonic() + 60
    while not handoff.clear():
        assert time.monotonic() < until


@settings(max_examples=50)
@given(trees)
def test_a_hand_off_is_decided_by_its_record_and_clears_any_mount(tree: object) -> None:
    with TemporaryDirectory() as directory:
        with claimed(Path(directory, "e")) as (handoff, mounted):
            make_tree(mounted, tree)
            assert (handoff.claimed, handoff.recorder_is_running, handoff.revoke()) == (True, True, CommandStatus.RUNS)
            with pytest.raises(FileExistsError):
                handoff.make()
        assert (handoff.claimed, handoff.recorder_is_running, handoff.revoke()) == (True, False, CommandStatus.ENDED)
        clear(handoff)
        assert [path.name for path in Path(directory, "e").iterdir()] == ["log"]
        assert handoff.revoke() is CommandStatus.ENDED


@settings(max_examples=30)
@given(trees)
def test_a_log_is_measured_set_aside_and_deleted_whatever_is_beside_it(tree: object) -> None:
    execution_id = "01a2216f-d680-7481-8fa9-d63d5211de09"
    with TemporaryDirectory() as directory:
        logs = Logs(Path(directory))
        for aside in (False, True):
            with claimed(logs.path(execution_id)) as (_, mounted):
                make_tree(mounted, tree)
            assert logs.room(execution_id) > 0
            if aside:
                logs.set_aside(execution_id)
                assert [path.name for path in logs.path(execution_id).iterdir()] == ["log"]
            logs.delete(execution_id)
            while logs.left_over.step():
                pass
            assert list(Path(directory).iterdir()) == []


def test_a_deep_mount_is_cleared_in_steps_that_hold_up_nobody(tmp_path: Path) -> None:
    with claimed(tmp_path / "e") as (handoff, mounted):
        make_deep(mounted, 2_500)
        steps = 0
        while not handoff.clear():
            steps += 1
        assert steps > 1
    assert not mounted.exists()


def test_a_record_that_has_not_been_taken_is_revoked_for_good(tmp_path: Path) -> None:
    handoff = RecordHandoff(tmp_path / "e")
    mounted = handoff.make()
    assert (handoff.claimed, handoff.recorder_is_running) == (False, False)
    assert handoff.revoke() is CommandStatus.NEVER_RAN
    assert (handoff.claimed, (mounted / "log").exists(), handoff.record.stat().st_nlink) == (True, False, 1)
    assert handoff.revoke() is CommandStatus.NEVER_RAN


def test_a_record_with_a_name_in_a_backup_is_told_all_the_same(tmp_path: Path) -> None:
    handoff = RecordHandoff(tmp_path / "e")
    handoff.make()
    (tmp_path / "backup").hardlink_to(handoff.record)
    assert not handoff.claimed
    assert handoff.revoke() is CommandStatus.NEVER_RAN
    with claimed(tmp_path / "f") as (handoff, mounted):
        (tmp_path / "another").hardlink_to(handoff.record)
        assert handoff.claimed
        clear(handoff)
        assert not mounted.exists()


def test_a_record_that_was_deleted_proves_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path / "e") as (handoff, _):
        handoff.record.unlink()
        assert (handoff.claimed, handoff.revoke()) == (True, CommandStatus.UNKNOWN)
    fresh = RecordHandoff(tmp_path / "f")
    fresh.make()
    fresh.record.unlink()
    assert fresh.revoke() is CommandStatus.UNKNOWN


def test_a_record_without_a_descriptor_to_look_at_it_tells_nothing(tmp_path: Path) -> None:
    handoff = RecordHandoff(tmp_path / "e")
    handoff.make()
    with few_descriptors(0):
        for ask in (lambda: handoff.recorder_is_running, handoff.revoke, handoff.make, handoff.clear):
            with pytest.raises(OSError, match="Too many open files"):
                ask()
        assert not handoff.claimed
    assert handoff.revoke() is CommandStatus.NEVER_RAN


# -- the hand-off


@pytest.mark.parametrize("use_inotify", [True, False], ids=["inotify", "polling"])
def test_a_mount_is_removed_at_the_moment_when_its_record_is_taken(tmp_path: Path, use_inotify: bool) -> None:
    handoff_watcher = HandoffWatcher(use_inotify=use_inotify)
    took = []
    for number in range(10):
        handoff = RecordHandoff(tmp_path / str(number))
        mounted = handoff.make()
        handoff_watcher.add(mounted, handoff.record)
        threading.Event().wait(0.005)
        assert mounted.exists()
        (mounted / "log").unlink()
        began = time.monotonic()
        eventually(lambda gone=mounted: not gone.exists())
        took.append(time.monotonic() - began)
    # A machine that is busy may be late now and then, but not each time.
    assert min(took) < 0.05


def test_many_mounts_at_a_time_are_removed_each_in_its_turn(tmp_path: Path) -> None:
    handoff_watcher = HandoffWatcher()
    made = []
    for number in range(50):
        handoff = RecordHandoff(tmp_path / str(number))
        made.append(handoff.make())
        handoff_watcher.add(made[-1], handoff.record)
    for mounted in made[::2]:
        (mounted / "log").unlink()
    eventually(lambda: not any(mounted.exists() for mounted in made[::2]))
    assert all((mounted / "log").exists() for mounted in made[1::2])
    for mounted in made[1::2]:
        handoff_watcher.discard(mounted)


def test_a_mount_that_was_filled_before_the_hand_off_is_left_to_the_clearing(tmp_path: Path) -> None:
    handoff_watcher = HandoffWatcher()
    with claimed(tmp_path / "e") as (handoff, mounted):
        (mounted / "log").mkdir()
        handoff_watcher.add(mounted, handoff.record)
        other = RecordHandoff(tmp_path / "other")
        gone = other.make()
        handoff_watcher.add(gone, other.record)
        (gone / "log").unlink()
        eventually(lambda: not gone.exists())
        assert mounted.exists()
        clear(handoff)
        assert not mounted.exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_a_record_that_was_replaced_by_something_else_proves_nothing(tmp_path: Path, kind: str) -> None:
    with claimed(tmp_path / "e") as (handoff, _):
        handoff.record.unlink()
        if kind == "pipe":
            os.mkfifo(handoff.record)
        else:
            handoff.record.mkdir()
        assert (handoff.recorder_is_running, handoff.revoke()) == (False, CommandStatus.UNKNOWN)


def test_secrets_that_no_recorder_took_are_deleted(tmp_path: Path) -> None:
    handoff = RecordHandoff(tmp_path / "execution")
    for delete in (handoff.discard_secrets, handoff.make, handoff.clear):
        box = handoff.make({"A": b"one\ntwo", "B": b""})
        file = box / "secrets"
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"A=one\ntwo\0B=\0", 0o666)
        delete()
        assert not file.exists()
    assert not (handoff.make() / "secrets").exists()
