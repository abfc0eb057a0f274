"""Retries of a call while the server cannot be reached."""

import time

from fastlane_grpc.backoff import Backoff
from fastlane_grpc.client.errors import Error

__all__ = ["DEFAULT_BACKOFF", "Backoff", "Retries"]

DEFAULT_BACKOFF = Backoff()


class Retries:
    """The attempts of one call, which starts now: `timeout_seconds` in total, with retries for `retry_seconds`."""

    def __init__(self, timeout_seconds: float, retry_seconds: float, backoff: Backoff) -> None:
        self._begin = time.monotonic()
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = min(retry_seconds, timeout_seconds)
        self._backoff = backoff
        self._failures = 0

    @property
    def left_seconds(self) -> float:
        """Return the time for the next attempt; never 0, so that a first attempt is always made."""
        return max(self._timeout_seconds - self._spent_seconds, 0.001)

    def pause_seconds(self, error: Error) -> float | None:
        """Return the pause before the next attempt; None: do not retry, raise the error to the caller."""
        pause_seconds = self._backoff.pause_seconds(self._failures, error.retry_seconds)
        if not error.passing or self._spent_seconds + pause_seconds > self._retry_seconds:
            return None
        self._failures += 1
        return pause_seconds

    @property
    def _spent_seconds(self) -> float:
        return time.monotonic() - self._begin
