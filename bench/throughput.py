"""Output of one container to one client: `fastlane run | cat` against `docker run | cat`, whole commands."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.ratio import Ratio, in_turn
from bench.server import server

MEGABYTES = 200
LINE = "0123456789" * 9 + "01234567"  # and a number and newline: about 100 bytes
SCRIPT = f"yes {LINE} | head -c {MEGABYTES}000000"


def row(stage: Path, image: str, engine: str, rounds: int) -> Ratio:
    docker_command = shutil.which("docker") or sys.exit("the docker command is missing: this row compares with it")
    with server(stage, "--engine", engine) as address:
        ours = [sys.executable, "-m", "fastlane_grpc.cli", "run", "-q", "-a", address, image, "--", "sh", "-c", SCRIPT]
        theirs = [docker_command, "-H", engine, "run", "--rm", "--log-driver", "none", image, "sh", "-c", SCRIPT]
        return in_turn(
            f"{MEGABYTES} MB of lines to one client, against docker run | cat",
            "MB/s",
            1.0,
            lambda: _megabytes_per_second(ours),
            lambda: _megabytes_per_second(theirs),
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
