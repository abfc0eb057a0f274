"""Trying again what may pass by itself: at once, then with growing pauses, for about a minute; or, where it has to be, until it is done."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from fastlane_grpc.backoff import Backoff
from fastlane_grpc.runner.clock import boottime

PAUSES = Backoff(0.05, 8.0)
RETRY_SECONDS = 0.5

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Patience:
    """For one thing that is tried."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._until = boottime() + seconds
        self._failures = 0

    def pause(self) -> float | None:
        """How long to wait before the next try; None: it was tried long enough."""
        pause_seconds = PAUSES.pause_seconds(self._failures)
        self._failures += 1
        return None if boottime() + pause_seconds > self._until else pause_seconds


def insist(write: Callable[[], T]) -> T:
    """Writes to a record until it is written: without this it would be wrong, and its execution is not final before. One that is not there
    is no matter of time: raises FileNotFoundError."""
    while True:
        try:
            return write()
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("a record cannot be written; trying again", error=str(error))
            time.sleep(RETRY_SECONDS)
