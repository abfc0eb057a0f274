"""The log of one execution as a caller sees it: the state first, then what is stored, then what comes, then how it
ended."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.logs import Cursor, Encoding, LogWatch, StartPoint, Tail, Tails
from fastlane_grpc.model import Cause, Execution, Source, Waiting, utc_now
from fastlane_grpc.store import Store


@dataclass(frozen=True, slots=True)
class LogRequest:
    """What a caller wants to see; no sources: all of them. Without a `begin` from the first byte; a `cursor` wins over
    it."""

    execution_id: str
    cursor: str = ""
    begin: StartPoint | None = None
    sources: Sequence[Source] = ()
    follow: bool = True
    text: bool = False
    heartbeat: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The execution as it is now: the first event, then one at each change of its state, or of what it waits for when
    that is looked at."""

    cursor: Cursor
    execution: Execution
    waiting: Waiting | None


@dataclass(frozen=True, slots=True)
class Beat:
    """Nothing was sent for as long as the caller wants to wait; the point it may go on from."""

    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Sealed:
    """The end: the execution is final, and everything was sent."""

    cursor: Cursor
    execution: Execution


@dataclass(frozen=True, slots=True)
class Unsealed:
    """The end of what was there when a caller asked who does not want to follow."""

    cursor: Cursor
    execution: Execution


# What an execution waits for, if it does.
WaitingOf: TypeAlias = Callable[[Execution], Awaitable[Waiting | None]]

# A reader that was given output looks again after so long at the soonest: a flood comes in large pieces, a first byte
# comes at once.
PACE_SECONDS = 0.004

# What a stream has to say beside the log's own messages.
LogEvent: TypeAlias = StateChanged | Beat | Sealed | Unsealed


class StreamEncoding(Encoding, Protocol):
    """How a door sends a log stream."""

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
) -> None:
    """Sends one execution's log, and returns after Sealed or Unsealed. Anything else, as an error, is a cut."""
    await store.execution(request.execution_id)  # Only what exists has a log.
    cursor = Cursor.parse(request.cursor, request.execution_id)
    with tails.watching(request.execution_id) as watch:
        # Read after the watch began: a change in between is told of, and is newer than what is read here.
        execution = await store.execution(request.execution_id)
        watch.execution = watch.execution or execution
        if request.begin and not request.cursor:
            cursor = await tails.cursor_at(watch, request.begin, request.sources)
        tail = tails.tail(watch, cursor, request.sources, encoding, text=request.text)
        if not request.follow:
            tail.mark()

        async def tell(event: LogEvent) -> None:
            await send(encoding.event(event, utc_now()))

        await _stream(request, watch, tail, _Queue(waiting_of), stopping, send, tell)


async def _stream(
    request: LogRequest,
    watch: LogWatch,
    tail: Tail,
    queue: "_Queue",
    stopping: Callable[[], bool],
    send: Send,
    tell: Callable[[LogEvent], Awaitable[None]],
) -> None:
    now = asyncio.get_running_loop().time
    shown: Execution | None = None
    beat_time = now() + request.heartbeat.total_seconds()
    pace_time = 0.0
    while True:
        watch.clear()
        if stopping():
            raise ServerStopping("the server is stopping; call again with the last cursor", retry_seconds=1)
        # Taken before the log is read: what a final execution wrote is in its log before it becomes final.
        execution = _present(watch)
        if shown is None or execution.state is not shown.state:
            shown = execution
            await queue.look(execution)
            await tell(StateChanged(tail.cursor, execution, queue.waiting))
            beat_time = now() + request.heartbeat.total_seconds()
        messages = await tail.read()
        if messages:
            for message in messages:
                await send(message)
            beat_time = now() + request.heartbeat.total_seconds()
            pace_time = now() + PACE_SECONDS
        elif messages is None and execution.state.final:
            # Before files are taken away it is announced that they will be: who finds none hears of it here.
            await asyncio.sleep(0)
            execution = _present(watch)
            for message in tail.finish(execution.logs, Cause.PRUNED if execution.times.prune_time else Cause.STORE):
                await send(message)
            await tell(Sealed(tail.cursor, execution))
            return
        if not request.follow and not execution.state.final and (messages is None or tail.marked):
            await tell(Unsealed(tail.cursor, execution))
            return
        if now() >= beat_time:
            changed = await queue.look(execution)
            await tell(StateChanged(tail.cursor, execution, queue.waiting) if changed else Beat(tail.cursor))
            beat_time = now() + request.heartbeat.total_seconds()
        elif messages is None:
            await watch.wait(beat_time - now())
            if now() < pace_time:
                await asyncio.sleep(pace_time - now())
        elif not messages:
            # All of it was of sources not asked for, and may have come from memory: others want the loop, too.
            await asyncio.sleep(0)


def _present(watch: LogWatch) -> Execution:
    assert watch.execution is not None, "set before the first event"
    return watch.execution


class _Queue:
    """What the reader was last told that the execution waits for."""

    def __init__(self, waiting_of: WaitingOf) -> None:
        self.waiting: Waiting | None = None
        self._waiting_of = waiting_of

    async def look(self, execution: Execution) -> bool:
        """Find out what the execution waits for. Return whether that has changed."""
        before, self.waiting = self.waiting, await self._waiting_of(execution)
        return self.waiting != before
