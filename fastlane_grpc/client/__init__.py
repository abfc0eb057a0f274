"""The Python client, blocking and asyncio. A tail never repeats a byte and never drops one in silence; calls are tried
again while the server cannot be reached."""

from fastlane_grpc.client.async_tail import AsyncTail
from fastlane_grpc.client.async_watch import AsyncWatch
from fastlane_grpc.client.asynchronous import AsyncClient
from fastlane_grpc.client.batches import EnqueueResult
from fastlane_grpc.client.blocking import Client
from fastlane_grpc.client.channel import proxy
from fastlane_grpc.client.containers import Device, Dns, Gpus, Tmpfs, Ulimit, Volume
from fastlane_grpc.client.errors import (
    CursorRefused,
    Error,
    EtagMismatch,
    Exhausted,
    InvalidRequest,
    InvalidText,
    JobExpired,
    JobNotFinal,
    LogInconsistent,
    NoSchedule,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    ServerDefect,
    ServerUnavailable,
    TlsFailed,
    Unauthenticated,
    UniqueKeyTaken,
    UnknownField,
)
from fastlane_grpc.client.events import (
    STDERR,
    STDOUT,
    SYSTEM,
    Disconnected,
    End,
    Event,
    ExecutionStart,
    Gap,
    JobEnd,
    Output,
    Reconnected,
    StateChange,
)
from fastlane_grpc.client.inputs import CannotPack, Input, Stdin, packed
from fastlane_grpc.client.json_requests import request_from_json
from fastlane_grpc.client.outputs import CannotUnpack, OutputsDamaged, unpack_outputs
from fastlane_grpc.client.policies import Cron, Duration, Mail, MemoryGrowth, Retry, Unique, Webhook
from fastlane_grpc.client.requests import (
    AuditFilter,
    DeliveryFilter,
    ExecutionFilter,
    ExecutionTailOptions,
    JobFilter,
    JobOptions,
    JobSelection,
    TailOptions,
    WatchOptions,
    job_request,
)
from fastlane_grpc.client.responses import as_json, exit_status
from fastlane_grpc.client.retries import Backoff
from fastlane_grpc.client.tail import Tail
from fastlane_grpc.client.tls import advice as tls_advice
from fastlane_grpc.client.watch import Watch
from fastlane_grpc.client.watch_events import CaughtUp, ChangesMissed, JobChanged, JobPruned, WatchEvent

__all__ = [
    "STDERR",
    "STDOUT",
    "SYSTEM",
    "AsyncClient",
    "AsyncTail",
    "AsyncWatch",
    "AuditFilter",
    "Backoff",
    "CannotPack",
    "CannotUnpack",
    "CaughtUp",
    "ChangesMissed",
    "Client",
    "Cron",
    "CursorRefused",
    "DeliveryFilter",
    "Device",
    "Disconnected",
    "Dns",
    "Duration",
    "End",
    "EnqueueResult",
    "Error",
    "EtagMismatch",
    "Event",
    "ExecutionFilter",
    "ExecutionStart",
    "ExecutionTailOptions",
    "Exhausted",
    "Gap",
    "Gpus",
    "Input",
    "InvalidRequest",
    "InvalidText",
    "JobChanged",
    "JobEnd",
    "JobExpired",
    "JobFilter",
    "JobNotFinal",
    "JobOptions",
    "JobPruned",
    "JobSelection",
    "LogInconsistent",
    "Mail",
    "MemoryGrowth",
    "NoSchedule",
    "NotFound",
    "Output",
    "OutputsDamaged",
    "PermissionDenied",
    "Reconnected",
    "RequestIdReused",
    "Retry",
    "ServerDefect",
    "ServerUnavailable",
    "StateChange",
    "Stdin",
    "Tail",
    "TailOptions",
    "TlsFailed",
    "Tmpfs",
    "Ulimit",
    "Unauthenticated",
    "Unique",
    "UniqueKeyTaken",
    "UnknownField",
    "Volume",
    "Watch",
    "WatchEvent",
    "WatchOptions",
    "Webhook",
    "as_json",
    "exit_status",
    "job_request",
    "packed",
    "proxy",
    "request_from_json",
    "tls_advice",
    "unpack_outputs",
]
