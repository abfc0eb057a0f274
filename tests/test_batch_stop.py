"""Stops of the jobs that match a filter: which they are, in which order, in how many steps, at which cost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from fastlane_grpc.model import State, new_id
from fastlane_grpc.store.database import open_for_writing
from fastlane_grpc.store.job_filter import FINAL_STATES, OPEN_STATES, JobFilter, Order, matching
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness, detail, reason
from tests.store_checks import check_jobs, check_lines


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


async def enqueue(harness: RpcHarness, count: int = 1, task_id: str = "task", **spec: Any) -> list[str]:
    """Jobs in one batch; their ids."""
    request = pb.EnqueueJobRequest(task_id=task_id, spec=pb.JobSpec(image="busybox", **spec))
    response = await harness.jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=[request] * count))
    return [result.enqueued.job.id for result in response.results]


async def stop(harness: RpcHarness, note: str = "", validate_only: bool = False, **filter_: Any) -> tuple[int, bool]:
    response = await harness.jobs.BatchStopJobs(
        pb.BatchStopJobsRequest(filter=pb.JobFilter(**filter_), note=note, validate_only=validate_only)
    )
    return response.stopped, response.more


async def stopped(harness: RpcHarness) -> set[str]:
    request = pb.ListJobsRequest(states=[pb.STATE_STOPPED, pb.STATE_STOPPING], page_size=1000)
    return {job.id for job in (await harness.jobs.ListJobs(request)).jobs}


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def test_exactly_the_jobs_that_match_all_of_a_filter_are_stopped(harness: RpcHarness) -> None:
    red = await enqueue(harness, 3, labels={"color": "red", "size": "1"})
    [large] = await enqueue(harness, labels={"color": "red", "size": "2"})
    [later] = await enqueue(harness, labels={"color": "red"}, start_in={"seconds": 3600})
    [other] = await enqueue(harness, task_id="other", labels={"color": "red"})
    between = Timestamp()
    between.FromDatetime(datetime.now(UTC))
    [new] = await enqueue(harness, labels={"color": "red"})
    plain = await enqueue(harness, 2)
    for expected, filter_ in (
        ({large}, {"labels": {"color": "red", "size": "2"}}),
        (set(red[:2]), {"job_ids": [*red[:2], "unknown", red[0]], "labels": {"color": "red"}}),
        ({later}, {"task_id": "task", "states": [pb.STATE_SCHEDULED]}),
        ({new, *plain}, {"since_time": between}),
        ({other, red[2]}, {"until_time": between, "labels": {"color": "red"}}),
        (set(), {"task_id": "unknown"}),
        (set(), {"labels": {"color": "blue"}}),
    ):
        before = await stopped(harness)
        assert await stop(harness, validate_only=True, **filter_) == (len(expected), False)
        assert await stopped(harness) == before
        assert await stop(harness, note="by a test", **filter_) == (len(expected), False)
        assert await stopped(harness) - before == expected
    job = (await harness.jobs.GetJob(pb.GetJobRequest(job_id=large))).job
    assert job.outcome.detail == "stopped while it was queued: by a test"


async def test_a_call_stops_the_oldest_thousand_and_says_that_more_match(harness: RpcHarness) -> None:
    oldest = await enqueue(harness, 1000)
    [last] = await enqueue(harness, 1)
    assert await stop(harness, validate_only=True, task_id="task") == (1000, True)
    assert await stop(harness, task_id="task") == (1000, True)
    assert await stopped(harness) == set(oldest)
    assert await stop(harness, task_id="task") == (1, False)
    assert await stop(harness, task_id="task") == (0, False)
    assert (await harness.jobs.GetJob(pb.GetJobRequest(job_id=last))).job.state == pb.STATE_STOPPED


async def test_other_writes_come_in_between_the_steps_of_a_stop(harness: RpcHarness) -> None:
    await enqueue(harness, 1000)
    whole = asyncio.ensure_future(stop(harness, task_id="task"))
    enqueued = 0
    while not whole.done():
        await harness.enqueue()
        enqueued += 1
    assert (await whole)[0] == 1000
    assert enqueued > 2


async def test_a_job_that_was_told_to_stop_is_not_counted_and_a_shorter_grace_counts(harness: RpcHarness) -> None:
    await enqueue(harness)
    execution, _ = await harness.begin()
    assert await stop(harness, task_id="task") == (1, False)
    assert await stop(harness, task_id="task") == (0, False)
    assert await stop(harness, states=[pb.STATE_STOPPING]) == (0, False)
    assert (await harness.store.execution(execution.id)).stop.grace == timedelta(seconds=10)  # type: ignore[union-attr]
    sooner = pb.BatchStopJobsRequest(filter=pb.JobFilter(task_id="task"), grace={"seconds": 1})
    assert (await harness.jobs.BatchStopJobs(sooner)).stopped == 0
    shortened = (await harness.store.execution(execution.id)).stop
    assert shortened is not None
    assert shortened.grace < timedelta(seconds=10)


async def test_a_job_whose_state_has_changed_since_it_was_found_is_left_alone(harness: RpcHarness) -> None:
    first, second = await enqueue(harness, 2)
    query = JobFilter(states=[State.QUEUED])
    found = await harness.store.matching_jobs(query, OPEN_STATES, limit=10)
    assert list(found.job_ids) == [first, second]
    await harness.begin()
    assert await harness.store.stop_jobs(found.job_ids, query, grace=None, note="") == 1
    assert await stopped(harness) == {second}


async def test_a_stop_of_a_schedule_ends_it(harness: RpcHarness) -> None:
    [job_id] = await enqueue(harness, cron=pb.Cron(expression="0 5 * * *"))
    assert await stop(harness, states=[pb.STATE_SCHEDULED]) == (1, False)
    job = (await harness.jobs.GetJob(pb.GetJobRequest(job_id=job_id))).job
    assert (job.state, list(job.schedule.next_times)) == (pb.STATE_STOPPED, [])
    db = open_for_writing(harness.database)
    check_jobs(lambda sql: db.execute(sql).fetchall())
    check_lines(lambda sql: db.execute(sql).fetchall())
    db.close()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.BatchStopJobsRequest(), "filter"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter()), "filter"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(states=[pb.STATE_QUEUED, pb.STATE_FAILED])), "filter.states"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(task_id="no task")), "filter.task_id"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(states=[77])), "filter.states[0]"),  # type: ignore[list-item]
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(labels={str(n): "" for n in range(9)})), "filter.labels"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(job_ids=["x"] * 1001)), "filter.job_ids"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(since_time={"seconds": 1 << 60})), "filter.since_time"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(task_id="task"), note="a\nb"), "note"),
        (pb.BatchStopJobsRequest(filter=pb.JobFilter(task_id="task"), grace={"seconds": -1}), "grace"),
    ],
)
async def test_a_filter_that_cannot_be_is_rejected_by_its_field_and_stops_nothing(
    harness: RpcHarness, request_: pb.BatchStopJobsRequest, field: str
) -> None:
    await enqueue(harness)
    error = await refused(harness.jobs.BatchStopJobs(request_))
    bad_request = detail(error, error_details_pb2.BadRequest)
    assert bad_request is not None
    assert [violation.field for violation in bad_request.field_violations] == [field]
    assert not await stopped(harness)


async def test_an_unknown_field_of_a_filter_stops_nothing(harness: RpcHarness) -> None:
    await enqueue(harness)
    newer = pb.JobFilter.FromString(pb.JobFilter(task_id="task").SerializeToString() + b"\x98\x06\x01")
    error = await refused(harness.jobs.BatchStopJobs(pb.BatchStopJobsRequest(filter=newer)))
    assert reason(error) == "UNKNOWN_FIELD"
    assert not await stopped(harness)


# ---- the filter itself, over many rows

JOBS = 20_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """20 000 jobs of a task, all with one label: the first half has ended, in the reverse order of the enqueues. The
    last three have another label."""
    db = open_for_writing(tmp_path_factory.mktemp("many") / "fastlane.db")
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("BEGIN")
    db.executemany(
        """
        INSERT INTO jobs
            (job_id, execution_id, task_id, state, spec, create_time, end_time, request_id, request_digest,
            caller_address)
        VALUES (?, '', 'task', ?, x'7b7d', ?, ?, '', x'', '')
        """,
        [
            (new_id(), 7 if number < JOBS // 2 else 2, number, JOBS - number if number < JOBS // 2 else None)
            for number in range(JOBS)
        ],
    )
    db.execute("INSERT INTO job_labels SELECT 'all', 'x', create_time, seq FROM jobs")
    db.execute(f"INSERT INTO job_labels SELECT 'few', 'x', create_time, seq FROM jobs WHERE seq > {JOBS - 3}")
    db.execute("COMMIT")
    yield db
    db.close()


def pages(
    db: Any, query: JobFilter, states: Any, *, order: Order = Order.ENQUEUED, limit: int
) -> tuple[list[str], int]:
    """All matching jobs, page by page, and the most steps of SQLite's machine that a page took, in thousands."""
    found: list[str] = []
    after, most = None, 0
    thousands = 0

    def counted() -> int:
        nonlocal thousands
        thousands += 1
        return 0

    while True:
        thousands = 0
        db.set_progress_handler(counted, 1000)
        page = matching(db, query, states, order=order, after=after, limit=limit, most=1000)
        db.set_progress_handler(None, 0)
        found += page.job_ids
        most = max(most, thousands)
        if page.rest is None:
            return found, most
        after = page.rest


@pytest.mark.parametrize(
    ("query", "states", "order", "expected"),
    [
        (JobFilter(labels={"all": "x"}), OPEN_STATES, Order.ENQUEUED, range(JOBS // 2, JOBS)),
        (JobFilter(labels={"few": "x"}), OPEN_STATES, Order.ENQUEUED, range(JOBS - 3, JOBS)),
        (JobFilter(labels={"none": "x"}), OPEN_STATES, Order.ENQUEUED, range(0)),
        (JobFilter(task_id="task"), OPEN_STATES, Order.ENQUEUED, range(JOBS // 2, JOBS)),
        (JobFilter(task_id="other", labels={"all": "x"}), OPEN_STATES, Order.ENQUEUED, range(0)),
        (
            JobFilter(since_time=datetime.fromtimestamp((JOBS - 9) / 1e6, UTC)),
            OPEN_STATES,
            Order.ENQUEUED,
            range(JOBS - 9, JOBS),
        ),
        (JobFilter(labels={"all": "x"}), FINAL_STATES, Order.ENDED, range(JOBS // 2 - 1, -1, -1)),
        (JobFilter(task_id="task", labels={"few": "x"}), FINAL_STATES, Order.ENDED, range(0)),
        (
            JobFilter(ended_before=datetime.fromtimestamp((JOBS // 2 + 4) / 1e6, UTC)),
            FINAL_STATES,
            Order.ENDED,
            range(JOBS // 2 - 1, JOBS // 2 - 4, -1),
        ),
    ],
)
def test_the_work_for_a_page_of_matching_jobs_is_bounded(
    many: Any, query: JobFilter, states: Any, order: Order, expected: range
) -> None:
    ids = [row[0] for row in many.execute("SELECT job_id FROM jobs ORDER BY seq").fetchall()]
    found, thousands = pages(many, query, states, order=order, limit=700)
    assert found == [ids[number] for number in expected]
    # A page looks at 1 000 rows of 20 000, and counts as many of each index that it could choose.
    assert thousands < 120
