"""Lists, tasks and the stop of one execution over real gRPC and a real store; the test itself is the runner."""

import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.api import ExecutionQuery, JobQuery, TaskQuery
from fastlane_grpc.api.pages import position_of, token_of
from fastlane_grpc.errors import PageTokenInvalid
from fastlane_grpc.model import Outcome, State
from fastlane_grpc.store.database import open_for_writing
from fastlane_grpc.store.lists import MOST_LOOKED_AT
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.calls import RpcHarness, detail, info, reason

LONG_AGO, LATER = (
    timestamp_pb2.Timestamp(seconds=1),
    timestamp_pb2.Timestamp(seconds=253_402_300_799, nanos=999_999_999),
)


class Lists(RpcHarness):
    """With the calls that look things up, to their last page."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.tasks = pb_grpc.TaskServiceStub(self.channel)

    async def all_jobs(self, request: pb.ListJobsRequest) -> list[pb.Job]:
        jobs: list[pb.Job] = []
        while True:
            page = await self.jobs.ListJobs(request)
            jobs += page.jobs
            if not page.next_page_token:
                return jobs
            request.page_token = page.next_page_token

    async def all_executions(self, request: pb.ListExecutionsRequest) -> list[pb.Execution]:
        executions: list[pb.Execution] = []
        while True:
            page = await self.executions.ListExecutions(request)
            executions += page.executions
            if not page.next_page_token:
                return executions
            request.page_token = page.next_page_token


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Lists]:
    harness = Lists(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


def fields(error: grpc.aio.AioRpcError) -> list[str]:
    assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    bad = detail(error, error_details_pb2.BadRequest)
    assert bad is not None
    return [violation.field for violation in bad.field_violations]


def ids(found: Sequence[pb.Job] | Sequence[pb.Execution]) -> list[str]:
    return [each.id for each in found]


# ----------------------------------------------------------------------------------------------------------------- jobs


async def test_jobs_are_listed_newest_first_as_get_job_answers_them_but_for_their_specs(harness: Lists) -> None:
    enqueued = [await harness.enqueue(command=f"echo {number}", envs={"API_TOKEN": "s3cret"}) for number in range(5)]
    await harness.store.claim_on(["local"])
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=enqueued[1].id))
    got = [(await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job for job in reversed(enqueued)]
    assert got[0].execution.waiting.detail == "8 of 8 slots in use"
    for job in got:
        if job.execution.HasField("waiting"):
            job.execution.waiting.ClearField("ahead")  # In lists it is not counted.
    with_spec = await harness.jobs.ListJobs(pb.ListJobsRequest(with_spec=True))
    assert (list(with_spec.jobs), with_spec.next_page_token) == (got, "")
    assert {job.spec.envs["API_TOKEN"] for job in with_spec.jobs} == {"***"}
    for job in got:
        job.ClearField("spec")
    assert list((await harness.jobs.ListJobs(pb.ListJobsRequest())).jobs) == got


async def test_jobs_are_found_by_each_filter_and_by_all_of_them(harness: Lists) -> None:
    first, second = [await harness.enqueue(labels={"team": "mail", "env": "prod"}) for _ in range(2)]
    third = await harness.enqueue(labels={"team": "mail", "env": "test"})
    other = (await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="other", spec=pb.JobSpec(image="busybox")))).job
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=second.id))

    async def found(**query: object) -> list[str]:
        return ids(await harness.all_jobs(pb.ListJobsRequest(page_size=1, **query)))  # type: ignore[arg-type]

    assert await found() == ids([other, third, second, first])
    assert await found(task_id="task") == ids([third, second, first])
    assert await found(task_id="unknown") == []
    assert await found(states=[pb.STATE_STOPPED]) == [second.id]
    assert await found(states=[pb.STATE_LOST, pb.STATE_QUEUED]) == ids([other, third, first])
    assert await found(labels={"team": "mail"}) == ids([third, second, first])
    assert await found(labels={"team": "mail", "env": "prod"}) == ids([second, first])
    assert await found(labels={"team": "mail", "env": "none"}) == []
    assert await found(since_time=third.create_time) == ids([other, third])
    assert await found(until_time=third.create_time) == ids([second, first])
    assert await found(since_time=second.create_time, until_time=third.create_time) == [second.id]
    assert await found(since_time=third.create_time, until_time=second.create_time) == []
    assert await found(since_time=LONG_AGO, until_time=LATER) == ids([other, third, second, first])
    assert await found(since_time=LATER) == await found(until_time=LONG_AGO) == []
    assert await found(id_prefix=second.id) == [second.id]
    assert await found(id_prefix=second.id[:30]) == [second.id]
    assert await found(id_prefix=first.id[:4]) == ids([other, third, second, first])
    everything = {"task_id": "task", "states": [pb.STATE_QUEUED], "labels": {"env": "prod"}, "id_prefix": first.id[:5]}
    assert await found(**everything, since_time=first.create_time, until_time=LATER) == [first.id]


async def test_a_time_finer_than_ours_is_the_next_microsecond(harness: Lists) -> None:
    job = await harness.enqueue()
    finer = timestamp_pb2.Timestamp(seconds=job.create_time.seconds, nanos=job.create_time.nanos + 1)
    assert (await harness.jobs.ListJobs(pb.ListJobsRequest(since_time=finer))).jobs == []
    assert ids((await harness.jobs.ListJobs(pb.ListJobsRequest(until_time=finer))).jobs) == [job.id]


async def test_pages_hold_what_was_asked_for_50_by_themselves_and_1000_at_most(harness: Lists) -> None:
    enqueue = pb.EnqueueJobRequest(task_id="t", spec=pb.JobSpec(image="busybox"))
    for _ in range(1001):
        await harness.jobs.EnqueueJob(enqueue)
    for size, number in ((0, 50), (7, 7), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        page = await harness.jobs.ListJobs(pb.ListJobsRequest(page_size=size))
        assert len(page.jobs) == number
        assert page.next_page_token
        executions = await harness.executions.ListExecutions(pb.ListExecutionsRequest(page_size=size))
        assert len(executions.executions) == number
    # The size may change on the way.
    rest = await harness.jobs.ListJobs(pb.ListJobsRequest(page_size=3, page_token=page.next_page_token))
    assert (len(rest.jobs), rest.next_page_token) == (1, "")


async def test_no_page_is_larger_than_3_mib_and_the_next_goes_on(harness: Lists) -> None:
    large = {"args": ["x" * 100_000] * 9}
    enqueued = [await harness.enqueue(**large) for _ in range(7)]
    request = pb.ListJobsRequest(with_spec=True)
    page = await harness.jobs.ListJobs(request)
    assert len(page.jobs) == 3
    assert page.ByteSize() <= 3 << 20
    assert ids(await harness.all_jobs(request)) == ids(enqueued[::-1])
    # The largest there is fits as well.
    largest = await harness.enqueue(args=["x" * 100_000] * 20, envs={f"KEY{number}": "" for number in range(5_000)})
    page = await harness.jobs.ListJobs(pb.ListJobsRequest(with_spec=True))
    assert ids(page.jobs) == [largest.id, enqueued[-1].id]
    assert page.ByteSize() <= 3 << 20


async def test_metadata_that_is_larger_on_the_wire_than_on_disk_makes_pages_shorter(harness: Lists) -> None:
    spec = pb.JobSpec(image="busybox")
    spec.metadata["numbers"] = [0] * 16_000
    for _ in range(30):
        await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="t", spec=spec))
    page = await harness.jobs.ListJobs(pb.ListJobsRequest(with_spec=True))
    assert page.ByteSize() <= 3 << 20
    assert 0 < len(page.jobs) < 30
    assert len(await harness.all_jobs(pb.ListJobsRequest(with_spec=True))) == 30


async def test_a_page_that_found_nothing_so_far_is_empty_and_says_where_to_go_on(harness: Lists) -> None:
    oldest = await harness.enqueue(labels={"even": "yes", "odd": "yes"})
    now = time.time_ns() // 1000
    numbers = range(2, 2 * MOST_LOOKED_AT + 100)
    db = open_for_writing(harness.settings.data_dir / "fastlane.db")
    db.execute("BEGIN")
    db.executemany(
        """
        INSERT INTO jobs (seq, job_id, task_id, state, spec, create_time, request_id, request_digest, caller_address)
        VALUES (?, ?, 'task', 9, CAST('{}' AS BLOB), ?, '', x'00', '')
        """,
        [(number, f"job {number}", now + number) for number in numbers],
    )
    labels = [("odd" if number % 2 else "even", now + number, number) for number in numbers]
    db.executemany("INSERT INTO job_labels VALUES (?, 'yes', ?, ?)", labels)
    db.execute("COMMIT")
    db.close()
    request = pb.ListJobsRequest(labels={"even": "yes", "odd": "yes"})
    first = await harness.jobs.ListJobs(request)
    assert (list(first.jobs), bool(first.next_page_token)) == ([], True)
    assert ids(await harness.all_jobs(request)) == [oldest.id]


# ----------------------------------------------------------------------------------------------------------- executions


async def test_executions_are_listed_newest_first_as_get_execution_answers_them(harness: Lists) -> None:
    jobs = [await harness.enqueue() for _ in range(3)]
    (assignment,) = await harness.store.claim_on(["local"])
    other = (await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="other", spec=pb.JobSpec(image="busybox")))).job
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=jobs[1].id))

    async def found(**query: object) -> list[str]:
        return ids(await harness.all_executions(pb.ListExecutionsRequest(page_size=1, **query)))  # type: ignore[arg-type]

    every = [other.execution.id, *(job.execution.id for job in reversed(jobs))]
    assert await found() == every
    assert await found(task_id="task") == every[1:]
    assert await found(job_id=jobs[2].id) == [jobs[2].execution.id]
    assert await found(job_id="unknown") == await found(host="unknown") == await found(task_id="unknown") == []
    assert await found(host="local") == [assignment.execution.id] == [jobs[0].execution.id]
    assert await found(states=[pb.STATE_PREPARING, pb.STATE_STOPPED]) == [jobs[1].execution.id, jobs[0].execution.id]
    assert await found(host="local", task_id="task", states=[pb.STATE_PREPARING]) == [jobs[0].execution.id]
    assert await found(host="local", task_id="other") == []
    assert await found(id_prefix=every[1][:30]) == [every[1]]
    assert await found(id_prefix=every[1][:3], states=[pb.STATE_QUEUED], task_id="task") == [every[1]]
    listed = (await harness.executions.ListExecutions(pb.ListExecutionsRequest())).executions
    assert listed[0].waiting.reason == pb.WAIT_REASON_NO_FREE_SLOT
    for execution in listed:
        assert (
            execution
            == (await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=execution.id))).execution
        )


async def test_one_execution_is_stopped_as_its_job_would_be(harness: Lists) -> None:
    queued, running = await harness.enqueue(stop_grace=duration_pb2.Duration(seconds=7)), await harness.enqueue()
    execution, writer = await harness.begin()
    assert execution.id == queued.execution.id
    stopping = (
        await harness.executions.StopExecution(pb.StopExecutionRequest(execution_id=execution.id, note="enough"))
    ).execution
    assert stopping.state == pb.STATE_STOPPING
    kept = (await harness.store.execution(execution.id)).stop
    assert kept is not None
    assert (kept.grace, kept.note) == (timedelta(seconds=7), "enough")
    now = pb.StopExecutionRequest(execution_id=execution.id, grace=duration_pb2.Duration())
    assert (await harness.executions.StopExecution(now)).execution.state == pb.STATE_STOPPING
    kept = (await harness.store.execution(execution.id)).stop
    assert kept is not None
    assert kept.grace < timedelta(seconds=7)
    writer.close()
    stopped = (
        await harness.executions.StopExecution(pb.StopExecutionRequest(execution_id=running.execution.id, note="why"))
    ).execution
    assert (stopped.state, stopped.outcome.detail) == (pb.STATE_STOPPED, "stopped while it was queued: why")
    again = (
        await harness.executions.StopExecution(pb.StopExecutionRequest(execution_id=running.execution.id))
    ).execution
    assert again == stopped
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=running.id))).job.state == pb.STATE_STOPPED


async def test_a_stop_of_an_execution_names_what_is_wrong_with_it(harness: Lists) -> None:
    job = await harness.enqueue()
    bad = pb.StopExecutionRequest(
        execution_id=job.execution.id, note="x" * 257, grace=duration_pb2.Duration(seconds=-1)
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.StopExecution(bad)
    assert fields(refused.value) == ["note", "grace"]
    bad.grace.CopyFrom(duration_pb2.Duration(seconds=1, nanos=-1))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.StopExecution(bad)
    assert fields(refused.value) == ["grace", "note"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.StopExecution(pb.StopExecutionRequest())
    assert fields(refused.value) == ["execution_id"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.StopExecution(pb.StopExecutionRequest(execution_id=job.id))
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND")
    assert info(refused.value).metadata == {"execution_id": job.id}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.StopExecution(pb.StopExecutionRequest.FromString(b"\x98\x06\x01"))
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_FIELD")
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))).job.state == pb.STATE_QUEUED


# ---------------------------------------------------------------------------------------------------------------- tasks


async def test_a_task_has_the_number_of_its_jobs(harness: Lists) -> None:
    first = await harness.enqueue()
    second = await harness.enqueue()
    (assignment,) = await harness.store.claim_on(["local"])
    await harness.store.finish(assignment.execution.id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=())
    task = (await harness.tasks.GetTask(pb.GetTaskRequest(task_id="task"))).task
    expected = pb.TaskSummary(
        id="task", jobs=2, open_jobs=1, create_time=first.create_time, last_enqueue_time=second.create_time
    )
    assert task == expected
    assert list((await harness.tasks.ListTasks(pb.ListTasksRequest())).tasks) == [expected]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.tasks.GetTask(pb.GetTaskRequest(task_id="Task"))
    assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")
    assert info(refused.value).metadata == {"task_id": "Task"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.tasks.GetTask(pb.GetTaskRequest())
    assert fields(refused.value) == ["task_id"]


async def test_tasks_are_paged_by_name(harness: Lists) -> None:
    names = [f"task-{number:02}" for number in range(55)]
    for name in reversed(names):
        await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id=name, spec=pb.JobSpec(image="busybox")))
    first = await harness.tasks.ListTasks(pb.ListTasksRequest())
    second = await harness.tasks.ListTasks(pb.ListTasksRequest(page_token=first.next_page_token, page_size=1000))
    assert [task.id for task in [*first.tasks, *second.tasks]] == names
    assert (len(first.tasks), second.next_page_token) == (50, "")


# --------------------------------------------------------------------------------------------------------------- errors


async def test_a_bad_query_names_every_field(harness: Lists) -> None:
    bad = pb.ListJobsRequest(
        states=[pb.STATE_QUEUED, 0, 12, 77],  # type: ignore[list-item]
        labels={f"name-{number}": "" for number in range(9)},
        since_time=timestamp_pb2.Timestamp(seconds=-62_135_596_801),
        until_time=timestamp_pb2.Timestamp(nanos=-1),
        id_prefix="01A",
        task_id="no task",
        page_size=-1,
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.jobs.ListJobs(bad)
    assert fields(refused.value) == [
        "states[1]",
        "states[2]",
        "states[3]",
        "since_time",
        "until_time",
        "page_size",
        "id_prefix",
        "task_id",
        "labels",
    ]
    bad_executions = pb.ListExecutionsRequest(
        states=[12],  # type: ignore[list-item]
        id_prefix="0" * 37,
        task_id="-",
        page_size=-5,
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.executions.ListExecutions(bad_executions)
    assert fields(refused.value) == ["states[0]", "page_size", "id_prefix", "task_id"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await harness.tasks.ListTasks(pb.ListTasksRequest(page_size=-1))
    assert fields(refused.value) == ["page_size"]
    assert (
        await harness.jobs.ListJobs(pb.ListJobsRequest(labels={f"name-{number}": "" for number in range(8)}))
    ).jobs == []


@pytest.mark.parametrize("prefix", ["%", "g", "0_", "'", "\0", "é", " "])
async def test_an_id_prefix_is_of_the_letters_of_ids(harness: Lists, prefix: str) -> None:
    for call in (
        harness.jobs.ListJobs(pb.ListJobsRequest(id_prefix=prefix)),
        harness.executions.ListExecutions(pb.ListExecutionsRequest(id_prefix=prefix)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert fields(refused.value) == ["id_prefix"]


async def test_a_page_token_is_good_for_its_own_query_alone(harness: Lists) -> None:
    for task_id in ("a", "b"):
        for _ in range(2):
            await harness.jobs.EnqueueJob(pb.EnqueueJobRequest(task_id=task_id, spec=pb.JobSpec(image="busybox")))
    query = pb.ListJobsRequest(states=[pb.STATE_QUEUED, pb.STATE_LOST], page_size=1)
    token = (await harness.jobs.ListJobs(query)).next_page_token
    of_executions = (await harness.executions.ListExecutions(pb.ListExecutionsRequest(page_size=1))).next_page_token
    of_tasks = (await harness.tasks.ListTasks(pb.ListTasksRequest(page_size=1))).next_page_token
    assert all(
        each.isascii() and each.replace("-", "").replace("_", "").isalnum() for each in (token, of_executions, of_tasks)
    )
    calls = [
        harness.jobs.ListJobs(pb.ListJobsRequest(page_token=token)),
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[pb.STATE_QUEUED], page_token=token)),
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[2, 11], task_id="a", page_token=token)),  # type: ignore[list-item]
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[2, 11], with_spec=True, page_token=token)),  # type: ignore[list-item]
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[2, 11], labels={"a": "b"}, page_token=token)),  # type: ignore[list-item]
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[2, 11], since_time=LONG_AGO, page_token=token)),  # type: ignore[list-item]
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[2, 11], until_time=LATER, page_token=token)),  # type: ignore[list-item]
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[2, 11], id_prefix="0", page_token=token)),  # type: ignore[list-item]
        harness.jobs.ListJobs(pb.ListJobsRequest(states=[2, 11], page_token=token + "A")),  # type: ignore[list-item]
        harness.jobs.ListJobs(pb.ListJobsRequest(page_token="\N{PARTY POPPER}")),
        harness.jobs.ListJobs(pb.ListJobsRequest(page_token=of_executions)),
        harness.executions.ListExecutions(pb.ListExecutionsRequest(page_token=of_tasks)),
        harness.executions.ListExecutions(pb.ListExecutionsRequest(page_token=of_executions, host="here")),
        harness.executions.ListExecutions(pb.ListExecutionsRequest(page_token=of_executions, job_id="x")),
        harness.tasks.ListTasks(pb.ListTasksRequest(page_token=of_executions)),
        harness.tasks.ListTasks(pb.ListTasksRequest(page_token="nonsense")),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call  # type: ignore[misc]
        assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    # The order in which states are named, and how often, makes no other query.
    same = pb.ListJobsRequest(states=[11, 2, 2], page_token=token)  # type: ignore[list-item]
    assert len((await harness.jobs.ListJobs(same)).jobs) == 3


async def test_a_server_that_stops_answers_no_list(harness: Lists) -> None:
    harness.service.stop_serving()
    for call in (
        harness.jobs.ListJobs(pb.ListJobsRequest()),
        harness.executions.ListExecutions(pb.ListExecutionsRequest()),
        harness.executions.StopExecution(pb.StopExecutionRequest(execution_id="x")),
        harness.tasks.ListTasks(pb.ListTasksRequest()),
        harness.tasks.GetTask(pb.GetTaskRequest(task_id="t")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (refused.value.code(), reason(refused.value)) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        assert detail(refused.value, error_details_pb2.RetryInfo) is not None


# --------------------------------------------------------------------------------------------------------------- tokens


QUERIES = st.sampled_from([JobQuery(), JobQuery(task_id="t"), ExecutionQuery(), ExecutionQuery(host="h"), TaskQuery()])
INTEGERS = st.integers(-(1 << 63) + 1, (1 << 63) - 1)


@given(INTEGERS, INTEGERS, st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True))
def test_a_token_gives_back_its_place_and_only_whole(time: int, seq: int, task_id: str) -> None:
    for place, query in (((time, seq), JobQuery(task_id="t")), ((seq,), ExecutionQuery()), ((task_id,), TaskQuery())):
        token = token_of(place, query)
        assert position_of(token, query) == place
        for added in ("!", " ", "\n", "=", "\N{PARTY POPPER}"):
            with pytest.raises(PageTokenInvalid):
                position_of(token[:5] + added + token[5:], query)  # type: ignore[arg-type]
        for cut in range(1, len(token)):
            with pytest.raises(PageTokenInvalid):
                position_of(token[:cut], query)
        for changed in range(len(token)):
            other = "B" if token[changed] == "A" else "A"
            with pytest.raises(PageTokenInvalid):
                position_of(token[:changed] + other + token[changed + 1 :], query)


@given(st.text(max_size=60), QUERIES)
def test_any_other_text_is_no_token_and_no_defect(text: str, query: JobQuery | ExecutionQuery | TaskQuery) -> None:
    if text:
        with pytest.raises(PageTokenInvalid):
            position_of(text, query)


@pytest.mark.parametrize(
    "place",
    [
        (),
        (1,),
        (1, 2, 3),
        ("a", "b"),
        (1, None),
        (1.5, 2),
        (True, 1),
        (1 << 63, 1),
        ([], 1),
        ("é",),
        ("\ud800",),
        (1, "x" * 500),
    ],
)
def test_a_token_somebody_made_holds_a_place_or_is_none(place: tuple[object, ...]) -> None:
    for query in (JobQuery(), TaskQuery()):
        with pytest.raises(PageTokenInvalid):
            position_of(token_of(place, query), query)  # type: ignore[arg-type]
