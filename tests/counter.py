"""Counts what containers say of themselves, where nobody but the test reads it: a network of its own with one that
listens in it.

Run as a module it is the one that listens: each line that a connection brings it writes to a file.
"""

import collections
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PORT = 7000
# The address of an engine's first bridge.
BRIDGE = "172.17.0.1"


def count_me(name: str, address: str = BRIDGE) -> str:
    """Return what a shell in a container does to be counted under a name."""
    return f"echo {name} | nc -w 5 {address} {PORT} || exit 99"


class Counter:
    """A process that counts for as long as this is open, in the network of this process."""

    def __init__(self, lines: Path, *, under: Sequence[str] = ()) -> None:
        """`under`: a program, with arguments, that executes the counter."""
        self._lines = lines
        self.process = subprocess.Popen(
            [*under, sys.executable, "-m", "tests.counter", lines],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        assert self.process.stdout is not None
        # Only now is it certain that it listens, in the network where it should.
        assert self.process.stdout.readline() == b"listening\n"

    def counts(self) -> collections.Counter[str]:
        return collections.Counter(self._lines.read_text().split())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class CountingNetwork(Counter):
    """A network namespace that is there for as long as this is open, with a counter in it."""

    def __init__(self, lines: Path) -> None:
        super().__init__(lines, under=("unshare", "--net"))

    @property
    def path(self) -> str:
        return f"/proc/{self.process.pid}/ns/net"


def listen(lines: Path) -> None:
    with socket.create_server(("0.0.0.0", PORT), backlog=128) as listener, lines.open("wb", buffering=0) as file:
        print("listening", flush=True)  # noqa: T201
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as said:
                for line in said:
                    file.write(line)


if __name__ == "__main__":
    listen(Path(sys.argv[1]))
