"""fastlane's own lines: what is told of a job that waits, did not run, or ended, and where on a terminal."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from fastlane_grpc.cli.display.output import Display, follow
from fastlane_grpc.client import Client
from fastlane_grpc.client.events import End, ExecutionStart, StateChange, state_change
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE, HELLO, environment, fastlane, on_terminal
from tests.scripted_server import Cut, Log, Piece, ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.logs["execution-1"] = HELLO
    yield server
    server.event("stopped").set()
    server.stop()


def waiting(detail: str, ahead: int = 0) -> Piece:
    waits = pb.Waiting(reason=pb.WAIT_REASON_HOST_DOWN, detail=detail, ahead=ahead)
    return Piece(state=pb.STATE_QUEUED, waiting=waits)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------- a job that waits


def followed(server: ScriptedServer, display: Display) -> int:
    with Client(server.address) as client:
        job = client.job("job-1")
        display.followed = f"job {job.id}"
        return follow(client.tail_job(job.id, sources=display.sources), display)


def test_a_job_that_waits_is_told_of_once_for_each_reason(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    pieces = [waiting("host 'local' does not answer", 1), waiting("host 'local' does not answer")]
    server.logs["execution-1"] = Log(pieces, first_state=pb.STATE_QUEUED, heartbeats_before_end=40)
    assert followed(server, Display({}, verbose=False, quiet=False, waiting_after_seconds=0.1)) == 0
    assert capfd.readouterr().err == "fastlane: job job-1 waits: host 'local' does not answer\n"


@pytest.mark.parametrize(
    ("reason", "quiet", "lines"),
    [
        (pb.REASON_EXIT_CODE, False, ["attempt 2 of 3: exit code 4"]),
        (pb.REASON_OUT_OF_MEMORY, False, ["it was killed", "attempt 2 of 3"]),
        (pb.REASON_OUT_OF_MEMORY, True, []),
    ],
)
def test_a_retry_is_announced_with_a_reason_that_was_not_told_yet(
    capfd: pytest.CaptureFixture[str], reason: pb.Reason.ValueType, quiet: bool, lines: list[str]
) -> None:
    display = Display({}, verbose=False, quiet=quiet)
    display.state(StateChange(pb.STATE_RUNNING, None, datetime.now(UTC)))
    display.begin(ExecutionStart(pb.Execution(attempt=1), 3))
    outcome = pb.Outcome(reason=reason, exit_code=4, detail="it was killed")
    for attempt in (1, 2):
        display.end(End(True, pb.STATE_FAILED, outcome, (), 4))
        if attempt == 1:
            display.begin(ExecutionStart(pb.Execution(attempt=2), 3))
    told = lines if reason == pb.REASON_EXIT_CODE or quiet else [*lines, "it was killed"]
    assert capfd.readouterr().err.splitlines() == [f"fastlane: {line}" for line in told]


def test_another_reason_of_a_wait_is_told_too(capfd: pytest.CaptureFixture[str]) -> None:

    seen: list[str] = []

    def written() -> str:
        seen.append(capfd.readouterr().err)
        return "".join(seen)

    display = Display({}, verbose=False, quiet=False, waiting_after_seconds=0.05)
    display.followed = "job 7"
    for detail in ("no host answers", "8 of 8 places taken"):
        waits = pb.Waiting(reason=pb.WAIT_REASON_HOST_DOWN, detail=detail)
        display.state(state_change(pb.LogState(state=pb.STATE_QUEUED, waiting=waits), None))
        until(lambda detail=detail: f"fastlane: job 7 waits: {detail}\n" in written())  # type: ignore[misc]
    display.close()
    assert written().count("\n") == 2


@pytest.mark.parametrize("quiet", [True, False])
def test_a_job_that_starts_in_time_or_is_shown_quietly_is_not_told_of(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str], quiet: bool
) -> None:
    pieces = [waiting("8 of 8 places taken"), *([] if quiet else [Piece(state=pb.STATE_RUNNING)])]
    server.logs["execution-1"] = Log(pieces, first_state=pb.STATE_QUEUED, heartbeats_before_end=30)
    display = Display({}, verbose=False, quiet=quiet, waiting_after_seconds=0.01 if quiet else 0.5)
    assert followed(server, display) == 0
    assert capfd.readouterr().err == ""


def test_a_piped_run_tells_of_a_job_that_waits_for_long(server: ScriptedServer) -> None:
    log = Log([waiting("host 'local' does not answer")], first_state=pb.STATE_QUEUED, heartbeats_before_end=1_000_000)
    server.logs["execution-1"] = log
    command = [*FASTLANE, "run", "busybox"]
    begin = time.monotonic()
    with subprocess.Popen(command, env=environment(server), stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stderr
        assert process.stderr.readline() == b"fastlane: job job-1 waits: host 'local' does not answer\n"
        assert time.monotonic() - begin >= 10
        server.event("stopped").set()
        assert (process.wait(30), process.stderr.read()) == (0, b"")


PULL = [Piece(3, b"pulling mail:1.4 on host a\n"), Piece(3, b"pulling mail:1.4: 3.0 of 9.0 MB\n"), Piece(3, missing=9)]


@pytest.mark.parametrize(
    ("first_state", "options", "told"),
    [
        (pb.STATE_PREPARING, [], b"fastlane: pulling mail:1.4 on host a\n"),
        (pb.STATE_PREPARING, ["-q"], b""),
        # It is over, or it was another reader's.
        (pb.STATE_RUNNING, [], b""),
    ],
)
def test_a_piped_run_tells_of_a_pull_once(
    server: ScriptedServer, first_state: pb.State.ValueType, options: list[str], told: bytes
) -> None:
    server.logs["execution-1"] = Log([*PULL, Piece(1, b"mailed\n")], first_state=first_state, chunks_per_message=1)
    ran = fastlane(server, "run", *options, "mail:1.4")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"mailed\n", told)


# ------------------------------------------------------------------------------------------- a job that is over


@pytest.mark.parametrize(("reason", "status"), [(pb.REASON_IMAGE_NOT_FOUND, 125), (pb.REASON_COMMAND_NOT_FOUND, 125)])
def test_a_quiet_run_says_why_a_job_did_not_run(server: ScriptedServer, reason: int, status: int) -> None:
    outcome = pb.Outcome(reason=pb.Reason.ValueType(reason), detail="it could not be had")
    server.logs["execution-1"] = Log([], state=pb.STATE_FAILED, outcome=outcome, exit_status=status)
    ran = fastlane(server, "run", "-q", "busybox")
    assert (ran.stdout, ran.stderr) == (b"", b"fastlane: it could not be had\n")


def test_a_quiet_run_says_that_a_job_was_stopped_in_the_queue(server: ScriptedServer) -> None:
    outcome = pb.Outcome(detail="stopped before its start")
    pieces = [waiting("8 of 8 slots in use"), Piece(state=pb.STATE_STOPPED)]
    server.logs["execution-1"] = Log(
        pieces, first_state=pb.STATE_QUEUED, state=pb.STATE_STOPPED, outcome=outcome, exit_status=130
    )
    ran = fastlane(server, "run", "-q", "busybox")
    assert (ran.returncode, ran.stderr) == (130, b"fastlane: stopped before its start\n")


def test_a_quiet_run_says_nothing_of_a_job_that_ran(server: ScriptedServer) -> None:
    outcome = pb.Outcome(reason=pb.REASON_OUT_OF_MEMORY, detail="out of memory", exit_code=137)
    server.logs["execution-1"] = Log(HELLO.pieces, state=pb.STATE_FAILED, outcome=outcome, exit_status=137)
    ran = fastlane(server, "run", "-q", "busybox")
    assert (ran.returncode, ran.stderr) == (137, b"oh\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize(
    ("state", "more"), [(pb.STATE_SUCCEEDED, ""), (pb.STATE_FAILED, ""), (pb.STATE_RUNNING, "; the job continues")]
)
def test_a_failed_write_says_that_a_job_runs_on_only_of_one_that_does(
    server: ScriptedServer, state: int, more: str
) -> None:
    server.logs["execution-1"] = Log(HELLO.pieces, first_state=state)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        command = [*FASTLANE, "logs", "job-1"]
        ran = subprocess.run(command, env=environment(server), stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (ran.returncode, ran.stderr.decode().splitlines()[-1]) == (
        1,
        f"fastlane: cannot write to stdout: No space left on device{more}",
    )


# ------------------------------------------------------------------------------------------------- on a terminal


def test_own_lines_begin_in_the_first_column_of_a_terminal(server: ScriptedServer) -> None:
    outcome = pb.Outcome(reason=pb.REASON_CONTAINER_GONE, detail="it is gone")
    pieces = [Piece(1, b"half"), Piece(3, b"own "), Piece(3, b"line\n"), Piece(1, b"a line\n"), Piece(2, b"more")]
    log = Log(pieces, state=pb.STATE_LOST, outcome=outcome, exit_status=125, chunks_per_message=1)
    server.logs["execution-1"] = log
    for term in ("dumb", "xterm"):
        _, seen = on_terminal(server, "logs", "job-1", TERM=term)
        plain = seen.replace("\x1b[2m", "").replace("\x1b[22m", "")
        assert plain == "half\r\nown line\r\na line\r\nmore\r\nfastlane: it is gone\r\n"


def test_an_error_begins_in_the_first_column_of_a_terminal(server: ScriptedServer) -> None:

    server.logs["execution-1"] = Log([Piece(1, b"half")])
    server.cuts.append(Cut(2, "permission_denied"))
    _, seen = on_terminal(server, "logs", "job-1", TERM="dumb")
    assert seen == "half\r\nfastlane: cut: permission_denied\r\n"


def test_own_lines_in_a_pipe_change_no_byte_of_a_job(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([Piece(2, b"half"), Piece(2, missing=3), Piece(2, b"way")])
    ran = fastlane(server, "logs", "job-1")
    assert ran.stderr.startswith(b"halffastlane: 3 bytes of stderr are missing here")
