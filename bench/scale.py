"""One server with many running executions: the real store, dispatcher and lifecycle over a backend that runs nothing.

    .ci/stage scale python -m bench.scale 1000 10000 50000

A row for each number of executions that run at the same time: the starts a second up to there, what an execution takes,
GetJob beside them, and the ends a second when all are stopped. With the longest answers to single calls of GetJob while
all start and while all end, and to the calls of StopJobs. Nothing of it is about an engine. It takes minutes, and is no
row of `make bench`."""

import asyncio
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog
import uvloop

from bench.calls import ECHO, calls_per_second, echo_server
from bench.server import cpu_seconds
from fastlane_grpc import Client
from fastlane_grpc.app import Server
from fastlane_grpc.backend import (
    BackendEvent,
    Container,
    ContainerEvent,
    Handle,
    Image,
    Info,
    LeftContainer,
    Wrapper,
)
from fastlane_grpc.config import load
from fastlane_grpc.execution import Host
from fastlane_grpc.model import Assignment, Execution, HostKind, Usage, utc_now
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.pods import NO_IMAGE, NoCaptures

GETS = 2_000
# Pause between two single calls whose answers are timed.
LOOK_SECONDS = 0.02
# The longest time for an answer. A server that answers later is measured, not given up.
ANSWER_SECONDS = 600.0
# More than this without a further start: as many run as can run.
STUCK_SECONDS = 30.0


class NothingRuns:
    """Implements Backend without containers: one runs from its start to its first signal."""

    address = "none"
    kind = HostKind.DOCKER
    starts_at_once = True
    keeps_images = True

    def __init__(self) -> None:
        self._containers: dict[str, Container] = {}
        self._events: queue.SimpleQueue[ContainerEvent | None] = queue.SimpleQueue()

    def image(self, assignment: Assignment) -> Image:
        return NO_IMAGE

    def architecture(self, image_digest: str) -> str:
        return ""

    def pull(
        self, assignment: Assignment, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]
    ) -> "NothingRuns":
        on_end(None)
        return self

    def cancel(self) -> None:
        """Do nothing, as nothing is pulled."""

    def create(self, assignment: Assignment, image: Image, wrapper: Wrapper) -> Handle:
        wrapper.wrap({}, image)
        handle = Handle(assignment.execution.id, assignment.execution.id)
        self._containers[handle.text] = Container(
            handle,
            alive=False,
            ended=False,
            exit_code=0,
            start_failure=None,
            out_of_memory=False,
            stop_signal="SIGTERM",
            start_time=None,
            end_time=None,
        )
        return handle

    def before_start(self, handle: Handle) -> Handle:
        return handle

    def start(self, handle: Handle) -> None:
        self._containers[handle.text] = replace(self._containers[handle.text], alive=True, start_time=utc_now())
        self._events.put(ContainerEvent(handle.text, handle.text, False, None, time.time_ns()))

    def revoke(self, handle: Handle) -> bool:
        return False

    def inspect(self, handle: Handle) -> Container | None:
        return self._containers.get(handle.text)

    def usage(self, handle: Handle) -> Usage | None:
        return None

    def find(self, execution: Execution) -> Container | None:
        return self._containers.get(execution.id)

    def signal(
        self, handle: Handle, signal: str, *, grace_seconds: float = 0, answer_seconds: float | None = None
    ) -> None:
        ended = replace(self._containers[handle.text], alive=False, ended=True, exit_code=143, end_time=utc_now())
        self._containers[handle.text] = ended
        self._events.put(ContainerEvent(handle.text, handle.text, True, 143, time.time_ns()))

    def remove(self, handle: Handle, *, force: bool) -> None:
        self._containers.pop(handle.text, None)

    def containers(self) -> Sequence[LeftContainer]:
        return [LeftContainer(each.handle, each.handle.text, own=True) for each in list(self._containers.values())]

    def restarted(self, handle: Handle) -> bool:
        return False

    def ping(self, timeout_seconds: float) -> None:
        """Do nothing: it always answers."""

    def info(self) -> Info:
        return Info("none", "none", "amd64")

    def forget(self) -> None:
        """Do nothing, as there are no connections."""

    def events(self) -> "_Events":
        return _Events(self._events)


class _Events:
    """Implements EventStream over a queue."""

    def __init__(self, events: "queue.SimpleQueue[ContainerEvent | None]") -> None:
        self._queue = events

    def events(self) -> Iterator[BackendEvent]:
        while event := self._queue.get():
            yield event

    def set_timeout(self, seconds: float | None) -> None:
        """Do nothing: a silence of a queue means nothing."""

    def cut(self) -> None:
        self._queue.put(None)


class ServerOfNothing(Server):
    """A server with one host, on which nothing runs."""

    def open_hosts(self, parts: AsyncExitStack) -> None:
        """Make the host."""
        self.hosts = [Host("local", NothingRuns(), NoCaptures(), supervisor=self.supervisor)]
        parts.push_async_callback(self._close_hosts)


async def serve(directory: Path, slots: int) -> None:
    """Serve until the standard input ends; print the address."""
    flags = {"data_dir": str(directory), "listen": "127.0.0.1:0", "http_listen": "off", "max_running": str(slots)}
    settings = load({**flags, "max_waiting": "1000000"}, {}, None)
    async with ServerOfNothing(settings) as server:
        print(f"127.0.0.1:{server.port}", flush=True)
        stopping = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.serve_until(asyncio.ensure_future(stopping))


@dataclass(frozen=True, slots=True)
class Process:
    """The process of a server, and where it is reached."""

    id: int
    address: str

    def status(self, name: str) -> int:
        """Return a number of /proc/PID/status."""
        lines = Path(f"/proc/{self.id}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    @property
    def processor_seconds(self) -> float:
        return cpu_seconds(self.id)


@contextmanager
def serving(directory: Path, slots: int) -> Iterator[Process]:
    """A server of its own for as long as this lasts."""
    command = [sys.executable, "-m", "bench.scale", "serve", str(directory), str(slots)]
    with Path(f"{directory}.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Process(process.pid, process.stdout.readline().strip())
    finally:
        process.stdin.close()
        process.wait(120)
        process.stdout.close()


class Answers:
    """The times that the answers to single calls take, one call after another, for as long as this lasts."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.seconds: list[float] = []

    def __enter__(self) -> "Answers":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.seconds.append(seconds_of(self._call))

    @property
    def longest(self) -> str:
        return f"{max(self.seconds):.2f} s at most (median {statistics.median(self.seconds) * 1000:.0f} ms)"


def seconds_of(call: Callable[[], object]) -> float:
    """Return the time that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def row(stage: Path, count: int) -> str:
    """Return what `count` executions that run at the same time take."""
    with (
        serving(stage / f"scale-{count}", count) as server,
        Client(server.address, timeout=ANSWER_SECONDS) as client,
        Client(server.address, timeout=ANSWER_SECONDS) as other,
    ):
        memory = server.status("VmRSS")
        first = client.enqueue("first", "none").id
        begin, processor = time.monotonic(), server.processor_seconds
        with Answers(lambda: other.job(first)) as answers_at_start:
            for done in range(1, count, 1000):
                client.enqueue_array(min(1000, count - done), f"task-{done // 1000 % 20}", "none")
            running = _running(client)
        seconds, start_seconds = time.monotonic() - begin, server.processor_seconds - processor
        memory, threads = server.status("VmRSS") - memory, server.status("Threads")
        request = pb.GetJobRequest(job_id=first).SerializeToString()
        gets = calls_per_second(server.address, "/fastlane.v1.JobService/GetJob", [request] * GETS)
        with echo_server() as echo:
            empty = calls_per_second(echo, ECHO, [b""] * GETS)
        idle = server.processor_seconds
        time.sleep(5)
        idle = (server.processor_seconds - idle) / 5
        begin = time.monotonic()
        with Answers(lambda: other.job(first)) as answers_at_end:
            tasks = [task.id for task in client.tasks()]
            stop_seconds = [seconds_of(partial(client.stop_many, task_id=task_id)) for task_id in tasks]
            _ended(client)
        stops = running / (time.monotonic() - begin)
        return (
            f"{running:6} of {count:6} running: {running / seconds:6.0f} starts/s ({start_seconds / running * 1000:.2f}"
            f" ms of CPU each), {memory / running:5.0f} KiB and {threads / running:.2f} threads each, idle at"
            f" {idle * 100:.0f} % of a core, GetJob {gets / empty:.2f} of an empty call, {stops:.0f} ends/s;"
            f" an answer to GetJob as they start {answers_at_start.longest}, as they end {answers_at_end.longest};"
            f" an answer to StopJobs for one task {max(stop_seconds):.2f} s at most"
        )


def _running(client: Client) -> int:
    """Wait until every job has started, or no further one starts. Return how many run."""
    most, since = 0, time.monotonic()
    while time.monotonic() < since + STUCK_SECONDS:
        claimed = _claimed(client)
        if next(client.jobs(states=[pb.STATE_QUEUED, pb.STATE_PREPARING]), None) is None:
            return claimed
        if claimed > most:
            most, since = claimed, time.monotonic()
        time.sleep(0.1)
    return most


def _claimed(client: Client) -> int:
    return sum(task.running for task in client.tasks())


def _ended(client: Client) -> None:
    while _claimed(client):
        time.sleep(0.1)


def main() -> None:
    if sys.argv[1] == "serve":
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        uvloop.run(serve(Path(sys.argv[2]), int(sys.argv[3])))
        return
    for count in map(int, sys.argv[1:]):
        print(row(Path(os.environ["STAGE_DIRECTORY"]), count), flush=True)


if __name__ == "__main__":
    main()
