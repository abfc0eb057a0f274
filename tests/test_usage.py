"""What a container used is counted by the kernel, told by the recorder, and answered with its execution."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import docker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.client import Client
from fastlane_grpc.execution import Step
from fastlane_grpc.execution.final_state import usage_of
from fastlane_grpc.model import Usage
from fastlane_grpc.record import Trailer
from fastlane_grpc.store.rows import usage_from, usage_text
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import PROGRAM
from tests.forked import run as forked_run
from tests.reading import run
from tests.serving import Server, serving_on
from tests.succession import Succession

COUNTS = ("cpu_us", "peak_memory_bytes", "read_bytes", "written_bytes")
# A loop of the shell, then 24 MiB that are written.
BUSY = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; head -c 25165824 /dev/zero >/tmp/file; sync"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("usage") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.mark.engine
def test_a_busy_container_used_more_than_an_idle_one(client: Client, image: str) -> None:
    idle, busy = (run(client, image, "sh", "-c", script).execution() for script in ("true", BUSY))
    assert timedelta() < idle.usage.cpu_time.ToTimedelta() < busy.usage.cpu_time.ToTimedelta() < timedelta(minutes=1)
    assert busy.usage.cpu_time.ToTimedelta() > timedelta(milliseconds=20)
    assert busy.usage.peak_memory_bytes >= max(24 << 20, idle.usage.peak_memory_bytes)
    assert client.job(busy.job_id).execution.usage == busy.usage


@pytest.mark.engine
def test_processes_that_nobody_waits_for_are_counted(client: Client, image: str) -> None:
    # The kernel adds nothing of them to the times of their parent.
    script = "trap '' CHLD; (i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done) & wait; true"
    usage = run(client, image, "sh", "-c", script).execution().usage
    assert usage.cpu_time.ToTimedelta() > timedelta(milliseconds=60)


@pytest.mark.engine
def test_memory_of_a_container_with_a_limit_is_at_most_that(client: Client, image: str) -> None:
    usage = run(client, image, "tail", "/dev/zero", memory_bytes=16 << 20).execution().usage
    assert 12 << 20 <= usage.peak_memory_bytes <= 16 << 20


@pytest.mark.engine
def test_the_command_line_shows_what_was_used(server: Server, client: Client, image: str) -> None:
    execution = run(client, image, "true").execution()
    for arguments in (("job", execution.job_id), ("execution", execution.id)):
        shown = forked_run(PROGRAM, *arguments, environment={"FASTLANE_ADDRESS": server.address}).stdout.decode()
        [used] = [line for line in shown.splitlines() if line.startswith("used")]
        assert " s of CPU time, at most " in used


@pytest.mark.engine
def test_by_attach_nobody_knows_what_was_used(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    with serving_on(sdk, tmp_path / "data", capture="attach") as server, Client(server.address) as client:
        assert not run(client, image, "true").execution().HasField("usage")


@pytest.mark.engine
def test_what_was_used_while_no_server_was_there_is_known(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    servers = Succession(tmp_path / "data", sdk, image)
    with closing(servers.client):
        first = servers.server(kill_at=f"{Step.STARTED}:1")
        job = servers.client.enqueue("t", image, args=["sh", "-c", BUSY])
        first.wait()
        servers.server()
        for _ in servers.client.tail_job(job.id):
            pass
        execution = servers.client.execution(job.execution.id)
        servers.servers[-1].stop()
    assert (execution.state, execution.usage.peak_memory_bytes >= 24 << 20) == (pb.STATE_SUCCEEDED, True)


# ---------------------------------------------------------------------------------------- from the record to the answer


def trailer(facts: dict[str, object]) -> Trailer:
    return Trailer(0, (), 0, facts)


@given(st.lists(st.integers(0, 1 << 60), min_size=4, max_size=4))
def test_what_the_recorder_tells_survives_the_store(numbers: list[int]) -> None:
    usage = usage_of(trailer({"usage": dict(zip(COUNTS, numbers, strict=True))}))
    assert usage == Usage(timedelta(microseconds=numbers[0]), *numbers[1:])
    assert usage_from(usage_text(usage)) == usage


@pytest.mark.parametrize("count", [-1, 1 << 61, 1.5, "9", None, True, []])
def test_a_count_that_the_kernel_did_not_tell_is_unset(count: object) -> None:
    usage = usage_of(trailer({"usage": dict.fromkeys(COUNTS, count)}))
    assert usage == Usage()
    assert usage_from(usage_text(usage)) == usage


@pytest.mark.parametrize("facts", [{}, {"usage": None}, {"usage": []}, {"usage": "1"}])
def test_a_record_without_usage_has_none(facts: dict[str, object]) -> None:
    assert usage_of(trailer(facts)) is None
    assert usage_from(usage_text(None)) is None
