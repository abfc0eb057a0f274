"""Supervision of threads and tasks: none of them ends unnoticed.

One rule holds for all. An unexpected exception is logged with its traceback. Work that can safely be repeated is then
restarted, after a pause that grows with each failure. Work that concerns one waiter alone passes the error to that
waiter. Everything else takes the server down on purpose: a server that does half of its work must not continue."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

from fastlane_grpc.backoff import Backoff

RESTARTS = Backoff(0.1, 30.0)

log = structlog.get_logger(__name__)


class Supervisor:
    """The supervisor of one server's threads and tasks. `down` is called, on any thread, with the name and the error of
    work that cannot continue."""

    def __init__(self, down: Callable[[str, BaseException], None], *, restarts: Backoff = RESTARTS) -> None:
        self._down = down
        self._restarts = restarts
        self._closing = threading.Event()

    def close(self) -> None:
        """Restart nothing from now on, and let work end."""
        self._closing.set()

    def down(self, name: str, error: BaseException) -> None:
        """Take the server down because of an unexpected error."""
        report(name, error)
        self._down(name, error)

    def thread(self, name: str, work: Callable[[], None], *, restart: bool) -> threading.Thread:
        """Return a thread for `work`, not started yet. `work` returns only after its owner has told it to.

        The thread is a daemon: a thread that hangs does not keep the server from ending."""
        return threading.Thread(
            target=self._run_again if restart else self._run_once, args=(name, work), name=name, daemon=True
        )

    def task(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], *, restart: bool) -> "asyncio.Task[None]":
        """Return a running task for endless `work`. Until the supervisor is closed, its end counts as an exception."""
        return asyncio.get_running_loop().create_task(self._await(name, work, restart), name=name)

    def _run_once(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.down(name, error)

    def _run_again(self, name: str, work: Callable[[], None]) -> None:
        failures = _Failures(self._restarts)
        while True:
            failures.start()
            try:
                work()
            except BaseException as error:
                pause_seconds = failures.pause_seconds()
                report(name, error, restart_seconds=round(pause_seconds, 1))
                if self._closing.wait(pause_seconds):
                    return
            else:
                return

    async def _await(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], restart: bool) -> None:
        failures = _Failures(self._restarts)
        while True:
            failures.start()
            try:
                await work()
                if self._closing.is_set():
                    return
                raise RuntimeError(f"{name} ended by itself")
            except Exception as error:
                if not restart:
                    self.down(name, error)
                    return
                pause_seconds = failures.pause_seconds()
                report(name, error, restart_seconds=round(pause_seconds, 1))
                await asyncio.sleep(pause_seconds)


def thread(name: str, work: Callable[[], None], *, on_failure: Callable[[Exception], None]) -> threading.Thread:
    """Return a daemon thread, not started yet, for work of one waiter. An unexpected error is logged and passed to
    `on_failure`."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            report(name, error)
            on_failure(error if isinstance(error, Exception) else RuntimeError(f"{name} ended: {error!r}"))

    return threading.Thread(target=run, name=name, daemon=True)


def one_task(name: str, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Return a running task for work that ends by itself. An unexpected error is logged."""

    async def run() -> None:
        try:
            await work
        except Exception as error:
            report(name, error)

    return asyncio.get_running_loop().create_task(run(), name=name)


def report(name: str, error: BaseException, **fields: object) -> None:
    """Log an unexpected error with its traceback."""
    with suppress(OSError, ValueError):  # the log may be on the disk that is full
        log.error("a defect of fastlane: work failed", work=name, exc_info=error, **fields)


def _raise(name: str, error: BaseException) -> None:
    raise RuntimeError(f"{name} failed") from error


# For parts without a server: work that cannot continue raises where its thread or task ends.
ALONE = Supervisor(_raise)


class _Failures:
    """The count of failures in quick succession."""

    def __init__(self, restarts: Backoff) -> None:
        self._restarts = restarts
        self._count = 0
        self._start_seconds = 0.0

    def start(self) -> None:
        self._start_seconds = time.monotonic()

    def pause_seconds(self) -> float:
        """Return the pause after one more failure. Counts from zero after a run longer than the longest pause."""
        if time.monotonic() - self._start_seconds > self._restarts.longest_seconds:
            self._count = 0
        pause_seconds = self._restarts.pause_seconds(self._count)
        self._count += 1
        return pause_seconds
