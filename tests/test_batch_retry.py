"""BatchRetryJobs: the final jobs that a filter finds run once more, each once."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import House, reason


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.server.start()
    yield house
    await house.close()


async def stopped(house: House, task_id: str = "task", **spec: Any) -> pb.Job:
    request = pb.EnqueueJobRequest(task_id=task_id, spec=pb.JobSpec(image="busybox", **spec))
    job = (await house.jobs.EnqueueJob(request)).job
    return (await house.jobs.StopJob(pb.StopJobRequest(job_id=job.id))).job  # type: ignore[no-any-return]


async def retried(house: House, **more: Any) -> pb.BatchRetryJobsResponse:
    fields = {name: more.pop(name) for name in ("until_time", "validate_only") if name in more}
    request = pb.BatchRetryJobsRequest(filter=pb.JobFilter(**more), **fields)
    return await house.jobs.BatchRetryJobs(request)  # type: ignore[no-any-return]


async def states(house: House) -> list[int]:
    return [job.state for job in (await house.jobs.ListJobs(pb.ListJobsRequest())).jobs]


async def test_jobs_that_match_run_once_more_and_others_do_not(house: House) -> None:
    mine, other = await stopped(house, labels={"a": "b"}), await stopped(house, "other")
    answer = await retried(house, task_id="task", states=[pb.STATE_STOPPED])
    assert (answer.retried, answer.skipped, answer.more) == (1, 0, False)
    found = {job.id: job.state for job in (await house.jobs.ListJobs(pb.ListJobsRequest())).jobs}
    assert found == {mine.id: pb.STATE_QUEUED, other.id: pb.STATE_STOPPED}


async def test_without_states_only_what_failed_is_retried(house: House) -> None:
    await stopped(house)
    job = await house.enqueue()
    await house.finish(*(await house.begin()), code=1)
    answer = await retried(house, task_id="task")
    assert answer.retried == 1
    assert (await house.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job.state == pb.STATE_QUEUED


async def test_a_job_that_ends_again_is_not_retried_by_a_repeated_call(house: House) -> None:
    job = await stopped(house)
    first = await retried(house, job_ids=[job.id], states=[pb.STATE_STOPPED])
    await house.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    again = await retried(house, job_ids=[job.id], states=[pb.STATE_STOPPED], until_time=first.until_time)
    assert (first.retried, again.retried) == (1, 0)
    assert (await retried(house, job_ids=[job.id], states=[pb.STATE_STOPPED])).retried == 1


async def test_at_most_a_thousand_jobs_are_retried_in_one_call(house: House) -> None:
    array = pb.JobArray(request=pb.EnqueueJobRequest(task_id="task", spec=pb.JobSpec(image="busybox")), size=1000)
    for size in (1000, 30):
        array.size = size
        await house.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(array=array))
    while (await house.jobs.BatchStopJobs(pb.BatchStopJobsRequest(filter=pb.JobFilter(task_id="task")))).more:
        pass
    counted = await retried(house, task_id="task", states=[pb.STATE_STOPPED], validate_only=True)
    assert (counted.retried, counted.more) == (1000, True)
    first = await retried(house, task_id="task", states=[pb.STATE_STOPPED])
    rest = await retried(house, task_id="task", states=[pb.STATE_STOPPED], until_time=first.until_time)
    assert (first.retried, first.more, rest.retried, rest.more) == (1000, True, 30, False)


async def test_jobs_that_cannot_be_retried_are_counted(house: House) -> None:
    soon = timestamp_pb2.Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(milliseconds=200))
    expired = await stopped(house, expire_time=soon)
    taken = await stopped(house, unique=pb.Unique(key="k"))
    await house.enqueue(unique=pb.Unique(key="k"))
    while datetime.now(UTC) <= soon.ToDatetime(UTC):
        await house.jobs.GetJob(pb.GetJobRequest(job_id=expired.id))
    answer = await retried(house, job_ids=[expired.id, taken.id], states=[pb.STATE_STOPPED])
    assert (answer.retried, answer.skipped, answer.more) == (0, 2, False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "filter: is empty: set at least one of its fields"),
        ({"states": [pb.STATE_QUEUED]}, "filter.states: has QUEUED; allowed are SUCCEEDED"),
        ({"task_id": "t", "until_time": timestamp_pb2.Timestamp(seconds=1 << 50)}, "until_time: is not a time"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(house: House, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await retried(house, **fields)
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert says in str(refused.value.details())
