"""The HTTP client for requests that the SDK's client cannot make: one request on one connection, sent once.

The answer is read as it comes, and any thread can cut the connection. Every failure is EngineDown or EngineRefuses.
The requests are those whose promises do not hold with the SDK (7.2):

* files into a container: the SDK sends a body without a length, but holds no limit on the time of an answer then.
* events, pull, upload of an image: the SDK sends them without a time limit. Measured: with a limit of 2 s, a stream of
  events was still read after 15 s of silence. So a frozen engine, a registry that does not answer and a probe of a
  frozen engine would go unnoticed. A pull cannot be cut by another thread, and neither can events by ssh.
* ping, kill: each with a time limit of its own, shorter than that of other requests. The SDK has one limit for all.
* start: sent once, on a connection of its own, without a time limit.
* attach: the raw stream, read into a buffer without a copy. Lines of events are bounded, too.
"""

import contextlib
import io
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from http.client import parse_headers
from io import BytesIO
from typing import Any

from fastlane_grpc.docker.address import EngineAddress, complaint_of
from fastlane_grpc.docker.engine_errors import EngineDown, EngineRefuses

# The largest answer that is read whole. An answer without a length ends with the connection.
MAX_ANSWER_BYTES = 64 << 20
# A longer line is cut to this length, so that it does not fill the memory. Engines write no such lines.
MAX_LINE_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
# The longest wait for a connection, which over TLS takes an answer of the engine. No longer than that for the answer.
CONNECT_SECONDS = 10.0
# Answers of a proxy in front of an engine that is down.
NO_ENGINE_STATUS = frozenset({502, 503, 504})


class EngineRequest:
    """A request that was sent, with the head of its answer. Raises EngineDown, and EngineRefuses for an error."""

    def __init__(
        self,
        address: EngineAddress,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] = b"",
        upgrade: bool = False,
        connect_seconds: float | None = None,
        answer_seconds: float | None,
    ) -> None:
        if connect_seconds is None:
            connect_seconds = min(CONNECT_SECONDS, answer_seconds or CONNECT_SECONDS)
        # A body of blocks is sent in chunks, as its length is not known. Raises what its iteration raises.
        self._connection = address.connect(connect_seconds)
        self._rest = b""
        self._in_long_line = False
        try:
            if isinstance(body, bytes):
                self._send(method, path, dict(headers or {}), body, upgrade)
                self._connection.settimeout(answer_seconds)
            else:
                self._connection.settimeout(answer_seconds)
                self._send_chunked(method, path, dict(headers or {}), body)
            self._read_head()
            if self.status in NO_ENGINE_STATUS:
                raise ConnectionError(f"{self.status} {_message(self._body())}")
            if self.status >= 400:
                raise EngineRefuses(self.status, _message(self._body()))
        except OSError as error:
            # After a silence there is nothing to read: ssh waits, too.
            complaint = "" if isinstance(error, TimeoutError) else complaint_of(self._connection)
            self.cut()
            if complaint:
                raise EngineDown(f"no engine answers at {address}: {complaint}") from error
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

    def _send_chunked(self, method: str, path: str, headers: Mapping[str, str], blocks: Iterable[bytes]) -> None:
        fields = {**headers, "Host": "docker", "User-Agent": "fastlane", "Connection": "close"}
        fields["Transfer-Encoding"] = "chunked"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self._connection.sendall("\r\n".join(lines).encode())
        for chunk in _chunks(blocks):
            try:
                self._connection.sendall(chunk)
            except (BrokenPipeError, ConnectionResetError):
                # The engine has answered before the end, which is an error; it follows.
                return

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


class EngineContent(io.RawIOBase):
    """The body of an answer as a file to read. Reading raises EngineDown; the end of the file closes nothing."""

    def __init__(self, request: EngineRequest) -> None:
        super().__init__()
        self._request = request

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte; 0 at the end."""
        try:
            return self._request.read_into(memoryview(buffer).cast("B"))
        except OSError as error:
            raise EngineDown(f"the engine broke off its answer: {error}") from error

    def close(self) -> None:
        """Close the connection, wherever the reading is."""
        self._request.cut()
        super().close()


def _chunks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks as chunks of a body, small ones together."""
    waiting = bytearray()
    for block in blocks:
        waiting += block
        if len(waiting) >= CHUNK_BYTES:
            yield b"%x\r\n%b\r\n" % (len(waiting), bytes(waiting))
            waiting.clear()
    if waiting:
        yield b"%x\r\n%b\r\n" % (len(waiting), bytes(waiting))
    yield b"0\r\n\r\n"


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()
