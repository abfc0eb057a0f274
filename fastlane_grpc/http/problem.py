"""Errors as application/problem+json (RFC 9457), from the one table of errors."""

import json
import math
from collections.abc import Mapping

from google.protobuf.message import Message
from google.rpc import error_details_pb2
from starlette.responses import Response

from fastlane_grpc.api.error_table import entry_of, status_of

MEDIA_TYPE = "application/problem+json"


class HttpError(Exception):
    """A request that HTTP itself rejects, before any call. `reason` is a name in capitals, as those of the contract."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


def problem_of(error: Exception) -> tuple[int, dict[str, object], Mapping[str, str]]:
    """Return the status, the JSON and the headers that tell of an error. A defect is logged under its number."""
    if isinstance(error, HttpError):
        return error.status, _problem(error.status, error.reason, str(error)), error.headers
    entry, status = entry_of(error), status_of(error)
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    known: tuple[Message, ...] = (info, bad_request, retry)
    for packed in status.details:
        for detail in known:
            packed.Unpack(detail)
    problem = _problem(entry.http_status, info.reason, status.message)
    if info.metadata:
        problem["metadata"] = dict(info.metadata)
    if bad_request.field_violations:
        problem["violations"] = [
            {"field": each.field, "description": each.description} for each in bad_request.field_violations
        ]
    headers: dict[str, str] = {}
    if retry.HasField("retry_delay"):
        seconds = retry.retry_delay.ToNanoseconds() / 1e9
        problem["retry_after_seconds"] = seconds
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if entry.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return entry.http_status, problem, headers


def problem_response(error: Exception) -> Response:
    """Return the response that tells of an error."""
    status, problem, headers = problem_of(error)
    return Response(
        json.dumps(problem) + "\n",
        status,
        {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", **headers},
        MEDIA_TYPE,
    )


def _problem(status: int, reason: str, detail: str) -> dict[str, object]:
    title = reason.replace("_", " ").capitalize()
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "reason": reason}
