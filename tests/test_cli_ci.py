"""The command line as a step of a CI system: the id of the job, a server that is not there yet, signs of life, the exit
status, and jobs that are waited for."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fastlane_grpc.cli.display.output import Display, follow
from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests import commands_served
from tests.commands import FASTLANE, HELLO, environment, fastlane
from tests.scripted_server import Log, Piece, ScriptedServer
from tests.tailing import unused_address


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.logs["execution-1"] = HELLO
    yield server
    server.event("stopped").set()
    server.stop()


# ---- the id of the job


@pytest.mark.parametrize("variables", [{"CI": "true"}, {"JENKINS_URL": "http://jenkins"}, {"TF_BUILD": "True"}])
def test_a_step_of_a_ci_system_shows_the_id_of_its_job(server: ScriptedServer, variables: dict[str, str]) -> None:
    ran = fastlane(server, "run", "busybox", **variables)
    assert (ran.stdout, ran.stderr) == (b"hello\nworld\n", b"fastlane: job job-1\noh\n")
    assert fastlane(server, "run", "-q", "busybox", **variables).stderr == b"oh\n"


@pytest.mark.parametrize("value", ["", "false", "0"])
def test_outside_of_a_ci_system_stderr_has_the_bytes_of_the_job_alone(server: ScriptedServer, value: str) -> None:
    assert fastlane(server, "run", "busybox", CI=value).stderr == b"oh\n"


@pytest.mark.parametrize("command", ["run", "enqueue"])
def test_the_id_of_the_job_is_written_to_a_file(server: ScriptedServer, command: str, tmp_path: Path) -> None:
    (tmp_path / "id").write_text("something longer that was here before\n")
    assert fastlane(server, command, "--id-file", str(tmp_path / "id"), "busybox").returncode == 0
    assert (tmp_path / "id").read_text() == "job-1\n"


def test_an_id_file_that_cannot_be_written_costs_no_job(server: ScriptedServer, tmp_path: Path) -> None:
    ran = fastlane(server, "run", "--id-file", str(tmp_path / "none" / "id"), "busybox")
    reason = f"cannot write --id-file {tmp_path}/none/id: No such file or directory; no job was enqueued"
    assert (ran.returncode, ran.stderr.decode()) == (2, f"fastlane: {reason}\n")
    assert server.requests == []


def test_an_id_that_a_full_disk_refuses_is_told(server: ScriptedServer) -> None:
    ran = fastlane(server, "enqueue", "--id-file", "/dev/full", "busybox")
    reason = "cannot write the id of job job-1 to /dev/full: No space left on device"
    assert (ran.returncode, ran.stderr.decode()) == (1, f"fastlane: {reason}\n")


# ---- a server that is not there yet


@pytest.mark.parametrize("command", ["run", "enqueue"])
def test_a_server_that_comes_late_is_waited_for(command: str) -> None:
    address = unused_address()
    with subprocess.Popen(
        [*FASTLANE, command, "-a", address, "busybox"],
        env=environment(None),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stderr
        assert process.stdout
        line = process.stderr.readline().decode()
        told = rf"fastlane: no server responds at {address} \(Connection refused\); trying again for 5[0-9] s\n"
        assert re.fullmatch(told, line)
        server = ScriptedServer(address)
        server.logs["execution-1"] = HELLO
        assert process.stdout.read() == (b"hello\nworld\n" if command == "run" else b"job-1\n")
        assert process.wait(60) == 0
    assert len({request.request_id for request in server.received(pb.EnqueueJobRequest)}) == 1
    server.stop()


def test_an_interrupt_ends_the_wait_for_a_server() -> None:
    command = [*FASTLANE, "run", "-a", unused_address(), "busybox"]
    with subprocess.Popen(command, env=environment(None), stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stderr
        assert b"no server responds" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert b"no job was enqueued" in process.stderr.read()


# ---- signs of life


def test_a_silent_job_gives_a_sign_of_life_as_often_as_asked_for(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.logs["execution-1"] = Log([Piece(1, b"hello\n")], heartbeats_before_end=30, heartbeat_seconds=0.05)
    display = Display({}, verbose=False, quiet=False, heartbeat=timedelta(seconds=0.3))
    with Client(server.address) as client:
        display.followed = "job job-1"
        assert follow(client.tail_job("job-1", sources=display.sources), display) == 0
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "hello\n"
    assert len(lines) > 1
    assert all(re.fullmatch(r"fastlane: job job-1 is running; no output for \d\.\ds", line) for line in lines)


def test_a_job_that_waits_says_so_as_its_sign_of_life(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    waits = pb.Waiting(reason=pb.WAIT_REASON_HOST_DOWN, detail="host 'local' does not answer")
    server.logs["execution-1"] = Log(
        [Piece(state=pb.STATE_QUEUED, waiting=waits)], first_state=pb.STATE_QUEUED, heartbeats_before_end=30
    )
    display = Display({}, verbose=False, quiet=True, heartbeat=timedelta(seconds=0.2))
    with Client(server.address) as client:
        display.followed = "job job-1"
        follow(client.tail_job("job-1", sources=display.sources), display)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert set(lines) == {"fastlane: job job-1 waits: host 'local' does not answer"}


# ---- the exit status


def test_no_exit_status_leaves_the_verdict_to_others(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, state=pb.STATE_FAILED, exit_status=3)
    assert fastlane(server, "run", "busybox").returncode == 3
    ran = fastlane(server, "run", "--no-exit-status", "busybox")
    assert (ran.returncode, ran.stdout) == (0, b"hello\nworld\n")
    assert fastlane(server, "logs", "--no-exit-status", "job-1").returncode == 0


def test_a_variable_that_is_not_set_here_is_not_set_in_the_job(server: ScriptedServer) -> None:
    fastlane(server, "enqueue", "-e", "NOT_SET_ANYWHERE", "-e", "A=1", "-e", "A", "-e", "B=2", "busybox")
    [request] = server.received(pb.EnqueueJobRequest)
    assert dict(request.spec.envs) == {"B": "2"}


# ---- logs without an id


def test_logs_shows_the_newest_job_that_is_asked_for(server: ScriptedServer) -> None:
    server.jobs = [pb.Job(id="job-7", task_id="mail", execution=pb.Execution(id="execution-1"))]
    for options in (["--last"], ["--task", "mail"], ["-l", "customer=4711", "--task", "mail"]):
        assert fastlane(server, "logs", *options).stdout == b"hello\nworld\n"
    asked = [(request.task_id, dict(request.labels)) for request in server.received(pb.ListJobsRequest)]
    assert asked == [("", {}), ("mail", {}), ("mail", {"customer": "4711"})]


def test_logs_of_no_job_says_which_one_there_is_not(server: ScriptedServer) -> None:
    ran = fastlane(server, "logs", "--task", "mail", "-l", "customer=4711")
    assert ran.stderr == b"fastlane: there is no job of task 'mail' with label customer=4711\n"
    for arguments in ([], ["job-1", "--last"], ["job-1", "--task", "mail"]):
        ran = fastlane(server, "logs", *arguments)
        assert ran.returncode == 2
        assert b"give the id of a job or an execution, or one of --last, --task and --label" in ran.stderr


# ---- jobs that are waited for


@pytest.mark.engine
def test_wait_ends_with_the_jobs_and_exits_with_the_first_that_failed(tmp_path: Path, image: str) -> None:
    server = commands_served.Server(tmp_path / "data")
    try:
        with Client(server.address) as client:
            jobs = [client.enqueue("t", image, args=["sh", "-c", f"sleep 1; exit {status}"]).id for status in (0, 4, 3)]
            forever = client.enqueue("t", image, args=["sleep", "600"]).id
            waiting = subprocess.Popen(
                [*FASTLANE, "wait", forever, "-o", "json"],
                env=commands_served.environment(server.address),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            ran = commands_served.fastlane(server, "wait", *jobs)
            assert (ran.returncode, ran.stderr) == (4, b"")
            lines = sorted(ran.stdout.decode().splitlines())
            told = ["succeeded", "failed  exited with 4", "failed  exited with 3"]
            assert lines == sorted(f"{job}  {how}" for job, how in zip(jobs, told, strict=True))
            assert commands_served.fastlane(server, "wait", jobs[0]).returncode == 0
            # The wait goes on over a restart of the server.
            server.end(signal.SIGKILL)
            server.start()
            client.stop(forever, grace=0)
            printed, noticed = waiting.communicate(timeout=60)
            assert (waiting.returncode, json.loads(printed)["state"]) == (130, "STATE_STOPPED")
            assert noticed in (b"", *re.findall(rb"(?s).*resuming the wait\n", noticed))
            gone = commands_served.fastlane(server, "wait", jobs[0], "0" * 8)
            assert (gone.returncode, b"no job has an id that begins with" in gone.stderr) == (1, True)
    finally:
        server.end(signal.SIGTERM)
