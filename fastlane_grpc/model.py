"""Tasks, jobs and executions as values: what they hold and what may follow what. Pure; nothing here waits, reads or
writes."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum, StrEnum
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from fastlane_grpc.text.redaction import REDACTED, SecretNames, mask_secrets
from fastlane_grpc.text.sanitize import one_line

# Of what an outcome, a wait or a host says for people, which may be the words of an engine or a registry.
MAX_TOLD_CHARACTERS = 2000


def told_line(text: str) -> str:
    """Return text that may hold the words of others as one printable line of bounded length, without secrets."""
    # What an engine says of itself is told with each execution that waits for it. A cache of long texts would let
    # callers fill the memory.
    return (_told_line_cached if len(text) <= _CACHED_CHARACTERS else _told_line)(text)


def _told_line(text: str) -> str:
    return one_line(mask_secrets(text), MAX_TOLD_CHARACTERS)


_CACHED_CHARACTERS = 500
_told_line_cached = lru_cache(256)(_told_line)


class State(IntEnum):
    """The state of a job or an execution. The numbers are those of the contract, and of the store."""

    SCHEDULED = 1
    QUEUED = 2
    PREPARING = 3
    RUNNING = 4
    STOPPING = 5
    SUCCEEDED = 6
    FAILED = 7
    TIMED_OUT = 8
    STOPPED = 9
    EXPIRED = 10
    LOST = 11

    @property
    def final(self) -> bool:
        return self >= State.SUCCEEDED


class Reason(IntEnum):
    """Refines FAILED and LOST; UNSPECIFIED where the state says it all. Numbers of the contract."""

    UNSPECIFIED = 0
    EXIT_CODE = 1
    OUT_OF_MEMORY = 2
    IMAGE_NOT_FOUND = 3
    IMAGE_DENIED = 4
    IMAGE_NOT_PRESENT = 5
    IMAGE_UNUSABLE = 6
    COMMAND_NOT_FOUND = 7
    COMMAND_NOT_EXECUTABLE = 8
    REFUSED_BY_ENGINE = 9
    CONTAINER_GONE = 10
    HOST_GONE = 11
    START_UNKNOWN = 12
    REGISTRY_UNAVAILABLE = 13
    INPUT_UNAVAILABLE = 14
    SECRET_UNAVAILABLE = 16
    EVICTED = 17
    NODE_LOST = 18


class WaitReason(IntEnum):
    """The reason for which an execution waits. Numbers of the contract."""

    NOT_DUE = 1
    NO_FREE_SLOT = 2
    TASK_LIMIT = 3
    HOST_DOWN = 4
    DISK_FULL = 5
    BACKOFF = 6
    HOST_DRAINED = 7
    TASK_RATE = 8
    TASK_PAUSED = 9
    SCHEDULE_PAUSED = 10
    UNIQUE_KEY = 11
    NO_POOL = 12
    UNSCHEDULABLE = 13


class Availability(IntEnum):
    """Whether a host takes executions. Numbers of the contract."""

    UP = 1
    DOWN = 2
    DRAINED = 3
    CIRCUIT_OPEN = 4


class Source(IntEnum):
    """The origin of bytes of a log. Numbers of the contract, and of the record."""

    STDOUT = 1
    STDERR = 2
    SYSTEM = 3


class Cause(IntEnum):
    """The reason why bytes of a log are missing. Numbers of the contract, and of the record."""

    UNSPECIFIED = 0
    SIZE_LIMIT = 1
    PRUNED = 2
    ENGINE = 3
    STORE = 4


class CaptureMode(StrEnum):
    """The way in which output gets into records. AUTO: by the recorder where that works, else by attach."""

    AUTO = "auto"
    RECORDER = "recorder"
    ATTACH = "attach"


class PodCaptureMode(StrEnum):
    """The way in which output of pods gets into records: by a relay in the pod, or by the log that its node keeps."""

    RELAY = "relay"
    KUBELET = "kubelet"


class PullPolicy(IntEnum):
    """The condition for pulling an image; UNSPECIFIED means MISSING. Numbers of the contract."""

    UNSPECIFIED = 0
    MISSING = 1
    ALWAYS = 2
    NEVER = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """The resources that a container may use. Zero and empty mean the server's default."""

    memory_bytes: int = 0
    cpus: float = 0.0
    pids: int = 0
    shm_bytes: int = 0
    memory_reservation_bytes: int = 0
    cpuset: str = ""


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory. Zero stands for the defaults of the engine."""

    path: str
    size_bytes: int = 0
    mode: int = 0
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """A named volume of the engine, and its place in the container."""

    name: str
    path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """A file, or with `unpack` the files of a tar archive, in the container from its start.

    The content is stored under its checksum. `content` is set only until then, if the request had it.
    """

    path: str
    sha256: str
    size_bytes: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    unpack: bool = False
    content: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Stdin:
    """The standard input of a command. Its content is stored as that of an Input."""

    sha256: str
    size_bytes: int
    content: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host in the container. Empty fields: the same path, all permissions."""

    path: str
    container_path: str = ""
    permissions: str = ""


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of the host in the container: a number of them, -1 for all, or those with these ids."""

    count: int = 0
    ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of each process of a container, -1: unlimited. `hard` None: as `soft`."""

    name: str
    soft: int = 0
    hard: int | None = None


@dataclass(frozen=True, slots=True)
class Dns:
    """The name resolution of a container. Empty: as the engine is configured."""

    servers: Sequence[str] = ()
    search_domains: Sequence[str] = ()
    options: Sequence[str] = ()


class Overlap(IntEnum):
    """The effect of a tick while a run has not ended; UNSPECIFIED means SKIP. Numbers of the contract."""

    UNSPECIFIED = 0
    SKIP = 1
    QUEUE_ONE = 2
    REPLACE = 3
    ALLOW = 4


class CatchUp(IntEnum):
    """The treatment of missed ticks; UNSPECIFIED means LATEST. Numbers of the contract."""

    UNSPECIFIED = 0
    LATEST = 1
    NONE = 2
    ALL = 3


DEFAULT_CATCH_UP_WINDOW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Cron:
    """A repeating schedule, as the caller gave it."""

    expression: str
    time_zone: str = ""
    overlap: Overlap = Overlap.UNSPECIFIED
    catch_up: CatchUp = CatchUp.UNSPECIFIED
    paused: bool = False
    catch_up_window: timedelta | None = None
    jitter: timedelta | None = None
    begin_time: datetime | None = None
    end_time: datetime | None = None
    max_runs: int = 0


class Jitter(IntEnum):
    """The randomness of the wait before a retry; UNSPECIFIED means FULL. Numbers of the contract."""

    UNSPECIFIED = 0
    FULL = 1
    NONE = 2


class RetryCause(IntEnum):
    """An end of an attempt that can be retried. Numbers of the contract."""

    EXIT_CODE = 1
    OUT_OF_MEMORY = 2
    TIMED_OUT = 3
    IMAGE_NOT_FOUND = 4
    IMAGE_DENIED = 5


DEFAULT_RETRY_CAUSES = (RetryCause.EXIT_CODE, RetryCause.OUT_OF_MEMORY, RetryCause.TIMED_OUT)


@dataclass(frozen=True, slots=True)
class MemoryGrowth:
    """More memory for the attempt after one that ran out of memory."""

    factor: float
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Retry:
    """The retry policy of a job, as the caller gave it: None and zero stand for the defaults."""

    max_retries: int
    initial_backoff: timedelta | None = None
    factor: float = 0.0
    max_backoff: timedelta | None = None
    jitter: Jitter = Jitter.UNSPECIFIED
    causes: Sequence[RetryCause] = ()
    exit_codes: Sequence[int] = ()
    except_exit_codes: Sequence[int] = ()
    memory_growth: MemoryGrowth | None = None


class Conflict(IntEnum):
    """The treatment of a job whose unique key another one holds; UNSPECIFIED means REFUSE. Numbers of the contract."""

    UNSPECIFIED = 0
    REFUSE = 1
    USE_EXISTING = 2
    REPLACE = 3


@dataclass(frozen=True, slots=True)
class Unique:
    """A key that one open job of a task may hold."""

    key: str
    conflict: Conflict = Conflict.UNSPECIFIED


class NotificationEvent(IntEnum):
    """The kind of end that people are told of; UNSPECIFIED is as RUN_ENDED. Numbers of the contract."""

    UNSPECIFIED = 0
    RUN_ENDED = 1
    JOB_ENDED = 2
    ATTEMPT_ENDED = 3


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver of signed POSTs, as the caller gave it. `secret`: the key of the signature; `secret_name`: its name in
    the server's file of keys. 0 and None stand for the defaults."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    max_retries: int = 0
    secret: str = ""
    secret_name: str = ""
    timeout: timedelta | None = None

    @property
    def host(self) -> str:
        """The host and port that attempts are counted by: the same for each way to write them."""
        parts = urlsplit(self.url)
        host = (parts.hostname or "").rstrip(".")
        with suppress(ValueError):
            host = str(ip_address(host))
        return f"{host}:{parts.port or (443 if parts.scheme.lower() == 'https' else 80)}"

    def redacted(self, secret_names: SecretNames) -> "Webhook":
        """Return the webhook as it may be shown: without secrets."""
        return replace(
            self,
            url=secret_names.mask(self.url),
            headers={name: secret_names.shown_header(name, value) for name, value in self.headers.items()},
            secret=self.secret and REDACTED,
        )


@dataclass(frozen=True, slots=True)
class Mail:
    """Receivers of mails. `subject` empty: one that is made of the task and the state."""

    to: Sequence[str]
    subject: str = ""

    @property
    def host(self) -> str:
        """The name that attempts are counted by: all mails go to one server. Hosts of webhooks have a port."""
        return "mail"

    def redacted(self, secret_names: SecretNames) -> "Mail":
        """Return the mail as it may be shown: without secrets."""
        return replace(self, subject=secret_names.mask(self.subject))


@dataclass(frozen=True, slots=True)
class Notification:
    """A receiver, and the ends that the receiver is told of. No `states`: all final ones."""

    target: Webhook | Mail
    states: Sequence[State] = ()
    event: NotificationEvent = NotificationEvent.UNSPECIFIED

    def redacted(self, secret_names: SecretNames) -> "Notification":
        """Return the notification as it may be shown: without secrets."""
        return replace(self, target=self.target.redacted(secret_names))


DEFAULT_STOP_GRACE = timedelta(seconds=10)


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The choices of a caller about a job, as they were sent. Defaults are filled in where the spec is used."""

    image: str
    command: str = ""
    args: Sequence[str] = ()
    envs: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    working_dir: str = ""
    user: str = ""
    timeout: timedelta | None = None
    pull_policy: PullPolicy = PullPolicy.UNSPECIFIED
    limits: Limits = DEFAULT_LIMITS
    network: str = ""
    read_only_root: bool = False
    stop_signal: str = ""
    stop_grace: timedelta | None = None
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, object] | None = None
    start_in: timedelta | None = None
    start_at: datetime | None = None
    cron: Cron | None = None
    expire_time: datetime | None = None
    retry: Retry | None = None
    notifications: Sequence[Notification] = ()
    unique: Unique | None = None
    history: int = 0
    stop_when_unwatched: timedelta | None = None
    extra_hosts: Mapping[str, str] = field(default_factory=dict)
    tmpfs: Sequence[Tmpfs] = ()
    ulimits: Sequence[Ulimit] = ()
    dns: Dns | None = None
    cap_drop: Sequence[str] = ()
    volumes: Sequence[Volume] = ()
    devices: Sequence[Device] = ()
    gpus: Gpus | None = None
    inputs: Sequence[Input] = ()
    outputs: Sequence[str] = ()
    stdin: Stdin | None = None
    registry_credential: str = ""
    secret_envs: Mapping[str, str] = field(default_factory=dict)

    @property
    def starts_at_once(self) -> bool:
        """Whether the first execution waits for a slot alone, not for a time."""
        return self.start_in is None and self.start_at is None and self.cron is None

    @property
    def has_options(self) -> bool:
        """Whether the job asks for something that few jobs ask for."""
        few = self.extra_hosts or self.tmpfs or self.ulimits or self.cap_drop or self.volumes or self.devices
        return bool(few) or self.dns is not None or self.gpus is not None

    @property
    def needs_permission(self) -> bool:
        """Whether the job asks for something of its host that only an operator allows; see `Allowed`."""
        return bool(self.network or self.volumes or self.devices or self.gpus)

    @property
    def has_contents(self) -> bool:
        """Whether the job has inputs or a standard input, whose contents are stored before the job."""
        return bool(self.inputs) or self.stdin is not None

    @property
    def grace(self) -> timedelta:
        """Time between the signal that asks the container to end and the one that ends it."""
        return DEFAULT_STOP_GRACE if self.stop_grace is None else self.stop_grace

    def redacted(self, secret_names: SecretNames) -> "JobSpec":
        """Return the spec as it may be shown: without secrets."""
        command, envs = secret_names.mask_command(self.command), secret_names.shown_all(self.envs)
        args = secret_names.mask_words(self.args) if self.args else self.args
        entrypoint = secret_names.mask_words(self.entrypoint) if self.entrypoint else self.entrypoint
        labels = {name: secret_names.mask(value) for name, value in self.labels.items()} if self.labels else self.labels
        notifications = self.notifications and tuple(each.redacted(secret_names) for each in self.notifications)
        shown = (command, args, envs, entrypoint, labels, notifications)
        # Most specs hold no secret, and a copy takes longer than the search.
        if shown == (self.command, self.args, self.envs, self.entrypoint, self.labels, self.notifications):
            return self
        return replace(
            self,
            command=command,
            args=args,
            envs=envs,
            entrypoint=entrypoint,
            labels=labels,
            notifications=notifications,
        )


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """A wish of a job that the operator of a host does not allow: its field, what it is, and the setting."""

    field: str
    wish: str
    setting: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """The parts of a host that jobs may use: networks and volumes by name, devices by path, and its GPUs."""

    networks: Set[str] = frozenset()
    volumes: Set[str] = frozenset()
    devices: Set[str] = frozenset()
    gpus: bool = False

    def refused(self, spec: JobSpec) -> Iterator[NotAllowed]:
        """Yield each wish of a job that is not allowed."""
        if spec.network not in {"", "none", *self.networks}:
            yield NotAllowed("spec.network", f"network {spec.network!r}", "allow_networks")
        for number, volume in enumerate(spec.volumes):
            if volume.name not in self.volumes:
                yield NotAllowed(f"spec.volumes[{number}].name", f"volume {volume.name!r}", "allow_volumes")
        for number, device in enumerate(spec.devices):
            if device.path not in self.devices:
                yield NotAllowed(f"spec.devices[{number}].path", f"device {device.path!r}", "allow_devices")
        if spec.gpus and not self.gpus:
            yield NotAllowed("spec.gpus", "use of GPUs", "allow_gpus")


NOTHING_ALLOWED = Allowed()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an execution; set exactly when its state is final. `detail` is always one printable line."""

    reason: Reason = Reason.UNSPECIFIED
    detail: str = ""
    exit_code: int | None = None
    out_of_memory: bool = False
    stop_signal: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", told_line(self.detail))


@dataclass(frozen=True, slots=True)
class LogTotals:
    """The size of one source of a log, in bytes; `crc32` only where every byte was seen."""

    source: Source
    bytes: int
    missing_bytes: int = 0
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that a container used, as the kernel counted. None: the kernel does not tell.

    `memory_bytes` and `time`, when it was counted, are of a container that runs.
    """

    cpu_time: timedelta | None = None
    peak_memory_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    memory_bytes: int | None = None
    time: datetime | None = None


class OutputKind(IntEnum):
    """The kind of an entry of outputs. Numbers of the contract."""

    FILE = 1
    DIRECTORY = 2
    SYMBOLIC_LINK = 3
    HARD_LINK = 4


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """A file, a directory or a link of outputs. `content_offset`: where its content begins in the archive."""

    path: str
    kind: OutputKind
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modify_time: datetime
    target: str
    content_offset: int


class OutputsFault(IntEnum):
    """The reason why outputs were not kept. Numbers of the contract."""

    NONE = 0
    TOO_LARGE = 1
    UNAVAILABLE = 2
    NO_ROOM = 3


@dataclass(frozen=True, slots=True)
class Outputs:
    """The archive of what was kept of an execution's outputs, and the paths that the container did not have."""

    size_bytes: int = 0
    sha256: str = ""
    entries: int = 0
    missing: Sequence[str] = ()
    fault: OutputsFault = OutputsFault.NONE
    detail: str = ""


class Times(NamedTuple):
    """The times of an execution's steps: aware, None until the step is reached."""

    create_time: datetime
    due_time: datetime
    claim_time: datetime | None = None
    pull_time: datetime | None = None
    container_time: datetime | None = None
    start_time: datetime | None = None
    first_byte_time: datetime | None = None
    exit_time: datetime | None = None
    seal_time: datetime | None = None
    end_time: datetime | None = None
    prune_time: datetime | None = None


class StopCause(Enum):
    """The origin of a stop. The first one counts: it decides between STOPPED and TIMED_OUT."""

    CALLER = "caller"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Stop:
    """An order to stop that is on disk: signal, then `grace`, counted from `time`, then kill."""

    cause: StopCause
    time: datetime
    grace: timedelta
    note: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The reason for which an execution waits. `ahead`: how many queued ones of its task and priority go before it, as
    far as they were counted; `due_time`: until when it waits, if that is known."""

    reason: WaitReason
    detail: str
    since_time: datetime
    ahead: int = 0
    due_time: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", told_line(self.detail))


class HostKind(StrEnum):
    """The kind of a host: a Docker engine, or a namespace of a Kubernetes cluster."""

    DOCKER = "docker"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True)
class Nodes:
    """The numbers of nodes of a cluster: those that are ready, and all."""

    ready: int
    total: int


@dataclass(frozen=True, slots=True)
class HostReport:
    """A host as it is now. `last_error` is what it said when it last failed, whatever came after; what is not known is
    empty."""

    name: str
    address: str
    availability: Availability
    running: int
    max_running: int
    last_error: str = ""
    last_error_time: datetime | None = None
    engine_version: str = ""
    capture: str = ""
    capture_reason: str = ""
    drain_note: str = ""
    drain_time: datetime | None = None
    pools: Sequence[str] = ()
    kind: HostKind = HostKind.DOCKER
    nodes: Nodes | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "last_error", told_line(self.last_error))
        object.__setattr__(self, "capture_reason", told_line(self.capture_reason))


class Hold(IntEnum):
    """The reason for which an execution is not queued when it is due."""

    NONE = 0
    # The schedule of its job is paused.
    SCHEDULE_PAUSED = 1
    # Another job holds the unique key of its job.
    UNIQUE_KEY = 2


@dataclass(frozen=True, slots=True)
class Execution:
    """One container. `starting` is the fence: once it is set, a start may have been sent, and never is again.

    From behind `expire_time` on it is not started any more. `tick_time`: the tick that started its run. `tries` counts
    the failures of its run so far that use up retries. `memory_bytes`: its own memory limit; 0: that of the spec.
    """

    id: str
    job_id: str
    task_id: str
    state: State
    times: Times
    state_time: datetime
    run: int = 1
    attempt: int = 1
    outcome: Outcome | None = None
    stop: Stop | None = None
    host: str = ""
    container_id: str = ""
    image_digest: str = ""
    # What the backend remembers of the container, as JSON that only the backend reads.
    handle: str = ""
    starting: bool = False
    logs: Sequence[LogTotals] = ()
    usage: Usage | None = None
    outputs: Outputs | None = None
    expire_time: datetime | None = None
    tick_time: datetime | None = None
    tries: int = 0
    memory_bytes: int = 0
    hold: Hold = Hold.NONE


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """The state of a job's schedule. Values that change at ticks only.

    `handled_time`: the latest tick that was run or skipped; ticks up to it never run again. `pending_time`: a tick that
    waits for the end of the current run. `runs`: how many runs ticks have started. `over`: no tick follows."""

    handled_time: datetime
    pending_time: datetime | None = None
    paused: bool = False
    over: bool = False
    runs: int = 0
    skipped: int = 0
    last_skipped_time: datetime | None = None
    last_skipped_detail: str = ""


ARRAY_INDEX, ARRAY_SIZE = "FASTLANE_ARRAY_INDEX", "FASTLANE_ARRAY_SIZE"


@dataclass(frozen=True, slots=True)
class ArrayPosition:
    """The place of a job within an array of jobs, from 0."""

    index: int
    size: int

    @property
    def envs(self) -> Mapping[str, str]:
        """The variables that tell a container its place."""
        return {ARRAY_INDEX: str(self.index), ARRAY_SIZE: str(self.size)}


@dataclass(frozen=True, slots=True)
class Job:
    """One enqueue, with its current execution: the newest one that is not final, else the newest one.

    While the job is not final, its `state` is that of its current execution; `outcome` and `end_time` are set exactly
    when it is final. `stop_time` says when a caller stopped the job: nothing follows its executions then. `executions`
    counts those that the job has had, `runs` its runs. `spec` is None where it was not asked for. `schedule` is set
    exactly if the spec has a schedule; `tick_time` is its next tick while a run is under way. `revision` counts the
    changes of spec and schedule by callers."""

    id: str
    task_id: str
    spec: JobSpec | None
    execution: Execution
    create_time: datetime
    state: State
    executions: int = 1
    request_id: str = ""
    caller_address: str = ""
    outcome: Outcome | None = None
    end_time: datetime | None = None
    stop_time: datetime | None = None
    runs: int = 1
    schedule: ScheduleState | None = None
    tick_time: datetime | None = None
    revision: int = 1
    array: ArrayPosition | None = None
    # Who enqueued it, and who stopped it first of all; empty: not known, or nobody.
    caller: str = ""
    stop_caller: str = ""


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """The limits of a task. Zero: no limit. `rate_window` is set exactly if `max_starts` is."""

    max_running: int = 0
    paused: bool = False
    max_starts: int = 0
    rate_window: timedelta | None = None
    # Not a limit, but kept like one: of jobs that have none of their own.
    notifications: Sequence[Notification] = ()


NO_LIMITS = TaskLimits()


@dataclass(frozen=True, slots=True)
class TaskLimitsChange:
    """Limits to set. None: the limit stays as it is. `rate_window` goes with `max_starts`."""

    max_running: int | None = None
    paused: bool | None = None
    max_starts: int | None = None
    rate_window: timedelta | None = None
    notifications: Sequence[Notification] | None = None

    def applied_to(self, limits: TaskLimits) -> TaskLimits:
        """Return the limits with this change."""
        if self.max_starts is not None:
            rate_window = self.rate_window if self.max_starts else None
            limits = replace(limits, max_starts=self.max_starts, rate_window=rate_window)
        if self.max_running is not None:
            limits = replace(limits, max_running=self.max_running)
        if self.notifications is not None:
            limits = replace(limits, notifications=self.notifications)
        return limits if self.paused is None else replace(limits, paused=self.paused)


@dataclass(frozen=True, slots=True)
class Task:
    """A name that jobs are grouped by, with the number of those that are kept, and of those that are not final.

    The times are None for a task without jobs, which exists as long as it has limits. `running` counts the executions
    that are PREPARING, RUNNING or STOPPING."""

    id: str
    create_time: datetime | None
    last_enqueue_time: datetime | None
    jobs: int
    open_jobs: int
    running: int = 0
    limits: TaskLimits = NO_LIMITS


class DeliveryState(IntEnum):
    """Whether a notification was delivered. Numbers of the contract."""

    PENDING = 1
    DELIVERED = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Delivery:
    """A notification of one receiver. `notification`: its target has one receiver.

    `job` and `execution` are as they were when the end was noticed: `execution` has ended, `job` has no spec.
    `ended_state`: that of the job or the execution, as the event says. `next_time`: when an attempt is due; None: it
    waits for an earlier notification, or is over."""

    id: str
    event: NotificationEvent
    ended_state: State
    notification: Notification
    job: Job
    labels: Mapping[str, str]
    state: DeliveryState
    attempts: int
    create_time: datetime
    next_time: datetime | None = None
    last_time: datetime | None = None
    end_time: datetime | None = None
    detail: str = ""

    @property
    def execution(self) -> Execution:
        return self.job.execution

    @property
    def receiver(self) -> str:
        """The URL or the address."""
        target = self.notification.target
        return target.url if isinstance(target, Webhook) else target.to[0]


@dataclass(frozen=True, slots=True)
class Assignment:
    """An execution that has a place, and what to run in it. `trace`: the context of the call that enqueued its job, as
    text; empty: it had none."""

    execution: Execution
    spec: JobSpec
    trace: str = ""


# What a program that stands for an execution exits with, where the container's own code does not say it: the codes of
# timeout(1), of a shell whose command was interrupted, of `docker run` and of sysexits.h (try again).
TIMED_OUT_STATUS = 124
STOPPED_STATUS = 130
NO_CONTAINER_STATUS = 125
NOT_SEALED_STATUS = 75


def exit_status(state: State, outcome: Outcome | None) -> int:
    """The `exit_status` of a log's end; 0 exactly when the state is SUCCEEDED."""
    if outcome is None or not state.final:
        return NOT_SEALED_STATUS
    if state is State.SUCCEEDED:
        return 0
    if state is State.TIMED_OUT:
        return TIMED_OUT_STATUS
    if state is State.STOPPED:
        return STOPPED_STATUS
    if state is State.FAILED and outcome.exit_code:
        return outcome.exit_code
    return NO_CONTAINER_STATUS


def utc_now() -> datetime:
    """The wall clock, aware, to the microsecond."""
    return datetime.now(UTC)


def new_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random bits, so that ids of one server sort by the time they
    were made."""
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_ids(count: int) -> list[str]:
    """Return ids as `new_id` makes them, a third of its cost each, in ascending order: 12 of their random bits count
    them, so that indexes grow at their ends. `count`: at most 4096."""
    time_text, data = f"{time.time_ns() // 1_000_000 & (1 << 48) - 1:012x}", os.urandom(8 * count).hex()
    begin = f"{time_text[:8]}-{time_text[8:]}-7"
    return [
        f"{begin}{number:03x}-{_VARIANT[data[at]]}{data[at + 1 : at + 4]}-{data[at + 4 : at + 16]}"
        for number, at in enumerate(range(0, len(data), 16))
    ]


# The first digit of the fourth group of an id, which has two random bits, for each random digit.
_VARIANT = {f"{digit:x}": "89ab"[digit & 3] for digit in range(16)}
