"""Calls with the access log, and jobs with traces, each against the same without."""

import os
import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.calls import IN_FLIGHT, calls_per_second
from bench.enqueue import ENQUEUE, some_requests
from bench.ratio import Margin, Ratio, in_turn
from bench.server import Running, cpu_seconds, server
from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb

CALLS = 3_000
GOAL = 0.8
# A server is done when it takes less than this between two looks.
IDLE_CPU_SECONDS, LOOK_SECONDS = 0.03, 1.0


def rows(stage: Path, rounds: int) -> Iterator[Ratio | Margin]:
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
            yield _cpu_ms(what, ours, plain, rounds)


def _cpu_ms(what: str, ours: Running, theirs: Running, rounds: int) -> Margin:
    """The server's CPU time for a job that is enqueued and stopped."""
    _cpu_ms_of_a_job(ours), _cpu_ms_of_a_job(theirs)
    of_ours, of_theirs = zip(*((_cpu_ms_of_a_job(ours), _cpu_ms_of_a_job(theirs)) for _ in range(rounds)), strict=True)
    return Margin(
        f"CPU of the server for a job with {what}, against none",
        *("ms", statistics.median(of_ours), statistics.median(of_theirs), 1.0),
    )


def _enqueues_per_second(running: Running) -> float:
    rate = calls_per_second(running.address, ENQUEUE, some_requests(CALLS))
    _stop_all(running)
    return rate


def _cpu_ms_of_a_job(running: Running) -> float:
    begin = cpu_seconds(running.process_id)
    calls_per_second(running.address, ENQUEUE, some_requests(CALLS))
    _stop_all(running)
    used, before = cpu_seconds(running.process_id), begin
    # Traces are made and sent after the ends.
    while used - before > IDLE_CPU_SECONDS:
        threading.Event().wait(LOOK_SECONDS)
        used, before = cpu_seconds(running.process_id), used
    return 1000 * (used - begin) / CALLS


def _stop_all(running: Running) -> int:
    with Client(running.address, timeout=120) as client:
        return client.stop_many(states=[pb.STATE_QUEUED]).stopped
