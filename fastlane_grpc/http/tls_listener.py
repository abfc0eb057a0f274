"""Accepts the connections of HTTP over TLS, counts those in a handshake, and logs why a handshake failed."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from fastlane_grpc.supervisor import Supervisor, one_task
from fastlane_grpc.trust import Certificates

# The first byte of each TLS connection.
_HANDSHAKE = b"\x16"
_PLAIN = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 46\r\nConnection: close\r\n\r\n"
    b"this port speaks TLS: use an https:// address\n"
)
_PLAIN_BYTES = 64 << 10
# For the farewell of a connection that the server closes.
_SHUTDOWN_SECONDS = 2.0
# After accepting failed, as without a free descriptor.
_PAUSE_SECONDS = 0.5
# Each reason is logged at most so often: anybody can cause failed handshakes.
_LOG_SECONDS = 10.0

_REASONS: Mapping[str, str] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client has no certificate, which tls_client_ca requires",
    "CERTIFICATE_VERIFY_FAILED": "the client's certificate is not valid by tls_client_ca",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not know the authority of tls_cert",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the client does not accept tls_cert",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client does not accept tls_cert",
    "UNSUPPORTED_PROTOCOL": "the client speaks no TLS of version 1.2 or newer",
}

log = structlog.get_logger(__name__)


class TlsListener:
    """Accepts connections on a listening socket until it is closed. Lives on the loop.

    The loop's own server would accept any number of clients that do not finish a handshake, and tell nobody why one
    failed."""

    def __init__(
        self,
        listener: socket.socket,
        certificates: Certificates,
        connection: Callable[[], asyncio.Protocol],
        *,
        has_room: Callable[[int], bool],
        handshake_seconds: float,
        supervisor: Supervisor,
    ) -> None:
        """`has_room`: whether one more connection is accepted beside so many in a handshake."""
        self._listener = listener
        self._certificates = certificates
        self._connection = connection
        self._has_room = has_room
        self._handshake_seconds = handshake_seconds
        self._handshakes: set[asyncio.Task[None]] = set()
        # When each reason was logged last.
        self._log_times: dict[str, float] = {}
        listener.setblocking(False)
        self._task = supervisor.task("accepting HTTP over TLS", self._accept, restart=True)

    def close(self) -> None:
        """Release the address, and drop connections in a handshake."""
        self._task.cancel()
        for task in self._handshakes:
            task.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("cannot accept a connection of HTTP", error=error.strerror)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if not self._has_room(len(self._handshakes)):
                client.close()
                continue
            task = one_task("a TLS handshake", self._begin(client, str(address[0])))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _begin(self, client: socket.socket, address: str) -> None:
        """Shake hands. From then on the connection is on its own."""
        loop = asyncio.get_running_loop()
        client.setblocking(False)
        try:
            async with asyncio.timeout(self._handshake_seconds):
                if await _first_byte(client) not in {_HANDSHAKE, b""}:
                    self._log(address, "the client speaks no TLS")
                    with suppress(OSError):
                        # Read first: closed with bytes that nobody read, TCP would drop the answer.
                        client.recv(_PLAIN_BYTES)
                        client.send(_PLAIN)
                    return
                await loop.connect_accepted_socket(
                    self._connection,
                    client,
                    ssl=self._certificates.current().context,
                    ssl_handshake_timeout=self._handshake_seconds,
                    ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
                )
                # Now the transport's.
                client = None  # type: ignore[assignment]
        except ssl.SSLError as error:
            reason = error.reason or ""
            self._log(address, _REASONS.get(reason) or reason.replace("_", " ").lower() or "the client has gone")
        except (OSError, TimeoutError):
            # The client has gone, or takes too long.
            pass
        finally:
            if client is not None:
                client.close()

    def _log(self, address: str, reason: str) -> None:
        now = time.monotonic()
        if now - self._log_times.get(reason, -_LOG_SECONDS) < _LOG_SECONDS:
            return
        self._log_times[reason] = now
        log.warning(f"a TLS handshake failed: {reason}", client=address)


async def _first_byte(client: socket.socket) -> bytes:
    """Return the first byte that a client sends, and leave it to be read; empty: the client has gone."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def came() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(client, came)
    try:
        await readable
    finally:
        loop.remove_reader(client)
    return client.recv(1, socket.MSG_PEEK)
