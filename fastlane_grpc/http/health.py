"""Health for supervisors and load balancers, as gRPC's health service tells it."""

import json

from starlette.types import Receive, Scope, Send

from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.json_responses import json_response


class Health:
    """The handler of /healthz (`live`: this process answers) and /readyz (`server`: it can store jobs).

    A server whose engines are down is ready: it stores jobs and serves logs. /readyz names the engines too."""

    def __init__(self, context: HttpContext, name: str) -> None:
        self._context = context
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = {name: self._context.is_serving(name) for name in ("live", "server", "engine")}
        status = 200 if found[self._name] else 503
        body = json.dumps({"ok": found[self._name], **found}).encode() + b"\n"
        await json_response(body, status)(scope, receive, send)
