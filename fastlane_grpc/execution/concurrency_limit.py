"""A limit on the threads of executions that do the same work at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ConcurrencyLimit:
    """Admits `at_once` threads at a time; the others wait without taking the interpreter.

    Work that hangs holds up the others for `hang_seconds`: if none of the admitted threads leaves within that time,
    they are not counted any more.
    """

    def __init__(self, at_once: int, *, hang_seconds: float) -> None:
        self._at_once = at_once
        self._hang_seconds = hang_seconds
        # Only the thread that has this lock waits with a timeout: thousands of timeouts would be a load of their own.
        self._next = threading.Lock()
        self._free = threading.Semaphore(at_once)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Wait until this thread is admitted, and leave at the end of the context."""
        with self._next:
            if not self._free.acquire(timeout=self._hang_seconds):
                # The hanging threads leave the semaphore that they were admitted by, on which nobody waits any more.
                self._free = threading.Semaphore(self._at_once - 1)
            free = self._free
        try:
            yield
        finally:
            free.release()
