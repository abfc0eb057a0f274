"""The log of one execution as a caller sees it: the state first, then what is stored, then what comes, then how it ended."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeAlias

from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.logs import Cursor, Tail, Tails, Watch
from fastlane_grpc.model import Cause, Execution, Source
from fastlane_grpc.store import Store


@dataclass(frozen=True, slots=True)
class LogRequest:
    """What a caller wants to see; no sources: all of them."""

    execution_id: str
    cursor: str = ""
    sources: Sequence[Source] = ()
    follow: bool = True
    text: bool = False
    heartbeat: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The execution as it is now: the first event, then one at each change of its state."""

    cursor: Cursor
    execution: Execution


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


# A reader that was given output looks again after so long at the soonest: a flood comes in large pieces, a first byte comes at once.
PACE_SECONDS = 0.004

# Bytes are messages that were serialised for all readers.
LogEvent: TypeAlias = bytes | StateChanged | Beat | Sealed | Unsealed


async def log_stream(request: LogRequest, store: Store, tails: Tails, stopping: Callable[[], bool]) -> AsyncIterator[LogEvent]:
    """Ends after Sealed or Unsealed, or with an error; an end without either is a cut."""
    await store.execution(request.execution_id)  # Only what exists has a log.
    cursor = Cursor.parse(request.cursor, request.execution_id)
    with tails.watching(request.execution_id) as watch:
        # Read after the watch began: a change in between is told of, and is newer than what is read here.
        execution = await store.execution(request.execution_id)
        watch.execution = watch.execution or execution
        tail = tails.tail(watch, cursor, request.sources, text=request.text)
        if not request.follow:
            tail.mark()
        async for event in _events(request, watch, tail, stopping):
            yield event


async def _events(request: LogRequest, watch: Watch, tail: Tail, stopping: Callable[[], bool]) -> AsyncIterator[LogEvent]:
    now = asyncio.get_running_loop().time
    shown: Execution | None = None
    beat_time = now() + request.heartbeat.total_seconds()
    pace_time = 0.0
    while True:
        # Cleared before anything is looked at: news that comes after it sets the bell again and is not lost.
        watch.clear()
        if stopping():
            raise ServerStopping("the server is stopping; call again with the last cursor", retry_seconds=1)
        # Taken before the log is read: what a final execution wrote is in its log before it becomes final.
        execution = _present(watch)
        if shown is None or execution.state is not shown.state:
            shown = execution
            yield StateChanged(tail.cursor, execution)
            beat_time = now() + request.heartbeat.total_seconds()
        messages = await tail.read()
        if messages:
            for message in messages:
                yield message
            beat_time = now() + request.heartbeat.total_seconds()
            pace_time = now() + PACE_SECONDS
        elif messages is None and execution.state.final:
            # Before files are taken away it is announced that they will be: who finds none hears of it here.
            await asyncio.sleep(0)
            execution = _present(watch)
            for message in tail.finish(execution.logs, Cause.PRUNED if execution.times.prune_time else Cause.STORE):
                yield message
            yield Sealed(tail.cursor, replace(execution, logs=tail.totals(execution.logs)))
            return
        if not request.follow and not execution.state.final and (messages is None or tail.marked):
            yield Unsealed(tail.cursor, execution)
            return
        if now() >= beat_time:
            yield Beat(tail.cursor)
            beat_time = now() + request.heartbeat.total_seconds()
        elif messages is None:
            await watch.wait(beat_time - now())
            if now() < pace_time:
                await asyncio.sleep(pace_time - now())
        elif not messages:
            # All of it was of sources not asked for, and may have come from memory: others want the loop, too.
            await asyncio.sleep(0)


def _present(watch: Watch) -> Execution:
    assert watch.execution is not None, "set before the first event"
    return watch.execution
