"""How soon something arrives: the first byte of a new container, and a line of one that runs; against a raw attach over
the SDK."""

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import docker
from docker.types import LogConfig

from bench.ratio import Margin, Ratio, in_turn
from bench.server import server
from fastlane_grpc import Client
from fastlane_grpc.client import Output

FIRST_BYTES = 10
LINES = 300
# It prints the time at which it was read, of the clock that is ours too, to the microsecond.
SCRIPT = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); adjtimex; usleep 10000; done"
TIME = re.compile(rb"time\.tv_sec: +(\d+)\s+time\.tv_usec: +(\d+)\n")


def first_byte(stage: Path, image: str, engine: str, rounds: int) -> Ratio:
    sdk = docker.APIClient(engine, version="auto")
    with server(stage, "--engine", engine) as running, Client(running.address) as client:

        def ours() -> float:
            return _per_second(lambda: next(_followed(client, image, ["echo", "first"])))

        def theirs() -> float:
            return _per_second(lambda: next(_attached(sdk, image, ["echo", "first"])))

        return in_turn(
            "enqueue to first byte, against create, attach, start", "first bytes/s", 0.95, ours, theirs, rounds=rounds
        )


def lines(stage: Path, image: str, engine: str, rounds: int) -> Iterator[Margin]:
    sdk = docker.APIClient(engine, version="auto")
    ours: list[float] = []
    theirs: list[float] = []
    with server(stage, "--engine", engine) as running, Client(running.address) as client:
        for _ in range(rounds):
            ours += _delays(_followed(client, image, ["sh", "-c", SCRIPT]))
            theirs += _delays(_attached(sdk, image, ["sh", "-c", SCRIPT]))
    for name, percent, goal in (("p50", 50, 3.0), ("p99", 99, 15.0)):
        of_ours, of_theirs = (statistics.quantiles(delays, n=100)[percent - 1] for delays in (ours, theirs))
        yield Margin(f"line printed to line at the client, {name}, against attach", "ms", of_ours, of_theirs, goal)


def _per_second(once: Callable[[], bytes]) -> float:
    begin = time.perf_counter()
    for _ in range(FIRST_BYTES):
        once()
    return FIRST_BYTES / (time.perf_counter() - begin)


def _followed(client: Client, image: str, command: Sequence[str]) -> Iterator[bytes]:
    """What a job prints, as it comes."""
    with client.tail(client.enqueue("bench", image, args=command).execution.id) as tail:
        for event in tail:
            if isinstance(event, Output):
                yield event.data


def _attached(sdk: docker.APIClient, image: str, command: Sequence[str]) -> Iterator[bytes]:
    """What a container prints, as it comes."""
    host_config = sdk.create_host_config(log_config=LogConfig(type="none"))
    container = sdk.create_container(image, list(command), host_config=host_config)["Id"]
    try:
        stream = sdk.attach(container, stream=True)
        sdk.start(container)
        yield from stream
    finally:
        sdk.remove_container(container, force=True)


def _delays(pieces: Iterator[bytes]) -> Iterator[float]:
    """Milliseconds from when each time was read to when it came."""
    rest = b""
    for piece in pieces:
        now, rest = time.time(), rest + piece
        for seconds, microseconds in TIME.findall(rest):
            yield 1000 * (now - int(seconds) - int(microseconds) / 1e6)
        rest = rest[max((match.end() for match in TIME.finditer(rest)), default=0) :]
