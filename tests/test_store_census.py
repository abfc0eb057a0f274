"""The census of the store says what a recount says, and costs the same however much is stored."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from fastlane_grpc.model import Conflict as Do
from fastlane_grpc.model import Cron, Execution, Hold, Retry, State, TaskLimitsChange, Unique
from fastlane_grpc.pools import Pool, Pools
from fastlane_grpc.store import Store
from fastlane_grpc.store.census import Census, take_census
from fastlane_grpc.store.database import open_for_reading, open_for_writing
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from tests.moved_store import SPEC, RunsStore, minutes

PAUSED = TaskLimitsChange(paused=True)
NO_POOLS = Pools()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RunsStore]:
    store = RunsStore(tmp_path, asyncio.get_running_loop())
    yield store
    store.check()
    store.close()


async def claim(store: RunsStore, count: int = 1) -> Sequence[Execution]:
    return [assignment.execution for assignment in await store.store.claim_on(["here"] * count)]


async def test_executions_are_counted_by_state_and_by_what_they_wait_for(store: RunsStore) -> None:
    await store.job()
    [failed] = await claim(store)
    for _ in range(3):
        await store.job("running")
    running, *_ = await claim(store, 3)
    await store.store.stop_execution(running.id, grace=minutes(1), note="")
    await store.job("replaced", unique=Unique("key", Do.REPLACE))
    await claim(store)
    await store.job("replaced", unique=Unique("key", Do.REPLACE))
    paused_schedule = await store.job("cron", cron=Cron("0 0 * * *"))
    await store.store.pause_schedule(paused_schedule.id)
    await store.job("cron", cron=Cron("0 0 * * *"))
    for task_id, count in {"free": 4, "paused": 5, "other": 2}.items():
        for _ in range(count):
            await store.job(task_id, priority=count % 2)
    await store.store.update_task("paused", PAUSED)
    census = await store.store.census()
    assert census.states == {
        State.SCHEDULED: 3,
        State.QUEUED: 11,
        State.PREPARING: 3,
        State.RUNNING: 0,
        State.STOPPING: 2,
    }
    assert (census.held, census.backing_off) == ({Hold.SCHEDULE_PAUSED: 1, Hold.UNIQUE_KEY: 1}, 0)
    assert (census.blocked, census.ready) == ({"paused": 5}, {"": 6})
    await store.end(failed, State.FAILED)


async def test_a_retry_that_waits_is_counted_as_backing_off(store: RunsStore) -> None:
    await store.job(retry=Retry(max_retries=1, initial_backoff=minutes(1)))
    [first] = await claim(store)
    await store.store.running(first.id, start_time=store.now)
    await store.end(first, State.FAILED)
    census = await store.store.census()
    assert (census.backing_off, census.states[State.SCHEDULED], census.states[State.QUEUED]) == (1, 1, 0)
    await store.pass_time(store.now + minutes(3))
    assert (await store.store.census()).backing_off == 0


async def test_a_skipped_tick_is_counted_for_good(store: RunsStore) -> None:
    job = await store.job(cron=Cron("*/10 * * * *"))
    await store.pass_time(store.now + minutes(31))
    assert (await store.store.census()).skipped_ticks == 2, "the first tick has a run, which goes on"
    await store.store.replace_job(job.id, task_id="task", spec=SPEC, etag="", caller_address="")
    assert (await store.store.census()).skipped_ticks == 2


async def test_queued_executions_are_counted_by_pool_before_and_after_their_lines_are_placed(tmp_path: Path) -> None:
    loop, path = asyncio.get_running_loop(), tmp_path / "fastlane.db"
    pools = Pools([Pool("gpu", "train-*", ["big"])], ["big", "small"])
    writer = Writer(open_for_writing(path), path, loop=loop, on_commit=lambda executions: None)
    store = Store(writer, Readers(path, loop=loop), instance="", pools=pools)
    for task_id in ("train-1", "train-2", "train-2", "mail", "train-paused"):
        await store.enqueue(task_id=task_id, spec=SPEC, request_id="", caller_address="")
    await store.update_task("train-paused", PAUSED)
    assert (await store.census()).ready == {"gpu": 3, "": 1}
    await store.claim_on(["small"])
    assert (await store.census()).ready == {"gpu": 3}
    store.close()


async def test_a_census_costs_the_same_with_ten_executions_as_with_ten_thousand(store: RunsStore) -> None:
    async def enqueue(count: int) -> None:
        batch = store.store.batch("")
        for number in range(count):
            batch.add(f"task-{number % 5}", SPEC, "")
        await store.store.enqueue_batch(batch)

    await enqueue(10)
    few = steps(store)
    await enqueue(10_000)
    census, many = steps(store)
    assert census.states[State.QUEUED] == 10_010
    assert many <= few[1] + 1


def steps(store: RunsStore) -> tuple[Census, int]:
    """Take a census, and count the steps of SQLite that it takes, in hundreds."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    with closing(open_for_reading(store.path)) as db:
        db.set_progress_handler(count, 100)
        return take_census(db, NO_POOLS), counted
