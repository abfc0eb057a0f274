"""The exceptions of the clients: a class for each kind of error, chosen by the reason of the contract, else by the
status code."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from fastlane_grpc.v1 import fastlane_pb2

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

    @property
    def resumable(self) -> bool:
        """A stream that ended like this may be resumed. Without a reason RESOURCE_EXHAUSTED is a proxy's or the
        connection's: the request of a stream is never too large."""
        return self.passing or (not self.reason and self.code is grpc.StatusCode.RESOURCE_EXHAUSTED)


class NotFound(Error):
    """No task, job, execution, host or delivery has this id."""


class InvalidRequest(Error):
    """The request has invalid fields: `violations` lists each field and what is wrong with it."""

    violations: Sequence[tuple[str, str]] = ()


class InvalidText(InvalidRequest, ValueError):
    """A text that cannot be sent, as it is not UTF-8: bytes, or half a character. Found before the call; `violations`
    names its field."""

    def __init__(self, field: str) -> None:
        what = "is not valid UTF-8; check the encoding of its source"
        super().__init__(f"{field}: {what}", code=grpc.StatusCode.INVALID_ARGUMENT)
        self.violations = ((field, what),)


class UnknownField(Error):
    """The server is older than this client and does not know a field that was set, or the call itself."""


class RequestIdReused(Error):
    """The request_id belongs to an earlier, different request; `metadata["job_id"]` is its job."""


class JobNotFinal(Error):
    """The job has not ended, so it cannot be retried."""


class JobExpired(Error):
    """The expire_time of the job has passed, so it cannot be retried."""


class EtagMismatch(Error):
    """The job was changed since its etag was read; `metadata["etag"]` is the current one."""


class UniqueKeyTaken(Error):
    """A job that has not ended holds the unique key; `metadata["job_id"]` is that job."""


class NoSchedule(Error):
    """The job has no schedule, or its schedule is over."""


class CursorRefused(Error):
    """The cursor is invalid, is from another execution or job, is beyond the end of the log, or is too old."""


class Exhausted(Error):
    """The server is at a limit: the disk or the queue is full, or too many streams are open."""


class ServerUnavailable(Error):
    """The server does not respond, is shutting down, or cannot use its data directory."""


class Unauthenticated(Error):
    """The call has no token, or one that is not valid any more."""


class PermissionDenied(Error):
    """The token does not allow the call. If its role is too low, `metadata["role"]` is the role that the call needs."""


class TlsFailed(ServerUnavailable):
    """The connection cannot be encrypted: a file cannot be used, or one side does not accept the other. Repeating the
    call does not help."""

    @property
    def passing(self) -> bool:
        """The same call may succeed later."""
        return False


class ServerDefect(Error):
    """A defect of the server; the message has an id that is also in the server's log."""


class LogInconsistent(Error):
    """A tail received an inconsistent log: repeated bytes, missing bytes without a gap, or a wrong checksum."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=grpc.StatusCode.DATA_LOSS)


BY_REASON: Mapping[str, type[Error]] = {
    "INVALID_FIELD": InvalidRequest,
    "UNKNOWN_FIELD": UnknownField,
    "CURSOR_INVALID": CursorRefused,
    "CURSOR_OF_ANOTHER_EXECUTION": CursorRefused,
    "CURSOR_AHEAD": CursorRefused,
    "CURSOR_OF_ANOTHER_JOB": CursorRefused,
    "CURSOR_TOO_OLD": CursorRefused,
    "PAGE_TOKEN_INVALID": InvalidRequest,
    "TASK_NOT_FOUND": NotFound,
    "JOB_NOT_FOUND": NotFound,
    "EXECUTION_NOT_FOUND": NotFound,
    "OUTPUTS_NOT_FOUND": NotFound,
    "HOST_NOT_FOUND": NotFound,
    "DELIVERY_NOT_FOUND": NotFound,
    "REGISTRY_CREDENTIAL_NOT_FOUND": NotFound,
    "SECRET_NOT_FOUND": NotFound,
    "REQUEST_ID_REUSED": RequestIdReused,
    "JOB_NOT_FINAL": JobNotFinal,
    "JOB_EXPIRED": JobExpired,
    "JOB_CHANGED": EtagMismatch,
    "UNIQUE_KEY_TAKEN": UniqueKeyTaken,
    "NO_SCHEDULE": NoSchedule,
    "QUEUE_FULL": Exhausted,
    "DISK_FULL": Exhausted,
    "TOO_MANY_STREAMS": Exhausted,
    "TOKEN_REQUIRED": Unauthenticated,
    "TOKEN_INVALID": Unauthenticated,
    "TOKEN_EXPIRED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "TOO_MANY_ATTEMPTS": Exhausted,
    "SERVER_STOPPING": ServerUnavailable,
    "STORE_FAILED": ServerUnavailable,
    "DEFECT": ServerDefect,
}

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

# For an answer without a reason, or with one that this client does not know yet.
_BY_CODE: Mapping[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: UnknownField,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ServerUnavailable,
}

# What the network and proxies answer in the server's place when they cut: the server's own errors have a reason.
_CUTS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


def cut(message: str) -> Error:
    """Return the error of a stream that ended early."""
    return ServerUnavailable(message, code=grpc.StatusCode.UNAVAILABLE)


def ended_early() -> Error:
    return cut("the stream ended early, without an end message")


def fell_silent(silence_seconds: float) -> Error:
    return cut(f"no message for {silence_seconds:g} s, not even a heartbeat")


def error_of(failure: "grpc.RpcError | grpc.aio.AioRpcError") -> Error:
    """Return the error of a failed call, of a blocking or an asyncio channel."""
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
    if not info.reason and (fault := _tls_fault(message)):
        return TlsFailed(fault, code=grpc.StatusCode.UNAUTHENTICATED)
    error = kind(message, code=code, reason=info.reason, metadata=dict(info.metadata), retry_seconds=retry_seconds)
    if isinstance(error, InvalidRequest):
        error.violations = tuple((violation.field, violation.description) for violation in bad_request.field_violations)
    return error


def _tls_fault(details: str) -> str:
    """Return what gRPC's words for a failed handshake mean; empty: there was none."""
    return next((fault for words, fault in _TLS_FAULTS.items() if words in details), "")


# In this order: an expired certificate fails the same check as one of an unknown authority.
_TLS_FAULTS: Mapping[str, str] = {
    "certificate has expired": "the server's certificate has expired",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is signed by an unknown authority: check tls_ca",
    "is not in peer certificate": "the server's certificate is for another name than that of the address",
    "Hostname Verification Check failed": "the server's certificate is for another name than that of the address",
    "WRONG_VERSION_NUMBER": "the server does not speak TLS: leave out tls_ca, tls_cert and tls_key",
}


def rejected(rejection: fastlane_pb2.Rejection) -> Error:
    """Return the error of one request of a batch: the one that its own call would have raised."""
    code = _CODES.get(rejection.code, grpc.StatusCode.UNKNOWN)
    number = int(rejection.reason)
    known = fastlane_pb2.ErrorReason.values()
    # A reason that this client does not know has no name.
    name = fastlane_pb2.ErrorReason.Name(rejection.reason) if number in known else ""
    reason = name.removeprefix("ERROR_REASON_")
    kind = BY_REASON.get(reason) or _BY_CODE.get(code, Error)
    error = kind(rejection.message, code=code, reason=reason, metadata=dict(rejection.metadata))
    if isinstance(error, InvalidRequest):
        error.violations = tuple((violation.field, violation.description) for violation in rejection.violations)
    return error


def _rich_status(trailers: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status:
    """Return the details of a status beyond code and message; empty if the status is not from the server."""
    for key, value in trailers:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()
