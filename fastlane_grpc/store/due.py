"""Executions that wait for a time: queued when they are due, ended when they are not claimed by their expire_time.

Each function reads an index from its earliest time on, and handles a bounded number of executions.
"""

from datetime import datetime
from typing import NamedTuple

from fastlane_grpc.model import Execution, State
from fastlane_grpc.schedule import expired_from
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import EXECUTION, execution_from, microseconds_since_epoch, time_from


class Promotion(NamedTuple):
    """The result of one batch. `more`: there may be more to do right now. `next_time`: the time of the next work; None
    if no execution waits for a time."""

    more: bool
    next_time: datetime | None


def expire(db: Connection, now: datetime, limit: int) -> list[Execution]:
    """End executions whose expire_time has passed as EXPIRED. Their jobs stay as they are."""
    # Fetched to the end: COMMIT fails while a RETURNING has rows that nobody took.
    rows = db.execute(
        f"""
        UPDATE executions
        SET state = {State.EXPIRED}, state_time = :now, end_time = :now, reason = 0,
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
    return [execution_from(row) for row in rows]


def promote(db: Connection, now: datetime, limit: int) -> list[Execution]:
    """Queue executions that are due, in the order of their due times. To be called after `expire`. Their jobs stay as
    they are."""
    values = {"now": microseconds_since_epoch(now), "limit": limit}
    found = db.execute(
        f"""
        SELECT seq FROM executions INDEXED BY executions_due
        WHERE state = {State.SCHEDULED} AND due_time <= :now
        ORDER BY due_time, seq LIMIT :limit + 0
        """,
        values,
    ).fetchall()
    # One by one: tasks get their turns in the order of these statements.
    return [_promote_one(db, seq, values["now"]) for (seq,) in found]


def _promote_one(db: Connection, seq: int, now: int) -> Execution:
    [row] = db.execute(
        f"UPDATE executions SET state = {State.QUEUED}, state_time = ? WHERE seq = ? RETURNING {EXECUTION}", (now, seq)
    ).fetchall()
    return execution_from(row)


def next_time(db: Connection) -> datetime | None:
    """Return the earliest time at which an execution is due or has expired; None if none waits for a time."""
    [(due, expire)] = db.execute(
        f"""
        SELECT
            (SELECT due_time FROM executions INDEXED BY executions_due
             WHERE state = {State.SCHEDULED} ORDER BY due_time LIMIT 1),
            (SELECT expire_time FROM executions INDEXED BY executions_expiring
             WHERE state <= {State.QUEUED} AND expire_time IS NOT NULL ORDER BY expire_time LIMIT 1)
        """
    ).fetchall()
    times = [] if due is None else [time_from(due)]
    times += [] if expire is None else [expired_from(time_from(expire))]
    return min(times, default=None)
