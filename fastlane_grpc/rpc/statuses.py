"""Which error of ours is which status on the wire: one table, and the details of google.rpc that go with it."""

import uuid
from collections.abc import Mapping
from typing import NoReturn

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from fastlane_grpc import errors
from fastlane_grpc.v1 import fastlane_pb2 as pb

log = structlog.get_logger(__name__)

Reason = pb.ErrorReason

_TABLE: dict[type[errors.Refusal], tuple[grpc.StatusCode, "Reason.ValueType"]] = {
    errors.InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_FIELD),
    errors.UnknownField: (grpc.StatusCode.UNIMPLEMENTED, Reason.ERROR_REASON_UNKNOWN_FIELD),
    errors.CursorInvalid: (grpc.StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_CURSOR_INVALID),
    errors.CursorOfAnotherExecution: (
        grpc.StatusCode.INVALID_ARGUMENT,
        Reason.ERROR_REASON_CURSOR_OF_ANOTHER_EXECUTION,
    ),
    errors.CursorAhead: (grpc.StatusCode.OUT_OF_RANGE, Reason.ERROR_REASON_CURSOR_AHEAD),
    errors.PageTokenInvalid: (grpc.StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_PAGE_TOKEN_INVALID),
    errors.TaskNotFound: (grpc.StatusCode.NOT_FOUND, Reason.ERROR_REASON_TASK_NOT_FOUND),
    errors.JobNotFound: (grpc.StatusCode.NOT_FOUND, Reason.ERROR_REASON_JOB_NOT_FOUND),
    errors.ExecutionNotFound: (grpc.StatusCode.NOT_FOUND, Reason.ERROR_REASON_EXECUTION_NOT_FOUND),
    errors.RequestIdReused: (grpc.StatusCode.ALREADY_EXISTS, Reason.ERROR_REASON_REQUEST_ID_REUSED),
    errors.QueueFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_QUEUE_FULL),
    errors.DiskFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_DISK_FULL),
    errors.TooManyStreams: (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_TOO_MANY_STREAMS),
    errors.ServerStopping: (grpc.StatusCode.UNAVAILABLE, Reason.ERROR_REASON_SERVER_STOPPING),
    errors.StoreFailed: (grpc.StatusCode.UNAVAILABLE, Reason.ERROR_REASON_STORE_FAILED),
}

# Trailers of 14 KB become RESOURCE_EXHAUSTED at some clients, and the message travels in them as well, percent-encoded.
_MAX_MESSAGE = 1000
_MAX_DETAILS_BYTES = 4096
_MAX_VIOLATIONS = 16


async def abort(context: "grpc.aio.ServicerContext[object, object]", error: Exception) -> NoReturn:
    """Ends the call with the status that stands for the error."""
    code, status = status_of(error)
    await context.abort(
        code, status.message, trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),)
    )
    raise AssertionError("an aborted call does not go on")


def status_of(error: Exception) -> tuple[grpc.StatusCode, status_pb2.Status]:
    entry = next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), None)
    if entry is None or not isinstance(error, errors.Refusal):
        return _defect(error)
    code, reason = entry
    # In ASCII: on the wire every other byte takes three.
    message = str(error).encode("ascii", "backslashreplace").decode()[:_MAX_MESSAGE]
    details: list[Message] = [_error_info(reason, error.metadata)]
    if error.retry_seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_seconds)))
    if isinstance(error, errors.InvalidRequest):
        details.append(_bad_request(error))
    return code, _status(code, message, details)


def _defect(error: Exception) -> tuple[grpc.StatusCode, status_pb2.Status]:
    number = uuid.uuid4().hex[:12]
    log.error("a defect in a call", defect=number, exc_info=error)
    message = f"a defect of fastlane; the server's log has more under {number}"
    code = grpc.StatusCode.INTERNAL
    return code, _status(code, message, [_error_info(Reason.ERROR_REASON_DEFECT, {"defect": number})])


def _error_info(reason: "Reason.ValueType", metadata: Mapping[str, str]) -> error_details_pb2.ErrorInfo:
    name = Reason.Name(reason).removeprefix("ERROR_REASON_")
    return error_details_pb2.ErrorInfo(
        domain="fastlane", reason=name, metadata={key: value[:200] for key, value in metadata.items()}
    )


def _bad_request(error: errors.InvalidRequest) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in error.violations[:_MAX_VIOLATIONS]:
        bad.field_violations.add(field=violation.field[:200], description=violation.description[:300])
        if bad.ByteSize() > _MAX_DETAILS_BYTES - 500:
            del bad.field_violations[-1]
            break
    return bad


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
