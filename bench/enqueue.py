"""Durable enqueues per second, 64 in flight, against an empty call on the same stack (grpc.aio on uvloop, a process of
its own)."""

import time
from collections.abc import Sequence
from pathlib import Path

from bench.calls import ECHO, IN_FLIGHT, calls_per_second, echo_server
from bench.ratio import Ratio, in_turn
from bench.server import server
from fastlane_grpc.v1 import fastlane_pb2 as pb

CALLS = 6_000
ENQUEUE = "/fastlane.v1.JobService/EnqueueJob"


def row(stage: Path, rounds: int) -> Ratio:
    # No engine: what is enqueued stays in the queue, so only the enqueue is measured.
    no_engine = f"unix://{stage}/no-engine.sock"
    with echo_server() as echo_address, server(stage, "--engine", no_engine) as running:
        return in_turn(
            f"durable EnqueueJob, {IN_FLIGHT} in flight, against an empty call",
            "calls/s",
            0.5,
            lambda: calls_per_second(running.address, ENQUEUE, some_requests(CALLS)),
            lambda: calls_per_second(echo_address, ECHO, [b""] * CALLS),
            rounds=rounds,
        )


def some_requests(count: int) -> Sequence[bytes]:
    """Return new requests to enqueue, encoded; each makes a job."""
    return [_request(number) for number in range(count)]


def _request(number: int) -> bytes:
    spec = pb.JobSpec(
        image="registry:5000/mail:1.2",
        command="python /app/sendmail.py",
        envs={"SMTP_SERVER": "my-smtp-server", "PADDING": "x" * 200},
    )
    return pb.EnqueueJobRequest(
        task_id=f"task-{number % 500}", spec=spec, request_id=f"{time.time_ns()}-{number}"
    ).SerializeToString()
