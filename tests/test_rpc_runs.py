"""The calls about jobs with many executions, over gRPC: what they answer, and what they refuse."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.calls import RpcHarness, info

NIGHTLY = pb.Cron(expression="30 2 * * *", time_zone="Europe/Berlin")
JOB_ID = "0191d2c8-0000-7000-8000-000000000001"


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


def seconds(number: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromTimedelta(timedelta(seconds=number))
    return duration


def in_days(days: float) -> timestamp_pb2.Timestamp:
    time = timestamp_pb2.Timestamp()
    time.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    return time


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


# ---- schedules


async def test_a_job_says_when_it_will_run_and_why_it_waits(harness: RpcHarness) -> None:
    job = await harness.enqueue(cron=NIGHTLY)
    assert job.state == pb.STATE_SCHEDULED
    assert job.execution.waiting.reason == pb.WAIT_REASON_NOT_DUE
    assert job.execution.waiting.due_time == job.execution.tick_time == job.schedule.next_times[0]
    assert len(job.schedule.next_times) == 5
    assert job.schedule.description == "at 02:30 every day, Europe/Berlin"
    assert job.spec.cron == NIGHTLY
    [listed] = (await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs
    assert list(listed.schedule.next_times) == [job.schedule.next_times[0]], "without its spec"


async def test_a_preview_answers_the_same_times_and_stores_nothing(harness: RpcHarness) -> None:
    preview = await harness.jobs.PreviewSchedule(pb.PreviewScheduleRequest(cron=NIGHTLY))
    assert len(preview.times) == 10
    assert preview.description == "at 02:30 every day, Europe/Berlin"
    job = await harness.enqueue(cron=NIGHTLY)
    assert list(job.schedule.next_times) == list(preview.times)[:5]
    later = await harness.jobs.PreviewSchedule(
        pb.PreviewScheduleRequest(cron=NIGHTLY, count=1, from_time=preview.times[4])
    )
    assert list(later.times) == [preview.times[5]]
    ended = pb.Cron(expression="0 0 * * *", end_time=in_days(2.5))
    assert len((await harness.jobs.PreviewSchedule(pb.PreviewScheduleRequest(cron=ended))).times) <= 3
    assert len((await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs) == 1


async def test_a_schedule_is_paused_and_resumed(harness: RpcHarness) -> None:
    job = await harness.enqueue(cron=NIGHTLY)
    paused = (await harness.jobs.PauseSchedule(pb.PauseScheduleRequest(job_id=job.id))).job
    assert paused.schedule.paused
    assert paused.execution.waiting.reason == pb.WAIT_REASON_SCHEDULE_PAUSED
    assert paused.etag != job.etag
    resumed = (await harness.jobs.ResumeSchedule(pb.ResumeScheduleRequest(job_id=job.id))).job
    assert not resumed.schedule.paused
    assert resumed.execution.tick_time == job.execution.tick_time
    plain = await harness.enqueue()
    refused = await refusal(harness.jobs.PauseSchedule(pb.PauseScheduleRequest(job_id=plain.id)))
    assert (refused.code(), info(refused).reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_SCHEDULE")
    assert refused.details() == f"job {plain.id} has no schedule"


# ---- replaced and retried jobs


async def test_a_job_is_created_and_replaced_under_the_id_of_its_caller(harness: RpcHarness) -> None:
    request = pb.ReplaceJobRequest(job_id=JOB_ID, task_id="t", spec=pb.JobSpec(image="busybox", cron=NIGHTLY))
    created = await harness.jobs.ReplaceJob(request)
    assert (created.created, created.job.id) == (True, JOB_ID)
    same = await harness.jobs.ReplaceJob(request)
    assert (same.created, same.job.etag, same.job.execution.id) == (
        False,
        created.job.etag,
        created.job.execution.id,
    )
    request.spec.cron.expression = "0 4 * * *"
    request.etag = created.job.etag
    replaced = await harness.jobs.ReplaceJob(request)
    assert replaced.job.execution.run == 2
    request.spec.cron.expression = "0 5 * * *"
    refused = await refusal(harness.jobs.ReplaceJob(request))
    assert (refused.code(), info(refused).reason) == (grpc.StatusCode.ABORTED, "JOB_CHANGED")
    assert info(refused).metadata["etag"] == replaced.job.etag
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=JOB_ID))).job == replaced.job


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ReplaceJobRequest(task_id="t", spec=pb.JobSpec(image="busybox")), "job_id"),
        (pb.ReplaceJobRequest(job_id="nightly", task_id="t", spec=pb.JobSpec(image="busybox")), "job_id"),
        (pb.ReplaceJobRequest(job_id=JOB_ID.upper(), task_id="t", spec=pb.JobSpec(image="busybox")), "job_id"),
        (pb.ReplaceJobRequest(job_id=JOB_ID, task_id="t"), "spec.image"),
        (pb.ReplaceJobRequest(job_id=JOB_ID, spec=pb.JobSpec(image="busybox")), "task_id"),
    ],
)
async def test_a_replacement_that_cannot_be_names_its_field(
    harness: RpcHarness, request_: pb.ReplaceJobRequest, field: str
) -> None:
    refused = await refusal(harness.jobs.ReplaceJob(request_))
    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(refused.details()).startswith(f"{field}: ")
    assert not (await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs


async def test_a_final_job_is_retried_and_one_that_goes_on_is_not(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    refused = await refusal(harness.jobs.RetryJob(pb.RetryJobRequest(job_id=job.id)))
    assert (refused.code(), info(refused).reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_FINAL")
    assert info(refused).metadata == {"job_id": job.id, "state": "QUEUED"}
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    again = await harness.jobs.RetryJob(pb.RetryJobRequest(job_id=job.id, request_id="r"))
    assert (again.existing, again.job.state, again.job.execution.run) == (False, pb.STATE_QUEUED, 2)
    assert not again.job.HasField("outcome")
    repeated = await harness.jobs.RetryJob(pb.RetryJobRequest(job_id=job.id, request_id="r"))
    assert (repeated.existing, repeated.job.execution.id) == (True, again.job.execution.id)
    refused = await refusal(harness.jobs.RetryJob(pb.RetryJobRequest(job_id=job.id, request_id="r" * 129)))
    assert str(refused.details()).startswith("request_id: has 129 characters")


async def test_the_wait_for_a_retry_is_shown_by_every_call(harness: RpcHarness) -> None:
    retry = pb.Retry(max_retries=3, initial_backoff=seconds(3600), jitter=pb.Retry.JITTER_NONE)
    enqueued = await harness.enqueue(retry=retry)
    watch: Any = harness.watch(job_ids=[enqueued.id])
    begin = datetime.now(UTC)
    await harness.finish(*(await harness.begin()), code=1)
    job = (await harness.jobs.GetJob(pb.GetJobRequest(job_id=enqueued.id))).job
    [listed] = (await harness.jobs.ListJobs(pb.ListJobsRequest(states=[pb.STATE_SCHEDULED]))).jobs
    [execution] = (
        await harness.executions.ListExecutions(pb.ListExecutionsRequest(states=[pb.STATE_SCHEDULED]))
    ).executions
    while (message := await watch.read()).job.state != pb.STATE_SCHEDULED:
        assert message.job.id in {"", enqueued.id}
    request = pb.GetExecutionRequest(execution_id=execution.id)
    shown = [job.execution, listed.execution, execution, message.job.execution]
    shown.append((await harness.executions.GetExecution(request)).execution)
    assert (job.state, listed.state) == (pb.STATE_SCHEDULED, pb.STATE_SCHEDULED)
    for each in shown:
        assert (each.id, each.run, each.attempt, each.state) == (execution.id, 1, 2, pb.STATE_SCHEDULED)
        assert each.waiting.reason == pb.WAIT_REASON_BACKOFF
        due_time = each.waiting.due_time.ToDatetime(UTC)
        assert timedelta(hours=1) <= due_time - begin < timedelta(hours=1, minutes=1)
        assert each.waiting.detail == f"attempt 2 starts at {due_time:%Y-%m-%dT%H:%M:%SZ}"
        assert each.times.due_time == each.waiting.due_time


@pytest.mark.parametrize("request_ids", [1, 2, 10, 100, 0])
async def test_retries_by_a_hundred_clients_at_once_start_one_run(harness: RpcHarness, request_ids: int) -> None:
    job = await harness.enqueue()
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{harness.port}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(100)
    ]
    names = [f"r{number % request_ids}" if request_ids else "" for number in range(100)]
    answers = await asyncio.gather(
        *(
            pb_grpc.JobServiceStub(channel).RetryJob(pb.RetryJobRequest(job_id=job.id, request_id=name))
            for channel, name in zip(channels, names, strict=True)
        ),
        return_exceptions=True,
    )
    await asyncio.gather(*(channel.close() for channel in channels))
    started = [answer for answer in answers if isinstance(answer, pb.RetryJobResponse)]
    [first] = [name for name, answer in zip(names, answers, strict=True) if answer in started and not answer.existing]
    # Those with the same request_id are answered the run that it has started, the others that the job goes on.
    assert len(started) == (names.count(first) if request_ids else 1)
    assert {info(error).reason for error in answers if error not in started} <= {"JOB_NOT_FINAL"}
    retried = (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job
    assert {answer.job.execution.id for answer in started} == {retried.execution.id}
    assert (retried.executions, retried.execution.run, retried.state) == (2, 2, pb.STATE_QUEUED)


async def test_a_job_that_has_expired_is_not_retried(harness: RpcHarness) -> None:
    soon = timestamp_pb2.Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(milliseconds=200))
    job = await harness.enqueue(expire_time=soon)
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    while datetime.now(UTC) <= soon.ToDatetime(UTC):
        await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))
    refused = await refusal(harness.jobs.RetryJob(pb.RetryJobRequest(job_id=job.id)))
    assert (refused.code(), info(refused).reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_EXPIRED")


async def test_a_taken_unique_key_is_told_with_its_holder(harness: RpcHarness) -> None:
    job = await harness.enqueue(unique=pb.Unique(key="k"))
    spec = pb.JobSpec(image="busybox", unique=pb.Unique(key="k"))
    refused = await refusal(harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="task", spec=spec)))
    assert (refused.code(), info(refused).reason) == (grpc.StatusCode.ALREADY_EXISTS, "UNIQUE_KEY_TAKEN")
    assert info(refused).metadata == {"job_id": job.id}
    spec.unique.conflict = pb.Unique.CONFLICT_USE_EXISTING
    used = await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="task", spec=spec))
    assert (used.existing, used.job.id) == (True, job.id)


# ---- bad input


def cron(**fields: Any) -> pb.JobSpec:
    return pb.JobSpec(image="busybox", cron=pb.Cron(**{"expression": "0 0 * * *", **fields}))


def retry(**fields: Any) -> pb.JobSpec:
    return pb.JobSpec(image="busybox", retry=pb.Retry(**{"max_retries": 1, **fields}))


GROWTH = {"factor": 2.0, "max_bytes": 64 << 20}
SMALL = pb.Limits(memory_bytes=32 << 20)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (cron(expression=""), "spec.cron.expression: is required"),
        (cron(expression="0 0 30 2 *"), "spec.cron.expression: '0 0 30 2 *' never happens: no such day exists"),
        (cron(expression="every day"), "spec.cron.expression: has 2 fields; it must have five"),
        (
            cron(time_zone="Europe/Berln"),
            "spec.cron.time_zone: 'Europe/Berln' is not a time zone; did you mean Europe/Be",
        ),
        (cron(overlap=9), "spec.cron.overlap: 9 is not one of SKIP, QUEUE_ONE, REPLACE, ALLOW"),  # type: ignore[arg-type]
        (cron(catch_up=-1), "spec.cron.catch_up: -1 is not one of LATEST, NONE, ALL"),  # type: ignore[arg-type]
        (cron(catch_up_window=seconds(-1)), "spec.cron.catch_up_window: must be from 0 s to 366 days"),
        (cron(jitter=seconds(90_000)), "spec.cron.jitter: must be from 0 s to 1 day"),
        (cron(jitter=duration_pb2.Duration(seconds=1, nanos=-1)), "spec.cron.jitter: is not a duration"),
        (cron(max_runs=-1), "spec.cron.max_runs: is -1; it must be 0 (no limit) or from 1"),
        (cron(begin_time=in_days(4000)), "spec.cron.begin_time: must be at most 3653 days from now"),
        (cron(begin_time=in_days(9), end_time=in_days(8)), "spec.cron.end_time: is before spec.cron.begin_time"),
        (cron(end_time=in_days(-1)), "spec.cron.end_time: is before the first tick: the job could never start"),
        (
            pb.JobSpec(image="busybox", cron=pb.Cron(expression="0 0 29 2 *"), expire_time=in_days(0.5)),
            "spec.expire_time: is before the first tick: the job could never start",
        ),
        (
            pb.JobSpec(image="busybox", cron=NIGHTLY, start_in=seconds(1)),
            "spec.cron: cannot be set together with spec.start_in; set one of them",
        ),
        (
            pb.JobSpec(image="busybox", cron=NIGHTLY, start_at=in_days(1)),
            "spec.cron: cannot be set together with spec.start_at; set one of them",
        ),
        (retry(max_retries=0), "spec.retry.max_retries: is 0; it must be from 1 to 100"),
        (retry(max_retries=101), "spec.retry.max_retries: is 101; it must be from 1 to 100"),
        (retry(initial_backoff=seconds(-1)), "spec.retry.initial_backoff: must be from 0 s to 1 day"),
        (retry(factor=0.5), "spec.retry.factor: is 0.5; it must be 0 (2) or from 1 to 100"),
        (retry(factor=float("nan")), "spec.retry.factor: is nan"),
        (retry(max_backoff=seconds(8 * 86_400)), "spec.retry.max_backoff: must be from 0 s to 7 days"),
        (
            retry(initial_backoff=seconds(10), max_backoff=seconds(5)),
            "spec.retry.max_backoff: is less than spec.retry.initial_backoff",
        ),
        (retry(jitter=7), "spec.retry.jitter: 7 is not one of FULL, NONE"),  # type: ignore[arg-type]
        (retry(causes=[1, 0]), "spec.retry.causes[1]: 0 is not one of EXIT_CODE, OUT_OF_MEMORY"),
        (retry(exit_codes=[1, 256]), "spec.retry.exit_codes[1]: is 256; an exit code of a failure is from 1 to 255"),
        (retry(except_exit_codes=[0]), "spec.retry.except_exit_codes[0]: is 0; an exit code of a failure"),
        (retry(exit_codes=[1] * 256), "spec.retry.exit_codes: has 256 entries; at most 255 are allowed"),
        (retry(causes=[1] * 100_000), "spec.retry.causes: names a cause more than once"),
        (retry(causes=[2], exit_codes=[1]), "spec.retry.exit_codes: has no effect"),
        (retry(causes=[2], except_exit_codes=[1]), "spec.retry.except_exit_codes: has no effect"),
        (retry(exit_codes=[1], except_exit_codes=[1, 2]), "spec.retry.exit_codes: has no effect"),
        (
            retry(memory_growth=pb.Retry.MemoryGrowth(**GROWTH)),
            "spec.retry.memory_growth: needs spec.limits.memory_bytes, from which memory grows",
        ),
        (
            pb.JobSpec(
                image="busybox",
                limits=SMALL,
                retry=pb.Retry(max_retries=1, memory_growth=pb.Retry.MemoryGrowth(factor=1, max_bytes=64 << 20)),
            ),
            "spec.retry.memory_growth.factor: is 1.0; it must be more than 1 and at most 16",
        ),
        (
            pb.JobSpec(
                image="busybox",
                limits=SMALL,
                retry=pb.Retry(max_retries=1, memory_growth=pb.Retry.MemoryGrowth(factor=2, max_bytes=1 << 20)),
            ),
            "spec.retry.memory_growth.max_bytes: is 1048576; it must be more than spec.limits.memory_bytes",
        ),
        (pb.JobSpec(image="busybox", unique=pb.Unique()), "spec.unique.key: is required"),
        (pb.JobSpec(image="busybox", unique=pb.Unique(key="k" * 129)), "spec.unique.key: has 129 characters"),
        (
            pb.JobSpec(image="busybox", unique=pb.Unique(key="k", conflict=9)),  # type: ignore[arg-type]
            "spec.unique.conflict: 9 is not one of REFUSE, USE_EXISTING, REPLACE",
        ),
        (pb.JobSpec(image="busybox", history=-1), "spec.history: is -1; it must be 0"),
        (pb.JobSpec(image="busybox", history=10_001), "spec.history: is 10001; it must be 0"),
    ],
)
@pytest.mark.parametrize("replaces", [False, True])
async def test_bad_input_names_its_field_and_changes_nothing(
    harness: RpcHarness, spec: pb.JobSpec, says: str, replaces: bool
) -> None:
    call: Any
    if replaces:
        call = harness.jobs.ReplaceJob(pb.ReplaceJobRequest(job_id=JOB_ID, task_id="t", spec=spec))
    else:
        call = harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=spec, request_id="r"))
    refused = await refusal(call)
    assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert says in str(refused.details())
    assert not (await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (pb.PreviewScheduleRequest(), "cron: is required; cron.expression: is required"),
        (pb.PreviewScheduleRequest(cron=pb.Cron(expression="61 * * * *")), "cron.expression: the minute '61' must be"),
        (pb.PreviewScheduleRequest(cron=NIGHTLY, count=101), "count: is 101; it must be from 0 (10 times) to 100"),
        (pb.PreviewScheduleRequest(cron=NIGHTLY, count=-1), "count: is -1"),
        (
            pb.PreviewScheduleRequest(cron=NIGHTLY, from_time=timestamp_pb2.Timestamp(seconds=1 << 50)),
            "from_time: is not a time",
        ),
    ],
)
async def test_a_preview_names_the_field_at_fault(
    harness: RpcHarness, request_: pb.PreviewScheduleRequest, says: str
) -> None:
    refused = await refusal(harness.jobs.PreviewSchedule(request_))
    assert (refused.code(), str(refused.details())[: len(says)]) == (grpc.StatusCode.INVALID_ARGUMENT, says)


async def test_a_preview_of_the_far_future_is_empty_and_quick(harness: RpcHarness) -> None:
    request = pb.PreviewScheduleRequest(cron=NIGHTLY, from_time=timestamp_pb2.Timestamp(seconds=253_402_300_000))
    assert not (await harness.jobs.PreviewSchedule(request)).times


async def test_an_unknown_field_of_a_nested_message_is_refused(harness: RpcHarness) -> None:
    unknown = b"\xc0\x3e\x01"
    for field in ("cron", "retry", "unique"):
        data = getattr(pb.JobSpec(cron=NIGHTLY, retry=pb.Retry(max_retries=1)), field).SerializeToString() + unknown
        spec = pb.JobSpec(image="busybox")
        getattr(spec, field).MergeFromString(data)
        refused = await refusal(harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=spec)))
        assert (refused.code(), info(refused).reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_FIELD")
        assert f"field 1000 of EnqueueJobRequest.spec.{field}" in str(refused.details())
