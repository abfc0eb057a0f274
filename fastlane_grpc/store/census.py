"""Counts of what is stored: how many executions are in each state, and what those that wait are waiting for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fastlane_grpc.model import DeliveryState, Hold, State
from fastlane_grpc.pools import NO_POOL, Pools
from fastlane_grpc.store.database import Connection

_UNDELIVERED = (DeliveryState.PENDING, DeliveryState.FAILED)
_UNDER_WAY = (State.PREPARING, State.RUNNING, State.STOPPING)


@dataclass(frozen=True, slots=True)
class Census:
    """The numbers of one moment.

    `states`: executions by state, those that are not final. Of the scheduled ones: `held`, by their hold, and
    `backing_off`, which are retries. Of the queued ones: `blocked`, by their task, which is at a limit or paused, and
    `ready`, by their pool. `skipped_ticks`: the ticks of all schedules that were ever skipped. `log_bytes`: what the
    logs of ended executions take on the disk. `notifications`: those that are not delivered, by state."""

    states: Mapping[State, int]
    held: Mapping[Hold, int]
    backing_off: int
    blocked: Mapping[str, int]
    ready: Mapping[str, int]
    skipped_ticks: int
    log_bytes: int
    notifications: Mapping[DeliveryState, int]


def take_census(db: Connection, pools: Pools) -> Census:
    """Count what is stored, as of one moment.

    A million executions cost as much as ten, with these exceptions: those that are held or back off, the queued ones of
    blocked tasks, and, where pools are configured, all queued ones. Each of these is one step along an index, and so is
    each notification that is not delivered."""
    db.execute("BEGIN")
    try:
        return _census(db, pools)
    finally:
        db.execute("COMMIT")


def _census(db: Connection, pools: Pools) -> Census:
    [(waiting, scheduled, skipped_ticks, log_bytes)] = db.execute(
        "SELECT waiting, scheduled, skipped_ticks, log_bytes FROM kept"
    ).fetchall()
    states = {State.SCHEDULED: scheduled, State.QUEUED: waiting - scheduled} | {
        state: db.execute(_IN_STATE, [state]).fetchall()[0][0] for state in _UNDER_WAY
    }
    blocked = dict(db.execute(_BLOCKED).fetchall())
    return Census(
        states=states,
        held={Hold(hold): count for hold, count in db.execute(_HELD).fetchall()},
        backing_off=db.execute(_BACKING_OFF).fetchall()[0][0],
        blocked=blocked,
        ready=_ready_by_pool(db, pools) if pools else {NO_POOL: states[State.QUEUED] - sum(blocked.values())},
        skipped_ticks=skipped_ticks,
        log_bytes=log_bytes,
        notifications={state: db.execute(_DELIVERIES, [state]).fetchall()[0][0] for state in _UNDELIVERED},
    )


def _ready_by_pool(db: Connection, pools: Pools) -> Mapping[str, int]:
    ready: Counter[str] = Counter()
    for pool, task_id, count in db.execute(_READY).fetchall():
        ready[pools.of_task(task_id) if pool is None else pool] += count
    return ready


# As many as run at a time, at most.
_IN_STATE = "SELECT count(*) FROM executions INDEXED BY executions_state WHERE state = ?"
_DELIVERIES = "SELECT count(*) FROM deliveries INDEXED BY deliveries_state WHERE state = ?"
_HELD = "SELECT held, count(*) FROM executions INDEXED BY executions_held WHERE held > 0 GROUP BY held"
_BACKING_OFF = f"""
    SELECT count(*) FROM executions INDEXED BY executions_backing_off
    WHERE state = {State.SCHEDULED} AND attempt > 1 AND held = {Hold.NONE}
"""
_BLOCKED = f"""
    SELECT task_id, count(*)
    FROM (SELECT task_id FROM task_limits WHERE blocked)
    CROSS JOIN executions INDEXED BY executions_task_state USING (task_id)
    WHERE executions.state = {State.QUEUED} GROUP BY task_id
"""
# A line that is not placed yet has no pool: its task says which one it gets.
_READY = f"""
    SELECT lines.pool, iif(lines.pool IS NULL, lines.task_id, ''), count(*)
    FROM lines CROSS JOIN executions INDEXED BY executions_queued
    ON executions.state = {State.QUEUED} AND executions.priority = lines.priority
        AND executions.task_id = lines.task_id
    WHERE lines.blocked = 0 GROUP BY 1, 2
"""
