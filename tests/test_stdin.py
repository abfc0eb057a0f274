"""The standard input of jobs: the same bytes for each attempt, whatever is killed, and nothing that a command can
change."""

import hashlib
import io
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Client, Input, InvalidRequest, Stdin
from fastlane_grpc.store.offline import inputs_of_jobs
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE, environment, fastlane, on_terminal
from tests.reading import outcome, run
from tests.serving import Server, serving, serving_on

CONTENT = os.urandom(300_000) + bytes(range(256))
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def by_shell(server: Server, script: str, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    """Run a script in which $RUN is `fastlane run`, without a standard input of its own."""
    env = {**environment(server), "RUN": f"{shlex.join(FASTLANE)} run", "PYTHONPATH": str(Path.cwd())}  # type: ignore[arg-type]
    return subprocess.run(["bash", "-c", script], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True)


# ---- the container


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stdin") / "data"


@pytest.fixture(scope="module")
def server(data_dir: Path, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, data_dir) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


# Tries to change what a retry reads, by all ways that a root user has.
HOSTILE = """
id -u; sha256sum; for way in /proc/self/fd/0 /.fastlane/stdin; do
  { echo changed >$way; } 2>/dev/null && echo written
  { truncate -s 0 $way; } 2>/dev/null && echo truncated
  { chmod 777 $way; } 2>/dev/null && echo chmodded
done; rm -f /.fastlane/stdin 2>/dev/null; exit 1
"""


@pytest.mark.engine
def test_each_attempt_reads_the_same_bytes_after_a_crash_and_a_hostile_one(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    data_dir, file = tmp_path / "data", tmp_path / "file"
    file.write_bytes(CONTENT)
    # Killed when the container is there and was not started.
    with serving(data_dir, kill_at="attached") as server:
        words = ["--stdin", str(file), "--retries", "1", "--backoff", "0s", image, "sh", "-c", HOSTILE]
        made = fastlane(server, "enqueue", *words)
        server.wait()
    file.unlink()
    with serving_on(sdk, data_dir) as server:
        log = fastlane(server, "logs", "-f", made.stdout.decode().strip())
        assert log.stdout.decode() == f"0\n{DIGEST}  -\n" * 2, log.stderr
    assert (data_dir / "inputs" / DIGEST).read_bytes() == CONTENT


@pytest.mark.engine
def test_a_user_who_is_not_root_reads_and_a_command_need_not_read(client: Client, image: str) -> None:
    large = client.upload(io.BytesIO(content := os.urandom(5 << 20)))
    log = run(client, image, "sh", "-c", "id -u; sha256sum", stdin=Stdin(sha256=large), user="4242", cap_drop=["ALL"])
    assert log.stdout.decode() == f"4242\n{hashlib.sha256(content).hexdigest()}  -\n", outcome(log)
    log = run(client, image, "true", stdin=Stdin(sha256=large), read_only_root=True)
    assert log.end().exit_status == 0
    # Nothing is there without one, and an empty one is empty.
    for options, name in (({}, b"/dev/null"), ({"stdin": b""}, b"/.fastlane/stdin")):
        log = run(client, image, "sh", "-c", "wc -c; readlink /proc/self/fd/0", **options)
        assert log.stdout == b"0\n%s\n" % name


@pytest.mark.engine
def test_the_command_line_gives_pipes_and_the_rest_of_a_file(server: Server, image: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / "lines").write_bytes(b"of the shell\nof the job\n")
    script = f"""
        head -c {len(CONTENT)} file | $RUN -i {image} sha256sum
        {{ read -r line; $RUN --stdin - {image} cat; }} <lines
    """
    ran = by_shell(server, script, tmp_path)
    assert ran.stdout.decode() == f"{DIGEST}  -\nof the job\n", ran.stderr
    assert ran.stderr == b""


@pytest.mark.engine
def test_a_content_that_is_gone_or_short_ends_the_execution_with_that(
    data_dir: Path, client: Client, image: str
) -> None:
    client.update_task("held", paused=True)
    jobs = [client.enqueue("held", image, "cat", stdin=content) for content in (b"gone", b"short")]
    paths = [data_dir / "inputs" / job.spec.stdin.sha256 for job in jobs]
    paths[0].unlink()
    paths[1].write_bytes(b"shor")
    client.update_task("held", paused=False)
    for job, fault in zip(jobs, ("No such file or directory", "it is not whole"), strict=True):
        for _ in client.tail_job(job.id):
            pass
        ended = client.job(job.id).outcome
        assert ended.reason == pb.REASON_INPUT_UNAVAILABLE
        assert ended.detail == f"the content of the job's standard input cannot be read: {fault}"


@pytest.mark.engine
def test_by_attach_a_job_with_a_standard_input_is_not_run(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    with serving_on(sdk, tmp_path / "data", capture="attach") as server, Client(server.address) as client:
        ended = outcome(run(client, image, "cat", stdin=b"x"))
    assert (ended.reason, "it needs the recorder" in ended.detail) == (pb.REASON_INPUT_UNAVAILABLE, True)


# ---- the calls


@pytest.fixture(scope="module")
def keeping_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keeping") / "data"


@pytest.fixture(scope="module")
def keeping(keeping_dir: Path) -> Iterator[Server]:
    """A server that keeps jobs and starts none."""
    with serving(keeping_dir, engine="unix:///nobody", max_input_bytes="1m") as server:
        yield server


def test_a_standard_input_that_cannot_be_is_refused_with_its_field(keeping: Server) -> None:
    half = b"x" * (700 << 10)
    for options, fault in (
        ({"stdin": Stdin(sha256="abc")}, "stdin.sha256: must be the SHA-256"),
        ({"stdin": Stdin(sha256="0" * 64)}, "stdin.sha256: there is no content 0000"),
        ({"stdin": Stdin(b"x", sha256="0" * 64)}, "stdin.sha256: is not that of the content"),
        ({"stdin": half + half}, "stdin: takes 1433600 bytes in sum; at most 1048576"),
        ({"stdin": half, "inputs": [Input("/a", half)]}, "inputs: take 1433600 bytes in sum with stdin; at most"),
    ):
        with Client(keeping.address) as client, pytest.raises(InvalidRequest, match=fault):
            client.enqueue("t", "busybox", **options)  # type: ignore[arg-type]


def test_a_content_is_kept_for_as_long_as_a_job_reads_it(keeping: Server, keeping_dir: Path) -> None:
    with Client(keeping.address) as client:
        # Its metadata looks like a standard input, and is none.
        job = client.enqueue("t", "busybox", stdin=b"kept", metadata={"stdin": {"sha256": "f" * 64}})
        [other] = [each.job for each in client.enqueue_array(1, "t", "busybox", stdin=b"of an array")]
        replaced = client.replace_job(other.id, "t", "busybox", stdin=b"replaced")
        assert client.job(job.id).spec.stdin == pb.Stdin(sha256=hashlib.sha256(b"kept").hexdigest(), size_bytes=4)
    assert replaced.spec.stdin.size_bytes == 8
    contents = (b"kept", b"of an array", b"replaced")
    named = {sha256 for sha256, _ in inputs_of_jobs(keeping_dir / "fastlane.db")}
    assert named == {hashlib.sha256(each).hexdigest() for each in contents}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("$RUN -i --stdin file busybox", "-i cannot be combined with --stdin: a job has one standard input"),
        ("$RUN --stdin nowhere busybox", "cannot read --stdin nowhere: No such file or directory"),
        ("$RUN -i busybox <&-", "-i: the standard input is closed"),
        ("$RUN --stdin . busybox", "cannot read --stdin .: Is a directory"),
        (
            "yes | $RUN -i busybox",
            "the inputs take 2.1 MB; the server takes at most 1.0 MB for a job (max_input_bytes)",
        ),
    ],
)
def test_a_standard_input_that_cannot_be_read_is_told(keeping: Server, tmp_path: Path, script: str, said: str) -> None:
    ran = by_shell(keeping, script, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert ran.stderr.decode().startswith(f"fastlane: {said}")


def test_a_terminal_is_no_standard_input_of_a_job(keeping: Server) -> None:
    status, seen = on_terminal(keeping, "run", "-i", "busybox")  # type: ignore[arg-type]
    assert (status, "is a terminal: redirect it from a file or a pipe" in seen) == (2, True)
