"""How jobs and executions are written in rows, and read back the same: one function for each noun, each way."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from fastlane_grpc.model import (
    Execution,
    Job,
    JobSpec,
    Limits,
    LogTotals,
    Outcome,
    PullPolicy,
    Reason,
    Source,
    State,
    Stop,
    StopCause,
    Task,
    Times,
)

Row = Sequence[Any]

# The columns that each noun is read from. The SQL that names them and the index by which they are read come from one
# list, so that a column can be added anywhere in it.
_TIMES = tuple(each.name for each in fields(Times))
_OUTCOME = ("reason", "detail", "exit_code", "out_of_memory", "stop_signal")
_EXECUTION_NAMES = (
    *("execution_id", "job_id", "task_id", "state", "state_time", "run", "attempt"),
    *("host", "container_id", "image_digest", "handle", "starting", "logs"),
    *("stop_cause", "stop_time", "stop_grace", "stop_note"),
    *_OUTCOME,
    *_TIMES,
    "expire_time",
)
_JOB_NAMES = (
    *("job_id", "task_id", "spec", "create_time", "state", "executions", "request_id", "caller_address"),
    *_OUTCOME,
    *("end_time", "stop_time"),
)
_TASK_NAMES = ("task_id", "create_time", "last_enqueue_time", "jobs", "open_jobs")


def _columns(table: str, names: Sequence[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in names)


def _places(names: Sequence[str]) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(names)}


# What `execution_from` takes.
EXECUTION = _columns("executions", _EXECUTION_NAMES)
_IN_EXECUTION = _places(_EXECUTION_NAMES)
_TIME_PLACES = tuple(_IN_EXECUTION[name] for name in _TIMES)

# What `job_from` takes: the columns of the job, and those of its current execution.
JOB = f"{_columns('jobs', _JOB_NAMES)}, {EXECUTION}"
JOB_WITHOUT_SPEC = JOB.replace("jobs.spec", "NULL", 1)
_IN_JOB = _places(_JOB_NAMES)

# What `task_from` takes.
TASK = _columns("tasks", _TASK_NAMES)
_IN_TASK = _places(_TASK_NAMES)

# Made once: json.dumps makes one for each call that wants something special.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Looked up: to call an enum takes five times as long, and a page has hundreds.
_STATES = {int(state): state for state in State}
_REASONS = {int(reason): reason for reason in Reason}


def execution_from(row: Row) -> Execution:
    at = _IN_EXECUTION
    state = _STATES[row[at["state"]]]
    return Execution(
        id=row[at["execution_id"]],
        job_id=row[at["job_id"]],
        task_id=row[at["task_id"]],
        state=state,
        times=_times_from(row),
        state_time=time_from(row[at["state_time"]]),
        run=row[at["run"]],
        attempt=row[at["attempt"]],
        outcome=_outcome_from(row, at),
        stop=_stop_from(row, at),
        host=row[at["host"]],
        container_id=row[at["container_id"]],
        image_digest=row[at["image_digest"]],
        handle=row[at["handle"]],
        starting=bool(row[at["starting"]]),
        # Of one that went back to the queue the row has what its log holds so far. That may still grow.
        logs=_logs_from(row[at["logs"]]) if state.final else (),
        expire_time=_time_or_none(row[at["expire_time"]]),
    )


def job_from(row: Row) -> Job:
    at = _IN_JOB
    spec = row[at["spec"]]
    return Job(
        id=row[at["job_id"]],
        task_id=row[at["task_id"]],
        spec=None if spec is None else spec_from(spec),
        execution=execution_from(row[len(at) :]),
        create_time=time_from(row[at["create_time"]]),
        state=_STATES[row[at["state"]]],
        executions=row[at["executions"]],
        request_id=row[at["request_id"]],
        caller_address=row[at["caller_address"]],
        outcome=_outcome_from(row, at),
        end_time=_time_or_none(row[at["end_time"]]),
        stop_time=_time_or_none(row[at["stop_time"]]),
    )


def task_from(row: Row) -> Task:
    at = _IN_TASK
    return Task(
        id=row[at["task_id"]],
        create_time=time_from(row[at["create_time"]]),
        last_enqueue_time=time_from(row[at["last_enqueue_time"]]),
        jobs=row[at["jobs"]],
        open_jobs=row[at["open_jobs"]],
    )


def spec_bytes(spec: JobSpec) -> bytes:
    """JSON, the same bytes for the same spec. What is not set is left out, so that a field of a later release changes
    none of them."""
    given = {
        "image": spec.image,
        "command": spec.command,
        "args": list(spec.args),
        "envs": dict(spec.envs),
        "entrypoint": list(spec.entrypoint),
        "working_dir": spec.working_dir,
        "user": spec.user,
        "pull_policy": spec.pull_policy,
        "limits": _limits_given(spec.limits),
        "network": spec.network,
        "read_only_root": spec.read_only_root,
        "stop_signal": spec.stop_signal,
        "priority": spec.priority,
        "labels": dict(spec.labels),
    }
    optional = {
        "timeout_us": None if spec.timeout is None else microseconds_of(spec.timeout),
        "stop_grace_us": None if spec.stop_grace is None else microseconds_of(spec.stop_grace),
        "metadata": spec.metadata,
        "start_in_us": None if spec.start_in is None else microseconds_of(spec.start_in),
        "start_at_us": microseconds_or_none(spec.start_at),
        "expire_time_us": microseconds_or_none(spec.expire_time),
    }
    kept = {key: value for key, value in given.items() if value} | {
        key: value for key, value in optional.items() if value is not None
    }
    return _encode(kept).encode()


def spec_from(data: bytes) -> JobSpec:
    kept: dict[str, Any] = json.loads(data)
    return JobSpec(
        image=kept.get("image", ""),
        command=kept.get("command", ""),
        args=tuple(kept.get("args", ())),
        envs=kept.get("envs", {}),
        entrypoint=tuple(kept.get("entrypoint", ())),
        working_dir=kept.get("working_dir", ""),
        user=kept.get("user", ""),
        timeout=_duration_from(kept.get("timeout_us")),
        pull_policy=PullPolicy(kept.get("pull_policy", 0)),
        limits=Limits(**kept.get("limits", {})),
        network=kept.get("network", ""),
        read_only_root=kept.get("read_only_root", False),
        stop_signal=kept.get("stop_signal", ""),
        stop_grace=_duration_from(kept.get("stop_grace_us")),
        priority=kept.get("priority", 0),
        labels=kept.get("labels", {}),
        metadata=kept.get("metadata"),
        start_in=_duration_from(kept.get("start_in_us")),
        start_at=_time_or_none(kept.get("start_at_us")),
        expire_time=_time_or_none(kept.get("expire_time_us")),
    )


def request_digest(task_id: str, spec: bytes) -> bytes:
    """What tells a repeated request from another one that came with the same request_id."""
    return hashlib.sha256(json.dumps(task_id).encode() + spec).digest()


def logs_text(logs: Sequence[LogTotals]) -> str:
    return json.dumps(
        [[totals.source, totals.bytes, totals.missing_bytes, totals.crc32] for totals in logs], separators=(",", ":")
    )


# The first times of an execution, and those of its job, are often one and the same.
@lru_cache(1024)
def time_from(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def microseconds_since_epoch(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def microseconds_or_none(time: datetime | None) -> int | None:
    return None if time is None else microseconds_since_epoch(time)


def microseconds_of(duration: timedelta) -> int:
    return duration // _MICROSECOND


def _logs_from(text: str) -> tuple[LogTotals, ...]:
    if text == "[]":
        return ()
    return tuple(
        LogTotals(Source(source), count, missing_bytes, crc32)
        for source, count, missing_bytes, crc32 in json.loads(text)
    )


def _times_from(row: Row) -> Times:
    times = [None if row[place] is None else time_from(row[place]) for place in _TIME_PLACES]
    return Times(*times)  # type: ignore[arg-type]  # the columns of the first two are NOT NULL


def _outcome_from(row: Row, at: Mapping[str, int]) -> Outcome | None:
    """None until it is final."""
    reason = row[at["reason"]]
    if reason is None:
        return None
    out_of_memory = bool(row[at["out_of_memory"]])
    return Outcome(_REASONS[reason], row[at["detail"]], row[at["exit_code"]], out_of_memory, row[at["stop_signal"]])


def _stop_from(row: Row, at: Mapping[str, int]) -> Stop | None:
    """None unless it was told to stop."""
    cause = row[at["stop_cause"]]
    if cause is None:
        return None
    grace = timedelta(microseconds=row[at["stop_grace"]])
    return Stop(StopCause(cause), time_from(row[at["stop_time"]]), grace, row[at["stop_note"]])


def _limits_given(limits: Limits) -> Mapping[str, int | float]:
    each = {"memory_bytes": limits.memory_bytes, "cpus": limits.cpus, "pids": limits.pids}
    return {key: value for key, value in each.items() if value}


def _time_or_none(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else time_from(microseconds)


def _duration_from(microseconds: int | None) -> timedelta | None:
    return None if microseconds is None else timedelta(microseconds=microseconds)
