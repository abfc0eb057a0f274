"""Stops that are carried out before they are on disk, as the disk has no room for them.

A stop is written as soon as there is room. If the server crashes before that, the stop is lost and the job goes on,
unless the signal has ended its container already.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from fastlane_grpc.errors import Refusal
from fastlane_grpc.model import Execution, State, Stop
from fastlane_grpc.store import Pending
from fastlane_grpc.supervisor import one_task

log = structlog.get_logger(__name__)


class UnstoredStops:
    """Lives on the loop. `request` passes a stop to the runner of an execution; it returns whether there is a claim."""

    def __init__(self, request: Callable[[str, Stop], bool]) -> None:
        self._request = request
        self._stops: dict[str, Stop] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def carry_out(
        self, execution: Execution, stop: Stop, write: Callable[[datetime], Pending[Any]], error: Exception
    ) -> Execution:
        """Return the execution as it is once the stop is stored. Raises `error` where there is no container to stop.

        `write` stores a stop that was requested at the given time, and retries until the stop is stored."""
        if execution.state not in {State.PREPARING, State.RUNNING, State.STOPPING}:
            raise error
        known = self._stops.get(execution.id) or execution.stop
        if known is None or _end(stop) < _end(known):
            request_time = stop.time
            if known:
                # As the store does: keep the cause and the time of the first stop, and shorten its grace.
                stop = replace(known, grace=max(_end(stop) - known.time, timedelta()))
            if not self._request(execution.id, stop):
                raise error
            log.warning("a stop is carried out before it is on disk", execution_id=execution.id, error=str(error))
            self._stops[execution.id] = known = stop
            task = one_task(f"stop of {execution.id}", self._until_stored(execution.id, stop, write(request_time)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        state_time = execution.state_time if execution.state is State.STOPPING else known.time
        return replace(execution, state=State.STOPPING, state_time=state_time, stop=known)

    async def _until_stored(self, execution_id: str, stop: Stop, written: Pending[Any]) -> None:
        # A Refusal: the server stops, or the job was pruned since.
        with suppress(Refusal):
            await written
        if self._stops.get(execution_id) is stop:
            del self._stops[execution_id]


def _end(stop: Stop) -> datetime:
    """Return the end of the grace."""
    return stop.time + stop.grace
