"""Containers per second, eight at a time: whole jobs, against the SDK's create, start, wait and remove and nothing
else."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
from docker.types import LogConfig

from bench.ratio import Ratio, in_turn
from bench.server import server
from fastlane_grpc import Client
from fastlane_grpc.client import End

AT_A_TIME = 8
CONTAINERS = 48
COMMAND = ["true"]


def row(stage: Path, image: str, engine: str, rounds: int) -> Ratio:
    sdk = docker.APIClient(engine, version="auto", max_pool_size=2 * AT_A_TIME)
    host_config = sdk.create_host_config(log_config=LogConfig(type="none"))

    def raw_container(_: int) -> None:
        container = sdk.create_container(image, COMMAND, host_config=host_config)["Id"]
        sdk.start(container)
        sdk.wait(container)
        sdk.remove_container(container)

    def raw() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            list(threads.map(raw_container, range(CONTAINERS)))
        return CONTAINERS / (time.perf_counter() - begin)

    with (
        server(stage, "--engine", engine, "--max-running", str(AT_A_TIME)) as running,
        Client(running.address) as client,
    ):

        def jobs() -> float:
            begin = time.perf_counter()
            enqueued = [client.enqueue("bench", image, args=COMMAND) for _ in range(CONTAINERS)]
            for job in enqueued:
                # Followed one after the other: when the last log has ended, all have.
                *_, end = client.tail(job.execution.id)
                if not isinstance(end, End) or end.exit_status:
                    raise SystemExit(f"a job of the bench ended with {end}")
            return CONTAINERS / (time.perf_counter() - begin)

        return in_turn(
            f"{CONTAINERS} containers, {AT_A_TIME} at a time, against a raw SDK loop",
            "containers/s",
            0.95,
            jobs,
            raw,
            rounds=rounds,
        )
