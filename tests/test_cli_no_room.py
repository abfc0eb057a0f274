"""The command line and a server without room for a job: it tries again as the server asks to, and says so once."""

import signal
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE, HELLO, environment, fastlane
from tests.scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.logs["execution-1"] = HELLO
    yield server
    server.stop()


def refuse(server: ScriptedServer, reason: str, seconds: float, message: str) -> None:
    more = {"retry_seconds": seconds, "message": message}
    server.refusals.append((grpc.StatusCode.RESOURCE_EXHAUSTED, reason, more))


@pytest.mark.parametrize("command", ["run", "enqueue"])
def test_an_enqueue_is_tried_again_when_the_server_asks_to_come_back(server: ScriptedServer, command: str) -> None:
    # Longer than the command line waits for a server that does not answer.
    refuse(server, "QUEUE_FULL", 3.1, "10 executions wait")
    refuse(server, "DISK_FULL", 3.1, "the disk is full")
    ran = fastlane(server, command, "busybox")
    assert ran.returncode == 0
    line, *_ = ran.stderr.decode().splitlines()
    assert line == "fastlane: the server has no room for this (10 executions wait); trying again for 30 s"
    assert ran.stderr.count(b"no room") == 1
    assert len({request.request_id for request in server.received(pb.EnqueueJobRequest)}) == 1
    assert len(server.received(pb.EnqueueJobRequest)) == 3


def test_an_enqueue_that_is_to_come_back_too_late_fails_at_once(server: ScriptedServer) -> None:
    refuse(server, "QUEUE_FULL", 60, "10 executions wait")
    ran = fastlane(server, "enqueue", "busybox")
    assert (ran.returncode, ran.stderr) == (1, b"fastlane: 10 executions wait\n")


@pytest.mark.parametrize("command", ["run", "enqueue"])
def test_an_interrupt_ends_a_command_that_waits_for_room(server: ScriptedServer, command: str) -> None:
    refuse(server, "QUEUE_FULL", 20, "10 executions wait")
    waiting = [*FASTLANE, command, "busybox"]
    with subprocess.Popen(waiting, env=environment(server), stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stderr
        assert b"no room" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == (130 if command == "run" else -signal.SIGINT)
        assert (b"no job was enqueued" in process.stderr.read()) == (command == "run")
    assert len(server.received(pb.EnqueueJobRequest)) == 1
