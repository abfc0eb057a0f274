"""Durable enqueues per second by JSON over HTTP, 64 connections, against an empty call of Starlette under uvicorn, a
process of its own."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import uvloop

from bench.calls import IN_FLIGHT
from bench.ratio import Ratio, in_turn
from bench.server import server

CALLS = 6_000


def row(stage: Path, rounds: int) -> Ratio:
    # No engine: what is enqueued stays in the queue, so only the enqueue is measured.
    no_engine = f"unix://{stage}/no-engine.sock"
    with _bare() as bare, server(stage, "--engine", no_engine) as running:
        return in_turn(
            f"durable enqueue over HTTP, {IN_FLIGHT} connections, against an empty call",
            "calls/s",
            0.06,
            lambda: requests_per_second(running.http_port, [_request(number) for number in range(CALLS)]),
            lambda: requests_per_second(bare, [_request(number) for number in range(CALLS)]),
            rounds=rounds,
        )


def requests_per_second(port: int, requests: Sequence[bytes]) -> float:
    """Send all requests over as many connections as are in flight; return how many were answered in a second."""
    return uvloop.run(_rate(port, requests))


async def _rate(port: int, requests: Sequence[bytes]) -> float:
    loop = asyncio.get_running_loop()
    waiting = iter(requests)
    begin = time.perf_counter()
    connections = [
        (await loop.create_connection(lambda: _Client(waiting), "127.0.0.1", port))[1] for _ in range(IN_FLIGHT)
    ]
    await asyncio.gather(*(each.done for each in connections))
    return len(requests) / (time.perf_counter() - begin)


class _Client(asyncio.Protocol):
    """A connection that sends one request after the other, each when the last one was answered."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._received = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        assert head.startswith(b"HTTP/1.1 20"), self._received
        if len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self._received = b""
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))

    def _next(self) -> None:
        for request in itertools.islice(self._requests, 1):
            self._transport.write(request)
            return
        if not self.done.done():
            self.done.set_result(None)
            self._transport.close()


def _request(number: int) -> bytes:
    body = json.dumps(
        {
            "image": "registry:5000/mail:1.2",
            "command": "python /app/sendmail.py",
            "envs": {"SMTP_SERVER": "my-smtp-server", "PADDING": "x" * 200},
            "request_id": f"{time.time_ns()}-{number}",
        }
    )
    head = (
        f"POST /tasks/task-{number % 500} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


@contextmanager
def _bare() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-m", "bench.bare_http"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
