"""One connection: uvicorn's protocol, with limits on headers, on the time that a client takes, and on pipelining."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

# The time from the first byte of a request to the end of its headers; a new connection has as long to begin.
HEAD_SECONDS = 10.0
# The time without a request after which a connection is closed.
IDLE_SECONDS = 75.0
# The time in which the rest of a body is read and dropped, after the response to its request.
DRAIN_SECONDS = 2.0
MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 100
# Where a connection of the scope is found.
CONNECTION = "fastlane.connection"
# TCP asks a silent client whether it is there: after so many seconds, again after so many, and so often.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)

log = structlog.get_logger(__name__)


class Connection(HttpToolsProtocol):
    """A connection of a client. One request at a time: what is sent before the response is complete is dropped, and the
    connection closed after that response."""

    max_connections = 10_000

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _logger
        self.access_log = False
        # Called once when the client has gone; for a stream, which may not send for a long time.
        self.on_lost: Callable[[], object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = self._pipelined = False
        self._head_bytes = 0

    # ---- for handlers

    def abort(self) -> None:
        """End the connection in the middle of a response, which the client sees as an interruption."""
        # uvicorn does not complain then that the response is incomplete.
        self.cycle.disconnected = True
        # Not `transport.abort`: what was written before is still sent.
        self.transport.close()

    def end_with_trailers(self, trailers: Sequence[tuple[bytes, bytes]]) -> None:
        """Complete a chunked response, with these fields after its body."""
        cycle = self.cycle
        if cycle.disconnected or cycle.response_complete:
            return
        fields = b"".join(name + b": " + value + b"\r\n" for name, value in trailers)
        self.transport.write(b"0\r\n" + fields + b"\r\n")
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    # ---- the protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            for level, option, value in _KEEPALIVE:
                raw.setsockopt(level, option, value)
        self._arm(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        if self._pipelined or self.transport.is_closing():
            return
        if not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and self._in_head:
                self._refuse_head()
                return
        super().data_received(data)
        if self._timer is None and not self._in_body and self._idle:
            # Bytes between two requests, which begin none.
            self._arm(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        if not self._idle:
            self._pipelined = True
            self.cycle.keep_alive = False
            return
        self._in_head = True
        if self._timer is None:
            self._arm(HEAD_SECONDS)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._pipelined:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._pipelined:
            return
        if len(self.headers) >= MAX_HEADERS:
            if not self.transport.is_closing():
                self._refuse_head()
            return
        # Fields after the body are dropped: the handler has the list of those before it.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._pipelined:
            return
        self._disarm()
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        if self.transport.is_closing():
            return
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        self.on_lost = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._pipelined and self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._pipelined or self.cycle is None:
            return
        self._in_body = False
        if self.cycle.response_complete:
            self._disarm()
            self._start_idle()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.on_lost = None
        if self._in_body:
            self._unset_keepalive_if_required()
            self._arm(DRAIN_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        # A client that has not read its last response does not get longer: closing would wait for it.
        self._expire()

    def send_400_response(self, msg: str) -> None:
        if not self._pipelined and (self.cycle is None or self.cycle.response_complete):
            super().send_400_response(msg)
        else:
            self.transport.close()

    # ---- time

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_idle(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)

    def _expire(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _refuse_head(self) -> None:
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        self.transport.close()


class _Defects(logging.Handler):
    """Logs what uvicorn logs of a handler that failed; handlers answer errors themselves, so this is a defect."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, asyncio.CancelledError):
            log.error("a defect in a handler of HTTP", message=record.getMessage().strip(), exc_info=error)


_logger = logging.getLogger("fastlane.http")
_logger.setLevel(logging.ERROR)
_logger.propagate = False
_logger.addHandler(_Defects())
