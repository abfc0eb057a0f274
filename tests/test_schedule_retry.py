"""The retry policy: what is tried again, when, how often, and with how much memory."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.model import (
    Execution,
    Jitter,
    JobSpec,
    Limits,
    MemoryGrowth,
    Outcome,
    Reason,
    Retry,
    RetryCause,
    State,
    Times,
    new_id,
)
from fastlane_grpc.schedule.retry import MAX_UNCOUNTED_RETRIES, NextAttempt, backoff, next_attempt

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
EXACT = Retry(3, jitter=Jitter.NONE)


def ended(
    state: State = State.FAILED, reason: Reason = Reason.EXIT_CODE, code: int | None = 1, **more: int
) -> Execution:
    outcome = Outcome(reason, exit_code=code)
    return Execution(new_id(), "j", "t", state, Times(NOW, NOW), NOW, outcome=outcome, **more)  # type: ignore[arg-type]


def following(retry: Retry | None, last: Execution, **spec: object) -> NextAttempt | None:
    return next_attempt(JobSpec("busybox", retry=retry, **spec), last, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "reason", "tried_again"),
    [
        (State.SUCCEEDED, Reason.UNSPECIFIED, False),
        (State.FAILED, Reason.EXIT_CODE, True),
        (State.FAILED, Reason.OUT_OF_MEMORY, True),
        (State.TIMED_OUT, Reason.UNSPECIFIED, True),
        (State.STOPPED, Reason.UNSPECIFIED, False),
        (State.EXPIRED, Reason.UNSPECIFIED, False),
        (State.FAILED, Reason.IMAGE_NOT_FOUND, False),
        (State.FAILED, Reason.IMAGE_DENIED, False),
        (State.FAILED, Reason.IMAGE_NOT_PRESENT, False),
        (State.FAILED, Reason.IMAGE_UNUSABLE, False),
        (State.FAILED, Reason.COMMAND_NOT_FOUND, False),
        (State.FAILED, Reason.COMMAND_NOT_EXECUTABLE, False),
        (State.FAILED, Reason.REFUSED_BY_ENGINE, False),
        (State.FAILED, Reason.REGISTRY_UNAVAILABLE, True),
        (State.FAILED, Reason.INPUT_UNAVAILABLE, False),
        (State.LOST, Reason.CONTAINER_GONE, True),
        (State.LOST, Reason.HOST_GONE, True),
        (State.LOST, Reason.START_UNKNOWN, True),
    ],
)
def test_an_end_is_retried_by_its_state_and_reason(state: State, reason: Reason, tried_again: bool) -> None:
    assert (following(EXACT, ended(state, reason)) is not None) is tried_again
    assert following(None, ended(state, reason)) is None


def test_each_retry_is_counted_and_the_last_one_is_the_last() -> None:
    tries = [following(EXACT, ended(attempt=number + 1, tries=number)) for number in range(4)]
    assert [each and each.tries for each in tries] == [1, 2, 3, None]


def test_a_failure_of_the_machine_uses_no_retry_and_is_bounded() -> None:
    lost = ended(State.LOST, Reason.CONTAINER_GONE, None)
    following_lost = following(EXACT, replace(lost, attempt=5, tries=2))
    assert following_lost is not None
    assert following_lost.tries == 2
    # The retries of the job itself are used up, and still the machine's failure is not the job's.
    assert following(EXACT, replace(lost, attempt=4, tries=3)) is not None
    assert following(EXACT, replace(lost, attempt=MAX_UNCOUNTED_RETRIES + 3, tries=3)) is not None
    assert following(EXACT, replace(lost, attempt=MAX_UNCOUNTED_RETRIES + 4, tries=3)) is None


def test_causes_replace_the_default_ones() -> None:
    policy = replace(EXACT, causes=(RetryCause.IMAGE_NOT_FOUND,))
    assert following(policy, ended(reason=Reason.IMAGE_NOT_FOUND, code=None)) is not None
    assert following(policy, ended()) is None
    assert following(policy, ended(State.TIMED_OUT, Reason.UNSPECIFIED)) is None


def test_exit_codes_select_and_except() -> None:
    only, never = replace(EXACT, exit_codes=(75, 76)), replace(EXACT, except_exit_codes=(2,))
    assert [following(only, ended(code=code)) is not None for code in (1, 75, 76)] == [False, True, True]
    assert [following(never, ended(code=code)) is not None for code in (1, 2)] == [True, False]
    # An exit code says nothing about other causes.
    assert following(only, ended(reason=Reason.OUT_OF_MEMORY, code=137)) is not None
    assert following(only, ended(State.TIMED_OUT, Reason.UNSPECIFIED, 143)) is not None


def test_the_wait_grows_by_the_factor_up_to_the_longest() -> None:
    assert [backoff(EXACT, attempt) for attempt in (1, 2, 3, 4)] == [SECOND, 2 * SECOND, 4 * SECOND, 8 * SECOND]
    own = Retry(9, initial_backoff=3 * SECOND, factor=1.5, max_backoff=5 * SECOND)
    assert [backoff(own, attempt) for attempt in (1, 2, 3, 100)] == [3 * SECOND, 4.5 * SECOND, 5 * SECOND, 5 * SECOND]
    assert backoff(EXACT, 1000) == HOUR
    assert backoff(replace(EXACT, initial_backoff=timedelta()), 100) == timedelta()


@given(st.integers(1, 121), st.floats(1, 100), st.timedeltas(timedelta(), timedelta(days=1)), st.text(max_size=36))
def test_full_jitter_is_between_zero_and_the_backoff(attempt: int, factor: float, first: timedelta, name: str) -> None:
    policy = Retry(100, initial_backoff=first, factor=factor)
    last = replace(ended(attempt=attempt), id=name)
    found = following(policy, last)
    assert found is not None
    assert NOW <= found.due_time <= NOW + backoff(policy, attempt)
    assert following(policy, last) == found


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    policy = Retry(3, initial_backoff=HOUR)
    dues = sorted(each.due_time for _ in range(300) if (each := following(policy, ended())))
    quarters = [sum(NOW + n * HOUR / 4 <= due < NOW + (n + 1) * HOUR / 4 for due in dues) for n in range(4)]
    assert len(set(dues)) == 300
    assert min(quarters) > 30


def test_memory_grows_after_an_end_out_of_memory_up_to_its_ceiling() -> None:
    policy = replace(EXACT, memory_growth=MemoryGrowth(2, 300 << 20))
    limits = Limits(memory_bytes=100 << 20)
    out_of_memory = ended(reason=Reason.OUT_OF_MEMORY, code=137)
    given_bytes = []
    for memory in (0, 200 << 20, 300 << 20):
        found = following(policy, replace(out_of_memory, memory_bytes=memory), limits=limits)
        assert found is not None
        given_bytes.append(found.memory_bytes >> 20)
    assert given_bytes == [200, 300, 300]
    after_exit = following(policy, ended(memory_bytes=200 << 20), limits=limits)
    assert after_exit is not None
    assert after_exit.memory_bytes == 200 << 20, "what an attempt was given is not taken back"


def test_a_retry_that_could_not_start_in_time_does_not_follow() -> None:
    assert following(EXACT, ended(), expire_time=NOW + SECOND) is not None
    assert following(EXACT, ended(), expire_time=NOW + SECOND / 2) is None
