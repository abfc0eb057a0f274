"""The state of a watch: the next request, and the events received. It makes no calls and never waits."""

from typing import Any

from fastlane_grpc.client.errors import Error
from fastlane_grpc.client.progress import Progress
from fastlane_grpc.client.retries import Backoff
from fastlane_grpc.client.watch_events import CaughtUp, ChangesMissed, JobChanged, JobPruned
from fastlane_grpc.v1 import fastlane_pb2

# What the server answers where it cannot resume after a cursor.
_CANNOT_RESUME = {"CURSOR_TOO_OLD", "CURSOR_INVALID"}


class WatchProgress(Progress):
    """The progress of one watch: interruptions and events as of a tail, messages of WatchJobs."""

    def __init__(self, request: fastlane_pb2.WatchJobsRequest, backoff: Backoff, give_up_seconds: float | None) -> None:
        # Of a log there is only the cursor: nothing of it is checked.
        super().__init__(fastlane_pb2.StreamExecutionLogsRequest(cursor=request.cursor), backoff, give_up_seconds)
        self._watch_request = request
        # Whether the cursor is one that the server gave to this watch.
        self._own_cursor = False
        # Whether jobs were told since the watch began, or began anew.
        self._told = False
        self._missed: ChangesMissed | None = None

    def request(self) -> Any:
        """Return the request of the next call: the first request, resumed after the last message."""
        self._watch_request.cursor = self._received_cursor
        return self._watch_request

    def received(self, message: Any) -> bool:
        """Whether there is something to hand out now."""
        events: list[Any] = [*self._connected()]
        if self._missed is not None:
            events.append(self._missed)
            self._missed, self._told = None, False
        if message.cursor:
            self._received_cursor, self._own_cursor = message.cursor, True
        match message.WhichOneof("event"):
            case "job":
                self._told = True
                events.append(JobChanged(message.job))
            case "pruned_job_id":
                self._told = True
                events.append(JobPruned(message.pruned_job_id))
            case "caught_up":
                events.append(CaughtUp())
        if not events:
            self.cursor = self._received_cursor
        return self._hand_out(events)

    def cut(self, error: Error) -> bool:
        """The call failed. A cursor that the server does not resume from is dropped: the watch begins anew. Raises the
        error if it will not pass, or was there for too long."""
        too_old = error.reason == "CURSOR_TOO_OLD"
        if too_old or (error.reason in _CANNOT_RESUME and self._own_cursor):
            # Without a cursor the snapshot itself took too long: not again at once.
            self.pause_seconds = 0.0 if self._received_cursor else self._backoff.pause_seconds(self._failures, None)
            self._failures += 0 if self._received_cursor else 1
            self._received_cursor, self._own_cursor = "", False
            self._missed = ChangesMissed(error)
            return False
        if not self._received_cursor and self._told and self._missed is None:
            self._missed = ChangesMissed(None)
        return super().cut(error)
