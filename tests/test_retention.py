"""The retention over a real store and real files: what is old goes, oldest first, files before rows; nothing else does,
and nobody waits."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fastlane_grpc import config
from fastlane_grpc.client import Client, NotFound
from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, ServerStopping
from fastlane_grpc.logs import Logs
from fastlane_grpc.logs.files import DELETE_ENTRIES, LeftOver
from fastlane_grpc.model import Cron, Execution, JobSpec, Outcome, Source, State
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.retention import STEP_ROWS, Pruned, Retention, RetentionLimits
from fastlane_grpc.store import Count, PruneQuery
from fastlane_grpc.store.database import open_for_reading
from tests.fakes import Announcements
from tests.hostile_tree import make_deep
from tests.parts import Parts
from tests.recorder_program import eventually
from tests.serving import serving

DAY = timedelta(days=1)
FOR_EVER = RetentionLimits()


class Clock:
    """The wall clock, moved by hand until it runs."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self._ran_since: float | None = None

    def __call__(self) -> datetime:
        return (
            self.time if self._ran_since is None else self.time + timedelta(seconds=time.monotonic() - self._ran_since)
        )

    def runs(self) -> None:
        self._ran_since = time.monotonic()


class RetentionHarness(Parts):
    """A store and logs by one clock, and the retention of both."""

    def __init__(self, path: Path, limits: RetentionLimits = FOR_EVER) -> None:
        self.clock = Clock()
        super().__init__(path, now=self.clock)
        self.path = path
        self.limits = limits
        self.listeners.append(announced := Announcements())
        self.announced = announced
        self.open_store(self.parts)
        self.open_logs(self.parts)
        self.open_retention(self.parts)

    def open_retention(self, parts: Any) -> None:
        """It runs where a test runs it."""
        self.retention = Retention(self.store, self.logs, self.limits, now=self.clock, rest_seconds=0, call_seconds=60)
        parts.callback(self.retention.close)
        self.listeners.append(self.retention.on_change)

    def close(self) -> None:
        self.close_parts()

    async def ended(self, task_id: str = "task", *, output: bytes = b"printed\n", left: int = 0) -> Execution:
        """One that ran, printed that, left so many bytes beside its log, and ended just now."""
        spec = JobSpec("busybox")
        await self.store.enqueue(task_id=task_id, spec=spec, request_id="", caller_address="")
        return await self.run_next(output=output, left=left)

    async def run_next(self, *, output: bytes = b"printed\n", left: int = 0) -> Execution:
        """The next one in the queue, which runs and ends just now."""
        [assignment] = await self.store.claim_on(["here"])
        id = assignment.execution.id
        self.logs.path(id).mkdir(parents=True)
        writer = RecordWriter.create(self.logs.output_path(id), execution_id=id, capture="test")
        writer.write([(Source.STDOUT, output)], time.time_ns())
        trailer = writer.seal(0, {}, time.time_ns())
        if left:
            (self.logs.path(id) / "box-1").mkdir()
            (self.logs.path(id) / "box-1" / "file").write_bytes(bytes(left))
        room = self.logs.room(id)
        return await self.store.finish(
            id, state=State.SUCCEEDED, outcome=Outcome(), logs=trailer.totals, log_bytes=room
        )

    async def run_ticks(self, count: int, **spec: Any) -> tuple[str, list[Execution]]:
        """A job with a daily schedule that goes on after so many runs. Its id, and these."""
        cron = Cron("0 0 * * *")
        spec_of_job = JobSpec("busybox", cron=cron, **spec)
        job, _ = await self.store.enqueue(task_id="task", spec=spec_of_job, request_id="", caller_address="")
        runs = []
        for _ in range(count):
            self.clock.time += DAY
            await self.store.promote(100)
            runs.append(await self.run_next())
        return job.id, runs

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        db = open_for_reading(self.path / "fastlane.db")
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def check_kept(self) -> None:
        """What is kept by triggers is what would be counted."""
        counted = "SELECT coalesce(sum(log_bytes), 0), count(*) FILTER (WHERE state <= 2) FROM executions"
        assert self.rows("SELECT log_bytes, waiting FROM kept") == self.rows(counted)
        by_task = (
            "SELECT task_id, count(*), count(*) FILTER (WHERE state < 6) FROM jobs GROUP BY task_id ORDER BY task_id"
        )
        assert self.rows("SELECT task_id, jobs, open_jobs FROM tasks ORDER BY task_id") == self.rows(by_task)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RetentionHarness]:
    harness = RetentionHarness(tmp_path)
    yield harness
    harness.close()


async def log_is_pruned(harness: RetentionHarness, execution: Execution) -> bool:
    """Whether it is, by what is told; the files agree."""
    now = await harness.store.execution(execution.id)
    assert harness.logs.output_path(execution.id).exists() == (now.times.prune_time is None)
    return now.times.prune_time is not None


async def test_a_log_that_is_old_enough_goes_and_its_job_stays(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_logs=30 * DAY))
    old = await harness.ended()
    harness.clock.time += DAY
    young = await harness.ended()
    harness.clock.time += 29 * DAY
    pruned = await harness.retention.round(harness.clock.time)
    assert (pruned.jobs, pruned.logs) == (0, 1)
    assert pruned.bytes >= harness.logs.output_path(young.id).stat().st_blocks * 512
    assert [await log_is_pruned(harness, each) for each in (old, young)] == [True, False]
    assert (await harness.store.execution(old.id)).times.prune_time == harness.clock.time
    assert (await harness.store.execution(old.id)).logs == old.logs
    harness.check_kept()
    harness.close()


async def test_a_job_that_is_old_enough_goes_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_jobs=90 * DAY))
    old = await harness.ended("old")
    harness.clock.time += DAY
    young = await harness.ended("young")
    harness.clock.time += 89 * DAY
    assert (await harness.retention.round(harness.clock.time)).jobs == 1
    with pytest.raises(JobNotFound):
        await harness.store.job(old.job_id)
    with pytest.raises(ExecutionNotFound):
        await harness.store.execution(old.id)
    assert not harness.logs.path(old.id).exists()
    assert not await log_is_pruned(harness, young)
    assert harness.rows("SELECT task_id FROM tasks") == [("young",)]
    harness.check_kept()
    harness.close()


async def test_a_job_whose_log_went_before_goes_in_its_time(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_logs=30 * DAY, keep_jobs=90 * DAY))
    await harness.ended()
    harness.clock.time += 30 * DAY
    assert (await harness.retention.round(harness.clock.time)).logs == 1
    harness.clock.time += 60 * DAY
    assert await harness.retention.round(harness.clock.time) == Count(jobs=1)
    harness.check_kept()
    harness.close()


async def test_a_job_that_goes_on_keeps_its_history_and_no_file_beyond_it(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path)
    job_id, runs = await harness.run_ticks(6, history=3)
    pruned = await harness.retention.round(harness.clock.time)
    # The newest one of the history waits for its tick.
    assert pruned.logs == 4
    for gone in runs[:4]:
        assert not harness.logs.path(gone.id).exists()
        with pytest.raises(ExecutionNotFound):
            await harness.store.execution(gone.id)
    assert [await log_is_pruned(harness, each) for each in runs[4:]] == [False, False]
    job = await harness.store.job(job_id)
    assert (job.state, job.executions) == (State.SCHEDULED, 7)
    assert await harness.retention.round(harness.clock.time) == Count()
    harness.check_kept()
    harness.close()


async def test_executions_that_cannot_be_deleted_hold_up_no_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastlane_grpc.retention.STEP_ROWS", 2)
    harness = RetentionHarness(tmp_path)
    _, runs = await harness.run_ticks(6, history=1)
    for stuck in runs[:2]:
        harness.logs.path(stuck.id).rename(harness.path / stuck.id)
        # In its place something that is not a directory.
        harness.logs.path(stuck.id).write_bytes(b"")
    assert (await harness.retention.round(harness.clock.time)).logs == 4
    assert [harness.logs.path(each.id).exists() for each in runs] == [True, True, False, False, False, False]
    for stuck in runs[:2]:
        harness.logs.path(stuck.id).unlink()
        (harness.path / stuck.id).rename(harness.logs.path(stuck.id))
    await harness.retention.round(harness.clock.time)
    assert [harness.logs.path(each.id).exists() for each in runs] == [False] * 6
    assert harness.rows("SELECT count(*) FROM executions") == [(1,)]
    harness.check_kept()
    harness.close()


async def test_logs_of_a_job_that_goes_on_are_pruned_by_their_age(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_logs=3 * DAY, keep_jobs=3 * DAY))
    job_id, runs = await harness.run_ticks(6)
    assert await harness.retention.round(harness.clock.time) == Count(logs=3, bytes=3 * 4096)
    assert [await log_is_pruned(harness, each) for each in runs] == [True] * 3 + [False] * 3
    assert (await harness.store.job(job_id)).state is State.SCHEDULED, "what goes on is never old"
    harness.check_kept()
    harness.close()


async def test_what_is_not_final_is_never_old(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_logs=DAY, keep_jobs=DAY, total_log_bytes=1))
    spec = JobSpec("busybox")
    running, _ = await harness.store.enqueue(task_id="task", spec=spec, request_id="", caller_address="")
    await harness.store.claim_on(["here"])
    queued, _ = await harness.store.enqueue(task_id="task", spec=spec, request_id="", caller_address="")
    harness.clock.time += 1000 * DAY
    assert await harness.retention.round(harness.clock.time) == Count()
    assert [(await harness.store.job(job.id)).execution.state for job in (running, queued)] == [
        State.PREPARING,
        State.QUEUED,
    ]
    harness.close()


async def test_beyond_their_size_the_logs_that_ended_first_go_and_no_more_than_that(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path)
    ended = []
    for _ in range(10):
        ended.append(await harness.ended(output=bytes(100_000)))
        harness.clock.time += DAY
    rooms = [harness.logs.room(each.id) for each in ended]
    harness.retention = Retention(
        harness.store, harness.logs, RetentionLimits(total_log_bytes=sum(rooms) - rooms[0] - 1), now=harness.clock
    )
    assert (await harness.retention.round(harness.clock.time)).logs == 2
    assert [await log_is_pruned(harness, each) for each in ended] == [True] * 2 + [False] * 8
    harness.check_kept()
    harness.close()


async def test_more_than_one_step_takes_is_pruned_in_several(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_logs=DAY))
    # All at one time: the walk goes on behind the last one, not behind its time.
    for _ in range(STEP_ROWS + 50):
        await harness.ended()
    harness.clock.time += DAY
    assert (await harness.retention.round(harness.clock.time)).logs == STEP_ROWS + 50
    assert harness.rows("SELECT count(*) FROM executions WHERE log_bytes > 0 OR prune_time IS NULL") == [(0,)]
    assert list(harness.logs.directory.iterdir()) == []
    harness.check_kept()
    harness.close()


async def test_the_directory_of_a_day_goes_with_its_last_log(harness: RetentionHarness) -> None:
    first, second = await harness.ended(), await harness.ended()
    day = harness.logs.path(first.id).parent
    harness.logs.delete(first.id)
    assert day.exists()
    harness.logs.delete(second.id)
    assert not day.exists()
    harness.logs.delete(second.id)


async def test_of_a_task_or_of_all_a_call_prunes_what_ended_before(harness: RetentionHarness) -> None:
    one, other = await harness.ended("one"), await harness.ended("other")
    harness.clock.time += DAY
    late = await harness.ended("one")
    old = PruneQuery(harness.clock.time - DAY, logs_only=True, task_id="one")
    would = await harness.retention.count(old)
    assert (would.count.jobs, would.count.logs, would.count.bytes, would.more) == (
        0,
        1,
        harness.logs.room(one.id),
        False,
    )
    assert await harness.retention.prune(old) == would
    assert [await log_is_pruned(harness, each) for each in (one, other, late)] == [True, False, False]
    whole = PruneQuery(harness.clock.time - DAY)
    room = harness.logs.room(other.id)
    assert (await harness.retention.count(whole)).count == Count(2, 1, room)
    assert (await harness.retention.prune(whole)).count == Count(2, 1, room)
    assert not await log_is_pruned(harness, late)
    harness.check_kept()


@pytest.mark.parametrize("files_are_gone", [False, True])
async def test_a_crash_between_the_steps_leaves_nothing_that_is_not_pruned_again(
    harness: RetentionHarness, files_are_gone: bool
) -> None:
    ended = await harness.ended()
    await harness.store.mark_pruned([ended.id])
    if files_are_gone:
        harness.logs.delete(ended.id)
    assert (await harness.retention.prune(PruneQuery(harness.clock.time, logs_only=True))).count.logs == 1
    assert not harness.logs.path(ended.id).exists()
    assert (await harness.retention.prune(PruneQuery(harness.clock.time, logs_only=True))).count == Count()
    harness.check_kept()


async def test_a_log_that_cannot_be_deleted_stays_known_and_holds_up_no_other(harness: RetentionHarness) -> None:
    stuck, other = await harness.ended(), await harness.ended()
    # In its place something that is not a directory: the disk refuses to remove it as one.
    aside = harness.path / "aside"
    harness.logs.path(stuck.id).rename(aside)
    harness.logs.path(stuck.id).write_bytes(b"")
    old = PruneQuery(harness.clock.time)
    assert (await harness.retention.prune(old)).count.jobs == 1
    assert not harness.logs.path(other.id).exists()
    assert (await harness.retention.prune(old)).more is False
    harness.logs.path(stuck.id).unlink()
    aside.rename(harness.logs.path(stuck.id))
    assert (await harness.retention.prune(old)).count.jobs == 1
    assert not harness.logs.path(stuck.id).exists()


@pytest.mark.parametrize("what", ["deep", "full"])
async def test_a_log_with_a_tree_beside_it_goes_with_its_job_and_holds_up_no_other(
    harness: RetentionHarness, what: str
) -> None:
    hostile, other = await harness.ended(), await harness.ended()
    if what == "deep":
        make_deep(harness.logs.path(hostile.id), 1_500)
    else:
        # More than is deleted at once.
        for number in range(DELETE_ENTRIES + 10):
            (harness.logs.path(hostile.id) / str(number)).touch()
    pruned = await harness.retention.prune(PruneQuery(harness.clock.time))
    assert (pruned.count.jobs, pruned.count.logs) == (2, 2)
    assert not harness.logs.path(other.id).exists()
    assert not harness.logs.path(hostile.id).exists()
    task = asyncio.create_task(harness.retention.run())
    await asyncio.to_thread(eventually, lambda: not harness.logs.left_over.directory.exists())
    task.cancel()
    assert list(harness.logs.directory.iterdir()) == []


class EndlessLeftOver(LeftOver):
    """As when a container that runs on fills it as fast as it is emptied."""

    def step(self) -> bool:
        return True


async def test_left_over_files_that_never_end_hold_up_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlane_grpc.retention.LEFT_OVER_SECONDS", 0.1)
    harness = RetentionHarness(tmp_path, RetentionLimits(total_log_bytes=1))
    harness.logs.left_over = EndlessLeftOver(tmp_path / "deleted")
    task = asyncio.create_task(harness.retention.run())
    for _ in range(3):
        ended = (await harness.ended()).id
        await harness.announced.until(
            lambda ended=ended: any(each.id == ended and each.times.prune_time for each in harness.announced.all)
        )
    task.cancel()
    harness.close()


async def test_what_a_container_left_beside_its_log_costs_no_other_log(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(total_log_bytes=1 << 20))
    executions = [await harness.ended(), await harness.ended(left=5 << 20)]
    assert (await harness.retention.round(harness.clock.time)).logs == 0
    assert [await log_is_pruned(harness, each) for each in executions] == [False, False]
    harness.close()


async def test_what_an_earlier_server_had_set_aside_is_deleted(harness: RetentionHarness) -> None:
    (harness.logs.left_over.directory / "left" / "inner").mkdir(parents=True)
    task = asyncio.create_task(harness.retention.run())
    await asyncio.to_thread(eventually, lambda: not harness.logs.left_over.directory.exists())
    task.cancel()


async def test_what_cannot_be_deleted_is_told_once_and_tried_again_later(harness: RetentionHarness) -> None:
    left_over = harness.logs.left_over
    left_over.directory.mkdir(parents=True)
    # No directory: the disk refuses to remove it as one.
    (left_over.directory / "stuck").touch()
    (left_over.directory / "gone").mkdir()
    with capture_logs() as logs:
        while left_over.step():
            pass
        assert not left_over.step()
    assert [each["event"] for each in logs] == ["what a container left cannot be deleted"]
    assert [path.name for path in left_over.directory.iterdir()] == ["stuck"]
    due = left_over.due_seconds()
    assert due is not None
    assert 20 < due <= 30


class FailingLogs(Logs):
    """Of one execution, and for a while of what was set aside, something that nobody thought of is raised."""

    def __init__(self, directory: Path, execution_id: str) -> None:
        super().__init__(directory)
        self._execution_id = execution_id

    def delete(self, execution_id: str) -> bool:
        if execution_id == self._execution_id:
            raise RecursionError("what nobody thought of")
        return super().delete(execution_id)


async def test_a_log_that_raises_anything_holds_up_no_other_and_not_retention(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_jobs=DAY))
    bad, *others = [await harness.ended() for _ in range(5)]
    logs = FailingLogs(harness.logs.directory, bad.id)
    harness.retention = Retention(
        harness.store, logs, RetentionLimits(keep_jobs=DAY), now=harness.clock, rest_seconds=0, call_seconds=60
    )
    assert (await harness.retention.prune(PruneQuery(harness.clock.time, task_id="task"))).count.jobs == 4
    assert [harness.logs.path(each.id).exists() for each in (bad, *others)] == [True] + [False] * 4
    # The rounds go on as well, and those that end later are pruned.
    harness.clock.time += DAY
    task = asyncio.create_task(harness.retention.run())
    late = await harness.ended()
    harness.clock.time += DAY
    assert (await harness.retention.round(harness.clock.time)).jobs == 1
    assert not harness.logs.path(late.id).exists()
    assert not task.done()
    task.cancel()
    harness.close()


async def test_retention_goes_on_after_a_defect_of_a_round(
    harness: RetentionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastlane_grpc.retention.RETRY_SECONDS", 0.01)

    class Clockless(Retention):
        rounds = 0

        async def round(self, now: datetime) -> Count:
            self.rounds += 1
            if self.rounds < 3:
                raise ZeroDivisionError("what nobody thought of")
            return await super().round(now)

    retention = Clockless(
        harness.store, harness.logs, RetentionLimits(total_log_bytes=1), now=harness.clock, rest_seconds=0
    )
    harness.retention = retention
    harness.listeners.append(retention.on_change)
    task = asyncio.create_task(retention.run())
    ended = await harness.ended()
    await harness.announced.until(
        lambda: any(each.id == ended.id and each.times.prune_time for each in harness.announced.all)
    )
    assert retention.rounds >= 3
    assert not task.done()
    task.cancel()


async def test_retention_wakes_by_itself_when_what_is_kept_takes_too_much(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(total_log_bytes=1))
    task = asyncio.create_task(harness.retention.run())
    ended = await harness.ended()
    await harness.announced.until(
        lambda: any(each.id == ended.id and each.times.prune_time for each in harness.announced.all)
    )
    task.cancel()
    harness.close()


async def test_retention_wakes_when_the_oldest_is_old_enough(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_logs=timedelta(seconds=0.2), keep_jobs=DAY))
    harness.clock.runs()
    task = asyncio.create_task(harness.retention.run())
    ended = await harness.ended()
    await harness.announced.until(
        lambda: any(each.id == ended.id and each.times.prune_time for each in harness.announced.all)
    )
    pruned = harness.announced.all[-1].times.prune_time
    assert ended.times.end_time
    assert pruned
    assert pruned - ended.times.end_time >= timedelta(seconds=0.2)
    task.cancel()
    harness.close()


async def test_enqueues_go_on_while_much_is_pruned(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path, RetentionLimits(keep_jobs=DAY))
    for _ in range(2 * STEP_ROWS):
        await harness.ended()
    harness.clock.time += DAY
    pruning = asyncio.create_task(harness.retention.round(harness.clock.time))
    answered = 0
    while not pruning.done():
        await harness.store.enqueue(task_id="task", spec=JobSpec("busybox"), request_id="", caller_address="")
        answered += 1
    assert pruning.result().jobs == 2 * STEP_ROWS
    # Some in each step, and in the pauses.
    assert answered > 4
    harness.check_kept()
    harness.close()


KILLED = """
import asyncio, os, signal, sys
from datetime import timedelta
from pathlib import Path
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import utc_now
from fastlane_grpc.store import PruneQuery, Store
from fastlane_grpc.retention import RetentionLimits, Retention

path, left = Path(sys.argv[1]), int(sys.argv[2])

class DyingLogs(Logs):
    def delete(self, execution_id):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().delete(execution_id)

async def main():
    store = Store.open(path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    retention = Retention(store, DyingLogs(path / "logs"), RetentionLimits(), call_seconds=60)
    await retention.prune(PruneQuery(utc_now() + timedelta(days=1)))

asyncio.run(main())
"""


@pytest.mark.parametrize("logs_deleted", [1, 3, STEP_ROWS + 2])
async def test_killed_in_the_middle_of_it_a_server_leaves_no_file_that_no_row_names(
    tmp_path: Path, logs_deleted: int
) -> None:
    harness = RetentionHarness(tmp_path)
    for _ in range(STEP_ROWS + 10):
        await harness.ended()
    harness.close()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path), str(logs_deleted))
    assert await process.wait() == -signal.SIGKILL
    harness = RetentionHarness(tmp_path)
    known = {str(id) for (id,) in harness.rows("SELECT execution_id FROM executions")}
    # What was set aside, as a deletion takes long on a busy machine, is deleted by no row.
    assert {path.parent.name for path in harness.logs.directory.glob("????-*/*/log")} <= known
    assert len(known) >= 10
    assert (await harness.retention.prune(PruneQuery(datetime.now(UTC)))).count.jobs == len(known)
    # A deletion that takes long, as on a busy machine, is set aside and goes on in steps.
    while harness.logs.left_over.step():
        pass
    assert list(harness.logs.directory.glob("*/*")) == []
    harness.check_kept()
    harness.close()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc")), max_size=12),
    st.integers(0, 30),
    st.sampled_from(["", "a"]),
)
@pytest.mark.slow
def test_whatever_ended_when_exactly_the_old_is_pruned(ends: list[tuple[int, str]], days: int, task_id: str) -> None:
    async def check(path: Path) -> None:
        harness = RetentionHarness(path)
        kept, gone = set(), set()
        limit = harness.clock.time + days * DAY
        for after, task in ends:
            harness.clock.time += after * DAY
            execution = await harness.ended(task)
            (gone if harness.clock.time <= limit and task_id in ("", task) else kept).add(execution.id)
        assert (await harness.retention.prune(PruneQuery(limit, task_id=task_id))).count.jobs == len(gone)
        assert {id for (id,) in harness.rows("SELECT execution_id FROM executions")} == kept
        assert {path.name for path in harness.logs.directory.glob("*/*")} == kept
        harness.check_kept()
        harness.close()

    with TemporaryDirectory() as directory:
        asyncio.run(check(Path(directory)))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("keep_logs", "36h", timedelta(hours=36)),
        ("keep_logs", "1d12h", timedelta(hours=36)),
        ("keep_jobs", "off", None),
        ("max_total_log_bytes", "10g", 10 << 30),
        ("max_total_log_bytes", "off", 0),
        ("min_free_bytes", "OFF", 0),
        ("max_waiting", "5", 5),
    ],
)
def test_what_is_kept_is_a_matter_of_settings(name: str, text: str, value: object) -> None:
    assert getattr(config.load({name: text}, {}, None), name) == value


@pytest.mark.parametrize(
    ("name", "text"), [("keep_logs", "0s"), ("keep_jobs", "2w"), ("min_free_bytes", "none"), ("max_waiting", "off")]
)
def test_a_setting_that_cannot_be_is_named(name: str, text: str) -> None:
    with pytest.raises(config.ConfigError, match=name):
        config.load({name: text}, {}, None)


def test_a_server_prunes_by_its_settings_from_its_start_on(tmp_path: Path) -> None:
    nowhere = {"engine": f"unix://{tmp_path}/no-engine.sock"}
    with serving(tmp_path / "data", keep_jobs="off", **nowhere) as server, Client(server.address) as client:
        job = client.enqueue("task", "busybox")
        client.stop(job.id)
    with serving(tmp_path / "data", keep_jobs="1s", **nowhere) as server, Client(server.address) as client:
        # There a moment still, perhaps; then not.
        with pytest.raises(NotFound):
            while client.job(job.id):
                pass


async def test_calls_that_prune_while_the_server_stops_are_told_that_it_does(harness: RetentionHarness) -> None:
    for _ in range(3):
        await harness.ended()
    calls = [asyncio.ensure_future(harness.retention.prune(PruneQuery(harness.clock()))) for _ in range(3)]
    await asyncio.sleep(0)
    harness.retention.close()
    answers = await asyncio.gather(*calls, harness.retention.prune(PruneQuery(harness.clock())), return_exceptions=True)
    # What was under way may have come to its end.
    assert [answer for answer in answers if not isinstance(answer, ServerStopping | Pruned)] == []
    assert isinstance(answers[-1], ServerStopping)


async def test_a_call_deletes_a_bounded_number_and_says_that_there_is_more(tmp_path: Path) -> None:
    harness = RetentionHarness(tmp_path)
    for _ in range(STEP_ROWS + 1):
        await harness.ended()
    hurried = Retention(harness.store, harness.logs, FOR_EVER, call_seconds=0)
    old = PruneQuery(harness.clock.time)
    first = await hurried.prune(old)
    assert (first.count.jobs, first.more) == (STEP_ROWS, True)
    assert (await harness.retention.prune(old)).more is False
    assert harness.rows("SELECT count(*) FROM jobs") == [(0,)]
    hurried.close()
    harness.close()
