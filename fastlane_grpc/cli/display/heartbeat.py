"""A line on stderr each time that a job has printed nothing for a while: CI systems end a step that is silent."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from fastlane_grpc.cli.display.terminal import say
from fastlane_grpc.cli.errors import Failure


class Heartbeat:
    """A line on stderr after each `seconds` of silence, written by a thread of its own.

    `text` makes the line from the length of the silence so far."""

    def __init__(self, seconds: float, text: Callable[[timedelta], str]) -> None:
        self._seconds = seconds
        self._text = text
        self._output_time = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="fastlane-heartbeat", daemon=True).start()

    def reset(self) -> None:
        """Note that there was output."""
        self._output_time = time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        due = self._output_time + self._seconds
        while not self._closed.wait(max(due - time.monotonic(), 0)):
            quiet_seconds = time.monotonic() - self._output_time
            if quiet_seconds >= self._seconds:
                # Nobody reads stderr: only the main thread can end of that (ValueError).
                with suppress(Failure, ValueError):
                    say(self._text(timedelta(seconds=quiet_seconds)))
                due = time.monotonic() + self._seconds
            else:
                due = self._output_time + self._seconds
