import dataclasses
import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import grpc
import pytest
from google.protobuf.descriptor import Descriptor

from fastlane_grpc import cli, config
from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.option_names import with_option_names
from fastlane_grpc.cli.commands.enqueue_file import task_of
from fastlane_grpc.cli.commands.run import enqueue, run
from fastlane_grpc.cli.commands.server import server as server_command
from fastlane_grpc.cli.errors import cause
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE, HELLO, WAITING, environment, fastlane
from tests.scripted_server import Cut, Log, Piece, ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.logs["execution-1"] = HELLO
    yield server
    server.event("stopped").set()
    server.event("released").set()
    server.stop()


def started(server: ScriptedServer, *arguments: str) -> subprocess.Popen[bytes]:
    # Unbuffered: `communicate` would not see what `readline` has read ahead.
    return subprocess.Popen(
        [*FASTLANE, *arguments], env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )


def unused_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


# ---------------------------------------------------------------------------------------------------------------- run


def test_run_shows_output_on_the_right_streams_and_exits_as_the_job_did(server: ScriptedServer) -> None:
    outcome = pb.Outcome(reason=pb.REASON_EXIT_CODE, detail="exited with 3", exit_code=3)
    pieces = [*HELLO.pieces, Piece(1, b"\xff\x00no newline")]
    server.logs["execution-1"] = Log(pieces, state=pb.STATE_FAILED, outcome=outcome, exit_status=3)
    ran = fastlane(server, "run", "busybox", "--", "sh", "-c", "echo hello")
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\nworld\n\xff\x00no newline", b"oh\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "t", "-e", "A=1", "busybox", "sh", "-c", "x"],
        ["--task=t", "-eA=1", "busybox", "--", "sh", "-c", "x"],
        ["--task", "t", "-qe", "A=1", "busybox", "--", "sh", "-c", "x"],
        ["--task", "t", "-e", "A=1", "--", "busybox", "sh", "-c", "x"],
    ],
)
def test_options_stand_before_the_image(server: ScriptedServer, arguments: list[str]) -> None:
    assert fastlane(server, "run", *arguments).returncode == 0
    [request] = server.received(pb.EnqueueJobRequest)
    assert (request.task_id, request.spec.image, dict(request.spec.envs)) == ("t", "busybox", {"A": "1"})
    assert list(request.spec.args) == ["sh", "-c", "x"]


def test_words_are_taken_as_they_are(server: ScriptedServer) -> None:
    fastlane(server, "run", "busybox", "grep", "--", "-x", "a  b", "", "$HOME")
    fastlane(server, "run", "busybox", "--", "--version", "--", "-d")
    first, second = server.received(pb.EnqueueJobRequest)
    assert list(first.spec.args) == ["grep", "--", "-x", "a  b", "", "$HOME"]
    assert list(second.spec.args) == ["--version", "--", "-d"]


@pytest.mark.parametrize("command", ["run", "enqueue"])
def test_everything_after_the_image_belongs_to_the_command(server: ScriptedServer, command: str) -> None:
    fastlane(server, command, "--entrypoint", "echo", "busybox", "-v", "hello")
    fastlane(server, command, "busybox", "--task", "t", "--rm", "-it", "--", "-e", "A=1", "--help")
    first, second = server.received(pb.EnqueueJobRequest)
    assert (list(first.spec.entrypoint), list(first.spec.args)) == (["echo"], ["-v", "hello"])
    assert list(second.spec.args) == ["--task", "t", "--rm", "-it", "--", "-e", "A=1", "--help"]
    assert (second.task_id, dict(second.spec.envs)) == ("busybox", {})


def test_every_option_arrives(server: ScriptedServer) -> None:
    options = "--timeout 2m30s --pull never --memory 512m --cpus 0.5 --pids 9 --network none -u 1:2 -w /app"
    extra = "--entrypoint /tini -l team=x"
    extra += " --memory-reservation 256m --cpuset-cpus 0-1 --shm-size 1g --cap-drop ALL --dns 192.0.2.53"
    extra += " --registry-credential ci --secret-env A=vault/a"
    extra += " --tmpfs /tmp --tmpfs /run:rw,noexec,size=64m,mode=700 --tmpfs /x:exec --ulimit nofile=9:-1"
    extra += " --ulimit core=0 --add-host db:192.0.2.7 --add-host six:2001:db8::7"
    extra += " --volume cache:/cache --volume data:/data:ro --keep /none:there --keep /dist/"
    extra += " --dns-search example.com --dns-option ndots:2"
    more = "--priority 7 --read-only --stop-signal SIGINT --stop-grace 0s --request-id r1 -e FROM_HERE -e EMPTY="
    ran = fastlane(
        server, "run", *f"{options} {extra} {more}".split(), "registry:5000/team/mail:1.4", FROM_HERE="value from here"
    )
    assert (ran.returncode, ran.stderr) == (0, b"oh\n")
    [request] = server.received(pb.EnqueueJobRequest)
    assert (request.task_id, request.request_id) == ("mail", "r1")
    spec = request.spec
    assert (spec.timeout.seconds, spec.pull_policy) == (150, pb.JobSpec.PULL_POLICY_NEVER)
    assert spec.limits == pb.Limits(
        memory_bytes=512 << 20,
        cpus=0.5,
        pids=9,
        shm_bytes=1 << 30,
        memory_reservation_bytes=256 << 20,
        cpuset="0-1",
    )
    assert list(spec.tmpfs) == [
        pb.Tmpfs(path="/tmp"),
        pb.Tmpfs(path="/run", size_bytes=64 << 20, mode=0o700),
        pb.Tmpfs(path="/x", executable=True),
    ]
    assert list(spec.ulimits) == [pb.Ulimit(name="nofile", soft=9, hard=-1), pb.Ulimit(name="core", soft=0)]
    assert dict(spec.extra_hosts) == {"db": "192.0.2.7", "six": "2001:db8::7"}
    assert spec.dns == pb.Dns(servers=["192.0.2.53"], search_domains=["example.com"], options=["ndots:2"])
    assert (list(spec.cap_drop), spec.registry_credential) == (["ALL"], "ci")
    assert dict(spec.secret_envs) == {"A": "vault/a"}
    assert list(spec.outputs) == ["/none", "/dist"]
    assert list(spec.volumes) == [
        pb.Volume(name="cache", path="/cache"),
        pb.Volume(name="data", path="/data", read_only=True),
    ]
    assert (spec.network, spec.user, spec.working_dir, list(spec.entrypoint)) == ("none", "1:2", "/app", ["/tini"])
    assert (dict(spec.labels), spec.priority, spec.read_only_root) == ({"team": "x"}, 7, True)
    assert (spec.stop_signal, spec.HasField("stop_grace"), spec.stop_grace.seconds) == ("SIGINT", True, 0)
    assert dict(spec.envs) == {"FROM_HERE": "value from here", "EMPTY": ""}


def test_run_with_no_options_sets_nothing(server: ScriptedServer) -> None:
    fastlane(server, "run", "busybox")
    [request] = server.received(pb.EnqueueJobRequest)
    assert (request.task_id, request.spec) == ("busybox", pb.JobSpec(image="busybox"))
    assert request.request_id


@pytest.mark.parametrize(
    ("image", "task"),
    [
        ("busybox", "busybox"),
        ("registry:5000/team/mail:1.4", "mail"),
        ("registry:5000/mail", "mail"),
        ("mail@sha256:0123", "mail"),
        ("team/mail:1@sha256:0123", "mail"),
        ("odd/", "run"),
    ],
)
def test_a_job_without_a_task_goes_under_the_name_of_its_image(image: str, task: str) -> None:
    assert task_of(image) == task


def test_detached_prints_the_job_and_leaves(server: ScriptedServer) -> None:
    server.logs["execution-1"] = WAITING
    ran = fastlane(server, "run", "-d", "busybox")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"job-1\n", b"")


def test_enqueue_prints_the_job_and_takes_what_run_takes(server: ScriptedServer) -> None:
    server.logs["execution-1"] = WAITING
    ran = fastlane(server, "enqueue", "--task", "t", "--request-id", "r1", "-e", "A=1", "busybox", "--", "grep", "-x")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"job-1\n", b"")
    [request] = server.received(pb.EnqueueJobRequest)
    assert (request.task_id, request.request_id, list(request.spec.args)) == ("t", "r1", ["grep", "-x"])
    of_run = {each.name for each in run.params} - {"detach", "verbose", "quiet", "heartbeat", "no_exit_status"}
    assert of_run == {each.name for each in enqueue.params} - {"file", "dry_run", "form"}


def test_lines_of_the_system_are_shown_where_they_are_asked_for(server: ScriptedServer) -> None:
    ran = fastlane(server, "run", "--verbose", "busybox")
    assert (ran.stdout, ran.stderr) == (b"hello\nworld\n", b"fastlane: job job-1, execution execution-1\npulling\noh\n")


@pytest.mark.parametrize(("more", "shown"), [({}, "\x1b[2mpulling\r\n\x1b[22m"), ({"NO_COLOR": "1"}, "pulling\r\n")])
def test_lines_of_the_system_are_shown_on_a_terminal(server: ScriptedServer, more: dict[str, str], shown: str) -> None:
    mine, theirs = pty.openpty()
    command = [*FASTLANE, "run", "busybox"]
    subprocess.run(
        command, env=environment(server, TERM="xterm", **more), stdout=subprocess.DEVNULL, stderr=theirs, timeout=60
    )
    os.close(theirs)
    assert os.read(mine, 10_000).decode() == f"fastlane: job job-1, execution execution-1\r\n{shown}oh\r\n"
    os.close(mine)


def test_an_end_that_the_exit_status_alone_does_not_explain_is_told(server: ScriptedServer) -> None:
    outcome = pb.Outcome(reason=pb.REASON_COMMAND_NOT_FOUND, detail="no program 'nothere' in busybox")
    server.logs["execution-1"] = Log(state=pb.STATE_FAILED, outcome=outcome, exit_status=125)
    ran = fastlane(server, "run", "busybox", "nothere")
    assert (ran.returncode, ran.stderr) == (125, b"fastlane: no program 'nothere' in busybox\n")
    ran = fastlane(server, "run", "-q", "busybox", "nothere")
    assert (ran.returncode, ran.stderr) == (125, b"fastlane: no program 'nothere' in busybox\n")
    outcome = pb.Outcome(reason=pb.REASON_EXIT_CODE, detail="exited with 3", exit_code=3)
    server.logs["execution-1"] = Log(state=pb.STATE_FAILED, outcome=outcome, exit_status=3)
    ran = fastlane(server, "run", "busybox", "nothere")
    assert (ran.returncode, ran.stderr) == (3, b"")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("waiting: 8 of 8 slots in use", "fastlane: stopped while it was queued: no more\n"),
        ("stopped: stopped while it was queued: no more", ""),
    ],
)
def test_an_end_is_told_unless_the_last_line_of_the_system_tells_it(
    server: ScriptedServer, line: str, said: str
) -> None:
    outcome = pb.Outcome(detail="stopped while it was queued: no more")
    server.logs["execution-1"] = Log(
        [Piece(3, f"{line}\n".encode())], state=pb.STATE_STOPPED, outcome=outcome, exit_status=130
    )
    ran = fastlane(server, "logs", "-v", "job-1")
    assert (ran.returncode, ran.stderr.decode()) == (130, f"{line}\n{said}")


def test_a_gap_is_told(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([Piece(1, b"a"), Piece(1, missing=77), Piece(1, b"b"), Piece(2, missing=-1)])
    ran = fastlane(server, "run", "-q", "busybox")
    assert (ran.returncode, ran.stdout) == (0, b"ab")
    assert ran.stderr.decode().splitlines() == [
        "fastlane: 77 bytes of stdout are missing here: lost before fastlane stored them",
        "fastlane: bytes of stderr may be missing here: lost before fastlane stored them",
    ]


def test_a_short_cut_is_mended_without_a_word(server: ScriptedServer) -> None:
    server.cuts.extend([Cut(2, "unavailable"), Cut(0, "ok"), Cut(1, "reset")])
    ran = fastlane(server, "run", "busybox")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"hello\nworld\n", b"oh\n")


def test_a_longer_absence_of_the_server_is_told_once_and_its_end_too(server: ScriptedServer) -> None:
    server.cuts.extend([Cut(2, "away"), Cut(0, "away"), Cut(0, "unavailable")])
    ran = fastlane(server, "run", "busybox")
    assert (ran.returncode, ran.stdout) == (0, b"hello\nworld\n")
    away, back = (line for line in ran.stderr.decode().splitlines() if line != "oh")
    assert away == "fastlane: the server does not respond (the server is going down); retrying until it does"
    assert re.fullmatch(r"fastlane: the server is back after \d+ s; resuming where the output was interrupted", back)


def test_a_server_that_has_no_room_is_told_at_once(server: ScriptedServer) -> None:
    server.cuts.extend([Cut(0, "streams")])
    ran = fastlane(server, "run", "busybox")
    assert (ran.returncode, ran.stdout) == (0, b"hello\nworld\n")
    full, back = (line for line in ran.stderr.decode().splitlines() if line != "oh")
    assert full == "fastlane: the server is at a limit (as many as allowed); retrying until there is capacity"
    assert re.fullmatch(r"fastlane: capacity is available after \d+ s; resuming where the output was interrupted", back)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_stops_the_job_and_shows_its_end(server: ScriptedServer, number: signal.Signals) -> None:
    server.logs["execution-1"] = WAITING
    with started(server, "run", "busybox") as process:
        assert process.stdout
        assert process.stdout.readline() == b"hello\n", "output is shown while the job runs"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"world\n")
    # Without a blank line before it: stderr is no terminal with a ^C.
    assert b"" not in err.splitlines()
    assert b"fastlane: stopping job job-1; press Ctrl-C again to detach" in err.splitlines()
    [request] = server.received(pb.StopJobRequest)
    assert (request.job_id, request.note) == ("job-1", f"{number.name} in fastlane run")


def test_the_second_interrupt_leaves_at_once(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, heartbeats_before_end=1_000_000, heeds_stop=False)
    with started(server, "run", "busybox") as process:
        assert process.stdout
        assert process.stdout.readline() == b"hello\n"
        process.send_signal(signal.SIGINT)
        assert server.event("stopped").wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fastlane logs job-1" in err.decode().splitlines()[-1]


def test_a_job_that_ended_well_before_the_stop_arrived_ended_well(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, heartbeats_before_end=1_000_000, state=pb.STATE_SUCCEEDED)
    with started(server, "run", "busybox") as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_stop_that_fails_is_told(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, heartbeats_before_end=1_000_000, heeds_stop=False)
    with started(server, "run", "busybox") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        server.refusals.append((grpc.StatusCode.INTERNAL, "DEFECT", {"message": "defect 7c1"}))
        process.send_signal(signal.SIGINT)
        while b"cannot stop job job-1: defect 7c1" not in process.stderr.readline():
            pass
        server.event("released").set()
        assert process.wait(60) == 0


def test_a_run_whose_reader_goes_away_ends_of_sigpipe_and_leaves_the_job_alone(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([Piece(1, b"x" * 60_000)] * 200)
    with started(server, "run", "busybox") as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(10) == b"x" * 10
        process.stdout.close()
        assert process.wait(60) == -signal.SIGPIPE
        assert process.stderr.read() == b""
    assert not server.received(pb.StopJobRequest)


def test_output_that_cannot_be_written_is_said_in_one_line(server: ScriptedServer) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [*FASTLANE, "run", "busybox"], env=environment(server), stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert ran.returncode == 1
    assert ran.stderr.decode() == "fastlane: cannot write to stdout: No space left on device; the job continues\n"


def test_a_pipe_that_does_not_wait_gets_every_byte(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([Piece(1, bytes([number % 251]) * 50_000) for number in range(60)])
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETFL, fcntl.fcntl(into, fcntl.F_GETFL) | os.O_NONBLOCK)
    with subprocess.Popen([*FASTLANE, "run", "busybox"], env=environment(server), stdout=into) as process:
        os.close(into)
        with os.fdopen(out, "rb") as reader:
            assert reader.read() == server.logs["execution-1"].data(1)
        assert process.wait(60) == 0


# -------------------------------------------------------------------------------------------------- logs, stop, version


@pytest.mark.parametrize("either_id", ["execution-1", "job-1"])
def test_logs_are_had_by_job_and_by_execution(server: ScriptedServer, either_id: str) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, state=pb.STATE_TIMED_OUT, exit_status=124)
    shown = fastlane(server, "logs", either_id)
    assert (shown.returncode, shown.stdout, shown.stderr) == (
        124,
        b"hello\nworld\n",
        b"oh\nfastlane: the execution ended: timed out\n",
    )


def test_logs_of_an_execution_exit_as_the_execution_did(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(
        HELLO.pieces, state=pb.STATE_FAILED, outcome=pb.Outcome(exit_code=3), exit_status=3
    )
    assert fastlane(server, "logs", "execution-1").returncode == 3


def test_the_start_and_expiry_of_a_job_are_sent_as_they_were_given(server: ScriptedServer) -> None:
    options = "--start-in 1h2m30s --start-at 2030-01-31T08:00:00+01:00 --expire-time 2030-01-31T08:00:00Z"
    assert fastlane(server, "enqueue", *options.split(), "busybox").returncode == 0
    [request] = server.received(pb.EnqueueJobRequest)
    assert request.spec.start_in.ToSeconds() == 3750
    assert request.spec.start_at.ToJsonString() == "2030-01-31T07:00:00Z"
    assert request.spec.expire_time.ToJsonString() == "2030-01-31T08:00:00Z"


def test_logs_of_chosen_sources_from_a_cursor_without_waiting(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, sealed=False, exit_status=75)
    shown = fastlane(
        server, "logs", "--no-follow", "--source", "stdout", "--source", "system", "--cursor", "2.0", "execution-1"
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (75, b"world\n", b"")
    [request] = server.received(pb.StreamExecutionLogsRequest)
    assert (request.follow, request.cursor, list(request.sources)) == (
        False,
        "2.0",
        [pb.SOURCE_STDOUT, pb.SOURCE_SYSTEM],
    )


@pytest.mark.parametrize(("flag", "follows"), [("-f", True), ("--follow", True), ("--no-follow", False)])
def test_logs_follow_unless_told_not_to(server: ScriptedServer, flag: str, follows: bool) -> None:
    assert fastlane(server, "logs", flag, "execution-1").returncode == 0
    assert server.received(pb.StreamExecutionLogsRequest)[0].follow is follows


def test_logs_begin_where_they_are_told(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, begin="3.0")
    options = ["--tail", "1", "--since", "2026-01-31T08:00:00Z", "--line", "2"]
    shown = fastlane(server, "logs", *options, "execution-1")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, b"world\n", b"")
    [request] = server.received(pb.StreamExecutionLogsRequest)
    assert (request.tail_lines, request.since_time.ToJsonString()) == (1, "2026-01-31T08:00:00Z")
    assert request.start_line == 2


def test_a_line_of_a_job_is_refused_with_the_execution_to_ask_for(server: ScriptedServer) -> None:
    shown = fastlane(server, "logs", "--line", "2", "job-1")
    assert shown.returncode != 0
    assert b"--line counts the lines of one execution; of this job, the newest is execution-1" in shown.stderr


def test_logs_may_tell_the_time_of_each_line_and_nothing_else_changes(server: ScriptedServer) -> None:
    # A line that comes in two pieces has one time, the first; each source has lines of its own.
    pieces = [
        Piece(1, b"a\nb"),
        Piece(2, b"\xff\n\n"),
        Piece(1, b"c\n"),
        Piece(1, b"d"),
        Piece(2, b"e"),
        Piece(1, b"\n"),
    ]
    server.logs["execution-1"] = Log(pieces)
    shown = fastlane(server, "logs", "-t", "execution-1")
    out, err = (
        re.sub(rb"2023-11-14T22:13:20\.1234567(\d\d)Z ", rb"<\1> ", each) for each in (shown.stdout, shown.stderr)
    )
    assert (out, err) == (b"<89> a\n<89> bc\n<92> d\n", b"<90> \xff\n<90> \n<93> e")


def test_an_interrupt_of_logs_leaves_the_job_alone(server: ScriptedServer) -> None:
    server.logs["execution-1"] = WAITING
    with started(server, "logs", "job-1") as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()
    assert not server.received(pb.StopJobRequest)


def test_stop_says_where_the_job_is(server: ScriptedServer) -> None:
    stopped = fastlane(server, "stop", "--grace", "1m5s", "--note", "enough", "job-1")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, b"job job-1: queued\n", b"")
    [request] = server.received(pb.StopJobRequest)
    assert (request.job_id, request.note, request.grace.seconds) == ("job-1", "enough", 65)


def test_version_needs_no_server() -> None:
    assert fastlane(None, "version").stdout.startswith(b"fastlane ")


def test_the_version_is_an_option_too() -> None:
    assert fastlane(None, "--version").stdout == fastlane(None, "version").stdout != b""


def test_version_is_there_in_a_moment_as_it_loads_neither_grpc_nor_settings() -> None:
    code = "import sys; from fastlane_grpc.cli import exit_status; exit_status(['version'], {}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert not {"grpc", "google.protobuf", "fastlane_grpc.config", "fastlane_grpc.client", "docker", "sqlite3"} & {
        *loaded
    }


def test_a_command_that_asks_a_server_loads_nothing_that_serves() -> None:
    code = "import sys, fastlane_grpc.cli.commands.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "fastlane_grpc.client" in loaded
    assert not {"fastlane_grpc.config", "fastlane_grpc.model", "fastlane_grpc.store", "docker", "sqlite3"} & {*loaded}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_by_which_the_shell_asks_fastlane(shell: str) -> None:
    printed = fastlane(None, "completion", shell)
    assert printed.returncode == 0
    assert b"_FASTLANE_COMPLETE" in printed.stdout
    asked = {"_FASTLANE_COMPLETE": "bash_complete", "COMP_WORDS": "fastlane ex", "COMP_CWORD": "1"}
    assert fastlane(None, **asked).stdout.split() == [b"plain,executions", b"plain,execution"]


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--wait", "0s", "busybox"],
        ["logs", "job-1"],
        ["stop", "job-1"],
        ["jobs"],
        ["hosts"],
        ["prune", "--older-than", "1d"],
    ],
)
def test_a_server_that_is_not_there_is_said_in_one_line(command: list[str]) -> None:
    address = unused_address()
    ran = fastlane(None, command[0], "-a", address, *command[1:])
    assert ran.returncode == 69
    [line] = ran.stderr.decode().splitlines()
    advice = "start one with `fastlane server`, or set another --address"
    assert line == f"fastlane: no server responds at {address} (Connection refused); {advice}"


def test_the_cause_is_what_the_system_said_last_without_the_brackets_around_it() -> None:
    lookup = "[field:hostname lookup error:address lookup failed: Domain name not found]"
    message = f"errors resolving nowhere.invalid:7020: {lookup}"
    assert cause(api.ServerUnavailable(message)) == "Domain name not found"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bla"], "No such command 'bla'; see `fastlane --help`"),
        (["ps"], "No such command 'ps': the nearest is `fastlane jobs`; see `fastlane --help`"),
        (["log"], "No such command 'log': the nearest is `fastlane logs`; see `fastlane --help`"),
        (["rm"], "No such command 'rm': the nearest is `fastlane prune`; see `fastlane --help`"),
        (["exec"], "No such command 'exec': the nearest is `fastlane run`; see `fastlane --help`"),
        (["excution"], "No such command 'excution': the nearest is `fastlane execution`; see `fastlane --help`"),
        (["run"], "Missing argument 'IMAGE'; see `fastlane run --help`"),
        (
            ["run", "--timeout", "5m30", "busybox", "--", "x"],
            "Invalid value for '--timeout': '5m30' must be a duration",
        ),
        (["run", "--timeout", "1w", "busybox"], "'1w' must be a duration"),
        *(
            (
                ["enqueue", "--start-in", text, "busybox"],
                f"{text!r} must be a duration, as 90s, 30m, 1h30m or 2d",
            )
            for text in ("abc", "5m30", "1m2h", "-1s", "1.5h", "")
        ),
        (["run", "--start-at", "tomorrow", "busybox"], "'tomorrow' must be a time, as 2026-01-31T08:00:00Z"),
        (["run", "--expire-time", "10m", "busybox"], "'10m' must be a time, as 2026-01-31T08:00:00Z"),
        (["run", "--memory", "lots", "busybox"], "'lots' must be a number of bytes"),
        (["run", "--tmpfs", "/a:uid=0", "busybox"], "has the option 'uid=0'; known ones: size=64m, mode=1777, exec"),
        (["run", "--tmpfs", "/a:mode=9", "busybox"], "has the option 'mode=9'"),
        (["run", "--tmpfs", "/a:size=x", "busybox"], "must be a number of bytes"),
        (["run", "--volume", "/cache", "busybox"], "must be NAME:PATH"),
        (["run", "--ulimit", "nofile", "busybox"], "must be NAME=SOFT[:HARD]"),
        (["run", "--add-host", "db", "busybox"], "must be HOST:IP"),
        (["run", "-l", "x", "busybox"], "'x' must be NAME=VALUE"),
        (
            ["run", "-a", "nowhere", "busybox"],
            "'nowhere' must be HOST:PORT, as 127.0.0.1:7020; see `fastlane run --help`",
        ),
        (
            ["logs", "-a", "localhost", "x"],
            "'localhost' must be HOST:PORT, as 127.0.0.1:7020; see `fastlane logs --help`",
        ),
        (
            ["stop", "-a", "localhost:0", "x"],
            "'localhost:0' must be HOST:PORT, as 127.0.0.1:7020; see `fastlane stop --help`",
        ),
        (["server", "--listen", "localhost"], "must be HOST:PORT, as 127.0.0.1:7020; port 0 takes a free one"),
        (["stop", "--grace", "-1s", "x"], "'-1s' must be a duration, as 10s or 1m30s; 0s: SIGKILL at once"),
        (["run", "--stop-grace", "soon", "busybox"], "'soon' must be a duration, as 10s"),
        (["enqueue", "--memory", "lots", "busybox"], "'lots' must be a number of bytes"),
        (["jobs", "--state", "broken"], "'broken' is not one of 'scheduled', 'queued', 'preparing'"),
        (
            ["jobs", "--since", "soon"],
            "'soon' must be an age, as 10m or 2d, or a time, as 2026-01-31T08:00:00Z; see `fastlane jobs --help`",
        ),
        (["prune", "--older-than", "1w"], "'1w' must be an age, as 30d, 12h or 1d12h; 0s: any age"),
        (["logs", "--tail", "-1", "x"], "-1 is not in the range 0<=x<=1000000"),
        (
            ["completion"],
            "Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish; see `fastlane completion --help`",
        ),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["server", "--max-running", "none"], "max_running in --max-running is 'none'"),
        (["server", "--max-timeout", "1m"], "default_timeout (30m) is longer than max_timeout (1m): set both"),
        (
            ["server", "--config", "/nowhere.toml"],
            "cannot read the settings in /nowhere.toml: No such file or directory",
        ),
    ],
)
def test_wrong_use_is_said_in_one_line(arguments: list[str], said: str) -> None:
    ran = fastlane(None, *arguments)
    assert (ran.returncode, ran.stdout) == (2, b"")
    [line] = ran.stderr.decode().splitlines()
    assert line.startswith("fastlane: ")
    assert said in line


RAW = b"caf\xe9"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "busybox", "printf", RAW], "argument 4 is not UTF-8: 'caf\\xe9'"),
        (["run", RAW], "argument 2 is not UTF-8: 'caf\\xe9'"),
        (["run", "-e", b"A=" + RAW, "busybox"], "argument 3 (after -e) is not UTF-8: 'A=caf\\xe9'"),
        (["run", "-e", b"DB_PASSWORD=" + RAW, "busybox"], "argument 3 (after -e) is not UTF-8: 'DB_PASSWORD=***'"),
        (["enqueue", b"--task=" + RAW, "busybox"], "argument 2 is not UTF-8: '--task=caf\\xe9'"),
        (["run", "-l", b"a=" + RAW, "busybox"], "argument 3 (after -l) is not UTF-8: 'a=caf\\xe9'"),
        *(
            ([command, RAW], "argument 2 is not UTF-8: 'caf\\xe9'")
            for command in ("logs", "job", "execution", "stop", "version", "hosts")
        ),
        (["jobs", "--task", RAW], "argument 3 (after --task) is not UTF-8: 'caf\\xe9'"),
        (["stop", "--note", RAW, "x"], "argument 3 (after --note) is not UTF-8: 'caf\\xe9'"),
        (["server", "--data-dir", RAW], "argument 3 (after --data-dir) is not UTF-8: 'caf\\xe9'"),
        ([RAW], "argument 1 is not UTF-8: 'caf\\xe9'"),
    ],
)
def test_an_argument_that_is_not_utf_8_is_named_in_one_line(arguments: list[str | bytes], said: str) -> None:
    ran = subprocess.run([*FASTLANE, *arguments], env=environment(None), capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr.decode()) == (2, b"", f"fastlane: {said}\n")


@pytest.mark.parametrize(
    ("variable", "arguments", "said"),
    [
        ("FASTLANE_ADDRESS", ["jobs"], "(env var: 'FASTLANE_ADDRESS'): 'caf\\xe9' is not UTF-8"),
        ("FASTLANE_DATA_DIR", ["config"], "data_dir in environment variable FASTLANE_DATA_DIR is not UTF-8"),
        ("FASTLANE_CONFIG", ["config"], "the path of the settings file is not UTF-8: 'caf\\xe9'"),
        ("DOCKER_HOST", ["config"], "engine in environment variable DOCKER_HOST is not UTF-8"),
        ("MINE", ["run", "-e", "MINE", "busybox"], "the value of 'MINE' in this environment is not UTF-8"),
    ],
)
def test_a_variable_that_is_not_utf_8_is_named_in_one_line(
    server: ScriptedServer, variable: str, arguments: list[str], said: str
) -> None:
    ran = subprocess.run(
        [*FASTLANE, *arguments],
        env={**environment(server), variable: os.fsdecode(RAW)},
        capture_output=True,
        timeout=60,
    )
    [line] = ran.stderr.decode().splitlines()
    assert (ran.returncode, said in line) == (2, True), line


def test_wrong_use_repeats_no_secret(server: ScriptedServer) -> None:
    ran = fastlane(server, "run", "-e", "=hunter2", "busybox")
    assert (ran.returncode, b"hunter2" in ran.stderr) == (2, False)


def test_what_the_server_refuses_is_said_in_one_line(server: ScriptedServer) -> None:
    violations = [("spec.network", "must be empty or none")]
    message = "spec.network: must be empty or none"
    server.refusals.append(
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"violations": violations, "message": message})
    )
    ran = fastlane(server, "run", "--network", "host", "busybox")
    assert (ran.returncode, ran.stderr.decode()) == (1, "fastlane: --network: must be empty or none\n")
    ran = fastlane(server, "logs", "nothing")
    assert (ran.returncode, ran.stderr.decode()) == (1, "fastlane: no job or execution has the id 'nothing'\n")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("spec.start_in: must be from 0 s to 3653 days", "--in: must be from 0 s to 3653 days"),
        ("task_id: is required; spec.image: is required", "--task: is required; IMAGE: is required"),
        ('spec.envs["A=B"]: is not a name; spec.args[0]: is long', "--env A=B: is not a name; the command: is long"),
        ("spec.limits.memory_bytes: is 1", "--memory: is 1"),
        ("spec.expire_time: is before spec.start_at: never", "--expires: is before --at: never"),
        ("spec.expire_time: is before now + spec.start_in: never", "--expires: is before now + --in: never"),
        ("the image is missing; retry: later", "the image is missing; retry: later"),
        ("spec.metadata: is long", "spec.metadata: is long"),
        ("spec.stop_when_unwatched: not with spec.cron", "--stop-when-unwatched: not with --cron"),
        ("spec.notifications[0].mail: no mails", "--notify-mail: no mails"),
        ("spec.notifications[10].webhook.url: is long", "--notify-url: is long"),
        ("spec.limits.shm_bytes: is -1; spec.tmpfs[0].path: is /", "--shm-size: is -1; --tmpfs: is /"),
        ("spec.ulimits[0].soft: is -2; spec.dns.servers[1]: is a", "--ulimit: is -2; --dns: is a"),
        ('spec.extra_hosts["a b"]: is none; spec.cap_drop[0]: is x', "--add-host a b: is none; --cap-drop: is x"),
        ("spec.retry.max_retries: is 101; spec.unique.key: is long", "--retries: is 101; --unique: is long"),
        ("spec.retry.factor: is 0", "--backoff-factor: is 0"),
        ("spec.retry.exit_codes[0]: is 256", "--retry-on: is 256"),
        ("spec.retry.except_exit_codes[0]: is 256", "--no-retry-on: is 256"),
        ("spec.retry.memory_growth.factor: is 0", "--memory-growth: is 0"),
        ("spec.retry.memory_growth.max_bytes: is 0", "--max-memory: is 0"),
        ("spec.notifications[0].states[0]: is 99", "--notify-on: is 99"),
        ("spec.unique.conflict: is 9; spec.inputs[2].sha256: is x", "--on-conflict: is 9; --input: is x"),
        (
            "spec.inputs[2].path: is /; spec.retry: not with it; retry: later",
            "--input: is /; --retries: not with it; retry: later",
        ),
    ],
)
def test_errors_name_options_in_place_of_fields(message: str, said: str) -> None:
    command = cli.fastlane.get_command(click.Context(cli.fastlane), "run")
    assert command is not None
    assert with_option_names(message) == message
    with click.Context(command):
        assert with_option_names(message) == said


def fields_of(message: Descriptor, path: str = "") -> Iterator[str]:
    """The paths of all fields, as errors name them."""
    for field in message.fields:
        name = path + field.name + ("[0]" if field.is_repeated else "")
        kind = field.message_type
        if kind and kind.GetOptions().map_entry:
            yield f'{path}{field.name}["A"]'
        else:
            yield name
            if kind and kind.file.package == "fastlane.v1":
                yield from fields_of(kind, f"{name}.")


@pytest.mark.parametrize("name", ["run", "enqueue"])
def test_an_error_of_any_field_names_the_option_that_sets_it(name: str) -> None:
    without_option = {"spec", "spec.metadata", "spec.limits", "spec.history", "validate_only"}
    command = cli.fastlane.get_command(click.Context(cli.fastlane), name)
    assert command is not None
    options = {each for parameter in command.params for each in parameter.opts if each.startswith("--")}
    with click.Context(command):
        for field in fields_of(pb.EnqueueJobRequest.DESCRIPTOR):
            said = with_option_names(f"{field}: is wrong").removesuffix(": is wrong").removesuffix(" A")
            assert said == field if field in without_option else said in {*options, "IMAGE", "the command"}, field
            if kind := re.match(r"spec\.(volume|input|tmpfs|ulimit)s?\[", field):
                assert said == f"--{kind[1]}"


def test_every_command_has_an_example_in_its_help() -> None:
    for name in cli.COMMANDS:
        command = cli.fastlane.get_command(click.Context(cli.fastlane), name)
        assert command is not None
        assert command.name == name
        assert f"fastlane {name}" in command.get_help(click.Context(command, info_name=name)), name


def test_every_setting_is_a_flag_of_the_server() -> None:
    flags = {parameter.name for parameter in server_command.params}
    assert flags == {setting.name for setting in config.SETTINGS} | {"file"}


@pytest.mark.parametrize("setting", config.SETTINGS, ids=lambda setting: setting.name)
def test_the_help_of_the_server_shows_each_setting_s_kind_and_the_default_in_force(
    setting: "dataclasses.Field[object]",
) -> None:
    default = config.default_text(setting.name)
    if default:
        assert setting.metadata["read"](default) == getattr(config.Settings(), setting.name)
    else:
        assert getattr(config.Settings(), setting.name) in (None, ())
    shown = " ".join(
        server_command.get_help(click.Context(server_command, info_name="server", terminal_width=1000)).split()
    )
    kind = setting.metadata["kind"]
    flag = f"--{setting.name.replace('_', '-')} " + ("" if kind == config.SWITCH else f"{kind} ")
    help_of_it = shown.partition(flag)[2].partition(" --")[0]
    assert (f"[default: {default}]" if default else setting.metadata["meaning"][1:]) in help_of_it


def test_config_prints_a_file_of_what_is_in_force_and_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "fastlane.toml"
    file.write_text('listen = "127.0.0.1:7999"\nkeep_logs = "off"\n')
    printed = fastlane(
        None, "config", "--config", str(file), "--max-running", "3", FASTLANE_CACHE_BYTES="1m"
    ).stdout.decode()
    lines = printed.splitlines()
    assert f'listen = "127.0.0.1:7999"  # file {file}' in lines
    assert f'keep_logs = "off"  # file {file}' in lines
    assert "max_running = 3  # flag --max-running" in lines
    assert 'cache_bytes = "1m"  # environment variable FASTLANE_CACHE_BYTES' in lines
    assert 'default_timeout = "30m"  # default' in lines
    file.write_text(printed)
    assert {
        line.partition("  #")[0]
        for line in fastlane(None, "config", "--config", str(file)).stdout.decode().splitlines()
    } == {line.partition("  #")[0] for line in lines}
    told = json.loads(fastlane(None, "config", "--config", str(file), "-o", "json").stdout)
    assert told["listen"] == {"value": "127.0.0.1:7999", "origin": f"file {file}"}
    assert [host["name"] for host in told["hosts"]] == ["local"]
    file.write_text("max_runing = 3\n")
    refused = fastlane(None, "config", "--config", str(file))
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"'max_runing'; did you mean 'max_running'?" in refused.stderr


def test_defaults_are_written_as_people_write_them() -> None:
    names = ("listen", "default_timeout", "default_pids", "max_request_bytes", "cache_bytes")
    assert [config.default_text(name) for name in names] == ["127.0.0.1:7020", "30m", "1024", "4m", "64m"]


def test_help_is_there_where_the_environment_spoils_a_default() -> None:
    helped = fastlane(None, "server", "--help", DOCKER_HOST="ssh://elsewhere")
    assert (helped.returncode, helped.stderr) == (0, b"")
    assert b"Address of the Docker engine: unix://," in helped.stdout


def test_run_promises_of_missing_output_only_that_it_is_told() -> None:
    shown = " ".join(run.get_help(click.Context(run, info_name="run")).split())
    assert "the command waits and resumes: no byte is repeated, and missing bytes are reported" in shown


def test_the_module_and_the_installed_command_are_the_same() -> None:
    installed = Path(sys.executable).with_name("fastlane")
    if not installed.exists():
        pytest.skip("not installed here")
    assert (
        subprocess.run([installed, "version"], capture_output=True, check=True).stdout
        == fastlane(None, "version").stdout
    )
