"""Every use case, once: what may be asked, what is done, what is answered. Knows nothing of gRPC."""

from fastlane_grpc.service.log_stream import (
    Beat,
    LogEvent,
    LogRequest,
    Sealed,
    Send,
    StateChanged,
    StreamEncoding,
    Unsealed,
)
from fastlane_grpc.service.pages import Listed, PageRequest, TaskQuery
from fastlane_grpc.service.service import EnqueueRequest, PruneRequest, Service
from fastlane_grpc.store import ExecutionQuery, JobQuery

__all__ = [
    "Beat",
    "EnqueueRequest",
    "ExecutionQuery",
    "JobQuery",
    "Listed",
    "LogEvent",
    "LogRequest",
    "PageRequest",
    "PruneRequest",
    "Sealed",
    "Send",
    "Service",
    "StateChanged",
    "StreamEncoding",
    "TaskQuery",
    "Unsealed",
]
