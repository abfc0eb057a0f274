"""The command line on a terminal, as a person sits before it: colour, a line that is written over, Ctrl-C typed on the
keyboard."""

import re
from collections.abc import Iterator

import grpc
import pytest

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import WAITING, fastlane, on_terminal
from tests.scripted_server import Cut, Log, Piece, ScriptedServer

PREPARING = Piece(state=pb.STATE_PREPARING)
RUNNING = Piece(state=pb.STATE_RUNNING)
PULLING = [PREPARING, Piece(3, b"pulling mail:1.4\n"), Piece(3, b"pulling mail:1.4: 3.0 of 9.0 MB\n")]
ENDED = Piece(3, b"succeeded: exited with 0\n")
BEGAN = "fastlane: job job-1, execution execution-1\r\n"
ERASE = "\r\x1b[K"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.event("stopped").set()
    server.stop()


def waiting(detail: str) -> Piece:
    return Piece(state=pb.STATE_QUEUED, waiting=pb.Waiting(reason=pb.WAIT_REASON_NO_FREE_SLOT, detail=detail, ahead=2))


def on_screen(written: str) -> list[str]:
    """What is left to be seen of it: a line that was erased is gone."""
    return [re.sub(r"^.*\x1b\[K", "", line) for line in written.split("\r\n")]


def test_what_comes_before_the_start_is_one_line_that_is_gone_when_output_begins(server: ScriptedServer) -> None:
    pieces = [waiting("8 of 8 slots in use"), *PULLING, RUNNING, Piece(1, b"hello\n"), ENDED]
    server.logs["execution-1"] = Log(pieces, first_state=pb.STATE_QUEUED, chunks_per_message=1)
    status, written = on_terminal(server, "run", "busybox", TERM="xterm")
    shown = ["waiting: 8 of 8 slots in use, 2 ahead of it", "pulling mail:1.4", "pulling mail:1.4: 3.0 of 9.0 MB"]
    live = "".join(f"{ERASE}fastlane: {text}" for text in shown)
    assert (status, written) == (0, f"{BEGAN}{live}{ERASE}hello\r\n\x1b[2msucceeded: exited with 0\r\n\x1b[22m")
    assert on_screen(written)[:2] == [BEGAN.strip(), "hello"]


def test_the_live_line_is_no_wider_than_the_terminal_and_obeys_nobody(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([waiting("\x1b[2J" + "long " * 40), RUNNING], first_state=pb.STATE_QUEUED)
    _, written = on_terminal(server, "run", "busybox", TERM="xterm")
    assert "\x1b[2J" not in written
    assert [len(line) for line in written.removeprefix(BEGAN).split(ERASE)] == [0, 79, 0]


def test_output_takes_the_live_line_away_though_the_state_is_not_told_yet(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(
        [waiting("8 of 8"), Piece(2, b"hello\n"), Piece(3, b"line\n")], first_state=pb.STATE_QUEUED
    )
    _, written = on_terminal(server, "run", "busybox", TERM="xterm", NO_COLOR="1")
    assert written == f"{BEGAN}{ERASE}fastlane: waiting: 8 of 8, 2 ahead of it{ERASE}hello\r\nline\r\n"


def test_a_job_that_never_starts_says_why_though_the_live_line_is_gone(server: ScriptedServer) -> None:
    outcome = pb.Outcome(
        reason=pb.REASON_IMAGE_NOT_FOUND, detail="mail:1.4 could not be pulled: the registry has no such image"
    )
    said = Piece(3, b"failed: mail:1.4 could not be pulled: the registry has no such image\n")
    log = Log([*PULLING, said], first_state=pb.STATE_PREPARING, state=pb.STATE_FAILED, outcome=outcome, exit_status=125)
    server.logs["execution-1"] = log
    status, written = on_terminal(server, "run", "busybox", TERM="xterm")
    assert (status, "the registry has no such image" in "\n".join(on_screen(written))) == (125, True)


@pytest.mark.parametrize("arguments", [["--verbose"], ["-q"]])
def test_there_is_no_live_line_where_all_lines_or_none_are_asked_for(
    server: ScriptedServer, arguments: list[str]
) -> None:
    server.logs["execution-1"] = Log([*PULLING, RUNNING, Piece(1, b"hello\n")], first_state=pb.STATE_PREPARING)
    _, written = on_terminal(server, "run", *arguments, "busybox", TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in written
    assert ("3.0 of 9.0 MB" in written) == (arguments == ["--verbose"])


def test_a_dumb_terminal_is_told_line_by_line(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([*PULLING, RUNNING, Piece(1, b"hello\n")], first_state=pb.STATE_PREPARING)
    _, written = on_terminal(server, "run", "busybox", TERM="dumb")
    assert written == f"{BEGAN}pulling mail:1.4\r\npulling mail:1.4: 3.0 of 9.0 MB\r\nhello\r\n"


def test_nothing_of_it_is_written_to_pipes(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log(
        [waiting("8 of 8"), *PULLING, RUNNING, Piece(1, b"hello\n")], first_state=pb.STATE_QUEUED
    )
    ran = fastlane(server, "run", "busybox", TERM="xterm")
    assert (ran.stdout, ran.stderr) == (b"hello\n", b"fastlane: pulling mail:1.4\n")


def test_ctrl_c_on_the_keyboard_stops_the_job_and_shows_its_end(server: ScriptedServer) -> None:
    server.logs["execution-1"] = WAITING
    status, written = on_terminal(server, "run", "busybox", TERM="dumb", keys=[("world", b"\x03")])
    assert status == 130
    assert "^C\r\nfastlane: stopping job job-1; press Ctrl-C again to detach\r\n" in written
    [request] = server.received(pb.StopJobRequest)
    assert (request.job_id, request.note) == ("job-1", "SIGINT in fastlane run")


def test_ctrl_c_in_logs_leaves_the_job_alone(server: ScriptedServer) -> None:
    server.logs["execution-1"] = WAITING
    status, _ = on_terminal(server, "logs", "-f", "execution-1", TERM="dumb", keys=[("world", b"\x03")])
    assert status == -2
    assert not server.received(pb.StopJobRequest)


def test_bytes_of_a_full_screen_program_pass_as_they_are(server: ScriptedServer) -> None:
    drawn = b"\x1b[2J\x1b[1;1H\xe2\x94\x8c\rprogress 10%\rprogress 20%"
    server.logs["execution-1"] = Log([Piece(1, drawn)])
    _, written = on_terminal(server, "run", "busybox", TERM="xterm")
    assert written == BEGAN + drawn.decode()


def test_the_live_line_is_gone_when_the_command_fails(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([waiting("8 of 8")], first_state=pb.STATE_QUEUED)
    server.cuts.append(Cut(2, "permission_denied"))
    status, written = on_terminal(server, "run", "busybox", TERM="xterm")
    assert (status, written) == (
        1,
        f"{BEGAN}{ERASE}fastlane: waiting: 8 of 8, 2 ahead of it{ERASE}fastlane: cut: permission_denied\r\n",
    )


# ----------------------------------------------------------------------------------------------------- text from others


HOSTILE = (
    "told to stop by a caller (x)\nsucceeded: exited with 0\n\x1b]0;PWNED\x07\x1b]52;c;aGVsbG8=\x07\x9b31m\u202e)\n"
)


@pytest.mark.parametrize("arguments", [["-v"], ["-v", "-t"], ["--source", "system"]])
def test_lines_that_an_earlier_server_wrote_are_shown_printable(server: ScriptedServer, arguments: list[str]) -> None:
    raw = HOSTILE.encode()
    # A piece may be cut within a character; the container's own bytes pass as they are.
    server.logs["execution-1"] = Log(
        [Piece(3, raw[:-4]), Piece(3, raw[-4:]), Piece(3, b"next\n"), Piece(2, b"\x1b[1mbold\n")]
    )
    shown = fastlane(server, "logs", *arguments, "job-1").stderr
    own, nexts, *rest = shown.decode().splitlines()
    assert own.isprintable()
    assert "(x) succeeded: exited with 0" in own
    assert nexts.endswith("next")
    assert all(line.endswith("\x1b[1mbold") for line in rest)


def test_a_terminal_gets_no_escape_sequences_of_others(server: ScriptedServer) -> None:
    outcome = pb.Outcome(reason=pb.REASON_REFUSED_BY_ENGINE, detail=HOSTILE)
    server.logs["execution-1"] = Log(
        [Piece(3, HOSTILE.encode())], state=pb.STATE_FAILED, outcome=outcome, exit_status=125
    )
    for command in (["run", "busybox"], ["logs", "job-1"]):
        _, seen = on_terminal(server, *command, NO_COLOR="1", TERM="dumb")
        assert "PWNED" in seen
        assert all(line.isprintable() for line in seen.splitlines())


def test_an_error_of_the_server_is_one_printable_line(server: ScriptedServer) -> None:
    server.refusals.append((grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"message": HOSTILE}))
    ran = fastlane(server, "run", "busybox")
    [line] = ran.stderr.decode().splitlines()
    assert line.isprintable()
    assert ran.returncode == 1
