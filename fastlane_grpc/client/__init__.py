"""The Python client, blocking and asyncio. A tail never repeats a byte and never drops one in silence; calls are tried
again while the server cannot be reached."""

from fastlane_grpc.client.async_tail import AsyncTail
from fastlane_grpc.client.asynchronous import AsyncClient
from fastlane_grpc.client.batches import EnqueueResult
from fastlane_grpc.client.blocking import Client
from fastlane_grpc.client.channel import proxy
from fastlane_grpc.client.errors import (
    CursorRefused,
    Error,
    Exhausted,
    InvalidRequest,
    InvalidText,
    JobChanged,
    JobExpired,
    JobNotFinal,
    LogInconsistent,
    NoSchedule,
    NotFound,
    RequestIdReused,
    ServerDefect,
    ServerUnavailable,
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
from fastlane_grpc.client.policies import Cron, Duration, MemoryGrowth, Retry, Unique
from fastlane_grpc.client.requests import (
    ExecutionFilter,
    JobFilter,
    JobOptions,
    JobSelection,
    TailOptions,
    job_request,
)
from fastlane_grpc.client.responses import as_json, exit_status
from fastlane_grpc.client.retries import Backoff
from fastlane_grpc.client.tail import Tail

__all__ = [
    "STDERR",
    "STDOUT",
    "SYSTEM",
    "AsyncClient",
    "AsyncTail",
    "Backoff",
    "Client",
    "Cron",
    "CursorRefused",
    "Disconnected",
    "Duration",
    "End",
    "EnqueueResult",
    "Error",
    "Event",
    "ExecutionFilter",
    "ExecutionStart",
    "Exhausted",
    "Gap",
    "InvalidRequest",
    "InvalidText",
    "JobChanged",
    "JobEnd",
    "JobExpired",
    "JobFilter",
    "JobNotFinal",
    "JobOptions",
    "JobSelection",
    "LogInconsistent",
    "MemoryGrowth",
    "NoSchedule",
    "NotFound",
    "Output",
    "Reconnected",
    "RequestIdReused",
    "Retry",
    "ServerDefect",
    "ServerUnavailable",
    "StateChange",
    "Tail",
    "TailOptions",
    "Unique",
    "UniqueKeyTaken",
    "UnknownField",
    "as_json",
    "exit_status",
    "job_request",
    "proxy",
]
