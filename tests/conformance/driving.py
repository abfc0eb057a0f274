"""Runs of a driver: its output, its exit status and its report."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from tests.conformance.languages import ENVIRONMENT

SECONDS = 60
FAILED = 70


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


class Run:
    """A driver that runs. It is killed when the test leaves it."""

    def __init__(self, command: Sequence[str | Path], report: Path, operation: str, words: Sequence[str]) -> None:
        self._report = report
        self._process = subprocess.Popen(
            [*command, operation, f"report={report}", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            bufsize=0,
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout
        return self._process.stdout

    def read(self, size: int) -> bytes:
        """Return so many bytes of stdout as soon as they are there."""
        data = b""
        while len(data) < size and (more := self.stdout.read(size - len(data))):
            data += more
        return data

    def end(self) -> Ran:
        """Wait for the end; the output is what was not read before."""
        stdout, stderr = self._process.communicate(timeout=SECONDS)
        told = json.loads(self._report.read_text()) if self._report.exists() else {}
        report = {name: value for name, value in told.items() if value not in (None, "", [], {})}
        return Ran(self._process.returncode, stdout, stderr, report)


class Driver:
    """The driver of one language."""

    def __init__(self, command: Sequence[str | Path], directory: Path) -> None:
        self._command = command
        self._directory = directory
        self._runs = count()

    def start(self, operation: str, address: str, *words: str, **options: object) -> Run:
        given = [f"{name}={value}" for name, value in options.items()]
        # Of each run its own: two may run at a time, as a tail and the stop of its job.
        report = self._directory / f"report-{next(self._runs)}.json"
        return Run(self._command, report, operation, [f"address={address}", *given, *words])

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
