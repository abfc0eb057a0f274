"""Events of an engine that nobody understands: a proxy's words, or a newer engine's. The host listens on, and no
execution hangs."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fastlane_grpc.backend import BackendDown, ContainerEvent, UnreadableEvent
from fastlane_grpc.capture.kubelet import KubeletCaptures, NoNodeLogs
from fastlane_grpc.docker.address import EngineAddress
from fastlane_grpc.docker.events import read_event
from fastlane_grpc.docker.http import MAX_LINE_BYTES, EngineRequest
from fastlane_grpc.execution import Host
from fastlane_grpc.model import CaptureMode, State
from tests.cluster.processes import wait_until
from tests.engine import EngineHarness, engine_address, opened
from tests.proxy import Proxy
from tests.serving import within

ODD_EVENTS = {
    "not JSON": b"<html>502 Bad Gateway</html>",
    "nothing": b"",
    "not UTF-8": b"\xff\xfe",
    "nested deeply": b"[" * 100_000,
    "a number of many digits": b"9" * 10_000,
    "a list": b"[]",
    "a text": b'"die"',
    "null": b"null",
    "no actor": b"{}",
    "an actor that is a list": b'{"Actor": []}',
    "no attributes": b'{"Actor": {"ID": "1"}}',
    "attributes that are null": b'{"Actor": {"Attributes": null}}',
    "no action": b'{"Actor": {"Attributes": {"fastlane.execution": "x", "name": "y"}}}',
    "no time": b'{"Action": "die", "Actor": {"Attributes": {"exitCode": "0"}}}',
    "an error of a proxy": b'{"message": "upstream timed out"}',
    "huge": b'{"Actor": "' + b"x" * (3 * MAX_LINE_BYTES) + b'"}',
}


@pytest.mark.parametrize("line", ODD_EVENTS.values(), ids=ODD_EVENTS)
def test_an_event_of_an_unknown_shape_is_told_from_one_that_is_known(line: bytes) -> None:
    assert isinstance(read_event(line[:MAX_LINE_BYTES]), UnreadableEvent)


@pytest.mark.parametrize(
    ("code", "exit_code"), [("7", 7), ("", None), ("-1", None), (3, 3), (None, None), ("9" * 5000, None), ("²", None)]
)
def test_an_exit_code_of_an_unknown_shape_is_none(code: object, exit_code: int | None) -> None:
    about = {"fastlane.execution": "e", "name": "fastlane-e", "exitCode": code}
    line = json.dumps({"Action": "die", "Actor": {"ID": "c", "Attributes": about}, "timeNano": 5}).encode()
    assert read_event(line) == ContainerEvent("e", "c", True, exit_code, 5)


def test_a_line_without_an_end_takes_no_more_memory_than_a_line_may(tmp_path: Path) -> None:
    with socket.create_server(str(tmp_path / "engine"), family=socket.AF_UNIX) as listener:
        flood = threading.Thread(
            target=_answer, args=(listener, [b"a\n", *[b"x" * MAX_LINE_BYTES] * 5, b"\nb\n", b"c"])
        )
        flood.start()
        lines = list(
            EngineRequest(EngineAddress(f"unix://{tmp_path}/engine"), "GET", "/events", answer_seconds=10).lines()
        )
        flood.join()
    assert [len(line) for line in lines] == [1, MAX_LINE_BYTES, 1]
    assert (lines[0], lines[2]) == (b"a", b"b")


def _answer(listener: socket.socket, parts: list[bytes]) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        for part in parts:
            connection.sendall(part)


# ------------------------------------------------------------------------------------------------------- with an engine


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path / "engine.sock", engine_address().removeprefix("unix://"))
    yield proxy
    proxy.shut()


@pytest.fixture
def harness(tmp_path: Path, image: str, proxy: Proxy, capture: CaptureMode) -> Iterator[EngineHarness]:
    (tmp_path / "data").mkdir()
    with opened(tmp_path / "data", image, proxy.address, engine=engine_address(), capture=capture) as harness:
        yield harness


@pytest.mark.engine
def test_an_execution_ends_normally_whatever_else_the_engine_tells(harness: EngineHarness, proxy: Proxy) -> None:
    with capture_logs() as logged:
        going = harness.go("sh -c", "echo begins; sleep 1; exit 7")
        harness.wait_for_output(going.id)
        for line in ODD_EVENTS.values():
            proxy.say(line + b"\n")
            proxy.say(line + b"\n")
        execution = going.result()
    assert (execution.state, execution.outcome and execution.outcome.exit_code) == (State.FAILED, 7)
    assert harness.output(going.id).stdout == b"begins\n"
    assert harness.host.up
    assert harness.host.last_error == ""
    faults = [each["fault"] for each in logged if each["event"] == "an event of the engine is passed over"]
    assert len(faults) == len(set(faults)) >= 4
    assert harness.sh("exit 3").outcome != execution.outcome


@pytest.mark.engine
def test_an_end_that_is_told_in_an_unknown_shape_is_found_all_the_same(harness: EngineHarness, proxy: Proxy) -> None:
    proxy.alter = lambda events: re.sub(rb'"Actor"', b'"Who"', events)
    with within(15):
        execution = harness.sh("sleep 0.5; exit 7")
    assert execution.outcome is not None
    assert execution.outcome.exit_code == 7


@pytest.mark.engine
def test_a_host_whose_listening_fails_listens_anew(harness: EngineHarness, proxy: Proxy) -> None:
    heard: list[bool] = []
    host = Host("second", harness.backend("second"), harness.host.captures, ping_seconds=1)
    changed = threading.Condition()

    def on_change() -> None:
        with changed:
            heard.append(host.up)
            changed.notify_all()
        if len(heard) == 1:
            raise ValueError("of whoever is told")

    with capture_logs() as logged:
        host.start(on_change)
        with changed:
            assert changed.wait_for(lambda: heard == [True, False, True], 20), heard
    host.close()
    assert [each["work"] for each in logged if each["event"].startswith("a defect")] == ["host-second"]


class ForbiddenLogs(NoNodeLogs):
    """Logs that may not be read until they are `allowed`. `asked` counts the questions whether they may."""

    def __init__(self) -> None:
        self.allowed = False
        self.asked = 0

    def check(self) -> None:
        self.asked += 1
        if not self.allowed:
            raise BackendDown("the account may not get pods/log")


@pytest.mark.engine
def test_a_host_is_down_for_as_long_as_its_captures_may_read_no_logs(harness: EngineHarness) -> None:
    logs = ForbiddenLogs()
    host = Host("second", harness.backend("second"), KubeletCaptures(logs, max_log_bytes=1 << 20), ping_seconds=0.1)
    host.start(lambda: None)
    try:
        wait_until(lambda: logs.asked >= 3 or host.up, "it is asked again")
        assert not host.up
        logs.allowed = True
        wait_until(lambda: host.up, "the host is up")
    finally:
        host.close()
