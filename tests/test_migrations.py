"""A database that an earlier version wrote is brought along, with all that is in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.docker.handle import DockerHandle, unpacked
from fastlane_grpc.model import Job, JobSpec, Outcome, Reason, State
from fastlane_grpc.store import JobQuery, PruneQuery, Store
from fastlane_grpc.store.database import open_for_reading, open_for_writing, sqlite3
from tests.store_checks import check_jobs, check_lines

# Written by the version in which a job had the state of its newest execution: jobs in every state of that time.
DUMP = Path(__file__).parent / "databases" / "before_jobs_had_states.sql"
GRACE = timedelta(seconds=5)


def database(directory: Path) -> Path:
    path = directory / "fastlane.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(DUMP.read_text())
    return path


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    path = database(tmp_path)
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    yield store
    with closing(open_for_reading(path)) as db:
        check_jobs(lambda sql: db.execute(sql).fetchall())
        check_lines(lambda sql: db.execute(sql).fetchall())
    store.close()


async def job_of(store: Store, request_id: str) -> Job:
    page = await store.jobs(JobQuery(with_spec=True), size=100)
    [job] = [job for job in page.items if job.request_id == request_id]
    return job


async def test_every_job_has_its_own_state_outcome_and_end(store: Store) -> None:
    jobs = (await store.jobs(JobQuery(with_spec=True), size=100)).items
    assert len(jobs) == 13
    for job in jobs:
        assert (job.state, job.outcome, job.executions) == (job.execution.state, job.execution.outcome, 1)
        assert job.end_time == job.execution.times.end_time
        assert (job.end_time is not None) == (job.outcome is not None) == job.state.final
        assert (job.stop_time is not None) == (job.execution.stop is not None)
    assert {job.state for job in jobs} == set(State) - {State.SCHEDULED, State.EXPIRED}
    failed = await job_of(store, "FAILED")
    assert failed.outcome == Outcome(Reason.EXIT_CODE, "exited with 3", 3)
    assert failed.spec == JobSpec("busybox", command="true", envs={"A": "1"}, labels={"state": "failed"})


async def test_what_was_queued_is_claimed_in_its_old_order(store: Store) -> None:
    claimed = [assignment.execution.job_id for assignment in await store.claim_on(["local"] * 9)]
    assert claimed == [(await job_of(store, f"QUEUED-{which}")).id for which in (1, 0, "other", 2)]


async def test_what_was_going_goes_on_to_its_end(store: Store) -> None:
    unfinished = [assignment.execution for assignment in await store.unfinished()]
    assert [execution.state for execution in unfinished] == [State.RUNNING, State.STOPPING, State.PREPARING]
    for execution in unfinished:
        await store.finish(execution.id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=())
        job = await store.job(execution.job_id)
        assert (job.state, job.outcome) == (State.SUCCEEDED, Outcome(exit_code=0))
    waiting = await job_of(store, "QUEUED-0")
    assert (await store.stop(waiting.id, grace=GRACE, note="")).state is State.STOPPED


async def test_what_was_going_is_remembered_by_its_backend(store: Store) -> None:
    running, stopping, preparing = [assignment.execution for assignment in await store.unfinished()]
    for execution in (running, stopping):
        assert execution.container_id == "c0ffee"
        assert unpacked(execution.handle) == DockerHandle("c0ffee", "recorder", "life")
    assert (preparing.container_id, preparing.handle) == ("", "")


async def test_a_repeated_request_is_answered_by_the_job_it_made_then(store: Store) -> None:
    before = await job_of(store, "QUEUED-0")
    spec = JobSpec("busybox", command="true")
    again, existing = await store.enqueue(task_id="waiting", spec=spec, request_id="QUEUED-0", caller_address="")
    assert (again, existing) == (before, True)
    _, existing = await store.enqueue(task_id="waiting", spec=spec, request_id="new", caller_address="")
    assert not existing


async def test_jobs_that_ended_are_pruned_oldest_first(store: Store) -> None:
    first, second = [await job_of(store, request_id) for request_id in ("SUCCEEDED", "FAILED")]
    assert first.end_time
    assert second.end_time
    assert (await store.retention_totals()).oldest_job_time == first.end_time
    assert [found.job_id for found in await store.oldest(PruneQuery(second.end_time), limit=9)] == [first.id, second.id]
    assert [found.job_id for found in await store.oldest(PruneQuery(second.end_time, task_id="stopped"), limit=9)] == []
    assert await store.delete_jobs([first.id, second.id]) == 2


def schema(path: Path) -> list[Any]:
    with closing(open_for_reading(path)) as db:
        return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def test_a_database_that_was_brought_along_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    old = database(tmp_path)
    new = tmp_path / "new.db"
    for path in (old, new):
        open_for_writing(path).close()
    assert schema(old) == schema(new)


def test_a_migration_that_fails_changes_nothing_and_is_tried_again(tmp_path: Path) -> None:
    path = database(tmp_path)
    before = schema(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP INDEX executions_ended_of_task")
    with pytest.raises(Exception, match="executions_ended_of_task"):
        open_for_writing(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE INDEX executions_ended_of_task ON executions(task_id, end_time) WHERE state >= 6")
    assert schema(path) == before
    open_for_writing(path).close()
    with closing(open_for_reading(path)) as db:
        check_jobs(lambda sql: db.execute(sql).fetchall())
