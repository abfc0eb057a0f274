"""GET /executions/{id}/outputs: the archive of what was kept of an execution, as it is, or a range of its bytes."""

import re

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from fastlane_grpc import api
from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_requests import request_of
from fastlane_grpc.http.problem import HttpError
from fastlane_grpc.http.query import query_of
from fastlane_grpc.http.routes import CallRoute
from fastlane_grpc.http.streams import stream_response
from fastlane_grpc.v1 import fastlane_pb2 as pb

MEDIA_TYPE = "application/x-tar"
_PART_BYTES = 1 << 20


class OutputsHandler:
    """The handler of the outputs of an execution. A client resumes by a range, or by `offset`."""

    def __init__(self, route: CallRoute, context: HttpContext) -> None:
        self._route = route
        self._call = context.calls.read_outputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = request_of(self._route, scope["path_params"], query_of(scope), b"")
        assert isinstance(request, pb.ReadOutputsRequest)
        # Before the response begins: the request may have an error, and the headers tell the checksum.
        first = await self._call(request)
        etag = f'"{first.sha256}"'
        found = range_of(Headers(scope=scope), first.size_bytes, etag) if not request.offset else None
        begin, end = found or (request.offset, first.size_bytes)
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Disposition": f'attachment; filename="{request.execution_id}.tar"',
            "Content-Length": str(end - begin),
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Fastlane-Size": str(first.size_bytes),
            "Fastlane-Sha256": first.sha256,
        }
        if found:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{first.size_bytes}"

        async def produce(write: api.Send) -> None:
            at = begin
            while at < end:
                part = first
                if at != request.offset or len(first.data) > end - at:
                    size = min(_PART_BYTES, end - at)
                    part = await self._call(
                        pb.ReadOutputsRequest(execution_id=request.execution_id, offset=at, max_bytes=size)
                    )
                if not part.data:
                    raise StoreFailed("the outputs became shorter while they were read")
                await write(part.data)
                at += len(part.data)

        await stream_response(scope, send, headers, produce, status=206 if found else 200)


def range_of(headers: Headers, size_bytes: int, etag: str) -> tuple[int, int] | None:
    """Return the begin and the end of the one range that is asked for. None: the whole is asked for, or is the answer
    as the range is of another content, or of a kind that is not served. HttpError: the range is behind the end.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", headers.get("range", "").replace(" ", ""))
    if match is None or match.groups() == ("", "") or headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None
    begin = int(first) if first else max(size_bytes - int(last), 0)
    end = min(int(last) + 1, size_bytes) if first and last else size_bytes
    if begin >= end:
        raise HttpError(
            416,
            "RANGE_NOT_SATISFIABLE",
            f"the range begins behind the end; there are {size_bytes} bytes",
            {"Content-Range": f"bytes */{size_bytes}"},
        )
    return begin, end
