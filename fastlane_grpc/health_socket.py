"""The health of a server for programs of its own machine: a socket in its data directory, which needs no TLS and no
token.

Each user of the directory may ask. The event loop answers, so a server that hangs does not."""

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from fastlane_grpc.machine.data_directory import HEALTH_SOCKET

# The names of the health service that are told.
NAMES = ("live", "server", "engine")
_BACKLOG = 16


class NoHealth(Exception):
    """No server answers; the message says why."""


async def open_health_socket(data_dir: Path, is_serving: Callable[[str], bool], parts: AsyncExitStack) -> None:
    """Answer at the socket until the parts are closed. OSError: the file system has no sockets, or is full."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(json.dumps({name: is_serving(name) for name in NAMES}).encode() + b"\n")
            await writer.drain()
        writer.close()

    path = data_dir / HEALTH_SOCKET
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _at(data_dir, listener.bind)
        listener.setblocking(False)
        server = await asyncio.start_unix_server(answer, sock=listener, backlog=_BACKLOG)
    except BaseException:
        listener.close()
        raise
    parts.callback(server.close)
    parts.callback(path.unlink, missing_ok=True)


def health_of(data_dir: Path, *, timeout_seconds: float) -> Mapping[str, bool]:
    """Return which names of the health service serve. Blocks. NoHealth."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_seconds)
        try:
            _at(data_dir, client.connect)
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


def _at(data_dir: Path, use: Callable[[str], object]) -> None:
    """Call `use` with a short path of the socket: the path of a socket has at most 107 bytes."""
    directory = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{directory}/{HEALTH_SOCKET}")
    finally:
        os.close(directory)
