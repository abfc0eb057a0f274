"""Calls of one kind per second, many in flight, and a server of empty ones on the same stack (grpc.aio on uvloop, a
process of its own)."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
import uvloop

IN_FLIGHT = 64
ECHO = "/bench.Echo/Echo"

_ECHO_SERVER = """
import asyncio, grpc, uvloop
async def main():
    async def echo(request, context):
        return request
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Echo", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()
uvloop.run(main())
"""


@contextmanager
def echo_server() -> Iterator[str]:
    """Where it is reached, for as long as this lasts."""
    echo = subprocess.Popen([sys.executable, "-c", _ECHO_SERVER], stdout=subprocess.PIPE, text=True)
    assert echo.stdout is not None
    try:
        yield f"127.0.0.1:{int(echo.stdout.readline())}"
    finally:
        echo.terminate()
        echo.wait(10)
        echo.stdout.close()


def calls_per_second(address: str, method: str, requests: Sequence[bytes]) -> float:
    return uvloop.run(_measure(address, method, requests))


async def _measure(address: str, method: str, requests: Sequence[bytes]) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        await call(requests[-1])
        left = iter(requests)

        async def caller() -> None:
            for request in left:
                await call(request)

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return len(requests) / (time.perf_counter() - begin)
