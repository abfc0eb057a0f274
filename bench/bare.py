"""What a log stream is measured against: `python -m bench.bare MESSAGE_BYTES MESSAGES STREAMS`, grpc.aio on uvloop and
nothing else.

It answers the method of a log stream: one short message, and when as many STREAMS have that, to each the same
ready-made one so often."""

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import uvloop

SERVICE, METHOD = "fastlane.v1.ExecutionService", "StreamExecutionLogs"


async def main(message: bytes, messages: int, streams: int) -> None:
    present, all_there = 0, asyncio.Event()

    async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
        nonlocal present, all_there
        flood = all_there
        present += 1
        if present == streams:
            # Those that come later are the next round.
            present, all_there = 0, asyncio.Event()
            flood.set()
        yield b"first"
        await flood.wait()
        for _ in range(messages):
            yield message

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {METHOD: grpc.unary_stream_rpc_method_handler(stream)})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(bytes(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])))
