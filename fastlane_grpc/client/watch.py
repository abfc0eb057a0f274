"""The blocking watch: jobs and their changes, resumed where the stream is interrupted."""

from collections.abc import Iterator
from typing import Any, Self, cast

import grpc

from fastlane_grpc.client.tail import Tail
from fastlane_grpc.client.watch_events import WatchEvent
from fastlane_grpc.client.watch_progress import WatchProgress
from fastlane_grpc.v1 import fastlane_pb2


class Watch(Iterator[WatchEvent]):
    """Iterate over jobs: those that match now, `CaughtUp`, then every change. It has no end of its own.

    Interruptions are resumed. Leaving it (`close`, `with`, the last reference gone) cancels the call; after `close`,
    which any thread may call, it finishes."""

    def __init__(
        self,
        method: "grpc.UnaryStreamMultiCallable[fastlane_pb2.WatchJobsRequest, fastlane_pb2.WatchJobsResponse]",
        progress: WatchProgress,
        silence_seconds: float,
    ) -> None:
        # A tail reads any stream that resumes by a cursor: what its messages are only its progress knows.
        self._tail = Tail(cast(Any, method), progress, silence_seconds)

    @property
    def cursor(self) -> str:
        """The point after the last event: pass it to `Client.watch` to go on from there. Empty until `CaughtUp`."""
        return self._tail.cursor

    def __next__(self) -> WatchEvent:
        return cast(WatchEvent, next(self._tail))

    def close(self) -> None:
        self._tail.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
