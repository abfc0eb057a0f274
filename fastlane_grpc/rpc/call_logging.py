"""The record of every gRPC call for the access log and the slow-call log: contract, health and reflection."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from fastlane_grpc.call_log import CallLog
from fastlane_grpc.call_record import CALL, CallRecord
from fastlane_grpc.rpc.handlers import CODES, certificate_name
from fastlane_grpc.rpc.wrapping import Wrapping
from fastlane_grpc.trust import PRINCIPAL

_CONTRACT = "/fastlane.v1."

Context = Any


class CallLogging(Wrapping):
    """Logs each call at its end. The outermost interceptor: calls that are refused are logged, too."""

    def __init__(self, calls: CallLog, *, mutual: bool) -> None:
        """`mutual`: clients have certificates."""
        super().__init__()
        self._calls = calls
        self._mutual = mutual

    def wrapped(self, method: str, handler: Any) -> Any:
        name = method.rpartition("/")[2] if method.startswith(_CONTRACT) else method.lstrip("/")
        serializers = (handler.request_deserializer, handler.response_serializer)
        if handler.request_streaming:

            async def converse(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
                with self._record(name, context, is_stream=True) as record:
                    async for response in handler.stream_stream(requests, context):
                        record.bytes_sent += _size(response)
                        yield response

            return grpc.stream_stream_rpc_method_handler(converse, *serializers)
        if handler.response_streaming:

            async def stream(request: Any, context: Context) -> None:
                with self._record(name, context, is_stream=True) as record:
                    await handler.unary_stream(request, _Counted(context, record))

            return grpc.unary_stream_rpc_method_handler(stream, *serializers)

        async def call(request: Any, context: Context) -> Any:
            with self._record(name, context, is_stream=False) as record:
                response = await handler.unary_unary(request, context)
                record.note(response)
                record.bytes_sent = _size(response)
                return response

        return grpc.unary_unary_rpc_method_handler(call, *serializers)

    @contextmanager
    def _record(self, method: str, context: Context, *, is_stream: bool) -> Iterator[CallRecord]:
        record = CallRecord("grpc", method, context.peer(), is_stream=is_stream)
        CALL.set(record)
        # What remains of a call whose client has gone.
        code = grpc.StatusCode.CANCELLED
        try:
            yield record
            code = grpc.StatusCode.OK
        except grpc.aio.AbortError:
            code = CODES.get(_number(context.code()), grpc.StatusCode.UNKNOWN)
            raise
        except Exception:
            code = grpc.StatusCode.UNKNOWN
            raise
        finally:
            record.caller = PRINCIPAL.get().name or (certificate_name(context) if self._mutual else "")
            record.trace = _header(context, "x-request-id")
            self._calls.end(record, code.name)


class _Counted:
    """The context of a stream, which counts the bytes that are written."""

    def __init__(self, context: Context, record: CallRecord) -> None:
        self._context = context
        self._record = record

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._record.bytes_sent += _size(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _size(message: Any) -> int:
    """Return the size of a message of protobuf, or of one that is serialised already."""
    return len(message) if isinstance(message, bytes) else message.ByteSize()


def _number(code: Any) -> int:
    return code.value[0] if isinstance(code, grpc.StatusCode) else int(code)


def _header(context: Context, name: str) -> str:
    values = (value for key, value in context.invocation_metadata() or () if key == name)
    return str(next(values, ""))[:200]
