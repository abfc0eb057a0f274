"""A line on stderr for a job that has waited for long: once, and again when the reason is another one."""

import threading
import time
from contextlib import suppress

from fastlane_grpc.cli.display.terminal import say
from fastlane_grpc.cli.errors import Failure


class WaitingNotice:
    """Tells of a wait from a thread of its own, as a stream is silent meanwhile. Two lines have `after_seconds` between
    them."""

    def __init__(self, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        # Held while a line is written: after `cancel` none comes.
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._quiet_since = 0.0
        self._reason: object = None
        self._told: object = None
        self._text = ""

    def wait(self, reason: object, text: str) -> None:
        """The job waits for this `reason`. The newest text of a reason is the one that is told."""
        with self._lock:
            if self._reason is None:
                self._quiet_since = time.monotonic()
            self._reason, self._text = reason, text
            if self._timer is None and reason != self._told:
                self._start_timer()

    def cancel(self) -> None:
        """The job does not wait any more."""
        with self._lock:
            self._reason = self._told = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _start_timer(self) -> None:
        left_seconds = self._quiet_since + self._after_seconds - time.monotonic()
        self._timer = threading.Timer(max(left_seconds, 0.0), self._tell)
        self._timer.daemon = True
        self._timer.start()

    def _tell(self) -> None:
        with self._lock:
            # A timer that was cancelled while it waited for the lock.
            if self._timer is not threading.current_thread():
                return
            self._timer = None
            if self._reason != self._told:
                self._told = self._reason
                self._quiet_since = time.monotonic()
                # Nobody reads stderr: only the main thread can end of that (ValueError).
                with suppress(Failure, ValueError):
                    say(self._text)
