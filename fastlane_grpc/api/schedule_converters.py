"""Conversion of schedules, retry policies and unique keys between the model and the contract."""

from datetime import datetime
from enum import IntEnum
from itertools import islice
from typing import TypeVar

from fastlane_grpc.api.times import read_optional_duration, read_optional_time, write_time
from fastlane_grpc.errors import Violation
from fastlane_grpc.model import (
    CatchUp,
    Conflict,
    Cron,
    Jitter,
    Job,
    JobSpec,
    MemoryGrowth,
    Overlap,
    Retry,
    RetryCause,
    ScheduleState,
    State,
    Unique,
)
from fastlane_grpc.schedule import Ticks
from fastlane_grpc.v1 import fastlane_pb2 as pb

E = TypeVar("E", bound=IntEnum)

# The most next ticks of a job in a response.
MOST_NEXT_TIMES = 5


def read_cron(cron: pb.Cron, field: str, violations: list[Violation]) -> Cron:
    return Cron(
        expression=cron.expression,
        time_zone=cron.time_zone,
        overlap=_read_enum(Overlap, cron.overlap, f"{field}.overlap", violations),
        catch_up=_read_enum(CatchUp, cron.catch_up, f"{field}.catch_up", violations),
        paused=cron.paused,
        catch_up_window=read_optional_duration(cron, "catch_up_window", f"{field}.catch_up_window", violations),
        jitter=read_optional_duration(cron, "jitter", f"{field}.jitter", violations),
        begin_time=read_optional_time(cron, "begin_time", f"{field}.begin_time", violations),
        end_time=read_optional_time(cron, "end_time", f"{field}.end_time", violations),
        max_runs=cron.max_runs,
    )


def read_retry(retry: pb.Retry, field: str, violations: list[Violation]) -> Retry:
    causes = [
        _read_enum(RetryCause, number, f"{field}.causes[{index}]", violations)
        for index, number in enumerate(retry.causes)
        if _is_one_of(RetryCause, number, f"{field}.causes[{index}]", violations)
    ]
    growth = retry.memory_growth
    return Retry(
        max_retries=retry.max_retries,
        initial_backoff=read_optional_duration(retry, "initial_backoff", f"{field}.initial_backoff", violations),
        factor=retry.factor,
        max_backoff=read_optional_duration(retry, "max_backoff", f"{field}.max_backoff", violations),
        jitter=_read_enum(Jitter, retry.jitter, f"{field}.jitter", violations),
        causes=tuple(causes),
        exit_codes=tuple(retry.exit_codes),
        except_exit_codes=tuple(retry.except_exit_codes),
        memory_growth=MemoryGrowth(growth.factor, growth.max_bytes) if retry.HasField("memory_growth") else None,
    )


def read_unique(unique: pb.Unique, field: str, violations: list[Violation]) -> Unique:
    return Unique(unique.key, _read_enum(Conflict, unique.conflict, f"{field}.conflict", violations))


def write_policies(message: pb.JobSpec, value: JobSpec) -> None:
    """Write the policies of a spec: its schedule, retries, unique key, history and the stop when unwatched."""
    if value.cron is not None:
        write_cron(message.cron, value.cron)
    if value.retry is not None:
        _write_retry(message.retry, value.retry)
    if value.unique is not None:
        message.unique.key = value.unique.key
        message.unique.conflict = pb.Unique.Conflict.ValueType(value.unique.conflict)
    message.history = value.history
    if value.stop_when_unwatched is not None:
        message.stop_when_unwatched.FromTimedelta(value.stop_when_unwatched)


def write_cron(message: pb.Cron, value: Cron) -> None:
    message.expression = value.expression
    message.time_zone = value.time_zone
    message.overlap = pb.Cron.Overlap.ValueType(value.overlap)
    message.catch_up = pb.Cron.CatchUp.ValueType(value.catch_up)
    message.paused = value.paused
    if value.catch_up_window is not None:
        message.catch_up_window.FromTimedelta(value.catch_up_window)
    if value.jitter is not None:
        message.jitter.FromTimedelta(value.jitter)
    if value.begin_time is not None:
        write_time(message.begin_time, value.begin_time)
    if value.end_time is not None:
        write_time(message.end_time, value.end_time)
    message.max_runs = value.max_runs


def _write_retry(message: pb.Retry, value: Retry) -> None:
    message.max_retries = value.max_retries
    if value.initial_backoff is not None:
        message.initial_backoff.FromTimedelta(value.initial_backoff)
    message.factor = value.factor
    if value.max_backoff is not None:
        message.max_backoff.FromTimedelta(value.max_backoff)
    message.jitter = pb.Retry.Jitter.ValueType(value.jitter)
    message.causes.extend(pb.Retry.RetryCause.ValueType(cause) for cause in value.causes)
    message.exit_codes.extend(value.exit_codes)
    message.except_exit_codes.extend(value.except_exit_codes)
    if value.memory_growth is not None:
        message.memory_growth.factor = value.memory_growth.factor
        message.memory_growth.max_bytes = value.memory_growth.max_bytes


def write_schedule_status(message: pb.ScheduleStatus, job: Job, now: datetime, *, most: int = MOST_NEXT_TIMES) -> None:
    """Write the state of a job's schedule, with at most `most` ticks to come, if the job has a schedule."""
    state = job.schedule
    if state is None:
        return
    message.paused = state.paused
    message.runs = state.runs
    message.skipped_ticks = state.skipped
    if state.last_skipped_time is not None:
        write_time(message.last_skipped_time, state.last_skipped_time)
    message.last_skipped_detail = state.last_skipped_detail
    message.SetInParent()
    if job.spec is None or job.spec.cron is None:
        # The spec was not read, as for lists: the next tick is known without it.
        scheduled = job.execution.tick_time if job.execution.state is State.SCHEDULED else None
        if (time := job.tick_time or scheduled) and not state.paused:
            write_time(message.next_times.add(), time)
        return
    ticks = Ticks(job.spec.cron, expire_time=job.spec.expire_time)
    message.description = ticks.description
    for time in next_times(job, state, job.spec.cron, ticks, now, most):
        write_time(message.next_times.add(), time)


def next_times(job: Job, state: ScheduleState, cron: Cron, ticks: Ticks, now: datetime, most: int) -> list[datetime]:
    """Return the next ticks of the schedule, at most `most`; none if the schedule is over."""
    if state.over or job.state.final or job.stop_time is not None:
        return []
    if cron.max_runs:
        most = max(min(most, cron.max_runs - state.runs), 0)
    return list(islice(ticks.all_after(max(state.handled_time, now)), most))


def _read_enum(enum: type[E], number: int, field: str, violations: list[Violation]) -> E:
    return enum(number) if _is_one_of(enum, number, field, violations) else next(iter(enum))


def _is_one_of(enum: type[IntEnum], number: int, field: str, violations: list[Violation]) -> bool:
    # Enums of protobuf are open: a message may hold any number.
    if number in enum._value2member_map_:
        return True
    violation = Violation(field, f"{number} is not one of {', '.join(each.name for each in enum if each)}")
    if violation not in violations:
        violations.append(violation)
    return False
