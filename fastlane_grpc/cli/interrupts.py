"""Ctrl-C in `fastlane run`: once stops the job, twice leaves it."""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

from fastlane_grpc import client as api
from fastlane_grpc.cli.display.terminal import line_was_begun
from fastlane_grpc.cli.errors import INTERRUPTED
from fastlane_grpc.text.sanitize import printable

# A stop is worth waiting for a server that is away.
_STOP_FOR = timedelta(minutes=2)


class Interrupts:
    """Handlers of SIGINT and SIGTERM: the first signal stops the job, the second ends the command.

    A handler may run anywhere in the main thread, in the middle of gRPC too. So it only posts an order; a thread
    carries it out.
    """

    def __init__(self, client: Callable[..., api.Client]) -> None:
        """`client` makes a client, with options of `Client`."""
        self._client = client
        self._count = 0
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._job_id = ""
        self._stopped = False
        self._no_job = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def job_is_known(self, job_id: str) -> None:
        self._job_id = job_id
        threading.Thread(target=self._carry_out, name="fastlane-stop", daemon=True).start()

    def pause(self, seconds: float) -> None:
        """Sleep before a refused enqueue is tried again."""
        with self.before_a_job():
            time.sleep(seconds)

    @contextmanager
    def before_a_job(self) -> Iterator[None]:
        """Tell that no job is kept meanwhile, so that one Ctrl-C leaves."""
        before, self._no_job = self._no_job, True
        if self._count:
            self._leave("left; no job was enqueued")
        yield
        self._no_job = before

    def _handle(self, number: int, _: object) -> None:
        self._count += 1
        if self._no_job:
            self._leave("left; no job was enqueued")
        if self._count == 1:
            self._orders.put(signal.Signals(number).name)
            return
        if not self._job_id:
            text = "detached before the server answered; the job may have been enqueued"
        elif self._stopped:
            text = f"detached; the job is stopping. Show it with: fastlane logs {self._job_id}"
        else:
            text = (
                f"detached; the job may still run. Show it with: fastlane logs {self._job_id}; "
                f"stop it with: fastlane stop {self._job_id}"
            )
        self._leave(text)

    def _leave(self, text: str) -> NoReturn:
        # Now, whatever waits for whatever: nothing of ours is buffered.
        _say(text)
        os._exit(INTERRUPTED)

    def _carry_out(self) -> None:
        name = self._orders.get()
        _say(f"stopping job {self._job_id}; press Ctrl-C again to detach")
        line_was_begun()
        try:
            with self._client(timeout=_STOP_FOR) as client:
                client.stop(self._job_id, f"{name} in fastlane run")
            self._stopped = True
        except api.Error as error:
            os.write(2, f"fastlane: cannot stop job {self._job_id}: {printable(str(error))}\n".encode())


def _say(text: str) -> None:
    # On a terminal the line has the ^C of the user.
    begin = "\n" if os.isatty(2) else ""
    os.write(2, f"{begin}fastlane: {text}\n".encode())
