"""The Node client: a program that is pasted, and the command in it, against a real server."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.trust import Role, TokenFile
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests import node
from tests.cutting_relay import CuttingRelay
from tests.pages import DocPage
from tests.scripted_server import Log, Piece, ScriptedServer
from tests.serving import Server, serving_on
from tests.tailing import unused_address
from tests.tools import tool

# The first build of a machine downloads what npm needs.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

Ran = subprocess.CompletedProcess[bytes]


@pytest.fixture(scope="module")
def tail() -> list[str | Path]:
    """The command of the example."""
    tool("node")
    tool("npm")
    return [*node.command("examples/tail.js")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("node") / "data") as server:
        yield server


def run(command: list[str | Path], *words: str | Path, cwd: Path | None = None) -> Ran:
    return subprocess.run([*command, *words], cwd=cwd, env=node.ENVIRONMENT, capture_output=True, timeout=100)


def test_the_node_client_and_its_example_are_short() -> None:
    """Counted without blank lines, comments, imports and lone brackets."""
    assert sum(map(lines_of_code, (node.CLIENT / "src").glob("*.ts"))) <= 300
    assert lines_of_code(node.CLIENT / "examples" / "tail.ts") <= 60


def lines_of_code(path: Path) -> int:
    text = re.sub(r"/\*\*.*?\*/|^import .*?;$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return sum(not re.fullmatch(r"\s*([\]})]+[;,]?|//.*|)", line) for line in text.splitlines())


def test_the_program_in_the_node_readme_works_when_it_is_pasted(
    tail: list[str | Path], server: Server, image: str, tmp_path: Path
) -> None:
    page = DocPage(node.CLIENT / "README.md")
    [program] = [block.text for block in page.blocks() if "enqueue(" in block.text]
    [tarball] = re.findall(r"npm install \.\./fastlane/clients/node/(\S+\.tgz)`", page.path.read_text())
    (tmp_path / "greet.mjs").write_text(program.replace("127.0.0.1:7020", server.address).replace("busybox", image))
    (tmp_path / "package.json").write_text("{}")
    node.npm("pack", "--pack-destination", tmp_path, cwd=node.CLIENT)
    node.npm("install", "--ignore-scripts", "--no-audit", "--no-fund", f"./{tarball}", cwd=tmp_path)
    ran = run(["node"], "greet.mjs", cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\n", b"")


def test_the_node_command_is_as_if_the_command_ran_here(tail: list[str | Path], server: Server, image: str) -> None:
    words = ["--address", server.address, image, "sh", "-c", "echo hello; echo oh >&2; printf 'no line'; exit 3"]
    ran = run(tail, *words)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\nno line", b"oh\n")


def test_the_node_command_goes_on_where_it_was_cut(tail: list[str | Path], server: Server, image: str) -> None:
    # The first breaks the enqueue, the next ones the stream.
    with closing(CuttingRelay(server.address, [60, 5_000, 300_000, 270_000])) as relay:
        ran = run(tail, "--address", relay.address, image, "seq", "1", "100000")
        assert not relay.cuts
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == b"".join(b"%d\n" % number for number in range(1, 100_001))


def test_the_node_command_says_what_is_wrong(tail: list[str | Path], server: Server) -> None:
    for words, said in (
        ([], "tail: give either an image or --job"),
        (["--job", "j", "busybox"], "tail: give either an image or --job"),
        (["--job", "j"], "there is no job 'j'"),
        (["Not An Image"], "spec.image"),
    ):
        ran = run(tail, "--address", server.address, *words)
        assert ran.returncode == 1
        assert said in ran.stderr.decode().splitlines()[0]
        assert len(ran.stderr.splitlines()) <= 2


def test_the_node_command_stops_its_job_at_ctrl_c(tail: list[str | Path], server: Server, image: str) -> None:
    words = ["--address", server.address, "--task", "ctrl-c", image, "sh", "-c", "echo begin; exec sleep 600"]
    with subprocess.Popen([*tail, *words], env=node.ENVIRONMENT, stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.readline() == b"begin\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    with Client(server.address) as client:
        [job] = client.jobs(task_id="ctrl-c")
        assert job.state == pb.STATE_STOPPED


def test_the_node_command_ends_with_the_reader_of_its_output(
    tail: list[str | Path], server: Server, image: str
) -> None:
    words = ["--address", server.address, image, "seq", "1", "300000"]
    with subprocess.Popen(
        [*tail, *words], env=node.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout
        assert running.stderr
        assert running.stdout.readline() == b"1\n"
        running.stdout.close()
        assert (running.wait(60), running.stderr.read()) == (1, b"")


SIGNALS = """
import { Client } from "fastlane-client";

const [, address] = process.argv;
const client = new Client(address);
const left = new AbortController();
const told = [];
try {
  for await (const { chunks } of client.tail({ executionId: "e" }, left.signal)) {
    told.push(...chunks.map((chunk) => Buffer.from(chunk.data).toString()));
    if (chunks.length > 0) {
      setImmediate(() => left.abort(new Error("enough")));
    }
  }
} catch (error) {
  told.push(error.message);
}
await client.get("job-1", { signal: left.signal }).catch((error) => told.push(error.message));
for await (const { event } of client.tail({ executionId: "e" })) {
  if (event?.case === "state") {
    break;
  }
}
client.close();
console.log(JSON.stringify(told));
"""


def test_a_signal_ends_calls_and_tails_and_a_loop_may_be_left(tail: list[str | Path]) -> None:
    server = ScriptedServer()
    server.logs["e"] = Log([Piece(1, b"line\n")], heartbeats_before_end=1_000_000)
    try:
        ran = run(["node", "--input-type=module"], "-e", SIGNALS, server.address, cwd=node.CLIENT)
    finally:
        server.stop()
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == b'["line\\n","enough","enough"]\n'


def test_a_call_to_nobody_says_that_it_was_refused(tail: list[str | Path]) -> None:
    program = """
import { Client } from "fastlane-client";

const client = new Client(process.argv[1]);
await client.get("j", { timeoutMs: 1000 }).catch((error) => console.log(error.message));
client.close();
"""
    ran = run(["node", "--input-type=module"], "-e", program, unused_address(), cwd=node.CLIENT)
    assert "ECONNREFUSED" in ran.stdout.decode()


GUARDED = """
import { Client } from "fastlane-client";

const [, address, token] = process.argv;
const [stranger, client] = [new Client(address), new Client(address, { token })];
const told = [await stranger.get("j").catch((error) => [error.code, error.reason])];
const { id } = await client.enqueue({ taskId: "greet", spec: { image: "busybox" } });
for await (const { event } of client.tailJob({ jobId: id })) {
  told.push(event.case);
  break;
}
const garbled = new Client(address, { token: `${token}\\nmore` });
await garbled.get("j").catch((error) => told.push(error.name, error.message.includes(token)));
console.log(JSON.stringify(told));
for (const each of [stranger, client, garbled]) {
  each.close();
}
"""


def test_calls_and_tails_have_the_token(tail: list[str | Path], tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    token = TokenFile(data_dir).create("ci", Role.SUBMIT)
    server = Server(data_dir, engine="unix:///nobody", auth="tokens")
    try:
        ran = run(["node", "--input-type=module"], "-e", GUARDED, server.address, token, cwd=node.CLIENT)
    finally:
        server.stop()
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert json.loads(ran.stdout) == [[16, "TOKEN_REQUIRED"], "execution", "FastlaneError", False]
