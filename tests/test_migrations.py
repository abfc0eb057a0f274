"""A database that an earlier version wrote is brought along, with all that is in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from fastlane_grpc.backup import back_up
from fastlane_grpc.docker.handle import DockerHandle, unpacked
from fastlane_grpc.model import Job, JobSpec, Outcome, Reason, State
from fastlane_grpc.store import JobQuery, PruneQuery, Store
from fastlane_grpc.store.database import open_for_reading, open_for_writing, sqlite3
from fastlane_grpc.store.migrations import migrations
from tests.serving import Server
from tests.store_checks import check_jobs, check_lines

# Written by the version in which a job had the state of its newest execution: jobs in every state of that time.
DUMP = Path(__file__).parent / "databases" / "before_jobs_had_states.sql"
# All steps, in their order. A version is known by how many of them it had; a step that was on main is never edited.
STEPS = [step.name for step in migrations.pending(Database(memory=True))]
FIRST_IN_DUMP = 6
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


@pytest.mark.parametrize("count", range(FIRST_IN_DUMP, len(STEPS) + 1))
def test_a_database_of_any_version_is_brought_along_with_all_jobs(tmp_path: Path, count: int) -> None:
    path = database(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        migrations.apply(Database(db), stop_before=STEPS[count:] or None)
        assert [step.name for step in migrations.applied(Database(db))] == STEPS[:count]
    open_for_writing(path).close()
    with closing(open_for_reading(path)) as db:
        assert [step.name for step in migrations.applied(Database(db))] == STEPS
        assert db.execute("SELECT count(*) FROM jobs").fetchall() == [(13,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        check_jobs(lambda sql: db.execute(sql).fetchall())
        check_lines(lambda sql: db.execute(sql).fetchall())


def test_an_older_server_refuses_a_newer_database_and_changes_nothing(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with closing(open_for_writing(database(data_dir))) as db:
        db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('fastlane', 'queues', '')")
        db.execute("PRAGMA user_version = 1002003")
    before = {each.name: each.read_bytes() for each in data_dir.iterdir()}
    with pytest.raises(RuntimeError) as refused:
        Server(data_dir, engine="unix:///nobody")
    said = str(refused.value)
    assert f"fastlane 1.2.3 and has queues, which fastlane {version('fastlane-grpc')} does not know" in said
    assert "run fastlane 1.2.3 or a later one" in said
    assert "restore a backup that was made before the upgrade" in said
    after = {each.name: each.read_bytes() for each in data_dir.iterdir()}
    assert {name: after[name] for name in before} == before
    # What a server makes before it looks at the database; the newer one uses it as it is.
    assert after.keys() - before.keys() <= {"lock", "debug-stacks"}


def test_the_version_that_serves_a_database_is_in_it(tmp_path: Path) -> None:
    path = database(tmp_path)
    for stored, kept in ((0, 1000), (1000, 1000), (2_000_000, 2_000_000)):
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {stored}")
        with closing(open_for_writing(path)) as db:
            assert db.execute("PRAGMA user_version").fetchall() == [(kept,)]


def test_a_backup_keeps_the_format_of_the_server_that_wrote_the_database(tmp_path: Path) -> None:
    # So an older fastlane can restore it: the way back after an upgrade.
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    path = database(data_dir)
    old = schema(path)
    back_up(data_dir, str(tmp_path / "before"), output=BytesIO(), version="0.0.9", now=datetime.now(UTC))
    open_for_writing(path).close()
    assert schema(path) != old
    assert schema(tmp_path / "before" / "fastlane.db") == old


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
