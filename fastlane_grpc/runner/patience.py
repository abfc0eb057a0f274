"""Trying again what may pass by itself: at once, then with growing pauses, for about a minute."""

from fastlane_grpc.runner.clock import boottime

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 8.0


class Patience:
    """For one thing that is tried."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._until = boottime() + seconds
        self._pause = FIRST_PAUSE_SECONDS

    def pause(self) -> float | None:
        """How long to wait before the next try; None: it was tried long enough."""
        if boottime() + self._pause > self._until:
            return None
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        return pause
