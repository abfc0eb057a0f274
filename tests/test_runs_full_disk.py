"""Ticks, retries and batches on a disk without any room: each is done as a whole, once there is room again."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from fastlane_grpc.errors import DiskFull
from fastlane_grpc.model import Cron, Jitter, Overlap, Retry, State
from fastlane_grpc.store import JobFilter
from fastlane_grpc.store.database import sqlite3
from tests.moved_store import SPEC, RunsStore, minutes
from tests.small_disk import fill, make_room, small_disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root")

HOUR = timedelta(hours=1)
HOURLY = Cron("0 * * * *")
RETRY = Retry(2, initial_backoff=minutes(1), factor=1, jitter=Jitter.NONE)

# Does a step of a store, as often as it is called.
Step: TypeAlias = Callable[[], Awaitable[Any]]


async def tick(moved: RunsStore) -> Step:
    await moved.job(cron=HOURLY)
    moved.now += HOUR
    return lambda: moved.store.promote(100)


async def tick_that_replaces_a_run(moved: RunsStore) -> Step:
    await moved.job(cron=replace(HOURLY, overlap=Overlap.REPLACE))
    await moved.pass_time(moved.now + HOUR)
    moved.now += HOUR
    return lambda: moved.store.promote(100)


async def due_retry(moved: RunsStore) -> Step:
    await moved.job(retry=RETRY)
    [attempt] = await moved.look()
    await moved.end(attempt, State.FAILED)
    moved.now += minutes(1)
    return lambda: moved.store.promote(100)


async def retry_by_a_caller(moved: RunsStore) -> Step:
    job = await moved.job()
    [attempt] = await moved.look()
    await moved.end(attempt, State.FAILED)
    return lambda: moved.store.retry_job(job.id, request_id="once")


async def retry_by_a_filter(moved: RunsStore) -> Step:
    jobs = [await moved.job() for _ in range(20)]
    for attempt in await moved.look():
        await moved.end(attempt, State.FAILED)
    return lambda: moved.store.retry_jobs([job.id for job in jobs], JobFilter(task_id="task"))


async def batch(moved: RunsStore) -> Step:
    def step() -> Awaitable[Any]:
        jobs = moved.store.batch("")
        for number in range(200):
            jobs.add("task", SPEC, f"request-{number}")
        return moved.store.enqueue_batch(jobs)

    return step


STEPS = [tick, tick_that_replaces_a_run, due_retry, retry_by_a_caller, retry_by_a_filter, batch]


def state(moved: RunsStore) -> list[Any]:
    """What the tables hold, without ids."""
    moved.check()
    return [
        moved.rows("SELECT state, executions, runs, schedule, tick_time, request_id FROM jobs ORDER BY seq"),
        moved.rows("SELECT run, attempt, state, due_time, tick_time, tries FROM executions ORDER BY seq"),
        moved.rows("SELECT kind, state, time FROM changes WHERE kind IN (1, 2, 4) ORDER BY sequence"),
        moved.rows("SELECT count(*) FROM job_retries"),
    ]


async def done_with_room(disk: Path, prepare: Callable[[RunsStore], Awaitable[Step]]) -> list[Any]:
    """The state after a step that had room."""
    (disk / "roomy").mkdir()
    with closing(RunsStore(disk / "roomy", asyncio.get_running_loop())) as moved:
        await (await prepare(moved))()
        return state(moved)


def leave_no_room(moved: RunsStore) -> None:
    # The log keeps the room that it was given, and would write there.
    with closing(sqlite3.connect(moved.path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    fill(moved.path.parent)
    assert shutil.disk_usage(moved.path.parent).free == 0


@pytest.mark.parametrize("prepare", STEPS)
async def test_a_step_on_a_full_disk_changes_nothing_and_is_done_once_there_is_room(
    tmp_path: Path, prepare: Callable[[RunsStore], Awaitable[Step]]
) -> None:
    with small_disk(tmp_path, "8m"), closing(RunsStore(tmp_path, asyncio.get_running_loop())) as moved:
        wanted = await done_with_room(tmp_path, prepare)
        step = await prepare(moved)
        before = state(moved)
        leave_no_room(moved)
        for _ in range(3):
            with pytest.raises(DiskFull):
                await step()
            assert state(moved) == before
        make_room(tmp_path, "16m")
        await step()
        assert state(moved) == wanted


async def test_the_end_of_an_attempt_and_its_retry_wait_for_room_together(tmp_path: Path) -> None:
    async def end(moved: RunsStore) -> Step:
        await moved.job(retry=RETRY)
        [attempt] = await moved.look()
        return lambda: moved.end(attempt, State.FAILED)

    with small_disk(tmp_path, "8m"), closing(RunsStore(tmp_path, asyncio.get_running_loop())) as moved:
        wanted = await done_with_room(tmp_path, end)
        step = await end(moved)
        before = state(moved)
        leave_no_room(moved)
        ended = asyncio.ensure_future(step())
        # Answered after the end was tried: what comes later in the queue of writes fails as well.
        await asyncio.sleep(0)
        with pytest.raises(DiskFull):
            await moved.job()
        assert state(moved) == before
        make_room(tmp_path, "16m")
        await ended
        assert state(moved) == wanted
