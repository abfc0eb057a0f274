"""Jobs with many executions in the store: retries, schedules, manual retries, replaced jobs, unique keys."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Set
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastlane_grpc.errors import (
    EtagMismatch,
    InvalidRequest,
    JobExpired,
    JobNotFinal,
    JobNotFound,
    NoSchedule,
    RequestIdReused,
    UniqueKeyTaken,
)
from fastlane_grpc.model import (
    CatchUp,
    Conflict,
    Cron,
    Execution,
    Hold,
    Jitter,
    Job,
    Limits,
    MemoryGrowth,
    Outcome,
    Overlap,
    Reason,
    Retry,
    State,
    Unique,
    new_id,
)
from fastlane_grpc.schedule import Ticks
from fastlane_grpc.store import etag_of
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.writer import Written
from tests.moved_store import BEGIN, SPEC, RunsStore, minutes

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
HOURLY = Cron("0 * * * *")
EXACT = Retry(2, initial_backoff=minutes(1), factor=1, jitter=Jitter.NONE)
RUNNING = (State.PREPARING, State.RUNNING, State.STOPPING)


@pytest.fixture
async def moved(tmp_path: Path) -> AsyncIterator[RunsStore]:
    moved = RunsStore(tmp_path, asyncio.get_running_loop())
    yield moved
    moved.check()
    moved.close()


async def only(claimed: list[Execution]) -> Execution:
    [execution] = claimed
    return execution


# ---- retries


async def test_a_failed_attempt_is_followed_by_another_until_one_succeeds(moved: RunsStore) -> None:
    job = await moved.job(retry=EXACT)
    [first] = await moved.look()
    await moved.end(first, State.FAILED)
    waiting = await moved.store.job(job.id)
    assert (waiting.state, waiting.execution.attempt, waiting.execution.run) == (State.SCHEDULED, 2, 1)
    assert waiting.execution.times.due_time == BEGIN + minutes(1)
    assert waiting.outcome is None
    assert await moved.look() == []
    [second] = await moved.pass_time(BEGIN + minutes(1))
    await moved.end(second)
    ended = await moved.store.job(job.id)
    assert (ended.state, ended.executions, ended.execution.id) == (State.SUCCEEDED, 2, second.id)


async def test_a_job_ends_as_its_last_attempt_did(moved: RunsStore) -> None:
    job = await moved.job(retry=EXACT)
    for code in (1, 2, 3):
        [attempt] = await moved.pass_time(moved.now + minutes(1))
        await moved.end(attempt, State.FAILED, code)
    ended = await moved.store.job(job.id)
    assert ended.outcome is not None
    assert (ended.state, ended.outcome.exit_code, ended.executions) == (State.FAILED, 3, 3)
    assert await moved.store.next_due_time() is None


async def test_a_stop_during_the_wait_for_a_retry_ends_the_job(moved: RunsStore) -> None:
    job = await moved.job(retry=EXACT)
    await moved.end(await only(await moved.look()), State.FAILED)
    stopped = await moved.store.stop(job.id, grace=None, note="enough")
    assert stopped.state is State.STOPPED
    assert await moved.pass_time(BEGIN + HOUR) == []


async def test_a_stop_of_the_execution_during_the_wait_ends_the_run(moved: RunsStore) -> None:
    job = await moved.job(retry=EXACT)
    await moved.end(await only(await moved.look()), State.FAILED)
    waiting = await moved.store.job(job.id)
    await moved.store.stop_execution(waiting.execution.id, grace=None, note="")
    assert (await moved.store.job(job.id)).state is State.STOPPED


async def test_a_stopped_attempt_that_fails_is_not_retried(moved: RunsStore) -> None:
    job = await moved.job(retry=EXACT)
    [attempt] = await moved.look()
    await moved.store.stop(job.id, grace=None, note="")
    await moved.end(attempt, State.FAILED)
    assert (await moved.store.job(job.id)).state is State.FAILED


@pytest.mark.parametrize("state", [State.FAILED, State.LOST])
async def test_an_attempt_that_was_told_to_stop_is_not_retried_however_it_ends(moved: RunsStore, state: State) -> None:
    job = await moved.job(retry=EXACT)
    [attempt] = await moved.look()
    await moved.store.stop_execution(attempt.id, grace=None, note="")
    await moved.end(attempt, state)
    assert (await moved.store.job(job.id)).state is state


async def test_an_attempt_after_out_of_memory_gets_more_in_its_assignment(moved: RunsStore) -> None:
    growth = replace(EXACT, memory_growth=MemoryGrowth(2, 150 << 20))
    await moved.job(retry=growth, limits=Limits(memory_bytes=100 << 20))
    [attempt] = await moved.look()
    killed = Outcome(Reason.OUT_OF_MEMORY, exit_code=137, out_of_memory=True)
    await moved.store.finish(attempt.id, state=State.FAILED, outcome=killed, logs=())
    moved.now += minutes(1)
    await moved.store.promote(10)
    [claimed] = await moved.store.claim_on(["here"])
    assert claimed.spec.limits.memory_bytes == 150 << 20
    assert (await moved.store.assignment(claimed.execution.id)).spec == claimed.spec
    assert [each.spec for each in await moved.store.unfinished()] == [claimed.spec]


async def test_retries_are_counted_for_each_run(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY, retry=replace(EXACT, max_retries=1))
    for hour in (1, 2):
        for attempt in (1, 2):
            [claimed] = await moved.pass_time(BEGIN + hour * HOUR + (attempt - 1) * minutes(1))
            assert (claimed.run, claimed.attempt, claimed.tick_time) == (hour, attempt, BEGIN + hour * HOUR)
            await moved.end(claimed, State.FAILED)
    current = await moved.store.job(job.id)
    assert (current.state, current.execution.tick_time) == (State.SCHEDULED, BEGIN + 3 * HOUR)


# ---- schedules


async def test_a_job_with_a_schedule_is_scheduled_for_its_first_tick(moved: RunsStore) -> None:
    moved.now = BEGIN + minutes(30)
    job = await moved.job(cron=HOURLY)
    assert (job.state, job.execution.times.due_time, job.execution.tick_time) == (
        State.SCHEDULED,
        BEGIN + HOUR,
        BEGIN + HOUR,
    )
    assert await moved.store.job(job.id) == job


async def test_each_tick_starts_a_run_and_the_job_goes_on(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    for hour in (1, 2, 3):
        [claimed] = await moved.pass_time(BEGIN + hour * HOUR)
        assert (claimed.run, claimed.tick_time) == (hour, BEGIN + hour * HOUR)
        await moved.end(claimed, State.FAILED if hour == 2 else State.SUCCEEDED)
    current = await moved.store.job(job.id)
    assert (current.state, current.executions, current.runs, current.outcome) == (State.SCHEDULED, 4, 4, None)
    assert current.schedule is not None
    assert (current.schedule.runs, current.schedule.skipped) == (3, 0)


async def test_a_tick_is_skipped_while_a_run_goes_on(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    [first] = await moved.pass_time(BEGIN + HOUR)
    assert await moved.pass_time(BEGIN + 3 * HOUR + minutes(1)) == []
    during = (await moved.store.job(job.id)).schedule
    assert during is not None
    assert (during.skipped, during.last_skipped_time) == (2, BEGIN + 3 * HOUR)
    assert during.last_skipped_detail == "the run before had not ended"
    await moved.end(first)
    [second] = await moved.pass_time(BEGIN + 4 * HOUR)
    assert (second.run, second.tick_time) == (2, BEGIN + 4 * HOUR)


async def test_a_run_that_waits_for_a_retry_has_not_ended(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY, retry=replace(EXACT, initial_backoff=3 * HOUR))
    await moved.end(await only(await moved.pass_time(BEGIN + HOUR)), State.FAILED)
    await moved.pass_time(BEGIN + 3 * HOUR)
    schedule = (await moved.store.job(job.id)).schedule
    assert schedule is not None
    assert schedule.skipped == 2


async def test_one_tick_is_queued_during_a_run_and_further_ones_skipped(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, overlap=Overlap.QUEUE_ONE))
    [first] = await moved.pass_time(BEGIN + HOUR)
    await moved.pass_time(BEGIN + 4 * HOUR + minutes(1))
    await moved.end(first)
    [second] = await moved.look()
    assert (second.tick_time, second.times.due_time) == (BEGIN + 2 * HOUR, BEGIN + 4 * HOUR + minutes(1))
    await moved.end(second)
    current = await moved.store.job(job.id)
    assert current.schedule is not None
    assert (current.schedule.skipped, current.execution.tick_time) == (2, BEGIN + 5 * HOUR)


async def test_a_tick_replaces_the_run_before_and_starts_at_its_end(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, overlap=Overlap.REPLACE), stop_grace=5 * SECOND)
    [first] = await moved.pass_time(BEGIN + HOUR)
    assert await moved.pass_time(BEGIN + 2 * HOUR) == []
    stopping = await moved.store.execution(first.id)
    assert stopping.state is State.STOPPING
    assert stopping.stop is not None
    assert (stopping.stop.grace, stopping.stop.note) == (5 * SECOND, "replaced by the run of 2026-01-01T02:00:00Z")
    await moved.end(first, State.STOPPED)
    [second] = await moved.look()
    assert (second.run, second.tick_time) == (2, BEGIN + 2 * HOUR)
    assert (await moved.store.job(job.id)).stop_time is None


async def test_a_run_that_fails_while_a_tick_replaces_it_is_not_retried(moved: RunsStore) -> None:
    await moved.job(cron=replace(HOURLY, overlap=Overlap.REPLACE), retry=EXACT)
    [first] = await moved.pass_time(BEGIN + HOUR)
    assert await moved.pass_time(BEGIN + 2 * HOUR) == []
    await moved.end(first, State.FAILED)
    [second] = await moved.look()
    assert (second.run, second.attempt, second.tick_time) == (2, 1, BEGIN + 2 * HOUR)


async def test_a_tick_replaces_a_run_that_waits_for_a_retry_at_once(moved: RunsStore) -> None:
    await moved.job(
        cron=replace(HOURLY, overlap=Overlap.REPLACE), retry=replace(EXACT, initial_backoff=3 * HOUR, max_retries=5)
    )
    await moved.end(await only(await moved.pass_time(BEGIN + HOUR)), State.FAILED)
    [second] = await moved.pass_time(BEGIN + 2 * HOUR)
    assert (second.run, second.attempt, second.tick_time) == (2, 1, BEGIN + 2 * HOUR)


async def test_runs_overlap_where_that_is_allowed(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, overlap=Overlap.ALLOW))
    [first] = await moved.pass_time(BEGIN + HOUR)
    [second] = await moved.pass_time(BEGIN + 2 * HOUR)
    assert (first.run, second.run) == (1, 2)
    assert (await moved.store.job(job.id)).execution.id == second.id
    await moved.end(second)
    assert (await moved.store.job(job.id)).execution.id == first.id, "the newest one that has not ended"
    await moved.end(first)
    current = await moved.store.job(job.id)
    assert (current.state, current.execution.tick_time) == (State.SCHEDULED, BEGIN + 3 * HOUR)


async def test_a_stop_of_the_job_stops_all_its_runs(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, overlap=Overlap.ALLOW))
    runs = [*await moved.pass_time(BEGIN + HOUR), *await moved.pass_time(BEGIN + 2 * HOUR)]
    stopped = await moved.store.stop(job.id, grace=None, note="")
    assert stopped.state is State.STOPPING
    assert [(await moved.store.execution(run.id)).state for run in runs] == [State.STOPPING] * 2
    for run in runs:
        await moved.end(run, State.STOPPED)
    assert (await moved.store.job(job.id)).state is State.STOPPED
    assert await moved.pass_time(BEGIN + DAY) == []


async def test_a_stopped_schedule_never_ticks_again(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    stopped = await moved.store.stop(job.id, grace=None, note="")
    assert stopped.state is State.STOPPED
    assert await moved.pass_time(BEGIN + DAY) == []
    again, _ = await moved.store.retry_job(job.id)
    await moved.end(await only(await moved.look()))
    assert again.execution.run == 2
    assert (await moved.store.job(job.id)).state is State.SUCCEEDED
    assert await moved.pass_time(BEGIN + 2 * DAY) == []


async def test_a_stop_of_a_scheduled_execution_leaves_the_schedule(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    await moved.store.stop_execution(job.execution.id, grace=None, note="")
    current = await moved.store.job(job.id)
    assert (current.state, current.execution.tick_time) == (State.SCHEDULED, BEGIN + 2 * HOUR)


async def test_a_stop_of_a_run_leaves_the_schedule_and_ends_its_retries(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY, retry=EXACT)
    [first] = await moved.pass_time(BEGIN + HOUR)
    await moved.store.stop_execution(first.id, grace=None, note="")
    await moved.end(first, State.STOPPED)
    current = await moved.store.job(job.id)
    assert (current.execution.run, current.execution.tick_time) == (2, BEGIN + 2 * HOUR)


async def test_a_schedule_ends_after_its_last_tick_with_the_outcome_of_the_last_run(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, end_time=BEGIN + 2 * HOUR))
    await moved.end(await only(await moved.pass_time(BEGIN + HOUR)))
    await moved.end(await only(await moved.pass_time(BEGIN + 2 * HOUR)), State.FAILED)
    assert (await moved.store.job(job.id)).state is State.FAILED


async def test_a_schedule_ends_after_its_number_of_runs(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, max_runs=2))
    for hour in (1, 2):
        [run] = await moved.pass_time(BEGIN + hour * HOUR)
        await moved.end(run)
    ended = await moved.store.job(job.id)
    assert (ended.state, ended.executions) == (State.SUCCEEDED, 2)


async def test_an_expire_time_ends_a_schedule(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY, expire_time=BEGIN + HOUR + minutes(1))
    await moved.end(await only(await moved.pass_time(BEGIN + HOUR)))
    assert (await moved.store.job(job.id)).state is State.SUCCEEDED


async def test_jitter_delays_the_run_and_not_the_schedule(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, jitter=minutes(10)))
    due_time = job.execution.times.due_time
    assert BEGIN + HOUR < due_time <= BEGIN + HOUR + minutes(10)
    assert await moved.pass_time(due_time - SECOND) == []
    await moved.end(await only(await moved.pass_time(due_time)))
    assert (await moved.store.job(job.id)).execution.tick_time == BEGIN + 2 * HOUR


# ---- missed ticks and clocks


async def test_missed_ticks_start_one_run_for_the_latest(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    await moved.pass_time(BEGIN + 5 * HOUR + minutes(10), awake=False)
    [run] = await moved.look()
    assert (run.tick_time, run.run) == (BEGIN + 5 * HOUR, 1)
    await moved.end(run)
    current = await moved.store.job(job.id)
    assert current.schedule is not None
    assert (current.schedule.skipped, current.schedule.last_skipped_time) == (4, BEGIN + 4 * HOUR)
    assert current.execution.tick_time == BEGIN + 6 * HOUR


async def test_missed_ticks_that_are_too_old_are_skipped(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, catch_up_window=minutes(5)))
    await moved.pass_time(BEGIN + 5 * HOUR + minutes(10), awake=False)
    assert await moved.look() == []
    current = await moved.store.job(job.id)
    assert current.schedule is not None
    assert (current.schedule.skipped, current.execution.tick_time) == (5, BEGIN + 6 * HOUR)


async def test_missed_ticks_are_skipped_where_none_is_made_up_for(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, catch_up=CatchUp.NONE))
    await moved.pass_time(BEGIN + 2 * HOUR + minutes(2), awake=False)
    assert await moved.look() == []
    assert (await moved.store.job(job.id)).execution.tick_time == BEGIN + 3 * HOUR


@pytest.mark.parametrize("catch_up", [CatchUp.NONE, CatchUp.LATEST, CatchUp.ALL])
async def test_a_tick_handled_within_a_minute_was_not_missed(moved: RunsStore, catch_up: CatchUp) -> None:
    await moved.job(cron=replace(HOURLY, catch_up=catch_up))
    await moved.pass_time(BEGIN + HOUR + minutes(1), awake=False)
    assert (await only(await moved.look())).tick_time == BEGIN + HOUR


async def test_every_missed_tick_starts_a_run_one_after_another(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, catch_up=CatchUp.ALL, catch_up_window=3 * HOUR))
    await moved.pass_time(BEGIN + 5 * HOUR + minutes(10), awake=False)
    made_up_for = []
    for _ in range(3):
        [run] = await moved.look()
        made_up_for.append(run.tick_time)
        await moved.end(run)
    assert made_up_for == [BEGIN + hour * HOUR for hour in (3, 4, 5)]
    assert await moved.look() == []
    current = await moved.store.job(job.id)
    assert current.schedule is not None
    assert (current.schedule.skipped, current.execution.tick_time) == (2, BEGIN + 6 * HOUR)


async def test_at_most_a_hundred_missed_ticks_are_made_up_for(moved: RunsStore) -> None:
    await moved.job(cron=Cron("* * * * *", catch_up=CatchUp.ALL))
    await moved.pass_time(BEGIN + minutes(1000), awake=False)
    assert (await only(await moved.look())).tick_time == BEGIN + minutes(901)


async def test_the_last_tick_that_was_missed_ends_the_job_as_expired(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, end_time=BEGIN + HOUR, catch_up=CatchUp.NONE))
    await moved.pass_time(BEGIN + 2 * HOUR, awake=False)
    await moved.look()
    ended = await moved.store.job(job.id)
    assert ended.outcome is not None
    assert (ended.state, ended.outcome.detail) == (
        State.EXPIRED,
        "the last tick of the schedule was missed, as the server was down",
    )


async def test_ticks_during_a_downtime_with_a_run_under_way_overlap_as_one(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, overlap=Overlap.QUEUE_ONE))
    [first] = await moved.pass_time(BEGIN + HOUR)
    await moved.pass_time(BEGIN + 5 * HOUR + minutes(30), awake=False)
    await moved.look()
    await moved.end(first)
    [second] = await moved.look()
    assert second.tick_time == BEGIN + 5 * HOUR
    schedule = (await moved.store.job(job.id)).schedule
    assert schedule is not None
    assert schedule.skipped == 3


async def test_a_clock_that_jumps_an_hour_either_way_runs_no_tick_twice(moved: RunsStore) -> None:
    job = await moved.job(cron=Cron("*/10 * * * *"))
    for jump in (HOUR, -HOUR, HOUR, -HOUR, minutes(15), -minutes(15)):
        for _ in range(4):
            for run in await moved.pass_time(moved.now + minutes(10)):
                await moved.end(run)
        moved.now += jump
        for run in await moved.look():
            await moved.end(run)
    ticks = [each.tick_time for each in await moved.executions(job.id)]
    assert len(set(ticks)) == len(ticks) > 8
    assert sorted(ticks, key=str) == ticks


# ---- pause and resume


async def test_a_paused_schedule_does_not_tick_and_resumes_with_the_next_tick(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    paused = await moved.store.pause_schedule(job.id)
    assert (paused.state, paused.execution.hold) == (State.SCHEDULED, Hold.SCHEDULE_PAUSED)
    assert etag_of(paused) != etag_of(job)
    assert await moved.store.pause_schedule(job.id) == paused
    assert await moved.pass_time(BEGIN + 3 * HOUR + minutes(30)) == []
    resumed = await moved.store.resume_schedule(job.id)
    assert (resumed.execution.id, resumed.execution.tick_time) == (job.execution.id, BEGIN + 4 * HOUR)
    assert await moved.store.resume_schedule(job.id) == resumed
    assert (await only(await moved.pass_time(BEGIN + 4 * HOUR))).tick_time == BEGIN + 4 * HOUR


async def test_a_schedule_paused_during_a_run_is_held_after_it(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    [run] = await moved.pass_time(BEGIN + HOUR)
    await moved.store.pause_schedule(job.id)
    assert await moved.pass_time(BEGIN + 2 * HOUR) == []
    await moved.end(run)
    held = await moved.store.job(job.id)
    assert held.execution.hold is Hold.SCHEDULE_PAUSED
    await moved.store.resume_schedule(job.id)
    assert (await only(await moved.pass_time(BEGIN + 3 * HOUR))).tick_time == BEGIN + 3 * HOUR


async def test_ticks_during_a_pause_are_not_counted_as_skipped(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    [run] = await moved.pass_time(BEGIN + HOUR)
    await moved.store.pause_schedule(job.id)
    await moved.pass_time(BEGIN + 5 * HOUR + minutes(30))
    await moved.end(run)
    paused = await moved.store.job(job.id)
    await moved.store.stop_execution(paused.execution.id, grace=None, note="")
    resumed = await moved.store.resume_schedule(job.id)
    for each, tick_time in ((paused, BEGIN + 6 * HOUR), (resumed, BEGIN + 7 * HOUR)):
        assert each.schedule is not None
        assert (each.schedule.skipped, each.execution.tick_time) == (0, tick_time)


async def test_a_schedule_resumed_during_a_run_handles_its_next_tick(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    await moved.pass_time(BEGIN + HOUR)
    await moved.store.pause_schedule(job.id)
    await moved.pass_time(BEGIN + 2 * HOUR + minutes(1))
    resumed = await moved.store.resume_schedule(job.id)
    assert resumed.tick_time == BEGIN + 3 * HOUR
    assert await moved.store.next_due_time() == BEGIN + 3 * HOUR


async def test_a_schedule_may_begin_paused(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, paused=True))
    assert await moved.pass_time(BEGIN + DAY) == []
    resumed = await moved.store.resume_schedule(job.id)
    assert resumed.execution.tick_time == BEGIN + DAY + HOUR


async def test_a_schedule_without_a_tick_left_ends_when_it_is_resumed(moved: RunsStore) -> None:
    job = await moved.job(cron=replace(HOURLY, end_time=BEGIN + 2 * HOUR))
    await moved.store.pause_schedule(job.id)
    await moved.pass_time(BEGIN + 3 * HOUR)
    assert (await moved.store.resume_schedule(job.id)).state is State.STOPPED


async def test_a_paused_job_can_be_stopped(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    await moved.store.pause_schedule(job.id)
    assert (await moved.store.stop(job.id, grace=None, note="")).state is State.STOPPED


async def test_only_a_schedule_that_goes_on_can_be_paused(moved: RunsStore) -> None:
    plain = await moved.job(start_in=HOUR)
    with pytest.raises(NoSchedule, match="has no schedule"):
        await moved.store.pause_schedule(plain.id)
    stopped = await moved.job(cron=HOURLY)
    await moved.store.stop(stopped.id, grace=None, note="")
    with pytest.raises(NoSchedule, match="has a schedule that is over"):
        await moved.store.resume_schedule(stopped.id)
    with pytest.raises(JobNotFound):
        await moved.store.pause_schedule(new_id())


# ---- retries by hand


async def test_a_final_job_is_run_once_more(moved: RunsStore) -> None:
    job = await moved.job(retry=replace(EXACT, max_retries=1))
    for _ in range(2):
        await moved.end(await only(await moved.pass_time(moved.now + minutes(1))), State.FAILED)
    again, existing = await moved.store.retry_job(job.id, request_id="r")
    assert (again.state, again.outcome, again.end_time, existing) == (State.QUEUED, None, None, False)
    assert (again.execution.run, again.execution.attempt) == (2, 1)
    assert moved.rows("SELECT open_jobs FROM tasks") == [(1,)]
    await moved.end(await only(await moved.look()), State.FAILED)
    assert (await moved.store.job(job.id)).state is State.SCHEDULED, "its retries are counted anew"


async def test_a_repeated_retry_with_a_request_id_starts_nothing_more(moved: RunsStore) -> None:
    job = await moved.job()
    await moved.end(await only(await moved.look()))
    first, _ = await moved.store.retry_job(job.id, request_id="r")
    assert await moved.store.retry_job(job.id, request_id="r") == (first, True)
    await moved.end(await only(await moved.look()))
    _, existing = await moved.store.retry_job(job.id, request_id="r")
    assert existing
    assert (await moved.store.job(job.id)).executions == 2
    another, existing = await moved.store.retry_job(job.id, request_id="other")
    assert (another.executions, existing) == (3, False)


async def test_a_job_that_goes_on_or_has_expired_is_not_retried(moved: RunsStore) -> None:
    job = await moved.job(expire_time=BEGIN + HOUR)
    with pytest.raises(JobNotFinal, match=f"job {job.id} is QUEUED; only a job that has ended can be retried"):
        await moved.store.retry_job(job.id)
    await moved.end(await only(await moved.look()))
    moved.now = BEGIN + 2 * HOUR
    with pytest.raises(JobExpired, match="its expire_time was 2026-01-01T01:00:00Z"):
        await moved.store.retry_job(job.id)
    with pytest.raises(JobNotFound):
        await moved.store.retry_job(new_id())


async def test_retries_by_hand_go_with_their_job(moved: RunsStore) -> None:
    job = await moved.job()
    await moved.end(await only(await moved.look()))
    await moved.store.retry_job(job.id, request_id="r")
    await moved.end(await only(await moved.look()))
    assert await moved.store.delete_jobs([job.id]) == 1
    assert moved.rows("SELECT * FROM job_retries") == []


# ---- replaced jobs


async def replaced(
    moved: RunsStore, job_id: str, etag: str = "", task_id: str = "task", **spec: Any
) -> tuple[Job, bool]:
    return await moved.store.replace_job(
        job_id, task_id=task_id, spec=replace(SPEC, **spec), etag=etag, caller_address="here"
    )


async def test_a_job_is_created_under_the_id_of_its_caller(moved: RunsStore) -> None:
    job_id = "0191d2c8-0000-7000-8000-000000000001"
    job, created = await replaced(moved, job_id, cron=HOURLY)
    assert (job.id, created, job.caller_address) == (job_id, True, "here")
    assert await moved.store.job(job_id) == job
    again, created = await replaced(moved, job_id, cron=HOURLY)
    assert (again, created) == (job, False)


async def test_a_repeated_enqueue_is_known_after_its_job_was_replaced(moved: RunsStore) -> None:
    job = await moved.job(request_id="r", command="first", envs={"PASSWORD": "a"})
    for command in ("second", "third"):
        await replaced(moved, job.id, command=command)
    assert (await moved.job(request_id="r", command="first", envs={"PASSWORD": "b"})).id == job.id
    assert (await moved.job(request_id="r", command="third")).id == job.id
    with pytest.raises(RequestIdReused):
        await moved.job(request_id="r", command="second")


async def test_a_replaced_schedule_replaces_the_execution_that_waits(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY, labels={"old": "1"})
    new, created = await replaced(moved, job.id, cron=Cron("30 * * * *"), labels={"new": "2"})
    assert not created
    assert (new.execution.run, new.execution.tick_time) == (2, BEGIN + minutes(30))
    [old, _] = await moved.executions(job.id)
    assert old.outcome is not None
    assert (old.state, old.outcome.detail) == (State.STOPPED, "stopped while it was scheduled: the job was replaced")
    assert moved.rows("SELECT name, value FROM job_labels") == [("new", "2")]
    assert [each.tick_time for each in await moved.pass_time(BEGIN + HOUR)] == [BEGIN + minutes(30)]


async def test_a_running_execution_goes_on_as_it_was_started(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY, command="old", retry=EXACT)
    [run] = await moved.pass_time(BEGIN + HOUR)
    new, _ = await replaced(moved, job.id, cron=Cron("30 * * * *"), command="new", retry=EXACT)
    assert (new.state, new.execution.id) == (State.PREPARING, run.id)
    assert (await moved.store.assignment(run.id)).spec.command == "old"
    assert [each.spec.command for each in await moved.store.unfinished()] == ["old"]
    await moved.end(run, State.FAILED)
    current = await moved.store.job(job.id)
    assert (current.execution.attempt, current.execution.tick_time) == (1, BEGIN + HOUR + minutes(30)), (
        "what was replaced has no retries"
    )
    [next_run] = await moved.pass_time(BEGIN + HOUR + minutes(30))
    assert (await moved.store.assignment(next_run.id)).spec.command == "new"


@pytest.mark.parametrize("cron", [None, HOURLY], ids=["now", "schedule"])
async def test_a_requeued_execution_of_a_replaced_job_keeps_its_own_spec(moved: RunsStore, cron: Cron | None) -> None:
    job = await moved.job(command="old")
    [run] = await moved.look()
    await replaced(moved, job.id, command="new", cron=cron)
    await moved.store.requeue(run.id)
    claimed = await moved.store.claim_on(["here"] * 2)
    assert [(each.execution.run, each.spec.command) for each in claimed] == [(1, "old"), (2, "new")][: len(claimed)]
    assert len(claimed) == (1 if cron else 2)


async def test_a_job_replaced_to_run_now_runs_beside_its_running_execution(moved: RunsStore) -> None:
    job = await moved.job(command="old")
    [run] = await moved.look()
    await replaced(moved, job.id, command="new")
    [new] = await moved.look()
    await moved.end(new)
    assert (await moved.store.job(job.id)).state is State.PREPARING
    await moved.end(run)
    assert (await moved.store.job(job.id)).state is State.SUCCEEDED


async def test_a_job_replaced_by_a_schedule_shows_the_run_that_goes_on(moved: RunsStore) -> None:
    job = await moved.job(command="old")
    [run] = await moved.look()
    await replaced(moved, job.id, command="waits beside it")
    await replaced(moved, job.id, cron=HOURLY, command="new")
    assert (await moved.store.job(job.id)).execution.id == run.id
    await moved.end(run)
    [tick] = await moved.pass_time(BEGIN + HOUR)
    assert tick.tick_time == BEGIN + HOUR


async def test_a_final_job_that_is_replaced_starts_anew(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    await moved.store.stop(job.id, grace=None, note="")
    new, _ = await replaced(moved, job.id, cron=HOURLY)
    assert (new.state, new.stop_time, new.outcome) == (State.SCHEDULED, None, None)
    assert (await only(await moved.pass_time(BEGIN + HOUR))).run == 2


async def test_a_schedule_replaced_while_its_job_is_stopping_ticks_on(moved: RunsStore) -> None:
    for command in ("old", "new"):
        job = await moved.job(cron=HOURLY, command="old")
        begin = moved.now
        [run] = await moved.pass_time(begin + HOUR)
        await moved.store.stop(job.id, grace=None, note="")
        replacing, _ = await replaced(moved, job.id, cron=HOURLY, command=command)
        assert (replacing.state, replacing.stop_time) == (State.STOPPING, None)
        await moved.end(run, State.STOPPED)
        assert (await moved.store.job(job.id)).execution.tick_time == begin + 2 * HOUR
        await moved.store.stop(job.id, grace=None, note="")


async def test_a_job_replaced_while_it_is_stopping_has_its_retries(moved: RunsStore) -> None:
    job = await moved.job()
    [run] = await moved.look()
    await moved.store.stop(job.id, grace=None, note="")
    await replaced(moved, job.id, retry=EXACT)
    await moved.end(run, State.STOPPED)
    await moved.end(await only(await moved.look()), State.FAILED)
    assert (await moved.store.job(job.id)).state is State.SCHEDULED


async def test_a_replacement_is_refused_for_another_etag_or_task(moved: RunsStore) -> None:
    job = await moved.job(cron=HOURLY)
    new, _ = await replaced(moved, job.id, etag_of(job), start_in=HOUR)
    with pytest.raises(EtagMismatch, match=f"its etag is '{etag_of(new)}' now"):
        await replaced(moved, job.id, etag_of(job), start_in=2 * HOUR)
    with pytest.raises(InvalidRequest, match="task_id: is 'other'; the job belongs to 'task' for good"):
        await replaced(moved, job.id, task_id="other")
    with pytest.raises(JobNotFound):
        await replaced(moved, new_id(), "r1")
    assert (await moved.store.job(job.id)) == new


# ---- unique keys


def unique(conflict: Conflict = Conflict.UNSPECIFIED) -> Unique:
    return Unique("key", conflict)


async def test_a_second_job_with_the_key_is_refused_until_the_first_has_ended(moved: RunsStore) -> None:
    first = await moved.job(unique=unique())
    with pytest.raises(UniqueKeyTaken, match=f"job {first.id} holds the unique key 'key'"):
        await moved.job(unique=unique())
    assert (await moved.job("other task", unique=unique())).state is State.QUEUED
    await moved.end((await moved.look())[0])
    assert (await moved.job(unique=unique())).id != first.id


async def test_a_second_job_with_the_key_may_use_the_first(moved: RunsStore) -> None:
    first = await moved.job(unique=unique(Conflict.USE_EXISTING))
    spec = replace(SPEC, command="other", unique=unique(Conflict.USE_EXISTING))
    found, existing = await moved.store.enqueue(task_id="task", spec=spec, request_id="", caller_address="")
    assert (found, existing) == (first, True)


async def test_a_job_that_replaces_the_holder_of_its_key_waits_for_its_end(moved: RunsStore) -> None:
    first = await moved.job(unique=unique())
    [run] = await moved.look()
    second = await moved.job(unique=unique(Conflict.REPLACE))
    assert (second.state, second.execution.hold) == (State.SCHEDULED, Hold.UNIQUE_KEY)
    assert await moved.store.job(second.id) == second
    stopping = await moved.store.execution(run.id)
    assert stopping.stop is not None
    assert stopping.stop.note == f"replaced by job {second.id}, which has the same unique key"
    assert await moved.pass_time(BEGIN + HOUR) == []
    await moved.end(run, State.STOPPED)
    assert (await moved.store.job(first.id)).state is State.STOPPED
    assert (await only(await moved.look())).job_id == second.id


async def test_a_job_that_waits_for_its_key_is_replaced_by_the_next_one(moved: RunsStore) -> None:
    await moved.job(unique=unique())
    [run] = await moved.look()
    second, third = await moved.job(unique=unique(Conflict.REPLACE)), await moved.job(unique=unique(Conflict.REPLACE))
    assert (await moved.store.job(second.id)).state is State.STOPPED
    await moved.end(run, State.STOPPED)
    assert (await only(await moved.look())).job_id == third.id


async def test_a_job_that_has_not_started_is_replaced_at_once(moved: RunsStore) -> None:
    first = await moved.job(unique=unique(), start_in=HOUR)
    second = await moved.job(unique=unique(Conflict.REPLACE))
    assert (await moved.store.job(first.id)).state is State.STOPPED
    assert second.state is State.QUEUED


@pytest.mark.parametrize("way", ["pause", "stop", "expire"])
async def test_a_schedule_waits_for_its_unique_key_whatever_happens_to_it(moved: RunsStore, way: str) -> None:
    await moved.job(unique=unique())
    [run] = await moved.look()
    cron, expire_time = replace(HOURLY, overlap=Overlap.ALLOW), BEGIN + 3 * HOUR if way == "expire" else None
    job = await moved.job(unique=unique(Conflict.REPLACE), cron=cron, expire_time=expire_time)
    if way == "pause":
        await moved.store.pause_schedule(job.id)
        assert await moved.pass_time(BEGIN + minutes(150)) == []
        waiting = await moved.store.resume_schedule(job.id)
        assert waiting.execution.tick_time == BEGIN + 3 * HOUR, "ticks during the pause are not made up for"
    elif way == "stop":
        await moved.store.stop_execution(job.execution.id, grace=None, note="")
        waiting = await moved.store.job(job.id)
        assert waiting.execution.tick_time == BEGIN + 2 * HOUR
    else:
        assert await moved.pass_time(BEGIN + 4 * HOUR) == []
        assert (await moved.store.job(job.id)).state is State.EXPIRED
        return
    assert (waiting.execution.hold, waiting.tick_time) == (Hold.UNIQUE_KEY, None)
    assert await moved.pass_time(BEGIN + 5 * HOUR) == []
    await moved.end(run, State.STOPPED)
    assert {each.job_id for each in await moved.look()} == {job.id}


async def test_a_request_id_comes_before_a_unique_key(moved: RunsStore) -> None:
    first = await moved.job(request_id="r", unique=unique(Conflict.REPLACE))
    assert (await moved.job(request_id="r", unique=unique(Conflict.REPLACE))).id == first.id
    assert (await moved.store.job(first.id)).state is State.QUEUED


async def test_a_retry_needs_its_unique_key_to_be_free(moved: RunsStore) -> None:
    first = await moved.job(unique=unique())
    await moved.end(await only(await moved.look()))
    second = await moved.job(unique=unique())
    with pytest.raises(UniqueKeyTaken, match=second.id):
        await moved.store.retry_job(first.id)
    with pytest.raises(UniqueKeyTaken, match=second.id):
        await replaced(moved, first.id, unique=unique(), command="new")


async def test_a_job_is_not_replaced_while_another_waits_for_its_key(moved: RunsStore) -> None:
    first = await moved.job(unique=unique())
    [run] = await moved.look()
    second = await moved.job(unique=unique(Conflict.REPLACE))
    for key in (None, unique(), Unique("other")):
        with pytest.raises(UniqueKeyTaken, match=second.id):
            await replaced(moved, first.id, command="new", unique=key)
    await moved.end(run, State.STOPPED)
    assert (await only(await moved.look())).job_id == second.id
    assert (await replaced(moved, first.id, command="new"))[0].state is State.QUEUED


async def test_a_job_that_waits_for_its_key_may_be_replaced_to_do_without(moved: RunsStore) -> None:
    await moved.job(unique=unique())
    await moved.look()
    waiting = await moved.job(unique=unique(Conflict.REPLACE))
    await replaced(moved, waiting.id, command="new")
    assert (await only(await moved.look())).job_id == waiting.id


async def test_a_job_created_under_the_id_of_its_caller_is_no_other_one(moved: RunsStore) -> None:
    first = await moved.job(unique=unique())
    with pytest.raises(UniqueKeyTaken, match=first.id):
        await replaced(moved, "0191d2c8-0000-7000-8000-000000000001", unique=unique(Conflict.USE_EXISTING))
    second, _ = await replaced(moved, "0191d2c8-0000-7000-8000-000000000001", unique=unique(Conflict.REPLACE))
    assert (second.state, (await moved.store.job(first.id)).state) == (State.QUEUED, State.STOPPED)


# ---- history


async def test_a_job_that_goes_on_keeps_its_newest_executions(tmp_path: Path) -> None:
    moved = RunsStore(tmp_path, asyncio.get_running_loop(), default_history=5)
    long = await moved.job(cron=HOURLY)
    short = await moved.job(cron=HOURLY, history=2)
    for hour in range(1, 12):
        for run in await moved.pass_time(BEGIN + hour * HOUR):
            await moved.end(run)
    excess = await moved.store.excess(limit=100)
    assert await moved.store.delete_excess([each.execution_id for each in excess]) == len(excess) == 7 + 10
    assert [each.run for each in await moved.executions(long.id)] == [8, 9, 10, 11, 12]
    assert [each.run for each in await moved.executions(short.id)] == [11, 12]
    current = await moved.store.job(long.id)
    assert (current.executions, current.runs) == (12, 12)
    assert await moved.store.excess(limit=100) == []
    moved.check()
    moved.close()


# ---- what it costs


async def test_schedules_cost_nothing_while_nothing_is_due(tmp_path_factory: pytest.TempPathFactory) -> None:
    of_few, of_many = [await steps_of_a_look(tmp_path_factory.mktemp("store"), count) for count in (100, 10_000)]
    assert of_many <= of_few + 200


async def steps_of_a_look(directory: Path, count: int) -> int:
    """Steps of SQLite's machine, to the next hundred, of a look for what is due among so many schedules, of which a
    tenth has a run under way."""
    moved = RunsStore(directory, asyncio.get_running_loop())
    schedules = [replace(HOURLY, overlap=Overlap.QUEUE_ONE), Cron("30 5 * * *")]
    await asyncio.gather(
        *(moved.job(f"task-{number % 100}", cron=schedules[number % 10 > 0]) for number in range(count))
    )
    assert len(await moved.pass_time(BEGIN + HOUR)) == count // 10
    steps = 0

    def counted() -> int:
        nonlocal steps
        steps += 100
        return 0

    def watch(db: Connection, handler: Callable[[], int] | None) -> Written[None]:
        db.set_progress_handler(handler, 100)
        return Written(None)

    await moved.store._writer.write(lambda db: watch(db, counted))
    moved.now += minutes(1)
    assert await moved.store.promote(1000) == (False, BEGIN + 2 * HOUR)
    await moved.store._writer.write(lambda db: watch(db, None))
    moved.close()
    return steps


@pytest.mark.parametrize("is_new", [True, False])
async def test_no_statement_of_a_job_is_compiled_again(tmp_path: Path, is_new: bool) -> None:
    moved = RunsStore(tmp_path, asyncio.get_running_loop())
    if not is_new:
        moved.close()
        moved = RunsStore(tmp_path, asyncio.get_running_loop())
    compiled = 0

    def count(*what: object) -> int:
        nonlocal compiled
        compiled += 1
        return 0

    def watch(db: Connection) -> Written[None]:
        # SQLite asks it while it compiles a statement. What was compiled before is compiled once more.
        db.set_authorizer(count)
        return Written(None)

    await moved.store._writer.write(watch)
    for _ in range(3):
        before = compiled
        await moved.job(labels={"a": "b"})
        for execution in await moved.look():
            await moved.end(execution)
    moved.close()
    assert before == compiled > 0


# ---- any history


def ticks_that_ran(executions: Iterable[Execution]) -> Set[datetime]:
    first = [each for each in executions if each.attempt == 1 and each.times.claim_time]
    return {each.tick_time for each in first if each.tick_time}


class RunsMachine(RuleBasedStateMachine):
    """Any history of ends, stops, pauses, downtimes and clock jumps runs each tick once or counts it as skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.moved = RunsStore(Path(self.directory.name), self.loop)
        self.running: list[Execution] = []
        self.finals: dict[str, Execution] = {}
        # The pauses so far: begin, end, and the ticks that had run before; and the current one. A clock that was set
        # back comes by ticks again that have run.
        self.pauses: list[tuple[datetime, datetime, Set[datetime]]] = []
        self.pause: tuple[datetime, Set[datetime]] | None = None
        # Ticks that came during a pause, and whether the schedule was paused before the last step.
        self.paused_ticks, self.was_paused = 0, False

    @initialize(
        expression=st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "30 2,3 * * *"]),
        zone=st.sampled_from(["", "Europe/Berlin"]),
        overlap=st.sampled_from(Overlap),
        catch_up=st.sampled_from(CatchUp),
        window=st.sampled_from([None, timedelta(), minutes(10), 2 * HOUR]),
        jitter=st.sampled_from([None, minutes(0.5), minutes(20)]),
        retry=st.sampled_from([None, EXACT, replace(EXACT, max_retries=1, initial_backoff=minutes(3))]),
        limit=st.sampled_from([0, 0, 0, 4]),
        begin=st.sampled_from([BEGIN, datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 10, 24, 23, tzinfo=UTC)]),
    )
    def enqueue(
        self,
        expression: str,
        zone: str,
        overlap: Overlap,
        catch_up: CatchUp,
        window: timedelta | None,
        jitter: timedelta | None,
        retry: Retry | None,
        limit: int,
        begin: datetime,
    ) -> None:
        cron = Cron(expression, zone, overlap, catch_up, False, window, jitter, max_runs=limit)
        self.moved.now = self.begin = begin
        self.cron, self.ticks = cron, Ticks(cron)
        # Under an id that is the same each time: jitter is made from it.
        job_id = "0191d2c8-0000-7000-8000-000000000001"
        self.job, _ = self._run(replaced(self.moved, job_id, cron=cron, retry=retry))

    def _run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work) if asyncio.iscoroutine(work) else work.result()

    @rule(span=st.sampled_from([SECOND, minutes(1), minutes(5), minutes(61), 5 * HOUR]), awake=st.booleans())
    def time_passes(self, span: timedelta, awake: bool) -> None:
        # Every minute of five hours would take a while.
        span = min(span, minutes(61)) if self.cron.expression == "* * * * *" else span
        self.running += self._run(self.moved.pass_time(self.moved.now + span, awake=awake))

    @rule(back=st.sampled_from([minutes(1), HOUR]))
    def the_clock_jumps_back(self, back: timedelta) -> None:
        self.moved.now -= back

    @rule()
    def the_server_looks(self) -> None:
        self.running += self._run(self.moved.look())

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        state=st.sampled_from([State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.STOPPED, State.LOST]),
    )
    def a_run_ends(self, data: st.DataObject, state: State) -> None:
        execution = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self._run(self.moved.end(execution, state))

    @rule()
    def the_current_execution_is_stopped(self) -> None:
        current = self._run(self.moved.store.job(self.job.id)).execution
        self._run(self.moved.store.stop_execution(current.id, grace=None, note=""))

    @rule()
    def the_schedule_is_paused_or_resumed(self) -> None:
        # One rule, as most examples do without some of the rules.
        with suppress(NoSchedule):
            if self.pause is None:
                self._run(self.moved.store.pause_schedule(self.job.id))
                self.pause = self.moved.now, ticks_that_ran(self._run(self.moved.executions(self.job.id)))
            else:
                self._run(self.moved.store.resume_schedule(self.job.id))
                begin, before = self.pause
                self.pauses.append((begin, self.moved.now, before))
                self.pause = None

    @rule()
    def the_job_is_stopped(self) -> None:
        if len(self.finals) > 3:
            self._run(self.moved.store.stop(self.job.id, grace=None, note=""))

    @invariant()
    def every_tick_ran_once_or_was_skipped(self) -> None:
        if not hasattr(self, "job"):
            return
        job = self._run(self.moved.store.job(self.job.id))
        executions = self._run(self.moved.executions(self.job.id))
        begun = [each for each in executions if each.attempt == 1]
        times = [each.tick_time for each in begun]
        assert len(set(times)) == len(times), "no tick runs twice"
        assert times == sorted(times), "runs are in the order of their ticks"
        assert [each.run for each in begun] == sorted({each.run for each in executions}), "runs are numbered in order"
        assert all(self.ticks.after(time - SECOND) == time for time in times), "a run starts at a tick"
        schedule = job.schedule
        assert schedule is not None
        if schedule.skipped < 90:
            handled = [each for each in begun if each.tick_time <= schedule.handled_time]
            waits = [each for each in handled if each.state is State.SCHEDULED]
            stopped = [each for each in begun if each.outcome and "while it was scheduled" in each.outcome.detail]
            waiting = int(schedule.pending_time is not None) + len(waits) + len(stopped)
            passed = self.ticks.count(self.begin, schedule.handled_time + SECOND, 10_000)
            paused_ticks = passed - schedule.runs - schedule.skipped - waiting
            if not self.was_paused and not schedule.paused:
                assert paused_ticks == self.paused_ticks, "no tick is lost"
            assert paused_ticks >= self.paused_ticks
            self.paused_ticks = paused_ticks
        self.was_paused = schedule.paused
        ran = ticks_that_ran(executions)
        for pause, end, before in self.pauses:
            assert not any(pause < tick <= end for tick in ran - before), "no tick runs that came during a pause"
        if self.cron.overlap is not Overlap.ALLOW:
            open_runs = {each.run for each in executions if not each.state.final}
            assert len(open_runs) <= 1, "one run at a time"
        if self.cron.max_runs:
            assert schedule.runs <= self.cron.max_runs

    @invariant()
    def what_is_final_stays_as_it_is(self) -> None:
        if not hasattr(self, "job"):
            return
        finals = {each.id: each for each in self._run(self.moved.executions(self.job.id)) if each.state.final}
        assert {key: finals[key] for key in self.finals} == self.finals
        self.finals = finals

    @invariant()
    def the_tables_agree(self) -> None:
        self.moved.check()

    def teardown(self) -> None:
        self.moved.close()
        self.loop.close()
        self.directory.cleanup()


TestAnyHistory = RunsMachine.TestCase
TestAnyHistory.settings = settings(max_examples=40, stateful_step_count=30, suppress_health_check=list(HealthCheck))
