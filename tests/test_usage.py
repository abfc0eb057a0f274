"""What a container used is counted by the kernel, told by the recorder, and answered with its execution."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.backend import Handle
from fastlane_grpc.client import Client, StateChange
from fastlane_grpc.docker.usage import usage_of as usage_of_stats
from fastlane_grpc.execution import Step, usage
from fastlane_grpc.execution.final_state import usage_of
from fastlane_grpc.model import Execution, State, Times, Usage, utc_now
from fastlane_grpc.record import Trailer
from fastlane_grpc.store.rows import usage_from, usage_text
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import PROGRAM, on_terminal
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


# ------------------------------------------------------------------------------------------------------ while it runs


@pytest.fixture
def busy(client: Client, image: str) -> Iterator[pb.Job]:
    """A job that runs and uses a CPU, until it is stopped."""
    job = client.enqueue("busy", image, args=["sh", "-c", "echo; while :; do :; done"], stop_grace=0)
    tail = client.tail_job(job.id)
    for event in tail:
        if isinstance(event, StateChange) and event.state == pb.STATE_RUNNING:
            break
    yield job
    client.stop(job.id)
    for _ in tail:
        pass


@pytest.mark.engine
def test_what_a_running_container_uses_is_told_to_those_who_ask(server: Server, client: Client, busy: pb.Job) -> None:
    def look() -> pb.Usage:
        [found] = client.executions(task_id="busy", states=[pb.STATE_RUNNING], with_usage=True)
        assert found.id == busy.execution.id
        return found.usage

    first = look()
    assert not client.execution(busy.execution.id).HasField("usage")
    assert first.cpu_time.ToTimedelta() > timedelta()
    assert (first.memory_bytes > 0, first.HasField("peak_memory_bytes")) == (True, False)
    environment = {"FASTLANE_ADDRESS": server.address}
    shown = forked_run(PROGRAM, "top", "--task", "busy", environment=environment).stdout.decode().splitlines()
    assert shown[0].split() == ["EXECUTION", "TASK", "CPU", "MEMORY", "READ", "WRITTEN", "RAN", "HOST", "STATE"]
    row = shown[1].split()
    assert (row[:2], len(shown)) == ([busy.execution.id, "busy"], 2)
    # Beside other tests, the job may get a small part of a CPU.
    assert 0 < int(row[2].removesuffix("%")) < 300
    assert look().cpu_time.ToTimedelta() > first.cpu_time.ToTimedelta()
    as_json = forked_run(PROGRAM, "top", "-o", "json", environment=environment).stdout.splitlines()
    told = next(each for each in map(json.loads, as_json) if each["id"] == busy.execution.id)
    assert int(told["usage"]["memory_bytes"]) > 0
    nothing = forked_run(PROGRAM, "top", "--task", "other", environment=environment)
    assert (nothing.stdout, nothing.stderr) == (b"", b"fastlane: no running executions\n")


@pytest.mark.engine
def test_a_terminal_shows_what_is_used_until_it_is_left(server: Server, busy: pb.Job) -> None:
    keys = [("%", b"\x03")]
    _, seen = on_terminal(server, "top", "--interval", "1s", keys=keys, columns=50, COLUMNS="")  # type: ignore[arg-type]
    screens = seen.split("\x1b[J")
    assert len(screens) >= 3
    lines = [line.rstrip("\r") for screen in screens[1:-1] for line in screen.split("\n")]
    assert [line for line in lines if len(line) >= 50] == []
    assert "1 running\r\nEXECUTION" in screens[1]
    assert busy.execution.id[:18] in screens[1]


class Asked:
    """A backend that answers when it is let."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[str] = []

    def usage(self, handle: Handle) -> Usage | None:
        self.asked.append(handle.container_id)
        self.answer.wait(20)
        return Usage(memory_bytes=len(self.asked))


async def test_an_engine_that_hangs_holds_up_nobody_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "SHARED_SECONDS", 60.0)
    monkeypatch.setattr(usage, "ANSWER_SECONDS", 60.0)
    slow, fast = Asked(), Asked()
    fast.answer.set()
    hosts: Any = [SimpleNamespace(name=name, up=True, backend=each) for name, each in (("a", slow), ("b", fast))]
    sampler = usage.UsageSampler(hosts)

    def running(host: str) -> list[Execution]:
        now = utc_now()
        plain = Execution("", "j", "t", State.RUNNING, Times(now, now), now, host=host, handle="{}")
        return [replace(plain, id=f"{host}{n}", container_id=f"{host}{n}") for n in range(3)]

    queued = replace(running("a")[0], id="c", state=State.QUEUED)
    assert len(await sampler.of([*running("b"), queued])) == 3
    monkeypatch.setattr(usage, "ANSWER_SECONDS", 0.01)
    for _ in range(2):
        assert (await sampler.of([*running("a"), *running("b")])).keys() == {"b0", "b1", "b2"}
    slow.answer.set()
    monkeypatch.setattr(usage, "ANSWER_SECONDS", 60.0)
    assert len(await sampler.of([*running("a"), *running("b")])) == 6
    assert (sorted(slow.asked), sorted(fast.asked)) == (["a0", "a1", "a2"], ["b0", "b1", "b2"])
    sampler.close()


STATS: dict[str, Any] = {
    "read": "2026-11-29T08:00:00.5Z",
    "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000}},
    "memory_stats": {"usage": 5000, "stats": {"inactive_file": 2000}},
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"op": "Read", "value": 7},
            {"op": "write", "value": 8},
            {"op": "Read", "value": 1},
        ]
    },
}


def test_statistics_of_an_engine_are_read_for_both_versions_of_control_groups() -> None:
    read = usage_of_stats(STATS)
    assert read == Usage(
        timedelta(microseconds=1500), None, 8, 8, 3000, datetime(2026, 11, 29, 8, 0, 0, 500_000, tzinfo=UTC)
    )
    no_disk = {"blkio_stats": {"io_service_bytes_recursive": None}}
    assert usage_of_stats(STATS | no_disk).read_bytes == 0  # type: ignore[union-attr]
    first = usage_of_stats(STATS | no_disk | {"memory_stats": {"usage": 5000, "stats": {"total_inactive_file": 1}}})
    assert (first.memory_bytes, first.read_bytes) == (4999, None)  # type: ignore[union-attr]
    # Of a container that has ended.
    assert usage_of_stats(STATS | {"read": "0001-01-01T00:00:00Z"}) is None
    assert usage_of_stats({}) is None


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
