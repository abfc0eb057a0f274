"""A server in a process of its own, which may be killed: by a test from outside, or by itself right after a named step
of the runner."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import docker
from docker.errors import APIError

from tests import probed
from tests.forked import Forked
from tests.new_database import make_database

# What the process does. A step that is to kill it comes as NAME:N, the Nth time that any execution reaches it.
_MAIN = """
import json, os, signal, sys, threading
from datetime import datetime
from pathlib import Path
from fastlane_grpc import app, config
from fastlane_grpc.model import utc_now

flags, kill_at = json.loads(sys.argv[1])
file = flags.pop("config", None)
begin, factor = flags.pop("clock", ("2026-01-01T00:00:00+00:00", 1))
begin = datetime.fromisoformat(begin)
name, _, nth = kill_at.partition(":")
left, lock = [int(nth or 1)], threading.Lock()

def now():
    return begin + (utc_now() - begin) * factor

def step(step, execution_id):
    with lock:
        if step == name:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

def ready(ports):
    print(ports.rpc, ports.http, flush=True)

# The dispatcher sleeps by another clock than the one it looks at, and would be late.
sleep = {"longest_sleep_seconds": 3 / factor} if factor > 1 else {}
app.serve(config.load(flags, {}, file and Path(file)), ready=ready, step=step, now=now, **sleep)
"""


class Server:
    """A server on a free port of loopback, over a data directory that outlives it. `under`: a program that makes itself
    the server."""

    def __init__(
        self,
        data_dir: Path,
        *,
        kill_at: str = "",
        listen: str = "127.0.0.1:0",
        python: str = sys.executable,
        under: Sequence[str] = (),
        process: Mapping[str, object] | None = None,
        **settings: object,
    ) -> None:
        """`process`: what `subprocess.Popen` is told beside all that, as whom it runs for example. `clock` among the
        settings: a time in ISO 8601, from which on time passes that many times as fast for what is due."""
        flags = {"data_dir": str(data_dir), "listen": listen, "http_listen": "off", **settings}
        self._data_dir = data_dir
        # Another user's server could not write beside what is ours; one under a program, and one over a directory of
        # another server, finds out for itself what is not known there.
        if "user" not in (process or {}) and not under and not data_dir.exists():
            data_dir.mkdir(mode=0o700)
            probed.prepare(data_dir)
            make_database(data_dir / "fastlane.db")
        self._log = Path(f"{data_dir}.log")
        with self._log.open("ab") as log:
            self.process: subprocess.Popen[bytes] | Forked = (
                subprocess.Popen(  # type: ignore[call-overload]
                    [*under, python, "-c", _MAIN, json.dumps([flags, kill_at])],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    **(process or {}),
                )
                if under or process or python != sys.executable
                else Forked(_MAIN, json.dumps([flags, kill_at]), stderr=log.fileno())
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line and not kill_at:
            raise RuntimeError(f"the server did not start:\n{self.log[-4000:]}")
        self.port, self.http_port = map(int, line.split()) if line else (0, 0)

    @property
    def open_files(self) -> int:
        """How many files the process has open now."""
        return len([*Path(f"/proc/{self.process.pid}/fd").iterdir()])

    @property
    def log(self) -> str:
        """What this server, and those before it over the same directory, wrote to stderr."""
        return self._log.read_text()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def memory_bytes(self) -> int:
        """The most that the process ever had in memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As an operator would; the exit code."""
        return self._end(signal.SIGTERM)

    def wait(self, timeout_seconds: float = 60) -> int:
        return self.process.wait(timeout_seconds)

    def _end(self, number: int) -> int:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        code = self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()
        probed.learn(self._data_dir)
        return code


@contextmanager
def serving(data_dir: Path, **settings: object) -> Iterator[Server]:
    """A server for as long as it lasts, stopped by SIGTERM."""
    server = Server(data_dir, **settings)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serving_on(sdk: docker.DockerClient, data_dir: Path, **settings: object) -> Iterator[Server]:
    """The same, and no container of its is left on the engine."""
    with serving(data_dir, **settings) as server:
        yield server
    clear(sdk, data_dir)


def instance(data_dir: Path) -> str:
    """What the containers of the servers over this directory are labelled with."""
    with closing(sqlite3.connect(data_dir / "fastlane.db")) as db:
        return str(db.execute("SELECT instance_id FROM instance").fetchone()[0])


def containers(sdk: docker.DockerClient, data_dir: Path) -> dict[str, str]:
    """The engine's containers of the servers over this directory: the execution of each."""
    found = sdk.api.containers(all=True, filters={"label": f"fastlane.instance={instance(data_dir)}"})
    return {each["Id"]: each["Labels"]["fastlane.execution"] for each in found}


def clear(sdk: docker.DockerClient, data_dir: Path) -> None:
    for container_id in containers(sdk, data_dir):
        try:
            sdk.api.remove_container(container_id, force=True)
        except APIError as error:
            # Gone, or about to be.
            if error.status_code not in {404, 409}:
                raise


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done in it takes no longer."""
    begin = time.monotonic()
    yield
    took_seconds = time.monotonic() - begin
    assert took_seconds < seconds, f"took {took_seconds:.1f} s"
