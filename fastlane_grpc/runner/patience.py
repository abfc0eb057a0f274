"""Trying again what may pass by itself: at once, then with growing pauses, for about a minute; or, where it has to be, until it is done."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from fastlane_grpc.backoff import Backoff
from fastlane_grpc.runner.clock import boottime

PAUSES = Backoff(0.05, 8.0)
PAUSES_OF_RECORDS = Backoff(0.05, 2.0)

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Patience:
    """For one thing that is tried."""

    def __init__(self, seconds: float) -> None:
        self._until = boottime() + seconds
        self._failures = 0

    @property
    def paused(self) -> bool:
        """Whether there was a pause already: a try that failed."""
        return self._failures > 0

    def pause(self) -> float | None:
        """How long to wait before the next try; None: it was tried long enough."""
        pause_seconds = PAUSES.pause_seconds(self._failures)
        self._failures += 1
        return None if boottime() + pause_seconds > self._until else pause_seconds


def insist(write: Callable[[], T]) -> T:
    """Writes to a record, or looks at it, until that works: a disk, or a table of the kernel's, that is full or fails says nothing about a
    job, and its execution is not final before. One that is not there is no matter of time: raises FileNotFoundError."""
    failures = 0
    while True:
        try:
            return write()
        except FileNotFoundError:
            raise
        except OSError as error:
            pause_seconds = PAUSES_OF_RECORDS.pause_seconds(failures)
            failures += 1
            log.warning("a record cannot be used; trying again", error=str(error), again_seconds=pause_seconds)
            time.sleep(pause_seconds)
