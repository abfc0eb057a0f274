"""The arguments of both clients' methods, converted to requests of the contract. The meaning of each option is
documented here, once."""

import inspect
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import wraps
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeAlias, TypedDict, TypeVar, Unpack

from fastlane_grpc.client.argument_types import check
from fastlane_grpc.client.containers import (
    Device,
    Dns,
    Gpus,
    Tmpfs,
    Ulimit,
    Volume,
    device_messages,
    dns_message,
    gpus_message,
    tmpfs_messages,
)
from fastlane_grpc.client.errors import InvalidText
from fastlane_grpc.client.inputs import Input, Stdin, stdin_message
from fastlane_grpc.client.policies import (
    Cron,
    Duration,
    Mail,
    Retry,
    Unique,
    Webhook,
    cron_message,
    notification_messages,
    retry_message,
    unique_message,
)
from fastlane_grpc.client.policies import duration as to_duration
from fastlane_grpc.client.policies import timestamp as to_timestamp
from fastlane_grpc.text.time_span import span_of
from fastlane_grpc.v1 import fastlane_pb2

_Parameters = ParamSpec("_Parameters")
_Request = TypeVar("_Request")

State: TypeAlias = fastlane_pb2.State.ValueType
Source: TypeAlias = fastlane_pb2.Source.ValueType
DeliveryState: TypeAlias = fastlane_pb2.DeliveryState.ValueType

_NONE: Mapping[str, str] = MappingProxyType({})
NO_LABELS = _NONE


class JobOptions(TypedDict, total=False):
    """Options of `enqueue`. Defaults are those of the image and the server; see `JobSpec` in the contract."""

    args: Sequence[str]
    """Words of the command, taken literally, after those of `command`."""
    envs: Mapping[str, str]
    entrypoint: Sequence[str]
    """Replaces the image's entrypoint; one empty string: none."""
    working_dir: str
    user: str
    timeout: Duration | None
    pull_policy: Literal["missing", "always", "never"] | None
    memory_bytes: int
    cpus: float
    pids: int
    network: str
    """"none": no network; or a network of the engine that the operator allows."""
    read_only_root: bool
    stop_signal: str
    stop_grace: Duration | None
    """Time between the stop signal and SIGKILL; zero: SIGKILL at once."""
    priority: int
    """-100 to 100; higher goes first."""
    labels: Mapping[str, str]
    metadata: Mapping[str, Any] | None
    """JSON data of the caller, stored in the job's spec."""
    start_in: Duration | None
    """Delay between the enqueue and the start."""
    start_at: datetime | None
    """Time of the start, with a time zone; a time in the past means now. Set `start_in` or `start_at`, not both."""
    expire_time: datetime | None
    """Latest start, with a time zone; after it the job ends as expired."""
    cron: Cron | str | None
    """Start a run at every tick of a schedule; a string is its expression. Not together with `start_in` or
    `start_at`."""
    retry: Retry | int | None
    """Attempts after a failed one; a number is that of the retries."""
    notifications: Sequence[Webhook | Mail]
    """Whom to tell about the ends of the job; by default whom the task or the server says."""
    unique: Unique | str | None
    """A key that one open job of the task may hold."""
    history: int
    """Number of executions that are kept of a job that has not ended; 0: the server's default."""
    stop_when_unwatched: Duration | None
    """Stop the job when nobody has followed its log or watched it for this time."""
    shm_bytes: int
    """Size of /dev/shm; 0: the engine's default."""
    memory_reservation_bytes: int
    """Memory that the kernel tries to leave to the container."""
    cpuset: str
    """CPUs that the container may run on, as "0-2,5"."""
    tmpfs: Sequence[Tmpfs | str]
    """File systems in memory; a string is the path of one."""
    volumes: Sequence[Volume]
    devices: Sequence[Device | str]
    """Devices of the host that the operator allows; a string is the path of one."""
    gpus: Gpus | int | None
    """GPUs of the host, if the operator allows them; a number is that of GPUs, -1: all."""
    inputs: Sequence[Input]
    """Files that are written into the container before its start."""
    outputs: Sequence[str]
    """Absolute paths in the container that are kept after its end; see `read_outputs`."""
    stdin: Stdin | bytes | None
    """The standard input of the command; by default none. Bytes are the content of a small one."""
    ulimits: Sequence[Ulimit]
    extra_hosts: Mapping[str, str]
    """Additional host names and their IP addresses."""
    dns: Dns | None
    """Name resolution in place of the engine's."""
    cap_drop: Sequence[str]
    """Capabilities to take from the container, as "NET_RAW" or "ALL"."""
    secret_envs: Mapping[str, str]
    """Environment variables with secrets of the operator: the name of each variable's secret."""
    registry_credential: str
    """Name of the operator's credential with which the image is pulled."""
    request_id: str | None
    """Makes the enqueue safe to repeat, even after a restart of your program: the same id and request return the same
    job. By default generated for the call."""
    validate_only: bool
    """Validate without storing."""


class JobFilter(TypedDict, total=False):
    """Filters of `jobs`; an omitted one does not filter."""

    task_id: str
    states: Iterable[State]
    labels: Mapping[str, str]
    """All of these must match."""
    since: datetime | None
    """Enqueued at or after this time, with a time zone."""
    until: datetime | None
    """Enqueued before this time, with a time zone."""
    with_spec: bool
    """Include the specs, which lists omit by default."""
    id_prefix: str
    page_size: int
    """Jobs per page; by default the server's choice."""


class DeliveryFilter(TypedDict, total=False):
    """Filters of `deliveries`; an omitted one does not filter."""

    job_id: str
    states: Iterable[DeliveryState]
    page_size: int


class AuditFilter(TypedDict, total=False):
    """Filters of `audit_entries`; an omitted one does not filter."""

    task_id: str
    job_id: str
    caller: str
    """The name of a token."""
    method: str
    """A method of the contract: "StopJob"."""
    page_size: int


class JobSelection(TypedDict, total=False):
    """The jobs that a call changes; at least one is required. An omitted one does not filter."""

    task_id: str
    states: Iterable[State]
    labels: Mapping[str, str]
    """All of these must match."""
    since: datetime | None
    """Enqueued at or after this time, with a time zone."""
    until: datetime | None
    """Enqueued before this time, with a time zone."""
    job_ids: Iterable[str]
    """At most 1 000."""


class ExecutionFilter(TypedDict, total=False):
    """Filters of `executions`; an omitted one does not filter."""

    job_id: str
    task_id: str
    states: Iterable[State]
    host: str
    id_prefix: str
    with_usage: bool
    """Ask the hosts what running executions have used so far; a page then has at most 100."""
    page_size: int


class TailOptions(TypedDict, total=False):
    """Options of `tail` and `tail_job`."""

    follow: bool
    """True: continue to the end of the execution. False: end after the stored part."""
    text: bool
    """Lossy text instead of bytes; its checksum cannot be verified."""
    tail_lines: int | None
    """Start with this many last lines; 0: new output only."""
    since: datetime | None
    """Start with output received at or after this time."""
    heartbeat: Duration | None
    """Interval of heartbeats during silence (10 s); three missing heartbeats are an interruption."""
    give_up_after: Duration | None
    """Raise the error after the server was unreachable for this time; by default never."""


class ExecutionTailOptions(TailOptions, total=False):
    """Options of `tail`, for the log of one execution."""

    start_line: int | None
    """Start with the line of this number, from 1, over stdout and stderr together."""
    before_cursor: str
    """End at this cursor: with `tail_lines`, the last lines before it."""
    number_lines: bool
    """True: the first `StateChange`, and a `Gap` that may hide lines, have `first_line`."""


class WatchOptions(TypedDict, total=False):
    """Options of `watch`."""

    heartbeat: Duration | None
    """Interval of heartbeats without changes (10 s); three missing heartbeats are an interruption."""
    give_up_after: Duration | None
    """Raise the error after the server was unreachable for this time; by default never."""


# Of `enqueue`, what is not in the spec.
_BESIDE_SPEC = {"task_id", "request_id"}


def _names_text(build: Callable[_Parameters, _Request]) -> Callable[_Parameters, _Request]:
    """Raise InvalidText, which names the field, where protobuf would raise a UnicodeError that names nothing. Raise
    TypeError, which names the argument, likewise."""
    signature = inspect.signature(build)

    @wraps(build)
    def built(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Request:
        arguments = signature.bind(*args, **kwargs).arguments
        check({**arguments, **arguments.get("filter", {})})
        try:
            return build(*args, **kwargs)
        except UnicodeError:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                # The filters of lists come as one mapping.
                fields = value.items() if name == "filter" else [(name, value)]
                for field in (field for each in fields for field in _not_text(*each)):
                    raise InvalidText(
                        field if build.__name__ != "enqueue" or field in _BESIDE_SPEC else f"spec.{field}"
                    ) from None
            raise

    return built


def _not_text(field: str, value: object) -> Iterator[str]:
    """The fields in `value` that are not text, as the server names them."""
    if isinstance(value, str | bytes):
        if not _is_text(value):
            yield field
    elif isinstance(value, Mapping):
        for name, each in value.items():
            named = f"{field}[{json.dumps(name if isinstance(name, str) else repr(name))}]"
            yield from _not_text(named, each) if not isinstance(name, str | bytes) or _is_text(name) else [named]
    elif isinstance(value, Sequence):
        for number, each in enumerate(value):
            yield from _not_text(f"{field}[{number}]", each)


def _is_text(value: str | bytes) -> bool:
    try:
        _ = value.encode() if isinstance(value, str) else value.decode()
    except UnicodeError:
        return False
    return True


def address(text: str) -> str:
    """The address itself. Raises InvalidText."""
    if not _is_text(text):
        raise InvalidText("address")
    return text


@_names_text
def get_job(job_id: str) -> fastlane_pb2.GetJobRequest:
    return fastlane_pb2.GetJobRequest(job_id=job_id)


@_names_text
def get_execution(execution_id: str) -> fastlane_pb2.GetExecutionRequest:
    return fastlane_pb2.GetExecutionRequest(execution_id=execution_id)


@_names_text
def get_task(task_id: str) -> fastlane_pb2.GetTaskRequest:
    return fastlane_pb2.GetTaskRequest(task_id=task_id)


@_names_text
def enqueue(
    task_id: str,
    image: str,
    command: str,
    *,
    args: Sequence[str] = (),
    envs: Mapping[str, str] = _NONE,
    entrypoint: Sequence[str] = (),
    working_dir: str = "",
    user: str = "",
    timeout: Duration | None = None,
    pull_policy: Literal["missing", "always", "never"] | None = None,
    memory_bytes: int = 0,
    cpus: float = 0.0,
    pids: int = 0,
    network: str = "",
    read_only_root: bool = False,
    stop_signal: str = "",
    stop_grace: Duration | None = None,
    priority: int = 0,
    labels: Mapping[str, str] = _NONE,
    metadata: Mapping[str, Any] | None = None,
    start_in: Duration | None = None,
    start_at: datetime | None = None,
    expire_time: datetime | None = None,
    cron: Cron | str | None = None,
    retry: Retry | int | None = None,
    notifications: Sequence[Webhook | Mail] = (),
    unique: Unique | str | None = None,
    history: int = 0,
    stop_when_unwatched: Duration | None = None,
    shm_bytes: int = 0,
    memory_reservation_bytes: int = 0,
    cpuset: str = "",
    tmpfs: Sequence[Tmpfs | str] = (),
    volumes: Sequence[Volume] = (),
    devices: Sequence[Device | str] = (),
    gpus: Gpus | int | None = None,
    inputs: Sequence[Input] = (),
    outputs: Sequence[str] = (),
    stdin: Stdin | bytes | None = None,
    ulimits: Sequence[Ulimit] = (),
    extra_hosts: Mapping[str, str] = _NONE,
    dns: Dns | None = None,
    cap_drop: Sequence[str] = (),
    registry_credential: str = "",
    secret_envs: Mapping[str, str] = _NONE,
    request_id: str | None = None,
    validate_only: bool = False,
) -> fastlane_pb2.EnqueueJobRequest:
    spec = fastlane_pb2.JobSpec(
        image=image,
        command=command,
        args=args,
        envs=envs,
        entrypoint=entrypoint,
        working_dir=working_dir,
        user=user,
        timeout=to_duration(timeout),
        pull_policy=_pull_policy(pull_policy),
        network=network,
        read_only_root=read_only_root,
        stop_signal=stop_signal,
        stop_grace=to_duration(stop_grace),
        priority=priority,
        labels=labels,
        start_in=to_duration(start_in),
        start_at=to_timestamp(start_at),
        expire_time=to_timestamp(expire_time),
        cron=cron_message(cron),
        retry=retry_message(retry),
        notifications=notification_messages(notifications),
        unique=unique_message(unique),
        history=history,
        stop_when_unwatched=to_duration(stop_when_unwatched),
        tmpfs=tmpfs_messages(tmpfs),
        volumes=[each.message() for each in volumes],
        devices=device_messages(devices),
        gpus=gpus_message(gpus),
        outputs=outputs,
        inputs=[each.message() for each in inputs],
        stdin=stdin_message(stdin),
        ulimits=[each.message() for each in ulimits],
        extra_hosts=extra_hosts,
        dns=dns_message(dns),
        cap_drop=cap_drop,
        registry_credential=registry_credential,
        secret_envs=secret_envs,
    )
    limits = fastlane_pb2.Limits(
        memory_bytes=memory_bytes,
        cpus=cpus,
        pids=pids,
        shm_bytes=shm_bytes,
        memory_reservation_bytes=memory_reservation_bytes,
        cpuset=cpuset,
    )
    if limits.ByteSize():
        spec.limits.CopyFrom(limits)
    if metadata is not None:
        spec.metadata.SetInParent()
        spec.metadata.update(dict(metadata))
    return fastlane_pb2.EnqueueJobRequest(
        task_id=task_id, spec=spec, request_id=request_id or str(uuid.uuid4()), validate_only=validate_only
    )


def replace_job(
    job_id: str, task_id: str, image: str, command: str, etag: str, **options: Any
) -> fastlane_pb2.ReplaceJobRequest:
    made = enqueue(task_id, image, command, **options)
    return fastlane_pb2.ReplaceJobRequest(job_id=job_id, task_id=made.task_id, spec=made.spec, etag=etag)


@_names_text
def retry_job(job_id: str, request_id: str | None) -> fastlane_pb2.RetryJobRequest:
    return fastlane_pb2.RetryJobRequest(job_id=job_id, request_id=request_id or str(uuid.uuid4()))


@_names_text
def pause_schedule(job_id: str) -> fastlane_pb2.PauseScheduleRequest:
    return fastlane_pb2.PauseScheduleRequest(job_id=job_id)


@_names_text
def resume_schedule(job_id: str) -> fastlane_pb2.ResumeScheduleRequest:
    return fastlane_pb2.ResumeScheduleRequest(job_id=job_id)


@_names_text
def preview_schedule(cron: Cron | str, count: int, from_time: datetime | None) -> fastlane_pb2.PreviewScheduleRequest:
    return fastlane_pb2.PreviewScheduleRequest(cron=cron_message(cron), count=count, from_time=to_timestamp(from_time))


@_names_text
def jobs(
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    **filter: Any,  # noqa: A002
) -> fastlane_pb2.ListJobsRequest:
    return fastlane_pb2.ListJobsRequest(since_time=to_timestamp(since), until_time=to_timestamp(until), **filter)


@_names_text
def executions(**filter: Any) -> fastlane_pb2.ListExecutionsRequest:  # noqa: A002
    return fastlane_pb2.ListExecutionsRequest(**filter)


@_names_text
def list_outputs(execution_id: str) -> fastlane_pb2.ListOutputsRequest:
    return fastlane_pb2.ListOutputsRequest(execution_id=execution_id, page_size=1000)


@_names_text
def deliveries(**filter: Any) -> fastlane_pb2.ListDeliveriesRequest:  # noqa: A002
    return fastlane_pb2.ListDeliveriesRequest(**filter)


@_names_text
def audit_entries(**filter: Any) -> fastlane_pb2.ListAuditEntriesRequest:  # noqa: A002
    return fastlane_pb2.ListAuditEntriesRequest(**filter)


@_names_text
def redeliver(delivery_id: str) -> fastlane_pb2.RedeliverNotificationRequest:
    return fastlane_pb2.RedeliverNotificationRequest(delivery_id=delivery_id)


@_names_text
def stop_job(job_id: str, note: str, grace: Duration | None) -> fastlane_pb2.StopJobRequest:
    return fastlane_pb2.StopJobRequest(job_id=job_id, note=note, grace=to_duration(grace))


@_names_text
def stop_execution(execution_id: str, note: str, grace: Duration | None) -> fastlane_pb2.StopExecutionRequest:
    return fastlane_pb2.StopExecutionRequest(execution_id=execution_id, note=note, grace=to_duration(grace))


def job_request(
    task_id: str, image: str, command: str = "", **options: Unpack[JobOptions]
) -> fastlane_pb2.EnqueueJobRequest:
    """Return a request for `enqueue_many`, of the arguments of `enqueue`."""
    return enqueue(task_id, image, command, **options)


def enqueue_array(
    size: int, task_id: str, image: str, command: str, **options: Unpack[JobOptions]
) -> fastlane_pb2.BatchEnqueueJobsRequest:
    check({"size": size})
    request = enqueue(task_id, image, command, **options)
    return fastlane_pb2.BatchEnqueueJobsRequest(array=fastlane_pb2.JobArray(request=request, size=size))


def job_filter(
    *, since: datetime | None = None, until: datetime | None = None, **selection: Any
) -> fastlane_pb2.JobFilter:
    return fastlane_pb2.JobFilter(since_time=to_timestamp(since), until_time=to_timestamp(until), **selection)


@_names_text
def stop_jobs(
    note: str,
    grace: Duration | None,
    *,
    validate_only: bool,
    **filter: Any,  # noqa: A002
) -> fastlane_pb2.BatchStopJobsRequest:
    return fastlane_pb2.BatchStopJobsRequest(
        filter=job_filter(**filter), note=note, grace=to_duration(grace), validate_only=validate_only
    )


@_names_text
def retry_jobs(*, validate_only: bool, **filter: Any) -> fastlane_pb2.BatchRetryJobsRequest:  # noqa: A002
    return fastlane_pb2.BatchRetryJobsRequest(filter=job_filter(**filter), validate_only=validate_only)


@_names_text
def update_task(
    task_id: str,
    *,
    max_running: int | None,
    paused: bool | None,
    max_starts: int | None,
    rate_window: Duration | None,
    notifications: Sequence[Webhook | Mail] | None,
) -> fastlane_pb2.UpdateTaskRequest:
    items = None if notifications is None else notification_messages(notifications)
    return fastlane_pb2.UpdateTaskRequest(
        notifications=None if items is None else fastlane_pb2.UpdateTaskRequest.Notifications(items=items),
        task_id=task_id,
        max_running=max_running,
        paused=paused,
        max_starts=max_starts,
        rate_window=to_duration(rate_window),
    )


@_names_text
def drain_host(host: str, note: str) -> fastlane_pb2.DrainHostRequest:
    return fastlane_pb2.DrainHostRequest(host=host, note=note)


@_names_text
def resume_host(host: str) -> fastlane_pb2.ResumeHostRequest:
    return fastlane_pb2.ResumeHostRequest(host=host)


@_names_text
def prune(older_than: timedelta, *, logs_only: bool, task_id: str, validate_only: bool) -> fastlane_pb2.PruneRequest:
    return fastlane_pb2.PruneRequest(
        older_than=to_duration(older_than), logs_only=logs_only, task_id=task_id, validate_only=validate_only
    )


@_names_text
def tail(
    execution_id: str,
    cursor: str,
    sources: Iterable[Source],
    *,
    follow: bool = True,
    text: bool = False,
    tail_lines: int | None = None,
    since: datetime | None = None,
    heartbeat: Duration | None = None,
    give_up_after: Duration | None = None,
    start_line: int | None = None,
    before_cursor: str = "",
    number_lines: bool = False,
) -> fastlane_pb2.StreamExecutionLogsRequest:
    return fastlane_pb2.StreamExecutionLogsRequest(
        execution_id=execution_id,
        cursor=cursor,
        tail_lines=tail_lines,
        since_time=to_timestamp(since),
        sources=sources,
        follow=follow,
        text=text,
        heartbeat_interval=to_duration(heartbeat),
        start_line=start_line or 0,
        before_cursor=before_cursor,
        number_lines=number_lines,
    )


@_names_text
def tail_job(
    job_id: str,
    cursor: str,
    sources: Iterable[Source],
    *,
    follow: bool = True,
    text: bool = False,
    tail_lines: int | None = None,
    since: datetime | None = None,
    heartbeat: Duration | None = None,
    give_up_after: Duration | None = None,
) -> fastlane_pb2.StreamJobLogsRequest:
    return fastlane_pb2.StreamJobLogsRequest(
        job_id=job_id,
        cursor=cursor,
        tail_lines=tail_lines,
        since_time=to_timestamp(since),
        sources=sources,
        follow=follow,
        text=text,
        heartbeat_interval=to_duration(heartbeat),
    )


@_names_text
def watch(
    task_id: str,
    job_ids: Iterable[str],
    labels: Mapping[str, str],
    cursor: str,
    *,
    heartbeat: Duration | None = None,
    give_up_after: Duration | None = None,
) -> fastlane_pb2.WatchJobsRequest:
    return fastlane_pb2.WatchJobsRequest(
        task_id=task_id, job_ids=job_ids, labels=labels, cursor=cursor, heartbeat_interval=to_duration(heartbeat)
    )


def silence_seconds(options: TailOptions | WatchOptions) -> float:
    """Return how long a stream may be silent before it counts as interrupted: three heartbeats."""
    heartbeat = options.get("heartbeat")
    interval = _DEFAULT_HEARTBEAT_SECONDS if heartbeat is None else seconds(heartbeat)
    # An interval that is too short is for the server to refuse: its answer needs a moment.
    return max(3 * interval, _SHORTEST_SILENCE_SECONDS)


def give_up_seconds(options: TailOptions | WatchOptions) -> float | None:
    give_up_after = options.get("give_up_after")
    return None if give_up_after is None else seconds(give_up_after)


def seconds(duration: Duration, name: str = "timeout") -> float:
    check({name: duration})
    duration = span_of(duration, name) if isinstance(duration, str) else duration
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


_DEFAULT_HEARTBEAT_SECONDS = 10.0
_SHORTEST_SILENCE_SECONDS = 0.3


def _pull_policy(policy: str | None) -> fastlane_pb2.JobSpec.PullPolicy.ValueType:
    return fastlane_pb2.JobSpec.PullPolicy.Value(f"PULL_POLICY_{(policy or 'unspecified').upper()}")
