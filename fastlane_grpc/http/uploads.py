"""PUT /inputs/{sha256}: a content, or a part of one, as JSON or as it is."""

import re
from contextlib import aclosing

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from fastlane_grpc.errors import InvalidRequest, Violation
from fastlane_grpc.http.call_handlers import CallHandler
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_responses import answer_of, base_url_of, json_response
from fastlane_grpc.http.media_types import RAW
from fastlane_grpc.http.problem import HttpError
from fastlane_grpc.http.request_body import declared_bytes
from fastlane_grpc.http.routes import CallRoute
from fastlane_grpc.v1 import fastlane_pb2 as pb

_PART_BYTES = 1 << 20


class UploadHandler:
    """The handler of uploads. A raw body is stored part by part while it arrives: what came before a break is kept."""

    def __init__(self, route: CallRoute, context: HttpContext) -> None:
        self._json = CallHandler(route, context)
        self._context = context
        self._call = context.calls.upload_input

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if not _is_raw(headers):
            await self._json(scope, receive, send)
            return
        offset, end, size_bytes = _extent(headers)
        sha256, response = scope["path_params"]["sha256"], pb.UploadInputResponse()
        # Closed at once after an error: what it holds counts as memory of all bodies.
        async with aclosing(self._context.bodies.parts(headers, receive, part_bytes=_PART_BYTES)) as parts:
            async for data in parts:
                if offset + len(data) > end:
                    raise InvalidRequest([Violation("Content-Range", "is shorter than the body")])
                request = pb.UploadInputRequest(sha256=sha256, size_bytes=size_bytes, offset=offset, data=data)
                response = await self._call(request)
                offset += len(data)
        await json_response(answer_of(response, base_url_of(scope)))(scope, receive, send)


def _is_raw(headers: Headers) -> bool:
    """Whether the body is the content. `curl -T` names no type."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == RAW or (not media_type and declared_bytes(headers) != 0)


def _extent(headers: Headers) -> tuple[int, int, int]:
    """Return where the body begins and ends in the content, and the size of the content. HttpError, InvalidRequest."""
    if text := headers.get("content-range", ""):
        match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", text)
        begin, last, size_bytes = map(int, match.groups()) if match else (1, 0, 0)
        if not begin <= last < size_bytes:
            raise InvalidRequest([Violation("Content-Range", "must be bytes FIRST-LAST/SIZE, as bytes 0-99/1000")])
        return begin, last + 1, size_bytes
    size = declared_bytes(headers)
    if not size:
        raise HttpError(
            411, "LENGTH_REQUIRED", "the size of the content is not known: send Content-Length or Content-Range"
        )
    return 0, size, size
