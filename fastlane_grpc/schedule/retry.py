"""The retry policy: whether an attempt is followed by another one, when, and with how much memory."""

from datetime import datetime, timedelta
from typing import NamedTuple

from fastlane_grpc.model import (
    DEFAULT_RETRY_CAUSES,
    Execution,
    Jitter,
    JobSpec,
    Outcome,
    Reason,
    Retry,
    RetryCause,
    State,
)
from fastlane_grpc.schedule.cron import fraction

DEFAULT_INITIAL_BACKOFF = timedelta(seconds=1)
DEFAULT_FACTOR = 2.0
DEFAULT_MAX_BACKOFF = timedelta(hours=1)
# Retries in one run after failures of a host, an engine or a registry, which are not counted.
MAX_UNCOUNTED_RETRIES = 20

_CAUSES = {
    Reason.EXIT_CODE: RetryCause.EXIT_CODE,
    Reason.OUT_OF_MEMORY: RetryCause.OUT_OF_MEMORY,
    Reason.IMAGE_NOT_FOUND: RetryCause.IMAGE_NOT_FOUND,
    Reason.IMAGE_DENIED: RetryCause.IMAGE_DENIED,
}


class NextAttempt(NamedTuple):
    """The next attempt of a run. `tries` counts the failures so far that use up retries."""

    due_time: datetime
    tries: int
    memory_bytes: int


def next_attempt(spec: JobSpec, ended: Execution, now: datetime) -> NextAttempt | None:
    """Return the attempt that follows `ended`, a final execution; None if none follows."""
    policy, outcome = spec.retry, ended.outcome
    if policy is None or outcome is None:
        return None
    if _is_of_the_machine(ended.state, outcome):
        if ended.attempt - 1 - ended.tries >= MAX_UNCOUNTED_RETRIES:
            return None
        tries = ended.tries
    else:
        if ended.tries >= policy.max_retries or not _is_retried(policy, ended.state, outcome):
            return None
        tries = ended.tries + 1
    due_time = now + _wait(policy, ended)
    if spec.expire_time is not None and due_time > spec.expire_time:
        # It could never start, and would hide how the last attempt ended.
        return None
    return NextAttempt(due_time, tries, _memory_bytes(spec, ended, outcome))


def backoff(policy: Retry, attempt: int) -> timedelta:
    """Return the longest wait after this attempt, which is counted from 1."""
    initial = DEFAULT_INITIAL_BACKOFF if policy.initial_backoff is None else policy.initial_backoff
    longest = DEFAULT_MAX_BACKOFF if policy.max_backoff is None else policy.max_backoff
    try:
        return min(initial * (policy.factor or DEFAULT_FACTOR) ** (attempt - 1), longest)
    except OverflowError:
        return longest if initial else initial


def _wait(policy: Retry, ended: Execution) -> timedelta:
    longest = backoff(policy, ended.attempt)
    return longest if policy.jitter is Jitter.NONE else longest * fraction(ended.id)


def _is_of_the_machine(state: State, outcome: Outcome) -> bool:
    """Whether a host, an engine or a registry failed, and not the job."""
    return state is State.LOST or outcome.reason is Reason.REGISTRY_UNAVAILABLE


def _is_retried(policy: Retry, state: State, outcome: Outcome) -> bool:
    cause = RetryCause.TIMED_OUT if state is State.TIMED_OUT else None
    if state is State.FAILED:
        cause = _CAUSES.get(outcome.reason)
    if cause is None or cause not in (policy.causes or DEFAULT_RETRY_CAUSES):
        return False
    if cause is not RetryCause.EXIT_CODE:
        return True
    if policy.exit_codes and outcome.exit_code not in policy.exit_codes:
        return False
    return outcome.exit_code not in policy.except_exit_codes


def _memory_bytes(spec: JobSpec, ended: Execution, outcome: Outcome) -> int:
    """Return the memory limit of the next attempt; 0: that of the spec."""
    growth = spec.retry.memory_growth if spec.retry else None
    if growth is None or outcome.reason is not Reason.OUT_OF_MEMORY:
        return ended.memory_bytes
    last = ended.memory_bytes or spec.limits.memory_bytes
    return max(min(int(last * growth.factor), growth.max_bytes), last)
