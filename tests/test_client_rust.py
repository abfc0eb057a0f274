"""The Rust client: a program that is pasted, and the command in it, against a real server."""

import hashlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests import rust
from tests.cutting_relay import CuttingRelay
from tests.pages import DocPage
from tests.serving import Server, serving_on
from tests.tools import ROOT, tool

# The first build of a machine downloads and compiles what the client is made of.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """The command of the example."""
    tool("cargo")
    return rust.command("tail", tmp_path_factory.mktemp("rust"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("rust") / "data") as server:
        yield server


def run(command: Sequence[Path], *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*command, *words], capture_output=True, timeout=100)


def test_the_rust_client_and_its_example_are_short() -> None:
    """Counted without blank lines, comments, attributes, imports and lone brackets."""
    own = [path for path in (rust.CLIENT / "src").glob("*.rs") if path.name != "v1.rs"]
    assert sum(map(lines_of_code, own)) <= 300
    assert lines_of_code(rust.CLIENT / "examples" / "tail.rs") <= 60


def lines_of_code(path: Path) -> int:
    text = re.sub(r"^(pub )?use .*?;$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return sum(not re.fullmatch(r"\s*([\]})]+[;,]?|//.*|#!?\[.*|)", line) for line in text.splitlines())


def test_the_rust_code_is_what_the_contract_makes() -> None:
    """By the sums in it: to build the generator takes longer than all else here."""
    _, made_from, of_code, code = (rust.CLIENT / "src" / "v1.rs").read_text().split("\n", 3)
    generator = rust.CLIENT / "generate"
    sources = [ROOT / "fastlane_grpc/v1/fastlane.binpb", generator / "Cargo.toml", generator / "src/main.rs"]
    sums = [b"".join(path.read_bytes() for path in sources), code.encode()]
    assert [made_from, of_code] == [
        f"// {name}: {hashlib.sha256(data).hexdigest()}" for name, data in zip(("From", "Sum"), sums, strict=True)
    ], "run clients/rust/generate/run and commit what it makes"


def test_the_rust_code_is_formatted() -> None:
    tool("cargo")
    rust.cargo("fmt", "--check", cwd=rust.CLIENT)


def test_the_program_in_the_rust_readme_works_when_it_is_pasted(
    tail: Sequence[Path], server: Server, image: str, tmp_path: Path
) -> None:
    blocks = [block.text for block in DocPage(rust.CLIENT / "README.md").blocks()]
    [manifest] = [text for text in blocks if text.startswith("[package]")]
    [program] = [text for text in blocks if "async fn main" in text]
    refusal, options = [text for text in blocks if text.startswith(("match client", "let options"))]
    program = program.replace("127.0.0.1:7020", server.address).replace("busybox", image)
    fragments = f"""
#[allow(dead_code)]
async fn fragments(client: Client, id: String) -> Result<Client, Box<dyn std::error::Error>> {{
    {refusal}
    {options}
    Ok(client)
}}
"""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.rs").write_text(program + fragments)
    (tmp_path / "Cargo.toml").write_text(manifest.replace("../fastlane/clients/rust", str(rust.CLIENT)))
    # What the client was built of is compiled already.
    shutil.copy(rust.CLIENT / "Cargo.lock", tmp_path)
    with rust.target() as built:
        rust.cargo("build", cwd=tmp_path)
        shutil.copy(built / "debug" / "greet", tmp_path)
    ran = run([tmp_path / "greet"])
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\n", b"")


def test_the_rust_command_is_as_if_the_command_ran_here(tail: Sequence[Path], server: Server, image: str) -> None:
    words = ["--address", server.address, image, "sh", "-c", "echo hello; echo oh >&2; printf 'no line'; exit 3"]
    ran = run(tail, *words)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\nno line", b"oh\n")


def test_the_rust_command_goes_on_where_it_was_cut(tail: Sequence[Path], server: Server, image: str) -> None:
    # The first breaks the enqueue, the next ones the stream.
    with closing(CuttingRelay(server.address, [60, 5_000, 300_000, 270_000])) as relay:
        ran = run(tail, "--address", relay.address, image, "seq", "1", "100000")
        assert not relay.cuts
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == b"".join(b"%d\n" % number for number in range(1, 100_001))


def test_the_rust_command_says_what_is_wrong(tail: Sequence[Path], server: Server) -> None:
    for words, said in (
        ([], "tail: give either an image or --job"),
        (["--job", "j", "busybox"], "tail: give either an image or --job"),
        (["--nothing", "j"], "tail: there is no option --nothing"),
        (["--job", "j"], "there is no job 'j'"),
        (["Not An Image"], "spec.image"),
    ):
        ran = run(tail, "--address", server.address, *words)
        assert ran.returncode == 1
        assert said in ran.stderr.decode().splitlines()[0]
        assert len(ran.stderr.splitlines()) <= 2


def test_the_rust_command_stops_its_job_at_ctrl_c(tail: Sequence[Path], server: Server, image: str) -> None:
    words = ["--address", server.address, "--task", "ctrl-c", image, "sh", "-c", "echo begin; exec sleep 600"]
    with subprocess.Popen([*tail, *words], stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.readline() == b"begin\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    with Client(server.address) as client:
        [job] = client.jobs(task_id="ctrl-c")
        assert job.state == pb.STATE_STOPPED
