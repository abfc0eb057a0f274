"""Ids on the command line: of a job or of an execution where either will do, and of nothing at all."""

from collections.abc import Iterator

import pytest

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import HELLO, fastlane
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.logs["execution-1"] = HELLO
    server.hosts.append(pb.EngineHost(name="local"))
    server.executions.append(pb.Execution(id="execution-1", job_id="job-1", host="removed"))
    yield server
    server.stop()


@pytest.mark.parametrize("id", ["job-1", "execution-1"])
@pytest.mark.parametrize("command", ["job", "execution"])
def test_job_and_execution_take_both_kinds_of_id(server: ScriptedServer, command: str, id: str) -> None:  # noqa: A002
    shown = fastlane(server, command, id)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert f"{command}-1" in shown.stdout.decode().splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["executions", "--job", "zzz"], "there is no job 'zzz'"),
        (
            ["executions", "--host", "nosuch"],
            "there is no host 'nosuch'; `fastlane hosts` lists those that there are",
        ),
        (["job", "zzz"], "there is no job 'zzz'"),
        (["execution", "zzz"], "there is no execution 'zzz'"),
    ],
)
def test_an_id_of_nothing_is_told(server: ScriptedServer, arguments: list[str], said: str) -> None:
    shown = fastlane(server, *arguments)
    assert (shown.returncode, shown.stdout, shown.stderr.decode()) == (1, b"", f"fastlane: {said}\n")


@pytest.mark.parametrize(("host", "count"), [("local", 0), ("removed", 1)])
def test_executions_of_a_host_that_there_is_or_was_are_listed(server: ScriptedServer, host: str, count: int) -> None:
    shown = fastlane(server, "executions", "--host", host, "-o", "json")
    assert (shown.returncode, shown.stdout.count(b"\n")) == (0, count)
