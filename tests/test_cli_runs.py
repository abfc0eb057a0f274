"""Retries and schedules on the command line: what it announces, lists and refuses."""

import json
import re
from collections.abc import Iterator

import docker
import pytest

from tests.commands import fastlane
from tests.serving import Server, serving_on

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Server]:
    with serving_on(sdk, tmp_path_factory.mktemp("cli-runs") / "data") as server:
        yield server


def test_run_announces_retries_and_exits_as_the_job_does(server: Server, image: str) -> None:
    ran = fastlane(server, "run", "--retries", "2", "--backoff", "0s", image, "sh", "-c", "echo hi; exit 4")
    assert (ran.returncode, ran.stdout) == (4, b"hi\nhi\nhi\n")
    assert ran.stderr.decode().splitlines() == [
        "fastlane: attempt 2 of 3: exit code 4",
        "fastlane: attempt 3 of 3: exit code 4",
    ]


def test_logs_of_a_job_shows_all_attempts_and_of_an_execution_one(server: Server, image: str) -> None:
    run = fastlane(server, "run", "--retries", "1", "--backoff", "0s", image, "sh", "-c", "echo hi; exit 3")
    assert run.returncode == 3
    [job] = [json.loads(line) for line in fastlane(server, "jobs", "-n", "1", "-o", "json").stdout.splitlines()]
    of_job = fastlane(server, "logs", "-q", job["id"])
    assert (of_job.returncode, of_job.stdout) == (3, b"hi\nhi\n")
    of_execution = fastlane(server, "logs", "-q", job["execution"]["id"])
    assert (of_execution.returncode, of_execution.stdout) == (3, b"hi\n")


def test_a_job_with_a_schedule_is_listed_paused_and_resumed(server: Server, image: str) -> None:
    enqueued = fastlane(
        server, "enqueue", "--task", "nightly", "--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", image, "true"
    )
    job_id = enqueued.stdout.decode().strip()
    listed = fastlane(server, "schedule", "ls", "--task", "nightly").stdout.decode().splitlines()
    assert re.fullmatch(
        rf"{job_id}  nightly  scheduled  in \d+[hm] \(\w{{3}} 02:30\)  0     0        30 2 \* \* \* Europe/Berlin",
        listed[1],
    )
    paused = fastlane(server, "schedule", "pause", job_id)
    assert paused.stdout.decode() == f"job {job_id}: paused\n"
    assert "paused" in fastlane(server, "schedule", "ls", "--task", "nightly").stdout.decode()
    shown = fastlane(server, "job", job_id).stdout.decode()
    assert "schedule    30 2 * * * Europe/Berlin (at 02:30 every day, Europe/Berlin), paused" in shown
    assert "next tick" not in shown
    resumed = fastlane(server, "schedule", "resume", job_id).stdout.decode()
    assert resumed.startswith(f"job {job_id}: next tick in ")
    upcoming = fastlane(server, "schedule", "next", "-n", "3", job_id).stdout.decode().splitlines()
    assert upcoming[0] == "at 02:30 every day, Europe/Berlin"
    assert len(upcoming) == 4
    assert fastlane(server, "stop", job_id).returncode == 0
    assert fastlane(server, "schedule", "pause", job_id).stderr.decode() == (
        f"fastlane: job {job_id} has a schedule that is over\n"
    )


def test_the_next_ticks_of_an_expression_are_shown_in_words_and_times(server: Server) -> None:
    shown = fastlane(server, "schedule", "preview", "-n", "2", "0 0 1 1 *")
    first, *ticks = shown.stdout.decode().splitlines()
    assert first == "at 00:00 on January 1, UTC"
    assert len(ticks) == 2
    berlin = ("--time-zone", "Europe/Berlin", "--from", "2027-03-27T00:00:00Z", "-n", "2", "30 4 * * *")
    _, winter, summer = fastlane(server, "schedule", "preview", *berlin).stdout.decode().splitlines()
    assert winter.startswith("2027-03-27 04:30:00 +0100 (in ")
    assert summer.startswith("2027-03-28 04:30:00 +0200 (in ")
    refused = fastlane(server, "schedule", "preview", "--time-zone", "Berlin", "@daily")
    assert refused.returncode == 1
    assert (
        refused.stderr.decode() == "fastlane: --time-zone: 'Berlin' is not a time zone; did you mean Europe/Berlin?\n"
    )
    refused = fastlane(server, "schedule", "preview", "0 0 30 2 *")
    assert refused.stderr.decode() == "fastlane: EXPRESSION: '0 0 30 2 *' never happens: no such day exists\n"


def test_a_job_replaced_before_its_start_counts_the_run_that_was_withdrawn(server: Server, image: str) -> None:
    job_id = fastlane(server, "enqueue", "--cron", "@yearly", image, "true").stdout.decode().strip()
    shown = fastlane(server, "job", job_id).stdout.decode()
    assert "scheduled, next run starts in " in shown
    assert "\nrun " not in shown
    assert fastlane(server, "replace", "--cron", "@monthly", job_id, image, "true").returncode == 0
    shown = fastlane(server, "job", job_id).stdout.decode()
    assert "scheduled, next run starts in " in shown
    assert re.search(r"^ticks +0 ran, 0 skipped$", shown, re.MULTILINE)
    assert re.search(r"^executions +2\nrun +2\nattempt +1$", shown, re.MULTILINE)
    executions = fastlane(server, "executions", "--job", job_id).stdout.decode()
    assert "run 2 starts in " in executions
    assert "stopped while it was scheduled: the job was replaced" in executions
    assert fastlane(server, "stop", job_id).returncode == 0


def test_retry_runs_a_job_once_more(server: Server, image: str) -> None:
    assert fastlane(server, "run", image, "echo", "hi").returncode == 0
    [job] = [json.loads(line) for line in fastlane(server, "jobs", "-n", "1", "-o", "json").stdout.splitlines()]
    retried = fastlane(server, "retry", job["id"])
    assert retried.stdout.decode() == f"job {job['id']}: queued, run 2\n"
    assert fastlane(server, "logs", "-q", job["id"]).stdout == b"hi\n", "the newest run"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--backoff", "5s"], "--backoff has no effect without --retries"),
        (["--retry-on", "timed-out"], "--retry-on has no effect without --retries"),
        (["--retries", "1", "--max-memory", "1g"], "--max-memory has no effect without --memory"),
        (["--overlap", "allow"], "--overlap has no effect without --cron"),
        (["--time-zone", "UTC"], "--time-zone has no effect without --cron"),
        (["--on-conflict", "replace"], "--on-conflict has no effect without --unique"),
        (["--cron", "@daily", "--in", "1h"], "--cron cannot be combined with --in or --at"),
        (["--retries", "101"], "Invalid value for '--retries'"),
    ],
)
def test_options_without_effect_are_refused(server: Server, image: str, options: list[str], says: str) -> None:
    refused = fastlane(server, "enqueue", *options, image, "true")
    assert refused.returncode == 2
    assert says in refused.stderr.decode()


def test_an_option_behind_the_job_of_replace_is_refused_by_its_place(server: Server, image: str) -> None:
    refused = fastlane(server, "replace", "01980f3e-8b1c-7d43-9a51-0242ac120002", "--task", "t", image, "true")
    assert refused.returncode == 2
    assert "'--task' stands in place of IMAGE: options go before JOB" in refused.stderr.decode()
    refused = fastlane(server, "replace", "my-job", image, "true")
    assert refused.stderr.decode().startswith("fastlane: JOB: 'my-job' must be a UUID")
