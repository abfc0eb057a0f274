"""The health of a server for programs of its own machine: a socket that needs no TLS and no token.

The socket has a name and no file, which copies of the data directory would stumble over. The event loop answers, so a
server that hangs does not."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

# The names of the health service that are told.
NAMES = ("live", "server", "engine")
_BACKLOG = 128
# Between two attempts to connect to a server that many ask.
_PAUSE_SECONDS = 0.05
# Of the kernel's struct ucred: process, user, group.
_CREDENTIALS = struct.Struct("=iII")


class NoHealth(Exception):
    """No server answers; the message says why."""


async def open_health_socket(data_dir: Path, is_serving: Callable[[str], bool], parts: AsyncExitStack) -> None:
    """Answer at the socket until the parts are closed. OSError: another program has its name."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(json.dumps({name: is_serving(name) for name in NAMES}).encode() + b"\n")
            await writer.drain()
        writer.close()

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(name_of(data_dir))
        listener.setblocking(False)
        server = await asyncio.start_unix_server(answer, sock=listener, backlog=_BACKLOG)
    except BaseException:
        listener.close()
        raise
    parts.callback(server.close)


def health_of(data_dir: Path, *, timeout_seconds: float) -> Mapping[str, bool]:
    """Return which names of the health service serve. Blocks. NoHealth."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_seconds)
        try:
            _connect(client, name_of(data_dir), timeout_seconds)
            if not is_trusted(_user_of(client), owner=data_dir.stat().st_uid):
                raise NoHealth(f"the program that answers for {data_dir} is not its server, but of another user")
            with client.makefile("rb") as file:
                answer = json.loads(file.readline(4096))
        except TimeoutError:
            raise NoHealth(f"the server does not respond within {timeout_seconds:g} s") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoHealth(f"no server uses {data_dir}: set --data-dir as the server has it") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it went down meanwhile"
            raise NoHealth(f"the server in {data_dir} cannot be asked: {reason}") from error
    return {name: bool(answer.get(name)) for name in NAMES}


def name_of(data_dir: Path) -> bytes:
    """Return the name of the socket, by which no other directory of the machine is called. OSError."""
    state = data_dir.stat()
    return f"\0fastlane-health-{state.st_dev}-{state.st_ino}".encode()


def _connect(client: socket.socket, name: bytes, timeout_seconds: float) -> None:
    end = time.monotonic() + timeout_seconds
    while True:
        try:
            client.connect(name)
            return
        except BlockingIOError:
            # More clients wait than the kernel keeps: it does not wait itself where there is a time limit.
            if time.monotonic() > end:
                raise TimeoutError from None
            time.sleep(_PAUSE_SECONDS)


def is_trusted(user_id: int, *, owner: int) -> bool:
    """Return whether a program of this user may be the server: any user can take a name that is free."""
    return user_id in {owner, 0}


def _user_of(client: socket.socket) -> int:
    """Return the user of the program at the other end."""
    _, user_id, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user_id)
