"""The main job the whole way, over a server process, gRPC and an engine: what a command prints arrives as it was, and
then how it ended."""

import hashlib
import zlib
from collections.abc import Iterator

import docker
import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.reading import Reader, outcome, run
from tests.registry import registry_for
from tests.serving import serving_on, within

pytestmark = pytest.mark.engine

# Says what signal it got and exits with 0, as many programs do.
CATCHES = "trap 'echo caught; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
IGNORES = ("sh", "-c", "trap '' TERM USR1; sleep 60")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Client]:
    with serving_on(sdk, tmp_path_factory.mktemp("main") / "data") as server, Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def narrow_client(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Client]:
    """To a server with one place."""
    with (
        serving_on(sdk, tmp_path_factory.mktemp("narrow") / "data", max_running=1) as server,
        Client(server.address) as client,
    ):
        yield client


def start(client: Client, image: str, *words: str, **spec: object) -> Reader:
    """A job that is followed from its begin."""
    return Reader(client, client.enqueue("main", image, args=words, **spec).execution.id)  # type: ignore[arg-type]


def stop(client: Client, reader: Reader, **how: object) -> pb.Job:
    return client.stop(reader.execution().job_id, **how)  # type: ignore[arg-type]


# -- ends


def test_a_command_is_run_and_what_it_prints_arrives(client: Client, image: str) -> None:
    log = run(client, image, "echo", "hello")
    assert (log.stdout, log.stderr, log.gaps) == (b"hello\n", b"", [])
    end = log.end()
    assert (end.sealed, end.state, end.exit_status) == (True, pb.STATE_SUCCEEDED, 0)
    assert (outcome(log).reason, outcome(log).HasField("exit_code"), outcome(log).exit_code) == (
        pb.REASON_UNSPECIFIED,
        True,
        0,
    )
    assert log.states[-1] == pb.STATE_SUCCEEDED
    execution = log.execution()
    assert (execution.state, execution.outcome) == (pb.STATE_SUCCEEDED, end.outcome)
    assert list(execution.logs) == list(end.totals)
    names = ("create", "claim", "pull", "container", "start", "exit", "seal", "end")
    points = [getattr(execution.times, f"{name}_time").ToNanoseconds() for name in names]
    assert points == sorted(points)
    # When it came to us, which may be a moment before the engine notes the start, or after it notes the end.
    assert execution.times.HasField("first_byte_time")


def test_a_command_in_one_string_is_split_as_a_shell_does_and_run_by_none(client: Client, image: str) -> None:
    job = client.enqueue("main", image, "printf '%s|' 'a b' $HOME *", args=["c d"])
    log = Reader(client, job.execution.id)
    log.end()
    assert log.stdout == b"a b|$HOME|*|c d|"


def test_a_failure_keeps_its_output_and_its_exit_code(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", "echo kept; exit 123")
    assert log.stdout == b"kept\n"
    assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, 123)
    assert (outcome(log).reason, outcome(log).exit_code) == (pb.REASON_EXIT_CODE, 123)


def test_stderr_is_apart_from_stdout(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", "echo out; echo err >&2; printf more; printf 'more err' >&2")
    assert (log.stdout, log.stderr) == (b"out\nmore", b"err\nmore err")
    only_stderr = Reader(client, log.execution_id, sources=[pb.SOURCE_STDERR])
    only_stderr.end()
    assert (only_stderr.stdout, only_stderr.stderr, only_stderr.system) == (b"", b"err\nmore err", "")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-command", pb.REASON_COMMAND_NOT_FOUND),
        ("/no/such/command", pb.REASON_COMMAND_NOT_FOUND),
        ("/etc/passwd", pb.REASON_COMMAND_NOT_EXECUTABLE),
    ],
)
def test_a_command_that_cannot_be_run_says_which_and_why(client: Client, image: str, command: str, reason: int) -> None:
    log = run(client, image, command)
    assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, 125)
    assert (outcome(log).reason, outcome(log).HasField("exit_code")) == (reason, False)
    assert command in outcome(log).detail
    assert (log.stdout, log.stderr) == (b"", b"")


@pytest.mark.parametrize("code", [126, 127, 125, 137, 255])
def test_exit_codes_that_others_use_are_the_commands_own_if_it_ran(client: Client, image: str, code: int) -> None:
    log = run(client, image, "sh", "-c", f"exit {code}")
    assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, code)
    assert (outcome(log).reason, outcome(log).exit_code, outcome(log).out_of_memory) == (
        pb.REASON_EXIT_CODE,
        code,
        False,
    )


def test_killed_for_memory_is_told_apart_from_the_same_exit_code(client: Client, image: str) -> None:
    log = run(client, image, "tail", "/dev/zero", memory_bytes=16 << 20)
    assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, 137)
    assert (outcome(log).reason, outcome(log).exit_code, outcome(log).out_of_memory) == (
        pb.REASON_OUT_OF_MEMORY,
        137,
        True,
    )
    assert "16 MiB" in outcome(log).detail


# -- bytes


def test_a_hundred_megabytes_of_lines_arrive_as_they_were_printed(client: Client, image: str) -> None:
    line = b"0123456789" * 9 + b"012345678\n"
    log = run(client, image, "sh", "-c", f"yes {line.decode().strip()} | head -c 100000000")
    expected = line * 1_000_000
    assert log.stdout == expected
    assert (log.totals().bytes, log.totals().missing_bytes, log.totals().crc32) == (
        100_000_000,
        0,
        zlib.crc32(expected),
    )
    assert log.gaps == []


def test_ten_megabytes_of_random_bytes_arrive_as_they_were_printed(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", "head -c 10000000 /dev/urandom >/tmp/r; cat /tmp/r; sha256sum </tmp/r >&2")
    assert len(log.stdout) == 10_000_000
    assert hashlib.sha256(log.stdout).hexdigest() == log.stderr.split()[0].decode()
    assert log.totals().crc32 == zlib.crc32(log.stdout)


def test_a_line_of_16_megabytes_arrives_whole(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", "tr '\\0' x </dev/zero | head -c 16777216")
    assert log.stdout == b"x" * (16 << 20)
    assert log.totals().crc32 == zlib.crc32(log.stdout)


def test_output_without_a_newline_gets_none(client: Client, image: str) -> None:
    log = run(client, image, "printf", r"no newline, and a NUL: \000")
    assert log.stdout == b"no newline, and a NUL: \0"
    assert log.totals().bytes == len(log.stdout)


def test_output_arrives_while_the_container_runs(client: Client, image: str, sdk: docker.DockerClient) -> None:
    # It ends only when somebody shows that the first line was seen.
    log = start(client, image, "sh", "-c", "echo first; until [ -e /tmp/seen ]; do sleep 0.05; done; echo last")
    log.wait_for_output(b"first\n")
    sdk.containers.get(log.execution().container_id).exec_run("touch /tmp/seen")
    assert (log.end().exit_status, log.stdout) == (0, b"first\nlast\n")


# -- stop, in every state


def test_a_queued_job_that_is_stopped_never_gets_a_container(narrow_client: Client, image: str) -> None:
    running = start(narrow_client, image, *IGNORES)
    running.wait_for_state(pb.STATE_RUNNING)
    queued = start(narrow_client, image, "echo", "ran")
    queued.wait_for_state(pb.STATE_QUEUED)
    assert queued.changes[0].waiting is not None
    assert queued.changes[0].waiting.reason == pb.WAIT_REASON_NO_FREE_SLOT
    job = stop(narrow_client, queued, note="not needed")
    assert (job.state, job.outcome.reason) == (pb.STATE_STOPPED, pb.REASON_UNSPECIFIED)
    assert "not needed" in job.outcome.detail
    assert (queued.end().exit_status, queued.stdout, queued.states) == (130, b"", [pb.STATE_QUEUED, pb.STATE_STOPPED])
    execution = queued.execution()
    assert (execution.container_id, execution.times.HasField("claim_time")) == ("", False)
    # The next one gets the place.
    after = start(narrow_client, image, "echo", "after")
    stop(narrow_client, running, grace=0)
    assert (after.end().exit_status, after.stdout) == (0, b"after\n")


def test_a_job_that_is_stopped_during_the_pull_ends_at_once(client: Client, sdk: docker.DockerClient) -> None:
    with registry_for(sdk) as registry:
        log = start(client, f"{registry.name}/hanging/image", "echo", "ran")
        assert registry.asked.wait(60)
        log.wait_for_state(pb.STATE_PREPARING)
        with within(5):
            job = stop(client, log)
            assert job.state in {pb.STATE_STOPPING, pb.STATE_STOPPED}
            assert (log.end().state, log.end().exit_status) == (pb.STATE_STOPPED, 130)
    assert not outcome(log).HasField("exit_code")
    assert log.execution().container_id == ""
    assert "pulling" in log.system


def test_a_running_job_that_is_stopped_may_clean_up(client: Client, image: str) -> None:
    log = start(client, image, "sh", "-c", "trap 'echo cleaned; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    log.wait_for_output(b"ready\n")
    log.wait_for_state(pb.STATE_RUNNING)
    job = stop(client, log, note="by the test")
    assert job.state == pb.STATE_STOPPING
    assert (log.end().state, log.end().exit_status, log.stdout) == (pb.STATE_STOPPED, 130, b"ready\ncleaned\n")
    assert (outcome(log).exit_code, outcome(log).stop_signal) == (7, "SIGTERM")
    assert "by the test" in outcome(log).detail
    assert "by the test" in log.system
    assert log.states[-3:] == [pb.STATE_RUNNING, pb.STATE_STOPPING, pb.STATE_STOPPED]


def test_a_stopping_job_can_be_given_less_time_and_never_more(client: Client, image: str) -> None:
    log = start(client, image, *IGNORES)
    log.wait_for_state(pb.STATE_RUNNING)
    with within(30):
        for grace in (600, 1, 600):
            assert stop(client, log, grace=grace).state == pb.STATE_STOPPING
        assert log.end().exit_status == 130
    assert (outcome(log).exit_code, outcome(log).stop_signal) == (137, "SIGKILL")


def test_a_stop_of_a_final_job_changes_nothing(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", "exit 3")
    before = client.job(log.execution().job_id)
    assert stop(client, log, grace=0, note="too late") == before
    assert (before.state, before.outcome.exit_code) == (pb.STATE_FAILED, 3)


# -- timeout


def test_a_container_that_catches_the_signal_and_exits_with_0_has_timed_out(client: Client, image: str) -> None:
    log = run(client, image, "sh", "-c", CATCHES, timeout=1)
    assert (log.end().state, log.end().exit_status, log.stdout) == (pb.STATE_TIMED_OUT, 124, b"ready\ncaught\n")
    assert (outcome(log).exit_code, outcome(log).stop_signal) == (0, "SIGTERM")
    assert client.job(log.execution().job_id).state == pb.STATE_TIMED_OUT


def test_a_container_that_ignores_the_signal_is_killed_after_its_grace(client: Client, image: str) -> None:
    log = run(client, image, *IGNORES, timeout=0.5, stop_grace=0.5, stop_signal="SIGUSR1")
    assert (log.end().state, log.end().exit_status) == (pb.STATE_TIMED_OUT, 124)
    assert (outcome(log).exit_code, outcome(log).stop_signal) == (137, "SIGKILL")
    assert "SIGUSR1" in log.system


def test_a_stop_after_the_timeout_does_not_make_it_a_stop(client: Client, image: str) -> None:
    log = start(client, image, *IGNORES, timeout=0.5, stop_grace=600)
    log.wait_for_state(pb.STATE_STOPPING)
    stop(client, log, grace=0)
    assert (log.end().state, log.end().exit_status) == (pb.STATE_TIMED_OUT, 124)
