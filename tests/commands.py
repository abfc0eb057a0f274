"""The command `fastlane`, as a program of its own, on a pipe and on a terminal."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence

from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests import forked
from tests.scripted_server import Log, Piece, ScriptedServer

FASTLANE = [sys.executable, "-m", "fastlane_grpc.cli"]
# The same, for a fork.
PROGRAM = "from fastlane_grpc.cli import main; main()"
HELLO = Log([Piece(3, b"pulling\n"), Piece(1, b"hello\n"), Piece(2, b"oh\n"), Piece(1, b"world\n")])
# As above, and then it waits to be stopped.
WAITING = Log(HELLO.pieces, heartbeats_before_end=1_000_000, state=pb.STATE_STOPPED, exit_status=130)


def environment(server: ScriptedServer | None, **more: str) -> Mapping[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("FASTLANE_") and name != "NO_COLOR"
    }
    return kept | ({"FASTLANE_ADDRESS": server.address} if server else {}) | more


def fastlane(server: ScriptedServer | None, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    return forked.run(PROGRAM, *arguments, environment=environment(server, **more))


def on_terminal(
    server: ScriptedServer, *arguments: str, keys: Sequence[tuple[str, bytes]] = (), columns: int = 80, **more: str
) -> tuple[int, str]:
    """What a person sees who types it, and the exit status. Each of `keys` is typed once the text before it was
    seen."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # Started so, a shell has the terminal that it opens for its own, on which Ctrl-C is a signal.
    shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>"$0"', os.ttyname(theirs)]
    process = subprocess.Popen(
        [*shell, *FASTLANE, *arguments], env=environment(server, **more), stdin=theirs, start_new_session=True
    )
    os.close(theirs)
    seen, waiting = b"", list(keys)
    with process:
        # EIO is the end: nobody has the other side any more.
        with contextlib.suppress(OSError):
            while piece := os.read(mine, 65_536):
                seen += piece
                if waiting and waiting[0][0].encode() in seen:
                    os.write(mine, waiting.pop(0)[1])
        os.close(mine)
        return process.wait(60), seen.decode()
