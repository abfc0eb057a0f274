"""The recorder alone, without an engine: the program that is PID 1 of a container, as it is shipped and under
sanitizers."""

import errno
import fcntl
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlane_grpc import recorder as shipped
from fastlane_grpc.capture import recorder as capture
from fastlane_grpc.model import Cause, Source
from fastlane_grpc.record import Gap, RecordSealed, RecordWriter
from fastlane_grpc.record.format import BLOCK_BYTES, BLOCK_HEADER_BYTES, FRAME_HEADER_BYTES, pack_start, unpack_trailer
from fastlane_grpc.recorder import ARCHITECTURES, binary
from tests.record_model import NOTHING, check_truth, everything, text
from tests.recorder_program import (
    EXECUTION_ID,
    Recorder,
    Running,
    Walk,
    changed_until,
    disk,
    eventually,
    needs_namespaces,
    python,
    walk,
)
from tests.tools import PATH

HARD_STOP = 44
OUT, ERR = Source.STDOUT, Source.STDERR
SOURCE = Path(shipped.__file__).with_name("recorder.c")
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session", params=["shipped", "sanitized"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_namespaces()
    if request.param == "shipped":
        architecture = {kernels: dockers for dockers, kernels in shipped.ARCHITECTURES.items()}.get(
            platform.machine(), ""
        )
        built = shipped.binary(architecture)
        if built is None:
            pytest.skip("the recorder was not built here")
        assert built is not None
        return built
    compiler = shutil.which("cc", path=PATH)
    built = tmp_path_factory.mktemp("sanitized") / "recorder"
    if compiler is None:
        pytest.skip("a C compiler is not here: make test, or .ci/tools cc, looks for one")
    made = subprocess.run(
        [compiler or "", "-std=c11", "-O1", *WARNINGS, *SANITIZERS, "-o", built, SOURCE], capture_output=True, text=True
    )
    if "cannot find" in made.stderr:
        pytest.skip(f"the C compiler has no sanitizers here: {made.stderr}")
    assert made.returncode == 0, made.stderr
    return built


@pytest.fixture
def recorder(program: Path) -> Iterator[Recorder]:
    with offered(program) as recorder:
        yield recorder


@pytest.fixture
def recorder_on_disk(program: Path) -> Iterator[Recorder]:
    """Its directory is on a disk wherever other tests write: in memory, those who have a file open can change it
    always."""
    with offered(program, "/var/tmp") as recorder:
        yield recorder


@contextmanager
def offered(program: Path, place: str | None = None) -> Iterator[Recorder]:
    with TemporaryDirectory(dir=place) as directory:
        made = Recorder(program, Path(directory))
        made.directory.chmod(0o755)
        made.offer()
        yield made
        made.close()


# -- the grant of the start


def waiting(recorder: Recorder, *command: str) -> Running:
    """Start a recorder whose start is not granted, and return when it waits for that."""
    (recorder.box / "log").unlink()
    (recorder.box / "wait").touch()
    running = recorder.start(*command)
    opened = Path(f"/proc/{running.pid}/fd")
    eventually(lambda: any("signalfd" in str(each.readlink()) for each in opened.iterdir()))
    return running


def test_a_recorder_waits_until_its_start_is_granted(recorder: Recorder) -> None:
    running = waiting(recorder, "echo", "hello")
    assert recorder.log.read_bytes() == b""
    (recorder.box / "log").hardlink_to(recorder.log)
    (recorder.box / "wait").unlink()
    assert running.end() == (0, "")
    assert walk(recorder.log).stdout == b"hello\n"


def test_a_recorder_waits_no_more_for_a_start_that_is_over(recorder: Recorder) -> None:
    running = waiting(recorder, "true")
    shutil.rmtree(recorder.box)
    assert running.end()[0] == 119


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, HARD_STOP])
def test_a_recorder_that_waits_for_its_start_ends_when_it_is_told_to(recorder: Recorder, number: int) -> None:
    running = waiting(recorder, "touch", str(recorder.directory / "ran"))
    running.send(number)
    assert running.end() == (118, "")
    assert not (recorder.directory / "ran").exists()


# -- claim and begin


def test_a_record_begins_with_start_before_the_command_runs(recorder: Recorder) -> None:
    """The command sees the record by a way that a container has not."""
    start = pack_start(EXECUTION_ID, "recorder")
    walked = recorder.run("stat", "-c", "%s", str(recorder.log))
    assert walked.start == start
    assert walked.stdout == b"%d\n" % (BLOCK_HEADER_BYTES + FRAME_HEADER_BYTES + len(start))


def test_a_record_is_claimed_once(recorder: Recorder) -> None:
    assert recorder.run("echo", "first").stdout == b"first\n"
    written = recorder.log.read_bytes()
    code, words = recorder.start("touch", str(recorder.directory / "ran")).end()
    assert (code, recorder.log.read_bytes()) == (119, written)
    assert words == f"recorder: {recorder.box}/log: No such file or directory\n"
    assert not (recorder.directory / "ran").exists()


def test_a_command_reads_its_standard_input_from_a_file(recorder: Recorder) -> None:
    content = recorder.directory / "content"
    content.write_bytes(b"first\0second\n")
    for path, code, words in (("nowhere", 118, "recorder: nowhere: No such file or directory\n"), (content, 0, "")):
        options = ("--execution", EXECUTION_ID, "--stdin", str(path), str(recorder.box), "--", "cat")
        recorder.offer()
        assert recorder.start(options=options).end() == (code, words)
        # Without its standard input the command never ran, and never will.
        assert (recorder.log.stat().st_size, (recorder.box / "log").exists()) == (0, True) or not code
    assert walk(recorder.log).stdout == b"first\0second\n"


def test_a_box_that_is_not_there_is_claimed_before(recorder: Recorder) -> None:
    shutil.rmtree(recorder.box)
    assert recorder.start("true").end()[0] == 119


def test_a_record_with_anything_in_it_is_claimed_before(recorder: Recorder) -> None:
    recorder.log.write_bytes(b"x")
    code, words = recorder.start("true").end()
    assert (code, words) == (119, f"recorder: {recorder.box}/log: File exists\n")
    assert (recorder.log.read_bytes(), (recorder.box / "log").exists()) == (b"x", True)


def test_a_record_that_may_not_be_opened_is_said_so(recorder: Recorder) -> None:
    (recorder.box / "log").unlink()
    (recorder.box / "log").mkdir()
    assert recorder.start("true").end() == (118, f"recorder: {recorder.box}/log: Is a directory\n")


@pytest.fixture
def lock(recorder: Recorder) -> Iterator[int]:
    """The record, open here; flock holds for as long as the descriptor is open."""
    fd = os.open(recorder.log, os.O_RDWR)
    yield fd
    os.close(fd)


def waits_for_lock(log: Path) -> bool:
    inode = f":{log.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_the_record_is_locked_for_as_long_as_the_recorder_lives(recorder: Recorder, lock: int) -> None:
    running = recorder.start("cat", stdin=subprocess.PIPE)
    changed_until(recorder.log, lambda: recorder.log.stat().st_size)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    running.send(signal.SIGKILL)
    running.end()
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_recorder_waits_for_the_lock(recorder: Recorder, lock: int) -> None:
    fcntl.flock(lock, fcntl.LOCK_EX)
    running = recorder.start("echo", "ran")
    eventually(lambda: waits_for_lock(recorder.log))
    assert (recorder.log.stat().st_size, (recorder.box / "log").exists()) == (0, True)
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert running.end() == (0, "")
    assert walk(recorder.log).stdout == b"ran\n"


@pytest.mark.parametrize("revoke", ["name", "content"])
def test_what_is_revoked_under_the_lock_does_not_run(recorder: Recorder, lock: int, revoke: str) -> None:
    fcntl.flock(lock, fcntl.LOCK_EX)
    running = recorder.start("touch", str(recorder.directory / "ran"))
    eventually(lambda: waits_for_lock(recorder.log))
    if revoke == "name":
        (recorder.box / "log").unlink()
    else:
        os.write(lock, b"x")
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert running.end()[0] == 119
    assert recorder.log.read_bytes() == (b"" if revoke == "name" else b"x")
    assert not (recorder.directory / "ran").exists()


def test_of_many_recorders_of_one_record_one_runs(recorder: Recorder) -> None:
    ran = recorder.directory / "ran"
    started = [recorder.start("sh", "-c", 'echo ran >>"$1"', "sh", str(ran)) for _ in range(6)]
    assert sorted(running.end()[0] for running in started) == [0, 119, 119, 119, 119, 119]
    assert ran.read_text() == "ran\n"


# -- hand-off


def has_begun(log: Path) -> bool:
    return log.stat().st_size > BLOCK_HEADER_BYTES


def test_a_command_runs_as_soon_as_its_box_is_gone(recorder: Recorder) -> None:
    ran = recorder.directory / "ran"
    running = recorder.start("touch", str(ran), hand_off=False)
    eventually(lambda: has_begun(recorder.log))
    time.sleep(0.3)
    assert not ran.exists()
    began = time.monotonic()
    recorder.box.rmdir()
    eventually(ran.exists)
    assert time.monotonic() - began < 1.5
    assert running.end() == (0, "")


def test_a_command_whose_box_stays_runs_after_two_seconds(recorder: Recorder) -> None:
    began = time.monotonic()
    running = recorder.start("touch", str(recorder.box / "made"), hand_off=False)
    assert running.end() == (0, "")
    assert time.monotonic() - began > 1.9
    assert (recorder.box / "made").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, HARD_STOP])
def test_a_recorder_that_is_stopped_before_its_command_runs_leaves_an_empty_record(
    recorder: Recorder, number: int
) -> None:
    running = recorder.start("touch", str(recorder.directory / "ran"), hand_off=False)
    eventually(lambda: has_begun(recorder.log))
    running.send(number)
    assert running.end() == (118, "")
    assert recorder.log.read_bytes() == b""
    assert not (recorder.directory / "ran").exists()


def test_a_recorder_that_is_killed_before_its_command_runs_leaves_the_begin(recorder: Recorder) -> None:
    running = recorder.start("touch", str(recorder.directory / "ran"), hand_off=False)
    eventually(lambda: has_begun(recorder.log))
    running.send(signal.SIGKILL)
    running.end()
    assert walk(recorder.log).frames == 1
    assert not (recorder.directory / "ran").exists()


def test_a_name_of_the_record_that_is_a_backup_changes_nothing(recorder: Recorder) -> None:
    recorder.offer()
    (recorder.directory / "backup").hardlink_to(recorder.log)
    assert recorder.start("echo", "ran").end() == (0, "")
    assert walk(recorder.log).stdout == b"ran\n"


def test_only_pid_1_may_end_every_process_it_sees(recorder: Recorder) -> None:
    code, words = recorder.start("true", pid_1=False).end()
    assert code == 118
    assert words.startswith("recorder: not PID 1")
    assert recorder.log.read_bytes() == b""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--execution"),
        (["--execution"], "--execution"),
        (["--execution", "", "BOX", "--", "true"], "--execution"),
        (["--execution", 'a"b', "BOX", "--", "true"], "--execution"),
        (["--execution", "e" * 201, "BOX", "--", "true"], "--execution"),
        (["--limit", "262144", "BOX", "--", "true"], "--execution"),
        (["--execution", "e", "--limit", "262143", "BOX", "--", "true"], "--limit"),
        (["--execution", "e", "--limit", "300000x", "BOX", "--", "true"], "--limit"),
        (["--execution", "e", "--limit", "", "BOX", "--", "true"], "--limit"),
        (["--execution", "e", "--limit", "-1", "BOX", "--", "true"], "--limit"),
        (["--execution", "e", "--limit", "99999999999999999999", "BOX", "--", "true"], "--limit"),
        (["--execution", "e", "--await-relay", "x", "BOX", "--", "true"], "--await-relay"),
        (["--execution", "e", "--unheard", "of", "BOX", "--", "true"], "--unheard"),
        (["--execution", "e"], "a box"),
        (["--execution", "e", "BOX"], "--"),
        (["--execution", "e", "BOX", "true"], "--"),
        (["--execution", "e", "BOX", "--"], "a command"),
    ],
)
def test_an_option_that_is_wrong_is_named(recorder: Recorder, options: list[str], named: str) -> None:
    code, words = recorder.start(options=[word.replace("BOX", str(recorder.box)) for word in options]).end()
    first, usage, *rest = words.splitlines()
    assert (code, rest) == (118, [])
    assert first.startswith("recorder: ")
    assert named in first
    assert usage.startswith("usage: recorder --execution ID")
    assert (recorder.log.read_bytes(), (recorder.box / "log").exists()) == (b"", True)


def test_it_says_its_version(recorder: Recorder) -> None:
    assert recorder.start(options=["--version"], pid_1=False).end() == (0, "fastlane recorder 1, record format 1\n")


def test_where_its_own_streams_are_closed_none_becomes_the_record(recorder: Recorder) -> None:
    """A message of its own would be written into it."""
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        without = ["sh", "-c", f'exec "$@" {closed}', "sh"]
        walked = recorder.run("sh", "-c", "echo out; echo err >&2", before=without)
        assert (walked.stdout, walked.stderr) == (b"out\n", b"err\n")
        recorder.offer()
        recorder.log.write_bytes(b"content of another")
        assert recorder.start("true", before=without).end()[0] == 119
        assert recorder.log.read_bytes() == b"content of another"


# -- how it ends


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [("exit 0", 0, 0), ("exit 255", 255, 0), ("kill -9 $$", 137, 9), ("kill -15 $$", 143, 15)],
)
def test_it_ends_as_the_command_did(recorder: Recorder, script: str, code: int, number: int) -> None:
    walked = recorder.run("sh", "-c", script)
    assert walked.trailer["exit_code"] == code
    assert walked.facts["signal"] == number
    assert walked.trailer["totals"] == []


def test_the_facts_are_told(recorder: Recorder) -> None:
    before = time.time_ns()
    walked = recorder.run(*python("import time\nwhile time.process_time() < 0.03: pass"))
    assert [walked.facts[name] for name in ("recorder", "signal", "exec_error", "hard_stop")] == [1, 0, 0, False]
    numbers = ("start_time_ns", "end_time_ns", "blocked_ms", "user_us", "system_us", "max_rss_kib")
    facts = {name: int(str(walked.facts[name])) for name in numbers}
    assert before <= facts["start_time_ns"] < facts["end_time_ns"] <= time.time_ns()
    assert facts["user_us"] + facts["system_us"] >= 30_000
    assert facts["end_time_ns"] - facts["start_time_ns"] >= 30_000_000
    assert facts["max_rss_kib"] > 1_000
    assert facts["blocked_ms"] == 0
    usage = walked.facts["usage"]
    assert isinstance(usage, dict)
    assert set(usage) == {"cpu_us", "peak_memory_bytes", "read_bytes", "written_bytes"}
    assert all(isinstance(number, int) and number >= -1 for number in usage.values())


def executable(path: Path, content: str, mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("no-such-command", 127, errno.ENOENT),
        ("", 127, errno.ENOENT),
        ("HERE/none", 127, errno.ENOENT),
        ("HERE/plain/none", 127, errno.ENOTDIR),
        ("HERE/no-interpreter", 127, errno.ENOENT),
        ("plain", 126, errno.EACCES),
        ("HERE/plain", 126, errno.EACCES),
        ("HERE", 126, errno.EACCES),
        ("HERE/garbage", 126, errno.ENOEXEC),
        ("garbage", 126, errno.ENOEXEC),
        ("HERE/no-magic", 126, errno.ENOEXEC),
    ],
)
def test_a_command_that_cannot_be_executed_has_no_exit_code_but_a_reason(
    recorder: Recorder, command: str, code: int, error: int
) -> None:
    here = recorder.directory / "bin"
    executable(here / "plain", "#!/bin/sh\n", 0o644)
    executable(here / "garbage", "\x7fELF garbage")
    executable(here / "no-magic", "echo from a shell\n")
    executable(here / "no-interpreter", "#!/no/such/interpreter\n")
    running = recorder.start(command.replace("HERE", str(here)), env={"PATH": str(here)})
    assert running.end() == (code, "")
    walked = walk(recorder.log)
    assert (walked.trailer["exit_code"], walked.facts["exec_error"], walked.facts["signal"]) == (None, error, 0)
    assert walked.trailer["totals"] == []


@pytest.mark.parametrize("code", [126, 127])
def test_a_code_of_the_commands_own_is_told_from_one_that_did_not_start(recorder: Recorder, code: int) -> None:
    walked = recorder.run("sh", "-c", f"exit {code}")
    assert (walked.trailer["exit_code"], walked.facts["exec_error"]) == (code, 0)


def test_a_command_is_looked_for_along_the_path(recorder: Recorder) -> None:
    here = recorder.directory
    (here / "one" / "found").mkdir(parents=True)
    executable(here / "two" / "found", "#!/bin/sh\necho may not be executed\n", 0o644)
    executable(here / "three" / "found", "#!/bin/sh\necho three $0\n")
    executable(here / "four" / "found", "#!/bin/sh\necho four\n")
    path = f"/none:{here}/one:{here}/two:{here}/three:{here}/four"
    assert recorder.run("found", env={"PATH": path}).stdout == f"three {here}/three/found\n".encode()
    relative = ["/usr/bin/env", "-C", str(here)]
    assert recorder.run("found", env={"PATH": "/none:four"}, before=relative).stdout == b"four\n"
    for path in (":/none", "/none::/none", "/none:"):
        assert (
            recorder.run("found", env={"PATH": path}, before=["/usr/bin/env", "-C", str(here / "four")]).stdout
            == b"four\n"
        )
    assert recorder.run("sh", "-c", "echo default", before=["/usr/bin/env", "-u", "PATH"]).stdout == b"default\n"
    assert recorder.run("three/found", before=relative).stdout == b"three three/found\n"


@pytest.mark.parametrize(
    ("before", "error"),
    [
        (["prlimit", "--nofile=7"], errno.EMFILE),
        (["setpriv", "--reuid=65534", "--clear-groups", "prlimit", "--nproc=0"], errno.EAGAIN),
    ],
)
def test_where_no_process_can_be_made_the_record_says_so(recorder: Recorder, before: list[str], error: int) -> None:
    program = recorder.directory / "recorder"
    shutil.copy(recorder.program, program)
    running = replace(recorder, program=program).start("echo", "never", before=before)
    assert running.end() == (126, "")
    walked = walk(recorder.log)
    assert (walked.trailer["exit_code"], walked.facts["exec_error"], walked.stdout) == (None, error, b"")


# -- what the command finds


def test_the_command_has_three_descriptors_and_its_own_session(recorder: Recorder) -> None:
    walked = recorder.run("sh", "-c", "ls /proc/$$/fd; cut -d' ' -f1,6 /proc/$$/stat; exit 0")
    *fds, session = walked.stdout.decode().splitlines()
    assert fds == ["0", "1", "2"]
    pid, its_session = session.split()
    assert pid == its_session


def test_stdin_is_as_it_was(recorder: Recorder) -> None:
    content = recorder.directory / "stdin"
    content.write_bytes(text(1, 300_000))
    with content.open("rb") as file:
        assert recorder.run("cat", stdin=file).stdout == content.read_bytes()


# Those too that C libraries keep to themselves, as a process may have them from whoever started it.
AS_A_BAD_PARENT = """
import ctypes, os, platform, signal, struct, sys
rt_sigaction = {"x86_64": 13, "aarch64": 134}[platform.machine()]
for number in {*range(1, 65)} - {signal.SIGKILL, signal.SIGSTOP}:
    assert ctypes.CDLL(None).syscall(rt_sigaction, number, struct.pack("=QQQQ", signal.SIG_IGN, 0, 0, 0), None, 8) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_command_begins_with_no_signal_blocked_or_ignored(recorder: Recorder) -> None:
    """Nor does the recorder rely on what it was given: with SIGCHLD ignored it would never hear of the command's
    end."""
    walked = recorder.run("cat", "/proc/self/status", before=python(AS_A_BAD_PARENT))
    fields = dict(line.split(":\t") for line in walked.stdout.decode().splitlines())
    assert {fields[name] for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")} == {"0" * 16}


# -- signals

FORWARDED = [
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGWINCH,
    signal.SIGALRM,
    signal.SIGRTMAX,
]

HANDLES = """
import os, signal, sys
numbers = list(map(int, sys.argv[1:]))
who = "command"
def told(number, _):
    os.write(1, f"{who} {number}\\n".encode())
    if number == signal.SIGQUIT:
        os._exit(7)
for number in numbers:
    signal.signal(number, told)
ready, its_ready = os.pipe()
if os.fork() == 0:
    who = "child"
    os.write(its_ready, b".")
    while True:
        signal.pause()
os.read(ready, 1)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


def test_signals_reach_the_command_and_not_its_children(recorder: Recorder) -> None:
    numbers = [int(number) for number in FORWARDED if number != signal.SIGQUIT]
    running = recorder.start(*python(HANDLES, *numbers, int(signal.SIGQUIT)))
    running.wrote(b"ready\n")
    for number in [*numbers, int(signal.SIGQUIT)]:
        running.send(number)
        running.wrote(b"command %d\n" % number)
    assert running.end() == (7, "")
    told = [b"command %d\n" % number for number in [*numbers, signal.SIGQUIT]]
    assert walk(recorder.log).stdout == b"ready\n" + b"".join(told)


def test_a_signal_that_nobody_handles_ends_the_command(recorder: Recorder) -> None:
    running = recorder.start("sh", "-c", "echo ready; exec sleep 1000")
    running.wrote(b"ready\n")
    running.send(signal.SIGTERM)
    assert running.end() == (143, "")
    walked = walk(recorder.log)
    assert (walked.facts["signal"], walked.facts["hard_stop"], walked.stdout) == (15, False, b"ready\n")


def test_a_hard_stop_kills_all_and_keeps_what_was_in_the_pipes(recorder: Recorder) -> None:
    """The recorder stands still while the command and a child that would not hear fill both pipes."""
    script = """
import os, signal, sys
for number in range(1, 65):
    if number not in (9, 19, 32, 33):
        signal.signal(number, signal.SIG_IGN)
os.write(1, b"ready")
sys.stdin.read(1)
if os.fork():
    os.write(1, b"o" * 50_000)
else:
    os.setsid()
    os.write(2, b"e" * 60_000)
open(sys.argv[1], "w").write(".")
while True:
    signal.pause()
"""
    written = recorder.directory / "written"
    os.mkfifo(written)
    running = recorder.start(*python(script, written), stdin=subprocess.PIPE)
    running.wrote(b"ready")
    running.send(signal.SIGSTOP)
    assert running.process.stdin is not None
    running.process.stdin.write(b".")
    running.process.stdin.flush()
    fifo = os.open(written, os.O_RDWR)
    assert os.read(fifo, 1) + os.read(fifo, 1) == b".."
    os.close(fifo)
    running.stop_hard()
    running.send(signal.SIGCONT)
    assert running.end() == (137, "")
    walked = walk(recorder.log)
    assert (walked.stdout, walked.stderr) == (b"ready" + b"o" * 50_000, b"e" * 60_000)
    assert (walked.facts["hard_stop"], walked.facts["signal"], walked.gaps) == (True, 9, [])


# Sends the signal to PID 1 as kill does, and then as only a caller that makes its information up can: "from PID 0", as
# if from outside.
STOPS_ITSELF = """
import ctypes, os, signal, struct, sys
told = []
signal.signal(44, lambda *_: told.append(1))
os.kill(1, 44)
while len(told) < 1:
    signal.pause()
libc = ctypes.CDLL(None, use_errno=True)
forged = struct.pack("<iiiiII", 44, 0, -1, 0, 0, 0).ljust(128, b"\\0")
sent = libc.syscall(ctypes.c_long(int(sys.argv[1])), ctypes.c_long(1), ctypes.c_long(44), forged)
assert sent == 0, os.strerror(ctypes.get_errno())
while len(told) < 2:
    signal.pause()
print("alive")
"""


def test_a_hard_stop_comes_from_outside_or_is_none(recorder: Recorder) -> None:
    rt_sigqueueinfo = 129 if platform.machine() == "x86_64" else 138
    command = [sys.executable, "-I", "-c", STOPS_ITSELF, str(rt_sigqueueinfo)]
    walked = recorder.run(*command)
    assert (walked.stdout, walked.stderr) == (b"alive\n", b"")
    assert (walked.trailer["exit_code"], walked.facts["hard_stop"]) == (0, False)


def test_a_hard_stop_is_told_from_a_forged_one_where_no_signal_says_who_sent_it(recorder: Recorder) -> None:
    """Without room in its queue of signals the recorder is told of each that PID 0 sent it."""
    script = "trap 'echo told' 44; echo ready; read go; kill -44 1; while :; do sleep 0.01; done"
    running = recorder.start("bash", "-c", script, stdin=subprocess.PIPE, before=LIMITABLE)
    running.wrote(b"ready\n")
    resource.prlimit(running.pid, resource.RLIMIT_SIGPENDING, (0, 0))
    assert running.process.stdin is not None
    running.process.stdin.write(b"\n")
    running.process.stdin.flush()
    running.wrote(b"told\n")
    running.stop_hard()
    assert running.end() == (137, "")
    walked = walk(recorder.log)
    assert (walked.stdout, walked.facts["hard_stop"]) == (b"ready\ntold\n", True)


def test_the_command_cannot_kill_or_stop_its_recorder(recorder: Recorder) -> None:
    assert recorder.run("sh", "-c", "kill -9 1; kill -STOP 1; echo alive").stdout == b"alive\n"


# -- other processes


def test_orphans_are_reaped(recorder: Recorder) -> None:
    script = """
import os
reading, writing = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.close(reading)
        os.write(writing, b"%d" % os.getpid())
    os._exit(0)
os.wait()
orphan = int(os.read(reading, 20))
while os.path.exists(f"/proc/{orphan}"):
    os.sched_yield()
os.write(1, b"reaped")
"""
    assert recorder.run(*python(script)).stdout == b"reaped"


def test_who_outlives_the_command_is_killed_and_what_it_printed_is_kept(recorder: Recorder) -> None:
    script = """
import os, signal, sys
reading, writing = os.pipe()
if os.fork():
    os.read(reading, 1)
    os._exit(3)
os.setsid()
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
os.write(1, b"o" * 60_000)
os.write(writing, b".")
while True:
    os.write(2, b"e" * 100)
"""
    walked = recorder.run(*python(script))
    assert (walked.trailer["exit_code"], walked.stdout, walked.gaps) == (3, b"o" * 60_000, [])
    assert set(walked.stderr) <= {ord("e")}


def test_a_command_that_closes_its_output_is_waited_for(recorder: Recorder) -> None:
    walked = recorder.run(
        "sh", "-c", 'echo said; exec >&- 2>&-; while ! [ -s "$1" ]; do :; done; exit 5', "sh", str(recorder.log)
    )
    assert (walked.trailer["exit_code"], walked.stdout) == (5, b"said\n")


# -- bytes

# Writes pieces of two files, in the order of its arguments: STREAM:SIZE.
PIECES = """
import os, sys
data, at = [open(path, "rb").read() for path in sys.argv[1:3]], [0, 0]
for piece in sys.argv[3:]:
    stream, size = map(int, piece.split(":"))
    end = at[stream - 1] + size
    while at[stream - 1] < end:
        at[stream - 1] += os.write(stream, data[stream - 1][at[stream - 1] : end])
"""

# Around what one frame holds at most, and what is read at once.
piece_sizes = st.one_of(
    st.integers(1, 300), st.integers(65_330, 65_380), st.integers(65_530, 65_540), st.integers(1, 400_000)
)
pieces_of_both = st.lists(st.tuples(st.sampled_from([1, 2]), piece_sizes), max_size=12)


def content_of(pieces: Sequence[tuple[int, int]]) -> dict[Source, bytes]:
    return {source: text(source, sum(size for stream, size in pieces if stream == source)) for source in (OUT, ERR)}


def writes(directory: Path, pieces: Sequence[tuple[int, int]]) -> list[str]:
    """The command that does."""
    content = content_of(pieces)
    paths = [directory / "stdout", directory / "stderr"]
    for path, data in zip(paths, content.values(), strict=True):
        path.write_bytes(data)
    return python(PIECES, *paths, *(f"{stream}:{size}" for stream, size in pieces))


def check_totals(walked: Walk, content: Mapping[Source, bytes], missing: Mapping[Source, int]) -> None:
    assert walked.trailer["totals"] == [
        {
            "source": source,
            "bytes": len(data),
            "missing_bytes": missing.get(source, 0),
            "newlines": data.count(b"\n"),
            "crc32": zlib.crc32(data),
        }
        for source, data in content.items()
        if data
    ]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pieces=pieces_of_both)
def test_whatever_is_printed_is_in_the_record(recorder: Recorder, pieces: list[tuple[int, int]]) -> None:
    content = content_of(pieces)
    walked = recorder.run(*writes(recorder.directory, pieces))
    assert (walked.stdout, walked.stderr) == (content[OUT], content[ERR])
    check_totals(walked, content, {})
    entries = everything(recorder.log)
    assert len(entries) == walked.frames - 2
    assert check_truth(entries, content, NOTHING) == {OUT: len(content[OUT]), ERR: len(content[ERR]), Source.SYSTEM: 0}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(killed_after=st.integers(1, 3_000_000))
def test_the_record_of_a_recorder_that_was_killed_is_resumed(recorder: Recorder, killed_after: int) -> None:
    pieces = [(1 + number % 2, size) for number, size in enumerate([100_000, 7, 65_352, 20_000, 300_000, 1] * 8)]
    recorder.offer()
    running = recorder.start(*writes(recorder.directory, pieces))
    pid = running.pid
    changed_until(recorder.log, lambda: recorder.log.stat().st_size >= killed_after)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    running.end()
    content = content_of(pieces)
    try:
        writer = RecordWriter.resume(recorder.log)
    except RecordSealed:
        check_totals(walk(recorder.log), content, {})
        return
    reached = {total.source: total.bytes for total in writer.totals()}
    writer.gap(OUT, None, Cause.ENGINE, time.time_ns())
    writer.write([(ERR, b"resumed\n")], time.time_ns())
    writer.seal(None, {}, time.time_ns())
    walked = walk(recorder.log)
    assert (len(walked.stdout), len(walked.stderr)) == (reached.get(OUT, 0), reached.get(ERR, 0) + 8)
    assert content[OUT].startswith(walked.stdout)
    assert (content[ERR][: reached.get(ERR, 0)] + b"resumed\n") == walked.stderr
    told = {OUT: content[OUT], ERR: walked.stderr}
    assert check_truth(everything(recorder.log), told, NOTHING)[ERR] == len(walked.stderr)


def test_many_small_writes_become_few_frames(recorder: Recorder) -> None:
    """With so much time between them that each would be read alone."""
    script = """
import os, time
for number in range(20_000):
    until = time.perf_counter_ns() + 20_000
    os.write(1, b"y\\n")
    while time.perf_counter_ns() < until:
        pass
"""
    walked = recorder.run(*python(script))
    assert walked.stdout == b"y\n" * 20_000
    assert walked.frames < 5_000


def test_a_line_is_in_the_record_before_anything_else_happens(recorder: Recorder) -> None:
    """The first one, the one after silence, and the last one of a flood: nothing but a signal from here makes the
    command go on."""
    script = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for step in range(3):
    os.write(1, b"step %d\\n" % step)
    signal.sigwait([signal.SIGUSR1])
    for number in range(step * 5_000):
        os.write(1, b".\\n")
os.write(1, b"done\\n")
signal.sigwait([signal.SIGUSR1])
"""
    running = recorder.start(*python(script))
    for line in (b"step 0\n", b"step 1\n", b"step 2\n", b"done\n"):
        running.wrote(line)
        running.send(signal.SIGUSR1)
    assert running.end() == (0, "")


# -- the limit


@pytest.mark.parametrize("limit", [4 * BLOCK_BYTES, 5 * BLOCK_BYTES + 1, 20 * BLOCK_BYTES])
def test_beyond_the_limit_the_head_and_the_newest_part_are_kept(recorder: Recorder, limit: int) -> None:
    pieces = [(1 + number % 2, size) for number, size in enumerate([100_000, 30, 65_352, 20_000, 300_000, 1_000] * 9)]
    content = content_of(pieces)
    with disk("tmpfs", "size=16m") as (directory, fd):
        here = replace(recorder, directory=directory)
        here.offer()
        running = here.start(*writes(recorder.directory, pieces), limit=limit, pass_fds=[fd])
        on_disk = []

        def ended() -> bool:
            on_disk.append(here.log.stat().st_blocks * 512)
            return here.log.read_bytes()[-2:] == b"}}"

        changed_until(here.log, ended)
        assert running.end() == (0, "")
        assert limit - 2 * BLOCK_BYTES < max(on_disk) <= limit + BLOCK_BYTES
        walked, entries = walk(here.log), everything(here.log)
    check_totals(walked, content, walked.punched)
    gaps = [entry for entry in entries if isinstance(entry, Gap)]
    assert sorted((gap.source, gap.missing_bytes, gap.cause) for gap in gaps) == [
        (source, walked.punched[source], Cause.SIZE_LIMIT) for source in (OUT, ERR)
    ]
    assert check_truth(entries, content, NOTHING) == {OUT: len(content[OUT]), ERR: len(content[ERR]), Source.SYSTEM: 0}
    assert walked.gaps == []
    head = limit // BLOCK_BYTES // 2 * BLOCK_BYTES
    assert head * 0.95 < sum(walked.head.values()) < head


def test_within_the_limit_nothing_is_missing(recorder: Recorder) -> None:
    with disk("tmpfs", "size=16m") as (directory, fd):
        here = replace(recorder, directory=directory)
        walked = here.run(*writes(recorder.directory, [(1, 9 * 65_352 - 400)]), limit=10 * BLOCK_BYTES, pass_fds=[fd])
    assert (walked.punched, walked.gaps, len(walked.stdout)) == ({}, [], 9 * 65_352 - 400)


def test_where_nothing_can_be_punched_out_the_head_is_kept(recorder: Recorder) -> None:
    pieces = [(1, 200_000), (2, 50_000), (1, 300_000), (2, 10)]
    content = content_of(pieces)
    with disk("ramfs", "mode=777") as (directory, fd):
        here = replace(recorder, directory=directory)
        walked = here.run(*writes(recorder.directory, pieces), limit=4 * BLOCK_BYTES, pass_fds=[fd])
        entries, size = everything(here.log), here.log.stat().st_size
    assert 4 * BLOCK_BYTES - 100 < size <= 5 * BLOCK_BYTES
    missing = {OUT: len(content[OUT]) - len(walked.stdout), ERR: len(content[ERR]) - len(walked.stderr)}
    assert content[OUT].startswith(walked.stdout)
    assert content[ERR].startswith(walked.stderr)
    assert walked.gaps == [(source, missing[source], Cause.SIZE_LIMIT) for source in (OUT, ERR) if missing[source]]
    assert walked.gaps
    assert check_truth(entries, content, NOTHING)[OUT] == len(content[OUT])
    check_totals(walked, content, missing)


# -- a disk that is full

# Writes as fast as it is read; says to the FIFO when its pipe has been full for a while, and how much it has written by
# then.
UNTIL_BLOCKED = """
import os, select, sys
size, fifo = int(sys.argv[1]), sys.argv[2]
os.set_blocking(1, False)
wrote = told = 0
while wrote < size:
    if select.select([], [1], [], None if told else 0.2)[1]:
        wrote += os.write(1, bytes(min(4096, size - wrote)))
    else:
        told = 1
        with open(fifo, "w") as file:
            file.write(str(wrote))
"""


@pytest.fixture
def small(recorder: Recorder) -> Iterator[tuple[Recorder, int, Path]]:
    """A disk with room for three blocks and no byte more, beside a file that can be removed, and a recorder's directory
    on it."""
    with disk("tmpfs", "size=1m") as (directory, fd):
        ballast = directory / "ballast"
        ballast.write_bytes(bytes((1 << 20) - 3 * BLOCK_BYTES))
        here = replace(recorder, directory=directory)
        here.offer()
        yield here, fd, ballast


def until_blocked(recorder: Recorder, small: tuple[Recorder, int, Path], size: int) -> tuple[Running, int]:
    here, fd, _ = small
    blocked = recorder.directory / "blocked"
    os.mkfifo(blocked)
    running = here.start(*python(UNTIL_BLOCKED, size, blocked), pass_fds=[fd])
    return running, int(blocked.read_text())


def test_a_full_disk_blocks_and_nothing_is_lost(recorder: Recorder, small: tuple[Recorder, int, Path]) -> None:
    running, wrote = until_blocked(recorder, small, 700_000)
    here, _, ballast = small
    assert 200_000 < wrote < 700_000
    assert everything(here.log)
    ballast.unlink()
    assert running.end() == (0, "")
    walked = walk(here.log)
    assert (walked.stdout, walked.gaps) == (bytes(700_000), [])
    assert int(str(walked.facts["blocked_ms"])) >= 50
    check_totals(walked, {OUT: bytes(700_000)}, {})


def test_a_full_disk_blocks_the_begin_too(recorder: Recorder, small: tuple[Recorder, int, Path]) -> None:
    here, fd, ballast = small
    fill(here.directory)
    running = here.start("echo", "ran", pass_fds=[fd])
    eventually(lambda: not (here.box / "log").exists())
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(0.2)
    assert here.log.stat().st_size == 0
    ballast.unlink()
    assert running.end() == (0, "")
    walked = walk(here.log)
    assert walked.stdout == b"ran\n"
    assert int(str(walked.facts["blocked_ms"])) >= 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, HARD_STOP])
def test_what_cannot_begin_is_stopped_and_never_ran(
    recorder: Recorder, small: tuple[Recorder, int, Path], number: int
) -> None:
    here, fd, _ = small
    fill(here.directory)
    running = here.start("touch", str(recorder.directory / "ran"), pass_fds=[fd])
    eventually(lambda: not (here.box / "log").exists())
    running.send(signal.SIGHUP)
    running.send(number)
    assert running.end() == (118, "")
    assert here.log.stat().st_size == 0
    assert not (recorder.directory / "ran").exists()


def fill(directory: Path) -> None:
    with (directory / "more").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def gave_up(recorder_pid: int) -> bool:
    """Both pipes are at their end, and closed; left are those that it has from us, and the one that tells of exec."""
    try:
        links = [str(fd.readlink()) for fd in Path(f"/proc/{recorder_pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    return sum(link.startswith("pipe:") for link in links) == 3


def test_a_hard_stop_on_a_full_disk_that_gets_room_in_time_loses_nothing(
    recorder: Recorder, small: tuple[Recorder, int, Path]
) -> None:
    running, wrote = until_blocked(recorder, small, 700_000)
    here, _, ballast = small
    running.stop_hard()
    ballast.unlink()
    assert running.end() == (137, "")
    walked = walk(here.log)
    assert (walked.stdout, walked.gaps, walked.facts["hard_stop"]) == (bytes(wrote), [], True)


@pytest.mark.parametrize(
    "program", ["sanitized"], indirect=True
)  # one of both: it takes the three seconds that it is about
@pytest.mark.parametrize("room_for_a_gap", [False, True])
def test_a_hard_stop_on_a_full_disk_counts_what_is_lost(
    recorder: Recorder, small: tuple[Recorder, int, Path], room_for_a_gap: bool
) -> None:
    here, _, ballast = small
    if room_for_a_gap:
        # One page: a frame of data that is torn there makes way.
        os.truncate(ballast, ballast.stat().st_size - 4096)
    running, wrote = until_blocked(recorder, small, 700_000)
    pid, before = running.pid, time.monotonic()
    running.stop_hard()
    if not room_for_a_gap:
        eventually(lambda: gave_up(pid))
        assert walk(here.log).trailer_payload == b""
        ballast.unlink()
    assert running.end() == (137, "")
    assert 2 < time.monotonic() - before < 10
    walked = walk(here.log)
    missing = wrote - len(walked.stdout)
    assert (walked.gaps, walked.facts["hard_stop"]) == ([(OUT, missing, Cause.STORE)], True)
    assert 200_000 < missing < wrote
    assert 3 * BLOCK_BYTES < here.log.stat().st_size < 3 * BLOCK_BYTES + 4096
    check_totals(walked, {OUT: bytes(wrote)}, {OUT: missing})


@pytest.mark.parametrize(
    "program", ["sanitized"], indirect=True
)  # one of both: it takes the three seconds that it is about
def test_a_record_that_can_be_neither_written_nor_cut_is_given_up_after_a_hard_stop(recorder_on_disk: Recorder) -> None:
    recorder = recorder_on_disk
    blocked = recorder.directory / "blocked"
    os.mkfifo(blocked)
    running = recorder.start(*python(UNTIL_BLOCKED, 1 << 30, blocked))
    pid = running.pid
    changed_until(recorder.log, lambda: recorder.log.stat().st_size)
    recorder.log.chmod(0o600)
    with unchangeable(recorder.log):
        wrote = int(blocked.read_text())
        running.send(HARD_STOP)
        eventually(lambda: gave_up(pid))
    assert running.end() == (137, "")
    walked = walk(recorder.log)
    assert walked.gaps == [(OUT, wrote - len(walked.stdout), Cause.STORE)]


# -- limits that somebody sets on the recorder itself

# A recorder that may not take another group can be limited from outside.
LIMITABLE = ["setpriv", "--bounding-set=-setgid", "--inh-caps=-setgid"]
PRINTS_UNTIL_KILLED = "import os\nwhile True: os.write(1, bytes(4096))"


def test_a_soft_limit_on_the_size_of_files_is_raised(recorder: Recorder) -> None:
    """SIGXFSZ is the kernel's word to the recorder: no affair of the command's."""
    # By a shell, since python ignores it.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *writes(recorder.directory, [(1, 700_000)])]
    walked = recorder.run(*command, before=["prlimit", "--fsize=150000:"])
    assert (walked.trailer["exit_code"], walked.stdout, walked.gaps) == (0, text(1, 700_000), [])


def test_a_hard_limit_on_the_size_of_files_ends_the_command_and_the_rest_is_counted(recorder: Recorder) -> None:
    running = recorder.start(*python(PRINTS_UNTIL_KILLED), before=["prlimit", "--fsize=150000"])
    assert running.end() == (137, "")
    walked = walk(recorder.log)
    [(source, missing, cause)] = walked.gaps
    assert (source, cause, walked.facts["cut_off"], walked.facts["signal"]) == (OUT, Cause.STORE, True, 9)
    assert missing is not None
    assert len(walked.stdout) > 130_000
    check_totals(walked, {OUT: bytes(len(walked.stdout) + missing)}, {OUT: missing})


def test_where_not_even_the_end_can_be_stored_the_exit_status_says_so(recorder: Recorder) -> None:
    running = recorder.start(
        "sh", "-c", "echo stored; read go; echo not stored; exec sleep 1000", stdin=subprocess.PIPE, before=LIMITABLE
    )
    running.wrote(b"stored\n")
    size = recorder.log.stat().st_size
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (0, 0))
    assert running.process.stdin is not None
    running.process.stdin.write(b"\n")
    running.process.stdin.flush()
    assert running.end() == (117, "")
    assert recorder.log.stat().st_size == size
    assert walk(recorder.log).stdout == b"stored\n"


def test_where_the_beginning_cannot_be_stored_nothing_is_run(recorder: Recorder) -> None:
    running = recorder.start("touch", str(recorder.directory / "ran"), before=["prlimit", "--fsize=100"])
    assert running.end() == (118, "recorder: the record: File too large\n")
    assert recorder.log.stat().st_size == 0
    assert not (recorder.directory / "ran").exists()


def test_a_limit_on_descriptors_does_not_make_a_recorder_deaf(recorder: Recorder) -> None:
    """poll would take none any more."""
    running = recorder.start(
        "sh", "-c", "echo ready; trap 'echo told; exit 5' TERM; while :; do sleep 0.01; done", before=LIMITABLE
    )
    running.wrote(b"ready\n")
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (0, 0))
    running.send(signal.SIGTERM)
    assert running.end() == (5, "")
    assert walk(recorder.log).stdout == b"ready\ntold\n"


def test_nobody_in_the_container_limits_the_recorder(recorder: Recorder) -> None:
    """As root that may do anything: only the filter is in the way. Other processes can still be limited."""
    script = """
import os, resource
for limit in range(16):
    try:
        resource.prlimit(1, limit, (0, 0))
    except PermissionError:
        print("refused")
resource.prlimit(os.getppid() if os.getppid() != 1 else os.getpid(), resource.RLIMIT_CORE, (0, 0))
"""
    walked = recorder.run(sys.executable, "-I", "-c", script)
    assert (walked.stdout, walked.stderr) == (b"refused\n" * 16, b"")


def test_the_recorder_has_a_saved_group_of_its_own_and_the_command_has_not(recorder: Recorder) -> None:
    """prlimit asks for one group that equals all three."""
    script = "cat /proc/self/status; echo; cat /proc/1/status; exit 0"
    for user, group in ((0, 0), (65534, 1000)):
        who = [
            "setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "--inh-caps=+setgid",
            "--ambient-caps=+setgid",
        ]
        program = recorder.directory / "recorder"
        shutil.copy(recorder.program, program)
        recorder.directory.chmod(0o777)
        walked = replace(recorder, program=program).run("sh", "-c", script, before=who)
        command, itself = [
            dict(line.split(":\t") for line in status.splitlines()) for status in walked.stdout.decode().split("\n\n")
        ]
        assert command["Gid"].split() == [str(group)] * 4
        assert itself["Gid"].split() == [str(group), str(group), "0" if group else "1", str(group)]
        assert command["Uid"] == itself["Uid"]


@contextmanager
def unchangeable(path: Path) -> Iterator[None]:
    """Not even for those who have it open, as if its disk had failed."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = struct.unpack("<L4x", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))[0]
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("<L4x", flags | _IMMUTABLE))
    except OSError as error:
        pytest.skip(f"a file cannot be made unchangeable here: {error}")
    try:
        yield
    finally:
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("<L4x", flags))
        os.close(fd)


_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


# -- a job that would get at its record

REACHES_FOR_THE_RECORD = """
for path in /proc/1/mem /proc/1/fd/1 /proc/1/fd/2 /proc/1/fd/3 /proc/1/fd/4 /proc/1/fd/5 /proc/1/fd/6; do
    ( : <$path ) && echo "read $path"
    ( : >>$path ) && echo "wrote $path"
done
echo tried
"""


@pytest.mark.parametrize(
    "who",
    [["--reuid=65534", "--regid=65534", "--clear-groups"], ["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]],
)
def test_the_command_cannot_get_at_the_record_by_its_recorder(recorder: Recorder, who: list[str]) -> None:
    """As the same user, or as root as engines have it: without CAP_SYS_PTRACE."""
    program = recorder.directory / "recorder"
    shutil.copy(recorder.program, program)
    walked = replace(recorder, program=program).run("sh", "-c", REACHES_FOR_THE_RECORD, before=["setpriv", *who])
    assert walked.stdout == b"tried\n"
    assert walked.stderr.count(b"ermission denied") == 14


# -- secrets

SECRETS = {"PASSWORD": b"correct horse/battery", "KEY": b"-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\n"}


def test_secrets_are_variables_of_the_command_and_masked_in_both_outputs(recorder: Recorder) -> None:
    script = """if 1:
        import os
        secrets = os.environ["PASSWORD"], os.environ["KEY"]
        for fd, text in enumerate(secrets, 1):
            os.write(fd, b"<")
            for letter in text:
                os.write(fd, letter.encode())
            os.write(fd, b">")
        print([len(text) for text in secrets], open("/proc/1/status").read().count("recorder"), end="")
    """
    walked = recorder.run(*python(script), secrets=SECRETS)
    assert (walked.stdout, walked.stderr) == (b"<***>[21, 37] 1", b"<***\n>")
    assert not recorder.box.exists()
    assert b"correct" not in recorder.log.read_bytes()


def test_secrets_are_masked_across_the_ends_of_reads_frames_and_blocks(recorder: Recorder) -> None:
    script = "import os, sys; sys.stdout.write(''.join(f'{n} {os.environ[\"PASSWORD\"]}|' for n in range(20_000)))"
    walked = recorder.run(*python(script), secrets=SECRETS)
    assert walked.stdout == b"".join(b"%d ***|" % n for n in range(20_000))
    trailer = unpack_trailer(walked.trailer_payload, 0)
    assert trailer is not None
    [totals] = trailer.totals
    assert (totals.bytes, totals.crc32) == (len(walked.stdout), zlib.crc32(walked.stdout))


def test_output_that_begins_like_a_secret_is_shown_after_a_moment_and_no_more_of_the_secret(recorder: Recorder) -> None:
    script = """if 1:
        import os, sys
        os.write(1, b"> correct")
        sys.stdin.read(1)
        os.write(1, b" horse/battery!")
    """
    read, write = os.pipe()
    running = recorder.start(*python(script), secrets=SECRETS, stdin=read)
    running.wrote(b"cor***")
    os.write(write, b".")
    assert running.end() == (0, "")
    os.close(read)
    os.close(write)
    assert walk(recorder.log).stdout == b"> cor***!"


def test_output_that_begins_like_a_secret_is_shown_while_the_other_output_goes_on(recorder: Recorder) -> None:
    script = """if 1:
        import os, signal, time
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        os.write(1, b"~^")
        while True:
            os.write(2, b"x")
            time.sleep(0.001)
    """
    running = recorder.start(*python(script), secrets={"A": b"~^secret value"})
    running.wrote(b"~^")
    running.send(signal.SIGTERM)
    running.end()


@pytest.mark.parametrize(
    ("content", "number", "status"), [(None, 1, 119), (b"A=b\0", 2, 118), (b"A=b", 1, 118), (b"A\0", 1, 118)]
)
def test_without_its_secrets_a_command_does_not_run(
    recorder: Recorder, content: bytes | None, number: int, status: int
) -> None:
    if content is not None:
        (recorder.box / "secrets").write_bytes(content)
    options = ("--execution", EXECUTION_ID, "--secrets", str(number), str(recorder.box), "--", "touch", "/ran")
    code, words = recorder.start(options=options).end()
    assert (code, "secrets" in words) == (status, True)
    assert recorder.log.read_bytes() == b""


def test_a_program_that_a_crash_has_damaged_is_replaced(tmp_path: Path) -> None:
    architecture = next(filter(binary, ARCHITECTURES))

    def installed() -> Path:
        recorder = capture.Recorder.install(tmp_path, tmp_path, 1 << 20, architecture=architecture)
        assert recorder is not None
        return recorder.program

    whole = installed().read_bytes()
    for damaged in (b"", whole[:-1], bytes(len(whole))):
        installed().write_bytes(damaged)
        assert installed().read_bytes() == whole
        assert installed().stat().st_mode & 0o777 == 0o755
    inode = installed().stat().st_ino
    assert installed().stat().st_ino == inode, "a whole one stays"
