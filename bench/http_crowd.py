"""Readers of an event stream that only count: `python -m bench.http_crowd PORT PATH BYTES STREAMS`, in a process of
their own, a connection each.

Says `ready` when each has had its first event, and at the end, as JSON, seconds since then, and bytes of the log and
reads of all together. A reader ends when it has BYTES of the log: as base64 they are four thirds of that. The little
that comes beside them is counted, too."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import cast

import uvloop


class _Reader(asyncio.Protocol):
    def __init__(self, request: bytes, wanted: int, heard: Callable[[], None]) -> None:
        self._request = request
        self._left = wanted
        self._heard: Callable[[], None] | None = heard
        self.reads = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._heard is not None:
            if b"data: " not in data:
                return
            self._heard()
            self._heard = None
            return
        self.reads += 1
        self._left -= len(data)
        if self._left <= 0 and not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server ended the stream"))


async def main(port: int, path: str, wanted: int, streams: int) -> None:
    left, begin = streams, 0.0

    def heard() -> None:
        nonlocal left, begin
        left -= 1
        if not left:
            begin = time.perf_counter()
            print("ready", flush=True)

    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    readers = [
        (await loop.create_connection(lambda: _Reader(request, wanted * 4 // 3, heard), "127.0.0.1", port))[1]
        for _ in range(streams)
    ]
    await asyncio.gather(*(reader.done for reader in readers))
    seconds = time.perf_counter() - begin
    print(json.dumps([seconds, wanted * streams, sum(reader.reads for reader in readers)]), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
