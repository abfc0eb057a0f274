"""`fastlane task` and `fastlane hosts drain`, on a server of two hosts without engines."""

import json
from collections.abc import Iterator

import pytest

from tests import forked
from tests.commands import PROGRAM
from tests.commands_served import environment
from tests.serving import Server
from tests.test_rpc_limits import POOL, TWO_HOSTS


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("cli-limits")
    file = directory / "fastlane.toml"
    file.write_text(TWO_HOSTS + POOL)
    server = Server(directory / "data", config=str(file))
    yield server.address
    server.stop()


def fastlane(address: str, *arguments: str) -> tuple[int, str, str]:
    ran = forked.run(PROGRAM, *arguments, environment=environment(address))
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def test_a_task_is_limited_paused_and_resumed(address: str) -> None:
    assert fastlane(address, "task", "limit", "mail", "--max-running", "5", "--rate", "100/1m30s") == (
        0,
        "task mail: at most 5 running, 100 starts in 1m 30s (the task has no jobs)\n",
        "",
    )
    assert fastlane(address, "task", "pause", "mail")[1].startswith("task mail: paused, at most 5 running, 100 starts")
    listed = fastlane(address, "tasks")[1].splitlines()
    assert listed[0].split() == ["TASK", "OPEN", "RUNNING", "JOBS", "LAST", "ENQUEUED", "CREATED", "LIMITS"]
    assert listed[1].split(maxsplit=6)[-1] == "paused, at most 5 running, 100 starts in 1m 30s"
    told = json.loads(fastlane(address, "task", "limit", "mail", "--rate", "off", "-o", "json")[1])
    assert (told["max_running"], told["paused"], "rate_window" in told) == (5, True, False)
    fastlane(address, "task", "resume", "mail")
    assert (
        fastlane(address, "task", "limit", "mail", "--max-running", "off")[1]
        == "task mail: no limits (the task has no jobs)\n"
    )
    assert fastlane(address, "tasks")[2] == "fastlane: no tasks\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["limit", "mail"], "set --max-running, --rate or both; see `fastlane task limit --help`"),
        (
            ["limit", "mail", "--rate", "100"],
            (
                "Invalid value for '--rate': '100' must be NUMBER/DURATION, as 100/1m; or off: no limit; "
                "see `fastlane task limit --help`"
            ),
        ),
        (
            ["limit", "mail", "--max-running", "0"],
            (
                "Invalid value for '--max-running': '0' must be a whole number from 1 on; or off: no limit; "
                "see `fastlane task limit --help`"
            ),
        ),
        (["limit", "mail", "--rate", "5/2d"], "rate_window: must be from 1 s to 1 day"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_in_one_line(address: str, arguments: list[str], said: str) -> None:
    status, shown, error = fastlane(address, "task", *arguments)
    assert (status > 0, shown, error) == (True, "", f"fastlane: {said}\n")


def test_a_host_is_drained_and_resumed(address: str) -> None:
    assert fastlane(address, "hosts", "drain", "a", "--note", "ada: new disk")[1] == (
        "host a: drained (ada: new disk), 0 of " + fastlane(address, "hosts", "resume", "b")[1].partition(" of ")[2]
    )
    head, drained, other = fastlane(address, "hosts")[1].splitlines()
    assert head.split() == ["HOST", "STATE", "RUNNING", "POOLS", "ENGINE", "CAPTURE", "ADDRESS", "NOTE"]
    assert drained.split()[:2] == ["a", "drained"]
    assert drained.endswith("drained now: ada: new disk") or " ago: ada: new disk" in drained
    assert other.split()[:6] == ["b", "down", "0", "of", other.split()[4], "mail"]
    assert fastlane(address, "hosts", "resume", "a")[1].startswith("host a: down, 0 of ")


def test_a_host_that_there_is_not_and_a_flag_before_the_command_are_refused(address: str) -> None:
    assert fastlane(address, "hosts", "drain", "c") == (1, "", "fastlane: there is no host 'c'\n")
    assert fastlane(address, "hosts", "-o", "json", "resume", "a") == (
        2,
        "",
        "fastlane: --output goes after resume; see `fastlane hosts --help`\n",
    )
