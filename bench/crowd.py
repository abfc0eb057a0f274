"""Readers that only count: `python -m bench.crowd ADDRESS REQUEST_AS_HEX BYTES STREAMS [METHOD]`, in a process of their
own. METHOD is the full name of a streaming method; by default that of log streams.

Says `ready` when each has had its first message, and at the end, as JSON, seconds since then, and bytes and messages of
all together. A reader ends with its stream, or when it has BYTES."""

import asyncio
import json
import sys
import time

import grpc
import uvloop

from bench.bare import METHOD, SERVICE

CONNECTIONS = 4


async def main(address: str, request: bytes, wanted: int, streams: int, method: str) -> None:
    left, begin = streams, 0.0

    async def read(channel: grpc.aio.Channel) -> tuple[int, int]:
        nonlocal left, begin
        stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
        call = stream(request)
        await call.read()
        left -= 1
        if not left:
            begin = time.perf_counter()
            print("ready", flush=True)
        size = messages = 0
        while size < wanted and isinstance(message := await call.read(), bytes):
            size += len(message)
            messages += 1
        call.cancel()
        return size, messages

    # Without a pool of its own each channel would use the same connection.
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(CONNECTIONS)
    ]
    got = await asyncio.gather(*(read(channels[number % CONNECTIONS]) for number in range(streams)))
    seconds = time.perf_counter() - begin
    print(json.dumps([seconds, sum(size for size, _ in got), sum(messages for _, messages in got)]), flush=True)


if __name__ == "__main__":
    method = sys.argv[5] if len(sys.argv) > 5 else f"/{SERVICE}/{METHOD}"
    uvloop.run(main(sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), method))
