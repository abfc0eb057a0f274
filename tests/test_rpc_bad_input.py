"""Any values in any fields of schedules, retries, limits and filters, over gRPC: a call is carried out, or names the
fields at fault and changes nothing."""

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastlane_grpc.model import Outcome, Reason, State, utc_now
from fastlane_grpc.store import Store
from fastlane_grpc.store.database import open_for_reading
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness, detail, reason
from tests.requests_at_random import at_random, change

# Of each call; `make chaos` asks for many.
CHAOS = int(os.environ.get("CHAOS_REQUESTS", "0"))
EXAMPLES = CHAOS // 10 or 40
# Without shrinking: each example finds the store as the ones before have left it.
PHASES = [Phase.explicit, Phase.generate]
SETTINGS = settings(
    max_examples=EXAMPLES,
    phases=PHASES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FAILURE = Outcome(Reason.EXIT_CODE, "", 1)
POLICIES = (
    "cron",
    "retry",
    "unique",
    "start_in",
    "start_at",
    "expire_time",
    "history",
    "stop_when_unwatched",
    "limits",
)
FINE = pb.JobSpec(
    image="busybox",
    cron=pb.Cron(expression="0 * * * *"),
    retry=pb.Retry(max_retries=2),
    unique=pb.Unique(key="k", conflict=pb.Unique.CONFLICT_REPLACE),
)


def spec_at_random(data: st.DataObject) -> pb.JobSpec:
    """A spec that is fine but for a few policies, or parts of them."""
    spec = pb.JobSpec(image="busybox")
    for name in data.draw(st.lists(st.sampled_from(["cron", "retry", "unique"]), unique=True)):
        getattr(spec, name).CopyFrom(getattr(FINE, name))
        part = getattr(spec, name)
        if data.draw(st.booleans()):
            change(data, part, data.draw(st.sampled_from(list(part.DESCRIPTOR.fields))))
    for name in data.draw(st.lists(st.sampled_from(POLICIES), max_size=2, unique=True)):
        change(data, spec, spec.DESCRIPTOR.fields_by_name[name])
    return spec


def enqueue(data: st.DataObject) -> Message:
    return pb.EnqueueJobRequest(task_id="task", spec=spec_at_random(data), request_id=data.draw(IDS))


def replace(data: st.DataObject) -> Message:
    return pb.ReplaceJobRequest(job_id=data.draw(JOB_IDS), task_id="task", spec=spec_at_random(data))


def batch(data: st.DataObject) -> Message:
    array = pb.JobArray(size=data.draw(st.sampled_from([0, 1, 3, 1001, -1])), request=enqueue(data))
    return pb.BatchEnqueueJobsRequest(array=array)


def preview(data: st.DataObject) -> Message:
    request = at_random(data, pb.PreviewScheduleRequest.DESCRIPTOR)
    if data.draw(st.booleans()):
        request.cron.expression = "0 * * * *"
    return request


def any_of(kind: Descriptor) -> Callable[[st.DataObject], Message]:
    return lambda data: at_random(data, kind)


def filtered(request: type[Message]) -> Callable[[st.DataObject], Message]:
    """A request with a filter that may be fine."""

    def make(data: st.DataObject) -> Message:
        made = at_random(data, request.DESCRIPTOR)
        if data.draw(st.booleans()):
            made.filter.task_id = "task"
        return made

    return make


IDS = st.sampled_from(["", "r", "x" * 129, "\0"])
JOB_IDS = st.sampled_from(["0191d2c8-0000-7000-8000-000000000001", "", "x"])
CALLS = {
    "EnqueueJob": enqueue,
    "ReplaceJob": replace,
    "BatchEnqueueJobs": batch,
    "PreviewSchedule": preview,
    "UpdateTask": any_of(pb.UpdateTaskRequest.DESCRIPTOR),
    "RetryJob": any_of(pb.RetryJobRequest.DESCRIPTOR),
    "BatchStopJobs": filtered(pb.BatchStopJobsRequest),
    "BatchRetryJobs": filtered(pb.BatchRetryJobsRequest),
    "ListJobs": any_of(pb.ListJobsRequest.DESCRIPTOR),
    "StopJob": any_of(pb.StopJobRequest.DESCRIPTOR),
    "PauseSchedule": any_of(pb.PauseScheduleRequest.DESCRIPTOR),
    "ResumeSchedule": any_of(pb.ResumeScheduleRequest.DESCRIPTOR),
    "ReadOutputs": any_of(pb.ReadOutputsRequest.DESCRIPTOR),
    "ListOutputs": any_of(pb.ListOutputsRequest.DESCRIPTOR),
    "UploadInput": any_of(pb.UploadInputRequest.DESCRIPTOR),
    "WatchJobs": any_of(pb.WatchJobsRequest.DESCRIPTOR),
}
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.OUT_OF_RANGE,
}


def named_fields(error: grpc.aio.AioRpcError) -> list[str]:
    found = detail(error, error_details_pb2.BadRequest)
    return [violation.field for violation in found.field_violations] if found else []


def is_field(kind: Descriptor, path: str) -> bool:
    """Whether a message of this kind has a field with this path, as `spec.retry.causes[2]`."""
    name, _, rest = re.sub(r'\["(?:[^"\\]|\\.)*"\]|\[[0-9]+\]', "", path).partition(".")
    field = kind.fields_by_name.get(name)
    return field is not None and (not rest or (field.message_type is not None and is_field(field.message_type, rest)))


def method_of(name: str) -> MethodDescriptor:
    services = pb.DESCRIPTOR.services_by_name.values()
    [method] = [each.methods_by_name[name] for each in services if name in each.methods_by_name]
    return method


async def answer(harness: RpcHarness, name: str, request: Message) -> None:
    """Makes the call. Of a stream the first message is read, or the error."""
    method = method_of(name)
    path = f"/{method.containing_service.full_name}/{name}"
    if method.server_streaming:
        stream: Any = harness.channel.unary_stream(path)(request.SerializeToString())
        await stream.read()
        stream.cancel()
        return
    unary: Any = harness.channel.unary_unary(path)
    await unary(request.SerializeToString(), timeout=30)


class Stored:
    """What is stored, seen from beside the server."""

    def __init__(self, harness: RpcHarness) -> None:
        self._db = open_for_reading(harness.database)

    def state(self) -> list[Any]:
        """The number of the last change, and how much of each kind there is."""
        tables = ("jobs", "executions", "tasks", "task_limits", "job_labels", "job_retries", "deliveries", "lines")
        counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
        return self._db.execute(f"SELECT (SELECT max(sequence) FROM changes), {counts}").fetchall()

    def close(self) -> None:
        self._db.close()


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


@pytest.fixture
def stored(harness: RpcHarness) -> Iterator[Stored]:
    with closing(Stored(harness)) as stored:
        yield stored


@pytest.mark.parametrize("name", CALLS)
@SETTINGS
@given(data=st.data())
async def test_a_call_is_carried_out_or_names_its_fault_and_changes_nothing(
    harness: RpcHarness, stored: Stored, name: str, data: st.DataObject
) -> None:
    request = CALLS[name](data)
    before = stored.state()
    try:
        await answer(harness, name, request)
    except grpc.aio.AioRpcError as error:
        assert error.code() in REFUSALS, (error.code(), error.details(), request)
        assert stored.state() == before, "a refusal changes nothing"
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            if reason(error) in {"CURSOR_INVALID", "PAGE_TOKEN_INVALID"}:
                return
            fields = named_fields(error)
            assert fields, error.details()
            assert [each for each in fields if not is_field(request.DESCRIPTOR, each)] == []
    await pass_time(harness.store, data.draw(st.sampled_from([timedelta(), timedelta(hours=1), timedelta(days=400)])))


async def pass_time(store: Store, duration: timedelta) -> None:
    """What was stored is carried out, whenever its time comes; the clock is then set back."""
    store._now = lambda: utc_now() + duration
    while (await store.promote(100)).more:
        pass
    for assignment in await store.claim_on(["local"] * 10):
        await store.finish(assignment.execution.id, state=State.FAILED, outcome=FAILURE, logs=())
    store._now = utc_now
