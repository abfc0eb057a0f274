"""The schedule of a job: pure functions of values, the time among them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.model import Execution, Job, JobSpec, Outcome, Reason, State, Times
from fastlane_grpc.schedule import Final, Following, Next, after, expired_from, first, waiting_state

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 -- `timezones` makes them aware


@given(TIMES)
def test_a_job_without_a_start_time_is_due_at_once(now: datetime) -> None:
    assert first("j", JobSpec("busybox"), now) == Following(Next(now))


@given(TIMES, st.timedeltas(timedelta(), timedelta(days=3653)))
def test_a_job_with_start_in_is_due_that_long_after_the_enqueue(now: datetime, start_in: timedelta) -> None:
    assert first("j", JobSpec("busybox", start_in=start_in), now) == Following(Next(now + start_in))


@given(TIMES, TIMES)
def test_a_job_with_start_at_is_due_then_or_now_if_that_has_passed(now: datetime, start_at: datetime) -> None:
    assert first("j", JobSpec("busybox", start_at=start_at), now) == Following(Next(max(now, start_at)))


@pytest.mark.parametrize("state", [state for state in State if state.final])
def test_a_job_ends_as_its_execution_did(state: State) -> None:
    outcome = Outcome(Reason.EXIT_CODE, "exited with 3", 3)
    ended = Execution("e", "j", "t", state, Times(NOW, NOW), NOW, outcome=outcome)
    job = Job("j", "t", JobSpec("busybox"), ended, NOW, State.RUNNING)
    assert after(job, ended, NOW, others_open=False) == Following(final=Final(state, outcome))


@given(TIMES, TIMES)
def test_an_execution_is_scheduled_exactly_until_it_is_due(due_time: datetime, now: datetime) -> None:
    assert waiting_state(due_time, now) is (State.SCHEDULED if now < due_time else State.QUEUED)


def test_an_execution_has_not_expired_at_its_expire_time_but_right_after_it() -> None:
    assert expired_from(NOW) - NOW == timedelta(microseconds=1)
