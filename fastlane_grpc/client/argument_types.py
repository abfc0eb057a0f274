"""Types of the arguments of both clients: an argument of another type is a TypeError that names it.

Protobuf would take a string for a list of characters, and its own errors do not name the argument.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from numbers import Integral, Real
from types import UnionType

from fastlane_grpc.client.containers import Device, Dns, Gpus, Tmpfs, Ulimit, Volume
from fastlane_grpc.client.inputs import Input, Stdin
from fastlane_grpc.client.policies import Cron, Mail, Retry, Unique, Webhook
from fastlane_grpc.text.time_span import span_of

_WORDS = {
    "args": "for one string use command=",
    "entrypoint": 'for one program use entrypoint=["PROGRAM"]',
    "outputs": 'for one path use outputs=["/PATH"]',
    "cap_drop": 'for one capability use cap_drop=["NAME"]',
    "job_ids": 'for one job use job_ids=["ID"]',
}
_MAPPINGS = {"envs", "labels", "extra_hosts", "secret_envs"}
_ENUMS = {"states": "[STATE_FAILED]", "sources": "[STDOUT]"}
_DURATIONS = {
    *("timeout", "stop_grace", "start_in", "grace", "heartbeat", "give_up_after", "retry_for"),
    *("rate_window", "stop_when_unwatched"),
}
_TIMES = {"since", "until", "start_at", "expire_time", "from_time"}
_WHOLE_NUMBERS = {
    *("memory_bytes", "pids", "priority", "page_size", "tail_lines", "start_line", "history", "count", "size"),
    *("max_running", "max_starts", "shm_bytes", "memory_reservation_bytes"),
}
_TEXTS = {
    *("task_id", "image", "working_dir", "user", "network", "stop_signal", "request_id", "cpuset"),
    *("job_id", "execution_id", "delivery_id", "note", "cursor", "before_cursor", "host", "id_prefix", "etag"),
    *("caller", "method", "registry_credential"),
}

_POLICIES: Mapping[str, tuple[type | UnionType, str]] = {
    "cron": (Cron | str, 'an expression, as "0 3 * * *", or a Cron'),
    "retry": (Retry | int, "a number of retries, or a Retry"),
    "unique": (Unique | str, "a key, or a Unique"),
    "dns": (Dns, 'a Dns, as Dns(servers=["192.0.2.53"])'),
    "gpus": (Gpus | int, "a number of GPUs, -1 for all, or a Gpus"),
    "stdin": (Stdin | bytes, "bytes, or a Stdin"),
}

# Lists of values of ours.
_LISTS: Mapping[str, tuple[type | UnionType, str, str]] = {
    "notifications": (Webhook | Mail, "a Webhook or a Mail", 'Mail("name@example.org")'),
    "tmpfs": (Tmpfs | str, "a path, or a Tmpfs", '"/scratch"'),
    "devices": (Device | str, "a path, or a Device", '"/dev/fuse"'),
    "volumes": (Volume, "a Volume", 'Volume("cache", "/cache")'),
    "inputs": (Input, "an Input", 'Input("/etc/app.toml", b"...")'),
    "ulimits": (Ulimit, "a Ulimit", 'Ulimit("nofile", 1024)'),
}


def check(arguments: Mapping[str, object]) -> None:
    """Raise TypeError for the first argument that has another type than its name asks for.

    None stands for an argument that was left out.
    """
    for name, value in arguments.items():
        if name == "older_than":
            if not isinstance(value, timedelta):
                raise TypeError("older_than must be a timedelta, as timedelta(days=30)")
        elif value is not None:
            _check(name, value)


def _check(name: str, value: object) -> None:
    if name in _WORDS:
        _check_words(name, value)
    elif name in _MAPPINGS:
        _check_mapping(name, value)
    elif name in _ENUMS:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise TypeError(f"{name} must be a list, as {_ENUMS[name]}")
    elif name in _DURATIONS:
        _check_duration(name, value)
    elif name in _TIMES:
        if not isinstance(value, datetime):
            raise TypeError(f"{name} must be a datetime with its time zone, as datetime.now(UTC); {_given(value)}")
    elif name in _WHOLE_NUMBERS:
        if not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number; {_given(value)}")
    elif name == "cpus":
        if not isinstance(value, Real):
            raise TypeError(f"cpus must be a number, as 0.5; {_given(value)}")
    elif name == "paused":
        if not isinstance(value, bool):
            raise TypeError(f"paused must be True or False; {_given(value)}")
    elif name == "metadata":
        if not isinstance(value, Mapping):
            raise TypeError(f"metadata must be a dict; {_given(value)}")
    elif name in _LISTS:
        _check_list(name, value)
    elif name in _POLICIES:
        kind, example = _POLICIES[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} must be {example}; {_given(value)}")
    elif name == "command":
        if not isinstance(value, str | bytes):
            raise TypeError("command must be a string; for a list of words use args=")
    elif name in _TEXTS and not isinstance(value, str | bytes):
        raise TypeError(f"{name} must be a string; {_given(value)}")


def _check_list(name: str, value: object) -> None:
    kind, what, example = _LISTS[name]
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        raise TypeError(f"{name} must be a list, as [{example}]; {_given(value)}")
    for number, each in enumerate(value):
        if not isinstance(each, kind):
            raise TypeError(f"{name}[{number}] must be {what}; {_given(each)}")


def _check_words(name: str, value: object) -> None:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of strings; {_WORDS[name]}")
    # An iterator is read once, by protobuf.
    for number, word in enumerate(value if isinstance(value, Collection) else ()):
        if not isinstance(word, str | bytes):
            raise TypeError(f"{name}[{number}] must be a string; {_given(word)}")


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f'{name} must be a dict of strings, as {{"NAME": "value"}}; {_given(value)}')
    for key, each in value.items():
        if not isinstance(key, str | bytes):
            raise TypeError(f"the name {key!r} in {name} must be a string; {_given(key)}")
        if not isinstance(each, str | bytes):
            shown = json.dumps(key) if isinstance(key, str) else repr(key)
            raise TypeError(f"{name}[{shown}] must be a string; {_given(each)}")


def _check_duration(name: str, value: object) -> None:
    if isinstance(value, str):
        span_of(value, name)
        return
    if isinstance(value, bool) or not isinstance(value, timedelta | Real):
        raise TypeError(f"{name} must be a timedelta, a number of seconds or a string as '90s'; {_given(value)}")
    if isinstance(value, Real) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number of seconds; {value} was given")


def _given(value: object) -> str:
    """Name the type alone: the value of a variable may be secret."""
    return f"a value of type {type(value).__name__} was given"
