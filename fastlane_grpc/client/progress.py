"""How far a tail is: what it asks for next, what came, how long to pause. It calls nobody and never waits: the tails of
both clients do."""

import time
from collections.abc import Sequence

from fastlane_grpc.client.errors import Error, LogInconsistent
from fastlane_grpc.client.events import Disconnected, Event, Reconnected, end_of, state_change
from fastlane_grpc.client.log_integrity import IntegrityCheck
from fastlane_grpc.client.retries import Backoff
from fastlane_grpc.v1 import fastlane_pb2


class Progress:
    """Of one tail. `over`: nothing comes any more. `pause_seconds`: before the next call. `cursor`: after all that was
    handed out."""

    def __init__(
        self, request: fastlane_pb2.StreamExecutionLogsRequest, backoff: Backoff, give_up_seconds: float | None
    ) -> None:
        self.over = False
        self.pause_seconds = 0.0
        self.cursor = request.cursor
        self._request = request
        self._backoff = backoff
        self._give_up_seconds = give_up_seconds
        self._integrity = IntegrityCheck(request)
        self._failures = 0
        self._cut_at: float | None = None
        self._state: fastlane_pb2.LogState | None = None
        # Events that were not handed out yet, the next one last; and the point after the last message that came.
        self._ahead: list[Event] = []
        self._received_cursor = request.cursor

    # ---- on the way in

    def request(self) -> fastlane_pb2.StreamExecutionLogsRequest:
        """What the next call asks for: the first request, from the last message on. A cursor wins over where it was to
        begin."""
        self._request.cursor = self._received_cursor
        return self._request

    def received(self, message: fastlane_pb2.StreamExecutionLogsResponse) -> bool:
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
        if not error.passing or (self._give_up_seconds is not None and away_seconds >= self._give_up_seconds):
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

    def _unfold(self, message: fastlane_pb2.StreamExecutionLogsResponse, events: list[Event]) -> None:
        """Adds what the message holds to `events`, checked."""
        self._received_cursor = message.cursor
        if message.chunks:
            self._integrity.outputs(message.chunks, events)
        match message.WhichOneof("event"):
            case "gap":
                events.append(self._integrity.gap(message.gap))
            case "state":
                # Each call begins with it; it is news only where it changed.
                if message.state != self._state:
                    self._state = message.state
                    events.append(state_change(message.state))
            case "end":
                self._integrity.end(message.end)
                events.append(end_of(message.end))
                self.over = True
