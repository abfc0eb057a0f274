"""Processes of Python that find fastlane imported, since they are forked from one that has imported it. Most tests of a
process are not about the start of its interpreter, which costs a third of a second of a core.

A fork has an environment, files and signals of its own, and ends as any interpreter does."""

import gc
import json
import os
import pkgutil
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock, Thread
from typing import Any, BinaryIO

from tests.tools import ROOT

_NUMBER = struct.Struct("i")


class Forked:
    """A process that does what `python -c CODE ARGUMENTS` does, with nothing to read from stdin. Its attributes are
    those of `subprocess.Popen`."""

    def __init__(
        self,
        code: str,
        *arguments: str | bytes,
        environment: Mapping[str, str] | None = None,
        stderr: int = subprocess.PIPE,
    ) -> None:
        """`stderr`: the descriptor of a file, if it is not to be a pipe."""
        self.args = [sys.executable, "-c", code, *arguments]
        self.returncode: int | None = None
        self._lock = Lock()
        self.stderr: BinaryIO | None = None
        self.stdout, stdout = _pipe()
        theirs = [stdout]
        if stderr == subprocess.PIPE:
            self.stderr, stderr = _pipe()
            theirs.append(stderr)
        self._connection, connection = socket.socketpair()
        theirs.append(connection.detach())
        socket.send_fds(_origin(), [b"."], [theirs[-1], stdout, stderr])
        for file in theirs:
            os.close(file)
        request = {
            "code": code,
            "arguments": [os.fsdecode(argument) for argument in arguments],
            "environment": dict(os.environ if environment is None else environment),
            "directory": str(Path.cwd()),
        }
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = self._told()

    def poll(self) -> int | None:
        """Return how the process ended, as a number of `subprocess`; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Do the same once it has ended."""
        if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        # Another thread may have waited, too.
        with self._lock:
            if self.returncode is None:
                self.returncode = self._told()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash would."""
        self.send_signal(signal.SIGKILL)

    def _told(self) -> int:
        told = self._connection.recv(_NUMBER.size, socket.MSG_WAITALL)
        assert told, "the process that forks has ended"
        return int(*_NUMBER.unpack(told))


def run(
    code: str, *arguments: str | bytes, environment: Mapping[str, str] | None = None, timeout: float = 60
) -> "subprocess.CompletedProcess[bytes]":
    """Run such a process to its end; what it printed is in the answer."""
    process = Forked(code, *arguments, environment=environment)
    assert process.stderr
    printed: dict[str, bytes] = {}
    readers = [
        Thread(target=lambda name=name, file=file: printed.update({name: file.read()}))
        for name, file in {"stdout": process.stdout, "stderr": process.stderr}.items()
    ]
    for reader in readers:
        reader.start()
    try:
        process.wait(timeout)
    finally:
        process.kill()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
    return subprocess.CompletedProcess(process.args, process.wait(), printed["stdout"], printed["stderr"])


def _pipe() -> tuple[BinaryIO, int]:
    ours, theirs = os.pipe()
    return os.fdopen(ours, "rb"), theirs


# ----------------------------------------------------------------------------------------------- the process that forks


@cache
def _origin() -> socket.socket:
    """A connection to it. It ends with this process, and what it forked goes on."""
    ours, theirs = socket.socketpair()
    program = f"from tests.forked import main; main({theirs.fileno()})"
    with theirs:
        # Kept, or its object would complain at its own end.
        _kept.append(
            subprocess.Popen(
                [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        )
    return ours


_kept: "list[subprocess.Popen[bytes]]" = []


def main(control: int) -> None:
    """Fork as often as it is asked for. In a fork, do what that is for."""
    for module in pkgutil.walk_packages([str(ROOT / "fastlane_grpc")], "fastlane_grpc."):
        if not module.name.endswith((".__main__", ".build_recorder")):
            import_module(module.name)
    # A collection in a fork would write to the pages of all that, and so copy them.
    gc.collect()
    gc.freeze()
    # Nobody waits for those that wait for the forks.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=control) as asked:
        while files := socket.recv_fds(asked, 1, 3)[1]:
            if not os.fork():
                asked.detach()
                break
            for file in files:
                os.close(file)
        else:
            return
    request = _fork(*files)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    random.seed()
    sys.argv = ["-c", *request["arguments"]]
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})


def _fork(connection: int, stdout: int, stderr: int) -> dict[str, Any]:
    """Fork, and return in the fork; this process waits for that, tells how it ended, and ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(connection, "rb", closefd=False) as lines:
        request: dict[str, Any] = json.loads(lines.readline())
    if not (process := os.fork()):
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        return request
    try:
        os.close(stdout)
        os.close(stderr)
        os.write(connection, _NUMBER.pack(process))
        _, status = os.waitpid(process, 0)
        os.write(connection, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
    finally:
        os._exit(0)
