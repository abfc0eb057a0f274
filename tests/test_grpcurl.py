"""The real grpcurl, with the commands of the README as they stand there, and what else one does with it by hand."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.serving import Server, serving_on
from tests.tools import PATH, ROOT, tool

pytestmark = pytest.mark.engine

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("grpcurl") / "data") as server:
        yield server


def grpcurl(server: Server, *words: str, **data: object) -> str:
    """What `grpcurl [-d DATA] ADDRESS WORD…` prints."""
    sent = ["-d", json.dumps(data)] if data else []
    command = [tool("grpcurl"), "-plaintext", *sent, server.address, *words]
    return subprocess.run(command, env=environment(), check=True, capture_output=True, text=True, timeout=60).stdout


def sh(server: Server, image: str, script: str) -> str:
    """What a script prints in which the server and the image are those of the README."""
    tool("grpcurl")
    tool("jq")
    script = script.replace("127.0.0.1:7020", server.address).replace('"image": "busybox"', json.dumps({"image": image})[1:-1])
    assert server.address in script
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, env=environment(), check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def environment() -> dict[str, str]:
    return os.environ | {"PATH": PATH, "NO_PROXY": "127.0.0.1"}


def readme_commands() -> list[str]:
    """Those in the README's section on grpcurl: what is pasted together is together."""
    section = README.partition("\n## With grpcurl\n")[2].partition("\n## ")[0]
    return [paragraph for block in re.findall(r"```\n(.*?)```", section, re.DOTALL) for paragraph in block.strip().split("\n\n")]


# -- as the README says


def test_the_readmes_enqueue_answers_a_job_that_is_kept(server: Server, image: str) -> None:
    enqueue, _ = readme_commands()
    job = json.loads(sh(server, image, enqueue))["job"]
    assert (job["taskId"], job["spec"]["image"], job["execution"]["state"]) == ("greet", image, "STATE_QUEUED")
    found = json.loads(grpcurl(server, "fastlane.v1.JobService/GetJob", job_id=job["id"]))["job"]
    assert (found["id"], found["createTime"]) == (job["id"], job["createTime"])


def test_the_readmes_stream_shows_the_output_and_nothing_else(server: Server, image: str) -> None:
    _, stream = readme_commands()
    assert sh(server, image, stream) == "hello\n"


def test_the_readmes_describe_shows_the_comments_of_the_contract(server: Server, image: str) -> None:
    [command] = re.findall(r"`(grpcurl [^`]* describe [^`]*)`", README)
    said = sh(server, image, command)
    assert "message JobSpec {" in said
    assert "// Required. The image as you would give it to `docker run`" in said


# -- by hand


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
        ("fastlane.v1.JobService", "Jobs: put in, look at, stop."),
        ("fastlane.v1.JobService.StopJob", "Ends the job: when this answers"),
        ("fastlane.v1.State", "Final: ran longer than its timeout."),
        ("fastlane.v1.LogGap", "Place of the first missing byte."),
        ("fastlane.v1.JobSpec.PullPolicy", "When the host does not have it."),
    ],
)
def test_describe_shows_what_the_contract_says_of_it(server: Server, symbol: str, comment: str) -> None:
    assert f"// {comment}" in grpcurl(server, "describe", symbol)


def test_a_job_is_put_in_followed_and_looked_at(server: Server, image: str) -> None:
    spec = {"image": image, "args": ["sh", "-c", r"printf 'gr\303\274n\n'; echo oh >&2; exit 3"]}
    job = json.loads(grpcurl(server, "fastlane.v1.JobService/EnqueueJob", task_id="by-hand", spec=spec))["job"]
    streamed = grpcurl(server, "fastlane.v1.ExecutionService/StreamExecutionLogs", execution_id=job["execution"]["id"], text=True)
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


def test_an_error_says_its_reason(server: Server) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        grpcurl(server, "fastlane.v1.JobService/EnqueueJob", task_id="", spec={"image": "Not An Image"})
    said = failed.value.stderr
    assert "Code: InvalidArgument" in said
    # Its details are shown as what they are, which grpcurl learns from the server.
    details = list(json_values(re.sub(r"^\s*\d+\)\s", "", said.partition("Details:\n")[2], flags=re.MULTILINE)))
    [info] = [detail for detail in details if detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"]
    assert (info["domain"], info["reason"]) == ("fastlane", "INVALID_FIELD")
    [faults] = [detail["field_violations"] for detail in details if detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"]
    assert [fault["field"] for fault in faults] == ["task_id", "spec.image"]


def json_values(text: str) -> Iterator[dict[str, Any]]:
    """One after another, as grpcurl prints a stream."""
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        value, at = decoder.raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip()))
        yield value
