"""The state of a tail: the next request, the events received, the pause before a retry. It makes no calls and never
waits; the tails of both clients do."""

import time
from collections.abc import Sequence
from typing import TypeAlias

from fastlane_grpc.client.errors import Error, LogInconsistent
from fastlane_grpc.client.events import (
    Disconnected,
    Event,
    ExecutionStart,
    JobEnd,
    Reconnected,
    end_of,
    state_change,
)
from fastlane_grpc.client.log_integrity import IntegrityCheck
from fastlane_grpc.client.retries import Backoff
from fastlane_grpc.v1 import fastlane_pb2

# A tail is of an execution or of a job. The messages about output are the same in both.
TailRequest: TypeAlias = fastlane_pb2.StreamExecutionLogsRequest | fastlane_pb2.StreamJobLogsRequest
TailResponse: TypeAlias = fastlane_pb2.StreamExecutionLogsResponse | fastlane_pb2.StreamJobLogsResponse


class Progress:
    """The state of one tail. `over`: nothing comes any more. `pause_seconds`: before the next call. `cursor`: after all
    that was handed out."""

    def __init__(self, request: TailRequest, backoff: Backoff, give_up_seconds: float | None) -> None:
        self.over = False
        self.pause_seconds = 0.0
        self.cursor = request.cursor
        self._request = request
        self._backoff = backoff
        self._give_up_seconds = give_up_seconds
        self._of_job = isinstance(request, fastlane_pb2.StreamJobLogsRequest)
        self._execution_id = "" if isinstance(request, fastlane_pb2.StreamJobLogsRequest) else request.execution_id
        self._integrity = IntegrityCheck(request, self._execution_id)
        # The log of the current execution has ended.
        self._ended = False
        self._failures = 0
        self._cut_at: float | None = None
        self._state: fastlane_pb2.LogState | None = None
        # Events that were not handed out yet, the next one last; and the point after the last message that came.
        self._ahead: list[Event] = []
        self._received_cursor = request.cursor

    # ---- on the way in

    def request(self) -> TailRequest:
        """Return the request of the next call: the first request, resumed after the last message. A cursor overrides
        the start point."""
        self._request.cursor = self._received_cursor
        return self._request

    def received(self, message: TailResponse) -> bool:
        """Whether there is something to hand out now. Raises LogInconsistent: then it is over."""
        events = self._connected()
        try:
            self._unfold(message, events)
        except LogInconsistent:
            self.over = True
            raise
        return self._hand_out(events)

    def cut(self, error: Error) -> bool:
        """The call failed, or could not be made. Raises the error if it will not pass, or was there for too long: then
        it is over."""
        now = time.monotonic()
        if self._cut_at is None:
            self._cut_at = now
        away_seconds = now - self._cut_at
        if not error.resumable or (self._give_up_seconds is not None and away_seconds >= self._give_up_seconds):
            self.over = True
            raise error
        self.pause_seconds = self._backoff.pause_seconds(self._failures, error.retry_seconds)
        self._failures += 1
        return self._hand_out([Disconnected(error, away_seconds)])

    # ---- on the way out

    @property
    def ahead(self) -> bool:
        """Whether there is something to hand out; if not, the next message is to be read first."""
        return bool(self._ahead)

    def next_event(self) -> Event:
        event = self._ahead.pop()
        if not self._ahead:
            self.cursor = self._received_cursor
        return event

    def next_events(self) -> Sequence[Event]:
        """All that are left of the last message."""
        events = self._ahead[::-1]
        self._ahead = []
        self.cursor = self._received_cursor
        return events

    def _hand_out(self, events: list[Event]) -> bool:
        events.reverse()
        self._ahead = events
        return bool(events)

    def _connected(self) -> list[Event]:
        if self._cut_at is not None:
            away_seconds = time.monotonic() - self._cut_at
            self._cut_at = None
            return [Reconnected(away_seconds)]
        # Only the second message of a call shows that it works: the first is sent before anything is read.
        self._failures = 0
        return []

    def _unfold(self, message: TailResponse, events: list[Event]) -> None:
        """Adds what the message holds to `events`, checked."""
        self._received_cursor = message.cursor
        if message.chunks:
            self._integrity.outputs(message.chunks, events)
        # Lines are counted in the log of one execution only.
        first_line = message.first_line if isinstance(message, fastlane_pb2.StreamExecutionLogsResponse) else 0
        match message.WhichOneof("event"):
            case "gap":
                events.append(self._integrity.gap(message.gap, first_line))
            case "state":
                # Each call begins with it; it is news only where it changed.
                if message.state != self._state:
                    self._state = message.state
                    events.append(state_change(message.state, first_line))
            case "end":
                self._integrity.end(message.end)
                # Told again to a tail of a job that resumes right after it.
                if not self._ended:
                    events.append(end_of(message.end))
                self._ended, self.over = True, not self._of_job
            case "execution":
                self._begin(message.execution, events)  # type: ignore[union-attr]  # a message of a job
            case "job_end":
                end = message.job_end  # type: ignore[union-attr]  # a message of a job
                events.append(JobEnd(end.job, end.exit_status))
                self.over = True

    def _begin(self, start: fastlane_pb2.JobLogExecution, events: list[Event]) -> None:
        """Begin the log of an execution of the job, unless it is the one in which the stream was cut."""
        if start.execution.id == self._execution_id:
            return
        # Where the first one is read from, the request says; each further one is read from its first byte.
        request = (
            self._request
            if not self._execution_id
            else fastlane_pb2.StreamJobLogsRequest(sources=self._request.sources, text=self._request.text)
        )
        self._execution_id = start.execution.id
        self._integrity = IntegrityCheck(request, self._execution_id)
        self._state, self._ended = None, False
        events.append(ExecutionStart(start.execution, start.max_attempts))
