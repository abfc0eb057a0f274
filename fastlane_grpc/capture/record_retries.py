"""Retries of what a record cannot do for now: its disk is full, or a table of the kernel."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from fastlane_grpc.backoff import Backoff

T = TypeVar("T")

_BACKOFF = Backoff(0.05, 2.0)

log = structlog.get_logger(__name__)


def retry_until_written(write: Callable[[], T]) -> T:
    """Return what `write` returns; repeat it while it raises OSError.

    A full disk, or a full table of the kernel, says nothing about a job: its execution is not final before its record
    is written. A file that is not there is no matter of time: FileNotFoundError is raised."""
    failures = 0
    while True:
        try:
            return write()
        except FileNotFoundError:
            raise
        except OSError as error:
            pause_seconds = _BACKOFF.pause_seconds(failures)
            failures += 1
            log.warning("a record cannot be used; trying again", error=str(error), again_seconds=pause_seconds)
            time.sleep(pause_seconds)
