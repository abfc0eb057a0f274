"""Requests of jobs as JSON for people: what is taken, and how what is wrong is named."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.client import request_from_json
from fastlane_grpc.v1 import fastlane_pb2 as pb

_NAMES = sorted(
    {
        field.name
        for message in (pb.EnqueueJobRequest, pb.JobSpec, pb.Cron, pb.Retry)
        for field in message.DESCRIPTOR.fields
    }
)


def read(value: Any) -> pb.EnqueueJobRequest:
    request = request_from_json((value if isinstance(value, str) else json.dumps(value)).encode())
    assert request is not None
    return request


def test_friendly_values_mean_what_protobuf_writes_at_length() -> None:
    friendly = {
        "task_id": "t",
        "image": "busybox",
        "timeout": "1h30m",
        "startIn": 1.5,
        "stop_grace": "0s",
        "expire_time": "2030-01-31T09:00:00+01:00",
        "pull_policy": "always",
        "limits": {"memory_bytes": "512m", "cpus": 0.5, "shm_bytes": "1g"},
        "tmpfs": [{"path": "/tmp", "size_bytes": "64m", "mode": 448}],
        "ulimits": [{"name": "nofile", "soft": 1024}],
        "retry": {"max_retries": 3, "causes": ["timed-out", "exit_code"], "jitter": "none", "initial_backoff": "250ms"},
        "cron": {"expression": "@daily", "overlap": "queue-one", "catch_up": "CATCH_UP_ALL"},
        "unique": {"key": "k", "conflict": "use-existing"},
        "metadata": {"any": [1, None, {"cron": "x"}]},
        "labels": {"a": "b"},
    }
    assert json_format.MessageToDict(read(friendly), preserving_proto_field_name=True) == {
        "task_id": "t",
        "spec": {
            "image": "busybox",
            "timeout": "5400s",
            "start_in": "1.500s",
            "stop_grace": "0s",
            "expire_time": "2030-01-31T08:00:00Z",
            "pull_policy": "PULL_POLICY_ALWAYS",
            "limits": {"memory_bytes": str(512 << 20), "cpus": 0.5, "shm_bytes": str(1 << 30)},
            "tmpfs": [{"path": "/tmp", "size_bytes": str(64 << 20), "mode": 448}],
            "ulimits": [{"name": "nofile", "soft": "1024"}],
            "retry": {
                "max_retries": 3,
                "causes": ["RETRY_CAUSE_TIMED_OUT", "RETRY_CAUSE_EXIT_CODE"],
                "jitter": "JITTER_NONE",
                "initial_backoff": "0.250s",
            },
            "cron": {"expression": "@daily", "overlap": "OVERLAP_QUEUE_ONE", "catch_up": "CATCH_UP_ALL"},
            "unique": {"key": "k", "conflict": "CONFLICT_USE_EXISTING"},
            "metadata": {"any": [1.0, None, {"cron": "x"}]},
            "labels": {"a": "b"},
        },
    }


def test_short_forms_stand_for_the_one_required_value() -> None:
    told = [{"webhook": "https://example.org", "states": ["failed"], "event": "attempt-ended"}]
    spec = read(
        {"image": "b", "cron": "@hourly", "retry": 2, "unique": "k", "notifications": told, "tmpfs": ["/tmp"]}
    ).spec
    assert [each.path for each in spec.tmpfs] == ["/tmp"]
    [notification] = spec.notifications
    assert (notification.webhook.url, notification.states) == ("https://example.org", [pb.STATE_FAILED])
    assert notification.event == pb.Notification.EVENT_ATTEMPT_ENDED
    assert (spec.cron.expression, spec.retry.max_retries, spec.unique.key) == ("@hourly", 2, "k")


def test_a_blank_line_is_no_request() -> None:
    assert request_from_json(b" \r") is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "is not a JSON object"),
        ("{", "is not JSON: Expecting property name"),
        ('{"image": "a", "image": "b"}', 'has "image" twice'),
        ({"taskId": "t", "task_id": "t"}, "task_id: is given twice"),
        ({"image": "b", "spec": {}}, "image: stands beside spec"),
        ({"imagee": "b"}, "imagee: no such field; did you mean image?"),
        ({"image": "b", "limits": {"memory": 1}}, "spec.limits.memory: no such field; did you mean memory_bytes?"),
        ({"args": "echo"}, "spec.args: must be a list"),
        ({"args": [1]}, "spec.args[0]: must be a string"),
        ({"envs": {"A": 1}}, 'spec.envs["A"]: must be a string'),
        ({"envs": ["A=1"]}, "spec.envs: must be a JSON object of strings"),
        ({"timeout": "soon"}, "spec.timeout: 'soon' is not a duration"),
        ({"timeout": True}, "spec.timeout: must be a duration"),
        ({"start_at": "tomorrow"}, "spec.start_at: must be a time"),
        ({"pull_policy": "often"}, 'spec.pull_policy: \'often\' is not one of "missing", "always", "never"'),
        ({"cron": 5}, "spec.cron: must be a JSON object"),
        ({"retry": True}, "spec.retry: must be a JSON object"),
        ({"limits": {"memory_bytes": "lots"}}, "spec.limits.memory_bytes: 'lots' is not a number of bytes"),
        ({"priority": 1e10}, "spec.priority: "),
        ({"priority": "high"}, "spec.priority: "),
        ('{"cpus": NaN}', "is not JSON: NaN is no number"),
        ('{"command": "\\ud800"}', "spec.command: "),
        ('{"metadata": ' + "[" * 100_000, "is nested too deeply"),
        ('{"priority": ' + "9" * 5_000 + "}", ""),
    ],
)
def test_what_is_wrong_is_named(line: Any, says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- what it says is compared below
        read(line)
    assert str(caught.value).startswith(says)


def test_a_field_that_is_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ValueError, match=r"^array: no such field$"):
        read({"array": 3})


def test_a_line_that_is_not_utf_8_or_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="is not UTF-8 at byte 3"):
        request_from_json(b'{"\xff": 1}')
    with pytest.raises(ValueError, match="is longer than"):
        request_from_json(b" " * ((4 << 20) + 1))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(_NAMES) | st.text(), inner),
        max_leaves=20,
    )
)
def test_any_json_is_a_request_or_a_value_error(value: Any) -> None:
    try:
        request_from_json(json.dumps(value).encode())
    except ValueError as error:
        assert str(error)
