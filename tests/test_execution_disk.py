"""A disk without room for output: the container waits, and what is lost when it is killed is counted."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Cause, Source, State
from tests.engine import EngineHarness, by_attach, by_recorder, opened

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root"),
]

LINES = b"0123456789abcde\n" * (4 << 16)  # 4 MiB


@pytest.fixture
def harness(tmp_path: Path, image: str, capture: CaptureMode) -> Iterator[EngineHarness]:
    """One whose logs have a file system of 1 MiB."""
    logs = tmp_path / "logs"
    logs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", logs], check=True)
    try:
        with opened(tmp_path, image, capture=capture) as harness:
            yield harness
    finally:
        subprocess.run(["umount", "--lazy", logs], check=True)


def make_room(harness: EngineHarness) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", harness.directory / "logs"], check=True)


def test_a_container_waits_for_room_and_nothing_is_lost(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "yes 0123456789abcde | head -c 4194304; exit 7")
    harness.wait_for_full_disk()
    make_room(harness)
    execution = going.result()
    assert execution.outcome is not None
    assert (execution.state, execution.outcome.exit_code) == (State.FAILED, 7)
    output = harness.output(going.id)
    assert output.stdout == LINES
    assert not [gap for gap in output.gaps if gap.missing_bytes is not None]


@by_attach
def test_what_a_killed_container_could_not_store_is_a_gap(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "yes 0123456789abcde")
    harness.wait_for_full_disk()
    harness.stop(going.id, grace=0)
    going.wait_for(Step.DIED)
    make_room(harness)
    execution = going.result()
    assert execution.state is State.STOPPED
    output = harness.output(going.id)
    known = [gap for gap in output.gaps if gap.missing_bytes is not None]
    assert {(gap.source, gap.cause) for gap in known} == {(Source.STDOUT, Cause.STORE)}
    missing = sum(gap.missing_bytes or 0 for gap in known)
    assert missing > 0
    assert LINES.startswith(output.stdout[:1000])
    total = execution.logs[0]
    assert (total.bytes, total.missing_bytes, total.crc32) == (len(output.stdout) + missing, missing, None)


@by_recorder
def test_what_a_killed_container_has_printed_is_stored_or_counted(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "yes 0123456789abcde")
    harness.wait_for_full_disk()
    harness.stop(going.id, grace=0)
    make_room(harness)
    execution = going.result()
    assert execution.state is State.STOPPED
    output = harness.output(going.id)
    assert LINES.startswith(output.stdout[: len(LINES)])
    assert output.trailer is not None
    total = execution.logs[0]
    assert total.bytes == len(output.stdout) + (total.missing_bytes or 0)
    assert sum(gap.missing_bytes or 0 for gap in output.gaps) == total.missing_bytes
