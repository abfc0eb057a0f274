"""Durable enqueues per second, 64 in flight, against an empty call on the same stack (grpc.aio on uvloop, a process of its own)."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import uvloop

from bench.ratio import Ratio, in_turn
from bench.server import server
from fastlane_grpc.v1 import fastlane_pb2 as pb

IN_FLIGHT = 64
CALLS = 6_000
ENQUEUE = "/fastlane.v1.JobService/EnqueueJob"
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


def row(stage: Path, rounds: int) -> Ratio:
    # No engine: what is enqueued stays in the queue, so only the enqueue is measured.
    no_engine = f"unix://{stage}/no-engine.sock"
    echo = subprocess.Popen([sys.executable, "-c", _ECHO_SERVER], stdout=subprocess.PIPE, text=True)
    assert echo.stdout is not None
    try:
        echo_address = f"127.0.0.1:{int(echo.stdout.readline())}"
        with server(stage, "--engine", no_engine) as running:
            return in_turn(
                f"durable EnqueueJob, {IN_FLIGHT} in flight, against an empty call",
                "calls/s",
                0.5,
                lambda: _calls_per_second(running.address, ENQUEUE, _request),
                lambda: _calls_per_second(echo_address, ECHO, lambda number: b""),
                rounds=rounds,
            )
    finally:
        echo.terminate()
        echo.wait(10)
        echo.stdout.close()


def _request(number: int) -> bytes:
    spec = pb.JobSpec(
        image="registry:5000/mail:1.2", command="python /app/sendmail.py", envs={"SMTP_SERVER": "my-smtp-server", "PADDING": "x" * 200}
    )
    return pb.EnqueueJobRequest(task_id=f"task-{number % 500}", spec=spec, request_id=f"{time.time_ns()}-{number}").SerializeToString()


def _calls_per_second(address: str, method: str, request: Callable[[int], bytes]) -> float:
    return uvloop.run(_measure(address, method, [request(number) for number in range(CALLS)]))


async def _measure(address: str, method: str, requests: list[bytes]) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(method)
        await call(requests[-1])
        left = iter(requests)

        async def caller() -> None:
            for request in left:
                await call(request)

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return CALLS / (time.perf_counter() - begin)
