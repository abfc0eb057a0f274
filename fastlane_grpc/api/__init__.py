"""The calls of the contract without a transport: a request message in, a response message out.

Owns the rules for requests, paging, log streams, the conversion between model and messages, and the table of errors.
Imports protobuf but not gRPC, so that any transport can serve the same calls."""

from fastlane_grpc.api.calls import Calls
from fastlane_grpc.api.inputs import Inputs
from fastlane_grpc.api.log_stream import (
    Heartbeat,
    LogEnded,
    LogEvent,
    LogRequest,
    LogSuspended,
    Send,
    StateChanged,
    StreamEncoding,
)
from fastlane_grpc.api.notification_payload import payload
from fastlane_grpc.api.notification_validation import Receivers
from fastlane_grpc.api.outputs import OutputReader
from fastlane_grpc.api.pages import PageRequest, PageResult, TaskQuery
from fastlane_grpc.api.service import EnqueueRequest, PruneRequest, Service
from fastlane_grpc.store import ExecutionQuery, JobQuery

__all__ = [
    "Calls",
    "EnqueueRequest",
    "ExecutionQuery",
    "Heartbeat",
    "Inputs",
    "JobQuery",
    "LogEnded",
    "LogEvent",
    "LogRequest",
    "LogSuspended",
    "OutputReader",
    "PageRequest",
    "PageResult",
    "PruneRequest",
    "Receivers",
    "Send",
    "Service",
    "StateChanged",
    "StreamEncoding",
    "TaskQuery",
    "payload",
]
