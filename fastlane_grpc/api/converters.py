"""Conversion between values of the model and messages of the contract: one pair of functions per noun."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import cast

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from fastlane_grpc.api.log_stream import LogEnded, LogRequest, LogSuspended, StateChanged
from fastlane_grpc.api.pages import PageRequest, TaskQuery
from fastlane_grpc.api.service import EnqueueRequest, PruneRequest
from fastlane_grpc.errors import InvalidRequest, Violation
from fastlane_grpc.logs import StartPoint
from fastlane_grpc.model import (
    Execution,
    HostReport,
    Job,
    JobSpec,
    Limits,
    LogTotals,
    Outcome,
    PullPolicy,
    Source,
    State,
    Task,
    Times,
    Waiting,
    exit_status,
)
from fastlane_grpc.record import Gap
from fastlane_grpc.retention import Pruned
from fastlane_grpc.store import ExecutionQuery, JobQuery
from fastlane_grpc.text.redaction import SecretNames, mask_secrets
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Returns what an execution waits for, which the service knows.
WaitingOf = Callable[[Execution], Waiting | None]

# Enums of protobuf are open: a message may hold any number.
_SOURCES = frozenset(map(int, Source))
_PULL_POLICIES = frozenset(map(int, PullPolicy))
_STATES = frozenset(map(int, State))

# By their names in the model; empty: not known yet.
CAPTURES = {
    "": pb.EngineHost.CAPTURE_UNSPECIFIED,
    "recorder": pb.EngineHost.CAPTURE_RECORDER,
    "attach": pb.EngineHost.CAPTURE_ATTACH,
}

# The times of an execution, which have the same names in the contract and in the model.
_POINTS = tuple(each.name for each in fields(Times))
_times_of = attrgetter(*_POINTS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SPEC_BYTES = 2 << 20
# Parsers accept 100 levels in all, and each level of metadata takes three of them.
_MAX_METADATA_DEPTH = 16
# The longest duration of protobuf.
_MAX_SECONDS = 315_576_000_000
# Timestamps of protobuf are of the years 1 to 9999.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799

# ------------------------------------------------------------------------------------------------------------- requests


def read_enqueue(request: pb.EnqueueJobRequest, caller_address: str) -> tuple[EnqueueRequest, list[Violation]]:
    """Return the request and the violations: values that a message can hold and the model cannot."""
    if (size := request.spec.ByteSize()) > _MAX_SPEC_BYTES:
        # Checked before the spec is copied. Responses hold the spec too, and none may be larger than 3 MiB.
        raise InvalidRequest([Violation("spec", f"takes {size} bytes; at most {_MAX_SPEC_BYTES} are allowed")])
    violations: list[Violation] = []
    spec = _read_spec(request.spec, violations)
    return EnqueueRequest(request.task_id, spec, request.request_id, request.validate_only, caller_address), violations


def read_log_request(request: pb.StreamExecutionLogsRequest) -> tuple[LogRequest, list[Violation]]:
    violations: list[Violation] = []
    heartbeat = _read_optional_duration(request, "heartbeat_interval", "heartbeat_interval", violations)
    numbers = [int(source) for source in request.sources]
    for index, number in enumerate(numbers):
        if number not in _SOURCES and number != pb.SOURCE_UNSPECIFIED:
            violations.append(Violation(f"sources[{index}]", f"{number} is not a source"))
    read = LogRequest(
        request.execution_id,
        request.cursor,
        _read_start_point(request, violations),
        () if pb.SOURCE_UNSPECIFIED in numbers else [Source(number) for number in numbers if number in _SOURCES],
        request.follow if request.HasField("follow") else True,
        request.text,
    )
    return (read if heartbeat is None else _with_heartbeat(read, heartbeat)), violations


def read_grace(request: pb.StopJobRequest | pb.StopExecutionRequest) -> tuple[timedelta | None, list[Violation]]:
    violations: list[Violation] = []
    return _read_optional_duration(request, "grace", "grace", violations), violations


def read_job_query(request: pb.ListJobsRequest) -> tuple[PageRequest[JobQuery], list[Violation]]:
    violations: list[Violation] = []
    query = JobQuery(
        task_id=request.task_id,
        states=_read_states(request.states, violations),
        labels=_read_map(request.labels),
        since_time=_read_optional_time(request, "since_time", "since_time", violations),
        until_time=_read_optional_time(request, "until_time", "until_time", violations),
        id_prefix=request.id_prefix,
        with_spec=request.with_spec,
    )
    return PageRequest(query, request.page_size, request.page_token), violations


def read_execution_query(request: pb.ListExecutionsRequest) -> tuple[PageRequest[ExecutionQuery], list[Violation]]:
    violations: list[Violation] = []
    query = ExecutionQuery(
        request.job_id, request.task_id, _read_states(request.states, violations), request.host, request.id_prefix
    )
    return PageRequest(query, request.page_size, request.page_token), violations


def read_task_query(request: pb.ListTasksRequest) -> PageRequest[TaskQuery]:
    return PageRequest(TaskQuery(), request.page_size, request.page_token)


def _read_states(numbers: Iterable[int], violations: list[Violation]) -> tuple[State, ...]:
    """Return each state once and sorted: the order makes no other query."""
    states: set[State] = set()
    for index, number in enumerate(map(int, numbers)):
        if number in _STATES:
            states.add(State(number))
        else:
            violations.append(Violation(f"states[{index}]", f"{number} is not a state"))
    return tuple(sorted(states))


def _read_optional_time(
    message: pb.ListJobsRequest | pb.JobSpec, name: str, field: str, violations: list[Violation]
) -> datetime | None:
    """Return the time, rounded up to a microsecond."""
    if not cast(Message, message).HasField(name):
        return None
    ns = _read_time_ns(getattr(message, name), field, violations)
    return (
        None
        if ns is None
        else _EPOCH + timedelta(microseconds=min(-(-ns // 1_000), _LAST_SECOND * 1_000_000 + 999_999))
    )


def read_prune(request: pb.PruneRequest) -> tuple[PruneRequest, list[Violation]]:
    violations: list[Violation] = []
    older_than = _read_optional_duration(request, "older_than", "older_than", violations)
    if violations:
        # The field was set, though not to a duration: not another violation for a missing field.
        older_than = timedelta()
    return PruneRequest(older_than, request.logs_only, request.task_id, request.validate_only), violations


def _with_heartbeat(request: LogRequest, heartbeat: timedelta) -> LogRequest:
    return replace(request, heartbeat=heartbeat)


def _read_start_point(request: pb.StreamExecutionLogsRequest, violations: list[Violation]) -> StartPoint | None:
    tail_lines = request.tail_lines if request.HasField("tail_lines") else None
    since_ns = _read_time_ns(request.since_time, "since_time", violations) if request.HasField("since_time") else None
    return None if tail_lines is None and since_ns is None else StartPoint(tail_lines, since_ns)


def _read_spec(spec: pb.JobSpec, violations: list[Violation]) -> JobSpec:
    pull_policy = PullPolicy.UNSPECIFIED
    if int(spec.pull_policy) in _PULL_POLICIES:
        pull_policy = PullPolicy(spec.pull_policy)
    else:
        violations.append(Violation("spec.pull_policy", f"{spec.pull_policy} is not a policy"))
    return JobSpec(
        image=spec.image,
        command=spec.command,
        args=tuple(spec.args),
        envs=_read_map(spec.envs),
        entrypoint=tuple(spec.entrypoint),
        working_dir=spec.working_dir,
        user=spec.user,
        timeout=_read_optional_duration(spec, "timeout", "spec.timeout", violations),
        pull_policy=pull_policy,
        limits=Limits(spec.limits.memory_bytes, spec.limits.cpus, spec.limits.pids)
        if spec.HasField("limits")
        else Limits(),
        network=spec.network,
        read_only_root=spec.read_only_root,
        stop_signal=spec.stop_signal,
        stop_grace=_read_optional_duration(spec, "stop_grace", "spec.stop_grace", violations),
        priority=spec.priority,
        labels=_read_map(spec.labels),
        metadata=_read_metadata(spec, violations),
        start_in=_read_optional_duration(spec, "start_in", "spec.start_in", violations),
        start_at=_read_optional_time(spec, "start_at", "spec.start_at", violations),
        expire_time=_read_optional_time(spec, "expire_time", "spec.expire_time", violations),
    )


def _read_map(entries: Mapping[str, str]) -> dict[str, str]:
    # Not dict(entries), which looks each value up by its name.
    return {name: value for name, value in entries.items()} if entries else {}  # noqa: C416


def _read_optional_duration(
    message: pb.JobSpec | pb.StopJobRequest | pb.StopExecutionRequest | pb.StreamExecutionLogsRequest | pb.PruneRequest,
    name: str,
    field: str,
    violations: list[Violation],
) -> timedelta | None:
    if not cast(Message, message).HasField(name):
        return None
    duration: Duration = getattr(message, name)
    if (
        abs(duration.seconds) > _MAX_SECONDS
        or abs(duration.nanos) >= 1_000_000_000
        or duration.seconds * duration.nanos < 0
    ):
        violations.append(
            Violation(field, f"is not a duration: {duration.seconds} seconds and {duration.nanos} nanoseconds")
        )
        return None
    return duration.ToTimedelta()


def _read_time_ns(time: Timestamp, field: str, violations: list[Violation]) -> int | None:
    """Return nanoseconds since 1970."""
    if not _FIRST_SECOND <= time.seconds <= _LAST_SECOND or not 0 <= time.nanos < 1_000_000_000:
        violations.append(Violation(field, f"is not a time: {time.seconds} seconds and {time.nanos} nanoseconds"))
        return None
    return time.seconds * 1_000_000_000 + time.nanos


def _read_metadata(spec: pb.JobSpec, violations: list[Violation]) -> Mapping[str, object] | None:
    if not spec.HasField("metadata"):
        return None
    try:
        metadata: Mapping[str, object] = json_format.MessageToDict(spec.metadata)
    except (ValueError, json_format.Error, RecursionError):
        violations.append(
            Violation("spec.metadata", "cannot be kept as JSON: it holds a number that is infinite or not a number")
        )
        return None
    if _depth(metadata) > _MAX_METADATA_DEPTH:
        violations.append(Violation("spec.metadata", f"is nested more than {_MAX_METADATA_DEPTH} deep"))
        return None
    return metadata


def _depth(value: object) -> int:
    if isinstance(value, Mapping):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


# -------------------------------------------------------------------------------------------------------------- answers


# Nested messages are written in place. Built apart they would be copied, which doubles the time of a response.


def job(value: Job, waiting: WaitingOf, secret_names: SecretNames) -> pb.Job:
    """Return the message of a job, without the values of secret variables."""
    message = pb.Job(
        id=value.id,
        task_id=value.task_id,
        state=pb.State.ValueType(value.state),
        executions=value.executions,
        request_id=value.request_id,
        caller_address=value.caller_address,
    )
    if value.spec is not None:
        _write_spec(message.spec, value.spec.redacted(secret_names))
    _write_execution(message.execution, value.execution, waiting(value.execution))
    if value.outcome is not None:
        _write_outcome(message.outcome, value.outcome)
    _write_time(message.create_time, value.create_time)
    if value.end_time is not None:
        _write_time(message.end_time, value.end_time)
    return message


def task(value: Task) -> pb.TaskSummary:
    """Return the message of a task."""
    return pb.TaskSummary(
        id=value.id,
        create_time=timestamp(value.create_time),
        open_jobs=value.open_jobs,
        jobs=value.jobs,
        last_enqueue_time=timestamp(value.last_enqueue_time),
    )


def _write_spec(message: pb.JobSpec, value: JobSpec) -> None:
    message.image = value.image
    message.command = value.command
    message.envs.update(value.envs)
    message.args.extend(value.args)
    message.entrypoint.extend(value.entrypoint)
    message.working_dir = value.working_dir
    message.user = value.user
    if value.timeout is not None:
        message.timeout.FromTimedelta(value.timeout)
    message.pull_policy = pb.JobSpec.PullPolicy.ValueType(value.pull_policy)
    message.network = value.network
    message.read_only_root = value.read_only_root
    message.stop_signal = value.stop_signal
    if value.stop_grace is not None:
        message.stop_grace.FromTimedelta(value.stop_grace)
    message.priority = value.priority
    if value.labels:
        message.labels.update(value.labels)
    limits = value.limits
    if limits != Limits():
        message.limits.memory_bytes, message.limits.cpus, message.limits.pids = (
            limits.memory_bytes,
            limits.cpus,
            limits.pids,
        )
    if value.metadata is not None:
        json_format.ParseDict(dict(value.metadata), message.metadata)
        message.metadata.SetInParent()
    if value.start_in is not None:
        message.start_in.FromTimedelta(value.start_in)
    if value.start_at is not None:
        _write_time(message.start_at, value.start_at)
    if value.expire_time is not None:
        _write_time(message.expire_time, value.expire_time)


def execution(value: Execution, waits: Waiting | None) -> pb.Execution:
    """Return the message of an execution and what it waits for."""
    message = pb.Execution()
    _write_execution(message, value, waits)
    return message


def _write_execution(message: pb.Execution, value: Execution, waits: Waiting | None) -> None:
    message.id = value.id
    message.job_id = value.job_id
    message.task_id = value.task_id
    message.run = value.run
    message.attempt = value.attempt
    message.state = pb.State.ValueType(value.state)
    if waits is not None:
        _write_waiting(message.waiting, waits)
    if value.outcome is not None:
        _write_outcome(message.outcome, value.outcome)
    times = message.times
    for point, time in zip(_POINTS, _times_of(value.times), strict=True):
        if time is not None:
            _write_time(getattr(times, point), time)
    message.host = value.host
    message.container_id = value.container_id
    message.image_digest = value.image_digest
    if value.logs:
        message.logs.extend(map(totals, value.logs))


def waiting(value: Waiting) -> pb.Waiting:
    message = pb.Waiting()
    _write_waiting(message, value)
    return message


def _write_waiting(message: pb.Waiting, value: Waiting) -> None:
    message.reason = pb.WaitReason.ValueType(value.reason)
    message.detail = value.detail
    message.ahead = value.ahead
    _write_time(message.since_time, value.since_time)
    if value.due_time is not None:
        _write_time(message.due_time, value.due_time)


def outcome(value: Outcome) -> pb.Outcome:
    message = pb.Outcome()
    _write_outcome(message, value)
    return message


def _write_outcome(message: pb.Outcome, value: Outcome) -> None:
    message.reason = pb.Reason.ValueType(value.reason)
    message.detail = value.detail
    if value.exit_code is not None:
        message.exit_code = value.exit_code
    message.out_of_memory = value.out_of_memory
    message.stop_signal = value.stop_signal


def totals(value: LogTotals) -> pb.LogTotals:
    return pb.LogTotals(
        source=pb.Source.ValueType(value.source),
        bytes=value.bytes,
        missing_bytes=value.missing_bytes,
        crc32=value.crc32,
    )


def host(value: HostReport) -> pb.EngineHost:
    return pb.EngineHost(
        name=value.name,
        address=mask_secrets(value.address),
        availability=pb.EngineHost.Availability.ValueType(value.availability),
        running=value.running,
        max_running=value.max_running,
        last_error=value.last_error,
        last_error_time=timestamp(value.last_error_time),
        engine_version=value.engine_version,
        capture=CAPTURES[value.capture],
        capture_reason=value.capture_reason,
    )


def timestamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    message = Timestamp()
    _write_time(message, value)
    return message


def _write_time(message: Timestamp, value: datetime) -> None:
    # FromDatetime takes five times as long, and a response has up to a dozen times for each job.
    since = value - _EPOCH
    message.seconds = since.days * 86_400 + since.seconds
    message.nanos = since.microseconds * 1_000


def duration(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    message = Duration()
    message.FromTimedelta(value)
    return message


def pruned(value: Pruned) -> pb.PruneResponse:
    return pb.PruneResponse(jobs=value.count.jobs, logs=value.count.logs, bytes=value.count.bytes, more=value.more)


# ----------------------------------------------------------------------------------------------------------------- logs


def gap(value: Gap) -> pb.LogGap:
    return pb.LogGap(
        source=pb.Source.ValueType(value.source),
        offset=value.offset,
        missing_bytes=value.missing_bytes,
        cause=pb.LogGap.Cause.ValueType(value.cause),
    )


def log_state(value: StateChanged) -> pb.LogState:
    return pb.LogState(
        state=pb.State.ValueType(value.execution.state),
        waiting=None if value.waiting is None else waiting(value.waiting),
        time=timestamp(value.execution.state_time),
    )


def log_end(value: LogEnded | LogSuspended) -> pb.LogEnd:
    now = value.execution
    if isinstance(value, LogSuspended):
        return pb.LogEnd(sealed=False, state=pb.State.ValueType(now.state), exit_status=exit_status(now.state, None))
    return pb.LogEnd(
        sealed=True,
        state=pb.State.ValueType(now.state),
        outcome=None if now.outcome is None else outcome(now.outcome),
        totals=[totals(each) for each in now.logs],
        exit_status=exit_status(now.state, now.outcome),
    )
