"""Jobs that are stopped when nobody watches them: which calls count as watching, and when the time begins."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from fastlane_grpc.api.unwatched import UnwatchedJobs
from fastlane_grpc.client import Client, JobChanged
from fastlane_grpc.errors import DiskFull
from fastlane_grpc.model import Job, JobSpec, State
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests import commands_served
from tests.calls import RpcHarness, detail
from tests.http_client import request
from tests.http_harness import HttpHarness

LIMIT = timedelta(milliseconds=50)
NOTE = "nobody has watched it for 0.05 s"


@pytest.fixture
async def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpHarness]:
    monkeypatch.setattr("fastlane_grpc.api.unwatched.PACE_SECONDS", 0.0)
    harness = HttpHarness(tmp_path)
    jobs = harness.service.unwatched_jobs
    harness.listeners.append(jobs.changed)
    task = harness.supervisor.task("jobs that nobody watches", jobs.run, restart=True)
    await harness.start()
    yield harness
    task.cancel()
    await harness.close()


async def enqueue(harness: RpcHarness, limit: timedelta | None = LIMIT) -> Job:
    """Shorter limits than the contract allows."""
    spec = JobSpec("busybox", stop_when_unwatched=limit)
    job, _ = await harness.store.enqueue(task_id="task", spec=spec, request_id="", caller_address="")
    return job


async def stopped(harness: RpcHarness, job: Job) -> pb.Job:
    """The job, once it was told to stop. A watch of all jobs does not count as watching."""
    call = harness.watch()
    async with asyncio.timeout(30):
        async for message in call:
            if message.job.id == job.id and message.job.state in {pb.STATE_STOPPING, pb.STATE_STOPPED}:
                break
            if message.WhichOneof("event") == "caught_up" and await is_stopped(harness, job):
                break
    call.cancel()
    return (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job


async def is_stopped(harness: RpcHarness, job: Job) -> bool:
    return (await harness.store.job(job.id)).stop_time is not None


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    bad_request = detail(error, error_details_pb2.BadRequest)
    assert bad_request is not None
    return {each.field: each.description for each in bad_request.field_violations}


def follow_job(harness: RpcHarness, job: Job) -> "grpc.aio.UnaryStreamCall[Any, Any]":
    return harness.jobs.StreamJobLogs(pb.StreamJobLogsRequest(job_id=job.id, follow=True))


def follow_execution(harness: RpcHarness, job: Job) -> "grpc.aio.UnaryStreamCall[Any, Any]":
    return harness.stream(job.execution.id, follow=True)


def watch_job(harness: RpcHarness, job: Job) -> "grpc.aio.UnaryStreamCall[Any, Any]":
    return harness.watch(job_ids=[job.id])


class HttpStream:
    """An event stream over HTTP, used as a call of gRPC."""

    def __init__(self, harness: RpcHarness, path: str) -> None:
        assert isinstance(harness, HttpHarness)
        self._connection = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", harness.http_port))
        self._request = request("GET", path, accept="text/event-stream")

    async def read(self) -> bytes:
        """The response up to its first event."""
        reader, writer = await self._connection
        writer.write(self._request)
        return await reader.readuntil(b"data: ")

    def cancel(self) -> None:
        self._connection.result()[1].close()


def follow_job_over_http(harness: RpcHarness, job: Job) -> HttpStream:
    return HttpStream(harness, f"/jobs/{job.id}/logs")


def follow_execution_over_http(harness: RpcHarness, job: Job) -> HttpStream:
    return HttpStream(harness, f"/executions/{job.execution.id}/logs")


def watch_job_over_http(harness: RpcHarness, job: Job) -> HttpStream:
    return HttpStream(harness, f"/watch?job_ids={job.id}")


async def test_a_queued_job_that_nobody_watches_is_stopped(harness: RpcHarness) -> None:
    job = await stopped(harness, await enqueue(harness))
    assert (job.state, job.outcome.detail) == (pb.STATE_STOPPED, f"stopped while it was queued: {NOTE}")


async def test_a_running_job_that_nobody_watches_is_told_to_stop(harness: RpcHarness) -> None:
    job = await enqueue(harness, timedelta(days=1))
    execution, _ = await harness.begin()
    await harness.store.replace_job(
        job.id, task_id="task", spec=JobSpec("busybox", stop_when_unwatched=LIMIT), etag="", caller_address=""
    )
    await stopped(harness, job)
    stopping = await harness.store.execution(execution.id)
    assert stopping.state is State.STOPPING
    assert stopping.stop
    assert stopping.stop.note == NOTE


@pytest.mark.parametrize(
    "watch",
    [
        follow_job,
        follow_execution,
        watch_job,
        follow_job_over_http,
        follow_execution_over_http,
        watch_job_over_http,
    ],
)
async def test_a_job_is_watched_as_long_as_its_stream_is_open(
    harness: RpcHarness, watch: Callable[[RpcHarness, Job], Any]
) -> None:
    job = await enqueue(harness, timedelta(days=1))
    await harness.begin()
    call = watch(harness, job)
    await call.read()
    await harness.store.replace_job(
        job.id, task_id="task", spec=JobSpec("busybox", stop_when_unwatched=LIMIT), etag="", caller_address=""
    )
    # Another job comes later and is stopped meanwhile.
    await stopped(harness, await enqueue(harness))
    assert not await is_stopped(harness, job)
    second = watch(harness, job)
    await second.read()
    call.cancel()
    await stopped(harness, await enqueue(harness))
    assert not await is_stopped(harness, job), "one is left"
    second.cancel()
    await stopped(harness, job)


async def test_calls_that_do_not_follow_the_job_do_not_count(harness: RpcHarness) -> None:
    job = await enqueue(harness)
    everything = harness.watch()
    await everything.read()
    async for _ in harness.stream(job.execution.id, follow=False):
        pass
    await stopped(harness, job)


async def test_a_job_without_a_limit_goes_on(harness: RpcHarness) -> None:
    job = await enqueue(harness, None)
    await stopped(harness, await enqueue(harness))
    assert not await is_stopped(harness, job)


async def test_the_time_begins_anew_with_the_server(tmp_path: Path) -> None:
    harness = RpcHarness(tmp_path)
    job = await enqueue(harness)
    told: list[str] = []
    begin = asyncio.get_running_loop().time()

    async def stop(job_id: str, note: str) -> Job:
        told.append(job_id)
        assert asyncio.get_running_loop().time() - begin >= LIMIT.total_seconds()
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await UnwatchedJobs(harness.store, stop).run()
    assert told == [job.id]
    await harness.close()


async def test_a_stop_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlane_grpc.api.unwatched.PACE_SECONDS", 0.0)
    monkeypatch.setattr("fastlane_grpc.api.unwatched.AGAIN_SECONDS", 0.0)
    harness = RpcHarness(tmp_path, min_free_bytes=0)
    job = await enqueue(harness)
    tries: list[str] = []

    async def stop(job_id: str, note: str) -> Job:
        tries.append(job_id)
        if len(tries) < 3:
            raise DiskFull("the disk is full")
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await UnwatchedJobs(harness.store, stop).run()
    assert tries == [job.id] * 3
    await harness.close()


@pytest.mark.parametrize("seconds", [0, 4, 86_401, -1])
async def test_a_limit_out_of_bounds_is_refused(harness: RpcHarness, seconds: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.enqueue(stop_when_unwatched=Duration(seconds=seconds))
    assert violations(refused.value) == {"spec.stop_when_unwatched": "must be from 5 s to 1 day"}


async def test_a_schedule_cannot_be_stopped_when_unwatched(harness: RpcHarness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.enqueue(stop_when_unwatched=Duration(seconds=60), cron=pb.Cron(expression="@hourly"))
    assert violations(refused.value) == {
        "spec.stop_when_unwatched": "cannot be set together with spec.cron; set one of them"
    }


@pytest.mark.engine
def test_a_client_that_is_killed_leaves_no_job_behind(tmp_path: Path, image: str) -> None:
    server = commands_served.Server(tmp_path / "data")
    try:
        command = [*commands_served.FASTLANE, "run", "--stop-when-unwatched", "5s", image, "--"]
        step = subprocess.Popen(
            [*command, "sh", "-c", "trap 'exit 3' TERM; echo begun; while :; do sleep 0.1; done"],
            env=commands_served.environment(server.address),
            stdout=subprocess.PIPE,
        )
        assert step.stdout
        assert step.stdout.readline() == b"begun\n"
        step.kill()
        step.wait()
        with Client(server.address) as client:
            ends = (
                event.job for event in client.watch() if isinstance(event, JobChanged) and event.job.HasField("outcome")
            )
            assert next(ends).state == pb.STATE_STOPPED
            [job] = client.jobs()
            assert "nobody has watched it for 5 s" in job.outcome.detail
    finally:
        server.end(signal.SIGTERM)
