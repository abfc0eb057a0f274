"""Limits of tasks: how many executions run at a time, how many start within a window, and pauses.

The table `task_limits` has a row for each task with limits. Triggers count its running executions and block its lines
of the queue. So a claim never looks at a task that is at a limit. The rate is a sliding window: of the starts of a
task, any that are closer together than the window are at most `max_starts`. A start is the claim of a slot; an
execution that goes back to the queue has not started, and its start is taken back.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import NamedTuple

from fastlane_grpc.model import NO_LIMITS, Execution, State, Task, TaskLimits, TaskLimitsChange, WaitReason
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.queries import task_of
from fastlane_grpc.store.rows import (
    microseconds_of,
    microseconds_since_epoch,
    notifications_from,
    notifications_text,
    time_from,
)

# Starts are kept that long, which is the longest window.
_DAY_MICROSECONDS = 86_400_000_000

_RUNNING = f"state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING})"
_MAY_RUN = frozenset({State.PREPARING, State.RUNNING, State.STOPPING})


# SQL: whether the task of a row of `executions` has a rate; NULL: it has no limits.
HAS_RATE = "(SELECT max_starts > 0 FROM task_limits WHERE task_limits.task_id = executions.task_id)"


class LimitsUpdate(NamedTuple):
    """The limits of a task after a change. `running`: the ids of its executions that run."""

    task: Task
    running: Sequence[str]
    next_start_time: datetime | None


def exists(db: Connection, task_id: str) -> bool:
    """Return whether the task has jobs or limits."""
    return bool(db.execute("SELECT 1 FROM tasks WHERE task_id = ?", [task_id]).fetchall())


def update(db: Connection, task_id: str, change: TaskLimitsChange, now: datetime) -> LimitsUpdate:
    """Change the limits of a task, which need not have jobs."""
    limits = change.applied_to(limits_in(db, task_id).get(task_id, NO_LIMITS))
    if limits == NO_LIMITS:
        db.execute("DELETE FROM task_limits WHERE task_id = ?", [task_id])
        db.execute("DELETE FROM tasks WHERE task_id = ? AND jobs = 0", [task_id])
        return LimitsUpdate(_task(db, task_id), (), None)
    running = [
        execution_id
        for (execution_id,) in db.execute(
            f"SELECT execution_id FROM executions INDEXED BY executions_task_state WHERE task_id = ? AND {_RUNNING}",
            [task_id],
        ).fetchall()
    ]
    db.execute(
        """
        INSERT INTO tasks (task_id, create_time, last_enqueue_time, jobs, open_jobs) VALUES (?, 0, 0, 0, 0)
        ON CONFLICT DO NOTHING
        """,
        [task_id],
    )
    db.execute(
        """
        INSERT INTO task_limits (task_id, max_running, paused, max_starts, rate_window, running, notifications)
        VALUES (:task_id, :max_running, :paused, :max_starts, :rate_window, :running, :notifications)
        ON CONFLICT DO UPDATE SET max_running = :max_running, paused = :paused, max_starts = :max_starts,
            rate_window = :rate_window, running = :running, notifications = :notifications
        """,
        {
            "task_id": task_id,
            "max_running": limits.max_running,
            "paused": limits.paused,
            "max_starts": limits.max_starts,
            "rate_window": microseconds_of(limits.rate_window) if limits.rate_window else 0,
            "running": len(running),
            "notifications": notifications_text(limits.notifications),
        },
    )
    if not limits.max_starts:
        db.execute("DELETE FROM task_starts WHERE task_id = ?", [task_id])
    next_start_time = _window(db, task_id, now)
    return LimitsUpdate(_task(db, task_id), running, next_start_time)


def note_start(db: Connection, execution: Execution, now: datetime) -> dict[str, datetime | None]:
    """Count the start of an execution that was just claimed, of a task with a rate. Return the time before which the
    task may not start another one; None: now."""
    time = microseconds_since_epoch(now)
    db.execute("INSERT INTO task_starts VALUES (?, ?, ?)", (execution.id, execution.task_id, time))
    db.execute("DELETE FROM task_starts WHERE task_id = ? AND time <= ?", (execution.task_id, time - _DAY_MICROSECONDS))
    return {execution.task_id: _window(db, execution.task_id, now)}


def take_back_start(db: Connection, execution: Execution, now: datetime) -> dict[str, datetime | None]:
    """Take back the start of an execution that went back to the queue. Return as `note_start`."""
    if not db.execute("DELETE FROM task_starts WHERE execution_id = ?", [execution.id]).rowcount:
        return {}
    return {execution.task_id: _window(db, execution.task_id, now)}


def release_rates(db: Connection, now: datetime, limit: int) -> dict[str, datetime | None]:
    """Let tasks start executions again whose window allows it: at most `limit`. Return as `note_start`."""
    found = db.execute(
        """
        SELECT task_id FROM task_limits INDEXED BY task_limits_next WHERE next_start_time <= :now
        UNION
        SELECT task_id FROM task_limits INDEXED BY task_limits_last
        WHERE next_start_time - rate_window > :now AND next_start_time IS NOT NULL
        LIMIT :limit
        """,
        {"now": microseconds_since_epoch(now), "limit": limit},
    ).fetchall()
    return {task_id: _window(db, task_id, now) for (task_id,) in found}


def limits_in(db: Connection, task_id: str | None = None) -> dict[str, TaskLimits]:
    """Return the limits of all tasks that have some, or of one of them."""
    rows = db.execute(
        f"""
        SELECT task_id, max_running, paused, max_starts, rate_window, notifications FROM task_limits
        {"" if task_id is None else "WHERE task_id = :task_id"}
        """,
        {"task_id": task_id},
    ).fetchall()
    return {
        its_id: TaskLimits(
            max_running,
            bool(paused),
            max_starts,
            timedelta(microseconds=window) if window else None,
            notifications_from(notifications),
        )
        for its_id, max_running, paused, max_starts, window, notifications in rows
    }


class LimitedTasks:
    """The tasks that have limits, as they are after the last commit. Lives on the loop.

    It answers why the executions of a task wait, without a query. Claims do not depend on it."""

    def __init__(self) -> None:
        self.limits: dict[str, TaskLimits] = {}
        self._running: dict[str, set[str]] = {}
        # Of the tasks whose rate allows no start now; and a heap of these times, some of which do not hold any more.
        self._next_start: dict[str, datetime] = {}
        self._times: list[tuple[datetime, str]] = []
        # Called after a change of limits.
        self.on_change: Callable[[], None] = lambda: None

    def load(self, db: Connection) -> None:
        """Read what is stored."""
        self.limits = limits_in(db)
        if not self.limits:
            return
        self._running = {task_id: set() for task_id in self.limits}
        for task_id, execution_id in db.execute(
            f"SELECT task_id, execution_id FROM executions INDEXED BY executions_state WHERE {_RUNNING}"
        ):
            if task_id in self._running:
                self._running[task_id].add(execution_id)
        self.rates_changed(
            {
                task_id: time_from(time)
                for task_id, time in db.execute(
                    "SELECT task_id, next_start_time FROM task_limits WHERE next_start_time IS NOT NULL"
                )
            }
        )

    @property
    def next_start_time(self) -> datetime | None:
        """The earliest time at which a task may start an execution again; None if no task waits for a time."""
        while self._times and self._next_start.get(self._times[0][1]) != self._times[0][0]:
            heappop(self._times)
        return self._times[0][0] if self._times else None

    def has_rate(self, task_id: str) -> bool:
        return task_id in self.limits and self.limits[task_id].max_starts > 0

    def running(self, task_id: str) -> int:
        """Count the executions of a task with limits that run."""
        return len(self._running.get(task_id, ()))

    def why_blocked(self, task_id: str, now: datetime) -> WaitReason | None:
        """Return why the task may start no execution; None: its limits allow a start."""
        limits = self.limits.get(task_id)
        if limits is None:
            return None
        if limits.paused:
            return WaitReason.TASK_PAUSED
        if 0 < limits.max_running <= self.running(task_id):
            return WaitReason.TASK_LIMIT
        next_start = self.next_start(task_id)
        return WaitReason.TASK_RATE if next_start and next_start > now else None

    def next_start(self, task_id: str) -> datetime | None:
        """Return the time before which the rate of the task allows no start; None: it allows one now."""
        return self._next_start.get(task_id)

    def updated(self, update: LimitsUpdate) -> None:
        """Note a change of limits."""
        task_id = update.task.id
        if update.task.limits == NO_LIMITS:
            self.limits.pop(task_id, None)
            self._running.pop(task_id, None)
        else:
            self.limits[task_id] = update.task.limits
            self._running[task_id] = set(update.running)
        self.rates_changed({task_id: update.next_start_time})
        self.on_change()

    def rates_changed(self, times: Mapping[str, datetime | None]) -> None:
        """Note the times before which tasks may start no execution."""
        for task_id, time in times.items():
            if time is None:
                self._next_start.pop(task_id, None)
            elif self._next_start.get(task_id) != time:
                self._next_start[task_id] = time
                heappush(self._times, (time, task_id))

    def on_commit(self, executions: Iterable[Execution]) -> None:
        """Note changes of executions, in order."""
        if not self._running:
            return
        for execution in executions:
            if (running := self._running.get(execution.task_id)) is not None:
                if execution.state in _MAY_RUN:
                    running.add(execution.id)
                else:
                    running.discard(execution.id)


def _task(db: Connection, task_id: str) -> Task:
    return task_of(db, task_id) if exists(db, task_id) else Task(task_id, None, None, 0, 0)


def _window(db: Connection, task_id: str, now: datetime) -> datetime | None:
    """Find out anew before which time the rate of the task allows no start, and write it; None: it allows one now."""
    time = microseconds_since_epoch(now)
    [(max_starts, window)] = db.execute(
        "SELECT max_starts, rate_window FROM task_limits WHERE task_id = ?", [task_id]
    ).fetchall()
    # After the clock was set back, a start may be in the future. It then counts for one window more.
    db.execute("UPDATE task_starts SET time = ? WHERE task_id = ? AND time > ?", (time, task_id, time))
    found = (
        db.execute(
            "SELECT time FROM task_starts WHERE task_id = ? ORDER BY time DESC LIMIT 1 OFFSET ?",
            (task_id, max_starts - 1),
        ).fetchall()
        if max_starts
        else []
    )
    next_start = found[0][0] + window if found and found[0][0] + window > time else None
    db.execute("UPDATE task_limits SET next_start_time = ? WHERE task_id = ?", (next_start, task_id))
    return None if next_start is None else time_from(next_start)
