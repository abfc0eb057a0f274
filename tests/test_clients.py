"""The clients in clients/: generated from the contract as it is, and a program of each that works against a real
server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from google.protobuf import duration_pb2

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.cutting_relay import CuttingRelay
from tests.pages import DocPage
from tests.serving import Server, instance, serving_on
from tests.tools import PATH, ROOT, tool

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

GO = ROOT / "clients" / "go"


@pytest.fixture(scope="module")
def go() -> dict[str, str]:
    """An environment with the Go toolchain. Its modules may have to be downloaded, and built."""
    tool("go")
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{PATH}"}


@pytest.fixture(scope="module")
def go_tail(go: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("go") / "tail"
    subprocess.run(["go", "build", "-o", program, "./examples/tail"], cwd=GO, env=go, check=True)
    return program


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("clients") / "data") as server:
        yield server


def test_the_go_code_is_what_the_contract_makes(go: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(GO / "buf.gen.yaml", tmp_path)
    subprocess.run(["buf", "generate", "--output", tmp_path], cwd=GO, env=go, check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "v1").iterdir()}
    assert made == {path.name: path.read_text() for path in (GO / "v1").iterdir()}, (
        "run `buf generate` in clients/go and commit what it makes"
    )


def test_the_go_client_passes_vet_and_its_own_tests(go: dict[str, str]) -> None:
    for command in (["go", "vet", "./..."], ["go", "test", "./..."]):
        ran = subprocess.run(command, cwd=GO, env=go, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_go_client_and_its_example_are_short() -> None:
    """Counted without blank lines, comments, imports and lone brackets."""
    package = [path for path in GO.glob("*.go") if not path.name.endswith("_test.go")]
    assert sum(map(lines_of_code, package)) <= 300
    assert lines_of_code(GO / "examples" / "tail" / "main.go") <= 60


def lines_of_code(path: Path) -> int:
    text = re.sub(r"^import \(.*?^\)", "", path.read_text(), count=1, flags=re.DOTALL | re.MULTILINE)
    return sum(not re.fullmatch(r"\s*([\]})]+[;,]?|//.*|package .*|)", line) for line in text.splitlines())


def test_the_program_in_the_go_readme_works_when_it_is_pasted(
    go: dict[str, str], server: Server, image: str, tmp_path: Path
) -> None:
    blocks = [*DocPage(GO / "README.md").blocks()]
    [program] = [block.text for block in blocks if block.text.startswith("package main")]
    [setup] = [block.text for block in blocks if "go mod tidy" in block.text]
    (tmp_path / "main.go").write_text(program.replace("127.0.0.1:7020", server.address).replace("busybox", image))
    setup = setup.replace("../fastlane/clients/go", str(GO))
    subprocess.run(["sh", "-ec", f"go mod init example.com/pasted; {setup}"], cwd=tmp_path, env=go, check=True)
    subprocess.run(["go", "build", "-o", "pasted", "."], cwd=tmp_path, env=go, check=True)
    ran = subprocess.run([tmp_path / "pasted"], capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (3, b"hello\n")


def test_the_go_program_is_as_if_the_command_ran_here(go_tail: Path, server: Server, image: str) -> None:
    command = [
        go_tail,
        "-address",
        server.address,
        image,
        "sh",
        "-c",
        "echo hello; echo oh >&2; printf 'no newline'; exit 3",
    ]
    ran = subprocess.run(command, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\nno newline", b"oh\n")


def test_the_go_program_goes_on_where_it_was_cut(go_tail: Path, server: Server, image: str) -> None:
    # The first breaks the enqueue, the next ones the stream: before, after and between messages of a quarter of a
    # megabyte.
    with closing(CuttingRelay(server.address, [60, 5_000, 300_000, 270_000])) as relay:
        ran = subprocess.run(
            [go_tail, "-address", relay.address, image, "seq", "1", "100000"], capture_output=True, timeout=100
        )
        assert not relay.cuts
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == b"".join(b"%d\n" % number for number in range(1, 100_001))


def test_the_go_program_says_in_a_line_what_was_refused(go_tail: Path, server: Server) -> None:
    ran = subprocess.run(
        [go_tail, "-address", server.address, "Not An Image"], capture_output=True, timeout=60, text=True
    )
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith("tail: ")
    assert "spec.image" in line


def test_the_go_program_follows_a_job_over_its_attempts(go_tail: Path, server: Server, image: str) -> None:
    soon = duration_pb2.Duration(nanos=50_000_000)
    with Client(server.address) as client, grpc.insecure_channel(server.address) as channel:
        spec = pb.JobSpec(
            image=image,
            args=["sh", "-c", "echo attempt; echo oh >&2; exit 4"],
            retry=pb.Retry(max_retries=2, initial_backoff=soon, jitter=pb.Retry.JITTER_NONE),
        )
        jobs: Any = pb_grpc.JobServiceStub(channel)
        job_id = jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="clients", spec=spec)).job.id
        # The first cuts are within the log of the first attempt, if that is so far.
        with closing(CuttingRelay(server.address, [200, 500, 900])) as relay:
            ran = subprocess.run([go_tail, "-address", relay.address, "-job", job_id], capture_output=True, timeout=100)
        assert client.job(job_id).executions == 3
    assert (ran.returncode, ran.stdout, ran.stderr) == (4, b"attempt\n" * 3, b"oh\n" * 3)


def test_the_go_program_says_what_it_is_to_be_given(go_tail: Path, server: Server) -> None:
    for words in ([], ["-job", "j", "busybox"]):
        ran = subprocess.run([go_tail, *words], capture_output=True, timeout=60, text=True)
        assert (ran.returncode, ran.stderr.splitlines()[0]) == (2, "tail: give either an image or -job")
    unknown = [go_tail, "-address", server.address, "-job", "j"]
    ran = subprocess.run(unknown, capture_output=True, timeout=60, text=True)
    assert ran.returncode == 1
    assert "there is no job 'j'" in ran.stderr


def test_the_go_program_outlives_its_server(
    go_tail: Path, sdk: docker.DockerClient, tmp_path: Path, image: str
) -> None:
    first = Server(tmp_path / "data")
    words = ["sh", "-c", "echo begin; until [ -e /tmp/go ]; do sleep 0.02; done; seq 1 5000; exit 7"]
    with subprocess.Popen(
        [go_tail, "-address", first.address, image, *words], stdout=subprocess.PIPE, bufsize=0
    ) as tail:
        assert tail.stdout
        assert tail.stdout.read(6) == b"begin\n"
        first.kill()
        with serving_on(sdk, tmp_path / "data", listen=first.address) as second:
            [container] = sdk.containers.list(
                filters={"ancestor": image, "label": f"fastlane.instance={instance(tmp_path / 'data')}"}
            )
            container.exec_run("touch /tmp/go")
            rest, _ = tail.communicate(timeout=60)
            assert second.address == first.address
    assert (tail.returncode, rest) == (7, b"".join(b"%d\n" % number for number in range(1, 5001)))
