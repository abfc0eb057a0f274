"""Connections and open files: however many others take, jobs run to their right end and the server is well afterwards
without help."""

import resource
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client, Error
from fastlane_grpc.machine.open_files import OpenFiles, needed
from fastlane_grpc.rpc.server import HANDSHAKE_SECONDS
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.reading import Reader
from tests.serving import Server, serving_on

FILES = 200
UNDER = ["prlimit", f"--nofile={FILES}"]
CONNECTIONS = 400
MAX_RUNNING = 4
# What somebody sends who then says nothing more: nothing, half of what HTTP/2 begins with, all of it without the frame
# that follows.
BEGINNINGS = [b"", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]

SLOW = "i=0; while [ $i -lt 6 ]; do i=$((i+1)); echo $i; sleep 0.5; done"
PRINTED = b"1\n2\n3\n4\n5\n6\n"

pytestmark = pytest.mark.timeout(120)


@contextmanager
def idle(port: int, count: int) -> Iterator[Sequence[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


@contextmanager
def without_descriptors(server: Server) -> Iterator[None]:
    """For as long as it lasts, the server cannot open anything."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (0, FILES))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.engine
@pytest.mark.slow
def test_hundreds_of_idle_connections_harm_no_job_and_are_closed(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    with (
        serving_on(sdk, tmp_path / "data", max_running=MAX_RUNNING, under=UNDER) as server,
        Client(server.address) as client,
    ):
        before = server.open_files
        running = Reader(client, client.enqueue("t", image, args=["sh", "-c", SLOW]).execution.id)
        running.wait_for_state(pb.STATE_RUNNING)
        with idle(server.port, CONNECTIONS) as connections:
            for number, connection in enumerate(connections):
                try:
                    connection.sendall(BEGINNINGS[number % len(BEGINNINGS)])
                except OSError:
                    continue  # Those beyond the limit were closed by now.
            # They hold what they may, and no more: a further job finds all that it needs.
            later = Reader(client, client.enqueue("t", image, args=["sh", "-c", SLOW]).execution.id)
            for reader in (running, later):
                assert (reader.end().exit_status, reader.stdout) == (0, PRINTED)
            assert server.open_files < FILES
            until = time.monotonic() + HANDSHAKE_SECONDS + 20
            for connection in connections:
                connection.settimeout(max(until - time.monotonic(), 0.1))
                try:
                    while connection.recv(4096):
                        pass
                except ConnectionError:
                    continue
        with Client(server.address) as new:
            assert new.server_info().version
        assert server.open_files <= before + MAX_RUNNING + 10
        assert "is down" not in server.log
        assert "Traceback" not in server.log


@pytest.mark.engine
def test_without_any_descriptor_work_waits_and_then_goes_on(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    with (
        serving_on(sdk, tmp_path / "data", max_running=MAX_RUNNING, under=UNDER) as server,
        Client(server.address) as client,
    ):
        running = Reader(client, client.enqueue("t", image, args=["sh", "-c", SLOW]).execution.id)
        running.wait_for_state(pb.STATE_RUNNING)
        with without_descriptors(server):
            later = Reader(client, client.enqueue("t", image, args=["sh", "-c", SLOW]).execution.id)
            until = time.monotonic() + 30
            while "short of open files" not in server.log:
                assert time.monotonic() < until
                threading.Event().wait(0.05)
            with pytest.raises(Error):
                Client(server.address, timeout=1, retry_for=0).server_info()
        for reader in (running, later):
            assert (reader.end().exit_status, reader.stdout) == (0, PRINTED)
        with Client(server.address) as new:
            assert new.server_info().version
        assert "is down" not in server.log


def test_open_files_are_divided_so_that_executions_have_theirs() -> None:
    for limit in (64, 200, 1024, 4096, 20_000, 1 << 20, 1 << 30):
        files = OpenFiles.of(limit, max_running=8)
        assert files.max_connections >= 1
        assert files.max_open_logs >= 1
        assert files.max_connections + 2 * files.max_open_logs <= limit - min(limit // 2, 100)
    assert OpenFiles.of(1 << 30, max_running=8).max_connections == 10_000


def test_each_pod_that_runs_has_a_connection_for_its_relay() -> None:
    for limit in (64, 1024, 20_000, 1 << 20):
        for max_running in (8, 4000, 50_000):
            files = OpenFiles.of(limit, max_running=max_running, listeners=3)
            assert files.max_relays(max_running) > max_running


def test_a_limit_that_is_said_to_do_does() -> None:
    limit = needed(max_running=8, max_streams=2000)
    files = OpenFiles.of(limit, max_running=8)
    assert files.max_connections >= 2000
    assert files.max_open_logs >= 2000
