"""The blocking tail: the output of one execution or of a job, live or late, resumed where it is interrupted."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import grpc

from fastlane_grpc.client.errors import Error, ended_early, error_of, fell_silent
from fastlane_grpc.client.events import Event
from fastlane_grpc.client.progress import Progress, TailResponse


class Tail(Iterator[Event]):
    """Iterate over the output of one execution, up to `End`, or of a job's executions, up to `JobEnd`.

    Interruptions are resumed: no byte is repeated or lost.

    Raises LogInconsistent where what came cannot be right: offsets are checked at every chunk, checksums at the end.
    Leaving it (`close`, `with`, the last reference gone) cancels the call; after `close`, which any thread may call, it
    finishes without its end."""

    def __init__(
        self,
        method: "grpc.UnaryStreamMultiCallable[Any, Any]",
        progress: Progress,
        silence_seconds: float,
    ) -> None:
        self._method = method
        self._progress = progress
        self._watch = _Watch(silence_seconds)
        self._closed = threading.Event()
        self._call: grpc._CallIterator[TailResponse] | None = None

    @property
    def cursor(self) -> str:
        """The point after the last message whose events were all returned: pass it to `Client.tail` to resume there.

        A message may hold several chunks. To keep a cursor that says exactly what was dealt with, read by `batches`.
        """
        return self._progress.cursor

    def __next__(self) -> Event:
        if not self._progress.ahead and not self._read():
            raise StopIteration
        return self._progress.next_event()

    def batches(self) -> Iterator[Sequence[Event]]:
        """The events of one message at a time, for programs that write them together; `cursor` is the point after the
        batch."""
        while self._progress.ahead or self._read():
            yield self._progress.next_events()

    def close(self) -> None:
        self._progress.over = True
        self._closed.set()
        self._watch.stop()
        if (call := self._call) is not None:
            self._call = None
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # This may run in the middle of anything, even of the interpreter's end. No lock may be taken: the call is left
        # to the watch.
        self._watch.stop()

    def _read(self) -> bool:
        """Receive the next message with events, or one notice about the connection. False: the tail is over."""
        while not self._progress.over:
            received = self._receive()
            if self._closed.is_set():
                break
            try:
                if isinstance(received, Error):
                    self._call = None
                    news = self._progress.cut(received)
                else:
                    news = self._progress.received(received)
            except Error:
                self.close()
                raise
            if news:
                return True
        self.close()
        return False

    def _receive(self) -> TailResponse | Error:
        call = self._call or self._open()
        if self._closed.is_set():
            call.cancel()
        self._watch.waits(call)
        try:
            return next(call)
        except StopIteration:
            return ended_early()
        except grpc.RpcError as failure:
            # The failure is the call itself: with the way it was raised it would keep itself, and this tail, from being
            # collected.
            failure.__traceback__ = None
            if self._watch.cancelled is call:
                return fell_silent(self._watch.silence_seconds)
            return error_of(failure)
        except BaseException:
            # Ctrl-C, say. A call that was left while it waited cannot be read again: whoever goes on gets a new one.
            call.cancel()
            self._call = None
            self._progress.pause_seconds = 0.0
            raise
        finally:
            self._watch.rests()

    def _open(self) -> "grpc._CallIterator[TailResponse]":
        self._closed.wait(self._progress.pause_seconds)
        self._call = self._method(self._progress.request())
        return self._call


class _Watch:
    """A thread that cancels a call whose reader has waited too long, or whose tail was dropped. Time in which the
    reader handles output does not count. The thread knows the call and not the tail, so that a dropped tail is
    collected."""

    def __init__(self, silence_seconds: float) -> None:
        self.silence_seconds = silence_seconds
        self.cancelled: grpc.Call | None = None
        self._call: grpc.Call | None = None
        self._waiting: tuple[grpc.Call, float] | None = None
        # The one kind of queue that a finalizer may put into, whatever it interrupts.
        self._orders: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def waits(self, call: grpc.Call) -> None:
        self._call = call
        self._waiting = (call, time.monotonic())
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fastlane-tail-watch", daemon=True)
            self._thread.start()

    def rests(self) -> None:
        self._waiting = None

    def stop(self) -> None:
        self._orders.put(None)

    def _run(self) -> None:
        while not self._stopped():
            # One read: the call and its time belong together, whatever the other thread does meanwhile.
            waiting = self._waiting
            if waiting is not None and time.monotonic() - waiting[1] >= self.silence_seconds:
                self.cancelled = waiting[0]
                waiting[0].cancel()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _stopped(self) -> bool:
        """Wait for as long as the call may still be silent."""
        waiting = self._waiting
        waited_seconds = 0.0 if waiting is None else time.monotonic() - waiting[1]
        try:
            # A tenth at least: a call that was just cancelled is still waited for.
            self._orders.get(timeout=max(self.silence_seconds - waited_seconds, self.silence_seconds / 10))
        except queue.Empty:
            return False
        return True
