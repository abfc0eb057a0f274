"""The Java client: a program that is pasted, and the command in it, against a real server. Its build runs its own
tests."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests import java
from tests.cutting_relay import CuttingRelay
from tests.pages import DocPage
from tests.serving import Server, serving_on
from tests.tools import tool

# The first build of a machine downloads what Maven needs.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

SOURCES = java.CLIENT / "src" / "main" / "java" / "io" / "fastlane"


@pytest.fixture(scope="module")
def tail() -> list[str]:
    """The command `TailCommand`."""
    tool("java")
    tool("mvn")
    return [*java.command("io.fastlane.examples.TailCommand")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("java") / "data") as server:
        yield server


def run(command: list[str], *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*command, *words], env=java.ENVIRONMENT, capture_output=True, timeout=100)


def test_the_java_client_and_its_example_are_short() -> None:
    """Counted without blank lines, comments, imports and lone brackets."""
    assert sum(map(lines_of_code, SOURCES.glob("*.java"))) <= 300
    assert lines_of_code(SOURCES / "examples" / "TailCommand.java") <= 60


def lines_of_code(path: Path) -> int:
    text = re.sub(r"/\*\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return sum(
        not re.fullmatch(r"\s*(|[\]})]+[;,]?|//.*|package .*|import .*|@Override)", line) for line in text.splitlines()
    )


def test_the_program_in_the_java_readme_works_when_it_is_pasted(
    tail: list[str], server: Server, image: str, tmp_path: Path
) -> None:
    page = DocPage(java.CLIENT / "README.md")
    [program] = [block.text for block in page.blocks() if "class Greet" in block.text]
    [command] = [block.text for block in page.blocks() if "Greet.java" in block.text]
    program = program.replace("127.0.0.1:7020", server.address).replace("busybox", image)
    (tmp_path / "Greet.java").write_text(program)
    command = command.replace("fastlane/clients/java", str(java.CLIENT))
    ran = subprocess.run(command, shell=True, cwd=tmp_path, env=java.ENVIRONMENT, capture_output=True, timeout=100)
    assert (ran.returncode, ran.stdout) == (3, b"hello\n"), ran.stderr


def test_the_java_readme_names_the_artifact_that_is_built() -> None:
    [dependency] = [block.text for block in DocPage(java.CLIENT / "README.md").blocks() if block.language == "xml"]
    pom = (java.CLIENT / "pom.xml").read_text()
    for name in ("groupId", "artifactId", "version"):
        [said] = re.findall(f"<{name}>(.*)</{name}>", dependency)
        assert re.findall(f"<{name}>(.*)</{name}>", pom)[0] == said


def test_the_java_command_is_as_if_the_command_ran_here(tail: list[str], server: Server, image: str) -> None:
    ran = run(tail, "-address", server.address, image, "sh", "-c", "echo hello; echo oh >&2; printf 'no line'; exit 3")
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\nno line", b"oh\n")


def test_the_java_command_goes_on_where_it_was_cut(tail: list[str], server: Server, image: str) -> None:
    # The first breaks the enqueue, the next ones the stream.
    with closing(CuttingRelay(server.address, [60, 5_000, 300_000])) as relay:
        ran = run(tail, "-address", relay.address, image, "seq", "1", "100000")
        assert not relay.cuts
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == b"".join(b"%d\n" % number for number in range(1, 100_001))


def test_the_java_command_says_in_a_line_what_was_refused(tail: list[str], server: Server) -> None:
    for words, said in ((["Not An Image"], b"spec.image"), (["-job", "j"], b"there is no job 'j'")):
        ran = run(tail, "-address", server.address, *words)
        [line] = ran.stderr.splitlines()
        assert ran.returncode == 1
        assert line.startswith(b"tail: ")
        assert said in line


def test_the_java_command_says_what_it_is_to_be_given(tail: list[str]) -> None:
    for words in ([], ["-job", "j", "busybox"], ["-nothing", "busybox"]):
        ran = run(tail, *words)
        [error, usage] = ran.stderr.splitlines()
        assert ran.returncode == 2
        assert error.startswith(b"tail: ")
        assert usage.startswith(b"usage: ")


def test_ctrl_c_stops_the_job_of_the_java_command(tail: list[str], server: Server, image: str) -> None:
    words = ["sh", "-c", "trap 'echo bye; exit 5' TERM; echo begin; while :; do sleep 0.05; done"]
    with subprocess.Popen(
        [*tail, "-address", server.address, "-task", "ctrl-c", image, *words],
        env=java.ENVIRONMENT,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"begin\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.read() == b"bye\n"
    assert running.returncode == 130
    with Client(server.address) as client:
        [job] = client.jobs(task_id="ctrl-c")
    assert job.state == pb.STATE_STOPPED
