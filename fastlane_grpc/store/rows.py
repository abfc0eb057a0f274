"""How jobs and executions are written in rows, and read back the same: one function for each noun, each way."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fastlane_grpc.model import (
    UNREAD,
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

# What `execution_from` takes, in its order.
EXECUTION = """
    executions.execution_id, executions.job_id, executions.task_id, executions.state, state_time, run, attempt,
    host, container_id, image_digest, capture, engine_life, starting, logs,
    stop_cause, stop_time, stop_grace, stop_note,
    reason, detail, exit_code, out_of_memory, stop_signal,
    executions.create_time, due_time, claim_time, pull_time, container_time, start_time, first_byte_time, exit_time, seal_time, end_time,
    prune_time
"""

# What `job_from` takes, in its order; the columns of its newest execution follow.
_JOB = f"""
    jobs.create_time, request_id, caller_address,
    (SELECT count(*) FROM executions AS each_one WHERE each_one.job_id = jobs.job_id),
    {EXECUTION}
"""
JOB = f"jobs.job_id, jobs.task_id, spec, {_JOB}"
JOB_WITHOUT_SPEC = f"jobs.job_id, jobs.task_id, NULL, {_JOB}"

# What `task_from` takes, in its order.
TASK = "tasks.task_id, tasks.create_time, last_enqueue_time, jobs, open_jobs"

# Made once: json.dumps makes one for each call that wants something special.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def execution_from(row: Row) -> Execution:
    execution_id, job_id, task_id, state, state_time, run, attempt = row[:7]
    host, container_id, image_digest, capture, engine_life, starting, logs = row[7:14]
    return Execution(
        id=execution_id,
        job_id=job_id,
        task_id=task_id,
        state=State(state),
        times=Times(*[None if microseconds is None else time_from(microseconds) for microseconds in row[23:]]),  # type: ignore[arg-type]
        state_time=time_from(state_time),
        run=run,
        attempt=attempt,
        outcome=None if row[18] is None else _outcome_from(row[18:23]),
        stop=None if row[14] is None else _stop_from(row[14:18]),
        host=host,
        container_id=container_id,
        image_digest=image_digest,
        capture=capture,
        engine_life=engine_life,
        starting=bool(starting),
        logs=_logs_from(logs),
    )


def job_from(row: Row) -> Job:
    job_id, task_id, spec, create_time, request_id, caller_address, executions = row[:7]
    return Job(
        id=job_id,
        task_id=task_id,
        spec=UNREAD if spec is None else spec_from(spec),
        execution=execution_from(row[7:]),
        create_time=time_from(create_time),
        executions=executions,
        request_id=request_id,
        caller_address=caller_address,
    )


def task_from(row: Row) -> Task:
    task_id, create_time, last_enqueue_time, jobs, open_jobs = row
    return Task(task_id, time_from(create_time), time_from(last_enqueue_time), jobs, open_jobs)


def spec_bytes(spec: JobSpec) -> bytes:
    """JSON, the same bytes for the same spec. What is not set is left out, so that a field of a later release changes none of them."""
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
    }
    kept = {key: value for key, value in given.items() if value} | {key: value for key, value in optional.items() if value is not None}
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
    )


def request_digest(task_id: str, spec: bytes) -> bytes:
    """What tells a repeated request from another one that came with the same request_id."""
    return hashlib.sha256(json.dumps(task_id).encode() + spec).digest()


def logs_text(logs: Sequence[LogTotals]) -> str:
    return json.dumps([[totals.source, totals.bytes, totals.missing_bytes, totals.crc32] for totals in logs], separators=(",", ":"))


def time_from(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def microseconds_since_epoch(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def microseconds_of(duration: timedelta) -> int:
    return duration // _MICROSECOND


def _logs_from(text: str) -> tuple[LogTotals, ...]:
    if text == "[]":
        return ()
    return tuple(LogTotals(Source(source), count, missing_bytes, crc32) for source, count, missing_bytes, crc32 in json.loads(text))


def _outcome_from(row: Row) -> Outcome:
    reason, detail, exit_code, out_of_memory, stop_signal = row
    return Outcome(Reason(reason), detail, exit_code, bool(out_of_memory), stop_signal)


def _stop_from(row: Row) -> Stop:
    cause, time, grace, note = row
    return Stop(StopCause(cause), time_from(time), timedelta(microseconds=grace), note)


def _limits_given(limits: Limits) -> Mapping[str, int | float]:
    each = {"memory_bytes": limits.memory_bytes, "cpus": limits.cpus, "pids": limits.pids}
    return {key: value for key, value in each.items() if value}


def _duration_from(microseconds: int | None) -> timedelta | None:
    return None if microseconds is None else timedelta(microseconds=microseconds)
