"""Habits of `docker run`: options that fastlane does not have, files of variables, standard input."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.cli import exit_status
from fastlane_grpc.cli.arguments.docker_options import REFUSED, refusal
from fastlane_grpc.cli.arguments.env_file import read_env_file
from fastlane_grpc.cli.commands.run import enqueue, run
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.scripted_server import Log, Piece, ScriptedServer
from tests.test_cli import FASTLANE, environment, fastlane

# Options of ours, and of these the ones that take a value.
OURS = {name for parameter in (*run.params, *enqueue.params) for name in parameter.opts}
VALUED = {
    name
    for parameter in run.params
    if isinstance(parameter, click.Option) and not parameter.is_flag
    for name in parameter.opts
}


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def server(running_server: ScriptedServer) -> ScriptedServer:
    running_server.requests.clear()
    running_server.logs["execution-1"] = Log([Piece(1, b"hello\n")])
    return running_server


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("option", REFUSED)
def test_each_refused_option_says_in_one_line_what_to_use_of_ours(option: str) -> None:
    said = refusal(option, OURS)
    assert said.startswith(f"{option}: ")
    assert said.isprintable()
    assert len(said) < 200
    assert option not in OURS, "it is refused where it would be taken"
    advised = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", said.partition(": ")[2])) - {"-n", "-c"}
    assert advised <= OURS, advised


@pytest.mark.parametrize("option", ["--mount", "--name", "--restart", "--device-cgroup-rule", "--publish"])
def test_a_refused_option_may_have_its_value_behind_an_equals_sign(option: str) -> None:
    assert refusal(f"{option}=value", OURS) == refusal(option, OURS)


@pytest.mark.parametrize(
    ("word", "options"),
    [
        ("-it", ["-t"]),
        ("-dit", ["-t"]),
        ("-p80:80", ["-p"]),
        ("-v/tmp:/it", ["-v"]),
        ("-edit", []),
        ("-u1:2", []),
        ("-dq", []),
    ],
)
def test_letters_behind_a_dash_are_options_until_one_takes_a_value(word: str, options: list[str]) -> None:
    said = refusal(word, VALUED)
    assert [option for option in REFUSED if f"{option}: " in said] == options


HABITS = [
    "-v /tmp:/x busybox",
    "--rm busybox",
    "-it busybox sh",
    "-itd busybox",
    "--kernel-memory 9m busybox",
    "-p 80:80 busybox",
    "--platform linux/arm64 busybox",
    "--privileged busybox",
    "--mount type=bind,src=/,dst=/x busybox",
    "--dns-opt a busybox",
    "--cap-add ALL busybox",
    "--name web busybox",
    "-a stdin busybox",
    "-e A=1 --restart=always busybox",
]


@pytest.mark.parametrize("command", ["run", "enqueue"])
def test_habits_of_docker_run_are_refused_and_nothing_is_sent(
    server: ScriptedServer, command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTLANE_ADDRESS", server.address)
    for habit in HABITS:
        assert exit_status([command, *shlex.split(habit)], os.environ) == 2
        printed = capfd.readouterr()
        assert re.fullmatch("fastlane: --?[a-z-]+: .*\n", printed.err)
        assert printed.out == ""
    assert server.requests == []


def test_completion_goes_on_behind_a_refused_option(server: ScriptedServer) -> None:
    asked = {"_FASTLANE_COMPLETE": "bash_complete", "COMP_WORDS": "fastlane run --rm --ta", "COMP_CWORD": "3"}
    completed = fastlane(server, **asked)
    assert (completed.stdout, completed.stderr) == (b"plain,--task\n", b"")


# ----------------------------------------------------------------------------------------------------------- --env-file

UNKNOWN_NAME = "has no =, and no variable of this environment has its name; expected NAME=VALUE"


def test_variables_of_files_arrive_and_options_go_before_them(server: ScriptedServer, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(
        b'\xef\xbb\xbfA=1\n# a comment\n\n  B= two words = "quoted" # kept \r\n'
        b"FROM_HERE\nEMPTY=\n  # another\nC=first\n"
    )
    second.write_text("C=second\nD=file\nUMLAUT=ü")
    ran = fastlane(
        server,
        "run",
        "--env-file",
        str(first),
        "-e",
        "D=option",
        "--env-file",
        str(second),
        "busybox",
        FROM_HERE="here",
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    [request] = server.received(pb.EnqueueJobRequest)
    assert dict(request.spec.envs) == {
        "A": "1",
        "B": ' two words = "quoted" # kept ',
        "FROM_HERE": "here",
        "EMPTY": "",
        "C": "second",
        "D": "option",
        "UMLAUT": "ü",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"A=1\n=hunter2\n", "line 2 of --env-file {file} has no name before the ="),
        (b"A B=hunter2", "line 1 of --env-file {file} has a space before the =; expected NAME=VALUE or NAME"),
        (b"A hunter2", "line 1 of --env-file {file} has a space before the =; expected NAME=VALUE or NAME"),
        (b"a/hunter2", "line 1 of --env-file {file} has no = and is not the name of a variable; expected NAME=VALUE"),
        (
            b"hunter2",
            "line 1 of --env-file {file} " + UNKNOWN_NAME,
        ),
        (
            b"\n\nNOT_HERE",
            "line 3 of --env-file {file} " + UNKNOWN_NAME,
        ),
        (b"A=1\nB=hunter2\xe9\n", "line 2 of --env-file {file} is not UTF-8"),
        (b"A=1\nRAW\n", "line 2 of --env-file {file}: the value of 'RAW' in this environment is not UTF-8"),
        (b"A" * (4 << 20) + b"\n", "--env-file {file} is larger than 4 MiB, the maximum for a job"),
        (None, "cannot read --env-file {file}: No such file or directory"),
    ],
)
def test_a_fault_in_a_file_of_variables_is_said_with_its_line(
    tmp_path: Path, content: bytes | None, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "variables"
    if content is not None:
        file.write_bytes(content)
    assert exit_status(["run", "--env-file", str(file), "busybox"], {"RAW": os.fsdecode(b"\xe9")}) == 2
    assert capfd.readouterr() == ("", f"fastlane: {said.format(file=file)}\n")


@given(content=st.binary(max_size=200) | st.text(st.sampled_from("AB=# \n\r\tü"), max_size=60).map(str.encode))
def test_any_file_is_variables_or_a_failure(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(content)
    try:
        for name, value in read_env_file(file, {"A": "here"}):
            assert name
            assert "=" not in name
            assert "\n" not in value
    except Failure as failure:
        assert str(file) in failure.message


# ---------------------------------------------------------------------------------------------------------------- stdin


TOLD = b"fastlane: the pipe or file on the standard input of this command is not read: with -i the job gets it\n"
RUN = f"{shlex.join(FASTLANE)} run"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (f"echo data | {RUN} busybox cat", 1),
        (f"echo data | {RUN} -d busybox cat", 1),
        (f"echo data >file; {RUN} busybox cat <file", 1),
        (f"echo data | {RUN} -q busybox cat", 0),
        (f"echo data | {RUN} busybox cat; {RUN} busybox cat </dev/null", 1),
        (f": | {RUN} busybox", 0),
        (f": >file; {RUN} busybox <file", 0),
        (f"{RUN} busybox </dev/null", 0),
        (f"{RUN} busybox <&-", 0),
        # Stdin is the shell's, not this command's.
        (f"printf '1\\n2\\n' >file; while read -r line; do {RUN} busybox; done <file", 0),
        (f"printf '1\\n2\\n' | while read -r line; do {RUN} busybox; done", 0),
        (f"printf '%s\\n' '{RUN} busybox' 'echo more' | bash", 0),
    ],
)
def test_stdin_that_is_not_read_is_told_if_given_to_the_command(
    server: ScriptedServer, tmp_path: Path, script: str, told: int
) -> None:
    env = {**environment(server), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert (ran.stderr, ran.returncode) == (TOLD * told, 0)


def test_stdin_that_comes_late_is_told_at_the_end(server: ScriptedServer) -> None:
    server.logs["execution-1"] = Log([Piece(1, b"hello\n")], heartbeats_before_end=1_000_000, heeds_stop=False)
    with subprocess.Popen(
        [*FASTLANE, "run", "busybox"],
        env=environment(server),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stderr
        assert process.stdout.readline() == b"hello\n"
        process.stdin.write(b"data\n")
        server.event("released").set()
        assert process.stderr.read() == TOLD
        assert process.wait(60) == 0
