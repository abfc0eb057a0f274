"""The calls of the contract as JSON over HTTP: real HTTP, a real store, and no engine."""

import ast
import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from fastlane_grpc.api import Calls, error_table
from fastlane_grpc.http.routes import ROUTES, methods
from fastlane_grpc.model import new_id
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.http_client import Answer, answer, connected, request
from tests.http_harness import HttpHarness
from tests.tools import ROOT

SEED = {
    "image": "my.docker.repo.com/my-send-email-image:latest",
    "command": "python /app/sendmail.py",
    "envs": {"SMTP_SERVER": "my-smtp-server"},
}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[HttpHarness]:
    harness = HttpHarness(tmp_path)
    await harness.start()
    yield harness
    await harness.close()


def violations(answered: Answer) -> dict[str, str]:
    """Of a refused request, what is wrong with each field."""
    assert (answered.status, answered.reason) in {(400, "INVALID_FIELD"), (400, "UNKNOWN_FIELD")}, answered.body
    return {each["field"]: each["description"] for each in answered.json["violations"]}


# ------------------------------------------------------------------------------------------------------------ the paths


def test_every_method_of_the_contract_has_a_path() -> None:
    assert {route.method for route in ROUTES} == methods().keys()
    assert len({(route.verb, route.path) for route in ROUTES}) == len(ROUTES)
    for route in ROUTES:
        assert hasattr(Calls, route.call)
        assert set(route.path_fields) <= set(route.descriptor.input_type.fields_by_name)


async def test_the_payload_of_the_seed_makes_a_job_with_its_addresses(harness: HttpHarness) -> None:
    answered = await harness.ask("POST", "/tasks/send-very-specific-email", SEED, host="localhost:10000")
    assert answered.status == 201
    job = answered.json["job"]
    assert job["spec"] == SEED
    assert (job["task_id"], job["state"]) == ("send-very-specific-email", "STATE_QUEUED")
    assert job["caller_address"].startswith("ipv4:127.0.0.1:")
    links = answered.json["links"]
    execution = f"http://localhost:10000/executions/{job['execution']['id']}"
    assert links == {
        "task": "http://localhost:10000/tasks/send-very-specific-email",
        "job": f"http://localhost:10000/jobs/{job['id']}",
        "execution": execution,
        "log": f"{execution}/logs",
    }
    assert answered.headers["location"] == links["job"]
    read = await harness.ask("GET", links["job"].removeprefix("http://localhost:10000"))
    assert read.json["job"]["id"] == job["id"]


async def test_a_job_over_http_is_the_job_over_grpc(harness: HttpHarness) -> None:
    spec = {"timeout": "90s", "envs": {"DB_PASSWORD": "hunter2"}, "metadata": {"n": 1.5}, "limits": {"cpus": 2}}
    stored = (await harness.ask("POST", "/tasks/t", {"image": "a", **spec})).json["job"]
    over_grpc = await harness.jobs.GetJob(pb.GetJobRequest(job_id=stored["id"]))
    over_http = (await harness.ask("GET", f"/jobs/{stored['id']}")).json
    del over_http["links"]
    assert over_http == json_format.MessageToDict(over_grpc, preserving_proto_field_name=True)
    assert over_http["job"]["spec"]["envs"] == {"DB_PASSWORD": "***"}
    assert json_format.ParseDict(over_http, pb.GetJobResponse()) == over_grpc


async def test_a_request_id_stores_one_job_and_the_second_answer_says_so(harness: HttpHarness) -> None:
    first = await harness.ask("POST", "/tasks/t", {"image": "a", "request_id": "r"})
    second = await harness.ask("POST", "/jobs", {"taskId": "t", "spec": {"image": "a"}, "requestId": "r"})
    assert (first.status, second.status, second.json["existing"]) == (201, 200, True)
    assert second.json["job"]["id"] == first.json["job"]["id"]
    other = await harness.ask("POST", "/tasks/t", {"image": "b", "request_id": "r"})
    assert (other.status, other.reason) == (409, "REQUEST_ID_REUSED")
    assert other.json["metadata"] == {"job_id": first.json["job"]["id"]}


async def test_a_job_is_put_under_the_id_of_its_caller_and_replaced(harness: HttpHarness) -> None:
    path = f"/jobs/{new_id()}"
    first = await harness.ask("PUT", path, {"task_id": "t", "image": "a", "start_in": "1h"})
    assert (first.status, first.json["created"], first.json["job"]["state"]) == (201, True, "STATE_SCHEDULED")
    second = await harness.ask("PUT", path, {"task_id": "t", "image": "b", "etag": first.json["job"]["etag"]})
    assert (second.status, second.json["job"]["spec"]) == (200, {"image": "b"})
    third = await harness.ask("PUT", path, {"task_id": "t", "image": "c", "etag": first.json["job"]["etag"]})
    assert (third.status, third.reason) == (412, "JOB_CHANGED")


async def test_each_call_with_one_answer_answers(harness: HttpHarness) -> None:
    job = (await harness.ask("POST", "/tasks/t", {"image": "a", "cron": "0 3 * * *"})).json["job"]
    paths = {"task_id": "t", "job_id": job["id"], "execution_id": job["execution"]["id"]}
    bodies: dict[str, object] = {
        "EnqueueJob": {"task_id": "t", "image": "a"},
        "UpdateTask": {"max_running": 2},
        "ReplaceJob": {"task_id": "t", "image": "a"},
        "BatchEnqueueJobs": {"array": {"request": {"task_id": "t", "image": "a"}, "size": 3}},
        "BatchStopJobs": {"filter": {"task_id": "t"}, "validate_only": True},
        "BatchRetryJobs": {"filter": {"task_id": "t"}, "validate_only": True},
        "PreviewSchedule": {"cron": "0 3 * * *"},
        "Prune": {"older_than": 0, "validate_only": True},
        "UploadInput": {"size_bytes": 1, "data": "YQ=="},
    }
    # Those of a final job and of a host are refused: there is none. The reason shows that the call was made.
    refused = {"RetryJob": "JOB_NOT_FINAL", "DrainHost": "HOST_NOT_FOUND", "ResumeHost": "HOST_NOT_FOUND"}
    refused["RedeliverNotification"] = "DELIVERY_NOT_FOUND"
    refused["ReadOutputs"] = refused["ListOutputs"] = "OUTPUTS_NOT_FOUND"
    for route in ROUTES:
        if route.descriptor.server_streaming or route.method in {"StopJob", "StopExecution"}:
            continue
        body = bodies.get(route.method) if route.verb != "GET" else None
        if isinstance(body, dict):
            body = {name: value for name, value in body.items() if name not in route.path_fields}
        answered = await harness.ask(
            route.verb, route.path.format(host="x", delivery_id="x", sha256=sha256(b"a").hexdigest(), **paths), body
        )
        if route.method == "ReplaceJob":
            # Its schedule is gone, and with it what the next two calls are about; so it comes back.
            body = {"task_id": "t", "image": "a", "cron": "0 3 * * *"}
            answered = await harness.ask(route.verb, route.path.format(**paths), body)
        if route.method in refused:
            assert answered.reason == refused[route.method]
        else:
            assert answered.status in {200, 201}, (route, answered.body)
            json_format.ParseDict(
                {name: value for name, value in answered.json.items() if name != "links"},
                getattr(pb, route.descriptor.output_type.name)(),
            )


async def test_a_stop_needs_no_body_and_takes_a_note_and_a_grace(harness: HttpHarness) -> None:
    first, second = [(await harness.ask("POST", "/tasks/t", {"image": "a"})).json["job"]["id"] for _ in range(2)]
    bare = await harness.ask("POST", f"/jobs/{first}/stop")
    assert (bare.status, bare.json["job"]["state"]) == (200, "STATE_STOPPED")
    noted = await harness.ask("POST", f"/jobs/{second}/stop", {"note": "no need", "grace": 3})
    assert "no need" in noted.json["job"]["outcome"]["detail"]


async def test_lists_take_filters_and_pages_in_their_query(harness: HttpHarness) -> None:
    for number in range(3):
        await harness.ask("POST", f"/tasks/t{number}", {"image": "a", "labels": {"team": "red", "n": str(number)}})
    first = (await harness.ask("GET", "/jobs?labels=team%3Dred&states=queued,RUNNING&pageSize=2")).json
    assert [job["task_id"] for job in first["jobs"]] == ["t2", "t1"]
    token = first["next_page_token"]
    rest = f"/jobs?labels=team=red&states=STATE_QUEUED&states=running&page_size=2&page_token={token}"
    assert [job["task_id"] for job in (await harness.ask("GET", rest)).json["jobs"]] == ["t0"]
    exact = (await harness.ask("GET", "/jobs?labels=team=red&labels=n=1&with_spec=true")).json["jobs"]
    assert [job["spec"]["labels"]["n"] for job in exact] == ["1"]
    assert (await harness.ask("GET", "/jobs?task_id=nobody")).json == {"jobs": []}


@pytest.mark.parametrize(
    ("path", "field", "said"),
    [
        ("/jobs?page_sise=2", "page_sise", "no such field; did you mean page_size?"),
        ("/jobs?page_size=two", "page_size", "must be a whole number from -2147483648 to 2147483647"),
        ("/jobs?states=flying", "states[0]", '\'flying\' is not one of "scheduled", "queued"'),
        ("/jobs?labels=team", "labels", "must be labels=NAME=VALUE"),
        ("/jobs?labels=a=1&labels=a=2", "labels", "is given twice"),
        ("/jobs?task_id=a&taskId=b", "task_id", "is given twice"),
        ("/jobs?since_time=yesterday", "since_time", 'must be a time, as "2026-01-31T08:00:00Z"'),
        ("/jobs?with_spec=perhaps", "with_spec", "must be true or false"),
        ("/jobs?page_size=99999999999", "page_size", "must be a whole number"),
    ],
)
async def test_a_wrong_parameter_of_a_query_is_named(harness: HttpHarness, path: str, field: str, said: str) -> None:
    found = violations(await harness.ask("GET", path))
    assert list(found) == [field]
    assert said in found[field]


# ----------------------------------------------------------------------------------------------------------- the bodies


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"timeout": 90}, {"timeout": "90s"}),
        ({"timeout": 1.5}, {"timeout": "1.500s"}),
        ({"timeout": "1m30s"}, {"timeout": "90s"}),
        ({"startIn": "4h30m25s"}, {"start_in": "16225s"}),
        ({"startAt": 4102444800}, None),
        ({"startAt": 1780000000}, {"start_at": "2026-05-28T20:26:40Z"}),
        ({"cron": "0 3 * * *"}, {"cron": {"expression": "0 3 * * *"}}),
        ({"cron": {"expression": "@daily", "timeZone": "Europe/Berlin", "overlap": "queue-one"}}, None),
        ({"retries": 3}, {"retry": {"max_retries": 3}}),
        ({"expiration": 1780000000}, {"expire_time": "2026-05-28T20:26:40Z"}),
        ({"metadata": {"any": ["json", 1, None]}}, {"metadata": {"any": ["json", 1.0, None]}}),
        ({"pullPolicy": "always"}, {"pull_policy": "PULL_POLICY_ALWAYS"}),
        ({"limits": {"memory_bytes": "512m", "pids": 9}}, {"limits": {"memory_bytes": "536870912", "pids": 9}}),
        ({"limits": {"memoryBytes": "536870912"}}, {"limits": {"memory_bytes": "536870912"}}),
        ({"unique": "one"}, {"unique": {"key": "one"}}),
        ({"timeout": None, "cron": None}, {}),
    ],
)
async def test_values_are_read_as_people_write_them(
    harness: HttpHarness, given: dict[str, Any], stored: dict[str, Any] | None
) -> None:
    answered = await harness.ask("POST", "/tasks/t", {"image": "a", **given})
    if given.get("startAt") == 4102444800:
        assert "is too far" in str(violations(answered)) or "3653" in str(answered.json)
        return
    assert answered.status == 201, answered.body
    if stored is not None:
        spec = answered.json["job"]["spec"]
        assert {name: spec[name] for name in spec if name != "image"} == stored


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"imge": "a"}, "imge", "no such field; did you mean image?"),
        ({"image": "a", "limits": {"cpu": 1}}, "limits.cpu", "did you mean cpus?"),
        ({"image": "a", "envs": {"A": 1}}, 'envs["A"]', 'must be a string, as "1"'),
        ({"image": "a", "command": ["echo", "a"]}, "command", "must be a string; put a list of words into args"),
        ({"image": "a", "retries": 3.5}, "retry", "must be a JSON object, or its max_retries alone, which is a whole"),
        ({"image": "a", "memory_bytes": 1}, "memory_bytes", "no such field; did you mean limits.memory_bytes?"),
        ({"image": "a", "spec": {"memory": 1}}, "image", "stands beside spec"),
        ({"spec": {"memory": 1}}, "memory", "no such field; did you mean limits.memory_bytes?"),
        ({"image": "a", "spec": {}}, "image", "stands beside spec"),
        ({"image": 7}, "image", "must be a string"),
        ({"image": "a", "timeout": "soon"}, "timeout", "'soon' is not a duration"),
        ({"image": "a", "startIn": "1x"}, "start_in", "is not a duration"),
        ({"image": "a", "startAt": "2026-01-31T08:00:00"}, "start_at", "has no time zone"),
        ({"image": "a", "startAt": True}, "start_at", "must be a time"),
        ({"image": "a", "startAt": 1e300}, "start_at", "must be a time"),
        ({"image": "a", "priority": 1 << 70}, "priority", ""),
        ({"image": "a", "priority": 1.5}, "priority", ""),
        ({"image": "a", "limits": {"memory_bytes": 1 << 63}}, "limits.memory_bytes", ""),
        ({"image": "a", "args": "x"}, "args", "must be a list"),
        ({"image": "a", "metadata": "x"}, "metadata", "must be a JSON object"),
        ({"image": "a", "cron": 5}, "cron", "must be a JSON object"),
        ({"image": "a", "timeout": 1e30}, "timeout", ""),
        ({"image": "a", "task_id": "other"}, "task_id", "differs from the path"),
        ({"image": "a", "taskId": "t", "timeout": -1}, "spec.timeout", "must be from"),
        (b'{"image": "a", "image": "b"}', "", 'has "image" twice'),
        (b'{"image": NaN}', "", "NaN is no number"),
        (b'{"image": "a", "metadata": {"n": 1e999}}', "", "number that is too large"),
        (b'{"metadata": {"n": ' + b"9" * 5000 + b"}}", "", "a number of 5000 digits"),
        (b'{"image": "\\ud800"}', "image", "half a character"),
        (b'{"image": "a", "metadata": {"n": ["\\ud800"]}}', "metadata", "half a character"),
        (b'{"\\ud800": 1}', "\\ud800", "no such field"),
        (b'{"image": "a", "cron": {"expression": "* * * * *", "\\ud800": 1}}', "spec.cron.\\ud800", "no such field"),
        (b'{"image": "a", "cron": {"expression": "* * * * *", "overlap": "\\ud800"}}', "cron.overlap", "\\ud800"),
        (b'{"metadata": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001, "", "nested too deeply"),
        (b'{"metadata": ' + b'{"a":' * 80 + b"1" + b"}" * 81, "metadata", "nested too deeply"),
        (b'{"image": "a"', "", "the body is not JSON: Expecting ',' delimiter at column 14"),
        (b'{"image":\n x}', "", "at column 2 of line 2"),
        (b"[]", "", "is not a JSON object"),
        (b"\xff", "", "is not UTF-8 at byte 1"),
        (b'"' + b"\xf0" + b'"', "", "is not UTF-8"),
    ],
)
async def test_a_body_that_cannot_be_as_it_is_is_refused_and_stores_nothing(
    harness: HttpHarness, body: object, field: str, said: str
) -> None:
    found = violations(await harness.ask("POST", "/tasks/t", body))
    assert any(name == field or name == f"spec.{field}" for name in found), found
    assert said in "; ".join(found.values())
    assert (await harness.ask("GET", "/jobs")).json == {"jobs": []}


async def test_a_batch_takes_requests_as_people_write_them(harness: HttpHarness) -> None:
    requests = [{"taskId": "t", "image": "a", "timeout": 60}, {"task_id": "t", "spec": {"image": ""}}]
    results = (await harness.ask("POST", "/batch/enqueue", {"requests": requests})).json["results"]
    assert results[0]["enqueued"]["job"]["state"] == "STATE_QUEUED"
    assert results[1]["rejection"]["reason"] == "ERROR_REASON_INVALID_FIELD"


async def test_a_body_has_to_be_json_by_name(harness: HttpHarness) -> None:
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answered = await harness.ask("POST", "/tasks/t", b'{"image": "a"}', content_type=media_type)
        assert (answered.status, answered.reason) == (415, "UNSUPPORTED_MEDIA_TYPE")
    told = await harness.ask("POST", "/tasks/t", b'{"image": "a"}', content_type="Application/JSON; charset=utf-8")
    assert told.status == 201
    body = gzip.compress(b'{"image": "a"}')
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for packed in (
        await harness.ask("POST", "/tasks/t", body, content_encoding="gzip"),
        await harness.ask("POST", "/tasks/t", body, content_encoding="identity\r\ncontent-encoding: gzip"),
        await harness.ask("POST", "/tasks/t", chunk, transfer_encoding="gzip, chunked", content_length=""),
    ):
        assert (packed.status, packed.reason) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert (await harness.ask("POST", "/tasks/t", b"\xef\xbb\xbf" + b'{"image": "a"}')).status == 201


async def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path, max_request_bytes=100_000)
    await harness.start()
    for chunked in ("", "chunked"):
        body = b"f000\r\n" + b" " * 0xF000 + b"\r\n" + b"f000\r\n" + b" " * 0xF000 + b"\r\n" + b"0\r\n\r\n"
        answered = await harness.ask(
            "POST",
            "/tasks/t",
            body if chunked else b" " * 100_001,
            **({"transfer_encoding": chunked, "content_length": ""} if chunked else {}),
        )
        assert (answered.status, answered.reason) == (413, "REQUEST_TOO_LARGE")
    assert (await harness.ask("POST", "/tasks/t", b'{"image": "a"}' + b" " * 99_000)).status == 201
    await harness.close()


# --------------------------------------------------------------------------------------------------------------- errors


async def test_what_does_not_exist_is_a_problem_with_its_reason(harness: HttpHarness) -> None:
    for path, reason in [
        (f"/jobs/{new_id()}", "JOB_NOT_FOUND"),
        ("/executions/x", "EXECUTION_NOT_FOUND"),
        ("/tasks/nobody", "TASK_NOT_FOUND"),
        ("/nothing", "PATH_NOT_FOUND"),
        ("/jobs/", "PATH_NOT_FOUND"),
        ("/jobs/a%2Fb", "PATH_NOT_FOUND"),
        ("/jobs/%ff%00", "JOB_NOT_FOUND"),
    ]:
        answered = await harness.ask("GET", path)
        assert (answered.status, answered.reason) == (404, reason)
        assert answered.json["title"] == reason.replace("_", " ").capitalize()
        assert answered.json["type"] == "about:blank"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/task/greet", "/tasks/greet"),
        ("/jobs/x/", "/jobs/x"),
        ("/Jobs/x/stop", "/jobs/x/stop"),
        ("/job", "/jobs"),
        ("/health", "/healthz"),
        ("/jobs/x/nothing", ""),
        ("/nothing", ""),
    ],
)
async def test_a_path_that_is_nearly_one_is_told_that_one(harness: HttpHarness, path: str, meant: str) -> None:
    told = await harness.ask("GET", path)
    hint = f"did you mean {meant!r}?" if meant else "/openapi.json lists all paths"
    assert (told.status, told.json["detail"]) == (404, f"there is nothing at {path!r}; {hint}")
    # So that a prompt begins on a line of its own.
    assert told.body.endswith(b"}\n")


async def test_a_full_queue_says_when_to_try_again(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path, max_waiting=1)
    await harness.start()
    assert (await harness.ask("POST", "/tasks/t", {"image": "a"})).status == 201
    answered = await harness.ask("POST", "/tasks/t", {"image": "a"})
    assert (answered.status, answered.reason) == (429, "QUEUE_FULL")
    assert int(answered.headers["retry-after"]) >= answered.json["retry_after_seconds"] > 0
    await harness.close()


async def test_a_verb_that_a_path_does_not_have_is_told_those_it_has(harness: HttpHarness) -> None:
    answered = await harness.ask("DELETE", "/jobs")
    assert (answered.status, answered.reason, answered.headers["allow"]) == (
        405,
        "METHOD_NOT_ALLOWED",
        "GET, HEAD, OPTIONS, POST",
    )
    options = await harness.ask("OPTIONS", "/jobs")
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    head = await harness.ask("HEAD", "/jobs")
    assert (head.status, head.body) == (200, b"")


async def test_a_defect_has_a_number_that_is_in_the_log_too(
    harness: HttpHarness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(task_id: str) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(harness.service, "task", broken)
    answered = await harness.ask("GET", "/tasks/t")
    assert (answered.status, answered.reason) == (500, "DEFECT")
    number = answered.json["metadata"]["defect"]
    assert number in capsys.readouterr().out
    assert "ZeroDivision" not in str(answered.body)


async def test_parameters_of_a_post_belong_into_its_body(harness: HttpHarness) -> None:
    assert violations(await harness.ask("POST", "/tasks/t?image=a")) == {
        "image": "is in the query; send it in the body"
    }


async def test_numbers_and_booleans_of_an_answer_are_there_even_if_they_are_nothing(harness: HttpHarness) -> None:
    stored = (await harness.ask("POST", "/tasks/t", {"image": "a", "request_id": "r"})).json
    assert stored["existing"] is False
    stopped = await harness.ask("POST", "/batch/stop", {"filter": {"task_id": "nobody"}})
    assert stopped.json == {"stopped": 0, "more": False}
    pruned = await harness.ask("POST", "/prune", {"older_than": "1d"})
    assert pruned.json == {"jobs": "0", "logs": "0", "bytes": "0", "more": False}


# --------------------------------------------------------------------------------------------------------------- access


async def test_a_name_that_is_not_the_servers_is_refused(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path, http_hosts=("fastlane.local",))
    await harness.start()
    for host in (
        "localhost",
        "localhost:",
        "LOCALHOST:1",
        "127.0.0.1:10000",
        "[::1]",
        "[::1]:5",
        "fastlane.local:10000",
    ):
        assert (await harness.ask("GET", "/jobs", host=host)).status == 200
    for host in (
        "evil.example",
        "evil.example:10000",
        "localhost.evil",
        "127.0.0.1.nip.io",
        "[::2]",
        "",
        "[",
        "localhost:1@a",
        "localhost:x",
    ):
        answered = await harness.ask("GET", "/jobs", host=host)
        assert (answered.status, answered.reason) == (421, "HOST_NOT_SERVED")
    twice = await harness.ask("GET", "/jobs", x="1\r\nHost: localhost")
    assert (twice.status, twice.reason) == (400, "HOST_GIVEN_TWICE")
    await harness.close()


async def test_a_page_of_another_site_changes_nothing(harness: HttpHarness) -> None:
    foreign = (
        "https://evil.example",
        "null",
        "http://localhost:1",
        "https://localhost",
        "http://localhost\r\norigin: x",
    )
    for origin in foreign:
        answered = await harness.ask("POST", "/tasks/t", {"image": "a"}, origin=origin)
        assert (answered.status, answered.reason) == (403, "ORIGIN_REFUSED")
        assert "access-control-allow-origin" not in (await harness.ask("GET", "/jobs", origin=origin)).headers
    own = await harness.ask("POST", "/tasks/t", {"image": "a"}, host="localhost:7", origin="http://localhost:7")
    assert own.status == 201


async def test_an_origin_of_the_settings_may_use_the_calls(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path, http_cors_origins=("https://ci.example.com",))
    await harness.start()
    asked = {"origin": "https://ci.example.com", "access_control_request_method": "POST"}
    preflight = await harness.ask("OPTIONS", "/tasks/t", **asked)
    assert preflight.headers["access-control-allow-origin"] == "https://ci.example.com"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    stored = await harness.ask("POST", "/tasks/t", {"image": "a"}, origin="https://ci.example.com")
    assert (stored.status, stored.headers["access-control-allow-origin"]) == (201, "https://ci.example.com")
    other = await harness.ask(
        "OPTIONS", "/tasks/t", origin="https://evil.example", access_control_request_method="POST"
    )
    assert "access-control-allow-origin" not in other.headers
    assert other.headers["vary"] == "Origin"
    assert (await harness.ask("GET", "/jobs")).headers["vary"] == "Accept, Origin"
    await harness.close()


# --------------------------------------------------------------------------------------------------------------- health


async def test_readiness_is_that_of_the_health_service(harness: HttpHarness) -> None:
    alive = await harness.ask("GET", "/healthz")
    assert (alive.status, alive.json) == (200, {"ok": True, "live": True, "server": True, "engine": False})
    await harness.rpc.store_can_write(False)
    assert (await harness.ask("GET", "/readyz")).status == 503
    assert (await harness.ask("GET", "/healthz")).status == 200
    await harness.rpc.store_can_write(True)
    assert (await harness.ask("GET", "/readyz")).status == 200


# ------------------------------------------------------------------------------------------------------------ the watch


@asynccontextmanager
async def watching(harness: HttpHarness, path: str = "/watch", **headers: str) -> AsyncIterator["Events"]:
    async with connected(harness.http_port) as (reader, writer), asyncio.timeout(20):
        writer.write(request("GET", path, **headers))
        head = await reader.readuntil(b"\r\n\r\n")
        yield Events(answer(head + b"0\r\n\r\n"), reader)


class Events:
    """The events of a stream, one after the other."""

    def __init__(self, head: Answer, reader: asyncio.StreamReader) -> None:
        self.head = head
        self._reader = reader
        self._text = ""

    async def next(self, end: str = "\n\n") -> str:
        """The next event, without its end. IncompleteReadError, where the stream is cut."""
        while end not in self._text:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            self._text += (await self._reader.readexactly(size + 2))[:-2].decode()
        event, _, self._text = self._text.partition(end)
        return event


def fields(event: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in event.splitlines())


async def test_a_watch_is_an_event_stream_that_resumes_by_its_last_id(harness: HttpHarness) -> None:
    job = (await harness.ask("POST", "/tasks/t", {"image": "a"})).json["job"]
    async with watching(harness, "/watch?task_id=t") as events:
        assert events.head.headers["content-type"] == "text/event-stream"
        assert events.head.headers["cache-control"] == "no-store"
        first = fields(await events.next())
        assert (first["event"], "id" in first) == ("job", False)
        assert json.loads(first["data"])["job"]["id"] == job["id"]
        caught_up = fields(await events.next())
        assert (caught_up["event"], caught_up["id"]) == ("caught_up", json.loads(caught_up["data"])["cursor"])
    await harness.ask("POST", f"/jobs/{job['id']}/stop")
    async with watching(harness, "/watch?task_id=t", last_event_id=caught_up["id"]) as events:
        assert fields(await events.next())["event"] == "heartbeat"
        ended = json.loads(fields(await events.next())["data"])
        assert ended["job"]["state"] == "STATE_STOPPED"


async def test_a_stream_needs_a_client_that_knows_chunks(harness: HttpHarness) -> None:
    async with connected(harness.http_port) as (reader, writer):
        writer.write(request("GET", "/watch").replace(b"HTTP/1.1", b"HTTP/1.0"))
        told = answer(await reader.read())
        assert (told.status, told.reason) == (505, "HTTP_VERSION_NOT_SUPPORTED")


async def test_a_watch_is_lines_of_json_for_who_asks_so(harness: HttpHarness) -> None:
    async with watching(harness, accept="application/x-ndjson") as events:
        assert events.head.headers["content-type"] == "application/x-ndjson"
        line = json.loads(await events.next("\n"))
        assert line == {"cursor": line["cursor"], "caught_up": {}}


async def test_a_watch_ends_at_once_with_the_server_and_says_so(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path)
    await harness.start()
    async with watching(harness) as events:
        assert fields(await events.next())["event"] == "caught_up"
        await harness.close()
        problem = fields(await events.next())
        assert (problem["event"], json.loads(problem["data"])["reason"]) == ("problem", "SERVER_STOPPING")
        with pytest.raises(asyncio.IncompleteReadError):
            await events.next()


async def test_a_watch_that_cannot_begin_has_the_status_of_its_error(tmp_path: Path) -> None:
    harness = HttpHarness(tmp_path, max_streams=1)
    await harness.start()
    bad = await harness.ask("GET", "/watch?cursor=x")
    assert (bad.status, bad.reason) == (400, "CURSOR_INVALID")
    async with watching(harness) as events:
        await events.next()
        full = await harness.ask("GET", "/watch")
        assert (full.status, full.reason) == (429, "TOO_MANY_STREAMS")
    # The client of the only stream has gone, and its place is free.
    async with asyncio.timeout(10):
        while True:
            async with watching(harness) as events:
                if events.head.status == 200:
                    break
    await harness.close()


def test_the_documentation_has_the_paths_and_the_status_of_each_error() -> None:
    lines = (ROOT / "docs" / "http.md").read_text().splitlines()
    paths = [line.split("|")[1].strip() for line in lines if line.startswith("| `") and "](contract.md#" in line]
    assert paths == [f"`{route.verb} {route.path}`" for route in ROUTES]
    statuses: dict[int, set[str]] = {}
    for entry in [*error_table.TABLE.values(), error_table.DEFECT]:
        reason = pb.ErrorReason.Name(entry.reason).removeprefix("ERROR_REASON_")
        statuses.setdefault(entry.http_status, set()).add(reason)
    for status, reasons in statuses.items():
        assert f"| {status} | {', '.join(sorted(reasons))} |" in lines


def test_the_documentation_has_each_reason_of_http_itself() -> None:
    raised = set()
    for path in (ROOT / "fastlane_grpc" / "http").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HttpError":
                status, reason = (ast.literal_eval(each) for each in node.args[:2])
                raised.add((str(status), reason))
    # Nobody is left to read it.
    raised.remove(("400", "CLIENT_GONE"))
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| [^|]+ \|$", (ROOT / "docs" / "http.md").read_text(), re.MULTILINE)
    # Those of the contract are in a table of their own.
    contract = {name.removeprefix("ERROR_REASON_") for name in pb.ErrorReason.DESCRIPTOR.values_by_name}
    assert rows == sorted((status, reason) for status, reason in raised if reason not in contract)


def test_the_paths_of_the_page_are_those_of_its_resources() -> None:
    pages = {route.path for route in ROUTES if route.page}
    assert {"/tasks/{task_id}", "/jobs/{job_id}", "/executions/{execution_id}", "/hosts"} <= pages
    assert all(route.verb == "GET" for route in ROUTES if route.page)
