"""The HTTP client of the engine: one request on one connection, sent once.

The answer is read as it comes, and any thread can cut the connection. Every failure is EngineDown or EngineRefuses.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from http.client import parse_headers
from io import BytesIO

from fastlane_grpc.backend import BackendDown, BackendRefuses
from fastlane_grpc.docker.engine_errors import diagnosis
from fastlane_grpc.machine.shortage import PAUSE_SECONDS, outlast

# The largest answer that is read whole. An answer without a length ends with the connection.
MAX_ANSWER_BYTES = 64 << 20
# A longer line is cut to this length, so that it does not fill the memory. Engines write no such lines.
MAX_LINE_BYTES = 1 << 20
# Answers of a proxy in front of an engine that is down.
NO_ENGINE_STATUS = frozenset({502, 503, 504})
# The engine's queue of connections is full; every local port is in use. Repeated until the timeout of the connection.
_PASSING = frozenset({errno.EAGAIN, errno.EADDRNOTAVAIL})


class EngineDown(BackendDown):
    """The engine did not answer. The request may have been carried out, or may be carried out later."""


class EngineRefuses(BackendRefuses):
    """The engine refused the request, with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(diagnosis(message))
        self.status = status
        self.message = message


def connect(address: str, timeout_seconds: float) -> socket.socket:
    """Return a connection to `unix:///path` or `tcp://host:port`. Raises EngineDown.

    A shortage in this process, as of open files, says nothing about the engine: its end is waited for, however long it
    lasts.
    """
    until = time.monotonic() + timeout_seconds
    while True:
        try:
            return outlast(lambda: _connect(address, timeout_seconds))
        except OSError as error:
            if error.errno not in _PASSING or time.monotonic() >= until:
                raise EngineDown(f"no engine answers at {address}: {error.strerror or error}") from error
        time.sleep(PAUSE_SECONDS)


def _connect(address: str, timeout_seconds: float) -> socket.socket:
    kind, _, target = address.partition("://")
    if kind == "tcp":
        host, _, port = target.rpartition(":")
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout_seconds)
        except socket.gaierror:
            # A lookup without a free descriptor fails with an error that hides the cause: this line then raises the
            # true error.
            os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
            raise
        # A machine that is gone sends nothing: without keepalive a stream from it would never end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(target)
    except BaseException:
        connection.close()
        raise
    return connection


class EngineRequest:
    """A request that was sent, with the head of its answer. Raises EngineDown, and EngineRefuses for an error."""

    def __init__(
        self,
        address: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        upgrade: bool = False,
        connect_seconds: float = 10,
        answer_seconds: float | None,
    ) -> None:
        self._connection = connect(address, connect_seconds)
        self._rest = b""
        self._in_long_line = False
        try:
            self._send(method, path, dict(headers or {}), body, upgrade)
            self._connection.settimeout(answer_seconds)
            self._read_head()
            if self.status in NO_ENGINE_STATUS:
                raise ConnectionError(f"{self.status} {_message(self._body())}")
            if self.status >= 400:
                raise EngineRefuses(self.status, _message(self._body()))
        except OSError as error:
            self.cut()
            raise EngineDown(f"the engine did not answer {method} {path.partition('?')[0]}: {error}") from error
        except BaseException:
            self.cut()
            raise

    def whole(self) -> bytes:
        """Return the whole body of the answer, and close the connection. Raises EngineDown."""
        try:
            return self._body()
        except OSError as error:
            raise EngineDown(f"the engine broke off its answer: {error}") from error
        finally:
            self.cut()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the answer, each cut to MAX_LINE_BYTES, to the end or the cut.

        Raises OSError. After a TimeoutError the method may be called again.
        """
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                if not self._in_long_line:
                    yield line[:MAX_LINE_BYTES]
                self._in_long_line = False
                continue
            if self._in_long_line:
                self._rest = b""
            elif len(line) > MAX_LINE_BYTES:
                self._rest, self._in_long_line = b"", True
                yield line[:MAX_LINE_BYTES]
            if more := self._connection.recv(65_536):
                self._rest += more
            else:
                return

    def read_into(self, buffer: memoryview) -> int:
        """Read at least one byte into the buffer, and return the number; 0 at the end. Raises OSError."""
        if self._rest:
            size = min(len(self._rest), len(buffer))
            buffer[:size] = self._rest[:size]
            self._rest = self._rest[size:]
            return size
        return self._connection.recv_into(buffer)

    def set_timeout(self, seconds: float | None) -> None:
        """Set how long a read waits from now on before it raises TimeoutError; None: without a limit."""
        # After a cut by another thread the next read finds the end.
        with contextlib.suppress(OSError):
            self._connection.settimeout(seconds)

    def cut(self) -> None:
        """Close the connection. A thread that reads gets the end of the stream, or an OSError."""
        # Shut down before the close, as a close alone would not wake the reader.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _body(self) -> bytes:
        length = 0 if self.status == 204 else int(self.headers.get("Content-Length", MAX_ANSWER_BYTES))
        while len(self._rest) < length and (more := self._connection.recv(65_536)):
            self._rest += more
        if len(self._rest) < length < MAX_ANSWER_BYTES:
            raise ConnectionError(f"{length - len(self._rest)} bytes of its answer are missing")
        return self._rest[:length]

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes, upgrade: bool) -> None:
        # With HTTP/1.0 an answer is never chunked: its body lasts until the end of the connection.
        version = "1.0"
        headers |= {"Host": "docker", "User-Agent": "fastlane"}
        if method == "POST":
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        if upgrade:
            version = "1.1"
            headers |= {"Connection": "Upgrade", "Upgrade": "tcp"}
        lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._connection.sendall("\r\n".join(lines).encode() + body)

    def _read_head(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = self._connection.recv(65_536)
            if not more or len(head) > MAX_ANSWER_BYTES:
                raise ConnectionError("it ended before its answer began")
            head += more
        # Bytes after the head belong to the stream.
        head, _, self._rest = head.partition(b"\r\n\r\n")
        first, _, fields = head.partition(b"\r\n")
        words = first.split(None, 2)
        if len(words) < 2 or not words[1].isdigit():
            raise ConnectionError(f"it answered {first[:80]!r}, which is not HTTP")
        self.status = int(words[1])
        self.headers = parse_headers(BytesIO(fields + b"\r\n\r\n"))


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()
