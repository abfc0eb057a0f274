"""A job whose expire_time comes before its start_in is over is refused, as it could never start."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


def request(start_in: timedelta, expire_in: timedelta, **more: object) -> pb.EnqueueJobRequest:
    spec = pb.JobSpec(image="busybox", start_in=duration_pb2.Duration(), expire_time=timestamp_pb2.Timestamp())
    spec.start_in.FromTimedelta(start_in)
    spec.expire_time.FromDatetime(datetime.now(UTC) + expire_in)
    return pb.EnqueueJobRequest(task_id="t", spec=spec, **more)  # type: ignore[arg-type]


async def is_refused(harness: RpcHarness, asked: pb.EnqueueJobRequest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.EnqueueJob(asked)
    said = "spec.expire_time: is before now + spec.start_in: the job could never start"
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, said)


@pytest.mark.parametrize("validate_only", [False, True])
async def test_a_job_that_expires_before_its_start_in_is_refused(harness: RpcHarness, validate_only: bool) -> None:
    await is_refused(harness, request(timedelta(minutes=10), timedelta(minutes=1), validate_only=validate_only))
    await is_refused(harness, request(timedelta(minutes=10), timedelta(minutes=1), request_id="a"))
    assert not (await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs
    await harness.jobs.EnqueueJob(request(timedelta(minutes=10), timedelta(minutes=11), validate_only=validate_only))


async def test_a_repeated_call_is_answered_though_its_start_in_would_be_too_late_now(harness: RpcHarness) -> None:
    asked = request(timedelta(minutes=10), timedelta(minutes=10, seconds=2), request_id="same")
    first = (await harness.jobs.EnqueueJob(asked)).job
    left = asked.spec.expire_time.ToDatetime(UTC) - timedelta(minutes=10) - datetime.now(UTC)
    await asyncio.sleep(left.total_seconds() + 0.05)
    assert (await harness.jobs.EnqueueJob(asked)).job.id == first.id
    asked.request_id = "another"
    await is_refused(harness, asked)
