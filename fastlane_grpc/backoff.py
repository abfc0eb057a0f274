"""Exponential backoff: the pauses between tries of what may pass by itself."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries: each twice as long as the one before, up to a half taken off at random so that not all come back at once."""

    first_seconds: float = 0.1
    longest_seconds: float = 5.0

    def pause_seconds(self, failures: int, asked_seconds: float | None = None) -> float:
        """The pause after `failures` earlier ones, on top of what the other side asked for."""
        longest = min(self.first_seconds * (1 << min(failures, 30)), self.longest_seconds)
        return (asked_seconds or 0.0) + longest * random.uniform(0.5, 1.0)
