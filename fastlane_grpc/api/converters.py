"""Conversion between values of the model and messages of the contract: one pair of functions per noun."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta

from google.protobuf import json_format

from fastlane_grpc.api import container_converters, notification_converters, schedule_converters
from fastlane_grpc.api.job_filters import RetryJobsRequest, StopJobsRequest
from fastlane_grpc.api.job_log_stream import JobLogRequest
from fastlane_grpc.api.log_stream import LogEnded, LogRequest, LogSuspended, StateChanged
from fastlane_grpc.api.pages import OutputsQuery, PageRequest, TaskQuery
from fastlane_grpc.api.service import EnqueueRequest, PreviewRequest, PruneRequest, ReplaceRequest
from fastlane_grpc.api.times import (
    duration,
    read_optional_duration,
    read_optional_time,
    read_time_ns,
    timestamp,
    write_time,
)
from fastlane_grpc.api.watch import WatchRequest
from fastlane_grpc.errors import InvalidRequest, Violation
from fastlane_grpc.logs import StartPoint
from fastlane_grpc.model import (
    DEFAULT_LIMITS,
    Execution,
    HostKind,
    HostReport,
    Job,
    JobSpec,
    LogTotals,
    Outcome,
    OutputEntry,
    Outputs,
    PullPolicy,
    Source,
    State,
    Task,
    TaskLimitsChange,
    Times,
    Usage,
    Waiting,
    exit_status,
    utc_now,
)
from fastlane_grpc.record import Gap
from fastlane_grpc.retention import Pruned
from fastlane_grpc.store import AuditEntry, AuditQuery, ExecutionQuery, JobFilter, JobQuery, etag_of
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
    "relay": pb.EngineHost.CAPTURE_RELAY,
    "kubelet": pb.EngineHost.CAPTURE_KUBELET,
}
KINDS_OF_HOSTS = {
    HostKind.DOCKER: pb.EngineHost.KIND_DOCKER,
    HostKind.KUBERNETES: pb.EngineHost.KIND_KUBERNETES,
}

_MAX_SPEC_BYTES = 2 << 20
# Parsers accept 100 levels in all, and each level of metadata takes three of them.
_MAX_METADATA_DEPTH = 16

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
    heartbeat = read_optional_duration(request, "heartbeat_interval", "heartbeat_interval", violations)
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
        before_cursor=request.before_cursor,
        number_lines=request.number_lines,
    )
    return (read if heartbeat is None else _with_heartbeat(read, heartbeat)), violations


def read_watch(request: pb.WatchJobsRequest) -> tuple[WatchRequest, list[Violation]]:
    violations: list[Violation] = []
    heartbeat = read_optional_duration(request, "heartbeat_interval", "heartbeat_interval", violations)
    read = WatchRequest(request.task_id, tuple(request.job_ids), _read_map(request.labels), request.cursor)
    return (read if heartbeat is None else replace(read, heartbeat=heartbeat)), violations


def read_job_log_request(request: pb.StreamJobLogsRequest) -> tuple[JobLogRequest, list[Violation]]:
    # The fields have the same numbers in both.
    as_execution = pb.StreamExecutionLogsRequest.FromString(request.SerializeToString())
    # A job's request has none of these: what has their numbers there is unknown, and a call that reads ignores it.
    for name in ("start_line", "before_cursor", "number_lines"):
        as_execution.ClearField(name)
    read, violations = read_log_request(as_execution)
    return JobLogRequest(
        request.job_id, read.cursor, read.start_point, read.sources, read.follow, read.text, read.heartbeat
    ), violations


def read_grace(
    request: pb.StopJobRequest | pb.StopExecutionRequest | pb.BatchStopJobsRequest,
) -> tuple[timedelta | None, list[Violation]]:
    violations: list[Violation] = []
    return read_optional_duration(request, "grace", "grace", violations), violations


def read_replace(request: pb.ReplaceJobRequest, caller_address: str) -> tuple[ReplaceRequest, list[Violation]]:
    """Return the request and the violations: values that a message can hold and the model cannot."""
    enqueue, violations = read_enqueue(pb.EnqueueJobRequest(task_id=request.task_id, spec=request.spec), caller_address)
    return ReplaceRequest(request.job_id, enqueue.task_id, enqueue.spec, request.etag, caller_address), violations


def read_preview(request: pb.PreviewScheduleRequest) -> tuple[PreviewRequest, list[Violation]]:
    violations: list[Violation] = []
    if not request.HasField("cron"):
        violations.append(Violation("cron", "is required"))
    cron = schedule_converters.read_cron(request.cron, "cron", violations)
    from_time = read_optional_time(request, "from_time", "from_time", violations)
    return PreviewRequest(cron, request.count, from_time), violations


def read_job_query(request: pb.ListJobsRequest) -> tuple[PageRequest[JobQuery], list[Violation]]:
    violations: list[Violation] = []
    query = JobQuery(
        task_id=request.task_id,
        states=_read_states(request.states, violations),
        labels=_read_map(request.labels),
        since_time=read_optional_time(request, "since_time", "since_time", violations),
        until_time=read_optional_time(request, "until_time", "until_time", violations),
        id_prefix=request.id_prefix,
        with_spec=request.with_spec,
    )
    return PageRequest(query, request.page_size, request.page_token), violations


def read_job_filter(message: pb.JobFilter, field: str, violations: list[Violation]) -> JobFilter:
    """Return the filter in this field of a request."""
    return JobFilter(
        task_id=message.task_id,
        states=_read_states(message.states, violations, f"{field}.states"),
        labels=_read_map(message.labels),
        since_time=read_optional_time(message, "since_time", f"{field}.since_time", violations),
        until_time=read_optional_time(message, "until_time", f"{field}.until_time", violations),
        job_ids=tuple(message.job_ids),
    )


def read_stop_jobs(request: pb.BatchStopJobsRequest) -> tuple[StopJobsRequest, list[Violation]]:
    grace, violations = read_grace(request)
    jobs = read_job_filter(request.filter, "filter", violations)
    return StopJobsRequest(jobs, request.note, grace, request.validate_only), violations


def read_retry_jobs(request: pb.BatchRetryJobsRequest) -> tuple[RetryJobsRequest, list[Violation]]:
    violations: list[Violation] = []
    jobs = read_job_filter(request.filter, "filter", violations)
    until_time = read_optional_time(request, "until_time", "until_time", violations)
    return RetryJobsRequest(jobs, until_time, request.validate_only), violations


def read_execution_query(request: pb.ListExecutionsRequest) -> tuple[PageRequest[ExecutionQuery], list[Violation]]:
    violations: list[Violation] = []
    query = ExecutionQuery(
        request.job_id, request.task_id, _read_states(request.states, violations), request.host, request.id_prefix
    )
    return PageRequest(query, request.page_size, request.page_token), violations


def read_outputs_query(request: pb.ListOutputsRequest) -> PageRequest[OutputsQuery]:
    return PageRequest(OutputsQuery(request.execution_id), request.page_size, request.page_token)


def read_task_query(request: pb.ListTasksRequest) -> PageRequest[TaskQuery]:
    return PageRequest(TaskQuery(), request.page_size, request.page_token)


def read_task_limits(request: pb.UpdateTaskRequest) -> tuple[TaskLimitsChange, list[Violation]]:
    violations: list[Violation] = []
    change = TaskLimitsChange(
        max_running=request.max_running if request.HasField("max_running") else None,
        paused=request.paused if request.HasField("paused") else None,
        max_starts=request.max_starts if request.HasField("max_starts") else None,
        rate_window=read_optional_duration(request, "rate_window", "rate_window", violations),
        notifications=notification_converters.read_notifications(
            request.notifications.items, "notifications.items", violations
        )
        if request.HasField("notifications")
        else None,
    )
    # A window that is no duration is not a missing one, too.
    return (replace(change, max_starts=None) if violations else change), violations


def _read_states(numbers: Iterable[int], violations: list[Violation], field: str = "states") -> tuple[State, ...]:
    """Return each state once and sorted: the order makes no other query."""
    states: set[State] = set()
    for index, number in enumerate(map(int, numbers)):
        if number in _STATES:
            states.add(State(number))
        else:
            violations.append(Violation(f"{field}[{index}]", f"{number} is not a state"))
    return tuple(sorted(states))


def read_prune(request: pb.PruneRequest) -> tuple[PruneRequest, list[Violation]]:
    violations: list[Violation] = []
    older_than = read_optional_duration(request, "older_than", "older_than", violations)
    if violations:
        # The field was set, though not to a duration: not another violation for a missing field.
        older_than = timedelta()
    return PruneRequest(older_than, request.logs_only, request.task_id, request.validate_only), violations


def _with_heartbeat(request: LogRequest, heartbeat: timedelta) -> LogRequest:
    return replace(request, heartbeat=heartbeat)


def _read_start_point(request: pb.StreamExecutionLogsRequest, violations: list[Violation]) -> StartPoint | None:
    tail_lines = request.tail_lines if request.HasField("tail_lines") else None
    since_ns = read_time_ns(request.since_time, "since_time", violations) if request.HasField("since_time") else None
    start_line = request.start_line or None
    if start_line is not None and start_line < 0:
        violations.append(Violation("start_line", f"is {start_line}; the first line is 1"))
    if tail_lines == 0 and request.before_cursor:
        violations.append(Violation("tail_lines", "must not be 0 with before_cursor: nothing would be sent"))
    found = StartPoint(tail_lines, since_ns, start_line)
    return None if found == StartPoint() else found


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
        timeout=read_optional_duration(spec, "timeout", "spec.timeout", violations),
        pull_policy=pull_policy,
        limits=container_converters.read_limits(spec.limits) if spec.HasField("limits") else DEFAULT_LIMITS,
        network=spec.network,
        read_only_root=spec.read_only_root,
        stop_signal=spec.stop_signal,
        stop_grace=read_optional_duration(spec, "stop_grace", "spec.stop_grace", violations),
        priority=spec.priority,
        labels=_read_map(spec.labels),
        metadata=_read_metadata(spec, violations),
        start_in=read_optional_duration(spec, "start_in", "spec.start_in", violations),
        start_at=read_optional_time(spec, "start_at", "spec.start_at", violations),
        cron=schedule_converters.read_cron(spec.cron, "spec.cron", violations) if spec.HasField("cron") else None,
        expire_time=read_optional_time(spec, "expire_time", "spec.expire_time", violations),
        retry=schedule_converters.read_retry(spec.retry, "spec.retry", violations) if spec.HasField("retry") else None,
        notifications=notification_converters.read_notifications(spec.notifications, "spec.notifications", violations)
        if spec.notifications
        else (),
        unique=schedule_converters.read_unique(spec.unique, "spec.unique", violations)
        if spec.HasField("unique")
        else None,
        history=spec.history,
        stop_when_unwatched=read_optional_duration(spec, "stop_when_unwatched", "spec.stop_when_unwatched", violations),
        extra_hosts=_read_map(spec.extra_hosts),
        tmpfs=container_converters.read_tmpfs(spec.tmpfs) if spec.tmpfs else (),
        ulimits=container_converters.read_ulimits(spec.ulimits) if spec.ulimits else (),
        dns=container_converters.read_dns(spec.dns) if spec.HasField("dns") else None,
        cap_drop=tuple(spec.cap_drop),
        volumes=container_converters.read_volumes(spec.volumes) if spec.volumes else (),
        devices=container_converters.read_devices(spec.devices) if spec.devices else (),
        gpus=container_converters.read_gpus(spec.gpus) if spec.HasField("gpus") else None,
        outputs=tuple(spec.outputs),
        inputs=container_converters.read_inputs(spec.inputs) if spec.inputs else (),
        stdin=container_converters.read_stdin(spec.stdin) if spec.HasField("stdin") else None,
        registry_credential=spec.registry_credential,
        secret_envs=_read_map(spec.secret_envs),
    )


def _read_map(entries: Mapping[str, str]) -> dict[str, str]:
    # Not dict(entries), which looks each value up by its name.
    return {name: value for name, value in entries.items()} if entries else {}  # noqa: C416


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
    return write_job(pb.Job(), value, waiting, secret_names)


def write_job(message: pb.Job, value: Job, waiting: WaitingOf, secret_names: SecretNames) -> pb.Job:
    """Write a job into an empty message, without the values of secret variables, and return the message."""
    message.id = value.id
    message.task_id = value.task_id
    message.state = pb.State.ValueType(value.state)
    message.executions = value.executions
    message.request_id = value.request_id
    message.caller_address = value.caller_address
    message.caller = value.caller
    message.stop_caller = value.stop_caller
    if value.spec is not None:
        _write_spec(message.spec, value.spec.redacted(secret_names))
    write_execution(message.execution, value.execution, waiting(value.execution))
    if value.outcome is not None:
        _write_outcome(message.outcome, value.outcome)
    write_time(message.create_time, value.create_time)
    if value.end_time is not None:
        write_time(message.end_time, value.end_time)
    message.etag = etag_of(value)
    if value.schedule is not None:
        schedule_converters.write_schedule_status(message.schedule, value, utc_now())
    if value.array is not None:
        message.array.index, message.array.size = value.array.index, value.array.size
    return message


def task(value: Task, secret_names: SecretNames) -> pb.TaskSummary:
    """Return the message of a task, without secrets."""
    return pb.TaskSummary(
        id=value.id,
        create_time=timestamp(value.create_time),
        open_jobs=value.open_jobs,
        jobs=value.jobs,
        last_enqueue_time=timestamp(value.last_enqueue_time),
        max_running=value.limits.max_running,
        paused=value.limits.paused,
        max_starts=value.limits.max_starts,
        rate_window=duration(value.limits.rate_window),
        running=value.running,
        notifications=notification_converters.notifications(value.limits.notifications, secret_names),
    )


def _write_spec(message: pb.JobSpec, value: JobSpec) -> None:
    message.image = value.image
    message.command = value.command
    # A message of protobuf makes a container where an empty one is touched.
    if value.envs:
        message.envs.update(value.envs)
    if value.args:
        message.args.extend(value.args)
    if value.entrypoint:
        message.entrypoint.extend(value.entrypoint)
    message.working_dir = value.working_dir
    message.user = value.user
    if value.timeout is not None:
        message.timeout.FromTimedelta(value.timeout)
    message.pull_policy = pb.JobSpec.PullPolicy.ValueType(value.pull_policy)
    message.network = value.network
    message.registry_credential = value.registry_credential
    if value.secret_envs:
        message.secret_envs.update(value.secret_envs)
    message.read_only_root = value.read_only_root
    message.stop_signal = value.stop_signal
    if value.stop_grace is not None:
        message.stop_grace.FromTimedelta(value.stop_grace)
    message.priority = value.priority
    if value.labels:
        message.labels.update(value.labels)
    if value.limits is not DEFAULT_LIMITS and value.limits != DEFAULT_LIMITS:
        container_converters.write_limits(message.limits, value.limits)
    if value.metadata is not None:
        json_format.ParseDict(dict(value.metadata), message.metadata)
        message.metadata.SetInParent()
    if value.start_in is not None:
        message.start_in.FromTimedelta(value.start_in)
    if value.start_at is not None:
        write_time(message.start_at, value.start_at)
    if value.expire_time is not None:
        write_time(message.expire_time, value.expire_time)
    for notification in value.notifications:
        notification_converters.write_notification(message.notifications.add(), notification)
    schedule_converters.write_policies(message, value)
    if value.has_options:
        container_converters.write_options(message, value)
    if value.outputs:
        message.outputs.extend(value.outputs)
    if value.inputs:
        container_converters.write_inputs(message, value.inputs)
    if value.stdin is not None:
        message.stdin.sha256, message.stdin.size_bytes = value.stdin.sha256, value.stdin.size_bytes


def execution(value: Execution, waits: Waiting | None) -> pb.Execution:
    """Return the message of an execution and what it waits for."""
    message = pb.Execution()
    write_execution(message, value, waits)
    return message


def write_execution(message: pb.Execution, value: Execution, waits: Waiting | None) -> None:
    """Write an execution, and what it waits for, into an empty message."""
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
    # The times have the same names in the contract and in the model.
    times = message.times
    for point, time in zip(Times._fields, value.times, strict=True):
        if time is not None:
            write_time(getattr(times, point), time)
    message.host = value.host
    message.container_id = value.container_id
    message.image_digest = value.image_digest
    if value.logs:
        message.logs.extend(map(totals, value.logs))
    if value.usage is not None:
        _write_usage(message.usage, value.usage)
    if value.outputs is not None:
        _write_outputs(message.outputs, value.outputs)
    if value.tick_time is not None:
        write_time(message.tick_time, value.tick_time)
    message.memory_bytes = value.memory_bytes


def _write_usage(message: pb.Usage, value: Usage) -> None:
    message.SetInParent()
    if value.cpu_time is not None:
        message.cpu_time.FromTimedelta(value.cpu_time)
    if value.peak_memory_bytes is not None:
        message.peak_memory_bytes = value.peak_memory_bytes
    if value.read_bytes is not None:
        message.read_bytes = value.read_bytes
    if value.written_bytes is not None:
        message.written_bytes = value.written_bytes
    if value.memory_bytes is not None:
        message.memory_bytes = value.memory_bytes
    if value.time is not None:
        write_time(message.time, value.time)


def write_output_entry(message: pb.OutputEntry, value: OutputEntry) -> None:
    message.path, message.kind = value.path, pb.OutputEntry.Kind.ValueType(value.kind)
    message.size_bytes, message.mode, message.uid, message.gid = value.size_bytes, value.mode, value.uid, value.gid
    write_time(message.modify_time, value.modify_time)
    message.target, message.content_offset = value.target, value.content_offset


def _write_outputs(message: pb.Outputs, value: Outputs) -> None:
    message.SetInParent()
    message.size_bytes, message.sha256, message.entries = value.size_bytes, value.sha256, value.entries
    message.missing.extend(value.missing)
    message.fault, message.detail = pb.Outputs.Fault.ValueType(value.fault), value.detail


def waiting(value: Waiting) -> pb.Waiting:
    message = pb.Waiting()
    _write_waiting(message, value)
    return message


def _write_waiting(message: pb.Waiting, value: Waiting) -> None:
    message.reason = pb.WaitReason.ValueType(value.reason)
    message.detail = value.detail
    message.ahead = value.ahead
    write_time(message.since_time, value.since_time)
    if value.due_time is not None:
        write_time(message.due_time, value.due_time)


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
        drain_note=value.drain_note,
        drain_time=timestamp(value.drain_time),
        pools=value.pools,
        kind=KINDS_OF_HOSTS[value.kind],
        nodes=pb.EngineHost.Nodes(ready=value.nodes.ready, total=value.nodes.total) if value.nodes else None,
    )


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


def read_audit_query(request: pb.ListAuditEntriesRequest) -> PageRequest[AuditQuery]:
    query = AuditQuery(request.task_id, request.job_id, request.caller, request.method)
    return PageRequest(query, request.page_size, request.page_token)


def write_audit_entry(message: pb.AuditEntry, value: AuditEntry) -> None:
    """Write an entry into an empty message."""
    message.time.FromDatetime(value.time)
    for name in ("method", "caller", "certificate", "address", "task_id", "job_id", "execution_id", "detail"):
        setattr(message, name, getattr(value, name))
