"""What the command line shows of jobs, executions, tasks and hosts, and how an id may be shortened."""

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.cli.arguments.options import AGE, MOMENT
from fastlane_grpc.cli.display.tables import ago, fitted_widths, size, span
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.commands import FASTLANE, environment, fastlane, on_terminal
from tests.scripted_server import Log, Piece, ScriptedServer

JOBS = [f"01980f3e-8b1c-7d43-9a51-0242ac12000{number}" for number in range(7)]
EXECUTION = "01980f3e-8b1c-7d43-9a52-0242ac120000"
LATER = "01999999-8b1c-7d43-9a51-0242ac120000"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


def a_job(
    job_id: str,
    *,
    state: int = pb.STATE_SUCCEEDED,
    minutes_ago: int = 3,
    detail: str = "",
    execution_id: str = EXECUTION,
) -> pb.Job:
    times = pb.Execution.Times()
    created = datetime.now(UTC) - timedelta(minutes=minutes_ago, seconds=5)
    times.create_time.FromDatetime(created)
    times.start_time.FromDatetime(created)
    times.exit_time.FromDatetime(created + timedelta(seconds=72))
    job = pb.Job(id=job_id, task_id="send-mail", state=state, executions=1)  # type: ignore[arg-type]
    job.create_time.FromDatetime(created)
    job.execution.CopyFrom(
        pb.Execution(id=execution_id, job_id=job_id, task_id="send-mail", state=state, times=times, host="here")
    )  # type: ignore[arg-type]
    if state > pb.STATE_STOPPING:
        outcome = pb.Outcome(exit_code=0, detail=detail)
        job.outcome.CopyFrom(outcome)
        job.execution.outcome.CopyFrom(outcome)
    return job


# ---------------------------------------------------------------------------------------------------------------- lists


def test_jobs_are_a_table_for_people(server: ScriptedServer) -> None:
    server.jobs.extend(
        [a_job(JOBS[1]), a_job(JOBS[0], state=pb.STATE_FAILED, minutes_ago=130, detail="exited with 3\n\x1b[31m")]
    )
    shown = fastlane(server, "jobs")
    assert (shown.returncode, shown.stderr) == (0, b"")
    head, first, second = shown.stdout.decode().splitlines()
    assert head.split() == ["JOB", "TASK", "STATE", "ENQUEUED", "RAN", "NOTE"]
    assert first == f"{JOBS[1]}  send-mail  succeeded  3m ago    1m 12s"
    assert second == f"{JOBS[0]}  send-mail  failed     2h ago    1m 12s  exited with 3  [31m"
    assert [head.index(name) for name in ("TASK", "NOTE")] == [first.index("send"), second.index("exited")]


NOTE = "cannot find the image registry.example.com:5000/team/mail:1.4"


@pytest.mark.parametrize(
    ("columns", "heads", "note"),
    [
        (160, "JOB TASK STATE ENQUEUED RAN NOTE", NOTE[:59]),
        (80, "JOB TASK STATE ENQUEUED RAN NOTE", "cannot find the"),
        (60, "JOB TASK STATE NOTE", "cannot find"),
        (30, "JOB STATE", ""),
    ],
)
def test_a_table_fits_the_terminal(server: ScriptedServer, columns: int, heads: str, note: str) -> None:
    server.jobs.extend([a_job(JOBS[1]), a_job(JOBS[0], state=pb.STATE_FAILED, detail=NOTE)])
    _, seen = on_terminal(server, "jobs", columns=columns, NO_COLOR="1")
    lines = seen.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= columns
    assert lines[0].split() == heads.split()
    assert note in lines[2]
    assert JOBS[0].startswith(lines[2].split()[0]), "what is shown of an id is a prefix of it"


WIDTHS = st.lists(st.tuples(st.sampled_from(["JOB", "TASK", "STATE", "RAN", "NOTE"]), st.integers(0, 70)), min_size=1)


@given(columns=WIDTHS, room=st.integers(1, 200))
def test_fitted_columns_are_as_wide_as_there_is_room(columns: list[tuple[str, int]], room: int) -> None:
    heads = [head for head, _ in columns]
    widths = [max(len(head), width) for head, width in columns]
    assert fitted_widths(heads, widths, None) == widths
    shown = [(width, full) for width, full in zip(fitted_widths(heads, widths, room), widths, strict=True) if width]
    assert all(width <= full for width, full in shown)
    assert sum(width + 2 for width, _ in shown) - 2 <= room or len(shown) == 1


def test_what_is_scheduled_says_when_it_starts(server: ScriptedServer) -> None:
    job = a_job(JOBS[0], state=pb.STATE_SCHEDULED)
    due_time = datetime.now(UTC) + timedelta(minutes=4, seconds=30)
    for times in (job.execution.times.due_time, job.spec.start_at, job.execution.waiting.due_time):
        times.FromDatetime(due_time)
    job.execution.times.ClearField("start_time")
    job.execution.waiting.reason = pb.WAIT_REASON_NOT_DUE
    job.execution.waiting.detail = "starts at 2026"
    server.jobs.append(job)
    server.executions.append(job.execution)
    at = f"{due_time.astimezone():%Y-%m-%d %H:%M:%S %z}"
    for command in (["jobs"], ["executions"], ["job", JOBS[0]], ["execution", EXECUTION]):
        shown = fastlane(server, *command).stdout.decode()
        assert "scheduled" in shown
        assert f"starts in 4m, at {at}" in shown
    assert re.search(
        rf"^start at +{re.escape(at)} \(in 4m\)$", fastlane(server, "job", JOBS[0]).stdout.decode(), re.MULTILINE
    )
    assert re.search(
        rf"^due +{re.escape(at)} \(in 4m\)$", fastlane(server, "execution", EXECUTION).stdout.decode(), re.MULTILINE
    )


def test_jobs_are_json_for_programs_with_the_names_of_the_contract(server: ScriptedServer) -> None:
    server.jobs.extend([a_job(JOBS[1]), a_job(JOBS[0])])
    shown = fastlane(server, "jobs", "-o", "json")
    first, second = (json.loads(line) for line in shown.stdout.splitlines())
    assert (first["id"], second["id"]) == (JOBS[1], JOBS[0])
    assert (first["task_id"], first["state"], first["execution"]["job_id"]) == ("send-mail", "STATE_SUCCEEDED", JOBS[1])
    assert datetime.fromisoformat(first["create_time"]).tzinfo is not None


def test_jobs_are_asked_for_as_the_options_say(server: ScriptedServer) -> None:
    options = (
        "--task t --state failed --state timed-out -l team=x -l b=c --since 2d --until 2026-01-31T08:00:00+01:00 -n 7"
    )
    assert fastlane(server, "jobs", *options.split()).returncode == 0
    [request] = server.received(pb.ListJobsRequest)
    assert (request.task_id, list(request.states)) == ("t", [pb.STATE_FAILED, pb.STATE_TIMED_OUT])
    assert (dict(request.labels), request.page_size, request.with_spec) == ({"team": "x", "b": "c"}, 8, False)
    assert request.until_time.ToDatetime(UTC) == datetime(2026, 1, 31, 7, tzinfo=UTC)
    age = datetime.now(UTC) - request.since_time.ToDatetime(UTC)
    assert timedelta(days=2) <= age < timedelta(days=2, minutes=2)


@pytest.mark.parametrize(("arguments", "lines", "calls"), [([], 51, 1), (["-n", "3"], 4, 1), (["--all"], 1201, 2)])
def test_as_many_are_shown_as_are_asked_for(
    server: ScriptedServer, arguments: list[str], lines: int, calls: int
) -> None:
    server.jobs.extend(pb.Job(id=f"{number:036}", task_id="t") for number in range(1200))
    assert len(fastlane(server, "jobs", *arguments).stdout.splitlines()) == lines
    assert len(server.requests) == calls


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_list_that_is_longer_than_what_is_shown_says_so(server: ScriptedServer, form: str) -> None:
    server.jobs.extend(pb.Job(id=f"{number:036}", task_id="t") for number in range(51))
    assert fastlane(server, "jobs", "-o", form).stderr.decode() == "fastlane: more jobs exist: use --limit or --all\n"
    server.jobs.pop()
    assert fastlane(server, "jobs", "-o", form).stderr == b""


@pytest.mark.parametrize("command", ["jobs", "executions", "tasks", "hosts"])
@pytest.mark.parametrize("form", ["table", "json"])
def test_of_nothing_there_is_a_word_on_stderr_and_nothing_on_stdout(
    server: ScriptedServer, command: str, form: str
) -> None:
    server.empty_pages = True
    shown = fastlane(server, command, "-o", form)
    assert (shown.returncode, shown.stdout, shown.stderr.decode()) == (0, b"", f"fastlane: no {command}\n")


def test_executions_are_asked_for_as_the_options_say_and_shown(server: ScriptedServer) -> None:
    server.jobs.append(a_job(JOBS[0]))
    server.executions.append(a_job(JOBS[0], state=pb.STATE_RUNNING).execution)
    shown = fastlane(server, "executions", "--job", "01980f3e", "--task", "t", "--state", "running", "--host", "here")
    request = server.received(pb.ListExecutionsRequest)[-1]
    assert request == pb.ListExecutionsRequest(
        job_id=JOBS[0], task_id="t", states=[pb.STATE_RUNNING], host="here", page_size=51
    )
    head, line = shown.stdout.decode().splitlines()
    assert head.split() == ["EXECUTION", "TASK", "STATE", "HOST", "CREATED", "RAN", "NOTE"]
    assert line.split() == [EXECUTION, "send-mail", "running", "here", "3m", "ago", "1m", "12s"]


def test_tasks_and_hosts_are_shown(server: ScriptedServer) -> None:
    task = pb.TaskSummary(id="send-mail", open_jobs=2, jobs=30)
    task.last_enqueue_time.FromDatetime(datetime.now(UTC) - timedelta(minutes=2))
    server.tasks.append(task)
    reason = "the engine is elsewhere"
    server.hosts.append(
        pb.EngineHost(
            name="here",
            address="unix:///run/docker.sock",
            availability=pb.EngineHost.AVAILABILITY_UP,
            running=3,
            max_running=8,
            engine_version="28.1",
            capture=pb.EngineHost.CAPTURE_ATTACH,
            capture_reason=reason,
        )
    )
    server.hosts.append(
        pb.EngineHost(name="there", availability=pb.EngineHost.AVAILABILITY_DOWN, max_running=8, last_error="no route")
    )
    assert fastlane(server, "tasks").stdout.decode().splitlines()[1] == (
        "send-mail  2     0        30    2m ago         -        -"
    )
    here, there = fastlane(server, "hosts").stdout.decode().splitlines()[1:]
    assert here == f"here   up     3 of 8   28.1    attach   unix:///run/docker.sock  {reason}"
    assert there.split() == ["there", "down", "0", "of", "8", "-", "-", "no", "route"]


def test_one_job_and_one_execution_are_told_in_full(server: ScriptedServer) -> None:
    job = a_job(JOBS[0], state=pb.STATE_FAILED, detail="exited with 3")
    job.spec.CopyFrom(
        pb.JobSpec(image="mail:1.4", command="python", args=["send mail.py"], envs={"A": "b c"}, labels={"team": "x"})
    )
    job.spec.MergeFrom(
        pb.JobSpec(limits=pb.Limits(memory_bytes=64 << 20, cpus=0.5, pids=9), read_only_root=True, stop_signal="SIGINT")
    )
    job.spec.MergeFrom(
        pb.JobSpec(user="1:2", working_dir="/w", network="none", pull_policy=pb.JobSpec.PULL_POLICY_ALWAYS)
    )
    job.spec.MergeFrom(
        pb.JobSpec(
            limits=pb.Limits(shm_bytes=1 << 30, memory_reservation_bytes=8 << 20, cpuset="0-1"),
            tmpfs=[pb.Tmpfs(path="/tmp", size_bytes=64 << 20), pb.Tmpfs(path="/run")],
            volumes=[pb.Volume(name="cache", path="/c"), pb.Volume(name="data", path="/d", read_only=True)],
            outputs=["/dist", "/report"],
            stdin=pb.Stdin(size_bytes=2000),
            devices=[pb.Device(path="/dev/fuse"), pb.Device(path="/dev/a", container_path="/dev/b", permissions="r")],
            gpus=pb.Gpus(count=-1),
            inputs=[pb.Input(path="/src", size_bytes=1200), pb.Input(path="/etc/a", size_bytes=7)],
            ulimits=[pb.Ulimit(name="core"), pb.Ulimit(name="nofile", soft=9, hard=-1)],
            extra_hosts={"db": "192.0.2.7"},
            dns=pb.Dns(servers=["192.0.2.53"], options=["ndots:2"]),
            cap_drop=["ALL"],
            registry_credential="ci",
            secret_envs={"B": "b", "A": "vault/a"},
        )
    )
    job.spec.stop_grace.FromTimedelta(timedelta(0))
    server.jobs.append(job)
    job.execution.logs.append(pb.LogTotals(source=pb.SOURCE_STDOUT, bytes=12_000, missing_bytes=2000))
    server.executions.append(job.execution)
    shown = fastlane(server, "job", JOBS[0]).stdout.decode()
    for line in (
        "state       failed, exited with 3",
        "command     python 'send mail.py'",
        "envs        A='b c'",
        "labels      team=x",
    ):
        assert line in shown.splitlines()
    told = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (told["limits"], told["root"], told["stop"]) == (
        "64 MiB of memory, 0.5 CPUs, 9 processes, 1024 MiB of /dev/shm, 8 MiB reserved, on CPUs 0-1",
        "read-only",
        "SIGINT, SIGKILL at once",
    )
    assert (told["devices"], told["gpus"]) == ("/dev/fuse, /dev/a at /dev/b, r", "all")
    assert (told["outputs"], told["stdin"]) == ("/dist /report", "2.0 kB")
    assert told["inputs"] == "/src (1.2 kB), /etc/a (7 bytes)"
    assert (told["user"], told["directory"], told["network"], told["pull"]) == ("1:2", "/w", "none", "always")
    assert (told["tmpfs"], told["ulimits"], told["dropped"]) == ("/tmp of 64 MiB, /run", "core=0 nofile=9:-1", "ALL")
    assert told["volumes"] == "cache at /c, data at /d, read-only"
    assert (told["credential"], told["secrets"]) == ("ci", "A=vault/a B=b")
    assert (told["hosts"], told["dns"]) == ("db:192.0.2.7", "192.0.2.53 ndots:2")
    assert "(3m ago)" in shown
    assert "timeout" not in shown, "what is empty is left out"
    shown = fastlane(server, "execution", EXECUTION).stdout.decode()
    assert "stdout     12.0 kB, 2.0 kB of them missing" in shown.splitlines()
    assert (
        json.loads(fastlane(server, "execution", EXECUTION, "-o", "json").stdout)["logs"][0]["source"]
        == "SOURCE_STDOUT"
    )
    assert len(server.requests) == 3, "a whole id costs no further call"


def test_states_are_coloured_on_a_terminal_alone_and_not_where_colour_is_not_wanted(server: ScriptedServer) -> None:
    server.jobs.append(a_job(JOBS[0]))
    assert "\x1b[32msucceeded\x1b[m  " in on_terminal(server, "jobs", TERM="xterm")[1]
    for more in ({"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(server, "jobs", **more)[1]


def test_a_reader_of_a_table_that_goes_away_ends_it_without_a_word(server: ScriptedServer) -> None:
    server.jobs.extend(pb.Job(id=f"{number:036}", task_id="t" * 100) for number in range(3000))
    command = f"{' '.join(FASTLANE)} jobs --all | head -n 1"
    ran = subprocess.run(["sh", "-c", command], env=environment(server), capture_output=True, timeout=60)
    assert (ran.stderr, len(ran.stdout.splitlines())) == (b"", 1)


# ---------------------------------------------------------------------------------------------------------------- ids


def test_an_id_may_be_shortened_to_any_beginning_that_no_other_has(server: ScriptedServer) -> None:
    server.jobs.extend([a_job(LATER), a_job(JOBS[0])])
    server.executions.append(a_job(JOBS[0]).execution)
    assert (
        fastlane(server, "job", "01980", "-o", "json").stdout == fastlane(server, "job", JOBS[0], "-o", "json").stdout
    )
    assert json.loads(fastlane(server, "execution", "0198", "-o", "json").stdout)["id"] == EXECUTION


def test_a_beginning_that_several_ids_have_is_told_with_five_of_them(server: ScriptedServer) -> None:
    server.jobs.extend([a_job(job_id) for job_id in JOBS])
    ran = fastlane(server, "job", "01980f3e")
    first, *candidates = ran.stderr.decode().splitlines()
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert first == "fastlane: several ids begin with '01980f3e'; give more characters:"
    assert candidates == [*(f"  job {job_id}" for job_id in JOBS[:5]), "  and more"]


def test_a_beginning_that_no_id_has_is_told(server: ScriptedServer) -> None:
    for command, what in (
        ("job", "job"),
        ("execution", "execution"),
        ("logs", "job or execution"),
        ("stop", "job or execution"),
    ):
        ran = fastlane(server, command, "0198")
        assert (ran.returncode, ran.stderr.decode()) == (
            1,
            f"fastlane: no {what} has an id that begins with '0198'\n",
        )


def test_where_either_may_be_meant_a_job_stands_for_its_executions(server: ScriptedServer) -> None:
    server.jobs.extend([a_job(LATER, execution_id="e"), a_job(JOBS[0])])
    server.executions.append(server.jobs[1].execution)
    server.logs[EXECUTION] = Log([Piece(1, b"hello\n")])
    assert fastlane(server, "logs", "01980f3e-8b").stdout == b"hello\n"
    assert (
        fastlane(server, "stop", "01980f3e-8b").stdout.decode() == f"job {JOBS[0]}: succeeded, it had already ended\n"
    )
    assert (
        fastlane(server, "stop", EXECUTION[:23]).stdout.decode()
        == f"execution {EXECUTION}: succeeded, it had already ended\n"
    )
    server.executions.append(pb.Execution(id=LATER.replace("9a51", "9a52"), job_id="another"))
    ran = fastlane(server, "logs", "01999999")
    assert ran.returncode == 1
    assert ran.stderr.decode().splitlines()[1:] == [f"  job {LATER}", f"  execution {LATER.replace('9a51', '9a52')}"]


def test_an_execution_is_stopped_by_its_whole_id(server: ScriptedServer) -> None:
    server.executions.append(pb.Execution(id=EXECUTION, state=pb.STATE_STOPPING))
    ran = fastlane(server, "stop", "--note", "enough", "--grace", "0s", EXECUTION)
    assert ran.stdout.decode() == f"execution {EXECUTION}: stopping\n"
    [request] = server.received(pb.StopExecutionRequest)
    assert (request.note, request.HasField("grace")) == ("enough", True)
    stopped = json.loads(fastlane(server, "stop", "-o", "json", EXECUTION).stdout)
    assert stopped == {"id": EXECUTION, "state": "STATE_STOPPING"}


# ---------------------------------------------------------------------------------------------------------------- prune


def test_prune_says_what_it_deleted(server: ScriptedServer) -> None:
    server.prunings.extend(
        [pb.PruneResponse(jobs=1000, logs=999, bytes=5_000_000, more=True), pb.PruneResponse(jobs=1, logs=1)]
    )
    ran = fastlane(server, "prune", "--older-than", "30d", "--task", "t", "--logs-only")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"deleted 1001 jobs and 1000 logs, 5.0 MB\n", b"")
    request = server.requests[0]
    assert (request.older_than.seconds, request.task_id, request.logs_only, request.validate_only) == (
        30 * 86400,
        "t",
        True,
        False,
    )


def test_prune_may_count_alone(server: ScriptedServer) -> None:
    server.prunings.append(pb.PruneResponse(jobs=1, logs=0, more=True))
    ran = fastlane(server, "prune", "--older-than", "0s", "--dry-run")
    assert ran.stdout == b"would delete at least 1 job and 0 logs, 0 bytes\n"
    assert (server.requests[0].validate_only, server.requests[0].HasField("older_than")) == (True, True)
    server.prunings.append(pb.PruneResponse(jobs=1))
    assert json.loads(fastlane(server, "prune", "--older-than", "1d", "--dry-run", "-o", "json").stdout) == {
        "jobs": "1"
    }


COUNTED = pb.PruneResponse(jobs=79, logs=78, bytes=1_200_000, more=True)
COUNTED_TEXT = "at least 79 jobs and 78 logs, 1.2 MB"


@pytest.mark.parametrize(
    "arguments", [["--older-than", "0s"], ["--older-than", "59s"], ["--older-than", "0s", "--logs-only"]]
)
def test_prune_of_everything_needs_yes_off_a_terminal(server: ScriptedServer, arguments: list[str]) -> None:
    server.prunings.append(COUNTED)
    ran = fastlane(server, "prune", *arguments)
    assert (ran.returncode, ran.stdout) == (2, b"")
    advice = "confirm with --yes, or add --task or a longer --older-than"
    said = f"fastlane: this deletes every job that has ended ({COUNTED_TEXT}); {advice}\n"
    assert ran.stderr.decode() == said
    assert [request.validate_only for request in server.received(pb.PruneRequest)] == [True]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--older-than", "0s", "--yes"],
        ["--older-than", "0s", "--task", "t"],
        ["--older-than", "1m"],
        ["--older-than", "1d", "-y"],
    ],
)
def test_prune_of_less_or_with_yes_asks_nothing(server: ScriptedServer, arguments: list[str]) -> None:
    server.prunings.append(pb.PruneResponse(jobs=1))
    ran = fastlane(server, "prune", *arguments)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"deleted 1 job and 0 logs, 0 bytes\n", b"")
    assert [request.validate_only for request in server.received(pb.PruneRequest)] == [False]


@pytest.mark.parametrize(
    ("typed", "status", "said", "calls"),
    [
        (b"y\n", 0, "deleted 79 jobs and 78 logs, 1.2 MB", [True, False]),
        (b"YES\n", 0, "deleted 79 jobs and 78 logs, 1.2 MB", [True, False]),
        (b"n\n", 1, "fastlane: nothing was deleted", [True]),
        (b"\n", 1, "fastlane: nothing was deleted", [True]),
        (b"\x04", 1, "fastlane: nothing was deleted", [True]),
    ],
)
def test_prune_of_everything_asks_on_a_terminal_with_the_counts(
    server: ScriptedServer, typed: bytes, status: int, said: str, calls: list[bool]
) -> None:
    deleted = pb.PruneResponse()
    deleted.CopyFrom(COUNTED)
    deleted.more = False
    server.prunings.extend([COUNTED, deleted])
    code, seen = on_terminal(server, "prune", "--older-than", "0s", keys=[("[y/N] ", typed)])
    assert f"this deletes every job that has ended: {COUNTED_TEXT}. Delete? [y/N] " in seen
    assert (code, seen.rstrip().endswith(said)) == (status, True), seen
    assert [request.validate_only for request in server.received(pb.PruneRequest)] == calls


def test_prune_deletes_nothing_unless_it_is_told_how_old(server: ScriptedServer) -> None:
    ran = fastlane(server, "prune")
    assert (ran.returncode, server.requests) == (2, [])
    assert "Missing option '--older-than'" in ran.stderr.decode()


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (1.24, "1.2s"),
        (59, "59s"),
        (60, "1m"),
        (125, "2m 5s"),
        (3600, "1h"),
        (7260, "2h 1m"),
        (90_000, "1d 1h"),
        (-5, "0.0s"),
    ],
)
def test_spans_have_two_units_at_most(seconds: float, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text


def test_what_is_a_moment_away_is_now() -> None:
    now = datetime.now(UTC)
    assert [ago(now - timedelta(seconds=seconds), now) for seconds in (-30, 0.4, 125)] == ["now", "now", "2m ago"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (10**15, "1000.0 TB")],
)
def test_sizes_are_as_people_write_them(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "age"), [("0s", 0), ("90s", 90), ("30d", 2_592_000), ("1d12h", 129_600), ("1d0s", 86400), ("2h30m", 9000)]
)
def test_ages_may_be_in_days(text: str, age: int) -> None:
    assert AGE.convert(text, None, None) == timedelta(seconds=age)


@pytest.mark.parametrize("text", ["", "d", "1", "-1d", "1dd", "1h1d", "1.5d", "yesterday"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="must be an age"):
        AGE.convert(text, None, None)


def test_a_moment_is_an_age_or_a_time() -> None:
    assert MOMENT.convert("2026-01-31T08:00:00.5Z", None, None) == datetime(2026, 1, 31, 8, 0, 0, 500_000, UTC)
    assert MOMENT.convert("2026-01-31", None, None) == datetime(2026, 1, 31).astimezone()
    for text in ("soon", "2026-13-01", "0001-01-01"):
        with pytest.raises(Exception, match="must be an age, as 10m or 2d, or a time"):
            MOMENT.convert(text, None, None)
