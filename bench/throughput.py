"""Output of one container to one client: `fastlane run | cat` against `docker run | cat`, whole commands."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.ratio import Ratio, in_turn
from bench.server import server

# What is printed: lines as programs print them, and the shortest there are.
LINES = {"lines": "0123456789" * 9 + "01234567", "y lines": "y"}
# What `docker run` does with it besides: nothing, or what it does unless told otherwise; and how much faster we want to
# be.
DRIVERS = {"--log-driver none": (["--log-driver", "none"], 1.3), "the default log driver": ([], 3.0)}
MEGABYTES = 200
# Of short lines the default log driver makes so much work that all of them would take minutes.
MEGABYTES_OF_Y_LOGGED = 20


def rows(stage: Path, image: str, engine: str, rounds: int) -> Iterator[Ratio]:
    docker_command = shutil.which("docker") or sys.exit("the docker command is missing: this row compares with it")
    with server(stage, "--engine", engine) as running:
        for (name, line), (driver, (flags, goal)) in itertools.product(LINES.items(), DRIVERS.items()):
            megabytes = MEGABYTES_OF_Y_LOGGED if line == "y" and not flags else MEGABYTES
            script = f"yes {line} | head -c {megabytes}000000"
            ours = [
                sys.executable,
                "-m",
                "fastlane_grpc.cli",
                "run",
                "-q",
                "-a",
                running.address,
                image,
                "--",
                "sh",
                "-c",
                script,
            ]
            theirs = [docker_command, "-H", engine, "run", "--rm", *flags, image, "sh", "-c", script]
            yield in_turn(
                f"{megabytes} MB of {name}, against docker run | cat, {driver}",
                "MB/s",
                goal,
                partial(megabytes_per_second, ours, megabytes),
                partial(megabytes_per_second, theirs, megabytes),
                rounds=rounds,
            )


def megabytes_per_second(command: list[str], megabytes: int) -> float:
    """Return the rate of a whole command that prints so much."""
    begin = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as producer,
        subprocess.Popen(["cat"], stdin=producer.stdout, stdout=subprocess.DEVNULL) as consumer,
    ):
        if producer.wait() or consumer.wait():
            sys.exit(f"{command[0]} ended with {producer.returncode}")
    return megabytes / (time.perf_counter() - begin)
