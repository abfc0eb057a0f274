"""The errors of a cluster's API server, and which of them pass."""

import json
from typing import Any

from fastlane_grpc.backend import BackendDown, BackendRefuses, Diagnosis, RefusalKind
from fastlane_grpc.text.sanitize import printable

# A server that answers this cannot do its work now. A request to write may have been carried out.
_DOWN = frozenset({500, 502, 503, 504})
_UNKNOWN_CALLER, _FORBIDDEN, _TOO_MANY = 401, 403, 429


class ClusterRefuses(BackendRefuses):
    """The API server refused the request, with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        # The quota of the namespace and the server's own limits pass. What a role forbids, it forbids to all jobs.
        passes = status == _TOO_MANY or "exceeded quota" in message
        kind = RefusalKind.PASSING if passes else RefusalKind.FINAL
        super().__init__(
            Diagnosis(message, message, _advice(status, message), kind),
            about_host=passes or status in {_UNKNOWN_CALLER, _FORBIDDEN},
        )
        self.status = status
        self.message = message


def refusal_of(status: int, body: str | bytes | None) -> BackendDown | ClusterRefuses:
    """Return what an answer of the API server means that is not a success."""
    message = _message(status, body)
    return (
        BackendDown(f"the API server fails for now: {message}") if status in _DOWN else ClusterRefuses(status, message)
    )


def _message(status: int, body: str | bytes | None) -> str:
    """Return the message of the answer, which is printable."""
    try:
        answer: Any = json.loads(body or "")
    except (ValueError, RecursionError):
        answer = None
    message = answer.get("message") if isinstance(answer, dict) else None
    return printable(str(message)) if message else f"status {status}"


def _advice(status: int, message: str) -> str:
    if "exceeded quota" in message:
        return f"the quota of the namespace is used up. The API server says: {message}"
    if status == _UNKNOWN_CALLER:
        return f"the API server does not take these credentials: look at the kubeconfig. It says: {message}"
    if status == _FORBIDDEN:
        return f"the account of the server lacks a right: look at its Role. The API server says: {message}"
    return message
