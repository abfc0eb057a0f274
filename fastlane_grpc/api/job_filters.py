"""The rules for calls that change the jobs which match a filter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fastlane_grpc.api.validation import MAX_LABEL_FILTERS, task_filter_violations
from fastlane_grpc.errors import Refusal, Violation
from fastlane_grpc.model import State
from fastlane_grpc.store import FINAL_STATES, OPEN_STATES, JobFilter, Order, Store

# Jobs that one call changes.
MAX_JOBS = 1_000
# Jobs that are changed in one transaction: other writes come in between.
_STOPPED_AT_ONCE = 100
# Jobs that one call passes over, as they cannot be retried.
_MAX_SKIPPED = 10_000
# Without states of its own a filter finds these: what has failed.
_FAILED_STATES = (State.FAILED, State.TIMED_OUT, State.LOST)


@dataclass(frozen=True, slots=True)
class StopJobsRequest:
    """A request to stop the jobs that match; without a `grace`, that of each job counts."""

    filter: JobFilter
    note: str = ""
    grace: timedelta | None = None
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class RetryJobsRequest:
    """A request to retry the final jobs that match and ended before `until_time`; None: before now."""

    filter: JobFilter
    until_time: datetime | None = None
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class RetriedJobs:
    """The number of jobs that were retried, the number that could not be, and whether more match."""

    retried: int
    skipped: int
    more: bool


def filter_violations(
    query: JobFilter, states: Sequence[State], *, field: str = "filter", complete: bool = True
) -> Iterator[Violation]:
    """Yield the violations of a filter of jobs that may be in one of `states`. It is not `complete` if a field of the
    request could not be read."""
    if query.is_empty and complete:
        yield Violation(field, "is empty: set at least one of its fields, as it would match every job")
    yield from task_filter_violations(query.task_id, f"{field}.task_id")
    for state in query.states:
        if state not in states:
            yield Violation(
                f"{field}.states", f"has {state.name}; allowed are {', '.join(each.name for each in states)}"
            )
    if len(query.labels) > MAX_LABEL_FILTERS:
        yield Violation(f"{field}.labels", f"has {len(query.labels)} entries; at most {MAX_LABEL_FILTERS} are allowed")
    if len(query.job_ids) > MAX_JOBS:
        yield Violation(f"{field}.job_ids", f"has {len(query.job_ids)} entries; at most {MAX_JOBS} are allowed")


async def stop_matching(store: Store, request: StopJobsRequest) -> tuple[int, bool]:
    """Stop the matching jobs that are not final, oldest first, at most MAX_JOBS. Return their number, and whether more
    match."""
    if request.grace is not None and not request.validate_only:
        await _shorten_grace(store, request)
    query = replace(request.filter, told_to_stop=False)
    stopped, after = 0, None
    while True:
        left = MAX_JOBS - stopped
        # When all are stopped, one more is looked for.
        limit = min(left, MAX_JOBS if request.validate_only else _STOPPED_AT_ONCE) or 1
        page = await store.matching_jobs(query, OPEN_STATES, after=after, limit=limit)
        if page.job_ids and not left:
            return stopped, True
        if request.validate_only:
            stopped += len(page.job_ids)
        elif page.job_ids:
            try:
                stopped += await store.stop_jobs(page.job_ids, query, grace=request.grace, note=request.note)
            except Refusal:
                if stopped:
                    # What was stopped is stopped: an error would say that nothing was. The next call gets the error.
                    return stopped, True
                raise
        if page.rest is None:
            return stopped, False
        after = page.rest


async def _shorten_grace(store: Store, request: StopJobsRequest) -> None:
    """Stop again what was told to stop before: a shorter grace counts."""
    if request.filter.states and State.STOPPING not in request.filter.states:
        return
    query, after = replace(request.filter, told_to_stop=True), None
    while True:
        page = await store.matching_jobs(query, [State.STOPPING], after=after, limit=_STOPPED_AT_ONCE)
        if page.job_ids:
            await store.stop_jobs(page.job_ids, query, grace=request.grace, note=request.note)
        if page.rest is None:
            return
        after = page.rest


async def retry_matching(store: Store, request: RetryJobsRequest, until_time: datetime) -> RetriedJobs:
    """Retry the matching final jobs that ended before `until_time`, in the order of their ends, at most MAX_JOBS."""
    query = replace(request.filter, ended_before=until_time)
    states = query.states or _FAILED_STATES
    retried, skipped, after = 0, 0, None
    while True:
        left = MAX_JOBS - retried
        # When all are retried, one more is looked for.
        limit = min(left, MAX_JOBS if request.validate_only else _STOPPED_AT_ONCE) or 1
        page = await store.matching_jobs(query, states, order=Order.ENDED, after=after, limit=limit)
        if page.job_ids and (not left or skipped >= _MAX_SKIPPED):
            # A call that retries nothing is not to be repeated for ever.
            return RetriedJobs(retried, skipped, more=retried > 0)
        if request.validate_only:
            retried += len(page.job_ids)
        elif page.job_ids:
            try:
                now_retried, now_skipped = await store.retry_jobs(page.job_ids, query)
            except Refusal:
                if retried:
                    # What was retried is retried: an error would say that nothing was. The next call gets the error.
                    return RetriedJobs(retried, skipped, more=True)
                raise
            retried, skipped = retried + now_retried, skipped + now_skipped
        if page.rest is None:
            return RetriedJobs(retried, skipped, more=False)
        after = page.rest


def retry_violations(request: RetryJobsRequest, *, complete: bool) -> Iterator[Violation]:
    yield from filter_violations(request.filter, FINAL_STATES, complete=complete)
