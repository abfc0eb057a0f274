"""The dispatcher and time: it sleeps until something is due or has expired, on a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.dispatcher import PROMOTIONS_AT_ONCE, Dispatcher
from fastlane_grpc.model import Execution, Job, JobSpec, State, utc_now
from fastlane_grpc.schedule import Following, Next, after, settled_by
from fastlane_grpc.slots import HostSlots
from fastlane_grpc.store import Pending, Store
from fastlane_grpc.store.database import open_for_reading, open_for_writing
from fastlane_grpc.store.due import Promotion
from fastlane_grpc.store.job_state import After, Rules
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from tests.fakes import Announcements, FakeGone, FakeHost, FakeRunner
from tests.new_database import open_database
from tests.store_checks import check_jobs, check_lines

SPEC = JobSpec("busybox", command="true")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(seconds=10)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
AGES = 3600.0
# How often a dispatcher looks at the clock that a test has moved.
OFTEN = 0.005


class CountingStore(Store):
    """Counts how often it is asked for what is due."""

    promotions = 0

    def promote(self, limit: int) -> Pending[Promotion]:
        self.promotions += 1
        return super().promote(limit)


class Bench:
    """A store, a dispatcher, and a runner whose containers end at once, on one clock."""

    def __init__(
        self,
        directory: Path,
        *,
        now: Callable[[], datetime] | None = None,
        longest_sleep_seconds: float = OFTEN,
        max_running: int = 4,
        hold: bool = False,
        after: After = after,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.time = BEGIN
        self.path = directory / "fastlane.db"
        self.announced = Announcements()
        clock = now or (lambda: self.time)
        db = open_database(self.path)
        db.execute("PRAGMA busy_timeout = 0")
        writer = Writer(db, self.path, loop=loop, on_commit=self._committed, retry_seconds=0.01)
        self.store = CountingStore(writer, Readers(self.path, loop=loop), instance="", now=clock, rules=Rules(after))
        self.host = FakeHost()
        self.runner = FakeRunner(self.store, self.host, hold=hold)
        self.dispatcher = Dispatcher(
            self.store,
            [HostSlots(self.host, self.runner, max_running)],
            removed=FakeGone(self.store),
            max_running=max_running,
            retry_seconds=0.01,
            now=clock,
            longest_sleep_seconds=longest_sleep_seconds,
        )
        self.task: asyncio.Task[None] | None = None

    def _committed(self, executions: Sequence[Execution]) -> None:
        self.dispatcher.on_change(executions)
        self.announced(executions)

    def open(self) -> None:
        self.task = asyncio.create_task(self.dispatcher.run())

    async def close(self) -> None:
        await self.dispatcher.close()
        if self.task:
            await self.task
        db = open_for_reading(self.path)
        check_jobs(lambda sql: db.execute(sql).fetchall())
        check_lines(lambda sql: db.execute(sql).fetchall())
        db.close()
        self.store.close()

    async def enqueue(self, task_id: str = "task", **spec: Any) -> Execution:
        job, _ = await self.store.enqueue(task_id=task_id, spec=replace(SPEC, **spec), request_id="", caller_address="")
        return job.execution

    async def ends(self, execution: Execution) -> Execution:
        found: list[Execution] = []

        def ended() -> bool:
            found[:] = [each for each in self.announced.all if each.id == execution.id and each.state.final]
            return bool(found)

        await self.announced.until(ended)
        return found[0]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.open()
    yield bench
    await bench.close()


async def test_a_scheduled_job_runs_when_its_time_comes_and_not_before(bench: Bench) -> None:
    execution = await bench.enqueue(start_in=HOUR)
    bench.time += HOUR - SECOND
    # What is enqueued later and runs at once shows that the dispatcher has looked.
    await bench.ends(await bench.enqueue())
    assert execution.id not in bench.runner.starts
    assert bench.store.promotions == 0, "the store is not asked before something is due"
    bench.time += SECOND
    assert (await bench.ends(execution)).state is State.SUCCEEDED


async def test_a_jump_of_the_clock_is_noticed_in_both_directions(bench: Bench) -> None:
    first, second = await bench.enqueue(start_in=HOUR), await bench.enqueue(start_in=3 * HOUR)
    bench.time -= 24 * HOUR
    await bench.ends(await bench.enqueue())
    assert bench.runner.starts != [first.id]
    bench.time += 26 * HOUR
    await bench.ends(first)
    assert second.id not in bench.runner.starts
    bench.time -= 2 * HOUR
    await bench.ends(await bench.enqueue())
    bench.time += 5 * HOUR
    await bench.ends(second)
    assert sorted(bench.runner.starts).count(first.id) == 1


async def test_the_dispatcher_sleeps_until_the_next_due_time_without_a_look_in_between(tmp_path: Path) -> None:
    bench = Bench(tmp_path, now=utc_now, longest_sleep_seconds=AGES)
    bench.open()
    later = await bench.enqueue(start_in=HOUR)
    await bench.ends(await bench.enqueue())
    # It sleeps until `later` is due, and is woken by what is due sooner.
    sooner = await bench.enqueue(start_in=timedelta(milliseconds=150))
    ended = await bench.ends(sooner)
    assert ended.times.claim_time is not None
    assert ended.times.claim_time >= ended.times.due_time
    assert (await bench.store.execution(later.id)).state is State.SCHEDULED
    assert bench.store.promotions <= 2
    await bench.close()


async def test_an_execution_expires_while_it_waits_for_a_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_running=1, hold=True)
    bench.open()
    holder = await bench.enqueue(expire_time=BEGIN + HOUR)
    await bench.announced.reaches(holder.id, State.RUNNING)
    waiting = await bench.enqueue(expire_time=BEGIN + HOUR)
    patient = await bench.enqueue()
    bench.time += HOUR + SECOND
    assert (await bench.ends(waiting)).state is State.EXPIRED
    assert (await bench.store.execution(holder.id)).state is State.RUNNING
    bench.runner.end(holder.id)
    await bench.announced.reaches(patient.id, State.RUNNING)
    bench.runner.end(patient.id)
    await bench.ends(patient)
    assert bench.runner.starts == [holder.id, patient.id]
    await bench.close()


async def test_an_execution_expires_while_every_host_is_down(bench: Bench) -> None:
    bench.host.up = False
    bench.dispatcher.host_changed(bench.host.name)
    execution = await bench.enqueue(expire_time=BEGIN + HOUR)
    bench.time += HOUR + SECOND
    assert (await bench.ends(execution)).state is State.EXPIRED


async def test_what_was_due_during_a_downtime_runs_in_its_order_unless_it_has_expired(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_running=1)
    third, first, second = [await bench.enqueue(start_in=hours * HOUR) for hours in (3, 1, 2)]
    expired = await bench.enqueue(start_in=HOUR, expire_time=BEGIN + 2 * HOUR)
    queued = await bench.enqueue(expire_time=BEGIN + 2 * HOUR)
    bench.time += 24 * HOUR
    bench.open()
    for execution in (expired, queued):
        assert (await bench.ends(execution)).state is State.EXPIRED
    await bench.ends(third)
    assert bench.runner.starts == [first.id, second.id, third.id]
    await bench.close()


async def test_a_scheduled_job_that_is_stopped_never_runs(bench: Bench) -> None:
    execution = await bench.enqueue(start_in=HOUR)
    assert (await bench.store.stop(execution.job_id, grace=GRACE, note="")).state is State.STOPPED
    bench.time += 2 * HOUR
    await bench.ends(await bench.enqueue())
    assert execution.id not in bench.runner.starts


async def test_many_that_are_due_at_once_each_run_once_and_others_run_in_between(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    count = 2 * PROMOTIONS_AT_ONCE + 10
    due = await asyncio.gather(*(bench.enqueue(f"task-{number % 7}", start_in=HOUR) for number in range(count)))
    bench.open()
    bench.time += HOUR
    for execution in due:
        await bench.ends(execution)
    assert sorted(bench.runner.starts) == sorted(execution.id for execution in due)
    assert bench.runner.most_present <= 4
    assert sum(each.state is State.QUEUED for each in bench.announced.all) == count
    await bench.close()


async def test_what_is_due_waits_for_a_store_that_cannot_write_and_is_tried_again(bench: Bench) -> None:
    execution = await bench.enqueue(start_in=HOUR)
    another = open_for_writing(bench.path)
    another.execute("BEGIN IMMEDIATE")
    bench.time += HOUR
    async with asyncio.timeout(30):
        while bench.store.promotions < 3:  # noqa: ASYNC110 -- nobody announces a promotion that failed
            await asyncio.sleep(0.001)
    another.close()
    assert (await bench.ends(execution)).state is State.SUCCEEDED


async def test_a_job_with_more_attempts_runs_them_all_and_then_is_final(tmp_path: Path) -> None:
    def thrice(job: Job, ended: Execution, now: datetime, **others: bool) -> Following:
        if ended.attempt == 3:
            return Following(final=settled_by(ended))
        # One waits for its time, the other one does not.
        return Following(Next(now + (ended.attempt - 1) * HOUR, ended.run, ended.attempt + 1))

    bench = Bench(tmp_path, after=thrice)
    bench.open()
    first = await bench.enqueue()
    await bench.announced.until(lambda: any(each.attempt == 3 for each in bench.announced.all))
    waiting = await bench.store.job(first.job_id)
    assert (waiting.state, waiting.executions, waiting.execution.times.due_time) == (State.SCHEDULED, 3, BEGIN + HOUR)
    bench.time += HOUR
    await bench.ends(waiting.execution)
    final = await bench.store.job(first.job_id)
    assert (final.state, final.executions, final.execution.id) == (State.SUCCEEDED, 3, waiting.execution.id)
    assert len(set(bench.runner.starts)) == len(bench.runner.starts) == 3
    await bench.close()


async def test_nothing_is_asked_of_the_store_while_nothing_waits_for_a_time(bench: Bench) -> None:
    for _ in range(3):
        await bench.ends(await bench.enqueue())
    bench.time += 24 * HOUR
    await bench.ends(await bench.enqueue())
    assert bench.store.promotions == 0
