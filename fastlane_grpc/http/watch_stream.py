"""GET /watch: changes of jobs as an event stream, or as JSON lines."""

import json

from google.protobuf import json_format
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from fastlane_grpc import api
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_requests import request_of
from fastlane_grpc.http.media_types import EVENT_STREAM, JSON_LINES, preferred
from fastlane_grpc.http.query import query_of
from fastlane_grpc.http.routes import CallRoute
from fastlane_grpc.http.streams import stream_response
from fastlane_grpc.v1 import fastlane_pb2 as pb


class WatchHandler:
    """The handler of GET /watch. The id of an event is its cursor: `Last-Event-ID` resumes after it."""

    def __init__(self, route: CallRoute, context: HttpContext) -> None:
        self._route = route
        self._calls = context.calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        request = request_of(self._route, {}, query_of(scope), b"")
        assert isinstance(request, pb.WatchJobsRequest)
        # A browser that reconnects repeats its first request; the header is later than the cursor in that.
        request.cursor = headers.get("last-event-id", "") or request.cursor
        media_type = preferred(headers, (EVENT_STREAM, JSON_LINES))
        encoding = _ENCODINGS[media_type]

        async def produce(write: api.Send) -> None:
            await self._calls.watch_jobs(request, encoding, write)

        interruption = _event_of_problem if media_type == EVENT_STREAM else _line_of_problem
        await stream_response(scope, send, {"Content-Type": media_type}, produce, interruption=interruption)


def _event(message: pb.WatchJobsResponse) -> bytes:
    """Return the event of a message: its name is that of the field that is set."""
    name = message.WhichOneof("event") or "message"
    # Before `caught_up` there is no cursor, and an event without an id leaves the last one in force.
    number = f"id: {message.cursor}\n" if message.cursor else ""
    return f"event: {name}\n{number}data: {_json(message)}\n\n".encode()


def _line(message: pb.WatchJobsResponse) -> bytes:
    return f"{_json(message)}\n".encode()


def _json(message: pb.WatchJobsResponse) -> str:
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None, ensure_ascii=False)


def _event_of_problem(problem: object) -> bytes:
    return f"event: problem\ndata: {json.dumps(problem)}\n\n".encode()


def _line_of_problem(problem: object) -> bytes:
    return f"{json.dumps({'problem': problem})}\n".encode()


_ENCODINGS = {EVENT_STREAM: ("http-events", _event), JSON_LINES: ("http-lines", _line)}
