"""Calls with the access log, and ends of executions with traces, each against the same without."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.calls import IN_FLIGHT, calls_per_second
from bench.enqueue import ENQUEUE, some_requests
from bench.ratio import Ratio, in_turn
from bench.server import Running, server
from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb

CALLS = 3_000
GOAL = 0.8


def rows(stage: Path, rounds: int) -> Iterator[Ratio]:
    no_engine = ("--engine", f"unix://{stage}/no-engine.sock")
    # Nothing listens there. So the work of a collector is in no figure, and that of the exporter is.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with ExitStack() as servers:
        plain, same, logging, tracing = (
            servers.enter_context(server(stage, *no_engine, *flags))
            for flags in ((), (), ("--access-log", str(stage / "access")), ("--tracing",))
        )
        # Two servers that are the same show how far the machine itself is from 1.
        for what, ours in (("nothing", same), ("the access log", logging)):
            yield in_turn(
                f"EnqueueJob with {what}, {IN_FLIGHT} in flight, against none",
                "calls/s",
                GOAL,
                partial(_enqueues_per_second, ours),
                partial(_enqueues_per_second, plain),
                rounds=rounds,
            )
        for what, ours in (("nothing", same), ("traces", tracing)):
            yield in_turn(
                f"ends of executions with {what}, against none",
                "ends/s",
                GOAL,
                partial(_ends_per_second, ours),
                partial(_ends_per_second, plain),
                rounds=rounds,
            )


def _enqueues_per_second(running: Running) -> float:
    rate = calls_per_second(running.address, ENQUEUE, some_requests(CALLS))
    _stop_all(running)
    return rate


def _ends_per_second(running: Running) -> float:
    calls_per_second(running.address, ENQUEUE, some_requests(CALLS))
    begin = time.perf_counter()
    stopped = _stop_all(running)
    # A call that waits behind what the ends have left to do on the loop.
    calls_per_second(running.address, ENQUEUE, some_requests(100))
    return stopped / (time.perf_counter() - begin)


def _stop_all(running: Running) -> int:
    with Client(running.address, timeout=120) as client:
        return client.stop_many(states=[pb.STATE_QUEUED]).stopped
