"""Arguments of a wrong type are refused by both clients, before anything is sent, by the names that callers know."""

import asyncio
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from fastlane_grpc.client import AsyncClient, Client, Cron, JobOptions, Retry, job_request

# Nobody listens there: what is not refused by the client fails otherwise.
NOBODY = "127.0.0.1:1"

ENQUEUES = [
    ({"args": "echo hi"}, "args must be a list of strings; for one string use command="),
    ({"args": b"echo"}, "args must be a list of strings; for one string use command="),
    ({"args": ["echo", 5]}, "args[1] must be a string; a value of type int was given"),
    (
        {"entrypoint": "sh"},
        'entrypoint must be a list of strings; for one program use entrypoint=["PROGRAM"]',
    ),
    ({"command": ["echo", "hi"]}, "command must be a string; for a list of words use args="),
    ({"envs": {"A": 1}}, 'envs["A"] must be a string; a value of type int was given'),
    ({"envs": {1: "A"}}, "the name 1 in envs must be a string; a value of type int was given"),
    ({"labels": "x"}, 'labels must be a dict of strings, as {"NAME": "value"}; a value of type str was given'),
    (
        {"timeout": b"5s"},
        "timeout must be a timedelta, a number of seconds or a string as '90s'; a value of type bytes was given",
    ),
    (
        {"stop_grace": True},
        "stop_grace must be a timedelta, a number of seconds or a string as '90s'; a value of type bool was given",
    ),
    ({"memory_bytes": "1g"}, "memory_bytes must be a whole number; a value of type str was given"),
    ({"cpus": "2"}, "cpus must be a number, as 0.5; a value of type str was given"),
    ({"metadata": "x"}, "metadata must be a dict; a value of type str was given"),
    ({"shm_bytes": "1g"}, "shm_bytes must be a whole number; a value of type str was given"),
    ({"tmpfs": "/tmp"}, 'tmpfs must be a list, as ["/scratch"]; a value of type str was given'),
    ({"tmpfs": ["/tmp", 5]}, "tmpfs[1] must be a path, or a Tmpfs; a value of type int was given"),
    ({"outputs": "/a"}, 'outputs must be a list of strings; for one path use outputs=["/PATH"]'),
    ({"inputs": ["/a"]}, "inputs[0] must be an Input; a value of type str was given"),
    ({"devices": "/dev/fuse"}, 'devices must be a list, as ["/dev/fuse"]; a value of type str was given'),
    ({"gpus": "all"}, "gpus must be a number of GPUs, -1 for all, or a Gpus; a value of type str was given"),
    ({"stdin": "text"}, "stdin must be bytes, or a Stdin; a value of type str was given"),
    ({"volumes": ["cache"]}, "volumes[0] must be a Volume; a value of type str was given"),
    ({"ulimits": {"nofile": 5}}, 'ulimits must be a list, as [Ulimit("nofile", 1024)]; a value of type dict was given'),
    ({"dns": ["192.0.2.53"]}, 'dns must be a Dns, as Dns(servers=["192.0.2.53"]); a value of type list was given'),
    ({"registry_credential": 5}, "registry_credential must be a string; a value of type int was given"),
    ({"cap_drop": "ALL"}, 'cap_drop must be a list of strings; for one capability use cap_drop=["NAME"]'),
    ({"extra_hosts": {"db": 1}}, 'extra_hosts["db"] must be a string; a value of type int was given'),
    ({"user": 1000}, "user must be a string; a value of type int was given"),
    (
        {"start_at": timedelta(hours=1)},
        "start_at must be a datetime with its time zone, as datetime.now(UTC); a value of type timedelta was given",
    ),
]


@pytest.mark.parametrize(("options", "said"), ENQUEUES)
def test_enqueue_names_an_argument_of_a_wrong_type(options: Mapping[str, Any], said: str) -> None:
    with Client(NOBODY, retry_for=0) as client, pytest.raises(TypeError) as caught:
        client.enqueue("task", "image", **options)
    assert str(caught.value) == said


def test_an_age_that_is_a_bare_number_is_refused_by_prune() -> None:
    days: Any = 30
    with Client(NOBODY, retry_for=0) as client, pytest.raises(TypeError) as caught:
        client.prune(days)
    assert str(caught.value) == "older_than must be a timedelta, as timedelta(days=30)"


def test_the_asyncio_client_names_an_argument_of_a_wrong_type() -> None:
    days: Any = 30
    words: Any = "echo hi"

    async def calls() -> None:
        async with AsyncClient(NOBODY, retry_for=0) as client:
            with pytest.raises(TypeError, match="older_than must be a timedelta"):
                await client.prune(days)
            with pytest.raises(TypeError, match="args must be a list of strings"):
                await client.enqueue("task", "image", args=words)

    asyncio.run(calls())


def test_filters_and_tails_name_an_argument_of_a_wrong_type() -> None:
    wrong: Any = timedelta(hours=1)
    word: Any = "x"
    number: Any = 1
    with Client(NOBODY, retry_for=0) as client:
        with pytest.raises(TypeError, match="since must be a datetime"):
            next(client.jobs(since=wrong))
        with pytest.raises(TypeError, match="labels must be a dict"):
            next(client.jobs(labels=word))
        with pytest.raises(TypeError, match=r"states must be a list, as \[STATE_FAILED\]"):
            next(client.executions(states=number))
        with pytest.raises(TypeError, match="since must be a datetime"):
            client.tail("execution", since=wrong)
        with pytest.raises(TypeError, match=r"sources must be a list, as \[STDOUT\]"):
            client.tail("execution", sources=number)
        with pytest.raises(ValueError, match="give_up_after: 'x' is not a duration"):
            client.tail("execution", give_up_after=word)
        with pytest.raises(ValueError, match="grace: 'x' is not a duration"):
            client.stop("job", grace=word)
        with pytest.raises(TypeError, match="job_id must be a string"):
            client.job(number)


def test_clients_name_a_duration_of_a_wrong_type() -> None:
    text: Any = b"5s"
    with pytest.raises(TypeError, match="timeout must be a timedelta"):
        Client(NOBODY, timeout=text)
    with pytest.raises(TypeError, match="retry_for must be a timedelta"):
        Client(NOBODY, retry_for=text)
    with Client(NOBODY, retry_for=0) as client, pytest.raises(ValueError, match="timeout must be a finite number"):
        client.enqueue("task", "image", timeout=math.nan)


def test_a_secret_of_a_wrong_type_is_not_shown() -> None:
    envs: Any = {"PASSWORD": 4711}
    with Client(NOBODY, retry_for=0) as client, pytest.raises(TypeError) as caught:
        client.enqueue("task", "image", envs=envs)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1.5s", 1.5), ("500ms", 0.5), ("1h30m", 5400), ("2d", 172_800), ("0s", 0), ("1d2h3m4.5s", 93_784.5)],
)
def test_durations_are_read_from_strings(text: str, seconds: float) -> None:
    options: JobOptions = {"timeout": text, "start_in": text, "retry": Retry(max_retries=1, initial_backoff=text)}
    spec = job_request("task", "image", **options).spec
    for message in (spec.timeout, spec.start_in, spec.retry.initial_backoff):
        assert message.ToTimedelta() == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "90", "s", "1m1h", "-1s", "1s ", "\u0661s", "9" * 40 + "d"])
def test_a_string_that_is_no_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^timeout: .* is not a duration, as '90s', '1h30m' or '2d'$"):
        job_request("task", "image", timeout=text)
    with pytest.raises(ValueError, match=r"^max_backoff: "):
        job_request("task", "image", retry=Retry(max_retries=1, max_backoff=text))


def test_a_time_zone_may_be_a_zone_of_python() -> None:
    cron = Cron("0 3 * * *", ZoneInfo("Europe/Berlin"), jitter="5m")
    made = job_request("task", "image", cron=cron).spec.cron
    assert (made.time_zone, made.jitter.ToTimedelta()) == ("Europe/Berlin", timedelta(minutes=5))
