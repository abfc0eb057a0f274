"""The HTTP server: its address, its limits and its shutdown."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from uvicorn import Config
from uvicorn.server import ServerState

from fastlane_grpc.api import Calls, Service
from fastlane_grpc.call_log import CallLog
from fastlane_grpc.config import Settings
from fastlane_grpc.counts import Counts
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.http.access import OriginRules
from fastlane_grpc.http.application import Application
from fastlane_grpc.http.connection import Connection
from fastlane_grpc.http.context import HttpContext
from fastlane_grpc.http.limits import HttpLimits
from fastlane_grpc.http.request_body import BodyReader
from fastlane_grpc.http.tls_listener import TlsListener
from fastlane_grpc.machine.address import is_loopback, listening_socket
from fastlane_grpc.supervisor import ALONE, Supervisor
from fastlane_grpc.trust import Access, Certificates

_BACKLOG = 1024


class HttpServer:
    """JSON over HTTP on one address. Lives on the loop."""

    def __init__(
        self,
        service: Service,
        settings: Settings,
        is_serving: Callable[[str], bool],
        limits: HttpLimits | None = None,
        *,
        scrape: Callable[[str], Awaitable[tuple[bytes, str]]] | None = None,
        counts: Counts | None = None,
        certificates: Certificates | None = None,
        access: Access | None = None,
        supervisor: Supervisor = ALONE,
        call_log: CallLog | None = None,
    ) -> None:
        """`is_serving`: whether a name of the health service serves. `scrape`: see `HttpContext`. `certificates`: those
        of TLS; without them connections are not encrypted. `access`: the tokens in force; without it anybody may do
        anything. `call_log`: where calls are logged; None: nowhere."""
        self._service = service
        self._address = settings.http_listen
        self._limits = limits or HttpLimits()
        self._state = ServerState()
        self._context = HttpContext(
            Calls(service, limited=access is not None),
            settings,
            is_serving,
            BodyReader(self._limits, max_request_bytes=settings.max_request_bytes),
            scrape,
            counts or Counts(),
            access,
            call_log,
        )
        origins = OriginRules(
            loopback=is_loopback(self._address), hosts=settings.http_hosts, cors_origins=settings.http_cors_origins
        )
        self._config = Config(
            Application(self._context, origins),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self._config.load()
        self._socket: socket.socket | None = None
        self._certificates = certificates
        self._supervisor = supervisor
        self._server: asyncio.Server | TlsListener | None = None
        self.port = 0

    def listen(self) -> None:
        """Bind the address and set `port`. Raises CannotServe. In either case `stop` releases all resources."""
        try:
            self._socket = listening_socket(self._address)
        except OSError as error:
            raise CannotServe(
                f"cannot listen on {self._address} for HTTP: {error.strerror or error}; choose another address with "
                "--http-listen, or turn HTTP off with --http-listen off"
            ) from error
        self.port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Accept calls."""
        assert self._socket is not None, "listen comes first"
        if self._certificates:
            self._socket.listen(_BACKLOG)
            self._server = TlsListener(
                self._socket,
                self._certificates,
                self._connection,
                has_room=lambda handshakes: handshakes + len(self._state.connections) < self._limits.max_connections,
                handshake_seconds=self._limits.head_seconds,
                supervisor=self._supervisor,
            )
            return
        self._server = await asyncio.get_running_loop().create_server(
            self._connection, sock=self._socket, backlog=_BACKLOG
        )

    async def stop(self) -> None:
        """End all calls and release the address."""
        self._service.stop_serving()
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=self._limits.stop_seconds)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            with suppress(RuntimeError):
                connection.transport.abort()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=self._limits.stop_seconds)
        self._context.converter.shutdown(wait=False, cancel_futures=True)

    def _connection(self) -> Connection:
        return Connection(self._config, self._state, self._limits)
