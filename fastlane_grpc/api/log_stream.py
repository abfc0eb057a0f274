"""The log stream of one execution: its state, the stored output, new output, and the end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from fastlane_grpc.errors import CursorInvalid, CursorOfAnotherExecution, ServerStopping
from fastlane_grpc.logs import Cursor, Encoding, LogTail, LogWatch, StartPoint, Tails
from fastlane_grpc.model import Cause, Execution, Job, Source, Waiting, utc_now
from fastlane_grpc.store import Store


@dataclass(frozen=True, slots=True)
class LogRequest:
    """A request for the log of one execution. Without sources it asks for all of them.

    The stream starts at `cursor`, else at `start_point`, else at the first byte. It ends at `before_cursor`, if that is
    not empty. `number_lines`: the number of the first line is sent, and that after a gap."""

    execution_id: str
    cursor: str = ""
    start_point: StartPoint | None = None
    sources: Sequence[Source] = ()
    follow: bool = True
    text: bool = False
    heartbeat: timedelta = timedelta(seconds=10)
    before_cursor: str = ""
    number_lines: bool = False


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The current state of the execution: the first event, and one after each change of the state.

    A heartbeat that finds another reason to wait is sent as this event, too. `first_line`: in the first event, the
    number of the first line of the stream, if it was asked for."""

    cursor: Cursor
    execution: Execution
    waiting: Waiting | None
    first_line: int | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The event after an interval without any other event."""

    cursor: Cursor


@dataclass(frozen=True, slots=True)
class LogEnded:
    """The end of the log: the execution is final, and its whole log was sent."""

    cursor: Cursor
    execution: Execution


@dataclass(frozen=True, slots=True)
class LogSuspended:
    """The end of a stream before the end of the log: at the cursor where it was to end, or, without following, at what
    is stored of an execution that is not final."""

    cursor: Cursor
    execution: Execution


# Returns what an execution waits for, if it waits.
WaitingOf: TypeAlias = Callable[[Execution], Awaitable[Waiting | None]]

# The shortest time between two reads that find output. The first byte is sent at once, a flood in large messages.
PACE_SECONDS = 0.004


@dataclass(frozen=True, slots=True)
class ExecutionBegins:
    """The start of an execution's log in the stream of its job. `max_attempts`: how many its run may have."""

    cursor: Cursor
    execution: Execution
    waiting: Waiting | None
    max_attempts: int


@dataclass(frozen=True, slots=True)
class JobLogEnded:
    """The end of the stream of a job: the job as it is now."""

    cursor: Cursor
    job: Job


# Called once before the first message of an execution: with the cursor at which its stream starts, and the execution.
Announce: TypeAlias = Callable[[Cursor, Execution], Awaitable[None]]

# The events of a stream beside the messages of its log. The last two are of the stream of a job.
LogEvent: TypeAlias = StateChanged | Heartbeat | LogEnded | LogSuspended | ExecutionBegins | JobLogEnded


class StreamEncoding(Encoding, Protocol):
    """The encoding of a log stream by one transport."""

    def event(self, value: LogEvent, now: datetime) -> bytes:
        """Return the event as it is sent at the time `now`."""


# Sends one encoded message to the caller, and waits while the caller has enough to read.
Send: TypeAlias = Callable[[bytes], Awaitable[None]]


async def log_stream(
    request: LogRequest,
    store: Store,
    tails: Tails,
    waiting_of: WaitingOf,
    stopping: Callable[[], bool],
    encoding: StreamEncoding,
    send: Send,
    announce: Announce | None = None,
) -> Cursor:
    """Send the log of one execution; return the cursor after LogEnded or LogSuspended. An error interrupts the
    stream. ExecutionNotFound is raised before anything is sent or announced."""
    await store.execution(request.execution_id)  # Only what exists has a log.
    cursor = Cursor.parse(request.cursor, request.execution_id)
    end = _parse_end(request)
    with tails.watching(request.execution_id) as watch:
        # Read after the watch started: the watch announces a change in between, which is newer than this value.
        execution = await store.execution(request.execution_id)
        watch.execution = watch.execution or execution
        if request.start_point and not request.cursor:
            cursor = await tails.cursor_at(watch, request.start_point, request.sources, end)
        first_line = await tails.line_at(watch, cursor, request.sources) if request.number_lines else None
        numbered = request.number_lines
        tail = tails.tail(watch, cursor, request.sources, encoding, text=request.text, end=end, numbered=numbered)
        if not request.follow:
            tail.mark()
        if announce is not None:
            await announce(tail.cursor, watch.execution)

        async def tell(event: LogEvent) -> None:
            await send(encoding.event(event, utc_now()))

        async def send_log(messages: Sequence[bytes]) -> None:
            for message in messages:
                await send(message)
                tails.bytes_sent[encoding.name] += len(message)

        await _stream(request, watch, tail, _Queue(waiting_of), stopping, send_log, tell, first_line)
        return tail.cursor


def _parse_end(request: LogRequest) -> Cursor | None:
    if not request.before_cursor:
        return None
    try:
        return Cursor.parse(request.before_cursor, request.execution_id)
    except CursorInvalid as error:
        raise CursorInvalid(f"before_cursor: {error}") from None
    except CursorOfAnotherExecution as error:
        raise CursorOfAnotherExecution(f"before_cursor: {error}", execution_id=error.metadata["execution_id"]) from None


async def _stream(
    request: LogRequest,
    watch: LogWatch,
    tail: LogTail,
    queue: "_Queue",
    stopping: Callable[[], bool],
    send_log: Callable[[Sequence[bytes]], Awaitable[None]],
    tell: Callable[[LogEvent], Awaitable[None]],
    first_line: int | None,
) -> None:
    now = asyncio.get_running_loop().time
    shown: Execution | None = None
    heartbeat_time = now() + request.heartbeat.total_seconds()
    pace_time = 0.0
    while True:
        watch.clear()
        if stopping():
            raise ServerStopping("the server is stopping; call again with the last cursor", retry_seconds=1)
        # Taken before the log is read: an execution becomes final only after its log has all of its output.
        execution = _present(watch)
        if shown is None or execution.state is not shown.state:
            first, shown = shown is None, execution
            await queue.look(execution)
            await tell(StateChanged(tail.cursor, execution, queue.waiting, first_line if first else None))
            heartbeat_time = now() + request.heartbeat.total_seconds()
        if tail.ended:
            await send_log(tail.flush())
            await tell(LogSuspended(tail.cursor, execution))
            return
        messages = await tail.read()
        if messages:
            await send_log(messages)
            heartbeat_time = now() + request.heartbeat.total_seconds()
            pace_time = now() + PACE_SECONDS
        elif messages is None and execution.state.final:
            # Pruning is announced before files are deleted: a reader that found no file learns the reason here.
            await asyncio.sleep(0)
            execution = _present(watch)
            cause = Cause.PRUNED if execution.times.prune_time else Cause.STORE
            await send_log(tail.finish(execution.logs, cause))
            await tell((LogSuspended if tail.ended else LogEnded)(tail.cursor, execution))
            return
        if not request.follow and not execution.state.final and (messages is None or tail.marked):
            await tell(LogSuspended(tail.cursor, execution))
            return
        if now() >= heartbeat_time:
            changed = await queue.look(execution)
            await tell(StateChanged(tail.cursor, execution, queue.waiting) if changed else Heartbeat(tail.cursor))
            heartbeat_time = now() + request.heartbeat.total_seconds()
        elif messages is None:
            await watch.wait(heartbeat_time - now())
            if now() < pace_time:
                await asyncio.sleep(pace_time - now())
        elif not messages:
            # Only other sources had output, perhaps from the cache: other tasks must get the loop.
            await asyncio.sleep(0)


def _present(watch: LogWatch) -> Execution:
    assert watch.execution is not None, "set before the first event"
    return watch.execution


class _Queue:
    """The last reason for waiting that the reader got."""

    def __init__(self, waiting_of: WaitingOf) -> None:
        self.waiting: Waiting | None = None
        self._waiting_of = waiting_of

    async def look(self, execution: Execution) -> bool:
        """Find out what the execution waits for. Return whether that has changed."""
        before, self.waiting = self.waiting, await self._waiting_of(execution)
        return self.waiting != before
