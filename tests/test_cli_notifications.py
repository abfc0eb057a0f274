"""The commands about notifications, on a server without an engine."""

import json
from collections.abc import Iterator

import pytest

from tests import forked
from tests.commands import PROGRAM
from tests.commands_served import environment
from tests.serving import Server

URL = "http://user:hunter2@127.0.0.1:1/hook"
SHOWN = "http://user:***@127.0.0.1:1/hook"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("cli-notifications")
    settings = {"smtp_host": "127.0.0.1", "smtp_port": "1", "smtp_from": "fastlane@example.org"}
    engine = f"unix://{directory}/no-engine"
    server = Server(directory / "data", engine=engine, notify_retries="1", notify_backoff="1s", **settings)
    yield server.address
    server.stop()


def fastlane(address: str, *arguments: str) -> tuple[int, str, str]:
    ran = forked.run(PROGRAM, *arguments, environment=environment(address))
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def test_a_notification_is_asked_for_listed_and_delivered_once_more(address: str) -> None:
    told = ["--notify-url", URL, "--notify-mail", "ops@example.org", "--notify-on", "stopped", "--notify-event", "job"]
    status, job_id, errors = fastlane(address, "enqueue", *told, "busybox", "true")
    assert (status, errors) == (0, "")
    job_id = job_id.strip()
    shown = fastlane(address, "job", job_id)[1]
    assert f"{SHOWN} of stopped (job); ops@example.org of stopped (job)" in shown
    assert fastlane(address, "deliveries", "--job", job_id) == (0, "", "fastlane: no deliveries\n")
    fastlane(address, "stop", job_id)
    failed: list[str] = []
    while len(failed) < 2:
        status, out, errors = fastlane(address, "deliveries", "--job", job_id, "--state", "failed", "-o", "json")
        assert (status, out == "") == (0, errors == "fastlane: no deliveries\n")
        failed = out.splitlines()
    newest, oldest = map(json.loads, failed)
    assert (oldest["receiver"], newest["receiver"]) == (SHOWN, "ops@example.org")
    table = fastlane(address, "deliveries")[1].splitlines()
    heads = ["DELIVERY", "STATE", "EVENT", "JOB", "TASK", "RECEIVER", "CREATED", "ATTEMPTS", "NOTE"]
    assert table[0].split() == heads
    assert "failed" in table[1]
    assert "job stopped" in table[1]
    status, out, errors = fastlane(address, "redeliver", oldest["id"][:8])
    assert (status, errors, out) == (0, "", f"delivery {oldest['id']}: pending, to {SHOWN}\n")
    assert "hunter2" not in "".join([shown, *failed, *table])


def test_dead_letters_are_delivered_once_more_together(address: str) -> None:
    assert fastlane(address, "redeliver", "--failed", "--job", "00000000-0000-7000-8000-000000000000") == (
        0,
        "",
        "fastlane: no deliveries failed\n",
    )


def test_a_task_says_whom_to_tell(address: str) -> None:
    told = ("--notify-mail", "ops@example.org", "--notify-on", "failed", "--notify-on", "lost")
    assert fastlane(address, "task", "notify", "mail", *told) == (
        0,
        "task mail: tells ops@example.org of failed/lost (the task has no jobs)\n",
        "",
    )
    assert "tells ops@example.org of failed/lost" in fastlane(address, "tasks")[1]
    assert fastlane(address, "task", "notify", "mail", "--off")[1] == "task mail: no limits (the task has no jobs)\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["enqueue", "--notify-on", "failed", "busybox"],
            "--notify-on has no effect without --notify-url or --notify-mail",
        ),
        (["enqueue", "--notify-secret", "a", "busybox"], "--notify-secret has no effect without --notify-url"),
        (["enqueue", "--notify-url", "example.org", "busybox"], "must be an http:// or https:// URL with a host"),
        (["enqueue", "--notify-mail", "ops", "busybox"], "is not a mail address, as name@example.org"),
        (["task", "notify", "mail"], "set --notify-url, --notify-mail or both, or --off"),
        (["redeliver"], "give the ids of deliveries, or --failed"),
        (["redeliver", "--job", "x", "y"], "--job has no effect without --failed"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(address: str, arguments: list[str], said: str) -> None:
    status, out, errors = fastlane(address, *arguments)
    assert (status, out) == (2, "")
    assert said in errors
