"""What the server's log says to an operator: a warning for what is wrong, once, and a line when it is over."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastlane_grpc.client import Client, End
from fastlane_grpc.docker.address import EngineAddress
from fastlane_grpc.docker.http import EngineRequest
from fastlane_grpc.machine.address import is_loopback
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import engine_address
from tests.serving import serving

OPEN = "connections are not encrypted (tls_cert), and anyone can run containers, which is root on the engine's host"


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.engine
def test_a_host_that_is_down_is_warned_of_once_and_said_to_be_up_again(tmp_path: Path) -> None:
    path = tmp_path / "nope.sock"
    with (
        serving(tmp_path / "data", engine=f"unix://{path}", listen="0.0.0.0:0", insecure="true") as server,
        Client(server.address) as client,
    ):
        assert server.log.count(f"insecure: other machines reach 0.0.0.0:{server.port}: {OPEN}") == 1
        down = f"host 'local' is down: no engine answers at unix://{path}: No such file or directory; trying again"
        wait_until(lambda: down in server.log)
        for _ in range(2):
            last = client.hosts()[0].last_error_time
            wait_until(lambda last=last: client.hosts()[0].last_error_time != last)  # type: ignore[misc]
        assert server.log.count("is down") == 1
        path.symlink_to(engine_address().removeprefix("unix://"))
        wait_until(lambda: "host 'local' is up" in server.log)
        assert server.log.count("is down") == 1


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("127.0.0.1:7631", True),
        ("127.8.0.1:7631", True),
        ("[::1]:7631", True),
        ("localhost:0", True),
        ("0.0.0.0:7631", False),
        ("[::]:7631", False),
        ("192.0.2.1:7631", False),
    ],
)
def test_a_loopback_address_is_told_from_one_that_others_reach(listen: str, loopback: bool) -> None:
    assert is_loopback(listen) is loopback


def test_a_connection_that_is_cut_under_its_reader_is_no_defect(tmp_path: Path) -> None:
    with socket.create_server(str(tmp_path / "engine"), family=socket.AF_UNIX) as listener:
        answer = threading.Thread(target=_answer, args=(listener,))
        answer.start()
        request = EngineRequest(EngineAddress(f"unix://{tmp_path}/engine"), "GET", "/events", answer_seconds=10)
        answer.join()
    request.cut()
    request.set_timeout(1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        next(request.lines())


def _answer(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")


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
        "--http-listen",
        "off",
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
