"""A disk that has room and no inodes is noticed as one that is full: before a job is taken, and by those that wait for
it."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client, Exhausted
from fastlane_grpc.machine.data_directory import free_inodes, least_free_inodes, missing_room
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.reading import Reader
from tests.serving import serving_on
from tests.test_limits import NOT_SERVING, SERVING, health

INODES = 400
LEAST = INODES // 16

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with few inodes and room enough."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=64m,nr_inodes={INODES}", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """Takes all inodes but so many. The directory with what takes them."""
    ballast = disk / "ballast"
    ballast.mkdir(exist_ok=True)
    with suppress(OSError):
        for number in range(INODES):
            if (free_inodes(disk) or 0) <= left:
                break
            (ballast / f"{time.monotonic_ns()}-{number}").touch()
    assert free_inodes(disk) == left
    return ballast


def empty(ballast: Path) -> None:
    for file in ballast.iterdir():
        file.unlink()


def refusal(client: Client, image: str) -> str:
    with pytest.raises(Exhausted) as refused:
        client.enqueue("t", image, "true")
    return str(refused.value)


def test_a_disk_without_inodes_is_told_from_one_without_room(disk: Path) -> None:
    assert least_free_inodes(disk) == LEAST
    assert missing_room(disk, least_bytes=1 << 20, least_inodes=LEAST) == ""
    fill(disk, LEAST - 1)
    assert f"{LEAST - 1} free inodes" in missing_room(disk, least_bytes=1 << 20, least_inodes=LEAST)
    assert "bytes of free room" in missing_room(disk, least_bytes=1 << 30, least_inodes=LEAST)


def test_a_file_system_that_counts_no_inodes_is_not_refused() -> None:
    # As btrfs, this one says that it has 0 in all.
    assert os.statvfs("/proc").f_files == 0
    assert free_inodes(Path("/proc")) is None
    assert missing_room(Path("/proc"), least_bytes=0, least_inodes=1024) == ""


@pytest.mark.engine
@pytest.mark.slow
def test_without_inodes_no_job_is_taken_and_what_has_a_place_says_that_it_waits(
    disk: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir = disk / "data"
    with (
        serving_on(sdk, data_dir, max_running=1) as server,
        Client(server.address, retry_for=0) as client,
        health(server, "") as whole,
    ):
        assert next(whole) == SERVING
        # One has the only place until it is told; the other one waits for the place, and gets it when there are no
        # inodes.
        first = client.enqueue("t", image, args=["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done"])
        Reader(client, first.execution.id).wait_for_state(pb.STATE_RUNNING)
        second = client.enqueue("t", image, "echo ran").execution.id
        ballast = fill(disk)
        # The first one may still have given an inode back, when the server took down what began it.
        while "has 0 free inodes" not in refusal(client, image):
            fill(disk)
        client.stop(first.id, grace=0)
        until = time.monotonic() + 60
        while (execution := client.execution(second)).state != pb.STATE_PREPARING or not execution.HasField("waiting"):
            assert time.monotonic() < until
            threading.Event().wait(0.05)
        assert execution.waiting.reason == pb.WAIT_REASON_DISK_FULL
        assert "has no inodes left" in execution.waiting.detail
        assert next(whole) == NOT_SERVING
        empty(ballast)
        log = Reader(client, second)
        assert (log.end().exit_status, log.stdout) == (0, b"ran\n")
        assert "has no inodes left" in log.system
        assert next(whole) == SERVING
        client.enqueue("t", image, "true")
        assert server.log.count("the record cannot be made") == 1
