"""Counts what containers say of themselves, where nobody but the test reads it: a network of its own with one that
listens in it.

Run as a module it is the one that listens: each line that a connection brings it writes to a file.
"""

import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

PORT = 7000
# What a container does to be counted under a name. The address is that of an engine's first bridge.
COUNT_ME = "echo {name} | nc -w 5 172.17.0.1 7000 || exit 99"


class CountingNetwork:
    """A network namespace that is there for as long as this is open."""

    def __init__(self, lines: Path) -> None:
        self._lines = lines
        self._process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-m", "tests.counter", lines],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        assert self._process.stdout is not None
        # Only now is it certain that it has left our own network.
        assert self._process.stdout.readline() == b"listening\n"

    @property
    def path(self) -> str:
        return f"/proc/{self._process.pid}/ns/net"

    def counts(self) -> Counter[str]:
        return Counter(self._lines.read_text().split())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


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
