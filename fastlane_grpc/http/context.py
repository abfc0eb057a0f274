"""Objects that the handlers of HTTP share."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from fastlane_grpc.api import Calls
from fastlane_grpc.call_log import CallLog
from fastlane_grpc.config import Settings
from fastlane_grpc.counts import Counts
from fastlane_grpc.http.request_body import BodyReader
from fastlane_grpc.trust import Access

T = TypeVar("T")

# JSON of more bytes is converted on a thread of its own: meanwhile the loop serves others.
LARGE_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class HttpContext:
    """The calls, the settings, and what bounds the work of HTTP."""

    calls: Calls
    settings: Settings
    # Whether a name of the health service serves; see `RpcServer.serving`.
    is_serving: Callable[[str], bool]
    bodies: BodyReader
    # Returns all metrics, in a format that the header Accept allows, and its media type. None: there is no /metrics.
    scrape: Callable[[str], Awaitable[tuple[bytes, str]]] | None = None
    counts: Counts = field(default_factory=Counts)
    # The tokens in force. None: anybody may do anything.
    access: Access | None = None
    # Where calls are logged. None: nowhere.
    call_log: CallLog | None = None
    converter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "http-json"))

    async def convert(self, work: Callable[[], T], *, size: int) -> T:
        """Return what `work` returns, which converts JSON of this many bytes."""
        if size <= LARGE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.converter, work)
