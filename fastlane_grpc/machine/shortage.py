"""Shortages of this process or its machine: descriptors, memory, threads, room on a disk.

A shortage is temporary, and is no fault of a job or an engine.
"""

import errno
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

T = TypeVar("T")

PAUSE_SECONDS = 0.1
# The interval at which a lasting shortage is logged, by the thread that meets it.
LOG_SECONDS = 10.0

_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_ERRNOS_OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.EROFS})

_log = structlog.get_logger(__name__)
_lock = threading.Lock()
_log_again_at = 0.0


def is_shortage(error: Exception) -> bool:
    """Return whether the error means a shortage."""
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    if isinstance(error, MemoryError):
        return True
    # Raised by `Thread.start`, without a class or number of its own.
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"


def is_machine_failure(error: Exception) -> bool:
    """Return whether the error means a shortage, or a disk that is full or fails. Neither is a job's fault."""
    return is_shortage(error) or (isinstance(error, OSError) and error.errno in _ERRNOS_OF_DISKS)


def outlast(work: Callable[[], T], *, pause_seconds: float = PAUSE_SECONDS) -> T:
    """Return the result of `work`; repeat `work` during a shortage. Blocks until the shortage is over."""
    while True:
        try:
            return work()
        except (OSError, RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            _log_shortage(error)
        time.sleep(pause_seconds)


def _log_shortage(error: Exception) -> None:
    global _log_again_at
    with _lock:
        if time.monotonic() < _log_again_at:
            return
        _log_again_at = time.monotonic() + LOG_SECONDS
    _log.warning("this process is short of open files, memory or threads; trying again", error=str(error))
