"""Supervision of threads and tasks: none of them ends unnoticed.

One rule holds for all. An unexpected exception is logged with its traceback. Work that can safely be done again is then
restarted, after a pause that grows while it fails. Work whose failure concerns one waiter alone hands the error to that
waiter. Everything else takes the server down on purpose: a server that does half of its work must not go on as if all
were well."""

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
    """The threads and tasks of one server. `down` is called, on any thread, with the name and the error of work that
    cannot go on."""

    def __init__(self, down: Callable[[str, BaseException], None], *, restarts: Backoff = RESTARTS) -> None:
        self._down = down
        self._restarts = restarts
        self._closing = threading.Event()

    def close(self) -> None:
        """From here on nothing is restarted, and work that ends by itself ends as it should."""
        self._closing.set()

    def down(self, name: str, error: BaseException) -> None:
        """Take the server down because of an error that was not to be expected."""
        report(name, error)
        self._down(name, error)

    def thread(self, name: str, work: Callable[[], None], *, restart: bool) -> threading.Thread:
        """A thread for `work`, not started yet. `work` returns when its owner has told it to end, and not before.

        It is a daemon: one that hangs does not keep the server from ending.
        """
        return threading.Thread(
            target=self._run_again if restart else self._run_once, args=(name, work), name=name, daemon=True
        )

    def task(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], *, restart: bool) -> "asyncio.Task[None]":
        """A running task for `work`, which is endless: its end is as unexpected as an exception, until the supervisor
        is closed."""
        return asyncio.get_running_loop().create_task(self._await(name, work, restart), name=name)

    def _run_once(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.down(name, error)

    def _run_again(self, name: str, work: Callable[[], None]) -> None:
        failures = _Failures(self._restarts)
        while True:
            failures.begin()
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
            failures.begin()
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
    """A daemon thread, not started yet, for work that one waiter alone depends on. An unexpected error is logged and
    handed over."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            report(name, error)
            on_failure(error if isinstance(error, Exception) else RuntimeError(f"{name} ended: {error!r}"))

    return threading.Thread(target=run, name=name, daemon=True)


def report(name: str, error: BaseException, **fields: object) -> None:
    """Log an error that was not to be expected, with its traceback."""
    with suppress(OSError, ValueError):  # the log may be on the disk that is full
        log.error("a defect of fastlane: work failed", work=name, exc_info=error, **fields)


def _raise(name: str, error: BaseException) -> None:
    raise RuntimeError(f"{name} failed") from error


# For parts that stand alone, without a server: work that cannot go on raises, where its thread or task ends.
ALONE = Supervisor(_raise)


class _Failures:
    """How often work failed, one failure soon after the other."""

    def __init__(self, restarts: Backoff) -> None:
        self._restarts = restarts
        self._count = 0
        self._begin = 0.0

    def begin(self) -> None:
        self._begin = time.monotonic()

    def pause_seconds(self) -> float:
        """The pause after one more failure. Work that went well for longer than the longest pause begins anew."""
        if time.monotonic() - self._begin > self._restarts.longest_seconds:
            self._count = 0
        pause_seconds = self._restarts.pause_seconds(self._count)
        self._count += 1
        return pause_seconds
