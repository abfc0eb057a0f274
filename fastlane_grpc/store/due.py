"""Work that waits for a time: executions that come due or expire, and ticks of schedules during a run.

Each function reads an index from its earliest time on, and handles a bounded number of rows.
"""

import time
from datetime import datetime
from typing import NamedTuple

from fastlane_grpc import schedule
from fastlane_grpc.model import Execution, Hold, Job, State
from fastlane_grpc.schedule import TickAction, expired_from
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.job_state import Rules, follow, insert_next, settle, write_schedule
from fastlane_grpc.store.queries import job_of, open_executions
from fastlane_grpc.store.rows import EXECUTION, execution_from, microseconds_since_epoch, time_from
from fastlane_grpc.store.stops import stop_open_executions

# Other writes wait for one batch. The ticks that one schedule missed can take a millisecond to count.
LONGEST_SECONDS = 0.05


class Promotion(NamedTuple):
    """The result of one batch. `more`: there may be more to do right now. `next_time`: the time of the next work; None
    if nothing waits for a time."""

    more: bool
    next_time: datetime | None


def expire(db: Connection, now: datetime, limit: int, rules: Rules) -> tuple[int, list[Execution]]:
    """End executions whose expire_time has passed as EXPIRED. Return how many these were, and what changed."""
    # Fetched to the end: COMMIT fails while a RETURNING has rows that nobody took.
    rows = db.execute(
        f"""
        UPDATE executions
        SET state = {State.EXPIRED}, state_time = :now, end_time = :now, reason = 0, held = 0,
            detail = 'it had not started by its expire_time, '
                || strftime('%Y-%m-%dT%H:%M:%SZ', expire_time / 1000000, 'unixepoch'),
            out_of_memory = 0, stop_signal = ''
        WHERE seq IN (
            SELECT seq FROM executions INDEXED BY executions_expiring
            WHERE state <= {State.QUEUED} AND expire_time < :now ORDER BY expire_time, seq LIMIT :limit + 0
        )
        RETURNING {EXECUTION}
        """,
        {"now": microseconds_since_epoch(now), "limit": limit},
    ).fetchall()
    expired = [execution_from(row) for row in rows]
    following = [each for execution in expired for each in settle(db, execution, now, rules)]
    return len(expired), [*expired, *following]


def promote(db: Connection, now: datetime, limit: int, rules: Rules) -> tuple[int, list[Execution]]:
    """Queue executions that are due, in the order of their due times. To be called after `expire`. Return how many were
    due, and what changed. A batch that takes long ends early, and counts as full."""
    values = {"now": microseconds_since_epoch(now), "limit": limit}
    found = db.execute(
        f"""
        SELECT {EXECUTION} FROM executions INDEXED BY executions_due
        WHERE state = {State.SCHEDULED} AND held = {Hold.NONE} AND due_time <= :now
        ORDER BY due_time, seq LIMIT :limit + 0
        """,
        values,
    ).fetchall()
    # One by one: tasks get their turns in the order of these statements.
    changed: list[Execution] = []
    until = time.monotonic() + LONGEST_SECONDS
    for row in found:
        if time.monotonic() > until:
            return limit, changed
        execution = execution_from(row)
        if execution.tick_time and execution.attempt == 1:
            changed += _start_run(db, execution, now, rules)
        else:
            changed.append(_queue(db, execution, now))
    return len(found), changed


def handle_ticks(db: Connection, now: datetime, limit: int, rules: Rules) -> tuple[int, list[Execution]]:
    """Handle the ticks of schedules that came during a run. Return how many jobs had one, and what
    changed. A batch that takes long ends early, and counts as full."""
    found = db.execute(
        "SELECT job_id FROM jobs INDEXED BY jobs_tick WHERE tick_time <= ? ORDER BY tick_time LIMIT ? + 0",
        (microseconds_since_epoch(now), limit),
    ).fetchall()
    changed: list[Execution] = []
    until = time.monotonic() + LONGEST_SECONDS
    for (job_id,) in found:
        if time.monotonic() > until:
            return limit, changed
        changed += _handle_tick(db, job_of(db, job_id), now, rules)
    return len(found), changed


def next_time(db: Connection) -> datetime | None:
    """Return the earliest time at which an execution is due or has expired, or a tick is to be handled; None if nothing
    waits for a time."""
    [(due, expiry, tick)] = db.execute(
        f"""
        SELECT
            (SELECT due_time FROM executions INDEXED BY executions_due
             WHERE state = {State.SCHEDULED} AND held = {Hold.NONE} ORDER BY due_time LIMIT 1),
            (SELECT expire_time FROM executions INDEXED BY executions_expiring
             WHERE state <= {State.QUEUED} AND expire_time IS NOT NULL ORDER BY expire_time LIMIT 1),
            (SELECT tick_time FROM jobs INDEXED BY jobs_tick WHERE tick_time IS NOT NULL ORDER BY tick_time LIMIT 1)
        """
    ).fetchall()
    times = [time_from(each) for each in (due, tick) if each is not None]
    times += [] if expiry is None else [expired_from(time_from(expiry))]
    return min(times, default=None)


def _queue(db: Connection, execution: Execution, now: datetime) -> Execution:
    queued = _updated(
        db,
        f"UPDATE executions SET state = {State.QUEUED}, state_time = :now WHERE execution_id = :id",
        {"now": microseconds_since_epoch(now), "id": execution.id},
    )
    follow(db, queued)
    return queued


def _start_run(db: Connection, execution: Execution, now: datetime, rules: Rules) -> list[Execution]:
    """Handle the tick that an execution was scheduled for: queue it, or schedule it for another tick."""
    due = schedule.due(job_of(db, execution.job_id), execution, now)
    write_schedule(db, execution.job_id, due.schedule, due.next_tick_time)
    values = {"now": microseconds_since_epoch(now), "id": execution.id}
    if due.tick_time is None or due.due_time is None:
        missed = _updated(
            db,
            f"""
            UPDATE executions
            SET state = {State.EXPIRED}, state_time = :now, end_time = :now, reason = 0, out_of_memory = 0,
                stop_signal = '', detail = 'the last tick of the schedule was missed, as the server was down'
            WHERE execution_id = :id
            """,
            values,
        )
        return [missed, *settle(db, missed, now, rules)]
    moved = _updated(
        db,
        "UPDATE executions SET tick_time = :tick_time, due_time = :due_time WHERE execution_id = :id",
        {
            "tick_time": microseconds_since_epoch(due.tick_time),
            "due_time": microseconds_since_epoch(due.due_time),
            "id": execution.id,
        },
    )
    return [_queue(db, moved, now) if due.due_time <= now else moved]


def _handle_tick(db: Connection, job: Job, now: datetime, rules: Rules) -> list[Execution]:
    open_ones = open_executions(db, job.id)
    action, tick_time, state, next_tick_time = schedule.tick(job, len(open_ones), now)
    write_schedule(db, job.id, state, next_tick_time)
    if action is TickAction.START:
        return [insert_next(db, job, schedule.Next(now, tick_time=tick_time), now, rules, started=True)]
    if action is TickAction.REPLACE:
        assert job.spec is not None, "read with the job"
        note = f"replaced by the run of {tick_time:%Y-%m-%dT%H:%M:%SZ}"
        return stop_open_executions(db, job.id, now=now, grace=job.spec.grace, note=note, rules=rules)
    return []


def _updated(db: Connection, sql: str, values: dict[str, object]) -> Execution:
    [row] = db.execute(f"{sql} RETURNING {EXECUTION}", values).fetchall()
    return execution_from(row)
