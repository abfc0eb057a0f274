"""The record of an HTTP request for the access log and the slow-call log."""

from starlette.datastructures import Headers
from starlette.types import Message, Scope

from fastlane_grpc.call_log import CallLog
from fastlane_grpc.call_record import CALL, CallRecord
from fastlane_grpc.http.call_handlers import caller_address
from fastlane_grpc.http.connection import certificate_name
from fastlane_grpc.http.request_count import RequestCount
from fastlane_grpc.trust import PRINCIPAL


class RequestLog:
    """Logs one request, which starts now. The bytes of a stream are counted where they are written."""

    def __init__(self, calls: CallLog, scope: Scope, headers: Headers) -> None:
        self._calls = calls
        self._scope = scope
        trace = headers.get("x-request-id", "")[:200]
        self._record = CallRecord("http", "", caller_address(scope), trace=trace)
        CALL.set(self._record)

    def note(self, message: Message) -> None:
        """Note what was sent."""
        if self._scope["method"] != "HEAD":
            self._record.bytes_sent += len(message.get("body", b""))

    def end(self, count: RequestCount, *, is_stream: bool) -> None:
        """Log the end of the request."""
        record = self._record
        record.path = f"{count.verb} {count.path}"
        record.method = count.method or count.path
        record.is_stream = is_stream
        record.caller = PRINCIPAL.get().name or certificate_name(self._scope)
        self._calls.end(record, count.status)
