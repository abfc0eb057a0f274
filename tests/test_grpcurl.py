"""The real grpcurl, with what one does with it by hand; the commands of the README run in tests/test_docs.py."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.pages import DocPage
from tests.serving import Server, serving_on
from tests.tools import PATH, ROOT, tool

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("grpcurl") / "data") as server:
        yield server


def grpcurl(server: Server, *words: str, **data: object) -> str:
    """What `grpcurl [-d DATA] ADDRESS WORD…` prints."""
    sent = ["-d", json.dumps(data)] if data else []
    command = [tool("grpcurl"), "-plaintext", *sent, server.address, *words]
    return subprocess.run(command, env=environment(), check=True, capture_output=True, text=True, timeout=60).stdout


def environment() -> dict[str, str]:
    return os.environ | {"PATH": PATH, "NO_PROXY": "127.0.0.1"}


def test_list_shows_every_service_and_every_call(server: Server) -> None:
    services = grpcurl(server, "list").split()
    assert {f"fastlane.v1.{name}" for name in pb.DESCRIPTOR.services_by_name} < {*services}
    assert "grpc.health.v1.Health" in services
    calls = grpcurl(server, "list", "fastlane.v1.ExecutionService").split()
    methods = pb.DESCRIPTOR.services_by_name["ExecutionService"].methods
    assert calls == sorted(method.full_name for method in methods)


@pytest.mark.parametrize(
    ("symbol", "comment"),
    [
        ("fastlane.v1.JobService", "Enqueue, inspect and stop jobs."),
        ("fastlane.v1.JobService.StopJob", "Ends the job. When the call returns"),
        ("fastlane.v1.State", "Final: the container ran longer than its timeout."),
        ("fastlane.v1.LogGap", "Offset of the first missing byte."),
        ("fastlane.v1.JobSpec.PullPolicy", "If the image is not on the host."),
    ],
)
def test_describe_shows_what_the_contract_says_of_it(server: Server, symbol: str, comment: str) -> None:
    assert f"// {comment}" in grpcurl(server, "describe", symbol)


def test_a_job_is_put_in_followed_and_looked_at(server: Server, image: str) -> None:
    spec = {"image": image, "args": ["sh", "-c", r"printf 'gr\303\274n\n'; echo oh >&2; exit 3"]}
    job = json.loads(grpcurl(server, "fastlane.v1.JobService/EnqueueJob", task_id="by-hand", spec=spec))["job"]
    streamed = grpcurl(
        server, "fastlane.v1.ExecutionService/StreamExecutionLogs", execution_id=job["execution"]["id"], text=True
    )
    messages = list(json_values(streamed))
    assert "state" in messages[0]
    end = messages[-1]["end"]
    assert (end["sealed"], end["state"], end["exitStatus"], end["outcome"]["exitCode"]) == (True, "STATE_FAILED", 3, 3)
    text = {"SOURCE_STDOUT": "", "SOURCE_STDERR": "", "SOURCE_SYSTEM": ""}
    for message in messages:
        for chunk in message.get("chunks", []):
            text[chunk["source"]] += chunk.get("text", "")
    assert (text["SOURCE_STDOUT"], text["SOURCE_STDERR"]) == ("grün\n", "oh\n")
    found = json.loads(grpcurl(server, "fastlane.v1.JobService/GetJob", job_id=job["id"]))["job"]
    assert (found["state"], found["outcome"]["reason"]) == ("STATE_FAILED", "REASON_EXIT_CODE")


def test_the_line_for_bytes_copies_them_exactly(server: Server, image: str) -> None:
    spec = {
        "image": image,
        "args": ["sh", "-c", r"printf 'a\000\377\n'; head -c 200000 /dev/zero; printf 'end'; exit 0"],
    }
    job = json.loads(grpcurl(server, "fastlane.v1.JobService/EnqueueJob", task_id="by-hand", spec=spec))["job"]
    [line] = [each.text for each in DocPage(ROOT / "clients/README.md").blocks() if "base64 -d" in each.text]
    script = f"ID={job['execution']['id']}\n{line.replace('127.0.0.1:7020', server.address)}"
    for program in ("grpcurl", "jq"):
        tool(program)
    copied = subprocess.run(["bash", "-c", script], env=environment(), check=True, capture_output=True, timeout=60)
    assert copied.stdout == b"a\0\xff\n" + b"\0" * 200_000 + b"end"


def test_an_error_says_its_reason(server: Server) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        grpcurl(server, "fastlane.v1.JobService/EnqueueJob", task_id="", spec={"image": "Not An Image"})
    said = failed.value.stderr
    assert "Code: InvalidArgument" in said
    # Its details are shown as what they are, which grpcurl learns from the server.
    details = list(json_values(re.sub(r"^\s*\d+\)\s", "", said.partition("Details:\n")[2], flags=re.MULTILINE)))
    [info] = [detail for detail in details if detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"]
    assert (info["domain"], info["reason"]) == ("fastlane", "INVALID_FIELD")
    [faults] = [
        detail["field_violations"]
        for detail in details
        if detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    ]
    assert [fault["field"] for fault in faults] == ["task_id", "spec.image"]


def json_values(text: str) -> Iterator[dict[str, Any]]:
    """One after another, as grpcurl prints a stream."""
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        value, at = decoder.raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip()))
        yield value
