"""An answer of the store that is still to come: awaited on the loop, or waited for on a thread."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

from fastlane_grpc.call_record import CALL, CallRecord

T = TypeVar("T")


class Pending(Generic[T]):
    """The caller's thread decides which of the two it is. To stop waiting does not undo the call."""

    __slots__ = ("_future", "_what", "on_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, what: str) -> None:
        """`what`: the name of the wait in the record of the call that waits."""
        self._what = what
        self.on_loop = _running() is loop
        self._future: asyncio.Future[T] | concurrent.futures.Future[T] = (
            loop.create_future() if self.on_loop else concurrent.futures.Future()
        )

    def __await__(self) -> Generator[object, None, T]:
        if isinstance(self._future, concurrent.futures.Future):
            raise RuntimeError("this was asked for outside the store's loop: use result()")
        if (record := CALL.get()) is not None:
            return self._recorded(record, self._future)
        return self._future.__await__()

    def result(self, timeout: float | None = None) -> T:
        """Block until the answer is there and return it; for a thread. TimeoutError after `timeout` seconds."""
        if isinstance(self._future, concurrent.futures.Future):
            return self._future.result(timeout)
        raise RuntimeError("this was asked for on the loop, which must not block: await it")

    def _recorded(self, record: CallRecord, future: "asyncio.Future[T]") -> Generator[object, None, T]:
        start = perf_counter()
        try:
            return (yield from future.__await__())
        finally:
            record.note_wait(self._what, perf_counter() - start)

    def settle(self, answer: T, error: Exception | None) -> None:
        if self._future.done():
            return  # the caller went away; what was committed stays committed
        if error is None:
            self._future.set_result(answer)
        else:
            self._future.set_exception(error)


class Settled(NamedTuple):
    """The result of a Pending: the answer, or the error."""

    pending: Pending[Any]
    answer: Any
    error: Exception | None


def tell(loop: asyncio.AbstractEventLoop, settled: Sequence[Settled], then: Callable[[], None] | None = None) -> None:
    """Wake all callers: those on the loop by one callback, which then calls `then`; threads once that callback is
    scheduled."""
    on_loop = [one for one in settled if one.pending.on_loop]
    if on_loop or then:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            loop.call_soon_threadsafe(_tell_on_loop, on_loop, then)
    for pending, answer, error in settled:
        if not pending.on_loop:
            pending.settle(answer, error)


def _tell_on_loop(settled: Sequence[Settled], then: Callable[[], None] | None) -> None:
    for pending, answer, error in settled:
        pending.settle(answer, error)
    if then:
        then()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
