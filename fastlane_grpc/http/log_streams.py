"""GET /executions/{id}/logs and /jobs/{id}/logs: a log as raw bytes, as an event stream, or as JSON lines."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from fastlane_grpc import api
from fastlane_grpc.api.log_stream import JobLogEnded, LogEnded, LogSuspended
from fastlane_grpc.call_record import note
from fastlane_grpc.errors import InvalidRequest, Violation
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_requests import request_of
from fastlane_grpc.http.log_encodings import LogEncoding, LogEvents, LogLines, RawLog
from fastlane_grpc.http.media_types import EVENT_STREAM, JSON_LINES, RAW, preferred
from fastlane_grpc.http.query import query_of
from fastlane_grpc.http.routes import CallRoute
from fastlane_grpc.http.streams import stream_response
from fastlane_grpc.model import Reason, Source, exit_status, utc_now
from fastlane_grpc.text.time_span import span_of
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Short names of parameters, beside the names of the request's fields.
SHORT_NAMES = {
    "source": "sources",
    "tail": "tail_lines",
    "since": "since_time",
    "line": "start_line",
    "heartbeat": "heartbeat_interval",
}
_ENCODINGS: Mapping[str, Callable[[], LogEncoding]] = {RAW: RawLog, EVENT_STREAM: LogEvents, JSON_LINES: LogLines}
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_TRAILERS = "exit_status", "state", "outcome", "stdout_bytes", "stderr_bytes", "system_bytes", "missing_bytes", "cursor"
_Query = Sequence[tuple[str, str]]


class LogHandler:
    """The handler of the log of an execution or of a job."""

    def __init__(self, route: CallRoute, context: HttpContext) -> None:
        self._route = route
        fields = route.descriptor.input_type.fields_by_name
        self._short_names = {short: name for short, name in SHORT_NAMES.items() if name in fields}
        self._call: Callable[[Any, api.StreamEncoding, api.Send], Awaitable[None]] = getattr(context.calls, route.call)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query, has_exit_line = _without_exit_line(query_of(scope))
        try:
            await self._answer(scope, send, query, has_exit_line=has_exit_line)
        except InvalidRequest as error:
            names = {self._short_names.get(name, name): name for name, _ in query}
            raise InvalidRequest([_with_name_of_query(each, names) for each in error.violations]) from None

    async def _answer(self, scope: Scope, send: Send, query: _Query, *, has_exit_line: bool) -> None:
        headers = Headers(scope=scope)
        media_type = preferred(headers, tuple(_ENCODINGS))
        encoding = _ENCODINGS[media_type]()
        request = request_of(self._route, scope["path_params"], self._with_long_names(query), b"")
        assert isinstance(request, pb.StreamExecutionLogsRequest | pb.StreamJobLogsRequest)
        note(request)
        fields = {"Content-Type": media_type, "Vary": "Accept"}
        trailers: Callable[[], Sequence[tuple[bytes, bytes]]] | None = None
        if isinstance(encoding, RawLog):
            if not request.sources:
                # Fastlane's own lines would be in the middle of what the job printed.
                request.sources.extend([pb.SOURCE_STDOUT, pb.SOURCE_STDERR])
            fields |= _file_name(scope)
            if "trailers" in headers.get("te", "").lower():
                fields["Trailer"] = ", ".join(map(_trailer_name, _TRAILERS))
                raw = encoding

                def made_trailers() -> Sequence[tuple[bytes, bytes]]:
                    return [(_trailer_name(name).encode(), value.encode()) for name, value in _summary(raw).items()]

                trailers = made_trailers
        elif has_exit_line:
            raise InvalidRequest([Violation("exit_line", "is for a raw log; other forms have the event `end`")])
        else:
            # A browser that reconnects repeats its first request; the header is later than the cursor in that.
            request.cursor = headers.get("last-event-id", "") or request.cursor

        async def produce(write: api.Send) -> None:
            begun = False

            async def write_message(message: bytes) -> None:
                nonlocal begun
                if not begun:
                    # Sent also if it is empty: the client then knows that the log exists.
                    begun = True
                    await write(encoding.prelude + message)
                elif message:
                    await write(message)

            await self._call(request, encoding, write_message)
            if has_exit_line and isinstance(encoding, RawLog):
                await write(_exit_line(encoding))

        await stream_response(scope, send, fields, produce, interruption=encoding.problem, trailers=trailers)

    def _with_long_names(self, query: _Query) -> _Query:
        """Return the query with the names of the request's fields, and an age as a time."""
        return [_as_time(self._short_names.get(name, name), value) for name, value in query]


def _with_name_of_query(violation: Violation, names: Mapping[str, str]) -> Violation:
    """Return the violation with the name of its field in the query."""
    field, bracket, index = violation.field.partition("[")
    return Violation(names.get(field, field) + bracket + index, violation.description)


def _without_exit_line(query: _Query) -> tuple[_Query, bool]:
    """Return the query without `exit_line`, and whether that was asked for."""
    values = [value.lower() for name, value in query if name == "exit_line"]
    if any(value not in {"true", "false", "1", "0"} for value in values) or len(values) > 1:
        raise InvalidRequest([Violation("exit_line", "must be true or false, once")])
    return [each for each in query if each[0] != "exit_line"], values in (["true"], ["1"])


def _as_time(name: str, value: str) -> tuple[str, str]:
    if name == "since_time":
        try:
            return name, (utc_now() - span_of(value)).isoformat()
        except (ValueError, OverflowError):
            return name, value
    return name, value


def _file_name(scope: Scope) -> Mapping[str, str]:
    name = next(iter(scope["path_params"].values()))
    return {"Content-Disposition": f'inline; filename="{name}.log"'} if _ID.fullmatch(name) else {}


def _exit_line(log: RawLog) -> bytes:
    """Return the last line. A newline before it belongs to it: all before that is the log, byte for byte."""
    return f"\nfastlane-end {' '.join(f'{name}={value}' for name, value in _summary(log).items())}\n".encode()


def _trailer_name(name: str) -> str:
    return "-".join(["Fastlane", *map(str.capitalize, name.split("_"))])


def _summary(log: RawLog) -> Mapping[str, str]:
    """Return what is to be told of the end of a log, by names."""
    end = log.end
    assert isinstance(end, LogEnded | LogSuspended | JobLogEnded), "a stream without an error has an end"
    its = end.job if isinstance(end, JobLogEnded) else end.execution
    outcome = None if isinstance(end, LogSuspended) else its.outcome
    summary = {"exit_status": str(exit_status(its.state, outcome)), "state": its.state.name}
    if outcome is not None and outcome.reason is not Reason.UNSPECIFIED:
        summary["outcome"] = outcome.reason.name
    if isinstance(end, LogEnded):
        totals = {each.source: each for each in end.execution.logs}
        for source in Source:
            summary[f"{source.name.lower()}_bytes"] = str(totals[source].bytes if source in totals else 0)
        summary["missing_bytes"] = str(sum(each.missing_bytes for each in totals.values()))
    return {**summary, "cursor": str(end.cursor)}
