"""Conversion of jobs and executions to rows and back: one function for each noun and direction."""

import hashlib
import json
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any

from fastlane_grpc.model import (
    DEFAULT_LIMITS,
    ArrayPosition,
    CatchUp,
    Conflict,
    Cron,
    Device,
    Dns,
    Execution,
    Gpus,
    Hold,
    Input,
    Jitter,
    Job,
    JobSpec,
    Limits,
    LogTotals,
    Mail,
    MemoryGrowth,
    Notification,
    NotificationEvent,
    Outcome,
    Outputs,
    OutputsFault,
    Overlap,
    PullPolicy,
    Reason,
    Retry,
    RetryCause,
    ScheduleState,
    Source,
    State,
    Stdin,
    Stop,
    StopCause,
    Task,
    TaskLimits,
    Times,
    Tmpfs,
    Ulimit,
    Unique,
    Usage,
    Volume,
    Webhook,
)
from fastlane_grpc.store.database import Connection

Row = Sequence[Any]

# The columns that each noun is read from. The SQL that names them and the index by which they are read come from one
# list, so that a column can be added anywhere in it.
_OUTCOME = ("reason", "detail", "exit_code", "out_of_memory", "stop_signal")
_EXECUTION_NAMES = (
    *("execution_id", "job_id", "task_id", "state", "state_time", "run", "attempt"),
    *("host", "container_id", "image_digest", "handle", "starting", "logs", "usage", "outputs"),
    *("stop_cause", "stop_time", "stop_grace", "stop_note"),
    *_OUTCOME,
    *Times._fields,
    *("expire_time", "tick_time", "tries", "memory_bytes", "held"),
)
_JOB_NAMES = (
    *("job_id", "task_id", "spec", "create_time", "state", "executions", "request_id", "caller_address"),
    *_OUTCOME,
    *("end_time", "stop_time", "runs", "schedule", "tick_time", "revision"),
    *("array_index", "array_size", "caller", "stop_caller"),
)
_TASK_NAMES = ("task_id", "create_time", "last_enqueue_time", "jobs", "open_jobs")
_LIMIT_NAMES = ("max_running", "paused", "max_starts", "rate_window", "notifications")


def _columns(table: str, names: Sequence[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in names)


def _row_class(noun: str, names: Sequence[str]) -> Any:
    """Return the class of rows with these columns. To read them by name costs no more than by number."""
    return namedtuple(noun, names)


# What `execution_from` takes.
EXECUTION = _columns("executions", _EXECUTION_NAMES)
_ExecutionRow = _row_class("ExecutionRow", _EXECUTION_NAMES)
_FIRST_TIME = _EXECUTION_NAMES.index(Times._fields[0])
_TIMES_IN_EXECUTION = slice(_FIRST_TIME, _FIRST_TIME + len(Times._fields))

# What `job_from` takes: the columns of the job, and those of its current execution.
JOB = f"{_columns('jobs', _JOB_NAMES)}, {EXECUTION}"
JOB_WITHOUT_SPEC = JOB.replace("jobs.spec", "NULL", 1)
# For `rows_at_once`.
JOB_AS_TEXT = JOB.replace("jobs.spec", "CAST(jobs.spec AS TEXT)", 1)
_JobRow = _row_class("JobRow", _JOB_NAMES)
# The columns in a snapshot, in the order of JOB.
_SNAPSHOT_NAMES = (*_JOB_NAMES, *(f"execution.{name}" for name in _EXECUTION_NAMES))
_LABELS = "labels"

# What `task_from` takes, and the tables that it is read from.
TASK = f"""
    {_columns("tasks", _TASK_NAMES)}, {_columns("task_limits", _LIMIT_NAMES)}, coalesce(task_limits.running, (
        SELECT count(*) FROM executions AS running INDEXED BY executions_task_state
        WHERE running.task_id = tasks.task_id
            AND running.state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING})
    ))
"""
TASKS = "tasks LEFT JOIN task_limits USING (task_id)"
_TaskRow = _row_class("TaskRow", (*_TASK_NAMES, *_LIMIT_NAMES, "running"))

# Made once: json.dumps makes one for each call that wants something special.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Looked up: to call an enum takes five times as long, and a page has hundreds.
_STATES = {int(state): state for state in State}
_REASONS = {int(reason): reason for reason in Reason}
_HOLDS = {int(hold): hold for hold in Hold}


def rows_at_once(
    db: Connection, columns: str, source: str, values: Mapping[str, object], *, before: str = ""
) -> Sequence[Row]:
    """Return the rows of a query, which SQLite passes as one text: `SELECT columns source`, after the clause `before`.

    SQLite gives up the interpreter for each row that it passes, and to get it back from other threads costs more than
    the row. No column may be a BLOB."""
    [(text,)] = db.execute(f"{before} SELECT json_group_array(json_array({columns})) {source}", values).fetchall()
    rows: Sequence[Row] = json.loads(text)
    return rows


def execution_from(row: Row) -> Execution:
    its = _ExecutionRow._make(row)
    state = _STATES[its.state]
    return Execution(
        id=its.execution_id,
        job_id=its.job_id,
        task_id=its.task_id,
        state=state,
        times=_times_from(row[_TIMES_IN_EXECUTION]),
        state_time=time_from(its.state_time),
        run=its.run,
        attempt=its.attempt,
        outcome=None if its.reason is None else _outcome_from(its),
        stop=None if its.stop_cause is None else _stop_from(its),
        host=its.host,
        container_id=its.container_id,
        image_digest=its.image_digest,
        handle=its.handle,
        starting=its.starting == 1,
        # Of one that went back to the queue the row has what its log holds so far. That may still grow.
        logs=_logs_from(its.logs) if state.final else (),
        usage=usage_from(its.usage),
        outputs=outputs_from(its.outputs),
        expire_time=_time_or_none(its.expire_time),
        tick_time=_time_or_none(its.tick_time),
        tries=its.tries,
        memory_bytes=its.memory_bytes,
        hold=_HOLDS[its.held],
    )


def job_from(row: Row) -> Job:
    its = _JobRow._make(row[: len(_JOB_NAMES)])
    return Job(
        id=its.job_id,
        task_id=its.task_id,
        spec=None if its.spec is None else spec_from(its.spec),
        execution=execution_from(row[len(_JOB_NAMES) :]),
        create_time=time_from(its.create_time),
        state=_STATES[its.state],
        executions=its.executions,
        request_id=its.request_id,
        caller_address=its.caller_address,
        outcome=None if its.reason is None else _outcome_from(its),
        end_time=_time_or_none(its.end_time),
        stop_time=_time_or_none(its.stop_time),
        runs=its.runs,
        schedule=schedule_from(its.schedule),
        tick_time=_time_or_none(its.tick_time),
        revision=its.revision,
        array=array_from(its.array_index, its.array_size),
        # A snapshot of an earlier release has none.
        caller=its.caller or "",
        stop_caller=its.stop_caller or "",
    )


def array_from(index: int | None, size: int | None) -> ArrayPosition | None:
    return None if index is None or size is None else ArrayPosition(index, size)


def task_from(row: Row) -> Task:
    its = _TaskRow._make(row)
    has_jobs = its.jobs > 0
    return Task(
        id=its.task_id,
        create_time=time_from(its.create_time) if has_jobs else None,
        last_enqueue_time=time_from(its.last_enqueue_time) if has_jobs else None,
        jobs=its.jobs,
        open_jobs=its.open_jobs,
        running=its.running,
        limits=TaskLimits(
            its.max_running or 0,
            bool(its.paused),
            its.max_starts or 0,
            _duration_from(its.rate_window or None),
            notifications_from(its.notifications),
        ),
    )


def unwatched_limit_of(spec: JobSpec) -> int | None:
    """Return the time in microseconds after which the job is stopped if nobody watches it; None: it is not."""
    return None if spec.stop_when_unwatched is None else microseconds_of(spec.stop_when_unwatched)


def spec_bytes(spec: JobSpec) -> bytes:
    """JSON, the same bytes for the same spec. What is not set is left out, so that a field of a later release changes
    none of them."""
    kept: dict[str, object] = {name: value for name, value in zip(_PLAIN_NAMES, _plain_of(spec), strict=True) if value}
    for name, values, kind in _COLLECTIONS:
        if given := values(spec):
            kept[name] = kind(given)
    if spec.limits is not DEFAULT_LIMITS and (limits := _limits_given(spec.limits)):
        kept["limits"] = limits
    if _optional_of(spec) == _NONE_SET:
        return _encode(kept).encode()
    optional = {
        "timeout_us": None if spec.timeout is None else microseconds_of(spec.timeout),
        "stop_grace_us": None if spec.stop_grace is None else microseconds_of(spec.stop_grace),
        "metadata": spec.metadata,
        "start_in_us": None if spec.start_in is None else microseconds_of(spec.start_in),
        "start_at_us": microseconds_or_none(spec.start_at),
        "expire_time_us": microseconds_or_none(spec.expire_time),
        "cron": None if spec.cron is None else _cron_given(spec.cron),
        "retry": None if spec.retry is None else _retry_given(spec.retry),
        "unique": None if spec.unique is None else _without_defaults({**asdict(spec.unique)}),
        "notifications": [_notification_given(each) for each in spec.notifications] or None,
        "stop_when_unwatched_us": unwatched_limit_of(spec),
        "tmpfs": [_without_defaults(asdict(each)) for each in spec.tmpfs] or None,
        "volumes": [_without_defaults(asdict(each)) for each in spec.volumes] or None,
        "devices": [_without_defaults(asdict(each)) for each in spec.devices] or None,
        "gpus": None if spec.gpus is None else _without_defaults(asdict(replace(spec.gpus, ids=[*spec.gpus.ids]))),
        "inputs": [_without_defaults(asdict(replace(each, content=None))) for each in spec.inputs] or None,
        "stdin": None if spec.stdin is None else {"sha256": spec.stdin.sha256, "size_bytes": spec.stdin.size_bytes},
        # A soft limit of zero is a limit.
        "ulimits": [[each.name, each.soft, each.hard] for each in spec.ulimits] or None,
        "dns": None if spec.dns is None else _without_defaults({k: list(v) for k, v in asdict(spec.dns).items()}),
    }
    for name, value in optional.items():
        if value is not None:
            kept[name] = value
    return _encode(kept).encode()


# Fields of a spec that are kept unless they are zero or empty.
_PLAIN_NAMES = (
    *("image", "command", "working_dir", "user", "pull_policy", "network", "read_only_root", "stop_signal", "priority"),
    *("history", "registry_credential"),
)
_plain_of = attrgetter(*_PLAIN_NAMES)
# Fields that are kept unless they are None or empty; most specs have none of them.
_optional_of = attrgetter(
    *("timeout", "stop_grace", "metadata", "start_in", "start_at", "expire_time", "cron", "retry", "unique"),
    *(
        "notifications",
        "stop_when_unwatched",
        "tmpfs",
        "volumes",
        "ulimits",
        "dns",
        "inputs",
        "stdin",
        "devices",
        "gpus",
    ),
)
_NONE_SET = _optional_of(JobSpec(""))
_COLLECTIONS: Sequence[tuple[str, Callable[[JobSpec], Any], type]] = tuple(
    (name, attrgetter(name), kind)
    for name, kind in (
        *(("args", list), ("envs", dict), ("entrypoint", list), ("labels", dict)),
        *(("extra_hosts", dict), ("cap_drop", list), ("outputs", list), ("secret_envs", dict)),
    )
)


def spec_from(data: bytes | str) -> JobSpec:
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
        cron=_cron_from(kept.get("cron")),
        expire_time=_time_or_none(kept.get("expire_time_us")),
        retry=_retry_from(kept.get("retry")),
        unique=_unique_from(kept.get("unique")),
        notifications=tuple(map(_notification_from, kept.get("notifications", ()))),
        history=kept.get("history", 0),
        stop_when_unwatched=_duration_from(kept.get("stop_when_unwatched_us")),
        extra_hosts=kept.get("extra_hosts", {}),
        tmpfs=tuple(Tmpfs(**{"path": "", **each}) for each in kept.get("tmpfs", ())),
        ulimits=tuple(Ulimit(*each) for each in kept.get("ulimits", ())),
        dns=None if "dns" not in kept else Dns(**{name: tuple(each) for name, each in kept["dns"].items()}),
        cap_drop=tuple(kept.get("cap_drop", ())),
        volumes=tuple(Volume(**{"name": "", "path": "", **each}) for each in kept.get("volumes", ())),
        devices=tuple(Device(**{"path": "", **each}) for each in kept.get("devices", ())),
        gpus=None if "gpus" not in kept else _gpus_from(kept["gpus"]),
        outputs=tuple(kept.get("outputs", ())),
        inputs=tuple(Input(**{"path": "", "sha256": "", "size_bytes": 0, **each}) for each in kept.get("inputs", ())),
        stdin=None if "stdin" not in kept else Stdin(**kept["stdin"]),
        registry_credential=kept.get("registry_credential", ""),
        secret_envs=kept.get("secret_envs", {}),
    )


def _gpus_from(kept: Mapping[str, Any]) -> Gpus:
    return Gpus(kept.get("count", 0), tuple(kept.get("ids", ())))


def notifications_text(notifications: Sequence[Notification]) -> str:
    """Return notifications as they are stored outside a spec; empty: there are none."""
    return _encode([_notification_given(each) for each in notifications]) if notifications else ""


def notifications_from(text: str | None) -> tuple[Notification, ...]:
    return tuple(map(_notification_from, json.loads(text))) if text else ()


def snapshot_text(row: Row, labels: Mapping[str, str], **changed: object) -> str:
    """Return a job and one of its executions as they are now, and the job's labels. `row`: what `job_from` takes;
    `changed`: columns of the job that had another value when the execution ended.

    By the names of the columns, so that a later release reads it."""
    kept = dict(zip(_SNAPSHOT_NAMES, row, strict=True)) | changed
    return _encode({**{name: value for name, value in kept.items() if value is not None}, _LABELS: dict(labels)})


def snapshot_from(text: str) -> tuple[Job, Mapping[str, str]]:
    """Return the job and the labels of a snapshot."""
    kept: dict[str, Any] = json.loads(text)
    return job_from([kept.get(name) for name in _SNAPSHOT_NAMES]), kept[_LABELS]


def schedule_text(schedule: ScheduleState | None) -> str | None:
    if schedule is None:
        return None
    return json.dumps(
        _without_defaults(
            {
                "handled": microseconds_since_epoch(schedule.handled_time),
                "pending": microseconds_or_none(schedule.pending_time),
                "paused": schedule.paused,
                "over": schedule.over,
                "runs": schedule.runs,
                "skipped": schedule.skipped,
                "last_skipped": microseconds_or_none(schedule.last_skipped_time),
                "last_skipped_detail": schedule.last_skipped_detail,
            }
        ),
        separators=(",", ":"),
    )


def schedule_from(text: str | None) -> ScheduleState | None:
    if text is None:
        return None
    kept: dict[str, Any] = json.loads(text)
    return ScheduleState(
        handled_time=time_from(kept.get("handled", 0)),
        pending_time=_time_or_none(kept.get("pending")),
        paused=kept.get("paused", False),
        over=kept.get("over", False),
        runs=kept.get("runs", 0),
        skipped=kept.get("skipped", 0),
        last_skipped_time=_time_or_none(kept.get("last_skipped")),
        last_skipped_detail=kept.get("last_skipped_detail", ""),
    )


def request_digest(task_id: str, spec: bytes) -> bytes:
    """Return a digest that tells a repeated request from a different one with the same request_id."""
    return hashlib.sha256(json.dumps(task_id).encode() + spec).digest()


def logs_text(logs: Sequence[LogTotals]) -> str:
    return json.dumps(
        [[totals.source, totals.bytes, totals.missing_bytes, totals.crc32] for totals in logs], separators=(",", ":")
    )


def usage_text(usage: Usage | None) -> str:
    """Return a usage as it is stored; empty: none."""
    if usage is None:
        return ""
    cpu_us = _duration_or_none(usage.cpu_time)
    return _encode([cpu_us, usage.peak_memory_bytes, usage.read_bytes, usage.written_bytes])


def outputs_text(outputs: Outputs | None) -> str:
    """Return outputs as they are stored; empty: none."""
    if outputs is None:
        return ""
    archive = [outputs.size_bytes, outputs.sha256, outputs.entries]
    return _encode([*archive, list(outputs.missing), int(outputs.fault), outputs.detail])


def outputs_from(text: str | None) -> Outputs | None:
    if not text:
        return None
    size_bytes, sha256, entries, missing, fault, detail = json.loads(text)
    return Outputs(size_bytes, sha256, entries, tuple(missing), OutputsFault(fault), detail)


def usage_from(text: str | None) -> Usage | None:
    if not text:
        return None
    cpu_us, *rest = json.loads(text)
    return Usage(_duration_from(cpu_us), *rest)


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
    times = [None if time is None else time_from(time) for time in row]
    return Times(*times)  # type: ignore[arg-type]  # the columns of the first two are NOT NULL


def _outcome_from(row: Any) -> Outcome:
    """Return the outcome of a row that has one."""
    return Outcome(_REASONS[row.reason], row.detail, row.exit_code, bool(row.out_of_memory), row.stop_signal)


def _stop_from(row: Any) -> Stop:
    """Return the stop of a row that has one."""
    grace = timedelta(microseconds=row.stop_grace)
    return Stop(StopCause(row.stop_cause), time_from(row.stop_time), grace, row.stop_note)


def _limits_given(limits: Limits) -> Mapping[str, int | float | str]:
    return {key: value for key, value in asdict(limits).items() if value}


def _cron_given(cron: Cron) -> Mapping[str, Any]:
    return _without_defaults(
        {
            "expression": cron.expression,
            "time_zone": cron.time_zone,
            "overlap": cron.overlap,
            "catch_up": cron.catch_up,
            "paused": cron.paused,
            "catch_up_window_us": _duration_or_none(cron.catch_up_window),
            "jitter_us": _duration_or_none(cron.jitter),
            "begin_us": microseconds_or_none(cron.begin_time),
            "end_us": microseconds_or_none(cron.end_time),
            "max_runs": cron.max_runs,
        }
    )


def _cron_from(kept: Mapping[str, Any] | None) -> Cron | None:
    if kept is None:
        return None
    return Cron(
        expression=kept.get("expression", ""),
        time_zone=kept.get("time_zone", ""),
        overlap=Overlap(kept.get("overlap", 0)),
        catch_up=CatchUp(kept.get("catch_up", 0)),
        paused=kept.get("paused", False),
        catch_up_window=_duration_from(kept.get("catch_up_window_us")),
        jitter=_duration_from(kept.get("jitter_us")),
        begin_time=_time_or_none(kept.get("begin_us")),
        end_time=_time_or_none(kept.get("end_us")),
        max_runs=kept.get("max_runs", 0),
    )


def _retry_given(retry: Retry) -> Mapping[str, Any]:
    return _without_defaults(
        {
            "max_retries": retry.max_retries,
            "initial_backoff_us": _duration_or_none(retry.initial_backoff),
            "factor": retry.factor,
            "max_backoff_us": _duration_or_none(retry.max_backoff),
            "jitter": retry.jitter,
            "causes": list(retry.causes),
            "exit_codes": list(retry.exit_codes),
            "except_exit_codes": list(retry.except_exit_codes),
            "memory_growth": None if retry.memory_growth is None else asdict(retry.memory_growth),
        }
    )


def _retry_from(kept: Mapping[str, Any] | None) -> Retry | None:
    if kept is None:
        return None
    growth = kept.get("memory_growth")
    return Retry(
        max_retries=kept.get("max_retries", 0),
        initial_backoff=_duration_from(kept.get("initial_backoff_us")),
        factor=kept.get("factor", 0.0),
        max_backoff=_duration_from(kept.get("max_backoff_us")),
        jitter=Jitter(kept.get("jitter", 0)),
        causes=tuple(map(RetryCause, kept.get("causes", ()))),
        exit_codes=tuple(kept.get("exit_codes", ())),
        except_exit_codes=tuple(kept.get("except_exit_codes", ())),
        memory_growth=None if growth is None else MemoryGrowth(**growth),
    )


def _notification_given(notification: Notification) -> Mapping[str, Any]:
    target = notification.target
    given: dict[str, Any] = {"states": list(notification.states), "event": notification.event}
    if isinstance(target, Webhook):
        webhook = {
            "url": target.url,
            "headers": dict(target.headers),
            "max_retries": target.max_retries,
            "secret": target.secret,
            "secret_name": target.secret_name,
            "timeout_us": _duration_or_none(target.timeout),
        }
        return _without_defaults(given) | {"webhook": _without_defaults(webhook)}
    return _without_defaults(given) | {"mail": _without_defaults({"to": list(target.to), "subject": target.subject})}


def _notification_from(kept: Mapping[str, Any]) -> Notification:
    target: Webhook | Mail
    if (webhook := kept.get("webhook")) is not None:
        target = Webhook(
            url=webhook.get("url", ""),
            headers=webhook.get("headers", {}),
            max_retries=webhook.get("max_retries", 0),
            secret=webhook.get("secret", ""),
            secret_name=webhook.get("secret_name", ""),
            timeout=_duration_from(webhook.get("timeout_us")),
        )
    else:
        target = Mail(tuple(kept["mail"].get("to", ())), kept["mail"].get("subject", ""))
    event = NotificationEvent(kept.get("event", 0))
    return Notification(target, tuple(map(State, kept.get("states", ()))), event)


def _unique_from(kept: Mapping[str, Any] | None) -> Unique | None:
    return None if kept is None else Unique(kept.get("key", ""), Conflict(kept.get("conflict", 0)))


def _without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    # Zero is a value where None stands for the default.
    return {
        name: value
        for name, value in values.items()
        if value is not None and (value or (name.endswith("_us") and value is not False))
    }


def _duration_or_none(duration: timedelta | None) -> int | None:
    return None if duration is None else microseconds_of(duration)


def _time_or_none(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else time_from(microseconds)


def _duration_from(microseconds: int | None) -> timedelta | None:
    return None if microseconds is None else timedelta(microseconds=microseconds)
