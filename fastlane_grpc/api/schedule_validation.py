"""Rules for schedules, retry policies and unique keys. Each function yields a violation for each invalid field."""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from fastlane_grpc.errors import Violation
from fastlane_grpc.model import Cron, JobSpec, MemoryGrowth, Retry, RetryCause, Unique
from fastlane_grpc.schedule import CronInvalid, Ticks

MAX_HISTORY = 10_000
MAX_UNIQUE_KEY = 128
MAX_PREVIEW = 100
MAX_RETRIES = 100
MAX_INITIAL_BACKOFF = timedelta(days=1)
MAX_BACKOFF = timedelta(days=7)
MAX_FACTOR = 100.0
MAX_MEMORY_FACTOR = 16.0
MAX_JITTER = timedelta(days=1)
MAX_CATCH_UP_WINDOW = timedelta(days=366)
MAX_EXIT_CODES = 255
# A client whose connection was cut needs a moment to come back.
MIN_UNWATCHED = timedelta(seconds=5)
MAX_UNWATCHED = timedelta(days=1)
MAX_RUNS = 1_000_000_000
# A later begin or end is probably a mistake, such as milliseconds in place of seconds.
MAX_AHEAD = timedelta(days=3653)


def policy_violations(spec: JobSpec, now: datetime) -> Iterator[Violation]:
    """Yield the violations of the policies of a spec: its schedule, retries, unique key, history and the stop when
    unwatched."""
    if spec.cron is not None:
        for name, value in (("start_in", spec.start_in), ("start_at", spec.start_at)):
            if value is not None:
                yield Violation("spec.cron", f"cannot be set together with spec.{name}; set one of them")
        yield from cron_violations(spec.cron, "spec.cron", now)
    if spec.retry is not None:
        yield from _retry_violations(spec.retry, spec)
    if spec.unique is not None:
        yield from _unique_violations(spec.unique)
    if not 0 <= spec.history <= MAX_HISTORY:
        yield Violation(
            "spec.history", f"is {spec.history}; it must be 0 (the server's default) or from 1 to {MAX_HISTORY}"
        )
    if spec.stop_when_unwatched is not None:
        if spec.cron is not None:
            yield Violation("spec.stop_when_unwatched", "cannot be set together with spec.cron; set one of them")
        if not MIN_UNWATCHED <= spec.stop_when_unwatched <= MAX_UNWATCHED:
            yield Violation("spec.stop_when_unwatched", "must be from 5 s to 1 day")


def cron_violations(cron: Cron, field: str, now: datetime) -> Iterator[Violation]:
    """Yield the violations of a schedule, apart from those of its end: a repeated call may come after that."""
    try:
        Ticks(cron)
    except CronInvalid as error:
        yield Violation(f"{field}.{error.field}", str(error))
    if cron.catch_up_window is not None and not timedelta() <= cron.catch_up_window <= MAX_CATCH_UP_WINDOW:
        yield Violation(f"{field}.catch_up_window", f"must be from 0 s to {MAX_CATCH_UP_WINDOW.days} days")
    if cron.jitter is not None and not timedelta() <= cron.jitter <= MAX_JITTER:
        yield Violation(f"{field}.jitter", "must be from 0 s to 1 day")
    if not 0 <= cron.max_runs <= MAX_RUNS:
        yield Violation(f"{field}.max_runs", f"is {cron.max_runs}; it must be 0 (no limit) or from 1 to {MAX_RUNS}")
    for name, time in (("begin_time", cron.begin_time), ("end_time", cron.end_time)):
        if time is not None and time > now + MAX_AHEAD:
            yield Violation(f"{field}.{name}", f"must be at most {MAX_AHEAD.days} days from now")
    if cron.begin_time is not None and cron.end_time is not None and cron.end_time < cron.begin_time:
        yield Violation(f"{field}.end_time", f"is before {field}.begin_time: the job could never start")


def never_ticks_violations(spec: JobSpec, now: datetime) -> Iterator[Violation]:
    """Yield the violation of a schedule without a tick to come. Only for a job that is new: a repeated call comes later
    than the first one. To be called for a schedule that is valid otherwise."""
    if spec.cron is None or (spec.expire_time is not None and spec.expire_time < now):
        return
    if Ticks(spec.cron, expire_time=spec.expire_time).after(now) is None:
        field = "spec.cron.end_time" if spec.cron.end_time is not None else "spec.expire_time"
        if spec.cron.end_time is None and spec.expire_time is None:
            field = "spec.cron.expression"
        yield Violation(field, "is before the first tick: the job could never start")


def preview_violations(cron: Cron, count: int, now: datetime) -> Iterator[Violation]:
    yield from cron_violations(cron, "cron", now)
    if not 0 <= count <= MAX_PREVIEW:
        yield Violation("count", f"is {count}; it must be from 0 (10 times) to {MAX_PREVIEW}")


def _retry_violations(retry: Retry, spec: JobSpec) -> Iterator[Violation]:
    if not 1 <= retry.max_retries <= MAX_RETRIES:
        yield Violation("spec.retry.max_retries", f"is {retry.max_retries}; it must be from 1 to {MAX_RETRIES}")
    if retry.initial_backoff is not None and not timedelta() <= retry.initial_backoff <= MAX_INITIAL_BACKOFF:
        yield Violation("spec.retry.initial_backoff", "must be from 0 s to 1 day")
    if retry.factor and not (math.isfinite(retry.factor) and 1 <= retry.factor <= MAX_FACTOR):
        yield Violation("spec.retry.factor", f"is {retry.factor}; it must be 0 (2) or from 1 to {MAX_FACTOR:g}")
    if retry.max_backoff is not None and not timedelta() <= retry.max_backoff <= MAX_BACKOFF:
        yield Violation("spec.retry.max_backoff", f"must be from 0 s to {MAX_BACKOFF.days} days")
    elif None not in (retry.max_backoff, retry.initial_backoff) and retry.max_backoff < retry.initial_backoff:  # type: ignore[operator]
        yield Violation("spec.retry.max_backoff", "is less than spec.retry.initial_backoff")
    if len(retry.causes) > len(set(retry.causes)):
        yield Violation("spec.retry.causes", "names a cause more than once")
    for name, codes in (("exit_codes", retry.exit_codes), ("except_exit_codes", retry.except_exit_codes)):
        yield from _exit_code_violations(f"spec.retry.{name}", codes)
        if codes and retry.causes and RetryCause.EXIT_CODE not in retry.causes:
            yield Violation(f"spec.retry.{name}", "has no effect: spec.retry.causes does not include EXIT_CODE")
    if retry.exit_codes and set(retry.exit_codes) <= set(retry.except_exit_codes):
        yield Violation("spec.retry.exit_codes", "has no effect: spec.retry.except_exit_codes has all of these codes")
    if retry.memory_growth is not None:
        yield from _memory_violations(retry.memory_growth, spec)


def _exit_code_violations(field: str, codes: Sequence[int]) -> Iterator[Violation]:
    if len(codes) > MAX_EXIT_CODES:
        yield Violation(field, f"has {len(codes)} entries; at most {MAX_EXIT_CODES} are allowed")
        return
    for index, code in enumerate(codes):
        if not 1 <= code <= 255:
            yield Violation(f"{field}[{index}]", f"is {code}; an exit code of a failure is from 1 to 255")


def _memory_violations(growth: MemoryGrowth, spec: JobSpec) -> Iterator[Violation]:
    field = "spec.retry.memory_growth"
    if not (math.isfinite(growth.factor) and 1 < growth.factor <= MAX_MEMORY_FACTOR):
        yield Violation(
            f"{field}.factor", f"is {growth.factor}; it must be more than 1 and at most {MAX_MEMORY_FACTOR:g}"
        )
    if not spec.limits.memory_bytes:
        yield Violation(field, "needs spec.limits.memory_bytes, from which memory grows")
    elif growth.max_bytes <= spec.limits.memory_bytes:
        yield Violation(
            f"{field}.max_bytes",
            f"is {growth.max_bytes}; it must be more than spec.limits.memory_bytes, {spec.limits.memory_bytes}",
        )


def _unique_violations(unique: Unique) -> Iterator[Violation]:
    if not unique.key:
        yield Violation("spec.unique.key", "is required")
    elif len(unique.key) > MAX_UNIQUE_KEY:
        yield Violation("spec.unique.key", f"has {len(unique.key)} characters; at most {MAX_UNIQUE_KEY} are allowed")
