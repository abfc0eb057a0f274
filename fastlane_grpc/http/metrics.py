"""The handler of /metrics."""

from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class MetricsHandler:
    """Answers with all metrics, as Prometheus reads them."""

    def __init__(self, scrape: Callable[[str], Awaitable[tuple[bytes, str]]]) -> None:
        self._scrape = scrape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text, media_type = await self._scrape(Headers(scope=scope).get("accept", ""))
        headers = {"Content-Type": media_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        await Response(text, headers=headers)(scope, receive, send)
