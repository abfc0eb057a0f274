"""The OpenAPI document: valid, complete, with the contract's comments; and the server keeps to it under fuzzing."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from fastlane_grpc.http import openapi
from fastlane_grpc.http.openapi import Security
from fastlane_grpc.http.routes import ROUTES, CallRoute, methods
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.serving import Server

DOCUMENT: Any = json.loads(openapi.document())
# `make chaos` asks for 10 000 in all.
REQUESTS = int(os.environ.get("CHAOS_REQUESTS", "0"))
# Requests of each path.
EXAMPLES = REQUESTS // len(ROUTES) or 20
ANSWERED: Counter[int] = Counter()
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SECONDS = 20


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_the_document_tells_how_callers_are_admitted() -> None:
    assert "security" not in DOCUMENT
    assert "securitySchemes" not in DOCUMENT["components"]
    tokens, certificates = Security(tokens=True, open_paths=frozenset({"/healthz"})), Security(certificates=True)
    both = Security(tokens=True, certificates=True, open_paths=frozenset({"/healthz"}))
    for security, ways, health in (
        (tokens, [{"token": []}, {"cookie": []}], []),
        (certificates, [{"certificate": []}], None),
        (
            both,
            [{"certificate": [], "token": []}, {"certificate": [], "cookie": []}, {"certificate": []}],
            [{"certificate": []}],
        ),
    ):
        document = json.loads(openapi.document(security))
        OpenAPIV31SpecValidator(document).validate()
        assert document["security"] == ways
        assert document["components"]["securitySchemes"].keys() == {name for way in ways for name in way}
        assert document["paths"]["/healthz"]["get"].get("security") == health
        assert "security" not in document["paths"]["/metrics"]["get"]


def test_the_document_has_every_path_with_the_comment_of_its_call() -> None:
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.path][route.verb.lower()]
        assert operation["description"].startswith(operation["summary"].rstrip("."))
        assert operation["tags"] == [route.descriptor.containing_service.name]
        named = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert named == list(route.path_fields)
    ids = [each["operationId"] for path in DOCUMENT["paths"].values() for each in path.values()]
    assert len(set(ids)) == len(ids)
    assert methods().keys() <= set(ids)


def test_every_part_of_the_document_is_described() -> None:
    def undescribed(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for name, each in value.get("properties", {}).items():
                if isinstance(each, dict) and not each.get("description") and "/Problem" not in path:
                    yield f"{path}.{name}"
            for name, each in value.items():
                yield from undescribed(each, f"{path}/{name}")

    assert list(undescribed(DOCUMENT["components"], "")) == []
    assert "a queue" not in DOCUMENT["info"]["description"]
    assert DOCUMENT["components"]["schemas"]["State"]["enum"][1] == "STATE_SCHEDULED"


# -------------------------------------------------------------------------------------------------------------- fuzzing


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without an engine: what is enqueued waits."""
    directory = tmp_path_factory.mktemp("fuzz")
    server = Server(directory / "data", engine=f"unix://{directory}/none", http_listen="127.0.0.1:0", max_waiting=5000)
    yield server
    sys.stdout.write(f"\n{ANSWERED.total()} requests were answered: {dict(sorted(ANSWERED.items()))}\n")
    assert ANSWERED.total() >= REQUESTS
    # The log has no defect, whatever was sent.
    assert server.stop() == 0
    assert "defect" not in server.log
    assert "Traceback" not in server.log


def fuzzing(examples: int) -> Any:
    return settings(
        max_examples=examples,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {each.ok().label: each.ok() for each in SCHEMA.get_all_operations()}
STREAMS = {f"{route.verb} {route.path}" for route in ROUTES if route.descriptor.server_streaming}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_requests_made_from_the_document_are_answered_as_it_says(server: Server, label: str) -> None:
    base_url = f"http://127.0.0.1:{server.http_port}"

    @fuzzing(EXAMPLES)
    @given(case=OPERATIONS[label].as_strategy())
    def fuzz(case: Any) -> None:
        if label not in STREAMS:
            ANSWERED[case.call_and_validate(base_url=base_url, checks=CHECKS, timeout=SECONDS).status_code] += 1
            return
        # A stream may have no end: its beginning is looked at.
        told: Any = case.as_transport_kwargs(base_url=base_url)
        with requests.request(**told, stream=True, timeout=SECONDS) as response:
            ANSWERED[response.status_code] += 1
            assert response.status_code < 500

    fuzz()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({field.name for method in methods().values() for field in method.input_type.fields})


@pytest.mark.timeout(1800)
def test_any_json_for_any_call_is_answered_without_a_defect(server: Server) -> None:
    bodies = st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON, max_size=4) | JSON
    with requests.Session() as session:

        @fuzzing(max(EXAMPLES * 10, 60))
        @given(route=st.sampled_from(ROUTES), body=bodies, text=st.text(min_size=1))
        def fuzz(route: Any, body: Any, text: str) -> None:
            if route.descriptor.server_streaming:
                return
            path = route.path
            for field in route.path_fields:
                path = path.replace(f"{{{field}}}", quote(text, safe="", errors="ignore") or "x")
            told = session.request(
                route.verb,
                f"http://127.0.0.1:{server.http_port}{path}",
                data=json.dumps(body).encode() if route.verb != "GET" else None,
                params={text: "1"} if route.verb == "GET" else None,
                headers={"Content-Type": "application/json"},
                timeout=SECONDS,
            )
            ANSWERED[told.status_code] += 1
            assert told.status_code < 500, told.text
            assert "problem" in told.headers["Content-Type"] or told.status_code < 300

        fuzz()


# Requests that are right, and values that suit some fields.
RIGHT: Mapping[str, Mapping[str, Any]] = {
    "EnqueueJob": {"task_id": "t", "image": "a"},
    "ReplaceJob": {"task_id": "t", "image": "a"},
    "UpdateTask": {"max_running": 2},
    "BatchEnqueueJobs": {"requests": [{"task_id": "t", "image": "a"}]},
    "BatchStopJobs": {"filter": {"task_id": "t"}},
    "BatchRetryJobs": {"filter": {"task_id": "t"}},
    "PreviewSchedule": {"cron": "0 3 * * *"},
    "Prune": {"older_than": "0s"},
    "UploadInput": {"size_bytes": 3},
}
VALUES = [
    *[
        "a",
        "t",
        "",
        "90s",
        "1h30m",
        "1g",
        "0 3 * * *",
        "2027-01-31T08:00:00Z",
        "queued",
        "queue-one",
        "local",
        "x" * 300,
    ],
    *[0, 1, 3, -1, 1.5, 90, 1e9, 1 << 40, True, False, None],
    *[[], ["a"], ["queued", "running"], {}, {"a": "b"}, [{"task_id": "t", "image": "a"}] * 3],
    {"expression": "*/5 * * * *", "time_zone": "Europe/Berlin", "overlap": "queue-one", "jitter": "3s"},
    {"max_retries": 2, "initial_delay": "1s", "max_delay": 60, "causes": ["exit-code"], "exit_codes": [1]},
    {"cpus": 0.5, "memory_bytes": "64m", "pids": 10},
    {"key": "k", "on_conflict": "existing"},
    {"job": {"task_id": "t", "image": "a", "cron": "* * * * *"}, "count": 5},
    {"states": ["queued"], "task_id": "t", "labels": {"a": "b"}},
]


@pytest.mark.timeout(1800)
def test_requests_that_are_nearly_right_are_answered_as_the_document_says(server: Server) -> None:
    base_url = f"http://127.0.0.1:{server.http_port}"
    spec = [field.name for field in pb.JobSpec.DESCRIPTOR.fields]
    routes = [route for route in ROUTES if f"{route.verb} {route.path}" not in STREAMS]
    ids = ["t", "local"]
    latest = st.integers(0, 30).map(lambda number: 1 - number)

    @fuzzing(max(EXAMPLES * 10, 60))
    @given(route=st.sampled_from(routes), data=st.data())
    def fuzz(route: CallRoute, data: st.DataObject) -> None:
        fields = [field.name for field in route.descriptor.input_type.fields if field.name not in route.path_fields]
        names = st.sampled_from([*fields, *spec * ("spec" in fields), "nothing"])
        right = {name: value for name, value in RIGHT.get(route.method, {}).items() if name not in route.path_fields}
        wrong = data.draw(st.dictionaries(names, st.sampled_from(VALUES), max_size=2))
        case = OPERATIONS[f"{route.verb} {route.path}"].Case(
            path_parameters={name: ids[data.draw(latest) % len(ids)] for name in route.path_fields},
            **{"query": wrong} if route.verb == "GET" else {"body": right | wrong, "media_type": "application/json"},
        )
        response = case.call_and_validate(base_url=base_url, checks=CHECKS, timeout=SECONDS)
        ANSWERED[response.status_code] += 1
        if response.status_code == 201:
            job = response.json()["job"]
            ids.extend([job["id"], *([job["execution"]["id"]] if "execution" in job else [])])

    fuzz()
    assert len(ids) > 2
    assert ANSWERED[200] > 2


def test_the_document_is_served(server: Server) -> None:
    told = requests.get(f"http://127.0.0.1:{server.http_port}/openapi.json", timeout=SECONDS)
    assert told.json() == DOCUMENT
