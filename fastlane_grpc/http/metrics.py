"""The handler of /metrics."""

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastlane_grpc.http.context import HttpContext


class MetricsHandler:
    """Answers with all metrics, as Prometheus reads them."""

    def __init__(self, context: HttpContext) -> None:
        self._scrape = context.scrape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text, media_type = await self._scrape(Headers(scope=scope).get("accept", ""))
        headers = {"Content-Type": media_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        await Response(text, headers=headers)(scope, receive, send)
