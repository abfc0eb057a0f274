"""The export of traces: executions that ended are read once more, and their spans go to the exporter."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.model import Assignment, Execution
from fastlane_grpc.store import Store
from fastlane_grpc.trace_context import TraceContext
from fastlane_grpc.tracing.job_trace import JobTrace
from fastlane_grpc.tracing.spans import Span, spans_of
from fastlane_grpc.wakeup import Wakeup

# Executions whose spans are not made yet; with more the oldest ones have none.
_MOST_ENDED = 10_000
# Executions that are read together. Their spans are made in one go, which calls have to wait for.
_MOST_READ = 16
# The time to read the last executions when the server ends.
_LAST_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Exporter(Protocol):
    """The way of spans to a collector. No method waits for the collector, but for `close`."""

    def sampled(self, trace_id: str, caller: TraceContext | None) -> bool:
        """Return whether a trace is recorded, given its id and the caller's place in it. Called on any thread."""

    def export(self, spans: Sequence[Span]) -> None:
        """Send the spans, or drop them if there are too many."""

    def close(self) -> None:
        """Send what is left, for a limited time."""


class Tracing:
    """The traces of a server. Lives on the loop, except `trace_of`."""

    def __init__(self, store: Store, exporter: Exporter) -> None:
        self._store = store
        self._exporter = exporter
        self._ended: deque[str] = deque(maxlen=_MOST_ENDED)
        self._dropped = 0
        self._wakeup = Wakeup()

    def trace_of(self, assignment: Assignment) -> TraceContext:
        """Return the place in the trace that the command of an execution gets. Called on any thread."""
        return JobTrace.of(assignment, self._exporter.sampled).step("run")

    def on_commit(self, executions: Iterable[Execution]) -> None:
        """Note the executions that a commit has ended."""
        for execution in executions:
            if execution.state.final and execution.times.prune_time is None:
                self._dropped += len(self._ended) == _MOST_ENDED
                self._ended.append(execution.id)
                self._wakeup.set()

    async def run(self) -> None:
        """Export the spans of executions that have ended, until it is cancelled."""
        while True:
            self._wakeup.clear()
            await self._export_ended()
            await self._wakeup.wait()

    async def close(self) -> None:
        """Export the spans of the last executions, and close the exporter, for a limited time. Call it after `run`."""
        with suppress(TimeoutError, ServerStopping):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._export_ended()
        await asyncio.to_thread(self._exporter.close)

    async def _export_ended(self) -> None:
        while self._ended:
            some = [self._ended.popleft() for _ in range(min(len(self._ended), _MOST_READ))]
            try:
                # Without those that were pruned meanwhile.
                assignments = await self._store.assignments(some)
            except asyncio.CancelledError:
                # For `close`.
                self._ended.extendleft(reversed(some))
                raise
            for assignment in assignments:
                trace = JobTrace.of(assignment, self._exporter.sampled)
                if trace.execute.sampled:
                    self._exporter.export(spans_of(assignment, trace))
        if self._dropped:
            log.warning("executions ended faster than their traces could be made", executions_without=self._dropped)
            self._dropped = 0
