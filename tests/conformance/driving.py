"""Runs of a driver: its output, its exit status and its report."""

import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.conformance.languages import ENVIRONMENT

SECONDS = 60
FAILED = 70
READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Ran:
    """What a driver did. `report` is without the fields that say nothing."""

    status: int
    stdout: bytes
    stderr: bytes
    report: Mapping[str, Any]

    @property
    def error(self) -> Mapping[str, Any]:
        assert self.status == FAILED, f"no error, but {self.status}: {self.report}"
        assert "error" in self.report, f"an error that is not told; stderr:\n{self.stderr.decode()}"
        error: Mapping[str, Any] = self.report["error"]
        return error


class Process:
    """A process of a driver. It makes one run after another, and answers each with a line."""

    def __init__(self, command: Sequence[str | Path], errors: Path) -> None:
        self._errors = errors
        with errors.open("wb") as stderr:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=ENVIRONMENT, bufsize=0
            )
        assert self._popen.stdin
        assert self._popen.stdout
        self._calls = self._popen.stdin
        self.answers = self._popen.stdout.fileno()

    def begin(self, words: Sequence[str]) -> None:
        self._calls.write(json.dumps(words).encode() + b"\n")

    def errors(self) -> str:
        """Return what it printed that is not of a job: a library's notes, or what it died of."""
        return self._errors.read_text(errors="replace")

    def end(self) -> None:
        """Wait until it has ended by itself: a client that was closed keeps no process."""
        self._popen.communicate(timeout=SECONDS)
        assert (self._popen.returncode, self.errors()) == (0, ""), self.errors()

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()


class Run:
    """A run of a driver. Its process is killed if the test leaves the run before its end."""

    def __init__(self, process: Process, directory: Path, idle: list[Process], words: Sequence[str]) -> None:
        directory.mkdir()
        self._process = process
        self._idle = idle
        self._report = directory / "report.json"
        self._deadline = time.monotonic() + SECONDS
        self._selector = selectors.DefaultSelector()
        self._taken = {name: bytearray() for name in ("stdout", "stderr", "answer")}
        self._pipes = [self._pipe(directory, name) for name in ("stdout", "stderr")]
        self._selector.register(process.answers, selectors.EVENT_READ, "answer")
        files = (f"{name}={directory / name}" for name in ("stdout", "stderr"))
        process.begin([*words, f"report={self._report}", *files])

    def _pipe(self, directory: Path, name: str) -> int:
        os.mkfifo(directory / name)
        # Without waiting for the driver, which opens it as well.
        pipe = os.open(directory / name, os.O_RDONLY | os.O_NONBLOCK)
        self._selector.register(pipe, selectors.EVENT_READ, name)
        return pipe

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._selector.get_map() or self._process.errors():
            self._process.kill()
        else:
            self._idle.append(self._process)
        self._selector.close()
        for pipe in self._pipes:
            os.close(pipe)

    def read(self, size: int) -> bytes:
        """Return so many bytes of stdout as soon as they are there."""
        stdout = self._taken["stdout"]
        while len(stdout) < size and self._selector.get_map():
            self._take()
        data = bytes(stdout[:size])
        del stdout[:size]
        return data

    def end(self) -> Ran:
        """Wait for the end; the output is what was not read before."""
        while self._selector.get_map():
            self._take()
        assert not self._process.errors(), self._process.errors()
        told = json.loads(self._report.read_text())
        report = {name: value for name, value in told.items() if value not in (None, "", [], {})}
        stdout, stderr, answer = (bytes(taken) for taken in self._taken.values())
        return Ran(int(answer), stdout, stderr, report)

    def _take(self) -> None:
        """Wait for bytes or the end of one of the pipes."""
        ready = self._selector.select(self._deadline - time.monotonic())
        assert ready, f"nothing more came, after {self._taken['answer']!r}: {self._process.errors()}"
        for key, _ in ready:
            data = os.read(key.fd, READ_BYTES)
            self._taken[key.data] += data
            assert data or key.data != "answer", f"the driver ended: {self._process.errors()}"
            if not data or (key.data == "answer" and data.endswith(b"\n")):
                self._selector.unregister(key.fd)


class Driver:
    """The driver of one language. A process makes one run after another: to start it takes longer than most runs."""

    def __init__(self, command: Sequence[str | Path], directory: Path) -> None:
        self._command = command
        self._directory = directory
        self._numbers = count()
        # Two may run at a time, as a tail and the stop of its job.
        self._idle: list[Process] = []

    def end(self) -> None:
        """End the processes: the next run has a new one."""
        while self._idle:
            self._idle.pop().end()

    def start(self, operation: str, address: str, *words: str, **options: object) -> Run:
        number = next(self._numbers)
        process = self._idle.pop() if self._idle else Process(self._command, self._directory / f"errors-{number}")
        given = [f"{name}={value}" for name, value in options.items()]
        call = [operation, f"address={address}", *given, *words]
        return Run(process, self._directory / f"run-{number}", self._idle, call)

    def enqueue(self, address: str, image: str, *args: str, **options: object) -> Ran:
        words = [f"arg={word}" for word in args]
        with self.start("enqueue", address, *words, image=image, **{"task": "conformance", **options}) as run:
            return run.end()

    def get(self, address: str, job: str, **options: object) -> Ran:
        with self.start("get", address, job=job, **options) as run:
            return run.end()

    def stop(self, address: str, job: str, **options: object) -> Ran:
        with self.start("stop", address, job=job, **options) as run:
            return run.end()

    def tail(self, address: str, **options: object) -> Ran:
        with self.start("tail", address, **options) as run:
            return run.end()
