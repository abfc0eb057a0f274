"""The schedule of a job, decided from values alone: when its first execution is due, and what follows when an execution
has ended.

Nothing here reads a clock or a store: the store calls these functions within the transaction that they decide about.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from fastlane_grpc.model import Execution, Job, JobSpec, Outcome, State


@dataclass(frozen=True, slots=True)
class Final:
    """The job is over: its final state and its outcome."""

    state: State
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Next:
    """The job has one more execution, which may start from `due_time` on."""

    due_time: datetime
    run: int
    attempt: int


# Decides what follows an execution that has ended: called with the job, the execution and the time.
After: TypeAlias = Callable[[Job, Execution, datetime], Final | Next]


def first(spec: JobSpec, now: datetime) -> Next:
    """Return the first execution of a job that is enqueued now. A start time in the past means now."""
    if spec.start_in is not None:
        return Next(now + spec.start_in, 1, 1)
    return Next(max(spec.start_at or now, now), 1, 1)


def after(job: Job, ended: Execution, now: datetime) -> Final | Next:
    """Return what follows `ended`, the final current execution of the job. A job has one run of one attempt, so the job
    ends with it."""
    return settled_by(ended)


def settled_by(ended: Execution) -> Final:
    """Return the end of a job that ends as this execution did."""
    assert ended.outcome is not None, "it is final"
    return Final(ended.state, ended.outcome)


def waiting_state(due_time: datetime, now: datetime) -> State:
    """Return the state of a new execution, which waits for its time or for a slot."""
    return State.SCHEDULED if due_time > now else State.QUEUED


def expired_from(expire_time: datetime) -> datetime:
    """Return the first moment at which an execution with this expire_time has expired: at the expire_time itself it may
    still start."""
    return expire_time + timedelta(microseconds=1)
