"""Serialised requests, read within limits: their size, their encoding, and fields that this server does not know."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from fastlane_grpc.errors import InvalidRequest, UnknownField, Violation

_MAX_FIELDS_NAMED = 16
# Methods whose request has many requests, each with a result of its own.
BATCHES = frozenset({"BatchEnqueueJobs"})
MAX_BATCH_BYTES = 3 << 20


class RequestParser:
    """A parser of the serialised requests of one method of the contract."""

    def __init__(self, method: MethodDescriptor, *, max_request_bytes: int) -> None:
        self._message_class = GetMessageClass(method.input_type)
        self._is_batch = method.name in BATCHES
        self._max_request_bytes = max_bytes(method, max_request_bytes)
        # Of a batch only those requests are rejected that have unknown fields: its call looks for them.
        self._rejects_unknown_fields = writes(method) and not self._is_batch

    def parse(self, data: bytes) -> Message:
        """Return the request. Raises InvalidRequest, and UnknownField where the method writes."""
        if len(data) > self._max_request_bytes:
            limit = "in one batch" if self._is_batch else "(max_request_bytes)"
            raise self._invalid(f"takes {len(data)} bytes; at most {self._max_request_bytes} are allowed {limit}")
        try:
            request = self._message_class.FromString(data)
        except DecodeError:
            raise self._invalid(
                "cannot be read: it is damaged, or holds text that is not UTF-8, or is nested too deeply"
            ) from None
        if self._rejects_unknown_fields:
            reject_unknown_fields(request)
        return request

    def _invalid(self, fault: str) -> InvalidRequest:
        return InvalidRequest([Violation("", f"the {self._message_class.DESCRIPTOR.name} {fault}")])


def max_bytes(method: MethodDescriptor, max_request_bytes: int) -> int:
    """Return the limit on the requests of a method, where that on all requests is `max_request_bytes`."""
    return min(max_request_bytes, MAX_BATCH_BYTES) if method.name in BATCHES else max_request_bytes


def writes(method: MethodDescriptor) -> bool:
    """Return whether the call may change something: the contract does not declare it free of side effects.

    A field that the server does not know may be a limit that the caller of such a method relies on."""
    return method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS


def reject_unknown_fields(request: Message, *, without: str = "") -> None:
    """Raise UnknownField, naming each unknown field by its message and number, if the request has any. Messages in the
    field `without` are not looked at."""
    if has_unknown_fields(request):
        unknown = sorted(set(_unknown_fields(request, request.DESCRIPTOR.name, without)))
        if unknown:
            named = ", ".join(unknown[:_MAX_FIELDS_NAMED])
            raise UnknownField(f"this server does not know {named}; update it, or leave them out")


def has_unknown_fields(request: Message) -> bool:
    """Return whether the request, or a message in it, has fields that this server does not know."""
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    return known.ByteSize() != request.ByteSize()


def _unknown_fields(message: Message, path: str, without: str = "") -> Iterator[str]:
    unknown: Any = UnknownFieldSet(message)  # The stub lacks that a set can be iterated.
    yield from (f"field {field.field_number} of {path}" for field in unknown)
    for field, value in message.ListFields():
        if field.message_type is None or field.name == without:
            continue
        is_map = field.message_type.GetOptions().map_entry
        if is_map and field.message_type.fields_by_name["value"].message_type is None:
            continue
        for part in value.values() if is_map else value if field.is_repeated else [value]:
            yield from _unknown_fields(part, f"{path}.{field.name}")
