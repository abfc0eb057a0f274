"""Capture by the kubelet's log, from a node that says what a test wants: it hears its server, and owns up to losses."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlane_grpc.capture.capture import ContainerEnd
from fastlane_grpc.capture.kubelet import KubeletCapture, NoNodeLogs
from fastlane_grpc.model import Cause, Source
from tests.engine import Output, read_output

EXECUTION_ID = "01900000-0000-7000-8000-000000000000"
LINE = b"2026-11-29T15:00:00.000000001Z first\n"
END = ContainerEnd(None, witnessed=True)
GAP = [(Source.STDOUT, None, Cause.ENGINE)]
# More than any step of a test takes.
SECONDS = 30


class Node:
    """Implements NodeLogs and NodeLog: a node that has one line, and hands it out when it `answers`."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answers = threading.Event()

    def log_of(self, execution_id: str) -> "Node":
        return self

    def check(self) -> None:
        """Do nothing."""

    def read(self, last_lines: int | None) -> Iterator[bytes]:
        self.asked.set()
        assert self.answers.wait(SECONDS)
        yield LINE


class Leaving(Exception):
    """What a server that stops raises to those that wait."""


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.answers.set()
    for each in followers():
        each.join(SECONDS)


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if EXECUTION_ID in thread.name]


def new_capture(directory: Path, logs: Node | NoNodeLogs) -> KubeletCapture:
    return KubeletCapture(logs, directory, EXECUTION_ID, max_log_bytes=1 << 30, log_line=lambda line: None)


def sealed(directory: Path, capture: KubeletCapture) -> Output:
    capture.seal(0, {})
    return read_output(directory / "log")


def gaps(output: Output) -> list[object]:
    return [(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps]


def no_wait(seconds: float) -> None:
    """Wait for nothing: what is waited for has a wait of its own."""


def test_a_server_that_leaves_waits_for_no_node(tmp_path: Path, node: Node) -> None:
    capture = new_capture(tmp_path, node)
    capture.open("pod")
    capture.release_start_resources()
    assert node.asked.wait(SECONDS)

    def leave(seconds: float) -> None:
        raise Leaving

    with pytest.raises(Leaving):
        capture.drain(END, leave)
    capture.detach()
    assert followers(), "the node still owes an answer"
    node.answers.set()
    for each in followers():
        each.join(SECONDS)
    # The record and the note beside it are the next server's by now.
    assert read_output(tmp_path / "log").stdout == b""
    assert not (tmp_path / "node-log").exists()
    capture = new_capture(tmp_path, node)
    capture.resume(None)
    capture.drain(END, no_wait)
    assert sealed(tmp_path, capture).stdout == b"first\n"


def test_the_rest_is_read_at_the_end_of_the_container(tmp_path: Path, node: Node) -> None:
    capture = new_capture(tmp_path, node)
    capture.open("pod")
    node.answers.set()
    assert capture.drain(END, no_wait) == ""
    output = sealed(tmp_path, capture)
    assert (output.stdout, gaps(output)) == (b"first\n", [])


@pytest.mark.parametrize("end", [None, END], ids=["given up", "ended"])
def test_what_nobody_can_read_any_more_is_a_gap(tmp_path: Path, node: Node, end: ContainerEnd | None) -> None:
    capture = new_capture(tmp_path, node)
    capture.open("pod")
    node.answers.set()
    capture.drain(END, no_wait)
    capture.detach()
    capture = new_capture(tmp_path, NoNodeLogs())
    capture.resume(None)
    capture.drain(end, no_wait)
    output = sealed(tmp_path, capture)
    assert (output.stdout, gaps(output)) == (b"first\n", GAP)


def test_a_container_that_never_ran_has_an_empty_log_without_a_gap(tmp_path: Path, node: Node) -> None:
    capture = new_capture(tmp_path, node)
    capture.open("pod")
    capture.drain(None, no_wait)
    output = sealed(tmp_path, capture)
    assert (output.stdout, gaps(output)) == (b"", [])
