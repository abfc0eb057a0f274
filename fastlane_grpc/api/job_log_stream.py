"""The log stream of a job: the logs of its executions, one after another, in the order of runs and attempts.

Between two ExecutionBegins, the messages are those of the execution's own stream, from the same cache."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

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
from fastlane_grpc.errors import CursorAhead, CursorOfAnotherJob, ExecutionNotFound, ServerStopping
from fastlane_grpc.logs import Cursor, Message, StartPoint, Tails
from fastlane_grpc.model import Cause, Execution, Job, Source, utc_now
from fastlane_grpc.record import Gap
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
    stream = _JobStream(request, store, watches, waiting_of, stopping, encoding, send)
    job = await store.job(request.job_id)
    following, log_request = await stream.start()
    while True:
        announce = partial(stream.announce, _max_retries(job))
        try:
            cursor = await log_stream(log_request, store, tails, waiting_of, stopping, encoding, send, announce)
        except ExecutionNotFound:
            # Deleted after it was found, with the oldest of the job's history: the next one that is kept follows.
            cursor = Cursor(following.id)
        job, found = await stream.after(following, cursor)
        if found is None:
            await stream.tell(JobLogEnded(cursor, job))
            return
        following, log_request = found, _log_request(request, found)


class _JobStream:
    """The context of one reader of a job's log, used between two executions."""

    def __init__(
        self,
        request: JobLogRequest,
        store: Store,
        watches: JobWatches,
        waiting_of: WaitingOf,
        stopping: Callable[[], bool],
        encoding: StreamEncoding,
        send: Send,
    ) -> None:
        self._request = request
        self._store = store
        self._watches = watches
        self._waiting_of = waiting_of
        self._stopping = stopping
        self._encoding = encoding
        self._send = send

    async def tell(self, event: ExecutionBegins | Heartbeat | JobLogEnded) -> None:
        await self._send(self._encoding.event(event, utc_now()))

    async def announce(self, max_retries: int, cursor: Cursor, execution: Execution) -> None:
        max_attempts = _max_attempts(execution, max_retries)
        await self.tell(ExecutionBegins(cursor, execution, await self._waiting_of(execution), max_attempts))

    async def start(self) -> tuple[Execution, LogRequest]:
        """Return the execution at which the stream starts, and what to ask of its log."""
        request, store = self._request, self._store
        if request.cursor:
            return await self._resumed(Cursor.parse(request.cursor, Cursor.execution_of(request.cursor)))
        if request.start_point is None:
            execution = await store.first_to_read(request.job_id)
            return execution, _log_request(request, execution)
        since_ns, found = request.start_point.since_ns, None
        if since_ns is not None:
            found = await store.first_ended_since(request.job_id, _time(since_ns))
        if found is None:
            found = await store.newest_started(request.job_id)
        return found, _log_request(request, found, start_point=request.start_point)

    async def _resumed(self, cursor: Cursor) -> tuple[Execution, LogRequest]:
        job_id = self._request.job_id
        try:
            execution = await self._store.execution(cursor.execution_id)
        except ExecutionNotFound:
            return await self._past(cursor)
        if execution.job_id != job_id:
            raise CursorOfAnotherJob(
                f"the cursor is of job {execution.job_id}, not of {job_id}", job_id=execution.job_id
            )
        return execution, _log_request(self._request, execution, cursor=str(cursor))

    async def _past(self, cursor: Cursor) -> tuple[Execution, LogRequest]:
        """Return the oldest kept execution that is newer than that of the cursor, which is not kept any more. What the
        reader may have missed of that one is a gap in each source."""
        execution = await self._store.execution_newer_than(self._request.job_id, cursor.execution_id)
        if execution is None:
            raise CursorAhead(
                f"the cursor is of execution {cursor.execution_id}, which is newer than all executions of the job;"
                " begin again without one"
            )
        start = Cursor(execution.id)
        for source in sorted(set(self._request.sources) or set(Source)):
            gap = Gap(source, cursor.offsets[source], None, Cause.PRUNED, cursor.sequence + 1, 0)
            await self._send(self._encoding.message(Message(start, gap=gap)))
        return execution, _log_request(self._request, execution)

    async def after(self, ended: Execution, cursor: Cursor) -> tuple[Job, Execution | None]:
        """Return the job and the execution that follows this one; None: nothing follows. Waits until that is
        known."""
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
                    return job, following
                if job.state.final or not self._request.follow:
                    return job, None
                if now() >= heartbeat_time:
                    await self.tell(Heartbeat(cursor))
                    heartbeat_time = now() + heartbeat_seconds
                await wakeup.wait(heartbeat_time - now())


def _max_retries(job: Job) -> int:
    assert job.spec is not None, "read with the job"
    return job.spec.retry.max_retries if job.spec.retry else 0


def _max_attempts(execution: Execution, max_retries: int) -> int:
    """Return how many attempts the run may have: those so far, and the retries that are left."""
    return execution.attempt + max(max_retries - execution.tries, 0)


def _log_request(
    request: JobLogRequest, execution: Execution, *, cursor: str = "", start_point: StartPoint | None = None
) -> LogRequest:
    return LogRequest(
        execution.id, cursor, start_point, request.sources, request.follow, request.text, request.heartbeat
    )


def _time(since_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=since_ns // 1_000)
