"""The store and time: what is due is queued, what has expired ends, and the end of an execution never loses what
follows it."""

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fastlane_grpc.errors import QueueFull, RequestIdReused
from fastlane_grpc.model import Execution, Job, JobSpec, LogTotals, Outcome, Reason, Source, State, new_id
from fastlane_grpc.schedule import Following, Next, after, settled_by
from fastlane_grpc.store import JobQuery, PruneQuery, Quota, Store
from fastlane_grpc.store.database import open_for_reading, open_for_writing
from fastlane_grpc.store.due import expire, handle_ticks, next_time, promote
from fastlane_grpc.store.job_state import After, Rules
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from tests.new_database import open_database
from tests.store_checks import check_jobs, check_lines

SPEC = JobSpec("busybox", command="true")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(seconds=10)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
ALL = 1000


def thrice(job: Job, ended: Execution, now: datetime, **others: bool) -> Following:
    """Three attempts of a run, a minute apart, after whatever end; what was stopped or has expired is not tried
    again."""
    over = {State.SUCCEEDED, State.STOPPED, State.EXPIRED}
    if job.stop_time or ended.state in over or ended.attempt == 3:
        return Following(final=settled_by(ended))
    return Following(Next(now + timedelta(minutes=1), ended.run, ended.attempt + 1))


class MovedStore:
    """A store whose clock the test moves."""

    def __init__(
        self, directory: Path, loop: asyncio.AbstractEventLoop, after: After = after, quota: Quota | None = None
    ) -> None:
        self.now = BEGIN
        self.path = directory / "fastlane.db"
        self.commits: list[Sequence[Execution]] = []
        writer = Writer(open_database(self.path), self.path, loop=loop, on_commit=self.commits.append)
        self.store = Store(
            writer, Readers(self.path, loop=loop), instance="", now=lambda: self.now, rules=Rules(after), quota=quota
        )
        self._reading = open_for_reading(self.path)

    async def enqueue(self, task_id: str = "task", **spec: Any) -> Execution:
        return (await self.job(task_id, **spec)).execution

    async def job(self, task_id: str = "task", request_id: str = "", **spec: Any) -> Job:
        job, _ = await self.store.enqueue(
            task_id=task_id, spec=replace(SPEC, **spec), request_id=request_id, caller_address=""
        )
        return job

    async def claim(self, places: int = ALL) -> list[str]:
        return [assignment.execution.id for assignment in await self.store.claim_on(["here"] * places)]

    async def claim_one(self) -> str:
        [execution_id] = await self.claim(1)
        return execution_id

    async def start(self, execution_id: str) -> Execution | None:
        return await self.store.starting(
            execution_id,
            container_id="c",
            handle="{}",
            image_digest="",
            pull_time=None,
            container_time=None,
        )

    async def finish(self, execution_id: str, state: State = State.FAILED) -> Execution:
        return await self.store.finish(
            execution_id, state=state, outcome=Outcome(Reason.UNSPECIFIED, f"as {state.name}"), logs=()
        )

    async def state(self, execution_id: str) -> State:
        return (await self.store.execution(execution_id)).state

    def rows(self, sql: str) -> list[Any]:
        return self._reading.execute(sql).fetchall()

    def close(self) -> None:
        self._reading.close()
        self.store.close()

    def check(self) -> None:
        check_lines(self.rows)
        check_jobs(self.rows)


@pytest.fixture
async def moved(tmp_path: Path) -> AsyncIterator[MovedStore]:
    moved = MovedStore(tmp_path, asyncio.get_running_loop())
    yield moved
    moved.check()
    moved.close()


@pytest.fixture
async def retrying(tmp_path: Path) -> AsyncIterator[MovedStore]:
    moved = MovedStore(tmp_path, asyncio.get_running_loop(), thrice)
    yield moved
    moved.check()
    moved.close()


# ---- due times


async def test_a_job_that_is_not_due_is_scheduled_and_not_claimed(moved: MovedStore) -> None:
    job = await moved.job(start_in=HOUR)
    assert (job.state, job.execution.state, job.execution.times.due_time) == (
        State.SCHEDULED,
        State.SCHEDULED,
        BEGIN + HOUR,
    )
    assert await moved.store.job(job.id) == job
    assert await moved.claim() == []
    moved.now += HOUR - MICROSECOND
    assert await moved.store.promote(ALL) == (False, BEGIN + HOUR)
    assert await moved.claim() == []
    moved.now += MICROSECOND
    assert await moved.store.promote(ALL) == (False, None)
    promoted = await moved.store.job(job.id)
    assert (promoted.state, promoted.execution.state, promoted.execution.state_time) == (
        State.QUEUED,
        State.QUEUED,
        BEGIN + HOUR,
    )
    assert moved.commits[-1] == [promoted.execution]
    assert await moved.claim() == [job.execution.id]


async def test_a_start_time_that_has_passed_means_now(moved: MovedStore) -> None:
    execution = await moved.enqueue(start_at=BEGIN - HOUR)
    assert (execution.state, execution.times.due_time) == (State.QUEUED, BEGIN)
    assert await moved.claim() == [execution.id]


async def test_the_same_request_with_start_in_is_the_same_job_whenever_it_comes(moved: MovedStore) -> None:
    job = await moved.job(request_id="once", start_in=HOUR)
    moved.now += 2 * HOUR
    assert await moved.job(request_id="once", start_in=HOUR) == job
    for other in ({"start_in": 2 * HOUR}, {"start_in": HOUR, "expire_time": BEGIN}, {"start_at": BEGIN + HOUR}, {}):
        with pytest.raises(RequestIdReused):
            await moved.job(request_id="once", **other)


async def test_what_is_due_is_queued_in_the_order_of_its_due_times(moved: MovedStore) -> None:
    third, first, second = [await moved.enqueue(start_in=seconds * SECOND) for seconds in (30, 10, 20)]
    moved.now += 25 * SECOND
    late = await moved.enqueue()
    moved.now += HOUR
    assert not (await moved.store.promote(ALL)).more
    assert await moved.claim() == [first.id, second.id, late.id, third.id]


async def test_tasks_take_turns_in_the_order_in_which_they_were_due(moved: MovedStore) -> None:
    executions = [
        await moved.enqueue(task, start_in=seconds * SECOND)
        for task, seconds in (("c", 3), ("a", 1), ("b", 2), ("a", 4))
    ]
    moved.now += HOUR
    await moved.store.promote(ALL)
    by_due_time = sorted(executions, key=lambda each: each.times.due_time)
    assert await moved.claim() == [each.id for each in by_due_time]


async def test_promotion_goes_in_bounded_batches_oldest_first(moved: MovedStore) -> None:
    executions = [await moved.enqueue(start_in=(10 - number) * SECOND) for number in range(10)]
    moved.now += HOUR
    batches = []
    while (promotion := await moved.store.promote(4)).more:
        batches.append([each.id for each in moved.commits[-1]])
    batches.append([each.id for each in moved.commits[-1]])
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [each for batch in batches for each in batch] == [each.id for each in reversed(executions)]
    assert promotion.next_time is None


async def test_a_requeued_execution_goes_before_what_was_due_later(moved: MovedStore) -> None:
    early = await moved.enqueue(start_in=SECOND)
    moved.now += 2 * SECOND
    late = await moved.enqueue()
    await moved.store.promote(ALL)
    assert await moved.claim(1) == [early.id]
    await moved.store.requeue(early.id)
    assert await moved.store.ahead(late.id, ALL) == 1
    assert await moved.claim() == [early.id, late.id]


async def test_what_is_scheduled_counts_against_the_quota(tmp_path: Path) -> None:
    moved = MovedStore(tmp_path, asyncio.get_running_loop(), quota=Quota(tmp_path, 2, 0))
    await moved.enqueue(start_in=HOUR)
    await moved.enqueue()
    with pytest.raises(QueueFull):
        await moved.enqueue(start_in=HOUR)
    moved.now += HOUR
    await moved.store.promote(ALL)
    with pytest.raises(QueueFull):
        await moved.enqueue()
    await moved.claim(1)
    await moved.enqueue()
    moved.check()
    moved.close()


async def test_a_clock_that_jumps_back_takes_back_no_promotion(moved: MovedStore) -> None:
    soon, later = await moved.enqueue(start_in=HOUR), await moved.enqueue(start_in=3 * HOUR)
    moved.now += 2 * HOUR
    await moved.store.promote(ALL)
    moved.now -= 5 * HOUR
    assert await moved.store.promote(ALL) == (False, BEGIN + 3 * HOUR)
    assert [await moved.state(each.id) for each in (soon, later)] == [State.QUEUED, State.SCHEDULED]
    assert await moved.claim() == [soon.id]


async def test_lists_find_what_is_scheduled_and_what_has_expired_by_state(moved: MovedStore) -> None:
    scheduled, expired = await moved.job(start_in=HOUR), await moved.job(expire_time=BEGIN)
    await moved.job()
    moved.now += SECOND
    await moved.store.promote(ALL)
    for job, state in ((scheduled, State.SCHEDULED), (expired, State.EXPIRED)):
        page = await moved.store.jobs(JobQuery(states=[state], with_spec=True), size=10)
        assert [(each.id, each.state) for each in page.items] == [(job.id, state)]


# ---- expiry


async def test_an_execution_may_be_claimed_at_its_expire_time_and_not_after_it(moved: MovedStore) -> None:
    at_the_time = await moved.enqueue(expire_time=BEGIN + SECOND)
    moved.now += SECOND
    assert await moved.claim() == [at_the_time.id]
    late = await moved.enqueue(expire_time=moved.now)
    moved.now += MICROSECOND
    # Nobody has looked for what has expired: the claim itself passes over it.
    assert await moved.claim() == []
    await moved.store.promote(ALL)
    assert await moved.state(late.id) is State.EXPIRED
    assert await moved.state(at_the_time.id) is State.PREPARING


async def test_a_claim_passes_over_what_has_expired_and_takes_the_next(moved: MovedStore) -> None:
    expired = [await moved.enqueue(task, expire_time=BEGIN) for task in "aab"]
    good = [await moved.enqueue(task) for task in "abc"]
    moved.now += SECOND
    assert await moved.claim() == [each.id for each in good]
    await moved.store.promote(ALL)
    assert {await moved.state(each.id) for each in expired} == {State.EXPIRED}


async def test_an_expired_execution_ends_its_job_with_an_outcome_that_says_why(moved: MovedStore) -> None:
    job = await moved.job(expire_time=BEGIN + HOUR)
    moved.now += HOUR + MICROSECOND
    assert await moved.store.promote(ALL) == (False, None)
    ended = await moved.store.job(job.id)
    assert (ended.state, ended.execution.state, ended.end_time) == (State.EXPIRED, State.EXPIRED, moved.now)
    assert (
        ended.outcome
        == ended.execution.outcome
        == Outcome(detail="it had not started by its expire_time, 2026-01-01T01:00:00Z")
    )
    assert moved.commits[-1] == [ended.execution]


async def test_what_was_due_and_expired_during_a_downtime_is_never_queued(moved: MovedStore) -> None:
    expired = await moved.enqueue(start_in=SECOND, expire_time=BEGIN + HOUR)
    good = await moved.enqueue(start_in=2 * SECOND, expire_time=BEGIN + 3 * HOUR)
    moved.now += 2 * HOUR
    assert (await moved.store.promote(1)).more
    assert not any(each.id == expired.id and each.state is State.QUEUED for commit in moved.commits for each in commit)
    await moved.store.promote(ALL)
    assert [await moved.state(each.id) for each in (expired, good)] == [State.EXPIRED, State.QUEUED]


async def test_a_scheduled_execution_expires_before_it_is_due(moved: MovedStore) -> None:
    execution = await moved.enqueue(start_in=3 * HOUR, expire_time=BEGIN + HOUR)
    assert (await moved.store.promote(ALL)).next_time == BEGIN + HOUR + MICROSECOND
    moved.now += 2 * HOUR
    await moved.store.promote(ALL)
    assert await moved.state(execution.id) is State.EXPIRED


async def test_no_start_is_granted_after_the_expire_time(moved: MovedStore) -> None:
    in_time, late = await moved.enqueue(expire_time=BEGIN + HOUR), await moved.enqueue(expire_time=BEGIN + HOUR)
    assert await moved.claim() == [in_time.id, late.id]
    moved.now += HOUR
    assert await moved.start(in_time.id) is not None
    moved.now += MICROSECOND
    assert await moved.start(late.id) is None
    assert (await moved.store.execution(late.id)).starting is False
    await moved.store.requeue(late.id)
    await moved.store.promote(ALL)
    assert [await moved.state(each.id) for each in (in_time, late)] == [State.PREPARING, State.EXPIRED]


async def test_what_has_started_does_not_expire(moved: MovedStore) -> None:
    execution = await moved.enqueue(expire_time=BEGIN + HOUR)
    await moved.claim()
    await moved.start(execution.id)
    await moved.store.running(execution.id, start_time=moved.now)
    moved.now += 2 * HOUR
    assert await moved.store.promote(ALL) == (False, None)
    assert (await moved.finish(execution.id, State.SUCCEEDED)).state is State.SUCCEEDED


async def test_a_requeued_execution_keeps_the_size_of_its_log_when_it_ends_in_the_queue(moved: MovedStore) -> None:
    logs = (LogTotals(Source.SYSTEM, 12, 0, 34),)
    expires, stopped = await moved.enqueue(expire_time=BEGIN + HOUR), await moved.enqueue()
    assert len(await moved.claim()) == 2
    for each in (expires, stopped):
        requeued = await moved.store.requeue(each.id, logs=logs, log_bytes=4096)
        # What a log holds is told when it is final.
        assert (requeued.state, requeued.logs) == (State.QUEUED, ())
    assert (await moved.store.retention_totals()).oldest_log_time is None
    moved.now += 2 * HOUR
    await moved.store.promote(ALL)
    await moved.store.stop(stopped.job_id, grace=GRACE, note="")
    ended = [await moved.store.execution(each.id) for each in (expires, stopped)]
    assert [(each.state, each.logs) for each in ended] == [(State.EXPIRED, logs), (State.STOPPED, logs)]
    found = await moved.store.oldest(PruneQuery(moved.now, logs_only=True), limit=ALL)
    assert [(each.execution_id, each.log_bytes) for each in found] == [(expires.id, 4096), (stopped.id, 4096)]


# ---- stops


@pytest.mark.parametrize("by_job", [True, False])
async def test_a_stop_without_a_grace_takes_the_one_of_the_job(moved: MovedStore, by_job: bool) -> None:
    job = await moved.job(stop_grace=7 * SECOND)
    await moved.claim()
    if by_job:
        await moved.store.stop(job.id, grace=None, note="")
    else:
        await moved.store.stop_execution(job.execution.id, grace=None, note="")
    stop = (await moved.store.execution(job.execution.id)).stop
    assert stop is not None
    assert stop.grace == 7 * SECOND


@pytest.mark.parametrize("wait", [None, HOUR])
async def test_a_stop_of_a_job_that_waits_ends_it_at_once(moved: MovedStore, wait: timedelta | None) -> None:
    job = await moved.job(start_in=wait)
    moved.now += SECOND
    stopped = await moved.store.stop(job.id, grace=GRACE, note="not needed")
    where = "scheduled" if wait else "queued"
    assert (stopped.state, stopped.end_time, stopped.stop_time) == (State.STOPPED, moved.now, moved.now)
    assert stopped.outcome == stopped.execution.outcome == Outcome(detail=f"stopped while it was {where}: not needed")
    moved.now += 2 * HOUR
    assert await moved.store.promote(ALL) == (False, None)
    assert await moved.claim() == []
    assert await moved.store.stop(job.id, grace=GRACE, note="again") == stopped


@pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED, State.PREPARING, State.RUNNING])
async def test_a_stop_of_the_job_wins_over_what_would_follow(retrying: MovedStore, state: State) -> None:
    job = await retrying.job(start_in=HOUR if state is State.SCHEDULED else None)
    if state > State.QUEUED:
        await retrying.claim()
    if state is State.RUNNING:
        await retrying.start(job.execution.id)
        await retrying.store.running(job.execution.id, start_time=retrying.now)
    stopped = await retrying.store.stop(job.id, grace=GRACE, note="")
    assert stopped.state is (State.STOPPED if state <= State.QUEUED else State.STOPPING)
    if not stopped.state.final:
        await retrying.finish(job.execution.id, State.FAILED)
    ended = await retrying.store.job(job.id)
    assert (ended.state.final, ended.executions, ended.stop_time) == (True, 1, BEGIN)


async def test_a_stop_during_the_wait_for_the_next_attempt_ends_the_job(retrying: MovedStore) -> None:
    job = await retrying.job()
    await retrying.finish(await retrying.claim_one())
    waiting = await retrying.store.job(job.id)
    assert (waiting.state, waiting.execution.attempt) == (State.SCHEDULED, 2)
    stopped = await retrying.store.stop(job.id, grace=GRACE, note="")
    assert (stopped.state, stopped.execution.id, stopped.executions) == (State.STOPPED, waiting.execution.id, 2)


# ---- what follows an end


async def test_a_job_has_the_state_of_its_execution_at_each_transition(moved: MovedStore) -> None:
    job = await moved.job(start_in=HOUR)
    execution_id, store = job.execution.id, moved.store
    moved.now += HOUR

    async def is_now(state: State) -> None:
        now = await store.job(job.id)
        assert (now.state, now.execution.state, now.outcome, now.end_time) == (state, state, None, None)

    await is_now(State.SCHEDULED)
    await store.promote(ALL)
    await is_now(State.QUEUED)
    await moved.claim()
    await is_now(State.PREPARING)
    await store.requeue(execution_id)
    await is_now(State.QUEUED)
    await moved.claim()
    await moved.start(execution_id)
    await store.revoked(execution_id)
    await is_now(State.PREPARING)
    await moved.start(execution_id)
    await store.running(execution_id, start_time=moved.now)
    await is_now(State.RUNNING)
    await store.time_out(execution_id, grace=GRACE)
    await is_now(State.STOPPING)
    await store.stop(job.id, grace=SECOND, note="")
    await is_now(State.STOPPING)
    ended = await moved.finish(execution_id, State.TIMED_OUT)
    final = await store.job(job.id)
    assert (final.state, final.outcome, final.end_time) == (State.TIMED_OUT, ended.outcome, moved.now)


async def test_the_next_execution_is_kept_by_the_commit_that_ends_the_last_one(retrying: MovedStore) -> None:
    job = await retrying.job(priority=7, expire_time=BEGIN + 9 * HOUR)
    for attempt in (1, 2):
        execution_id = await retrying.claim_one()
        ended = await retrying.finish(execution_id)
        now = await retrying.store.job(job.id)
        assert (now.state, now.outcome, now.end_time, now.executions) == (State.SCHEDULED, None, None, attempt + 1)
        following = now.execution
        assert retrying.commits[-1] == [ended, following]
        assert (following.run, following.attempt, following.task_id) == (1, attempt + 1, "task")
        assert following.times.create_time == retrying.now
        assert following.times.due_time == retrying.now + timedelta(minutes=1)
        assert following.expire_time == BEGIN + 9 * HOUR
        assert retrying.rows("SELECT DISTINCT priority FROM executions") == [(7,)]
        retrying.check()
        retrying.now += timedelta(minutes=1)
        await retrying.store.promote(ALL)
    await retrying.finish(await retrying.claim_one(), State.LOST)
    final = await retrying.store.job(job.id)
    assert (final.state, final.outcome, final.end_time) == (State.LOST, Outcome(detail="as LOST"), retrying.now)
    assert final.executions == 3


async def test_a_job_with_more_to_come_is_not_pruned_and_its_end_is_its_own(retrying: MovedStore) -> None:
    job = await retrying.job()
    await retrying.finish(await retrying.claim_one())
    old = PruneQuery(retrying.now + 9 * HOUR)
    assert await retrying.store.oldest(old, limit=9) == []
    assert (await retrying.store.retention_totals()).oldest_job_time is None
    assert await retrying.store.delete_jobs([job.id]) == 0
    retrying.now += HOUR
    await retrying.store.promote(ALL)
    second = await retrying.finish(await retrying.claim_one(), State.SUCCEEDED)
    assert (await retrying.store.retention_totals()).oldest_job_time == retrying.now
    found = await retrying.store.oldest(old, limit=1)
    assert {each.execution_id for each in found} == {job.execution.id, second.id}
    assert await retrying.store.oldest(PruneQuery(retrying.now - SECOND), limit=9) == []
    assert await retrying.store.delete_jobs([job.id]) == 1
    assert retrying.rows("SELECT count(*) FROM executions") == [(0,)]


async def test_a_second_end_of_an_execution_changes_neither_it_nor_what_follows(retrying: MovedStore) -> None:
    job = await retrying.job()
    ended = await retrying.finish(await retrying.claim_one())
    waiting = await retrying.store.job(job.id)
    retrying.now += SECOND
    assert await retrying.finish(ended.id, State.SUCCEEDED) == ended
    assert (await retrying.store.stop_execution(ended.id, grace=GRACE, note="")) == ended
    assert await retrying.store.job(job.id) == waiting


KILLED_AT_EACH_STATEMENT = """
import asyncio, os, shutil, signal, sys
from datetime import datetime, timedelta, UTC
from pathlib import Path
from fastlane_grpc.model import JobSpec, Outcome, State
from fastlane_grpc.schedule import Following, Next
from fastlane_grpc.store import Store
from fastlane_grpc.store.job_state import Rules
from fastlane_grpc.store.database import open_for_writing
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer, Written

NOW = datetime(2026, 1, 1, tzinfo=UTC)

def opened(directory):
    path = directory / "fastlane.db"
    loop = asyncio.new_event_loop()
    writer = Writer(open_for_writing(path), path, loop=loop, on_commit=lambda executions: None)
    return writer, Store(
        writer,
        Readers(path, loop=loop),
        instance="",
        now=lambda: NOW,
        rules=Rules(lambda job, ended, now, **others: Following(Next(now + timedelta(hours=1), 1, 2))),
    )

def die_at(number):
    left = number
    def on_statement(statement):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return on_statement

def prepare(directory):
    directory.mkdir()
    writer, store = opened(directory)
    job, _ = store.enqueue(task_id="task", spec=JobSpec("busybox"), request_id="", caller_address="").result()
    store.claim_on(["here"]).result()
    store.close()
    return job.execution.id

def end(directory, execution_id, number):
    writer, store = opened(directory)
    writer.write(lambda db: Written(db.set_trace_callback(die_at(number)))).result()
    store.finish(execution_id, state=State.FAILED, outcome=Outcome(), logs=()).result()

root = Path(sys.argv[1])
number, killed = 0, True
while killed:
    number += 1
    directory = root / str(number)
    child = os.fork()
    if child == 0:
        end(directory, prepare(directory), number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
"""


def test_an_end_and_what_follows_it_are_both_kept_or_neither_whenever_it_is_killed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_AT_EACH_STATEMENT, str(tmp_path)], check=True, timeout=60)
    seen = []
    for number in range(1, len(list(tmp_path.iterdir())) + 1):
        db = open_for_writing(tmp_path / str(number) / "fastlane.db")
        check_jobs(lambda sql, db=db: db.execute(sql).fetchall())  # type: ignore[misc]
        seen.append([state for (state,) in db.execute("SELECT state FROM executions ORDER BY seq").fetchall()])
        db.close()
    assert len(seen) > 6, "it was killed at each of a number of statements"
    before, afterwards = [State.PREPARING], [State.FAILED, State.SCHEDULED]
    assert seen == [before] * seen.count(before) + [afterwards] * seen.count(afterwards)
    assert seen.count(before) > 5
    assert seen[-1] == afterwards, "in the last round it was not killed"


END_UNTIL_KILLED = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from fastlane_grpc.model import JobSpec, Outcome, State, utc_now
from fastlane_grpc.schedule import Following, Next, settled_by
from fastlane_grpc.store.database import open_for_writing
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from fastlane_grpc.store import Store
from fastlane_grpc.store.job_state import Rules

def after(job, ended, now, **others):
    if ended.attempt == 3:
        return Following(final=settled_by(ended))
    return Following(Next(now + timedelta(microseconds=ended.attempt - 1), 1, ended.attempt + 1))

async def main():
    path = Path(sys.argv[1]) / "fastlane.db"
    loop = asyncio.get_running_loop()
    writer = Writer(open_for_writing(path), path, loop=loop, on_commit=lambda executions: None)
    store = Store(writer, Readers(path, loop=loop), instance="", rules=Rules(after))

    async def caller(task_id):
        while True:
            await store.enqueue(task_id=task_id, spec=JobSpec("busybox"), request_id="", caller_address="")
            await store.promote(256)
            for assignment in await store.claim_on(["here"] * 4):
                await store.finish(assignment.execution.id, state=State.FAILED, outcome=Outcome(), logs=())
                print(assignment.execution.id, flush=True)

    await asyncio.gather(*(caller(f"task-{number}") for number in range(8)))

asyncio.run(main())
"""


def test_no_execution_is_forgotten_by_kill_9(tmp_path: Path) -> None:
    ended: list[str] = []
    for round_number in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", END_UNTIL_KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout
            ended += [running.stdout.readline().strip() for _ in range(30 + 71 * round_number)]
            running.kill()
        db = open_for_writing(tmp_path / "fastlane.db")

        def rows(sql: str, db: Any = db) -> list[Any]:
            return db.execute(sql).fetchall()  # type: ignore[no-any-return]

        check_jobs(rows)
        check_lines(rows)
        final = {execution_id for (execution_id,) in rows("SELECT execution_id FROM executions WHERE state >= 6")}
        assert set(ended) <= final
        assert rows("SELECT count(*) FROM jobs WHERE state >= 6 AND executions < 3") == [(0,)], (
            "each has had all of its attempts"
        )
        db.close()
    assert len(ended) > 300


# ---- what it costs


def test_what_is_due_is_found_at_the_same_cost_however_much_waits(tmp_path: Path) -> None:
    of_few, of_many = (steps_of_a_look(tmp_path / str(count), count) for count in (200, 20_000))
    assert of_many <= of_few + 200


def steps_of_a_look(directory: Path, count: int) -> int:
    """Steps of SQLite's machine, to the next hundred, of a look that finds ten that are due and ten that have expired
    among so many."""
    directory.mkdir()
    db = open_for_writing(directory / "fastlane.db")
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("BEGIN")
    db.executemany(
        """
        INSERT INTO executions
            (execution_id, job_id, task_id, priority, run, attempt, state, state_time, create_time, due_time,
             expire_time)
        VALUES (?, '', 'task', 0, 1, 1, ?, 0, 0, ?, ?)
        """,
        [(new_id(), 1 + number % 2, number, None if number % 4 == 1 else number + count) for number in range(count)],
    )
    db.execute("UPDATE executions SET job_id = execution_id")
    db.execute(
        """
        INSERT INTO jobs
            (job_id, execution_id, task_id, state, spec, create_time, request_id, request_digest, caller_address)
        SELECT job_id, execution_id, task_id, state, x'7b7d', 0, '', x'', '' FROM executions WHERE seq <= 20
        """
    )
    # 20 of the first are due, and ten have expired: those that wait for a slot, and those that wait for their time.
    db.execute("UPDATE executions SET expire_time = 1 WHERE seq <= 10")
    hundreds = 0

    def counted() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=20)
    db.set_progress_handler(counted, 100)
    found = (
        expire(db, now, ALL, Rules())[0],
        promote(db, now, ALL, Rules())[0],
        handle_ticks(db, now, ALL, Rules())[0],
    )
    next_time(db)
    db.set_progress_handler(None, 0)
    db.execute("ROLLBACK")
    db.close()
    assert found == (10, 6, 0)
    return 100 * hundreds


# ---- any order of calls, at any time


@dataclass
class Modelled:
    """An execution, as a model without a database has it."""

    job_id: str
    task_id: str
    priority: int
    number: int
    due_time: datetime
    expire_time: datetime | None
    state: State
    attempt: int = 1
    starting: bool = False

    def expired(self, now: datetime) -> bool:
        return self.expire_time is not None and self.expire_time < now

    @property
    def place(self) -> tuple[datetime, int]:
        return self.due_time, self.number


@dataclass
class PlainSchedule:
    """The rules written down without a database. Of each priority `turns` has the tasks that have something queued,
    next one first."""

    executions: dict[str, Modelled] = field(default_factory=dict)
    jobs: dict[str, State] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    turns: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def line(self, priority: int, task_id: str) -> list[str]:
        queued = [
            (each.place, execution_id)
            for execution_id, each in self.executions.items()
            if each.state is State.QUEUED and (each.priority, each.task_id) == (priority, task_id)
        ]
        return [execution_id for _, execution_id in sorted(queued)]

    def move(self, execution_id: str, state: State) -> None:
        one = self.executions[execution_id]
        one.state = state
        turns = self.turns[one.priority]
        if state is State.QUEUED and one.task_id not in turns:
            turns.append(one.task_id)
        if one.task_id in turns and not self.line(one.priority, one.task_id):
            turns.remove(one.task_id)
        if not state.final:
            self.jobs[one.job_id] = state

    def take(self, places: int, now: datetime) -> list[str]:
        taken: list[str] = []
        while len(taken) < places and (execution_id := self._next(now)):
            one = self.executions[execution_id]
            turns = self.turns[one.priority]
            turns.remove(one.task_id)
            turns.append(one.task_id)
            self.move(execution_id, State.PREPARING)
            taken.append(execution_id)
        return taken

    def _next(self, now: datetime) -> str | None:
        for priority in sorted(self.turns, reverse=True):
            for task_id in self.turns[priority]:
                for execution_id in self.line(priority, task_id):
                    if not self.executions[execution_id].expired(now):
                        return execution_id
        return None


class ScheduleMachine(RuleBasedStateMachine):
    """Any order of calls, with a clock that jumps both ways, leaves what a plain model says."""

    executions = Bundle("executions")

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.moved = MovedStore(Path(self.directory.name), asyncio.new_event_loop(), thrice)
        self.store = self.moved.store
        self.model = PlainSchedule()
        self.final: dict[str, tuple[Any, ...]] = {}

    @property
    def now(self) -> datetime:
        return self.moved.now

    @rule(
        target=executions,
        task=st.sampled_from("ab"),
        priority=st.integers(0, 1),
        wait=st.sampled_from([None, 0, 5, 5, 70]),
        expire=st.sampled_from([None, None, -1, 0, 3, 60]),
    )
    def enqueue(self, task: str, priority: int, wait: int | None, expire: int | None) -> str:
        spec = JobSpec(
            "busybox",
            priority=priority,
            start_in=None if wait is None else wait * SECOND,
            expire_time=None if expire is None else self.now + expire * SECOND,
        )
        job, _ = self.store.enqueue(task_id=task, spec=spec, request_id="", caller_address="").result(10)
        self._added(job.execution, priority, spec.expire_time)
        return job.execution.id

    @rule(seconds=st.sampled_from([-3600, -10, -1, 0, 1, 5, 61, 3600]))
    def jump(self, seconds: int) -> None:
        self.moved.now += seconds * SECOND

    @rule(limit=st.integers(1, 4))
    def promote(self, limit: int) -> None:
        waiting = {
            execution_id: each for execution_id, each in self.model.executions.items() if each.state <= State.QUEUED
        }
        expired = sorted(
            (each.expire_time, each.number, execution_id)
            for execution_id, each in waiting.items()
            if each.expired(self.now)
        )[:limit]
        due = [
            (each.place, execution_id)
            for execution_id, each in waiting.items()
            if each.state is State.SCHEDULED and each.due_time <= self.now and not each.expired(self.now)
        ]
        promotion = self.store.promote(limit).result(10)
        for *_, execution_id in expired:
            self._ended(execution_id, State.EXPIRED)
        queued = [execution_id for _, execution_id in sorted(due)[: limit - len(expired)]]
        for execution_id in queued:
            self.model.move(execution_id, State.QUEUED)
        assert promotion.more == (len(expired) + len(queued) == limit)

    @rule(places=st.integers(0, 3))
    def claim(self, places: int) -> None:
        claimed = [assignment.execution.id for assignment in self.store.claim_on(["here"] * places).result(10)]
        assert claimed == self.model.take(places, self.now)

    @rule(execution_id=executions)
    def requeue(self, execution_id: str) -> None:
        execution_id = self._current(execution_id)
        one = self.model.executions[execution_id]
        self.store.requeue(execution_id).result(10)
        if one.state is State.PREPARING and not one.starting:
            self.model.move(execution_id, State.QUEUED)

    @rule(execution_id=executions)
    def start(self, execution_id: str) -> None:
        execution_id = self._current(execution_id)
        one = self.model.executions[execution_id]
        granted = self.store.starting(
            execution_id,
            container_id="c",
            handle="{}",
            image_digest="",
            pull_time=None,
            container_time=None,
        ).result(10)
        assert (granted is not None) == (
            one.state is State.PREPARING and not one.starting and not one.expired(self.now)
        )
        if granted:
            one.starting = True
            self.store.running(execution_id, start_time=self.now).result(10)
            self.model.move(execution_id, State.RUNNING)

    @rule(execution_id=executions, state=st.sampled_from([state for state in State if state.final]))
    def finish(self, execution_id: str, state: State) -> None:
        execution_id = self._current(execution_id)
        was_final = self.model.executions[execution_id].state.final
        self.store.finish(execution_id, state=state, outcome=Outcome(), logs=()).result(10)
        if not was_final:
            self._ended(execution_id, state)

    @rule(execution_id=executions)
    def stop(self, execution_id: str) -> None:
        execution_id = self._current(execution_id)
        one = self.model.executions[execution_id]
        self.store.stop(one.job_id, grace=GRACE, note="").result(10)
        self.model.stopped.add(one.job_id)
        self._stopped(execution_id)

    @rule(execution_id=executions)
    def stop_execution(self, execution_id: str) -> None:
        self.store.stop_execution(execution_id, grace=GRACE, note="").result(10)
        self._stopped(execution_id)

    def _stopped(self, execution_id: str) -> None:
        state = self.model.executions[execution_id].state
        if state <= State.QUEUED:
            self._ended(execution_id, State.STOPPED)
        elif not state.final:
            self.model.move(execution_id, State.STOPPING)

    def _current(self, execution_id: str) -> str:
        """The newest execution of the job of this one."""
        job_id = self.model.executions[execution_id].job_id
        return [each for each, one in self.model.executions.items() if one.job_id == job_id][-1]

    def _added(self, execution: Execution, priority: int, expire_time: datetime | None) -> None:
        number = len(self.model.executions)
        self.model.executions[execution.id] = Modelled(
            *(execution.job_id, execution.task_id, priority, number, execution.times.due_time, expire_time),
            *(execution.state, execution.attempt),
        )
        self.model.move(execution.id, execution.state)

    def _ended(self, execution_id: str, state: State) -> None:
        one = self.model.executions[execution_id]
        self.model.move(execution_id, state)
        again = (
            state not in {State.SUCCEEDED, State.STOPPED, State.EXPIRED}
            and one.attempt < 3
            and one.job_id not in self.model.stopped
        )
        if again:
            job = self.store.job(one.job_id).result(10)
            assert (job.execution.run, job.execution.attempt) == (1, one.attempt + 1)
            assert job.execution.times.due_time == self.now + timedelta(minutes=1)
            self._added(job.execution, one.priority, one.expire_time)
        else:
            self.model.jobs[one.job_id] = state

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        self.moved.check()
        assert dict(self.moved.rows("SELECT execution_id, state FROM executions")) == {
            execution_id: each.state for execution_id, each in self.model.executions.items()
        }
        assert dict(self.moved.rows("SELECT job_id, state FROM jobs")) == self.model.jobs

    @invariant()
    def what_is_final_stays_as_it_is(self) -> None:
        columns = "state, reason, detail, end_time"
        ended = [
            *self.moved.rows(f"SELECT execution_id, {columns} FROM executions WHERE state >= 6"),
            *self.moved.rows(f"SELECT job_id, {columns} FROM jobs WHERE state >= 6"),
        ]
        now = {execution_id: tuple(rest) for execution_id, *rest in ended}
        assert {execution_id: now.get(execution_id) for execution_id in self.final} == self.final
        self.final = now

    def teardown(self) -> None:
        self.moved.close()
        self.directory.cleanup()


ScheduleMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAnyOrderOfCallsAtAnyTime = pytest.mark.slow(ScheduleMachine.TestCase)
