"""What goes wrong, as exceptions: one class for each kind of answer, chosen by the reason of the contract, else by the
status code."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_NONE: Mapping[str, str] = MappingProxyType({})


class Error(Exception):
    """A call that failed. `reason` is a name of `fastlane.v1.ErrorReason` without its prefix, `metadata` says which one
    it is about.

    Where the answer is not the server's (the network's, a proxy's, this client's own finding) `reason` is empty.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] = _NONE,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = metadata
        self.retry_seconds = retry_seconds

    @property
    def passing(self) -> bool:
        """The same call may succeed later."""
        return self.retry_seconds is not None or (not self.reason and self.code in _CUTS)


class NotFound(Error):
    """There is no task, job or execution of that id."""


class InvalidRequest(Error):
    """Fields of the request cannot be as they are: `violations` has each with what is wrong with it."""

    violations: Sequence[tuple[str, str]] = ()


class InvalidText(InvalidRequest, ValueError):
    """A text that cannot be sent, as it is not UTF-8: bytes, or half a character. Found before the call; `violations`
    names its field."""

    def __init__(self, field: str) -> None:
        what = "is not text that can be sent as UTF-8; check the encoding of where it comes from"
        super().__init__(f"{field}: {what}", code=grpc.StatusCode.INVALID_ARGUMENT)
        self.violations = ((field, what),)


class UnknownField(Error):
    """The server is older than this client and does not know a field that was set, or the call itself."""


class RequestIdReused(Error):
    """The request_id came with another request before; `metadata["job_id"]` is the job it made."""


class CursorRefused(Error):
    """The cursor is none, is of another execution, or lies beyond the end of the log."""


class Exhausted(Error):
    """The server has no room: the disk or the queue is full, or too many streams are open."""


class ServerUnavailable(Error):
    """The server does not answer, or is going down, or cannot use its data directory."""


class ServerDefect(Error):
    """A defect of the server; the message carries an id that is in its log."""


class LogInconsistent(Error):
    """What a tail received cannot be right: bytes twice, bytes missing without a gap, or other bytes than were
    written."""


BY_REASON: Mapping[str, type[Error]] = {
    "INVALID_FIELD": InvalidRequest,
    "UNKNOWN_FIELD": UnknownField,
    "CURSOR_INVALID": CursorRefused,
    "CURSOR_OF_ANOTHER_EXECUTION": CursorRefused,
    "CURSOR_AHEAD": CursorRefused,
    "PAGE_TOKEN_INVALID": InvalidRequest,
    "TASK_NOT_FOUND": NotFound,
    "JOB_NOT_FOUND": NotFound,
    "EXECUTION_NOT_FOUND": NotFound,
    "REQUEST_ID_REUSED": RequestIdReused,
    "QUEUE_FULL": Exhausted,
    "DISK_FULL": Exhausted,
    "TOO_MANY_STREAMS": Exhausted,
    "SERVER_STOPPING": ServerUnavailable,
    "STORE_FAILED": ServerUnavailable,
    "DEFECT": ServerDefect,
}

# For an answer without a reason, or with one that this client does not know yet.
_BY_CODE: Mapping[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: UnknownField,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ServerUnavailable,
}

# What the network and proxies answer in the server's place when they cut: the server's own errors have a reason.
_CUTS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


def cut(message: str) -> Error:
    """A stream that ended where it should not have."""
    return ServerUnavailable(message, code=grpc.StatusCode.UNAVAILABLE)


def ended_early() -> Error:
    return cut("the stream ended before its end")


def fell_silent(silence_seconds: float) -> Error:
    return cut(f"nothing came for {silence_seconds:g} s, not even a heartbeat")


def error_of(failure: "grpc.RpcError | grpc.aio.AioRpcError") -> Error:
    """A failed call, of either kind of channel, in the words above."""
    code = failure.code()
    status = _rich_status(cast(Iterable[tuple[str, str | bytes]], failure.trailing_metadata() or ()))
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for known in (info, bad_request, retry):
            detail.Unpack(known)
    retry_seconds = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    if info.domain != "fastlane":
        info.Clear()
    kind = BY_REASON.get(info.reason) or _BY_CODE.get(code, Error)
    message = status.message or failure.details() or code.name
    error = kind(message, code=code, reason=info.reason, metadata=dict(info.metadata), retry_seconds=retry_seconds)
    if isinstance(error, InvalidRequest):
        error.violations = tuple((violation.field, violation.description) for violation in bad_request.field_violations)
    return error


def _rich_status(trailers: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status:
    """What the server said beyond code and message; empty where it was not the server that answered."""
    for key, value in trailers:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()
