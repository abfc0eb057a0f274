"""Handlers of the calls with one response: the request from path, query and body, the call, its response as JSON."""

from collections.abc import Awaitable, Callable
from inspect import signature
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from fastlane_grpc.api.audit import writes
from fastlane_grpc.api.request_parser import max_bytes
from fastlane_grpc.call_record import note
from fastlane_grpc.http.connection import certificate_name
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_requests import request_of
from fastlane_grpc.http.json_responses import answer_of, base_url_of, job_url, json_response
from fastlane_grpc.http.query import query_of
from fastlane_grpc.http.routes import CallRoute
from fastlane_grpc.trace_context import CALLERS_TRACE, TRACEPARENT, TRACESTATE, TraceContext
from fastlane_grpc.trust import PEER, Peer


class CallHandler:
    """The ASGI application of one call at one path."""

    def __init__(self, route: CallRoute, context: HttpContext) -> None:
        self._route = route
        self._context = context
        self._call: Callable[..., Awaitable[Any]] = getattr(context.calls, route.call)
        self._is_write = writes(route.descriptor)
        self._names_caller = "caller_address" in signature(self._call).parameters
        self._max_bytes = max_bytes(route.descriptor, context.settings.max_request_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        if self._route.verb != "GET":
            body = await self._context.bodies.read(Headers(scope=scope), receive, max_bytes=self._max_bytes)
        request = await self._context.convert(
            lambda: request_of(self._route, scope["path_params"], query_of(scope), body), size=len(body)
        )
        note(request)
        more: dict[str, Any] = {"caller_address": caller_address(scope)} if self._names_caller else {}
        if self._is_write:
            PEER.set(Peer(caller_address(scope), certificate_name(scope)))
            headers = Headers(scope=scope)
            CALLERS_TRACE.set(TraceContext.read(headers.getlist(TRACEPARENT), headers.getlist(TRACESTATE)))
        message: Any = await self._call(request, **more)
        note(message)
        base_url = base_url_of(scope)
        answer = await self._context.convert(lambda: answer_of(message, base_url), size=message.ByteSize())
        response = json_response(answer)
        if self._route.creates and _is_new(message):
            response.status_code = 201
            response.headers["Location"] = job_url(base_url, message.job.id)
        if self._route.page:
            response.headers["Vary"] = "Accept"
        await response(scope, receive, send)


def caller_address(scope: Scope) -> str:
    """Return the address of the client, written as gRPC writes it: `ipv4:10.0.0.7:51234`."""
    if not scope["client"]:
        return ""
    host, port = scope["client"]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _is_new(message: Any) -> bool:
    """Return whether an enqueue or a replacement stored a job that was not there before."""
    return bool(message.job.id) and (message.created if hasattr(message, "created") else not message.existing)
