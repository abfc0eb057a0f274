"""A store that cannot write or read, as callers are told of it over gRPC; and that some test provokes each error the
contract has."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from structlog.testing import capture_logs

from fastlane_grpc import errors
from fastlane_grpc.api import error_table
from fastlane_grpc.api.request_parser import writes
from fastlane_grpc.store.database import Connection, open_for_writing
from fastlane_grpc.store.writer import Written
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.calls import RpcHarness, detail, info, reason
from tests.parts import Parts
from tests.tools import ROOT

CODES = (ROOT / "clients/README.md").read_text()


class FullDiskHarness(RpcHarness):
    """Its database cannot grow."""

    def open_store(self, parts: Any) -> None:
        Parts.open_store(self, parts)

        def limit(db: Connection) -> Written[None]:
            [(pages,)] = db.execute("PRAGMA page_count").fetchall()
            db.execute(f"PRAGMA max_page_count = {pages}").fetchall()
            return Written(None)

        self.writer.write(limit)


async def test_a_full_disk_is_told_and_when_to_come_again(tmp_path: Path) -> None:
    harness = FullDiskHarness(tmp_path)
    await harness.server.start()
    with pytest.raises(grpc.aio.AioRpcError) as full:
        await harness.enqueue(args=["x" * 100_000])
    assert (full.value.code(), reason(full.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
    retry = detail(full.value, error_details_pb2.RetryInfo)
    assert retry is not None
    assert retry.retry_delay.seconds > 0
    assert (await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs == []
    await harness.close()


async def test_a_store_that_cannot_be_read_is_told_and_when_to_come_again(tmp_path: Path) -> None:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    await harness.enqueue()
    db = open_for_writing(tmp_path / "fastlane.db")
    # What a damaged file says, or one that somebody else has changed: the table is not what it was.
    db.execute("ALTER TABLE tasks RENAME TO hidden")
    tasks = pb_grpc.TaskServiceStub(harness.channel)
    for call in (tasks.ListTasks(pb.ListTasksRequest()), tasks.GetTask(pb.GetTaskRequest(task_id="task"))):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert (failed.value.code(), reason(failed.value)) == (grpc.StatusCode.UNAVAILABLE, "STORE_FAILED")
        assert detail(failed.value, error_details_pb2.RetryInfo) is not None
        assert info(failed.value).domain == "fastlane"
    db.execute("ALTER TABLE hidden RENAME TO tasks")
    db.close()
    assert len((await tasks.ListTasks(pb.ListTasksRequest())).tasks) == 1
    await harness.close()


@pytest.mark.parametrize(
    ("spec", "told", "metadata"),
    [
        ({"secret_envs": {"A": "db"}}, "SECRET_NOT_FOUND", {"secret": "db"}),
        ({"registry_credential": "ci"}, "REGISTRY_CREDENTIAL_NOT_FOUND", {"registry_credential": "ci"}),
    ],
)
async def test_a_job_that_names_what_the_operator_does_not_have_is_refused(
    tmp_path: Path, spec: dict[str, Any], told: str, metadata: dict[str, str]
) -> None:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    request = pb.EnqueueJobRequest(task_id="t", spec=pb.JobSpec(image="busybox", **spec))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await harness.jobs.EnqueueJob(request)
    assert (failed.value.code(), reason(failed.value)) == (grpc.StatusCode.NOT_FOUND, told)
    assert dict(info(failed.value).metadata) == metadata
    await harness.close()


def refusals(kind: type[errors.Refusal] = errors.Refusal) -> Iterator[type[errors.Refusal]]:
    for each in kind.__subclasses__():
        # Not those that a test makes up.
        if each.__module__.startswith("fastlane_grpc."):
            yield each
        yield from refusals(each)


def test_every_refusal_is_in_the_table() -> None:
    assert set(refusals()) == set(error_table.TABLE)


def test_a_refusal_that_is_not_in_the_table_is_told_as_what_it_is_a_kind_of() -> None:
    class QueueOfATaskFull(errors.QueueFull):
        """Of a later release."""

    status = error_table.status_of(QueueOfATaskFull("the queue is full", retry_seconds=5, limit="3"))
    assert (status.code, status.message) == (code_pb2.RESOURCE_EXHAUSTED, "the queue is full")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata["limit"]) == ("QUEUE_FULL", "3")


def test_a_refusal_that_nothing_in_the_table_stands_for_is_a_defect_with_a_number() -> None:
    class Unheard(errors.Refusal):
        """In no table."""

    with capture_logs() as logged:
        status = error_table.status_of(Unheard("of what nobody thought"))
    assert status.code == code_pb2.INTERNAL
    [entry] = logged
    assert entry["defect"] in status.message
    assert isinstance(entry["exc_info"], Unheard)


def test_calls_that_write_are_those_that_are_not_said_to_have_no_side_effects() -> None:
    methods = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
    assert {method.name for method in methods if writes(method)} == {
        *("EnqueueJob", "StopJob", "StopExecution", "Prune", "RetryJob", "ReplaceJob"),
        *("PauseSchedule", "ResumeSchedule", "BatchEnqueueJobs", "BatchStopJobs", "BatchRetryJobs"),
        *("UpdateTask", "DrainHost", "ResumeHost", "RedeliverNotification", "UploadInput"),
    }


def test_every_error_of_the_contract_is_in_the_table_and_provoked_by_a_test() -> None:
    served = {pb.ErrorReason.Name(entry.reason) for entry in error_table.TABLE.values()} | {"ERROR_REASON_DEFECT"}
    assert served == set(pb.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    directory = Path(__file__).parent
    files = [*directory.glob("test_rpc*.py"), directory / "test_job_logs.py", directory / "test_access.py"]
    tests = "".join(path.read_text() for path in files)
    provoked = {f"ERROR_REASON_{name}" for name in re.findall(r'"([A-Z_]+)"', tests)}
    # By the limit on what waits, which is tested where it is kept.
    assert served - {"ERROR_REASON_QUEUE_FULL"} <= provoked


def test_the_documented_codes_say_when_a_client_gives_up() -> None:
    rows = re.findall(
        r"^\| ([A-Z_, ]+?)(?:, or OK without `end`)? \| [0-9, ]+ \| (calls again|gives up)", CODES, re.MULTILINE
    )
    action = {code: does for codes, does in rows for code in codes.split(", ")}
    every = {code.name for code in grpc.StatusCode} - {"OK"}
    # No answer of a server of fastlane, nor of a proxy.
    assert set(action) == every - {"DATA_LOSS"}
    retried = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"}
    for error, entry in error_table.TABLE.items():
        code = code_pb2.Code.Name(entry.code)
        assert action[code] == ("calls again" if code in retried else "gives up"), error
