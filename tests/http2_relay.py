"""Stands between client and server and does to HTTP/2 what proxies and dying servers do, at the edge of a frame."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from tests.cutting_relay import Relay
from tests.hostile_http2 import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame

WINDOW_UPDATE, CONTINUATION = 8, 9
ACKNOWLEDGED = 1
# Error codes of HTTP/2.
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 2, 7, 8, 11
# Trailers of a call that ended well, as literals: no table of either side changes.
OK = b"\0\x0bgrpc-status\x010"


# The kind of a frame, its flags and its payload. Its stream is that of the request.
Frame: TypeAlias = tuple[int, int, bytes]


def fields_of(status: int, content_type: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """Return the headers of an answer. ":status" and "content-type" by their places in the table that both sides begin
    with."""
    fields = [b"\x08" + text(str(status).encode()), b"\x0f\x10" + text(content_type)]
    return b"".join([*fields, *(b"\0" + text(name) + text(value) for name, value in more)])


def text(value: bytes) -> bytes:
    """Return a text of a header with its length before it."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    length, rest = [127], len(value) - 127
    while rest > 127:
        length.append(128 | rest & 127)
        rest >>= 7
    return bytes([*length, rest]) + value


@dataclass(frozen=True)
class Break:
    """What happens to an answer after so many bytes of its messages.

    `how`: "ok", an end without an error; "reset", RST_STREAM; "away", GOAWAY and the connection closed; both with
    `code`."""

    after_bytes: int
    how: str
    code: int = NO_ERROR


class Http2Relay(Relay):
    """Connects the clients of `self.address` to `address`. The first answer breaks as the first of `breaks` says, and
    so on.

    `statuses` are answered before that, one to each connection, by a proxy that lets nobody in; the last one for ever
    if it is below 500. `nonsense` is answered to the first connection: bytes at once, frames to the first request."""

    def __init__(
        self,
        address: str,
        breaks: Sequence[Break] = (),
        statuses: Sequence[int] = (),
        nonsense: bytes | Sequence[Frame] = b"",
    ) -> None:
        self.breaks = list(breaks)
        self.statuses = list(statuses)
        self.nonsense = nonsense
        super().__init__(address)

    def _serve(self, near: socket.socket) -> None:
        if self.nonsense:
            nonsense, self.nonsense = self.nonsense, b""
            self._babble(near, nonsense)
        elif self.statuses:
            self._refuse(near)
        else:
            self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._server_address)
        except OSError:
            near.close()
            return
        requests = _Writer(far)
        threading.Thread(target=self._pass_requests, args=(near, requests), daemon=True).start()
        self._pass_answers(far, near, requests)

    def _pass_requests(self, near: socket.socket, requests: "_Writer") -> None:
        with contextlib.suppress(OSError), near.makefile("rb") as source:
            requests.write(source.read(24))
            for header, payload in _frames(source):
                requests.write(header + payload)
        requests.close()

    def _pass_answers(self, far: socket.socket, near: socket.socket, requests: "_Writer") -> None:
        passed = 0
        # Streams that were broken here. The server may still send something on them.
        broken: set[int] = set()
        with contextlib.suppress(OSError), far.makefile("rb") as source:
            for header, payload in _frames(source):
                kind, flags, stream = _parsed(header)
                if stream in broken:
                    if kind == DATA and payload:
                        # The client has nothing to acknowledge: without this the server's window would shrink for good.
                        requests.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))
                    continue
                near.sendall(header + payload)
                if kind != DATA or not self.breaks or flags & END_STREAM:
                    continue
                passed += len(payload)
                if passed < self.breaks[0].after_bytes:
                    continue
                now, passed = self.breaks.pop(0), 0
                if now.how == "away":
                    near.sendall(frame(GOAWAY, 0, 0, struct.pack(">II", stream, now.code)))
                    break
                broken.add(stream)
                if now.how == "ok":
                    near.sendall(frame(HEADERS, END_HEADERS | END_STREAM, stream, OK))
                else:
                    near.sendall(frame(RST_STREAM, 0, stream, struct.pack(">I", now.code)))
                requests.write(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))
        for each in (far, near):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _refuse(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near, near.makefile("rb") as source:
            fields = fields_of(self.statuses[0], b"text/html")
            for stream in _requests(near, source):
                near.sendall(frame(HEADERS, END_HEADERS, stream, fields))
                near.sendall(frame(DATA, END_STREAM, stream, b"<h1>no</h1>"))
                if len(self.statuses) > 1 or self.statuses[0] >= 500:
                    # The next connection gets something else.
                    self.statuses.pop(0)
                    break
            _leave(near, source)

    def _babble(self, near: socket.socket, nonsense: bytes | Sequence[Frame]) -> None:
        with contextlib.suppress(OSError), near, near.makefile("rb") as source:
            if isinstance(nonsense, bytes):
                near.sendall(nonsense)
            else:
                stream = next(_requests(near, source))
                near.sendall(b"".join(frame(kind, flags, stream, payload) for kind, flags, payload in nonsense))
            _leave(near, source)


def _requests(near: socket.socket, source: BinaryIO) -> Iterator[int]:
    """Answer the settings of a client, and yield the stream of each of its requests."""
    source.read(24)
    near.sendall(frame(SETTINGS, 0, 0, b""))
    for header, _ in _frames(source):
        kind, flags, stream = _parsed(header)
        if kind == SETTINGS and not flags & ACKNOWLEDGED:
            near.sendall(frame(SETTINGS, ACKNOWLEDGED, 0, b""))
        if kind == HEADERS:
            yield stream


def _leave(near: socket.socket, source: BinaryIO) -> None:
    """End the connection. What the client still sends is read: data that nobody reads would make of the end a reset."""
    near.shutdown(socket.SHUT_WR)
    while source.read(1):
        pass


class _Writer:
    """A socket that two threads write to, whole frames each."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock:
            self._connection.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def _parsed(header: bytes) -> tuple[int, int, int]:
    """Return the kind of a frame, its flags and its stream."""
    return header[3], header[4], int.from_bytes(header[5:9], "big") & 0x7FFFFFFF


def _frames(source: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    while len(header := source.read(9)) == 9:
        size = int.from_bytes(header[:3], "big")
        payload = source.read(size)
        if len(payload) < size:
            return
        yield header, payload
