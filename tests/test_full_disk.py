"""A data directory without any room: jobs are stopped all the same."""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client, Exhausted
from fastlane_grpc.doctor.disk import about_database
from fastlane_grpc.doctor.finding import Level
from fastlane_grpc.machine.data_directory import free_bytes
from fastlane_grpc.store.reserve import PIECES
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.serving import Server, containers, serving_on, within
from tests.small_disk import fill, make_room, small_disk

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as disk:
        yield disk


def take_reserve(data_dir: Path) -> None:
    """As a shortage that lasts does."""
    for piece in data_dir.glob("reserve-*"):
        piece.unlink()


def wait_until_nearly_full(disk: Path) -> None:
    end = time.monotonic() + 60
    while free_bytes(disk) > 1 << 20:
        assert time.monotonic() < end, f"{free_bytes(disk)} bytes are free"
        time.sleep(0.05)


def end_of(client: Client, job_id: str) -> pb.Job:
    end = time.monotonic() + 30
    while True:
        job = client.job(job_id)
        if job.state in {pb.STATE_SUCCEEDED, pb.STATE_FAILED, pb.STATE_STOPPED, pb.STATE_LOST}:
            return job
        assert time.monotonic() < end, f"the job is {pb.State.Name(job.state)}"
        time.sleep(0.1)


def wait_for_reserve(client: Client, data_dir: Path, job_id: str) -> None:
    end = time.monotonic() + 30
    while len([*data_dir.glob("reserve-*")]) < PIECES:
        assert time.monotonic() < end, "the reserve is not made again"
        # It is looked at after each write.
        client.stop(job_id)
        time.sleep(0.1)


def wait_for_death(sdk: docker.DockerClient, data_dir: Path) -> None:
    (container_id,) = containers(sdk, data_dir) or (None,)
    end = time.monotonic() + 30
    while container_id and sdk.api.containers(filters={"id": container_id}):
        assert time.monotonic() < end, "the container runs still"
        time.sleep(0.1)


def test_a_job_that_filled_the_disk_is_stopped_before_that_is_stored(
    disk: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir = disk / "data"
    with serving_on(sdk, data_dir, max_running=1) as server, Client(server.address, retry_for=0) as client:
        flood = client.enqueue("flood", image, "yes 0123456789abcde", network="none")
        waiting = client.enqueue("later", image, "true")
        wait_until_nearly_full(disk)
        take_reserve(data_dir)
        fill(disk)
        with within(10):
            stopping = client.stop(flood.id, grace=5, note="enough")
        assert stopping.state == stopping.execution.state == pb.STATE_STOPPING
        # One that comes again is the same order, unless it leaves less time.
        for grace in (60, 0):
            assert client.stop(flood.id, grace=grace).state == pb.STATE_STOPPING
        wait_for_death(sdk, data_dir)
        with pytest.raises(Exhausted, match="there is no room to write"):
            client.stop(waiting.id)
        make_room(disk)
        job = end_of(client, flood.id)
        assert job.state == pb.STATE_STOPPED
        assert "enough" in job.outcome.detail
        assert server.log.count("a stop is carried out before it is on disk") == 2
        assert end_of(client, waiting.id).state == pb.STATE_SUCCEEDED


def test_a_server_starts_on_a_full_disk_and_stops_and_prunes_there(
    disk: Path, sdk: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data_dir = disk / "data"
    # The log has room: what the server says at the end is looked at.
    Path(f"{data_dir}.log").symlink_to(tmp_path_factory.mktemp("log") / "log")
    server = Server(data_dir)
    with Client(server.address) as client:
        flood = client.enqueue("flood", image, "yes 0123456789abcde", network="none")
        wait_until_nearly_full(disk)
    server.kill()
    fill(disk)
    with serving_on(sdk, data_dir) as server, Client(server.address) as client:
        assert next(iter(client.tail(flood.execution.id))) is not None
        assert client.stop(flood.id, grace=0).state == pb.STATE_STOPPING
        assert end_of(client, flood.id).state == pb.STATE_STOPPED
        assert client.prune(older_than=timedelta(), logs_only=True).logs == 1
        wait_for_reserve(client, data_dir, flood.id)
    take_reserve(data_dir)
    fill(disk)
    with pytest.raises(RuntimeError, match=r"cannot start: the disk of \S+ is full \(\d+ bytes free\); free some"):
        Server(data_dir)
    (finding,) = about_database(data_dir, None)
    assert finding.level is Level.FAIL
    assert "the disk is full" in finding.found
