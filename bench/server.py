"""A server of its own for a row, over an empty directory unless the row brings one."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_numbers = itertools.count()


class Running(NamedTuple):
    """Where it is reached, by gRPC and by HTTP, its process, and where its data is."""

    address: str
    http_port: int
    process_id: int
    directory: Path


@contextmanager
def server(stage: Path, *flags: str, directory: Path | None = None) -> Iterator[Running]:
    """One that serves for as long as this lasts; over `directory`, or one of its own."""
    directory = directory or stage / f"bench-{next(_numbers)}"
    command = [
        sys.executable,
        "-m",
        "fastlane_grpc.cli",
        "server",
        "--data-dir",
        str(directory),
        "--listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
        *flags,
    ]
    with Path(f"{directory}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "listening on " not in line:
            sys.exit(f"the server did not start: {Path(f'{directory}.log').read_text()}")
        http_port = int(line.partition("HTTP on http://127.0.0.1:")[2].partition(",")[0])
        yield Running(line.partition("listening on ")[2].partition(",")[0], http_port, process.pid, directory)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def cpu_seconds(process_id: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
