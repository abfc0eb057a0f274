"""What output costs that nobody looks at: the server's CPU while containers print without end, against the same ones
asleep."""

import threading
from pathlib import Path

from bench.ratio import Margin
from bench.server import cpu_seconds, server
from fastlane_grpc import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb

CONTAINERS = 8
SECONDS = 5.0


def row(stage: Path, image: str, engine: str) -> Margin:
    with (
        server(stage, "--engine", engine, "--max-running", str(CONTAINERS), "--max-log-bytes", "64m") as running,
        Client(running.address) as client,
    ):
        flooding, asleep = (
            _cpu_ms_per_second(client, image, running.process_id, command) for command in ("yes", "sleep 60")
        )
    return Margin(
        f"server CPU, {CONTAINERS} flooding containers nobody follows, against asleep", "ms/s", flooding, asleep, 5.0
    )


def _cpu_ms_per_second(client: Client, image: str, process: int, command: str) -> float:
    jobs = [client.enqueue("bench", image, command=command) for _ in range(CONTAINERS)]
    for job in jobs:
        with client.tail(job.execution.id) as tail:
            next(event for event in tail if getattr(event, "state", None) == pb.STATE_RUNNING)
    begin = cpu_seconds(process)
    threading.Event().wait(SECONDS)
    used = cpu_seconds(process) - begin
    for job in jobs:
        client.stop(job.id, grace=0)
    for job in jobs:
        list(client.tail(job.execution.id, sources=[pb.SOURCE_SYSTEM]))
    return 1000 * used / SECONDS
