"""One connection: uvicorn's protocol, with limits on headers, on the time that a client takes, and on pipelining."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import structlog
from starlette.types import Scope
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from fastlane_grpc.http.limits import HttpLimits
from fastlane_grpc.http.problem import HttpError, problem_response
from fastlane_grpc.http.request_parser import RequestParser

# Where a connection of the scope is found.
CONNECTION = "fastlane.connection"
# Of the kernel's struct tcp_info: tcpi_unacked is at byte 24, tcpi_last_ack_recv at 56.
_TCP_INFO_BYTES = 60
_UINT = struct.Struct("=I")
# TCP asks a silent client whether it is there: after so many seconds, again after so many, and so often. The last one,
# in milliseconds, is for a client that does not confirm what was sent; one that is only slow to read does confirm.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
)

log = structlog.get_logger(__name__)


class Connection(HttpToolsProtocol):
    """A connection of a client. One request at a time: what is sent before the response is complete is dropped, and the
    connection closed after that response."""

    def __init__(self, config: Config, state: ServerState, limits: HttpLimits) -> None:
        super().__init__(config, state, {})
        self.parser: RequestParser = RequestParser(self)
        self._limits = limits
        self.timeout_keep_alive = limits.idle_seconds  # type: ignore[assignment]
        self.logger = _logger
        self.access_log = False
        # Called once when the client has gone; for a stream, which may not send for a long time.
        self.on_lost: Callable[[], object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._check: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = self._dropping = self._closes_after_body = False
        self._head_bytes = self._field_bytes = self._bytes_beside_body = 0

    # ---- for handlers

    def abort(self) -> None:
        """End the connection in the middle of a response, which the client sees as an interruption."""
        # uvicorn does not complain then that the response is incomplete.
        self.cycle.disconnected = True
        # Not `transport.abort`: what was written before is still sent.
        self._close()

    async def send_chunk(self, data: bytes) -> None:
        """Send a part of a chunked response that has started. A slow client is waited for.

        uvicorn would copy the data for each client; of a stream, many clients get the same bytes."""
        if self.flow.write_paused and not self.cycle.disconnected:
            await self.flow.drain()
        if data and not self.cycle.disconnected:
            self.transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))

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
            self._close()
        cycle.on_response()

    # ---- the protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
            return
        raw = transport.get_extra_info("socket")
        for level, option, value in _KEEPALIVE:
            raw.setsockopt(level, option, value)
        self._check_soon()
        self._arm(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._check is not None:
            self._check.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        if self._dropping or self.transport.is_closing():
            return
        if not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes and self._in_head:
                self._refuse_head()
                return
        self._bytes_beside_body += len(data)
        super().data_received(data)
        if self._in_body and not self._dropping and self._bytes_beside_body > self._limits.max_head_bytes:
            # What follows the body has no other limit: its fields are kept until they are complete.
            self.transport.abort()
            return
        if self._timer is None and not self._in_body and self._idle:
            # Bytes between two requests, which begin none.
            self._arm(self._limits.head_seconds)

    def on_message_begin(self) -> None:
        if self._dropping:
            return
        if not self._idle:
            self._dropping = True
            self.cycle.keep_alive = False
            return
        self._in_head = True
        if self._timer is None:
            self._arm(self._limits.head_seconds)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._dropping:
            return
        self._field_bytes += len(url)
        if self._field_bytes > self._limits.max_head_bytes:
            self._refuse_head()
            return
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Fields after the body are dropped: the handler has the list of those before it.
        if self._dropping or not self._in_head:
            return
        self._field_bytes += len(name) + len(value)
        if len(self.headers) >= self._limits.max_headers or self._field_bytes > self._limits.max_head_bytes:
            self._refuse_head()
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._dropping:
            return
        if self.parser.should_upgrade():
            self._field_bytes = 0
            if self.parser.get_method() == b"CONNECT":
                self._refuse(HttpError(400, "NOT_A_PROXY", "CONNECT is for proxies, and this server is none"))
            else:
                self.parser.ignore_upgrade(self.url, self.headers)
            return
        self._disarm()
        self._in_head, self._in_body = False, True
        self._head_bytes = self._field_bytes = self._bytes_beside_body = 0
        if self.transport.is_closing():
            return
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        self.on_lost = None
        super().on_headers_complete()
        self.cycle.transport = cast("asyncio.Transport", _ClosesAfterBody(self))

    def on_body(self, body: bytes) -> None:
        self._bytes_beside_body = 0
        if not self._dropping and self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._dropping or self.parser.should_upgrade() or self.cycle is None:
            return
        self._in_body = False
        if self._closes_after_body:
            self.transport.close()
        elif self.cycle.response_complete:
            self._disarm()
            self._start_idle()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.on_lost = None
        if self._in_body:
            self._unset_keepalive_if_required()
            self._arm(self._limits.drain_seconds)

    def timeout_keep_alive_handler(self) -> None:
        # A client that has not read its last response does not get longer: closing would wait for it.
        self._expire()

    def send_400_response(self, msg: str) -> None:
        if self._dropping:
            return
        if self._idle:
            self._refuse(HttpError(400, "MALFORMED_REQUEST", "the request is not valid HTTP/1.1"))
        elif not self._in_body:
            # What follows a complete request. That one is answered first.
            self._dropping = True
            self.cycle.keep_alive = False
        elif self.cycle.response_started:
            self.transport.close()
        else:
            # The handler, which waits for the body, learns that nothing more comes.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._refuse(
                HttpError(400, "MALFORMED_REQUEST", "the body is not valid HTTP/1.1; see Content-Length and chunks")
            )

    def close_after_body(self) -> None:
        """Close the connection once the body of the request was read.

        Closed before, TCP would drop the response with what the client is still sending."""
        if not self._in_body or self.transport.is_closing():
            self._close()
            return
        self._closes_after_body = True
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        """Close the connection once all was sent, for which a client has a limited time."""
        self.transport.close()
        self._arm(self._limits.idle_seconds)

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
        self.timeout_keep_alive_task = self.loop.call_later(self._limits.idle_seconds, self.timeout_keep_alive_handler)

    def _expire(self) -> None:
        self._timer = None
        self.transport.abort()

    def _check_soon(self) -> None:
        self._check = self.loop.call_later(self._limits.silent_seconds / 2, self._check_client)

    def _check_client(self) -> None:
        """End the connection of a client that has vanished while something is sent to it.

        Keepalive asks only while nothing is, and TCP itself gives up after a quarter of an hour."""
        raw = self.transport.get_extra_info("socket")
        state = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        [unacknowledged], [silent_milliseconds] = _UINT.unpack_from(state, 24), _UINT.unpack_from(state, 56)
        if unacknowledged and silent_milliseconds > self._limits.silent_seconds * 1000:
            self.transport.abort()
        elif not self.transport.is_closing():
            self._check_soon()

    def _refuse_head(self) -> None:
        limit = f"{self._limits.max_head_bytes} bytes and {self._limits.max_headers} headers"
        self._refuse(HttpError(431, "HEADERS_TOO_LARGE", f"the request line and the headers exceed {limit}"))

    def _refuse(self, error: HttpError) -> None:
        """Answer a request that no handler gets, and close the connection."""
        response = problem_response(error)
        fields = [*response.raw_headers, (b"connection", b"close")]
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[error.status], head, bytes(response.body)))
        # Closed now, TCP would drop the response with what the client is still sending.
        self._dropping = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(self._limits.drain_seconds)


class _ClosesAfterBody:
    """The transport that uvicorn writes a response to, and closes after the last one."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close_after_body


class _Defects(logging.Handler):
    """Logs what uvicorn logs of a handler that failed; handlers answer errors themselves, so this is a defect."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return
        try:
            log.error("a defect in a handler of HTTP", message=record.getMessage().strip(), exc_info=error)
        except Exception:
            # The client still gets its answer from uvicorn.
            self.handleError(record)


_logger = logging.getLogger("fastlane.http")
_logger.setLevel(logging.ERROR)
_logger.propagate = False
_logger.addHandler(_Defects())


def certificate_name(scope: Scope) -> str:
    """Return the common name in the client's certificate; empty: it has none."""
    found: Any = scope[CONNECTION].transport.get_extra_info("peercert")
    parts = [pair for part in (found or {}).get("subject", ()) for pair in part]
    return next((str(value) for name, value in parts if name == "commonName"), "")
