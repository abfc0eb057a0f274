"""Output of one container to one client: `fastlane run | cat` against `docker run | cat`, whole commands."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.ratio import Ratio, in_turn
from bench.server import server

MEGABYTES = 200
# What is printed: lines as programs print them, and the shortest there are.
LINES = {"lines": "0123456789" * 9 + "01234567", "y": "y"}
# What `docker run` does with it besides: nothing, or what it does unless told otherwise; and how much faster we want to be.
DRIVERS = {"--log-driver none": (["--log-driver", "none"], 1.5), "the default log driver": ([], 3.0)}


def rows(stage: Path, image: str, engine: str, rounds: int) -> Iterator[Ratio]:
    docker_command = shutil.which("docker") or sys.exit("the docker command is missing: this row compares with it")
    with server(stage, "--engine", engine) as running:
        for name, line in LINES.items():
            script = f"yes {line} | head -c {MEGABYTES}000000"
            ours = [sys.executable, "-m", "fastlane_grpc.cli", "run", "-q", "-a", running.address, image, "--", "sh", "-c", script]
            for driver, (flags, goal) in DRIVERS.items():
                theirs = [docker_command, "-H", engine, "run", "--rm", *flags, image, "sh", "-c", script]
                yield in_turn(
                    f"{MEGABYTES} MB of {name}, against docker run | cat, {driver}",
                    "MB/s",
                    goal,
                    lambda ours=ours: _megabytes_per_second(ours),  # type: ignore[misc]
                    lambda theirs=theirs: _megabytes_per_second(theirs),  # type: ignore[misc]
                    rounds=rounds,
                )


def _megabytes_per_second(command: list[str]) -> float:
    begin = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as producer,
        subprocess.Popen(["cat"], stdin=producer.stdout, stdout=subprocess.DEVNULL) as consumer,
    ):
        if producer.wait() or consumer.wait():
            sys.exit(f"{command[0]} ended with {producer.returncode}")
    return MEGABYTES / (time.perf_counter() - begin)
