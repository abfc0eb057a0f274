"""The one table of errors: the codes and the reason of each class, and the `google.rpc.Status` made from them.

A class that is not in the table has the entry of its nearest base class. Any other exception is a defect."""

import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from fastlane_grpc import errors
from fastlane_grpc.v1 import fastlane_pb2 as pb

log = structlog.get_logger(__name__)

Reason = pb.ErrorReason
# A number of google.rpc.Code, as gRPC uses them.
Code: TypeAlias = int


class ErrorEntry(NamedTuple):
    """The code, the reason and the status of HTTP of one class of errors."""

    code: Code
    reason: "Reason.ValueType"
    http_status: int


DEFECT = ErrorEntry(code_pb2.INTERNAL, Reason.ERROR_REASON_DEFECT, 500)

TABLE: Mapping[type[errors.Refusal], ErrorEntry] = {
    errors.InvalidRequest: ErrorEntry(code_pb2.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_FIELD, 400),
    errors.UnknownField: ErrorEntry(code_pb2.UNIMPLEMENTED, Reason.ERROR_REASON_UNKNOWN_FIELD, 400),
    errors.CursorInvalid: ErrorEntry(code_pb2.INVALID_ARGUMENT, Reason.ERROR_REASON_CURSOR_INVALID, 400),
    errors.CursorOfAnotherExecution: ErrorEntry(
        code_pb2.INVALID_ARGUMENT, Reason.ERROR_REASON_CURSOR_OF_ANOTHER_EXECUTION, 400
    ),
    errors.CursorOfAnotherJob: ErrorEntry(code_pb2.INVALID_ARGUMENT, Reason.ERROR_REASON_CURSOR_OF_ANOTHER_JOB, 400),
    errors.CursorAhead: ErrorEntry(code_pb2.OUT_OF_RANGE, Reason.ERROR_REASON_CURSOR_AHEAD, 409),
    errors.PageTokenInvalid: ErrorEntry(code_pb2.INVALID_ARGUMENT, Reason.ERROR_REASON_PAGE_TOKEN_INVALID, 400),
    errors.TaskNotFound: ErrorEntry(code_pb2.NOT_FOUND, Reason.ERROR_REASON_TASK_NOT_FOUND, 404),
    errors.JobNotFound: ErrorEntry(code_pb2.NOT_FOUND, Reason.ERROR_REASON_JOB_NOT_FOUND, 404),
    errors.ExecutionNotFound: ErrorEntry(code_pb2.NOT_FOUND, Reason.ERROR_REASON_EXECUTION_NOT_FOUND, 404),
    errors.RegistryCredentialNotFound: ErrorEntry(
        code_pb2.NOT_FOUND, Reason.ERROR_REASON_REGISTRY_CREDENTIAL_NOT_FOUND, 404
    ),
    errors.SecretNotFound: ErrorEntry(code_pb2.NOT_FOUND, Reason.ERROR_REASON_SECRET_NOT_FOUND, 404),
    errors.DeliveryNotFound: ErrorEntry(code_pb2.NOT_FOUND, Reason.ERROR_REASON_DELIVERY_NOT_FOUND, 404),
    errors.OutputsNotFound: ErrorEntry(code_pb2.NOT_FOUND, Reason.ERROR_REASON_OUTPUTS_NOT_FOUND, 404),
    errors.RequestIdReused: ErrorEntry(code_pb2.ALREADY_EXISTS, Reason.ERROR_REASON_REQUEST_ID_REUSED, 409),
    errors.HostNotFound: ErrorEntry(code_pb2.NOT_FOUND, Reason.ERROR_REASON_HOST_NOT_FOUND, 404),
    errors.JobNotFinal: ErrorEntry(code_pb2.FAILED_PRECONDITION, Reason.ERROR_REASON_JOB_NOT_FINAL, 409),
    errors.JobExpired: ErrorEntry(code_pb2.FAILED_PRECONDITION, Reason.ERROR_REASON_JOB_EXPIRED, 409),
    errors.NoSchedule: ErrorEntry(code_pb2.FAILED_PRECONDITION, Reason.ERROR_REASON_NO_SCHEDULE, 409),
    errors.EtagMismatch: ErrorEntry(code_pb2.ABORTED, Reason.ERROR_REASON_JOB_CHANGED, 412),
    errors.UniqueKeyTaken: ErrorEntry(code_pb2.ALREADY_EXISTS, Reason.ERROR_REASON_UNIQUE_KEY_TAKEN, 409),
    errors.CursorTooOld: ErrorEntry(code_pb2.OUT_OF_RANGE, Reason.ERROR_REASON_CURSOR_TOO_OLD, 410),
    errors.QueueFull: ErrorEntry(code_pb2.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_QUEUE_FULL, 429),
    errors.DiskFull: ErrorEntry(code_pb2.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_DISK_FULL, 507),
    errors.TooManyStreams: ErrorEntry(code_pb2.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_TOO_MANY_STREAMS, 429),
    errors.TokenRequired: ErrorEntry(code_pb2.UNAUTHENTICATED, Reason.ERROR_REASON_TOKEN_REQUIRED, 401),
    errors.TokenInvalid: ErrorEntry(code_pb2.UNAUTHENTICATED, Reason.ERROR_REASON_TOKEN_INVALID, 401),
    errors.TokenExpired: ErrorEntry(code_pb2.UNAUTHENTICATED, Reason.ERROR_REASON_TOKEN_EXPIRED, 401),
    errors.PermissionDenied: ErrorEntry(code_pb2.PERMISSION_DENIED, Reason.ERROR_REASON_PERMISSION_DENIED, 403),
    errors.TooManyAttempts: ErrorEntry(code_pb2.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_TOO_MANY_ATTEMPTS, 429),
    errors.ServerStopping: ErrorEntry(code_pb2.UNAVAILABLE, Reason.ERROR_REASON_SERVER_STOPPING, 503),
    errors.StoreFailed: ErrorEntry(code_pb2.UNAVAILABLE, Reason.ERROR_REASON_STORE_FAILED, 503),
}

# Some clients turn trailers of 14 KB into RESOURCE_EXHAUSTED, and trailers hold the message too, percent-encoded.
_MAX_MESSAGE = 1000
_MAX_DETAILS_BYTES = 4096
_MAX_VIOLATIONS = 16


def entry_of(error: Exception) -> ErrorEntry:
    """Return the entry of the error's class, or of its nearest base class that has one; else DEFECT."""
    return next((TABLE[each] for each in type(error).__mro__ if each in TABLE), DEFECT)


def status_of(error: Exception) -> status_pb2.Status:
    """Return the status that a caller is sent. A defect is logged under the number that its status names."""
    entry = entry_of(error)
    if entry is DEFECT or not isinstance(error, errors.Refusal):
        return _defect_status(error)
    message = _message(error)
    details: list[Message] = [_error_info(entry.reason, error.metadata)]
    if error.retry_seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_seconds)))
    if error.violations:
        details.append(_bad_request(error.violations))
    return _status(entry.code, message, details)


def rejection_of(error: errors.Refusal) -> pb.Rejection:
    """Return what the status of the error says, as a part of a response."""
    entry = entry_of(error)
    rejection = pb.Rejection(
        code=entry.code, reason=entry.reason, message=_message(error), metadata=_metadata(error.metadata)
    )
    if error.violations:
        for violation in _bad_request(error.violations).field_violations:
            rejection.violations.add(field=violation.field, description=violation.description)
    return rejection


def _message(error: errors.Refusal) -> str:
    # In ASCII: gRPC sends every other byte as three.
    return str(error).encode("ascii", "backslashreplace").decode()[:_MAX_MESSAGE]


def _metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    return {key: value[:200] for key, value in metadata.items()}


def _defect_status(error: Exception) -> status_pb2.Status:
    number = uuid.uuid4().hex[:12]
    log.error("a defect in a call", defect=number, exc_info=error)
    message = f"a defect of fastlane; the server's log has more under {number}"
    return _status(DEFECT.code, message, [_error_info(DEFECT.reason, {"defect": number})])


def _error_info(reason: "Reason.ValueType", metadata: Mapping[str, str]) -> error_details_pb2.ErrorInfo:
    name = Reason.Name(reason).removeprefix("ERROR_REASON_")
    return error_details_pb2.ErrorInfo(domain="fastlane", reason=name, metadata=_metadata(metadata))


def _bad_request(violations: Sequence[errors.Violation]) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in violations[:_MAX_VIOLATIONS]:
        bad_request.field_violations.add(
            field=_encodable(violation.field[:200]), description=_encodable(violation.description[:300])
        )
        if bad_request.ByteSize() > _MAX_DETAILS_BYTES - 500:
            del bad_request.field_violations[-1]
            break
    return bad_request


def _encodable(text: str) -> str:
    """Return the text with halves of characters, which JSON can name, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _status(code: Code, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
