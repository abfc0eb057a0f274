"""The log stream of a job: the logs of its executions, one after another, in the order of runs and attempts.

Between two ExecutionBegins, the messages are those of the execution's own stream, from the same cache."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastlane_grpc.api.log_stream import (
    ExecutionBegins,
    Heartbeat,
    JobLogEnded,
    LogRequest,
    Send,
    StreamEncoding,
    WaitingOf,
    log_stream,
)
from fastlane_grpc.errors import CursorOfAnotherJob, CursorTooOld, ExecutionNotFound, ServerStopping
from fastlane_grpc.logs import Cursor, StartPoint, Tails
from fastlane_grpc.model import Execution, Job, Source, utc_now
from fastlane_grpc.store import Store
from fastlane_grpc.wakeup import Wakeup


@dataclass(frozen=True, slots=True)
class JobLogRequest:
    """A request for the logs of a job. Without sources it asks for all of them.

    The stream starts at `cursor`, else at `start_point`, else at the first attempt of the newest run."""

    job_id: str
    cursor: str = ""
    start_point: StartPoint | None = None
    sources: Sequence[Source] = ()
    follow: bool = True
    text: bool = False
    heartbeat: timedelta = timedelta(seconds=10)


class JobWatches:
    """Wakes those who wait for a change of a job. Lives on the loop."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[Wakeup]] = defaultdict(set)

    def changed(self, executions: Sequence[Execution]) -> None:
        """Wake those who watch the jobs of these executions."""
        if self._waiting:
            for job_id in {each.job_id for each in executions}:
                for wakeup in self._waiting.get(job_id, ()):
                    wakeup.set()

    def notify_all(self) -> None:
        """Wake everybody, to find that the server is stopping."""
        for wakeups in self._waiting.values():
            for wakeup in wakeups:
                wakeup.set()

    @contextmanager
    def watching(self, job_id: str) -> Iterator[Wakeup]:
        """Watch a job within the context."""
        wakeup = Wakeup()
        self._waiting[job_id].add(wakeup)
        try:
            yield wakeup
        finally:
            self._waiting[job_id].discard(wakeup)
            if not self._waiting[job_id]:
                del self._waiting[job_id]


async def job_log_stream(
    request: JobLogRequest,
    store: Store,
    tails: Tails,
    watches: JobWatches,
    waiting_of: WaitingOf,
    stopping: Callable[[], bool],
    encoding: StreamEncoding,
    send: Send,
) -> None:
    """Send the logs of a job; return after JobLogEnded. An error interrupts the stream."""
    job = await store.job(request.job_id)
    assert job.spec is not None, "read with the job"
    max_attempts = 1 + (job.spec.retry.max_retries if job.spec.retry else 0)
    stream = _JobStream(request, store, watches, stopping, encoding, send)
    following, log_request = await _start(request, store)
    while True:
        cursor = Cursor.parse(log_request.cursor, following.id)
        waiting = await waiting_of(following)
        await stream.tell(ExecutionBegins(cursor, following, waiting, max_attempts))
        cursor = await log_stream(log_request, store, tails, waiting_of, stopping, encoding, send)
        found = await stream.after(following, cursor)
        if isinstance(found, Job):
            await stream.tell(JobLogEnded(cursor, found))
            return
        following, log_request = found, _log_request(request, found)


class _JobStream:
    """What a reader of a job needs between two executions."""

    def __init__(
        self,
        request: JobLogRequest,
        store: Store,
        watches: JobWatches,
        stopping: Callable[[], bool],
        encoding: StreamEncoding,
        send: Send,
    ) -> None:
        self._request = request
        self._store = store
        self._watches = watches
        self._stopping = stopping
        self._encoding = encoding
        self._send = send

    async def tell(self, event: ExecutionBegins | Heartbeat | JobLogEnded) -> None:
        await self._send(self._encoding.event(event, utc_now()))

    async def after(self, ended: Execution, cursor: Cursor) -> Execution | Job:
        """Return the execution that follows this one; or the job, if nothing does. Waits until either is known."""
        now, heartbeat_seconds = asyncio.get_running_loop().time, self._request.heartbeat.total_seconds()
        heartbeat_time = now() + heartbeat_seconds
        with self._watches.watching(ended.job_id) as wakeup:
            while True:
                # Cleared before the look: a change that arrives after it is not lost.
                wakeup.clear()
                if self._stopping():
                    raise ServerStopping("the server is stopping; call again with the last cursor", retry_seconds=1)
                # Read before the executions: a job becomes final after its last execution was inserted.
                job = await self._store.job(ended.job_id)
                following = await self._store.execution_after(ended.job_id, ended.run, ended.attempt)
                if following is not None:
                    return following
                if job.state.final or not self._request.follow:
                    return job
                if now() >= heartbeat_time:
                    await self.tell(Heartbeat(cursor))
                    heartbeat_time = now() + heartbeat_seconds
                await wakeup.wait(heartbeat_time - now())


async def _start(request: JobLogRequest, store: Store) -> tuple[Execution, LogRequest]:
    """Return the execution at which the stream starts, and what to ask of its log."""
    if request.cursor:
        return await _resumed(request, store)
    if request.start_point is None:
        execution = await store.first_to_read(request.job_id)
        return execution, _log_request(request, execution)
    since_ns, found = request.start_point.since_ns, None
    if since_ns is not None:
        found = await store.first_ended_since(request.job_id, _time(since_ns))
    if found is None:
        found = await store.newest_started(request.job_id)
    return found, _log_request(request, found, start_point=request.start_point)


async def _resumed(request: JobLogRequest, store: Store) -> tuple[Execution, LogRequest]:
    execution_id = Cursor.execution_of(request.cursor)
    try:
        execution = await store.execution(execution_id)
    except ExecutionNotFound:
        raise CursorTooOld(
            f"execution {execution_id} of the cursor is not kept any more; begin again without a cursor"
        ) from None
    if execution.job_id != request.job_id:
        raise CursorOfAnotherJob(
            f"the cursor is of job {execution.job_id}, not of {request.job_id}", job_id=execution.job_id
        )
    return execution, _log_request(request, execution, cursor=request.cursor)


def _log_request(
    request: JobLogRequest, execution: Execution, *, cursor: str = "", start_point: StartPoint | None = None
) -> LogRequest:
    return LogRequest(
        execution.id, cursor, start_point, request.sources, request.follow, request.text, request.heartbeat
    )


def _time(since_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=since_ns // 1_000)
