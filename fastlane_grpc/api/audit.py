"""The audit of calls that write: who asked for what. The store adds the entry to the call's first write."""

import json
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.json_format import Error, MessageToDict
from google.protobuf.message import Message

from fastlane_grpc.model import utc_now
from fastlane_grpc.store import AUDITED, AuditedCall, AuditEntry
from fastlane_grpc.text.sanitize import one_line
from fastlane_grpc.trust import PEER, PRINCIPAL

_MOST_CHARACTERS = 1000
_MOST_NAME = 200
# Longer lists are shown as their number.
_MOST_SHOWN = 10
# Fields of requests that the detail shows, beside the ids that have fields of their own. A field of a new call is shown
# once it is listed here: what is not listed may hold a secret.
_SHOWN = frozenset(
    {
        *("note", "grace", "host", "delivery_id", "filter", "older_than", "logs_only", "etag"),
        *("max_running", "paused", "max_starts", "rate_window"),
    }
)
# Jobs of a batch are counted; notifications may hold secrets, and are only mentioned.
_COUNTED = frozenset({"requests", "array"})
_NAMED = frozenset({"notifications"})

log = structlog.get_logger(__name__)


def writes(method: MethodDescriptor) -> bool:
    """Return whether the contract says that the call may change something."""
    return bool(method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS)


def audited(
    call: Callable[..., Awaitable[Any]], method: MethodDescriptor, mask: Callable[[str], str]
) -> Callable[..., Awaitable[Any]]:
    """Return the call with its entry in the audit and a line in the log, if it wrote something. `mask` removes secrets
    from a text."""
    entry = _EntryOf(method, mask)
    # A line costs as much as half of an enqueue does. The entry is on disk, and the job says the same.
    logged = method.name != "EnqueueJob"

    @wraps(call)
    async def noted(request: Any, *args: Any, **more: Any) -> Any:
        audit = AuditedCall(entry(request))
        token = AUDITED.set(audit)
        try:
            return await call(request, *args, **more)
        finally:
            AUDITED.reset(token)
            if audit.written and logged:
                _log(audit)

    return noted


class _EntryOf:
    """Makes the entries of one method."""

    def __init__(self, method: MethodDescriptor, mask: Callable[[str], str]) -> None:
        self._method = method.name
        self._mask = mask
        fields = method.input_type.fields_by_name
        # Looked up once: an enqueue has nothing to show, and its spec is not looked at.
        self._ids = [name in fields for name in ("task_id", "job_id", "execution_id")]
        self._has_detail = any(name in fields for name in {*_SHOWN, *_COUNTED, *_NAMED})

    def __call__(self, request: Any) -> AuditEntry:
        peer = PEER.get()
        task, job, execution = self._ids
        return AuditEntry(
            utc_now(),
            self._method,
            PRINCIPAL.get().name,
            one_line(peer.certificate, _MOST_NAME) if peer.certificate else "",
            peer.address,
            request.task_id if task else "",
            request.job_id if job else "",
            request.execution_id if execution else "",
            self._detail(request) if self._has_detail else "",
        )

    def _detail(self, request: Message) -> str:
        facts: dict[str, Any] = {}
        for field, value in request.ListFields():
            if field.name in _COUNTED:
                facts["jobs"] = value.size if field.name == "array" else len(value)
            elif field.name in _NAMED:
                facts[field.name] = "changed"
            elif field.name in _SHOWN:
                facts[field.name] = _shown(value)
        return one_line(self._mask(json.dumps(facts, ensure_ascii=False)), _MOST_CHARACTERS) if facts else ""


def _shown(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    # A string where the message is a duration.
    try:
        shown: Any = MessageToDict(value, preserving_proto_field_name=True)
    except (Error, ValueError, OverflowError):
        # A duration or a time that is none: the call refuses it.
        return None
    if not isinstance(shown, dict):
        return shown
    long = {name: f"{len(each)} of them" for name, each in shown.items() if isinstance(each, list)}
    return {name: long[name] if len(shown[name]) > _MOST_SHOWN and name in long else shown[name] for name in shown}


def _log(audit: AuditedCall) -> None:
    entry = audit.entry
    facts = {
        "method": entry.method,
        "caller": entry.caller,
        "certificate": entry.certificate,
        "address": entry.address,
        "task_id": entry.task_id,
        "job_id": audit.job_id,
        "execution_id": entry.execution_id,
        "detail": entry.detail,
    }
    log.info("call", **{name: value for name, value in facts.items() if value})
