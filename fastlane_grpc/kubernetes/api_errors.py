"""The errors of a cluster's API server, and which of them pass."""

import json
from typing import Any

from fastlane_grpc.backend import BackendDown, BackendRefuses, Diagnosis, NoCapacity, RefusalKind
from fastlane_grpc.text.sanitize import printable

# A server that answers this cannot do its work now. A request to write may have been carried out.
_DOWN = frozenset({500, 502, 503, 504})
_UNKNOWN_CALLER, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429


class ClusterRefuses(BackendRefuses):
    """The API server refused the request, with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        # The quota of the namespace and the server's own limits pass. What a role forbids, it forbids to all jobs.
        passes = status == _TOO_MANY or isinstance(self, NoCapacity)
        kind = RefusalKind.PASSING if passes else RefusalKind.FINAL
        super().__init__(
            Diagnosis(message, message, _advice(status, message), kind),
            about_host=passes or status in {_UNKNOWN_CALLER, _FORBIDDEN},
        )
        self.status = status
        self.message = message


class NamespaceFull(ClusterRefuses, NoCapacity):
    """`create`: the quota of the namespace is used up, or there is no such namespace any more."""


def refusal_of(status: int, body: str | bytes | None) -> BackendDown | ClusterRefuses:
    """Return what an answer of the API server means that is not a success."""
    message = _message(status, body)
    if status in _DOWN:
        return BackendDown(f"the API server fails for now: {message}")
    no_capacity = "exceeded quota" in message or _no_namespace(status, message)
    return NamespaceFull(status, message) if no_capacity else ClusterRefuses(status, message)


def _no_namespace(status: int, message: str) -> bool:
    """Whether the namespace is gone, or is being deleted."""
    return (status == _NOT_FOUND and message.startswith("namespaces ")) or (
        status == _FORBIDDEN and message.endswith("because it is being terminated")
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
    if _no_namespace(status, message):
        return f"the namespace is gone: make it again, or give the host another one. The API server says: {message}"
    if status == _UNKNOWN_CALLER:
        return f"the API server does not take these credentials: look at the kubeconfig. It says: {message}"
    if status == _FORBIDDEN:
        return f"the account of the server lacks a right: look at its Role. The API server says: {message}"
    return message
