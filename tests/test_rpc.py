"""The contract over real gRPC and a real store. No engine: the test itself is the runner, by the same calls of the
store."""

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, json_format, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from fastlane_grpc.machine.data_directory import free_bytes
from fastlane_grpc.model import (
    Availability,
    Cause,
    HostKind,
    HostReport,
    LogTotals,
    Outcome,
    Reason,
    Source,
    State,
    new_id,
    utc_now,
)
from fastlane_grpc.rpc.server import RpcServer
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.calls import RpcHarness, detail, info, reason
from tests.hostile_http2 import GOAWAY, PING, PREFACE, SETTINGS, frame

OUT, ERR = Source.STDOUT, Source.STDERR


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


# ----------------------------------------------------------------------------------------------------------------- jobs


async def test_a_job_is_answered_as_it_was_put_in(harness: RpcHarness) -> None:
    spec = pb.JobSpec(
        image="registry:5000/mail:1.2@sha256:" + "a" * 64,
        command="python 'a b'",
        args=["$HOME", "*"],
        envs={"A": "1", "DB_PASSWORD": "hunter2"},
        entrypoint=[""],
        working_dir="/app",
        user="nobody:daemon",
        timeout=duration_pb2.Duration(seconds=90, nanos=5000),
        pull_policy=pb.JobSpec.PULL_POLICY_NEVER,
        limits=pb.Limits(memory_bytes=64 << 20, cpus=0.5, pids=10),
        network="none",
        read_only_root=True,
        stop_signal="SIGINT",
        stop_grace=duration_pb2.Duration(),
        priority=-3,
        labels={"team": "mail"},
    )
    json_format.ParseDict({"ticket": 17, "nested": {"a": [1, None, True]}}, spec.metadata)
    enqueued = await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="send.mail-1", spec=spec, request_id="r1"))
    assert not enqueued.existing
    job = (await harness.jobs.GetJob(pb.GetJobRequest(job_id=enqueued.job.id))).job
    assert job == enqueued.job
    spec.envs["DB_PASSWORD"] = "***"
    assert job.spec == spec
    assert (job.task_id, job.request_id, job.executions, job.state) == ("send.mail-1", "r1", 1, pb.STATE_QUEUED)
    assert job.caller_address.startswith("ipv4:127.0.0.1:")
    assert job.execution.job_id == job.id
    assert (job.execution.run, job.execution.attempt) == (1, 1)
    assert job.execution.waiting.reason == pb.WAIT_REASON_NO_FREE_SLOT
    assert job.execution.waiting.detail == "8 of 8 slots in use"
    execution = (await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=job.execution.id))).execution
    assert execution == job.execution


async def test_the_secret_reaches_the_runner_though_no_answer_shows_it(harness: RpcHarness) -> None:
    await harness.enqueue(envs={"API_TOKEN": "s3cret"})
    (assignment,) = await harness.store.claim_on(["local"])
    assert assignment.spec.envs == {"API_TOKEN": "s3cret"}


async def test_a_request_id_makes_an_enqueue_safe_to_repeat(harness: RpcHarness) -> None:
    request = pb.EnqueueJobRequest(task_id="t", spec=pb.JobSpec(image="busybox"), request_id="once")
    first, second = await harness.jobs.EnqueueJob(request), await harness.jobs.EnqueueJob(request)
    assert (first.existing, second.existing) == (False, True)
    assert first.job.id == second.job.id
    request.spec.command = "other"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.EnqueueJob(request)
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert info(refused.value).metadata["job_id"] == first.job.id


SECRET_URL = "postgres://app:{}@db/x"


async def test_secrets_are_in_no_answer_wherever_they_stand(harness: RpcHarness) -> None:
    url = SECRET_URL.format("hunter2")
    spec = {
        "args": [url],
        "command": f"psql {url}",
        "envs": {"PGPASS": "hunter2", "URL": url, "MONKEY": "see"},
        "labels": {"db": url},
    }
    job = await harness.enqueue(**spec)
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    request = pb.EnqueueJobRequest(task_id="task", spec=pb.JobSpec(image="busybox", **spec), validate_only=True)  # type: ignore[arg-type]
    answers = [
        job,
        await harness.jobs.EnqueueJob(request),
        await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id)),
        await harness.jobs.ListJobs(pb.ListJobsRequest(with_spec=True)),
        await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id)),
    ]
    assert not [answer for answer in answers if "hunter2" in str(answer)]
    assert dict(job.spec.envs) == {"PGPASS": "***", "URL": SECRET_URL.format("***"), "MONKEY": "see"}


@pytest.mark.parametrize("guess", ["hunter2", "hunter3", ""])
async def test_a_request_id_does_not_tell_whether_a_secret_was_guessed(harness: RpcHarness, guess: str) -> None:
    def request(secret: str) -> pb.EnqueueJobRequest:
        url = SECRET_URL.format(secret)
        spec = pb.JobSpec(image="busybox", args=[url], envs={"API_KEY": secret, "URL": url, "PLAIN": "1"})
        return pb.EnqueueJobRequest(task_id="t", spec=spec, request_id="once")

    kept = await harness.jobs.EnqueueJob(request("hunter2"))
    again = await harness.jobs.EnqueueJob(request(guess))
    assert (again.existing, again.job) == (True, kept.job)
    (assignment,) = await harness.store.claim_on(["local"])
    assert assignment.spec.envs["API_KEY"] == "hunter2", "the first value is kept"
    other = request(guess)
    other.spec.envs["PLAIN"] = "2"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.EnqueueJob(other)
    assert reason(refused.value) == "REQUEST_ID_REUSED"


async def test_a_note_that_is_not_one_line_is_refused_by_its_name(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    execution_id = job.execution.id
    note = "x)\nsucceeded: exited with 0\n\x1b]52;c;aGVsbG8=\x07"
    for call in (
        harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id, note=note)),
        harness.executions.StopExecution(pb.StopExecutionRequest(execution_id=execution_id, note=note)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (
            refused.value.details() == "note: holds U+000A, a control character; a note is one line of text for people"
        )
    assert (
        await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=execution_id))
    ).execution.state == pb.STATE_QUEUED


async def test_a_scheduled_job_is_answered_with_its_times_and_what_it_waits_for(harness: RpcHarness) -> None:
    hour = duration_pb2.Duration(seconds=3600)
    expire_time = timestamp_pb2.Timestamp(seconds=int(time.time()) + 86_400, nanos=5000)
    job = await harness.enqueue(start_in=hour, expire_time=expire_time)
    assert (job.state, job.execution.state) == (pb.STATE_SCHEDULED, pb.STATE_SCHEDULED)
    assert (job.spec.start_in, job.spec.expire_time, job.spec.HasField("start_at")) == (hour, expire_time, False)
    due_time = job.execution.times.due_time
    assert due_time.ToDatetime() - job.create_time.ToDatetime() == timedelta(hours=1)
    waiting = job.execution.waiting
    assert (waiting.reason, waiting.due_time, waiting.ahead) == (pb.WAIT_REASON_NOT_DUE, due_time, 0)
    assert waiting.detail == f"starts at {due_time.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job == job
    listed = await harness.jobs.ListJobs(pb.ListJobsRequest(states=[pb.STATE_SCHEDULED], with_spec=True))
    assert list(listed.jobs) == [job]
    stopped = (await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))).job
    assert (stopped.state, stopped.outcome.detail) == (pb.STATE_STOPPED, "stopped while it was scheduled")


async def test_the_log_of_a_scheduled_execution_shows_when_it_is_due_and_how_it_ended(harness: RpcHarness) -> None:
    job = await harness.enqueue(start_at=timestamp_pb2.Timestamp(seconds=int(time.time()) + 3600))
    stream: Any = harness.stream(job.execution.id)
    first = await stream.read()
    assert (first.state.state, first.state.waiting) == (pb.STATE_SCHEDULED, job.execution.waiting)
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id, note="not today"))
    changed = await stream.read()
    assert (changed.state.state, changed.state.HasField("waiting")) == (pb.STATE_STOPPED, False)
    end = (await stream.read()).end
    assert (end.sealed, end.state, end.exit_status, list(end.totals)) == (True, pb.STATE_STOPPED, 130, [])
    assert end.outcome.detail == "stopped while it was scheduled: not today"


async def test_a_job_that_can_never_start_ends_as_expired(harness: RpcHarness) -> None:
    expired = await harness.enqueue(expire_time=timestamp_pb2.Timestamp(seconds=1))
    await harness.store.promote(10)
    assert await harness.store.claim_on(["local"]) == []
    job = (await harness.jobs.GetJob(pb.GetJobRequest(job_id=expired.id))).job
    assert (job.state, job.execution.state, job.outcome) == (pb.STATE_EXPIRED, pb.STATE_EXPIRED, job.execution.outcome)
    assert job.outcome.detail == "it had not started by its expire_time, 1970-01-01T00:00:01Z"
    assert job.end_time == job.execution.times.end_time
    [*_, last] = [message async for message in harness.stream(job.execution.id)]
    assert (last.end.sealed, last.end.state, last.end.exit_status) == (True, pb.STATE_EXPIRED, 125)


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({"start_in": duration_pb2.Duration(seconds=-1)}, ["spec.start_in"]),
        ({"start_in": duration_pb2.Duration(seconds=4000 * 86400)}, ["spec.start_in"]),
        ({"start_in": duration_pb2.Duration(seconds=1, nanos=-1)}, ["spec.start_in"]),
        ({"start_in": duration_pb2.Duration(), "start_at": timestamp_pb2.Timestamp()}, ["spec.start_at"]),
        ({"start_at": timestamp_pb2.Timestamp(nanos=-1)}, ["spec.start_at"]),
        ({"start_at": timestamp_pb2.Timestamp(seconds=1_800_000_000_000)}, ["spec.start_at"]),
        ({"start_at": timestamp_pb2.Timestamp(seconds=200_000_000_000)}, ["spec.start_at"]),
        ({"expire_time": timestamp_pb2.Timestamp(seconds=200_000_000_000)}, ["spec.expire_time"]),
        (
            {"start_at": timestamp_pb2.Timestamp(seconds=9), "expire_time": timestamp_pb2.Timestamp(seconds=8)},
            ["spec.expire_time"],
        ),
    ],
)
async def test_a_start_or_expiry_that_cannot_be_is_refused_by_its_field(
    harness: RpcHarness, spec: dict[str, Message], fields: list[str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.enqueue(**spec)
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    bad = detail(refused.value, error_details_pb2.BadRequest)
    assert bad is not None
    assert [violation.field for violation in bad.field_violations] == fields


async def test_validate_only_answers_and_keeps_nothing(harness: RpcHarness) -> None:
    request = pb.EnqueueJobRequest(task_id="t", spec=pb.JobSpec(image="busybox"), validate_only=True, request_id="v")
    answer = await harness.jobs.EnqueueJob(request)
    assert (answer.job.id, answer.job.execution.id, answer.job.spec.image) == ("", "", "busybox")
    request.spec.start_in.seconds = 60
    scheduled = (await harness.jobs.EnqueueJob(request)).job
    assert (scheduled.state, scheduled.execution.waiting.reason) == (pb.STATE_SCHEDULED, pb.WAIT_REASON_NOT_DUE)
    request.spec.ClearField("start_in")
    assert await harness.store.claim_on(["local"]) == []
    request.validate_only = False
    assert not (await harness.jobs.EnqueueJob(request)).existing


async def test_a_bad_request_names_every_field_and_keeps_nothing(harness: RpcHarness) -> None:
    spec = pb.JobSpec(
        image="A B", envs={"A=B": "1"}, network="host", timeout=duration_pb2.Duration(seconds=1, nanos=-1)
    )
    spec.pull_policy = 77  # type: ignore[assignment]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="", spec=spec))
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    bad = detail(refused.value, error_details_pb2.BadRequest)
    assert bad is not None
    assert {violation.field for violation in bad.field_violations} == {
        "task_id",
        "spec.image",
        'spec.envs["A=B"]',
        "spec.network",
        "spec.timeout",
        "spec.pull_policy",
    }
    assert await harness.store.claim_on(["local"]) == []


async def test_a_flood_of_faults_still_fits_the_trailers(harness: RpcHarness) -> None:
    envs = {f"{'x' * 300}={number}": "\0" for number in range(500)}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=pb.JobSpec(image="busybox", envs=envs)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = detail(refused.value, error_details_pb2.BadRequest)
    assert bad is not None
    assert 1 <= len(bad.field_violations) <= 16


async def test_a_spec_that_no_answer_could_hold_is_refused(harness: RpcHarness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.enqueue(args=["x" * 100_000] * 25)
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.enqueue(args=[""] * 10_001)
    assert "spec.args" in str(refused.value.details())
    assert await harness.store.claim_on(["local"]) == []
    # The largest that is taken can be read again.
    job = await harness.enqueue(args=["x" * 100_000] * 20, envs={f"KEY{number}": "" for number in range(5_000)})
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job.id == job.id


async def test_metadata_that_is_nested_too_deeply_is_refused(harness: RpcHarness) -> None:
    def nested(depth: int) -> pb.JobSpec:
        value: object = 1
        for _ in range(depth - 1):
            value = [value]
        spec = pb.JobSpec(image="busybox")
        json_format.ParseDict({"a": value}, spec.metadata)
        return spec

    kept = (await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=nested(16)))).job
    assert kept.spec.metadata == nested(16).metadata
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=nested(17)))
    assert "spec.metadata" in str(refused.value.details())


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7fshort"])
@pytest.mark.parametrize(
    "method", ["JobService/EnqueueJob", "JobService/GetJob", "ExecutionService/StreamExecutionLogs"]
)
async def test_a_request_that_cannot_be_read_is_invalid_and_no_defect(
    harness: RpcHarness, method: str, raw: bytes
) -> None:
    call = harness.channel.unary_stream if "Stream" in method else harness.channel.unary_unary
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        answer = call(f"/fastlane.v1.{method}")(raw)
        await (answer.read() if "Stream" in method else answer)
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_an_id_of_any_letters_still_fits_the_trailers(harness: RpcHarness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.GetJob(pb.GetJobRequest(job_id="\N{PARTY POPPER}" * 5_000))
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


async def test_fields_that_the_server_does_not_know_are_refused_by_writers(harness: RpcHarness) -> None:
    # Field 99 of JobSpec, and of Limits inside it, as a newer client might send.
    unknown_in_spec = pb.EnqueueJobRequest.FromString(b"\x0a\x01t\x12\x0c\x0a\x07busybox\x98\x06\x01")
    unknown_in_limits = pb.EnqueueJobRequest.FromString(b"\x0a\x01t\x12\x0e\x0a\x07busybox\x52\x03\x98\x06\x01")
    for request, place in (
        (unknown_in_spec, "EnqueueJobRequest.spec"),
        (unknown_in_limits, "EnqueueJobRequest.spec.limits"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await harness.jobs.EnqueueJob(request)
        assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_FIELD")
        assert f"field 99 of {place}" in str(refused.value.details())
    with pytest.raises(grpc.aio.AioRpcError):
        await harness.jobs.StopJob(pb.StopJobRequest.FromString(b"\x98\x06\x01"))
    # Readers ignore them.
    job = await harness.enqueue()
    raw = pb.GetJobRequest(job_id=job.id).SerializeToString() + b"\x98\x06\x01"
    assert (await harness.jobs.GetJob(pb.GetJobRequest.FromString(raw))).job.id == job.id


async def test_unknown_ids_are_not_found_by_name(harness: RpcHarness) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.GetJob(pb.GetJobRequest(job_id="nope"))
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    assert info(refused.value).metadata == {"job_id": "nope"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=new_id()))
    assert reason(refused.value) == "EXECUTION_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.StopJob(pb.StopJobRequest(job_id="nope"))
    assert reason(refused.value) == "JOB_NOT_FOUND"
    for id in ("nope", "../../etc", new_id()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await harness.stream(id).read()
        assert reason(refused.value) == "EXECUTION_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.GetJob(pb.GetJobRequest())
    assert reason(refused.value) == "INVALID_FIELD"


async def test_a_queued_job_is_stopped_at_once_and_for_good(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    stopped = (await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id, note="not needed"))).job
    assert stopped.state == pb.STATE_STOPPED
    assert "not needed" in stopped.outcome.detail
    assert stopped.HasField("end_time")
    assert not stopped.outcome.HasField("exit_code")
    assert (await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))).job == stopped
    assert await harness.store.claim_on(["local"]) == []


async def test_a_running_job_that_is_stopped_says_so_until_it_ends(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    execution, writer = await harness.begin()
    stopping = (
        await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id, grace=duration_pb2.Duration(seconds=3)))
    ).job
    assert stopping.state == pb.STATE_STOPPING
    assert not stopping.HasField("outcome")
    kept = (await harness.store.execution(execution.id)).stop
    assert kept is not None
    assert kept.grace == timedelta(seconds=3)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.StopJob(
            pb.StopJobRequest(job_id=job.id, note="x" * 257, grace=duration_pb2.Duration(seconds=-1))
        )
    bad = detail(refused.value, error_details_pb2.BadRequest)
    assert bad is not None
    assert [violation.field for violation in bad.field_violations] == ["note", "grace"]
    writer.close()


# ----------------------------------------------------------------------------------------------------------------- logs


async def test_a_stream_begins_with_the_state_and_ends_with_the_outcome(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    stream: Any = harness.stream(job.execution.id)
    first = await stream.read()
    assert isinstance(first, pb.StreamExecutionLogsResponse)
    assert (first.state.state, first.state.waiting.detail) == (pb.STATE_QUEUED, "8 of 8 slots in use")
    execution, writer = await harness.begin()
    writer.write([(OUT, b"hello\n"), (ERR, b"world\n")], time.time_ns())
    harness.logs.system(execution.id, "a line of ours")
    await harness.finish(execution, writer, code=3)
    messages = [first]
    while isinstance(message := await stream.read(), pb.StreamExecutionLogsResponse):
        messages.append(message)
    kinds = [message.WhichOneof("event") or "chunks" for message in messages]
    assert kinds[0] == "state"
    assert kinds.count("end") == 1
    end = messages[-1].end
    assert (end.sealed, end.state, end.exit_status, end.outcome.exit_code) == (True, pb.STATE_FAILED, 3, 3)
    assert {(total.source, total.bytes) for total in end.totals} == {
        (pb.SOURCE_STDOUT, 6),
        (pb.SOURCE_STDERR, 6),
        (pb.SOURCE_SYSTEM, 15),
    }
    assert all(message.cursor for message in messages)
    data = {source: b"".join(c.data for m in messages for c in m.chunks if c.source == source) for source in (1, 2, 3)}
    assert data == {1: b"hello\n", 2: b"world\n", 3: b"a line of ours\n"}


async def test_exit_status_of_every_end(harness: RpcHarness) -> None:
    ends = [
        (State.SUCCEEDED, Outcome(exit_code=0), 0),
        (State.EXPIRED, Outcome(), 125),
        (State.FAILED, Outcome(Reason.EXIT_CODE, exit_code=42), 42),
        (State.FAILED, Outcome(Reason.IMAGE_NOT_FOUND), 125),
        (State.TIMED_OUT, Outcome(exit_code=0), 124),
        (State.STOPPED, Outcome(exit_code=0), 130),
        (State.LOST, Outcome(Reason.CONTAINER_GONE), 125),
    ]
    for state, outcome, status in ends:
        job = await harness.enqueue()
        await harness.store.claim_on(["local"])
        await harness.store.finish(job.execution.id, state=state, outcome=outcome, logs=[LogTotals(OUT, 0)])
        messages = [message async for message in harness.stream(job.execution.id)]
        assert messages[-1].end.exit_status == status
        assert messages[-1].end.outcome.HasField("exit_code") == (outcome.exit_code is not None)


async def test_without_follow_it_ends_at_what_is_there(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    messages = [message async for message in harness.stream(job.execution.id, follow=False)]
    assert [message.WhichOneof("event") for message in messages] == ["state", "end"]
    assert (messages[-1].end.sealed, messages[-1].end.exit_status, messages[-1].end.HasField("outcome")) == (
        False,
        75,
        False,
    )
    execution, writer = await harness.begin()
    writer.write([(OUT, b"part")], time.time_ns())
    messages = [message async for message in harness.stream(execution.id, follow=False)]
    assert b"".join(chunk.data for message in messages for chunk in message.chunks) == b"part"
    assert not messages[-1].end.sealed
    await harness.finish(execution, writer)
    rest = [message async for message in harness.stream(execution.id, follow=False, cursor=messages[-1].cursor)]
    assert [message.WhichOneof("event") for message in rest] == ["state", "end"]
    assert rest[-1].end.sealed


async def test_without_follow_lines_after_the_output_are_there_too(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    harness.logs.system(execution.id, "started")
    writer.write([(OUT, b"out")], time.time_ns())
    harness.logs.system(execution.id, "told to stop")
    for sources in ([], [pb.SOURCE_SYSTEM]):
        messages = [message async for message in harness.stream(execution.id, follow=False, sources=sources)]
        lines = b"".join(
            chunk.data for message in messages for chunk in message.chunks if chunk.source == pb.SOURCE_SYSTEM
        )
        assert lines == b"started\ntold to stop\n"
    writer.close()


async def test_a_log_that_cannot_be_opened_now_is_not_taken_for_lost(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    writer.write([(OUT, b"out")], time.time_ns())
    await harness.finish(execution, writer)
    directory = harness.logs.path(execution.id)
    directory.rename(directory.with_name("kept"))
    # Too many levels of links: an error of the file system, as too many open files are.
    directory.symlink_to(directory.name)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        [message async for message in harness.stream(execution.id)]
    assert (failed.value.code(), reason(failed.value)) == (grpc.StatusCode.UNAVAILABLE, "STORE_FAILED")
    assert detail(failed.value, error_details_pb2.RetryInfo) is not None
    directory.unlink()
    directory.with_name("kept").rename(directory)
    messages = [message async for message in harness.stream(execution.id)]
    assert b"".join(chunk.data for message in messages for chunk in message.chunks) == b"out"


async def test_a_request_that_is_too_large_is_refused_with_its_size_and_the_limit(harness: RpcHarness) -> None:
    most = harness.settings.max_request_bytes
    for call, request in (
        (harness.jobs.EnqueueJob, pb.EnqueueJobRequest(task_id="task", request_id="x" * most)),
        (harness.jobs.GetJob, pb.GetJobRequest(job_id="x" * most)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request)
        assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert f"takes {request.ByteSize()} bytes; at most {most} are allowed" in (refused.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.StreamExecutionLogs(pb.StreamExecutionLogsRequest(cursor="x" * most)).read()
    assert reason(refused.value) == "INVALID_FIELD"
    # One that is far too large is not even let in.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.GetJob(pb.GetJobRequest(job_id="x" * 2 * most))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_is_about_to_get_a_place_is_not_said_to_wait_for_one(harness: RpcHarness) -> None:
    harness.places.slots = (3, 8)
    job = await harness.enqueue()
    assert not job.execution.HasField("waiting")
    assert not (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job.execution.HasField("waiting")
    harness.places.slots = (8, 8)
    assert (
        await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))
    ).job.execution.waiting.reason == pb.WAIT_REASON_NO_FREE_SLOT


async def test_a_quiet_stream_shows_a_sign_of_life(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    # Not fastlane's own lines: one of them says that it waits.
    stream: Any = harness.stream(job.execution.id, heartbeat_interval=duration_pb2.Duration(seconds=1), sources=[OUT])
    messages = [await stream.read() for _ in range(3)]
    assert [message.WhichOneof("event") for message in messages] == ["state", "heartbeat", "heartbeat"]
    stream.cancel()
    for seconds in (0, 61):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await harness.stream(job.execution.id, heartbeat_interval=duration_pb2.Duration(seconds=seconds)).read()
        assert reason(refused.value) == "INVALID_FIELD"


async def test_cursors_that_are_not_of_this_log_are_refused(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.stream(job.execution.id, cursor="nonsense").read()
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_INVALID")
    other = new_id()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.stream(job.execution.id, cursor=f"1.{other}.0.0.0.0").read()
    assert (reason(refused.value), info(refused.value).metadata["execution_id"]) == (
        "CURSOR_OF_ANOTHER_EXECUTION",
        other,
    )
    execution, writer = await harness.begin()
    writer.write([(OUT, b"abc")], time.time_ns())
    await harness.finish(execution, writer)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        [message async for message in harness.stream(execution.id, cursor=f"1.{execution.id}.4.0.0.1")]
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
    assert info(refused.value).metadata["cursor"].startswith(f"1.{execution.id}.3.0.0.")


async def test_sources_and_text(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    writer.write([(OUT, "grün".encode()), (ERR, b"\xff!")], time.time_ns())
    await harness.finish(execution, writer)
    messages = [message async for message in harness.stream(execution.id, text=True)]
    assert [(chunk.source, chunk.text, chunk.data) for message in messages for chunk in message.chunks] == [
        (1, "grün", b""),
        (2, "\ufffd!", b""),
    ]
    only = [message async for message in harness.stream(execution.id, sources=[pb.SOURCE_STDERR])]
    assert [chunk.data for message in only for chunk in message.chunks] == [b"\xff!"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.stream(execution.id, sources=[9]).read()
    assert reason(refused.value) == "INVALID_FIELD"


async def test_a_gap_is_an_event(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    writer.gap(OUT, None, Cause.ENGINE, time.time_ns())
    await harness.finish(execution, writer)
    messages = [message async for message in harness.stream(execution.id)]
    (gap,) = [message.gap for message in messages if message.HasField("gap")]
    assert (gap.source, gap.offset, gap.HasField("missing_bytes"), gap.cause) == (1, 0, False, pb.LogGap.CAUSE_ENGINE)
    assert not [
        total for total in messages[-1].end.totals if total.HasField("crc32") and total.source == pb.SOURCE_STDOUT
    ]


async def test_concatenated_messages_are_one_message(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    for _ in range(20):
        writer.write([(OUT, bytes(60_000))], time.time_ns())
    await harness.finish(execution, writer)
    chunks = [message async for message in harness.stream(execution.id) if message.chunks]
    joined = pb.StreamExecutionLogsResponse.FromString(b"".join(message.SerializeToString() for message in chunks))
    assert [chunk for message in chunks for chunk in message.chunks] == list(joined.chunks)
    assert joined.cursor == chunks[-1].cursor


async def test_as_many_streams_as_allowed(tmp_path: Path) -> None:
    harness = RpcHarness(tmp_path, max_streams=2)
    await harness.server.start()
    job = await harness.enqueue()
    streams = [harness.stream(job.execution.id) for _ in range(2)]
    for stream in streams:
        await stream.read()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.stream(job.execution.id).read()
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
    assert detail(refused.value, error_details_pb2.RetryInfo) is not None
    assert detail(refused.value, error_details_pb2.RetryInfo) is not None
    streams[0].cancel()
    # Its place is free once the server has noticed.
    for _ in range(500):
        again = harness.stream(job.execution.id)
        try:
            await again.read()
            break
        except grpc.aio.AioRpcError as error:
            assert reason(error) == "TOO_MANY_STREAMS"
    else:
        pytest.fail("the place of a cancelled stream was never free again")
    await harness.close()


async def test_a_stopping_server_ends_its_streams_so_that_clients_resume(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    stream = harness.stream(job.execution.id)
    await stream.read()
    began = time.monotonic()
    await harness.server.stop()
    with pytest.raises(grpc.aio.AioRpcError) as cut:
        while await stream.read() is not grpc.aio.EOF:
            pass
    assert (cut.value.code(), reason(cut.value)) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
    assert detail(cut.value, error_details_pb2.RetryInfo) is not None
    assert time.monotonic() - began < 10


async def test_a_defect_is_told_by_a_number_and_not_by_its_insides(
    harness: RpcHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.places.host_error = 5  # type: ignore[assignment]  # whatever: a value that the converter chokes on
    with pytest.raises(grpc.aio.AioRpcError) as broken:
        await harness.enqueue()
    assert (broken.value.code(), reason(broken.value)) == (grpc.StatusCode.INTERNAL, "DEFECT")
    assert info(broken.value).metadata["defect"] in str(broken.value.details())


# --------------------------------------------------------------------------------------------------------------- server


async def test_server_info(harness: RpcHarness) -> None:
    told = await harness.info.GetServerInfo(pb.GetServerInfoRequest())
    assert (told.max_running, told.max_timeout.seconds, told.max_request_bytes) == (8, 86_400, 4 << 20)
    assert told.version
    assert told.start_time.seconds <= told.time.seconds


async def test_hosts_are_listed_with_all_that_is_known_of_them(harness: RpcHarness) -> None:
    failed = utc_now()
    harness.places.hosts = [
        HostReport(
            "b", "unix:///run/b.sock", Availability.UP, 3, 4, "it went away", failed, "28.5.1", "attach", "not here"
        ),
        HostReport("a", "tcp://a:2375", Availability.DOWN, 0, 12),
        HostReport("c", "https://c", Availability.UP, 0, 9, capture="relay", kind=HostKind.KUBERNETES),
    ]
    told = (await harness.hosts.ListHosts(pb.ListHostsRequest())).hosts
    assert [host.name for host in told] == ["b", "a", "c"]
    assert [(host.kind, host.capture) for host in told[1:]] == [
        (pb.EngineHost.KIND_DOCKER, pb.EngineHost.CAPTURE_UNSPECIFIED),
        (pb.EngineHost.KIND_KUBERNETES, pb.EngineHost.CAPTURE_RELAY),
    ]
    assert (told[0].address, told[0].availability, told[0].running, told[0].max_running) == (
        "unix:///run/b.sock",
        pb.EngineHost.AVAILABILITY_UP,
        3,
        4,
    )
    assert (told[0].last_error, told[0].engine_version, told[0].capture_reason) == (
        "it went away",
        "28.5.1",
        "not here",
    )
    assert told[0].last_error_time.ToDatetime(failed.tzinfo) == failed
    assert told[0].capture == pb.EngineHost.CAPTURE_ATTACH
    assert (told[1].availability, told[1].capture) == (
        pb.EngineHost.AVAILABILITY_DOWN,
        pb.EngineHost.CAPTURE_UNSPECIFIED,
    )
    assert not told[1].HasField("last_error_time")


async def test_health_follows_server_and_engine_apart(harness: RpcHarness) -> None:
    health: Any = health_pb2_grpc.HealthStub(harness.channel)

    async def status(name: str) -> int:
        return (await health.Check(health_pb2.HealthCheckRequest(service=name))).status

    await harness.server.serving("engine", False)
    assert [await status(name) for name in ("", "server", "engine")] == [1, 1, 2]
    await harness.server.serving("engine", True)
    assert await status("engine") == 1


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_tells_the_contract_with_its_comments(harness: RpcHarness, version: str) -> None:
    ask = harness.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    symbols = [
        "fastlane.v1.JobSpec",
        "fastlane.v1.JobService.EnqueueJob",
        f"grpc.reflection.{version}.ServerReflection",
        "grpc.health.v1.Health",
    ]
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    requests += [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in [*symbols, "no.such.Thing"]
    ]
    answers = [answer async for answer in ask(iter(requests))]
    services = {service.name for service in answers[0].list_services_response.service}
    assert services == {
        *(service.full_name for service in pb.DESCRIPTOR.services_by_name.values()),
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = [FileDescriptorProto.FromString(raw) for raw in answers[1].file_descriptor_response.file_descriptor_proto]
    names = {file.name for file in files}
    assert {dependency for file in files for dependency in file.dependency} <= names
    comments = [location.leading_comments for file in files for location in file.source_code_info.location]
    assert any("The image, as for `docker run`" in comment for comment in comments)
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in answers[2:5])
    assert answers[5].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_reflection_refuses_a_large_or_damaged_question_and_answers_the_next(harness: RpcHarness) -> None:
    ask = harness.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    large = reflection_pb2.ServerReflectionRequest(file_containing_symbol="x" * (7 << 20))
    fine = reflection_pb2.ServerReflectionRequest(list_services="", host="h")
    questions = [large.SerializeToString(), b"\xff\xff", fine.SerializeToString()]
    too_large, damaged, answered = [answer async for answer in ask(iter(questions))]
    assert (
        too_large.error_response.error_code
        == damaged.error_response.error_code
        == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    )
    assert "at most 4096 are allowed" in too_large.error_response.error_message
    assert "cannot be read" in damaged.error_response.error_message
    assert answered.list_services_response.service
    assert answered.original_request == fine


async def test_a_connection_without_a_call_is_closed_and_one_with_a_stream_is_not(harness: RpcHarness) -> None:
    server = RpcServer(harness.service, harness.settings, idle_seconds=0.5)
    server.listen()
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    job = await harness.enqueue()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream = pb_grpc.ExecutionServiceStub(channel).StreamExecutionLogs(
            pb.StreamExecutionLogsRequest(execution_id=job.execution.id)
        )
        await stream.read()
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, 1, 0, b""))
        async with asyncio.timeout(20):
            await reader.read()  # to the end
        assert not stream.done()
        assert (await pb_grpc.ServerServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())).version
        stream.cancel()
    writer.close()
    await server.stop()


async def test_pings_are_welcome_without_a_call_and_too_many_of_them_are_not(harness: RpcHarness) -> None:
    server = RpcServer(harness.service, harness.settings, min_ping_seconds=0.05)
    server.listen()
    await server.start()
    gone_away = bytes([GOAWAY])

    async def answers(seconds_between_pings: float) -> bytes:
        """Return the kinds of the frames that answer 8 pings, one after the other."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, 1, 0, b""))
        kinds = b""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for _ in range(8):
                writer.write(frame(PING, 0, 0, b"12345678"))
                while not kinds.endswith((bytes([PING]), gone_away)):
                    header = await reader.readexactly(9)
                    await reader.readexactly(int.from_bytes(header[:3], "big"))
                    kinds += header[3:4]
                kinds += b"|"
                await asyncio.sleep(seconds_between_pings)
        writer.close()
        return kinds

    async with asyncio.timeout(20):
        assert gone_away not in await answers(0.06)
        assert gone_away in await answers(0)
    await server.stop()


# ---- pruning


async def rest_of(
    stream: "grpc.aio.UnaryStreamCall[object, pb.StreamExecutionLogsResponse]",
) -> list[pb.StreamExecutionLogsResponse]:
    rest = []
    while isinstance(message := await stream.read(), pb.StreamExecutionLogsResponse):
        rest.append(message)
    return rest


def prune(seconds: int = 0, **more: object) -> pb.PruneRequest:
    return pb.PruneRequest(older_than=duration_pb2.Duration(seconds=seconds), **more)  # type: ignore[arg-type]


async def test_a_pruned_log_is_a_gap_of_known_size_and_then_the_end(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    writer.write([(OUT, b"out"), (ERR, b"error")], time.time_ns())
    await harness.finish(execution, writer)
    before = [message async for message in harness.stream(execution.id)]
    answer = await harness.info.Prune(prune(logs_only=True))
    assert (answer.jobs, answer.logs, answer.more) == (0, 1, False)
    assert answer.bytes > 0
    _, out, err, end = [message async for message in harness.stream(execution.id)]
    gaps = {(gap.source, gap.offset, gap.missing_bytes, gap.cause) for gap in (out.gap, err.gap)}
    assert gaps == {(pb.SOURCE_STDOUT, 0, 3, pb.LogGap.CAUSE_PRUNED), (pb.SOURCE_STDERR, 0, 5, pb.LogGap.CAUSE_PRUNED)}
    assert (end.end, end.cursor.split(".")[:5]) == (before[-1].end, before[-1].cursor.split(".")[:5])
    shown = (await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=execution.id))).execution
    assert shown.times.HasField("prune_time")
    # A cursor from before it holds: what comes after it is missing, or nothing is.
    assert [message async for message in harness.stream(execution.id, cursor=before[-1].cursor)][1:] == before[-1:]


async def test_a_reader_in_the_midst_of_a_log_that_is_pruned_reads_on(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    writer.write([(OUT, b"first")], time.time_ns())
    stream: Any = harness.stream(execution.id)
    await stream.read()
    assert (await stream.read()).chunks[0].data == b"first"
    writer.write([(OUT, b"second")], time.time_ns())
    await harness.finish(execution, writer)
    await harness.info.Prune(prune(logs_only=True))
    rest = await rest_of(stream)
    assert [chunk.data for message in rest for chunk in message.chunks] == [b"second"]
    assert rest[-1].end.sealed


async def test_pruning_deletes_final_jobs_and_counts_them_before_if_asked_to(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    execution, writer = await harness.begin()
    await harness.finish(execution, writer)
    waiting = await harness.enqueue()
    assert await harness.info.Prune(prune(seconds=3600)) == pb.PruneResponse()
    assert await harness.info.Prune(prune(task_id="another")) == pb.PruneResponse()
    would = await harness.info.Prune(prune(validate_only=True))
    assert (would.jobs, would.logs) == (1, 1)
    assert await harness.info.Prune(prune()) == would
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))
    assert reason(gone.value) == "JOB_NOT_FOUND"
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=waiting.id))).job.id == waiting.id
    assert await harness.info.Prune(prune()) == pb.PruneResponse()


async def test_what_is_older_than_there_is_time_is_nothing(harness: RpcHarness) -> None:
    assert await harness.info.Prune(prune(seconds=315_576_000_000)) == pb.PruneResponse()


@pytest.mark.parametrize(
    "request_",
    [
        pb.PruneRequest(),
        prune(seconds=-1),
        pb.PruneRequest(older_than=duration_pb2.Duration(seconds=1, nanos=-1)),
    ],
)
async def test_a_call_to_prune_says_how_old(harness: RpcHarness, request_: pb.PruneRequest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.info.Prune(request_)
    bad = detail(refused.value, error_details_pb2.BadRequest)
    assert bad is not None
    assert [violation.field for violation in bad.field_violations] == ["older_than"]


async def test_a_call_to_prune_with_a_field_that_nobody_knows_deletes_nothing(harness: RpcHarness) -> None:
    await harness.enqueue()
    execution, writer = await harness.begin()
    await harness.finish(execution, writer)
    request = pb.PruneRequest.FromString(prune().SerializeToString() + b"\x98\x06\x01")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.info.Prune(request)
    assert reason(refused.value) == "UNKNOWN_FIELD"
    assert (await harness.store.execution(execution.id)).times.prune_time is None


# ---- quotas


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


@asynccontextmanager
async def opened(path: Path, **settings: object) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(path, **settings)
    await harness.server.start()
    try:
        yield harness
    finally:
        await harness.close()


async def test_with_as_many_waiting_as_may_no_job_is_taken_until_one_has_begun(tmp_path: Path) -> None:
    async with opened(tmp_path, max_waiting=2) as harness:
        request = pb.EnqueueJobRequest(task_id="task", spec=pb.JobSpec(image="busybox"), request_id="first")
        first = (await harness.jobs.EnqueueJob(request)).job
        await harness.enqueue()
        error = await refused(harness.enqueue())
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert info(error).metadata["limit"] == "2"
        retry = detail(error, error_details_pb2.RetryInfo)
        assert retry is not None
        assert retry.retry_delay.seconds > 0
        # What is kept is no more for being asked for again.
        again = await harness.jobs.EnqueueJob(request)
        assert (again.existing, again.job.id) == (True, first.id)
        await harness.begin()
        await harness.enqueue()
        assert reason(await refused(harness.enqueue())) == "QUEUE_FULL"


async def test_of_many_callers_at_once_exactly_as_many_are_taken_as_may_wait(tmp_path: Path) -> None:
    async with opened(tmp_path, max_waiting=150) as harness:
        answers = await asyncio.gather(*(harness.enqueue() for _ in range(400)), return_exceptions=True)
        assert sum(isinstance(answer, pb.Job) for answer in answers) == 150
        assert {reason(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)} == {"QUEUE_FULL"}


async def test_the_server_tells_its_limits(tmp_path: Path) -> None:
    async with opened(tmp_path, max_waiting=7, keep_logs=timedelta(days=1), keep_jobs=None) as harness:
        told = await harness.info.GetServerInfo(pb.GetServerInfoRequest())
        assert (told.max_waiting, told.keep_logs.ToTimedelta(), told.HasField("keep_jobs")) == (
            7,
            timedelta(days=1),
            False,
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system: needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


async def test_without_free_room_no_job_is_taken_and_what_runs_goes_on(small_disk: Path) -> None:
    async with opened(small_disk) as harness:
        await harness.enqueue()
        execution, writer = await harness.begin()
        filler = small_disk / "filler"
        filler.write_bytes(bytes(free_bytes(small_disk) - (1 << 20)))
        error = await refused(harness.enqueue())
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
        assert detail(error, error_details_pb2.RetryInfo) is not None
        writer.write([(OUT, b"goes on")], time.time_ns())
        await harness.finish(execution, writer)
        messages = [message async for message in harness.stream(execution.id)]
        assert [chunk.data for message in messages for chunk in message.chunks] == [b"goes on"]
        assert (await harness.info.Prune(prune(validate_only=True))).jobs == 1
        filler.unlink()
        await harness.enqueue()


async def test_on_a_disk_that_is_full_to_the_last_byte_logs_can_be_pruned_all_the_same(small_disk: Path) -> None:
    async with opened(small_disk, min_free_bytes=0) as harness:
        await harness.enqueue()
        execution, writer = await harness.begin()
        writer.write([(OUT, bytes(8 << 20))], time.time_ns())
        await harness.finish(execution, writer)
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        assert free_bytes(small_disk) == 0
        assert (await harness.info.Prune(prune(logs_only=True))).logs == 1
        assert free_bytes(small_disk) > 7 << 20
        assert (await harness.store.execution(execution.id)).times.prune_time


async def test_health_says_when_the_store_cannot_write_and_when_it_can_again(small_disk: Path) -> None:
    async with opened(small_disk, min_free_bytes=0) as harness:
        health: Any = health_pb2_grpc.HealthStub(harness.channel)
        watching = asyncio.create_task(harness.store_health.watch(harness.store, harness.server.store_can_write))
        streams = {name: health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "server")}
        assert {(await stream.read()).status for stream in streams.values()} == {health_pb2.HealthCheckResponse.SERVING}
        await harness.enqueue()
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        # There may be room in what SQLite has written before.
        while True:
            try:
                await harness.enqueue()
            except grpc.aio.AioRpcError as error:
                assert reason(error) == "DISK_FULL"
                break
        assert {(await stream.read()).status for stream in streams.values()} == {
            health_pb2.HealthCheckResponse.NOT_SERVING
        }
        alive = await health.Check(health_pb2.HealthCheckRequest(service="live"))
        assert alive.status == health_pb2.HealthCheckResponse.SERVING
        (small_disk / "filler").unlink()
        assert {(await stream.read()).status for stream in streams.values()} == {health_pb2.HealthCheckResponse.SERVING}
        await harness.enqueue()
        watching.cancel()


async def test_the_end_counts_the_lines_of_an_execution_stopped_after_it_was_requeued(
    harness: RpcHarness,
) -> None:
    job = await harness.enqueue()
    await harness.store.claim_on(["local"])
    harness.logs.system(job.execution.id, "pulling busybox")
    totals, log_bytes = harness.logs.close_system(job.execution.id)
    await harness.store.requeue(job.execution.id, logs=totals, log_bytes=log_bytes)
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    *_, end = [message async for message in harness.stream(job.execution.id)]
    assert [(total.source, total.bytes) for total in end.end.totals] == [(pb.SOURCE_SYSTEM, len("pulling busybox\n"))]


async def test_an_execution_without_outputs_says_why_it_has_none(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    with pytest.raises(grpc.aio.AioRpcError, match="has no outputs: it has not ended") as refused:
        await harness.executions.ReadOutputs(pb.ReadOutputsRequest(execution_id=job.execution.id))
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.NOT_FOUND, "OUTPUTS_NOT_FOUND")


async def test_a_credential_that_the_operator_does_not_have_is_refused_by_name(harness: RpcHarness) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="nobody") as refused:
        await harness.enqueue(registry_credential="nobody")
    assert reason(refused.value) == "REGISTRY_CREDENTIAL_NOT_FOUND"
