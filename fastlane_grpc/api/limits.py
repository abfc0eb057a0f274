"""The limits of tasks, for callers: which are valid, and what their executions wait for."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from fastlane_grpc.api.validation import task_id_violations
from fastlane_grpc.errors import Violation
from fastlane_grpc.model import Execution, TaskLimitsChange, Waiting, WaitReason
from fastlane_grpc.store import LimitedTasks

MAX_STARTS = 100_000
MIN_WINDOW, MAX_WINDOW = timedelta(seconds=1), timedelta(days=1)


def update_task_violations(task_id: str, change: TaskLimitsChange) -> Iterator[Violation]:
    yield from task_id_violations(task_id)
    if change.max_running is not None and change.max_running < 0:
        yield Violation("max_running", f"is {change.max_running}; it must be 0 (no limit) or more")
    starts, window = change.max_starts, change.rate_window
    if starts is not None and not 0 <= starts <= MAX_STARTS:
        yield Violation("max_starts", f"is {starts}; it must be from 0 (no limit) to {MAX_STARTS}")
    if window is not None and not MIN_WINDOW <= window <= MAX_WINDOW:
        yield Violation("rate_window", "must be from 1 s to 1 day")
    if starts and window is None:
        yield Violation("rate_window", "is required with max_starts")
    if window is not None and not starts:
        yield Violation("rate_window", "has no meaning without max_starts: set both")


def why_limited(execution: Execution, tasks: LimitedTasks, now: datetime) -> Waiting | None:
    """Return what a queued execution waits for because of its task; None: the limits of the task allow a start."""
    reason = tasks.why_blocked(execution.task_id, now)
    if reason is None:
        return None
    limits = tasks.limits[execution.task_id]
    if reason is WaitReason.TASK_PAUSED:
        return Waiting(reason, "the task is paused", execution.state_time)
    if reason is WaitReason.TASK_LIMIT:
        detail = f"{tasks.running(execution.task_id)} of {limits.max_running} executions of the task run"
        return Waiting(reason, detail, execution.state_time)
    due_time = tasks.next_start(execution.task_id)
    assert due_time, "a task at its rate has one"
    assert limits.rate_window, "set with max_starts"
    detail = (
        f"the task starts {limits.max_starts} executions within {limits.rate_window.total_seconds():g} s at most; "
        f"the next one at {due_time:%Y-%m-%dT%H:%M:%SZ}"
    )
    return Waiting(reason, detail, execution.state_time, due_time=due_time)
