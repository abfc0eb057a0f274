"""The asyncio tail: the output of one execution or of a job, live or late, resumed where it is interrupted."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Self, cast

import grpc

from fastlane_grpc.client.errors import Error, ended_early, error_of, fell_silent
from fastlane_grpc.client.events import Event
from fastlane_grpc.client.progress import Progress, TailRequest, TailResponse


class AsyncTail(AsyncIterator[Event]):
    """An iterator like `Tail`, over the output of one execution, up to `End`, or of a job's executions, up to `JobEnd`.
    Interruptions are resumed.

    A task that is cancelled while it waits here ends the call and nothing else: who asks again goes on at the byte
    where it was. One task at a time reads; any may close it. The last reference gone ends the call as well.
    """

    def __init__(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[Any, Any]",
        progress: Progress,
        silence_seconds: float,
    ) -> None:
        self._method = method
        self._progress = progress
        self._silence_seconds = silence_seconds
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._call: grpc.aio.UnaryStreamCall[TailRequest, TailResponse] | None = None

    @property
    def cursor(self) -> str:
        """The point after the last message whose events were all returned: pass it to `AsyncClient.tail` to resume
        there.

        A message may hold several chunks. To keep a cursor that says exactly what was dealt with, read by `batches`.
        """
        return self._progress.cursor

    async def __anext__(self) -> Event:
        if not self._progress.ahead and not await self._read():
            raise StopAsyncIteration
        return self._progress.next_event()

    async def batches(self) -> AsyncIterator[Sequence[Event]]:
        """The events of one message at a time, for programs that write them together; `cursor` is the point after the
        batch."""
        while self._progress.ahead or await self._read():
            yield self._progress.next_events()

    async def close(self) -> None:
        """Cancel the call. Iterations that wait end without an `End`."""
        self._progress.over = True
        self._closed.set()
        self._drop_call()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        # On whatever thread collects it, perhaps after the loop is closed: then its calls are over too.
        if self._call is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._call.cancel)

    async def _read(self) -> bool:
        """Receive the next message with events, or one notice about the connection. False: the tail is over."""
        while not self._progress.over:
            received = await self._receive()
            if self._closed.is_set():
                break
            try:
                if isinstance(received, Error):
                    self._drop_call()
                    news = self._progress.cut(received)
                else:
                    news = self._progress.received(received)
            except Error:
                await self.close()
                raise
            if news:
                return True
        await self.close()
        return False

    async def _receive(self) -> TailResponse | Error:
        try:
            call = self._call or await self._open()
            async with asyncio.timeout(self._silence_seconds):
                message = await call.read()
        except TimeoutError:
            return fell_silent(self._silence_seconds)
        except grpc.aio.AioRpcError as failure:
            return error_of(failure)
        except asyncio.CancelledError:
            self._drop_call()
            # A call that `close` cancelled says so in the same way as a task that is cancelled.
            if self._closed.is_set() and not _cancelled():
                return ended_early()
            self._progress.pause_seconds = 0.0
            raise
        return ended_early() if message is grpc.aio.EOF else cast(TailResponse, message)

    async def _open(self) -> "grpc.aio.UnaryStreamCall[TailRequest, TailResponse]":
        if self._progress.pause_seconds:
            try:
                async with asyncio.timeout(self._progress.pause_seconds):
                    await self._closed.wait()
            except TimeoutError:
                pass
        self._call = self._method(self._progress.request())
        if self._closed.is_set():
            self._call.cancel()
        return self._call

    def _drop_call(self) -> None:
        if (call := self._call) is not None:
            self._call = None
            call.cancel()


def _cancelled() -> bool:
    """Whether somebody cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
