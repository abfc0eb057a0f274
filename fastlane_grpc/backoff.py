"""Backoff and retries of what may pass by itself: a registry, an engine, a full disk.

The clients use it too, so it imports nothing that takes time."""

import random
from dataclasses import dataclass

from fastlane_grpc.clock import boottime


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff: each pause is twice as long as the one before. Up to a half is taken off at random, so that
    many callers do not come back together."""

    first_seconds: float = 0.1
    longest_seconds: float = 5.0

    def pause_seconds(self, failures: int, asked_seconds: float | None = None) -> float:
        """Return the pause after `failures` earlier ones, on top of what the other side asked for."""
        longest = min(self.first_seconds * (1 << min(failures, 30)), self.longest_seconds)
        return (asked_seconds or 0.0) + longest * random.uniform(0.5, 1.0)


RETRIES = Backoff(0.05, 8.0)


class Retries:
    """Retries of one action within a time limit."""

    def __init__(self, seconds: float) -> None:
        self._until = boottime() + seconds
        self._failures = 0

    @property
    def paused(self) -> bool:
        """Whether the action has been retried already."""
        return self._failures > 0

    def pause(self) -> float | None:
        """Return the seconds to wait before the next try. None: the time is up."""
        pause_seconds = RETRIES.pause_seconds(self._failures)
        self._failures += 1
        return None if boottime() + pause_seconds > self._until else pause_seconds
