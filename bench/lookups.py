"""Looking things up, against an empty call on the same stack: one job, and a page of fifty."""

from collections.abc import Iterator
from pathlib import Path

from bench.calls import ECHO, IN_FLIGHT, calls_per_second, echo_server
from bench.ratio import Ratio, in_turn
from bench.server import server
from fastlane_grpc import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb

JOBS = 1_000
GETS, LISTS, EMPTY = 6_000, 600, 6_000


def rows(stage: Path, rounds: int) -> Iterator[Ratio]:
    # No engine: what is enqueued stays in the queue, so only the looking up is measured.
    no_engine = f"unix://{stage}/no-engine.sock"
    with echo_server() as echo_address, server(stage, "--engine", no_engine) as running:
        with Client(running.address) as client:
            jobs = [
                client.enqueue(f"task-{number % 20}", "registry:5000/mail:1.2", command="python send.py").id
                for number in range(JOBS)
            ]
        gets = [pb.GetJobRequest(job_id=jobs[number % JOBS]).SerializeToString() for number in range(GETS)]
        lists = [pb.ListJobsRequest(page_size=50).SerializeToString()] * LISTS
        # A job of a page may cost a fifth of an empty call.
        for what, method, goal, requests in (
            ("GetJob", "GetJob", 0.5, gets),
            ("ListJobs, a page of 50", "ListJobs", 0.1, lists),
        ):
            yield in_turn(
                f"{what}, {IN_FLIGHT} in flight, against an empty call",
                "calls/s",
                goal,
                lambda method=method, requests=requests: calls_per_second(  # type: ignore[misc]
                    running.address, f"/fastlane.v1.JobService/{method}", requests
                ),
                lambda: calls_per_second(echo_address, ECHO, [b""] * EMPTY),
                rounds=rounds,
            )
