"""GET /executions/{id}/outputs: the archive of what was kept of an execution, as it is."""

from starlette.types import Receive, Scope, Send

from fastlane_grpc import api
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_requests import request_of
from fastlane_grpc.http.query import query_of
from fastlane_grpc.http.routes import CallRoute
from fastlane_grpc.http.streams import stream_response
from fastlane_grpc.v1 import fastlane_pb2 as pb

MEDIA_TYPE = "application/x-tar"


class OutputsHandler:
    """The handler of the outputs of an execution. A client resumes by `offset`."""

    def __init__(self, route: CallRoute, context: HttpContext) -> None:
        self._route = route
        self._call = context.calls.read_outputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = request_of(self._route, scope["path_params"], query_of(scope), b"")
        assert isinstance(request, pb.ReadOutputsRequest)
        # Before the response begins: the request may have an error, and the headers tell the checksum.
        first = await self._call(request)
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Disposition": f'attachment; filename="{request.execution_id}.tar"',
            "Fastlane-Size": str(first.size_bytes),
            "Fastlane-Sha256": first.sha256,
        }

        async def produce(write: api.Send) -> None:
            part = first
            await write(part.data)
            while part.data:
                request.offset += len(part.data)
                part = await self._call(request)
                if part.data:
                    await write(part.data)

        await stream_response(scope, send, headers, produce)
