"""From the contract's descriptors to handlers: what holds for every call, whichever it is.

An error of ours becomes its status, any other exception a defect with a number; a request that writes is refused where
it holds fields that we do not know; an answer that is serialised already passes as it is."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from fastlane_grpc.errors import InvalidRequest, UnknownField, Violation
from fastlane_grpc.rpc.statuses import abort


def handler(descriptor: ServiceDescriptor, servicer: object, *, max_request_bytes: int) -> grpc.GenericRpcHandler:
    """Serves a service of the contract by the methods of the same names."""
    methods = {
        method.name: _method_handler(method, getattr(servicer, method.name), max_request_bytes)
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def _method_handler(
    method: MethodDescriptor, call: Callable[..., Any], max_request_bytes: int
) -> "grpc.RpcMethodHandler[Any, Any]":
    # Requests come as bytes and are read under guard: gRPC's own answer to one that cannot be read would tell nothing.
    kind, refuses_unknown = GetMessageClass(method.input_type), writes(method)

    def read(raw: bytes) -> Message:
        if len(raw) > max_request_bytes:
            fault = f"takes {len(raw)} bytes; at most {max_request_bytes} are allowed (max_request_bytes)"
            raise InvalidRequest([Violation("", f"the {kind.DESCRIPTOR.name} {fault}")])
        request = _read(kind, raw)
        if refuses_unknown:
            refuse_unknown_fields(request)
        return request

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_guarded_stream(call, read), response_serializer=_written)
    return grpc.unary_unary_rpc_method_handler(_guarded(call, read), response_serializer=_written)


def writes(method: MethodDescriptor) -> bool:
    """Whether the call may change something: all do of which the contract does not say that they have no side effects.
    A field that such a call does not know may be a limit that the caller relies on."""
    return method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS


def _guarded(
    call: Callable[..., Awaitable[Message]], read: Callable[[bytes], Message]
) -> Callable[..., Awaitable[Message]]:
    async def guarded(raw: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> Message:
        try:
            return await call(read(raw), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error)

    return guarded


def _guarded_stream(
    call: Callable[..., Awaitable[None]], read: Callable[[bytes], Message]
) -> Callable[..., Awaitable[None]]:
    async def guarded(raw: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        # The call writes its messages itself: a generator for each layer would be passed by every message.
        try:
            await call(read(raw), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error)

    return guarded


def _read(kind: type[Message], raw: bytes) -> Message:
    try:
        return kind.FromString(raw)
    except DecodeError:
        fault = "cannot be read: it is damaged, or holds text that is not UTF-8, or is nested too deeply"
        raise InvalidRequest([Violation("", f"the {kind.DESCRIPTOR.name} {fault}")]) from None


def _written(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def refuse_unknown_fields(request: Message) -> None:
    """Raises UnknownField that names each, by its message and number, if there is one."""
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    if known.ByteSize() != request.ByteSize():
        unknown = sorted(set(_unknown_fields(request, request.DESCRIPTOR.name)))
        raise UnknownField(f"this server does not know {', '.join(unknown[:16])}; update it, or leave them out")


def _unknown(message: Message) -> list[Any]:
    fields: Any = UnknownFieldSet(message)  # It has a length and items; its stub does not say so.
    return list(fields)


def _unknown_fields(message: Message, path: str) -> Iterator[str]:
    yield from (f"field {field.field_number} of {path}" for field in _unknown(message))
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        entries = field.message_type.GetOptions().map_entry
        if entries and field.message_type.fields_by_name["value"].message_type is None:
            continue
        for part in value.values() if entries else value if field.is_repeated else [value]:
            yield from _unknown_fields(part, f"{path}.{field.name}")
