"""The server's own log: what happens where it cannot be written."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastlane_grpc.client import Client, End
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import engine_address


@pytest.mark.engine
def test_a_log_that_cannot_be_written_harms_no_job(tmp_path: Path, image: str) -> None:
    command = [
        sys.executable,
        "-m",
        "fastlane_grpc.cli",
        "server",
        "--data-dir",
        str(tmp_path / "data"),
        "--listen",
        "127.0.0.1:0",
    ]
    with Path("/dev/full").open("w") as full:
        server = subprocess.Popen(
            [*command, "--engine", engine_address()], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().partition("listening on ")[2].partition(",")[0]
        with Client(address) as client:
            job = client.enqueue("log", image, "echo hi")
            *_, end = client.tail(job.execution.id)
        assert isinstance(end, End)
        assert (end.state, end.exit_status) == (pb.STATE_SUCCEEDED, 0)
    finally:
        server.terminate()
        assert server.wait(30) == 0
        server.stdout.close()
