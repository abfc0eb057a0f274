"""Many jobs in one call: a batch has the effect of its requests one by one, an array is one spec many times."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.api.calls import Calls
from fastlane_grpc.api.error_table import status_of
from fastlane_grpc.api.request_parser import RequestParser
from fastlane_grpc.errors import Refusal
from fastlane_grpc.model import Outcome, Reason, State
from fastlane_grpc.store.database import open_for_reading
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness, detail, reason
from tests.store_checks import check_jobs, check_lines

METHODS = pb.DESCRIPTOR.services_by_name["JobService"].methods_by_name
ONE, MANY = (RequestParser(METHODS[name], max_request_bytes=4 << 20) for name in ("EnqueueJob", "BatchEnqueueJobs"))
INVALID, UNIMPLEMENTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


def request(task_id: str = "task", request_id: str = "", image: str = "busybox", **spec: Any) -> pb.EnqueueJobRequest:
    return pb.EnqueueJobRequest(task_id=task_id, spec=pb.JobSpec(image=image, **spec), request_id=request_id)


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def stored(harness: RpcHarness) -> list[pb.Job]:
    return list((await harness.jobs.ListJobs(pb.ListJobsRequest(page_size=1000))).jobs)


def violated(error: grpc.aio.AioRpcError) -> list[str]:
    bad_request = detail(error, error_details_pb2.BadRequest)
    assert bad_request is not None
    return [violation.field for violation in bad_request.field_violations]


# ---- a batch has the effect of its requests one by one

SPECS = (
    pb.JobSpec(image="busybox"),
    pb.JobSpec(image="busybox", command="echo hello", labels={"color": "red", "size": "1"}, priority=3),
    pb.JobSpec(image="busybox", envs={"API_KEY": "one"}),
    # Equal to the one before when secrets are not compared.
    pb.JobSpec(image="busybox", envs={"API_KEY": "two"}),
    pb.JobSpec(image="busybox", start_in={"seconds": 3600}),
    pb.JobSpec(image="busybox", start_in={"seconds": 3600}, expire_time={"seconds": 4_000_000_000}),
    pb.JobSpec(image="busybox", cron=pb.Cron(expression="0 5 * * *")),
    pb.JobSpec(image="busybox", retry=pb.Retry(max_retries=2)),
    pb.JobSpec(image="busybox", unique=pb.Unique(key="k")),
    pb.JobSpec(image="busybox", unique=pb.Unique(key="k", conflict=pb.Unique.CONFLICT_USE_EXISTING)),
    pb.JobSpec(image="busybox", unique=pb.Unique(key="k", conflict=pb.Unique.CONFLICT_REPLACE)),
    # Rejected.
    pb.JobSpec(),
    pb.JobSpec(image="UPPER", envs={"A=B": "c"}, priority=101),
    pb.JobSpec(image="busybox", metadata={"x": float("nan")}),
    pb.JobSpec(image="busybox", pull_policy=77),  # type: ignore[arg-type]
    pb.JobSpec.FromString(pb.JobSpec(image="busybox").SerializeToString() + b"\x98\x06\x01"),
)
REQUESTS = st.builds(
    lambda task_id, spec, request_id, validate_only: pb.EnqueueJobRequest(
        task_id=task_id, spec=spec, request_id=request_id, validate_only=validate_only
    ),
    st.sampled_from(["t", "t", "u", "", "-not-a-task"]),
    # The plain ones more often.
    st.sampled_from([*SPECS, *SPECS[:5] * 3]),
    st.sampled_from(["", "", "a", "b", "c", "x" * 129]),
    st.sampled_from([False, False, False, True]),
)


class Plain:
    """What a call did, without ids and times: each id is named by the order in which it was first seen."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def text(self, text: str) -> str:
        return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda found: self._name(found[0]), text)

    def _name(self, each: str) -> str:
        return self._names.setdefault(each, f"id {len(self._names)}")

    def result(self, result: pb.BatchEnqueueJobsResponse.Result) -> str:
        job = result.enqueued.job
        if result.HasField("enqueued"):
            for message in (job, job.execution, job.execution.times, job.execution.waiting, job.outcome):
                for field, _ in message.ListFields():
                    if field.message_type and field.message_type.name == "Timestamp":
                        message.ClearField(field.name)
            job.ClearField("spec")
            job.ClearField("schedule")
            job.execution.waiting.ClearField("detail")
        return self.text(str(result))

    def rows(self, harness: RpcHarness) -> list[list[Any]]:
        db = open_for_reading(harness.database)
        check_lines(lambda sql: db.execute(sql).fetchall())
        check_jobs(lambda sql: db.execute(sql).fetchall())
        tables = [
            """
            SELECT job_id, execution_id, task_id, state, spec, request_id, request_digest, caller_address, executions,
                reason, detail, stop_time IS NULL, runs, schedule IS NULL, unique_key, array_index, array_size
            FROM jobs ORDER BY seq
            """,
            """
            SELECT execution_id, job_id, task_id, priority, run, attempt, state, due_time > create_time, detail, held,
                tick_time IS NULL, expire_time
            FROM executions ORDER BY seq
            """,
            "SELECT name, value, seq FROM job_labels ORDER BY 1, 2, 3",
            "SELECT task_id, jobs, open_jobs FROM tasks ORDER BY 1",
            "SELECT priority, task_id, turn FROM lines ORDER BY 1, 2",
            "SELECT waiting FROM kept",
        ]
        rows = [[self.text(str(row)) for row in db.execute(sql).fetchall()] for sql in tables]
        db.close()
        return rows


async def one_by_one(calls: Calls, requests: Sequence[pb.EnqueueJobRequest]) -> pb.BatchEnqueueJobsResponse:
    response = pb.BatchEnqueueJobsResponse()
    for each in requests:
        result = response.results.add()
        try:
            parsed: Any = ONE.parse(each.SerializeToString())
            result.enqueued.CopyFrom(await calls.enqueue_job(parsed, caller_address="someone"))
        except Refusal as error:
            result.rejection.CopyFrom(rejection(status_of(error)))
    return response


def rejection(status: status_pb2.Status) -> pb.Rejection:
    """What a status says, read from its details."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for each in status.details:
        each.Unpack(info)
        each.Unpack(bad_request)
    return pb.Rejection(
        code=status.code,
        reason=pb.ErrorReason.Value(f"ERROR_REASON_{info.reason}"),
        message=status.message,
        metadata=info.metadata,
        violations=[
            pb.Rejection.FieldViolation(field=each.field, description=each.description)
            for each in bad_request.field_violations
        ],
    )


async def both_ways(batches: Sequence[Sequence[pb.EnqueueJobRequest]], max_waiting: int) -> None:
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        harnesses = [RpcHarness(Path(path), max_waiting=max_waiting) for path in (first, second)]
        batched, single = (Calls(harness.service) for harness in harnesses)
        plain, plain_single = Plain(), Plain()
        try:
            for requests in batches:
                whole: Any = MANY.parse(pb.BatchEnqueueJobsRequest(requests=requests).SerializeToString())
                response = await batched.batch_enqueue_jobs(whole, caller_address="someone")
                expected = await one_by_one(single, requests)
                assert [plain.result(each) for each in response.results] == [
                    plain_single.result(each) for each in expected.results
                ]
                assert plain.rows(harnesses[0]) == plain_single.rows(harnesses[1])
        finally:
            for harness in harnesses:
                await harness.close()


@settings(max_examples=25)
@given(st.lists(st.lists(REQUESTS, min_size=1, max_size=12), min_size=1, max_size=3), st.sampled_from([3, 8, 1000]))
def test_a_batch_has_the_effect_of_its_requests_one_by_one(
    batches: list[list[pb.EnqueueJobRequest]], max_waiting: int
) -> None:
    asyncio.run(both_ways(batches, max_waiting))


async def test_a_long_batch_with_one_repeated_request_stores_each_job_once(harness: RpcHarness) -> None:
    # Longer than one statement takes, the repeated one in the midst.
    requests = [request(f"task-{number % 7}", f"r{number}", command=f"echo {number % 3}") for number in range(300)]
    await harness.jobs.EnqueueJob(requests[170])
    requests.append(requests[5])
    response = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=requests))
    existing = [number for number, result in enumerate(response.results) if result.enqueued.existing]
    assert existing == [170, 300]
    assert response.results[300].enqueued.job.id == response.results[5].enqueued.job.id
    jobs = {job.id: job for job in await stored(harness)}
    assert len(jobs) == 300
    for number, result in enumerate(response.results[:300]):
        job = result.enqueued.job
        assert not job.HasField("spec")
        kept = jobs[job.id]
        assert (job.task_id, job.request_id) == (kept.task_id, kept.request_id) == (f"task-{number % 7}", f"r{number}")
        assert (job.execution.id, job.execution.job_id) == (kept.execution.id, kept.id)
        assert job.execution.task_id == job.task_id
        assert job.execution.times == kept.execution.times
    again = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=requests))
    assert [result.enqueued.job.id for result in again.results] == [
        result.enqueued.job.id for result in response.results
    ]
    assert all(result.enqueued.existing for result in again.results)
    # By calls of their own, too: what is compared is the same.
    for number in range(0, 300, 11):
        alone = await harness.jobs.EnqueueJob(requests[number])
        assert (alone.existing, alone.job.id) == (True, response.results[number].enqueued.job.id)


async def test_ids_of_a_batch_are_uuids_of_version_7_in_the_order_of_its_requests(harness: RpcHarness) -> None:
    response = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=[request()] * 1000))
    ids = [result.enqueued.job.id for result in response.results]
    assert len(set(ids)) == 1000
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", each) for each in ids
    )
    assert [job.id for job in await stored(harness)] == ids[::-1]


async def test_the_quota_is_exact_within_a_batch(tmp_path: Path) -> None:
    harness = RpcHarness(tmp_path, max_waiting=100)
    await harness.server.start()
    requests = [request(request_id=f"r{number}") for number in range(150)]
    response = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=requests))
    assert [result.HasField("enqueued") for result in response.results] == [True] * 100 + [False] * 50
    rejection = response.results[-1].rejection
    assert (rejection.code, rejection.reason) == (8, pb.ERROR_REASON_QUEUE_FULL)
    assert rejection.metadata == {"limit": "100"}
    assert len(await stored(harness)) == 100
    await harness.close()


async def test_a_batch_on_a_full_disk_stores_nothing_and_finds_what_it_stored_before(tmp_path: Path) -> None:
    roomy = RpcHarness(tmp_path)
    await roomy.server.start()
    known = pb.BatchEnqueueJobsRequest(requests=[request(request_id="a"), request(request_id="b")])
    first = await roomy.jobs.BatchEnqueueJobs(known)
    await roomy.close()
    harness = RpcHarness(tmp_path, min_free_bytes=1 << 60)
    await harness.server.start()
    error = await refused(
        harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=[*known.requests, request(request_id="c")]))
    )
    assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
    assert len(await stored(harness)) == 2
    again = await harness.jobs.BatchEnqueueJobs(known)
    assert [result.enqueued.existing for result in again.results] == [True, True]
    assert again.results[0].enqueued.job.id == first.results[0].enqueued.job.id
    await harness.close()


# ---- calls that are rejected as a whole


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (pb.BatchEnqueueJobsRequest(), "requests"),
        (pb.BatchEnqueueJobsRequest(requests=[request()] * 1001), "requests"),
        (pb.BatchEnqueueJobsRequest(requests=[request()], array=pb.JobArray(request=request(), size=1)), "array"),
        (pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=request())), "array.size"),
        (pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=request(), size=-1)), "array.size"),
        (pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=request(), size=1001)), "array.size"),
        (pb.BatchEnqueueJobsRequest(array=pb.JobArray(size=1)), "array.request.task_id"),
        (
            pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=request(unique=pb.Unique(key="k")), size=2)),
            "array.request.spec.unique",
        ),
        (
            pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=request(envs={"FASTLANE_ARRAY_SIZE": "2"}), size=2)),
            'array.request.spec.envs["FASTLANE_ARRAY_SIZE"]',
        ),
        (
            pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=request(request_id="x" * 126), size=11)),
            "array.request.request_id",
        ),
    ],
)
async def test_a_batch_that_cannot_be_is_rejected_by_its_field_and_stores_nothing(
    harness: RpcHarness, batch: pb.BatchEnqueueJobsRequest, field: str
) -> None:
    error = await refused(harness.jobs.BatchEnqueueJobs(batch))
    assert (error.code(), reason(error), violated(error)[0]) == (INVALID, "INVALID_FIELD", field)
    assert not await stored(harness)


async def test_an_unknown_field_rejects_its_request_alone_or_the_whole_call(harness: RpcHarness) -> None:
    unknown = b"\x98\x06\x01"
    nested = pb.EnqueueJobRequest.FromString(request().SerializeToString() + unknown)
    response = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=[request(), nested, request()]))
    assert [result.WhichOneof("result") for result in response.results] == ["enqueued", "rejection", "enqueued"]
    rejection = response.results[1].rejection
    assert (rejection.code, rejection.reason) == (12, pb.ERROR_REASON_UNKNOWN_FIELD)
    assert "field 99 of EnqueueJobRequest" in rejection.message
    assert len(await stored(harness)) == 2
    for whole, place in (
        (pb.BatchEnqueueJobsRequest(requests=[request()]).SerializeToString() + unknown, "BatchEnqueueJobsRequest"),
        (
            pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=nested, size=1)).SerializeToString(),
            "BatchEnqueueJobsRequest.array.request",
        ),
    ):
        error = await refused(harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest.FromString(whole)))
        assert (error.code(), reason(error)) == (UNIMPLEMENTED, "UNKNOWN_FIELD")
        assert f"field 99 of {place}" in str(error.details())
    assert len(await stored(harness)) == 2


async def test_a_batch_may_have_3_mib_and_no_more(harness: RpcHarness) -> None:
    # 1 000 specs that differ, each as large as the limit allows.
    specs = [request(envs={"NUMBER": str(number), "PADDING": "x" * 3_050}) for number in range(1000)]
    batch = pb.BatchEnqueueJobsRequest(requests=specs)
    assert (3 << 20) - 100_000 < batch.ByteSize() <= 3 << 20
    response = await harness.jobs.BatchEnqueueJobs(batch)
    assert all(result.HasField("enqueued") for result in response.results)
    job = await harness.jobs.GetJob(pb.GetJobRequest(job_id=response.results[7].enqueued.job.id))
    assert job.job.spec.envs["NUMBER"] == "7"
    batch.requests[0].spec.envs["PADDING"] += "x" * 100_000
    error = await refused(harness.jobs.BatchEnqueueJobs(batch))
    assert reason(error) == "INVALID_FIELD"
    assert "at most 3145728 are allowed in one batch" in str(error.details())
    assert len((await harness.jobs.ListJobs(pb.ListJobsRequest(page_size=1))).jobs) == 1


async def test_a_response_with_a_thousand_long_rejections_stays_below_3_mib(harness: RpcHarness) -> None:
    bad = request("-", "r" * 129, image="UPPER", labels={f"={number:060}": "" for number in range(20)})
    response = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=[bad] * 1000))
    assert response.ByteSize() <= 3 << 20
    assert {result.rejection.reason for result in response.results} == {pb.ERROR_REASON_INVALID_FIELD}
    assert all(result.rejection.violations for result in response.results)
    [alone] = (await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=[bad]))).results
    assert len(alone.rejection.violations) > len(response.results[0].rejection.violations)


async def test_a_response_with_a_thousand_long_outcomes_stays_below_3_mib(harness: RpcHarness) -> None:
    requests = [request(request_id=f"r{number}") for number in range(1000)]
    batch = pb.BatchEnqueueJobsRequest(requests=requests)
    stored_now = await harness.jobs.BatchEnqueueJobs(batch)
    failed = {"state": State.FAILED, "outcome": Outcome(Reason.REFUSED_BY_ENGINE, "x" * 2000), "logs": ()}
    ids = [result.enqueued.job.execution.id for result in stored_now.results]
    await asyncio.gather(*(harness.store.finish(each, **failed) for each in ids))  # type: ignore[arg-type]
    response = await harness.jobs.BatchEnqueueJobs(batch)
    assert response.ByteSize() <= 3 << 20
    assert all(result.enqueued.existing for result in response.results)
    outcomes = {result.enqueued.job.outcome.detail for result in response.results}
    [alone] = (await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=requests[:1]))).results
    assert outcomes == {alone.enqueued.job.outcome.detail[:100]}


# ---- arrays


def array(size: int, **spec: Any) -> pb.BatchEnqueueJobsRequest:
    return pb.BatchEnqueueJobsRequest(array=pb.JobArray(request=request(**spec), size=size))


async def test_an_array_is_one_spec_many_times_each_with_its_place(harness: RpcHarness) -> None:
    response = await harness.jobs.BatchEnqueueJobs(array(300, request_id="all", labels={"of": "array"}))
    jobs = [result.enqueued.job for result in response.results]
    assert [(job.array.index, job.array.size, job.request_id) for job in jobs] == [
        (index, 300, f"all#{index}") for index in range(300)
    ]
    kept = await harness.jobs.GetJob(pb.GetJobRequest(job_id=jobs[17].id))
    assert kept.job.array == pb.ArrayPosition(index=17, size=300)
    assert not kept.job.spec.envs, "the spec is the caller's"
    listed = await harness.jobs.ListJobs(pb.ListJobsRequest(labels={"of": "array"}, page_size=2))
    assert [job.array.index for job in listed.jobs] == [299, 298]
    assert not (await harness.enqueue()).HasField("array")
    assignments = await harness.store.claim_on(["local"] * 3)
    assert [dict(each.spec.envs) for each in assignments] == [
        {"FASTLANE_ARRAY_INDEX": str(index), "FASTLANE_ARRAY_SIZE": "300"} for index in range(3)
    ]
    assert {each.execution.id: each.spec for each in await harness.store.unfinished()} == {
        each.execution.id: each.spec for each in assignments
    }


async def test_an_array_with_a_request_id_is_safe_to_repeat_and_has_one_size(harness: RpcHarness) -> None:
    first = await harness.jobs.BatchEnqueueJobs(array(3, request_id="all"))
    again = await harness.jobs.BatchEnqueueJobs(array(3, request_id="all"))
    assert [result.enqueued.job.id for result in again.results] == [result.enqueued.job.id for result in first.results]
    assert all(result.enqueued.existing for result in again.results)
    larger = await harness.jobs.BatchEnqueueJobs(array(4, request_id="all"))
    assert [result.rejection.reason for result in larger.results] == [pb.ERROR_REASON_REQUEST_ID_REUSED] * 3 + [0]
    alone = await refused(harness.jobs.EnqueueJob(request(request_id="all#0")))
    assert reason(alone) == "REQUEST_ID_REUSED"


async def test_an_array_is_validated_without_being_stored(harness: RpcHarness) -> None:
    batch = array(2, request_id="all")
    batch.array.request.validate_only = True
    response = await harness.jobs.BatchEnqueueJobs(batch)
    jobs = [result.enqueued.job for result in response.results]
    assert [(job.id, job.execution.id, job.array.index, job.request_id) for job in jobs] == [
        ("", "", 0, "all#0"),
        ("", "", 1, "all#1"),
    ]
    assert not await stored(harness)
