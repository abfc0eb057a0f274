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
    LogInconsistent,
    NotFound,
    RequestIdReused,
    ServerDefect,
    ServerUnavailable,
    UnknownField,
)
from fastlane_grpc.client.events import (
    STDERR,
    STDOUT,
    SYSTEM,
    Disconnected,
    End,
    Event,
    Gap,
    Output,
    Reconnected,
    StateChange,
)
from fastlane_grpc.client.requests import (
    Duration,
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
    "CursorRefused",
    "Disconnected",
    "Duration",
    "End",
    "EnqueueResult",
    "Error",
    "Event",
    "ExecutionFilter",
    "Exhausted",
    "Gap",
    "InvalidRequest",
    "InvalidText",
    "JobFilter",
    "JobOptions",
    "JobSelection",
    "LogInconsistent",
    "NotFound",
    "Output",
    "Reconnected",
    "RequestIdReused",
    "ServerDefect",
    "ServerUnavailable",
    "StateChange",
    "Tail",
    "TailOptions",
    "UnknownField",
    "as_json",
    "exit_status",
    "job_request",
    "proxy",
]
