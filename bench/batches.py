"""Jobs enqueued by BatchEnqueueJobs per second, against other queues that have each job on disk when its enqueue
returns: Redis with `appendfsync always`, SQLite with full sync.

All jobs are of one task, and of one queue of the others. Client and server share the machine, as client and Redis do.
Ours: one client process that builds its requests and has four calls of 1 000 jobs in flight. Theirs: two client
processes, see `bench/peers.py`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from bench.ratio import Ratio, in_turn
from bench.server import server

JOBS = 20_000
GOAL = 20_000
# Of those that have no call for many jobs, or are slow: as many as take a second or two.
PEERS = {
    "rq": ("RQ enqueue_many, 1 000 each", 10_000),
    "dramatiq": ("Dramatiq send, 2 x 8 threads", 6_000),
    "celery": ("Celery apply_async, 2 x 8 threads", 3_000),
    "huey": ("Huey on SQLite, fsync, 2 processes", 2_000),
}
_PYTHON = Path(".peers/bin/python")
_REDIS = Path(".peers/redis/usr")

_CLIENT = """
import asyncio, sys, time
import uvloop
from fastlane_grpc.client import AsyncClient
from fastlane_grpc.v1 import fastlane_pb2 as pb

async def main(address, jobs, in_flight=4):
    spec = pb.JobSpec(image="registry:5000/mail:1.2", command="python /app/sendmail.py",
        envs={"SMTP_SERVER": "my-smtp-server", "PADDING": "x" * 200})
    run = time.time_ns()
    def requests(begin, end):
        for number in range(begin, end):
            yield pb.EnqueueJobRequest(task_id="send-mail", spec=spec, request_id=f"{run}-{number}")
    async with AsyncClient(address) as client:
        async def enqueue(begin, end):
            return [result.error async for result in client.enqueue_many(requests(begin, end))]
        await enqueue(jobs, jobs + 20)
        begin, share = time.perf_counter(), jobs // in_flight
        errors = await asyncio.gather(*(enqueue(each * share, (each + 1) * share) for each in range(in_flight)))
        seconds = time.perf_counter() - begin
    assert not any(any(each) for each in errors)
    print(jobs / seconds)
uvloop.run(main(sys.argv[1], int(sys.argv[2])))
"""


@dataclass(frozen=True)
class Missing:
    """A row that could not be measured, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what:58} not measured: {self.why}"


def rows(stage: Path, rounds: int) -> Iterator[Ratio | Missing]:
    no_engine = f"unix://{stage}/no-engine.sock"
    what = "jobs by BatchEnqueueJobs, against"
    with (
        server(stage, "--engine", no_engine, "--max-waiting", "100000000") as running,
        _redis(stage) as redis,
    ):
        ours = partial(_ours, running.address)
        yield in_turn(f"{what} the goal", "jobs/s", 1.0, ours, lambda: GOAL, rounds=rounds)
        for name, (theirs, jobs) in PEERS.items():
            place = redis if name != "huey" else str(stage / f"huey-{time.time_ns()}.db")
            if not _PYTHON.exists():
                yield Missing(f"{what} {theirs}", "pip could not install it")
            elif place is None:
                yield Missing(f"{what} {theirs}", "there is no redis-server")
            else:
                peer = partial(_theirs, name, place, jobs)
                try:
                    yield in_turn(f"{what} {theirs}", "jobs/s", 1.0, ours, peer, rounds=rounds)
                except subprocess.CalledProcessError:
                    yield Missing(f"{what} {theirs}", "it failed; its words are above")


def _ours(address: str) -> float:
    return _printed([sys.executable, "-c", _CLIENT, address, str(JOBS)])


def _theirs(name: str, place: str, jobs: int) -> float:
    return _printed([str(_PYTHON), "bench/peers.py", name, place, str(jobs)])


def _printed(command: list[str]) -> float:
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(ran.stdout.split()[-1])


@contextmanager
def _redis(stage: Path) -> Iterator[str | None]:
    """The address of a Redis that syncs each write to the disk before it answers; None: there is no Redis."""
    installed = shutil.which("redis-server")
    program = installed or next(iter(map(str, _REDIS.glob("bin/redis-check-rdb"))), None)
    if program is None:
        yield None
        return
    directory = Path(mkdtemp(prefix="redis-", dir=stage))
    socket = directory / "redis.sock"
    libraries = ":".join(str(each.resolve()) for each in _REDIS.glob("lib/*-linux-gnu*"))
    # The program is a server when it is called so.
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--save", ""]
    process = subprocess.Popen(
        ["redis-server", *options, "--appendonly", "yes", "--appendfsync", "always"],
        executable=program,
        env={**os.environ, **({} if installed else {"LD_LIBRARY_PATH": libraries})},
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            if socket.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        yield f"unix://{socket}" if process.poll() is None else None
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
