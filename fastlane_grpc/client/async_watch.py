"""The asyncio watch: jobs and their changes, resumed where the stream is interrupted."""

from collections.abc import AsyncIterator
from typing import Any, Self, cast

import grpc

from fastlane_grpc.client.async_tail import AsyncTail
from fastlane_grpc.client.watch_events import WatchEvent
from fastlane_grpc.client.watch_progress import WatchProgress
from fastlane_grpc.v1 import fastlane_pb2


class AsyncWatch(AsyncIterator[WatchEvent]):
    """An iterator like `Watch`, over jobs and their changes. One task at a time reads; any may close it."""

    def __init__(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[fastlane_pb2.WatchJobsRequest, fastlane_pb2.WatchJobsResponse]",
        progress: WatchProgress,
        silence_seconds: float,
    ) -> None:
        # A tail reads any stream that resumes by a cursor: what its messages are only its progress knows.
        self._tail = AsyncTail(cast(Any, method), progress, silence_seconds)

    @property
    def cursor(self) -> str:
        """The point after the last event: pass it to `AsyncClient.watch` to go on from there. Empty until
        `CaughtUp`."""
        return self._tail.cursor

    async def __anext__(self) -> WatchEvent:
        return cast(WatchEvent, await anext(self._tail))

    async def close(self) -> None:
        await self._tail.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
