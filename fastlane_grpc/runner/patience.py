"""Trying again what may pass by itself: at once, then with growing pauses, for about a minute; or, where it has to be, until it is done."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from fastlane_grpc.runner.clock import boottime

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 8.0
RETRY_SECONDS = 2.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Patience:
    """For one thing that is tried."""

    def __init__(self, seconds: float) -> None:
        self._until = boottime() + seconds
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def paused(self) -> bool:
        """Whether there was a pause already: a try that failed."""
        return self._pause > FIRST_PAUSE_SECONDS

    def pause(self) -> float | None:
        """How long to wait before the next try; None: it was tried long enough."""
        if boottime() + self._pause > self._until:
            return None
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        return pause


def insist(write: Callable[[], T]) -> T:
    """Writes to a record, or looks at it, until that works: a disk, or a table of the kernel's, that is full or fails says nothing about a
    job, and its execution is not final before. One that is not there is no matter of time: raises FileNotFoundError."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return write()
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("a record cannot be used; trying again", error=str(error), again_seconds=pause)
            time.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS)
