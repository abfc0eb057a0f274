"""BatchRetryJobs: the final jobs that a filter finds run once more, each once."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness, reason


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


async def stopped(harness: RpcHarness, task_id: str = "task", **spec: Any) -> pb.Job:
    request = pb.EnqueueJobRequest(task_id=task_id, spec=pb.JobSpec(image="busybox", **spec))
    job = (await harness.jobs.EnqueueJob(request)).job
    return (await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))).job  # type: ignore[no-any-return]


async def retried(harness: RpcHarness, **more: Any) -> pb.BatchRetryJobsResponse:
    fields = {name: more.pop(name) for name in ("until_time", "validate_only") if name in more}
    if "filter_until" in more:
        # Of the enqueue; that of the request is of the end.
        more["until_time"] = more.pop("filter_until")
    request = pb.BatchRetryJobsRequest(filter=pb.JobFilter(**more), **fields)
    return await harness.jobs.BatchRetryJobs(request)  # type: ignore[no-any-return]


async def states(harness: RpcHarness) -> list[int]:
    return [job.state for job in (await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs]


async def test_jobs_that_match_run_once_more_and_others_do_not(harness: RpcHarness) -> None:
    mine, other = await stopped(harness, labels={"a": "b"}), await stopped(harness, "other")
    answer = await retried(harness, task_id="task", states=[pb.STATE_STOPPED])
    assert (answer.retried, answer.skipped, answer.more) == (1, 0, False)
    found = {job.id: job.state for job in (await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs}
    assert found == {mine.id: pb.STATE_QUEUED, other.id: pb.STATE_STOPPED}


async def test_a_filter_by_labels_and_times_retries_exactly_what_matches(harness: RpcHarness) -> None:
    jobs = [await stopped(harness, labels={"team": team, "n": n}) for team in "ab" for n in ("1", "2")]

    async def retried_now(**fields: Any) -> list[int]:
        """Which jobs a filter retries: they are stopped again."""
        answer = await retried(harness, states=[pb.STATE_STOPPED], **fields)
        found = [place for place, job in enumerate(jobs) if await is_open(harness, job)]
        assert answer.retried == len(found)
        for place in found:
            await harness.jobs.StopJob(pb.StopJobRequest(job_id=jobs[place].id))
        return found

    assert await retried_now(labels={"team": "a"}) == [0, 1]
    assert await retried_now(labels={"team": "b", "n": "2"}) == [3]
    assert await retried_now(labels={"team": "c"}) == []
    assert await retried_now(since_time=jobs[2].create_time) == [2, 3]
    assert await retried_now(task_id="task", filter_until=jobs[2].create_time) == [0, 1]
    times = {"since_time": jobs[1].create_time, "filter_until": jobs[3].create_time}
    assert await retried_now(labels={"n": "1"}, **times) == [2]
    assert await retried_now(task_id="another", labels={"n": "1"}) == []


async def is_open(harness: RpcHarness, job: pb.Job) -> bool:
    return not (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job.HasField("outcome")


async def test_without_states_only_what_failed_is_retried(harness: RpcHarness) -> None:
    await stopped(harness)
    job = await harness.enqueue()
    await harness.finish(*(await harness.begin()), code=1)
    answer = await retried(harness, task_id="task")
    assert answer.retried == 1
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job.state == pb.STATE_QUEUED


async def test_a_job_that_ends_again_is_not_retried_by_a_repeated_call(harness: RpcHarness) -> None:
    job = await stopped(harness)
    first = await retried(harness, job_ids=[job.id], states=[pb.STATE_STOPPED])
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    again = await retried(harness, job_ids=[job.id], states=[pb.STATE_STOPPED], until_time=first.until_time)
    assert (first.retried, again.retried) == (1, 0)
    assert (await retried(harness, job_ids=[job.id], states=[pb.STATE_STOPPED])).retried == 1


async def test_at_most_a_thousand_jobs_are_retried_in_one_call(harness: RpcHarness) -> None:
    array = pb.JobArray(request=pb.EnqueueJobRequest(task_id="task", spec=pb.JobSpec(image="busybox")), size=1000)
    for size in (1000, 30):
        array.size = size
        await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(array=array))
    while (await harness.jobs.BatchStopJobs(pb.BatchStopJobsRequest(filter=pb.JobFilter(task_id="task")))).more:
        pass
    counted = await retried(harness, task_id="task", states=[pb.STATE_STOPPED], validate_only=True)
    assert (counted.retried, counted.more) == (1000, True)
    first = await retried(harness, task_id="task", states=[pb.STATE_STOPPED])
    rest = await retried(harness, task_id="task", states=[pb.STATE_STOPPED], until_time=first.until_time)
    assert (first.retried, first.more, rest.retried, rest.more) == (1000, True, 30, False)


async def test_jobs_that_cannot_be_retried_are_counted(harness: RpcHarness) -> None:
    soon = timestamp_pb2.Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(milliseconds=200))
    expired = await stopped(harness, expire_time=soon)
    taken = await stopped(harness, unique=pb.Unique(key="k"))
    await harness.enqueue(unique=pb.Unique(key="k"))
    while datetime.now(UTC) <= soon.ToDatetime(UTC):
        await harness.jobs.GetJob(pb.GetJobRequest(job_id=expired.id))
    answer = await retried(harness, job_ids=[expired.id, taken.id], states=[pb.STATE_STOPPED])
    assert (answer.retried, answer.skipped, answer.more) == (0, 2, False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "filter: is empty: set at least one of its fields"),
        ({"states": [pb.STATE_QUEUED]}, "filter.states: has QUEUED; allowed are SUCCEEDED"),
        ({"task_id": "t", "until_time": timestamp_pb2.Timestamp(seconds=1 << 50)}, "until_time: is not a time"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(harness: RpcHarness, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await retried(harness, **fields)
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert says in str(refused.value.details())
