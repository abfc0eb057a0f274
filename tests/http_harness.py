"""A server from the store to HTTP, on a free port; what its jobs run, the test runs."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

from fastlane_grpc.http.connection import Connection
from fastlane_grpc.http.limits import HttpLimits
from fastlane_grpc.http.server import HttpServer
from tests.calls import RpcHarness
from tests.http_client import Answer, ask


class HttpHarness(RpcHarness):
    """A RpcHarness that answers HTTP beside gRPC."""

    def __init__(self, path: Path, limits: HttpLimits | None = None, **settings: object) -> None:
        super().__init__(path, **{"http_listen": "127.0.0.1:0", **settings})
        self.http = HttpServer(self.service, self.settings, self.rpc.is_serving, limits)
        self.http.listen()

    @property
    def http_connections(self) -> Collection[Connection]:
        """The connections that are open."""
        assert self.http
        connections: Any = self.http._state.connections
        return cast(Collection[Connection], connections)

    async def start(self) -> None:
        await self.server.start()
        assert self.http
        await self.http.start()

    async def close(self) -> None:
        assert self.http
        await self.http.stop()
        await super().close()

    async def ask(self, verb: str, path: str, body: object = None, **headers: str) -> Answer:
        return await ask(self.http_port, verb, path, body, **headers)
