"""The stream of WatchJobs: the jobs that match now, then every change of a matching job."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Protocol

from fastlane_grpc.api.log_stream import Send
from fastlane_grpc.api.validation import heartbeat_violations, label_filter_violations, task_filter_violations
from fastlane_grpc.errors import CursorInvalid, ServerStopping, Violation
from fastlane_grpc.model import Job, State, utc_now
from fastlane_grpc.store import ChangePosition, JobQuery, Store
from fastlane_grpc.trust import PRINCIPAL
from fastlane_grpc.watch import HubWatch, UpdateEncoding, WatchFilter, WatchHub

MAX_JOB_IDS = 1000

# Jobs of one page of the snapshot: all that a stream holds whose client does not read.
_PAGE_JOBS = 64
_OPEN = tuple(state for state in State if not state.final)
_JOB_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Version, instance, sequence, time of the change. 18 digits fit in 64 bits.
_CURSOR = re.compile(r"1\.([0-9a-f-]{0,36})\.(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """A request to watch jobs; an empty field does not filter. The stream begins after `cursor`, if there is one."""

    task_id: str = ""
    job_ids: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cursor: str = ""
    heartbeat: timedelta = timedelta(seconds=10)

    @property
    def filter(self) -> WatchFilter:
        return WatchFilter(self.task_id, frozenset(self.job_ids), self.labels, PRINCIPAL.get().tasks)


class WatchEncoding(UpdateEncoding, Protocol):
    """The encoding of a watch by one transport."""

    def found(self, job: Job) -> bytes:
        """Return a job that is sent before `caught_up`."""

    def missing(self, job_id: str) -> bytes:
        """Return the id of a job that does not exist, sent before `caught_up`."""

    def caught_up(self, cursor: str) -> bytes:
        """Return the event after all jobs that matched at the start."""

    def heartbeat(self, cursor: str, now: datetime) -> bytes:
        """Return the event of an interval without any other event."""


def watch_violations(request: WatchRequest) -> Iterator[Violation]:
    if len(request.job_ids) > MAX_JOB_IDS:
        yield Violation("job_ids", f"has {len(request.job_ids)} entries; at most {MAX_JOB_IDS} are allowed")
    else:
        for index, job_id in enumerate(request.job_ids):
            if not _JOB_ID.fullmatch(job_id):
                yield Violation(f"job_ids[{index}]", f"{job_id[:100]!r} is not the id of a job: a UUID in lower case")
    yield from chain(
        task_filter_violations(request.task_id),
        label_filter_violations(request.labels),
        heartbeat_violations(request.heartbeat),
    )


def cursor_text(instance: str, position: ChangePosition) -> str:
    """Return the cursor of a position in the change log of this instance."""
    return f"1.{instance}.{position.sequence}.{position.time_us}"


def position_of(cursor: str, instance: str) -> ChangePosition:
    """Return the position of a cursor. CursorInvalid."""
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise CursorInvalid(f"cursor {cursor[:128]!r} is not one of WatchJobs; watch again without a cursor")
    if match[1] != instance:
        raise CursorInvalid("the cursor is from the server of other data; watch again without a cursor")
    return ChangePosition(int(match[2]), int(match[3]))


async def watch_stream(
    request: WatchRequest, watches: WatchHub, stopping: Callable[[], bool], encoding: WatchEncoding, send: Send
) -> None:
    """Send jobs and their changes, without end. An error ends the stream."""
    store = watches.store
    position = position_of(request.cursor, store.instance) if request.cursor else None
    with watches.watching(request.filter) as watch:
        # Read after the watch was registered: the hub tells every later change.
        newest = await store.newest_change()
        watch.position = newest if position is None else position
        if position is None:
            async for message in _snapshot(request, store, encoding):
                _check(stopping)
                await send(message)
            await _catch_up(watch, await store.newest_change(), stopping, encoding, send)
            await send(encoding.caught_up(cursor_text(store.instance, watch.position)))
        else:
            # Checks the cursor. The message tells a client at once that its stream goes on.
            await store.changes(position, 1)
            await send(encoding.heartbeat(request.cursor, utc_now()))
        await _follow(request, watch, store.instance, stopping, encoding, send)


async def _snapshot(request: WatchRequest, store: Store, encoding: WatchEncoding) -> AsyncIterator[bytes]:
    """Yield the matching jobs: those of `job_ids` that exist, else all that are not final."""
    if request.job_ids:
        job_ids = list(dict.fromkeys(request.job_ids))
        for begin in range(0, len(job_ids), _PAGE_JOBS):
            part = job_ids[begin : begin + _PAGE_JOBS]
            read = await store.read_jobs(part, with_labels=bool(request.labels))
            for job_id in part:
                job = read.jobs.get(job_id)
                if job is None or not PRINCIPAL.get().sees(job.task_id):
                    yield encoding.missing(job_id)
                elif request.filter.wants(job_id, job.task_id) and request.filter.has_labels(
                    read.labels.get(job_id, {})
                ):
                    yield encoding.found(job)
        return
    query = JobQuery(request.task_id, _OPEN, request.labels)
    after: tuple[int, int] | None = None
    while True:
        page = await store.jobs(query, after=after, size=_PAGE_JOBS)
        for job in page.items:
            if PRINCIPAL.get().sees(job.task_id):
                yield encoding.found(job)
        if page.rest is None:
            return
        time, seq = page.rest
        after = int(time), int(seq)


async def _catch_up(
    watch: HubWatch, newest: ChangePosition, stopping: Callable[[], bool], encoding: WatchEncoding, send: Send
) -> None:
    """Send what changed while the snapshot was sent: a job may have ended before its page was read."""
    while watch.position < newest:
        _check(stopping)
        for update in await watch.take():
            await send(encoding.missing(update.job_id) if update.job is None else encoding.found(update.job))


async def _follow(
    request: WatchRequest,
    watch: HubWatch,
    instance: str,
    stopping: Callable[[], bool],
    encoding: WatchEncoding,
    send: Send,
) -> None:
    now = asyncio.get_running_loop().time
    interval = request.heartbeat.total_seconds()
    heartbeat_time = now() + interval
    while True:
        watch.clear()
        _check(stopping)
        updates = await watch.take()
        if updates:
            for update in updates:
                await send(update.encoded(encoding))
            heartbeat_time = now() + interval
        elif now() >= heartbeat_time:
            await send(encoding.heartbeat(cursor_text(instance, watch.position), utc_now()))
            heartbeat_time = now() + interval
        elif not watch.behind:
            await watch.wait(heartbeat_time)


def _check(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise ServerStopping("the server is stopping; call again with the last cursor", retry_seconds=1)
