"""gRPC handlers made from the contract's descriptors.

Each handler parses its request, makes the call, and ends a failed call with the status of its error."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from fastlane_grpc.api.audit import writes
from fastlane_grpc.api.error_table import status_of
from fastlane_grpc.api.request_parser import RequestParser
from fastlane_grpc.call_record import note
from fastlane_grpc.counts import CallCounts, Counts
from fastlane_grpc.trace_context import CALLERS_TRACE, TRACEPARENT, TRACESTATE, TraceContext
from fastlane_grpc.trust import PEER, Peer

CODES = {code.value[0]: code for code in grpc.StatusCode}


def handler(
    descriptor: ServiceDescriptor, servicer: object, *, max_request_bytes: int, counts: Counts, mutual: bool = False
) -> grpc.GenericRpcHandler:
    """Return the handler that serves a service of the contract by the servicer's methods of the same names. `mutual`:
    clients have certificates."""
    methods = {
        method.name: _method_handler(
            method, getattr(servicer, method.name), max_request_bytes, counts.of_grpc(method.name), mutual=mutual
        )
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def _method_handler(
    method: MethodDescriptor, call: Callable[..., Any], max_request_bytes: int, counts: CallCounts, *, mutual: bool
) -> "grpc.RpcMethodHandler[Any, Any]":
    # Requests arrive as bytes and are parsed inside the guard: gRPC's own error for a damaged request gives no reason.
    guarded = _guarded(
        call,
        RequestParser(method, max_request_bytes=max_request_bytes),
        counts,
        is_write=writes(method),
        mutual=mutual,
    )
    if method.server_streaming:
        # The call writes its serialised messages itself: a generator would add a layer that every message passes.
        return grpc.unary_stream_rpc_method_handler(guarded, response_serializer=None)
    return grpc.unary_unary_rpc_method_handler(guarded, response_serializer=_serialized)


def _guarded(
    call: Callable[..., Awaitable[Any]], parser: RequestParser, counts: CallCounts, *, is_write: bool, mutual: bool
) -> Callable[..., Awaitable[Any]]:
    async def guarded(data: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        start = counts.start()
        # What remains of a call whose client has gone.
        code = grpc.StatusCode.CANCELLED
        if is_write:
            PEER.set(Peer(context.peer(), certificate_name(context) if mutual else ""))
            CALLERS_TRACE.set(TraceContext.read(*(_metadata(context, name) for name in (TRACEPARENT, TRACESTATE))))
        try:
            request = parser.parse(data)
            note(request)
            response = await call(request, context)
            code = grpc.StatusCode.OK
            return response
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError as error:
            # A message cannot be written: the client has left while the write waited, and nobody is there to be told.
            raise asyncio.CancelledError from error
        except Exception as error:
            status = status_of(error)
            code = CODES[status.code]
            await abort_with(context, status)
        finally:
            counts.end(start, code.name)

    return guarded


def certificate_name(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Return the common name in the client's certificate; empty: it has none."""
    names = list(context.auth_context().get("x509_common_name", ()))
    return names[0].decode("utf-8", "replace") if names else ""


def _metadata(context: "grpc.aio.ServicerContext[Any, Any]", name: str) -> Sequence[str]:
    return [value for key, value in context.invocation_metadata() or () if key == name and isinstance(value, str)]


async def abort_with(context: "grpc.aio.ServicerContext[Any, Any]", status: Status) -> NoReturn:
    """End the call with this status."""
    await context.abort(
        CODES[status.code],
        status.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )
    raise AssertionError("abort raises AbortError")


def _serialized(response: Message) -> bytes:
    return response.SerializeToString()
