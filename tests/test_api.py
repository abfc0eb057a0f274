"""The calls without a transport: whatever serves them needs no gRPC."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastlane_grpc.api import Calls
from fastlane_grpc.errors import JobNotFound
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness


def test_the_calls_are_imported_without_grpc() -> None:
    modules = ("calls", "converters", "error_table", "log_encoding", "request_parser")
    imports = "; ".join(f"import fastlane_grpc.api.{name}" for name in modules)
    check = "import sys; sys.exit(any(name.partition('.')[0].startswith('grpc') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", f"{imports}; {check}"], timeout=60).returncode == 0


async def test_a_call_takes_and_returns_messages_without_a_transport(tmp_path: Path) -> None:
    harness = RpcHarness(tmp_path)
    calls = Calls(harness.service)
    request = pb.EnqueueJobRequest(task_id="task", spec=pb.JobSpec(image="busybox"))
    enqueued = await calls.enqueue_job(request, caller_address="page")
    found = await calls.get_job(pb.GetJobRequest(job_id=enqueued.job.id))
    assert (found.job.id, found.job.caller_address) == (enqueued.job.id, "page")
    listed = await calls.list_jobs(pb.ListJobsRequest())
    assert [job.id for job in listed.jobs] == [enqueued.job.id]
    with pytest.raises(JobNotFound):
        await calls.get_job(pb.GetJobRequest(job_id="unknown"))
    await harness.close()
