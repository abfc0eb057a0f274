"""Threads of executions that do the same work at a time: as many as the limit says, also if some of them hang."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bench.scale import NothingRuns, ServerOfNothing
from fastlane_grpc import AsyncClient
from fastlane_grpc.backend import BackendDown, Container, Handle
from fastlane_grpc.config import Settings, load
from fastlane_grpc.execution import Host
from fastlane_grpc.execution.concurrency_limit import ConcurrencyLimit
from fastlane_grpc.execution.host import ENDS_AT_ONCE
from fastlane_grpc.model import State
from tests.fakes import Announcements
from tests.pods import NoCapture, NoCaptures

pytestmark = pytest.mark.timeout(120)

T = TypeVar("T", bound=ServerOfNothing)

SECONDS = 60
NEVER_SECONDS = 3600.0


@asynccontextmanager
async def running(
    server_of: Callable[[Settings], T], directory: Path, jobs: int
) -> AsyncIterator[tuple[T, AsyncClient]]:
    """A server with so many jobs that run, and a client. All jobs have to have been stopped at the end."""
    flags = {"data_dir": str(directory / "data"), "listen": "127.0.0.1:0", "http_listen": "off"}
    settings = load({**flags, "max_running": str(jobs)}, {}, None)
    async with server_of(settings) as server, AsyncClient(f"127.0.0.1:{server.port}") as client:
        announced = Announcements()
        server.listeners.append(announced)
        executions = [(await client.enqueue("task", "none")).execution.id for _ in range(jobs)]
        for execution_id in executions:
            await announced.reaches(execution_id, State.RUNNING)
        yield server, client
        for execution_id in executions:
            await announced.reaches(execution_id, State.STOPPED)


class Inside:
    """The threads that are at one place, and the most that ever were."""

    def __init__(self) -> None:
        self.count = self.most = 0
        self.changed = threading.Condition()

    def __enter__(self) -> None:
        with self.changed:
            self.count += 1
            self.most = max(self.most, self.count)
            self.changed.notify_all()

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.count -= 1
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count == count, SECONDS), f"{self.count} threads are inside"


def test_as_many_threads_are_admitted_as_the_limit_says() -> None:
    limit, inside = ConcurrencyLimit(3, hang_seconds=NEVER_SECONDS), Inside()
    # Three have to be inside to pass it.
    three = threading.Barrier(3, timeout=SECONDS)

    def work(_: int) -> None:
        with limit.admitted(), inside:
            three.wait()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert inside.most == 3


def test_a_thread_that_fails_leaves() -> None:
    limit = ConcurrencyLimit(1, hang_seconds=NEVER_SECONDS)
    with pytest.raises(ValueError, match="of the work"), limit.admitted():
        raise ValueError("of the work")
    with limit.admitted():
        pass


def test_threads_that_hang_hold_up_no_others() -> None:
    limit, hanging, inside = ConcurrencyLimit(2, hang_seconds=0.01), Inside(), Inside()
    over, two = threading.Event(), threading.Barrier(2, timeout=SECONDS)

    def hang() -> None:
        with limit.admitted(), hanging:
            assert over.wait(SECONDS)

    def work() -> None:
        with limit.admitted(), inside:
            two.wait()

    with ThreadPoolExecutor(6) as threads:
        hung = [threads.submit(hang) for _ in range(2)]
        hanging.wait_for(2)
        for each in [threads.submit(work) for _ in range(4)]:
            each.result(SECONDS)
        over.set()
        for each in hung:
            each.result(SECONDS)


class HangingEnds(NothingRuns):
    """A backend that is asked about a container that has ended, and answers one question at a time when it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.asking = Inside()
        self.stopped = 0
        self.all_stopped = threading.Event()
        self._answers = threading.Semaphore(0)

    def signal(self, handle: Handle, signal: str, **how: object) -> None:
        super().signal(handle, signal)
        self.stopped += 1
        if self.stopped == JOBS:
            self.all_stopped.set()

    def inspect(self, handle: Handle) -> Container | None:
        container = super().inspect(handle)
        if container and container.ended:
            with self.asking:
                assert self._answers.acquire(timeout=SECONDS)
            # The next one is answered when this one has gone.
            self._answers.release()
        return container

    def answer(self) -> None:
        self._answers.release()


JOBS = ENDS_AT_ONCE + 30


class ServerOfHangingEnds(ServerOfNothing):
    """A server with one host, whose ends the test lets through."""

    def open_hosts(self, parts: AsyncExitStack) -> None:
        self.backend = HangingEnds()
        host = Host("local", self.backend, NoCaptures(), supervisor=self.supervisor)
        host.ends = ConcurrencyLimit(ENDS_AT_ONCE, hang_seconds=NEVER_SECONDS)
        self.hosts = [host]
        parts.push_async_callback(self._close_hosts)


class SlowDelivery(NoCapture):
    """The output of a container that has ended is on its way, until the test says that it has come."""

    def __init__(self, waiting: set["SlowDelivery"], all_wait: threading.Event, has_come: threading.Event) -> None:
        self._waiting, self._all_wait, self._has_come = waiting, all_wait, has_come
        self._has_ended = False

    def revoke(self) -> None:
        """Tell nothing: this is asked at the end."""
        self._has_ended = True

    @property
    def delivered(self) -> bool:  # type: ignore[override]
        if self._has_ended:
            self._waiting.add(self)
        if len(self._waiting) == JOBS:
            self._all_wait.set()
        return self._has_come.is_set()


class SlowDeliveries(NoCaptures):
    """Implements Captures with SlowDelivery."""

    def __init__(self) -> None:
        self.all_wait, self.has_come = threading.Event(), threading.Event()
        self._waiting: set[SlowDelivery] = set()

    def for_new(self, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> NoCapture:
        return SlowDelivery(self._waiting, self.all_wait, self.has_come)


class Delivers(NothingRuns):
    """A backend whose containers deliver for as long as they are there."""

    def inspect(self, handle: Handle) -> Container | None:
        container = super().inspect(handle)
        return container and replace(container, delivering=True)


class ServerOfSlowDeliveries(ServerOfNothing):
    """A server with one host, whose deliveries the test lets come."""

    def open_hosts(self, parts: AsyncExitStack) -> None:
        self.captures = SlowDeliveries()
        host = Host("local", Delivers(), self.captures, supervisor=self.supervisor)
        host.ends = ConcurrencyLimit(ENDS_AT_ONCE, hang_seconds=NEVER_SECONDS)
        self.hosts = [host]
        parts.push_async_callback(self._close_hosts)


async def test_output_that_is_on_its_way_holds_up_no_other_end(tmp_path: Path) -> None:
    async with running(ServerOfSlowDeliveries, tmp_path, JOBS) as (server, client):
        await client.stop_many(task_id="task")
        assert await asyncio.to_thread(server.captures.all_wait.wait, SECONDS)
        server.captures.has_come.set()


class EngineThatGoes(NothingRuns):
    """A backend that can go away, and counts how often it is asked whether it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.away = threading.Event()
        self.pings = 0

    def go(self) -> None:
        self.away.set()
        self.events_of_all.cut()

    def events(self) -> Any:
        if self.away.is_set():
            raise BackendDown("it went away")
        self.events_of_all = super().events()
        return self.events_of_all

    def ping(self, timeout_seconds: float) -> None:
        self.pings += 1


class ServerOfEngineThatGoes(ServerOfNothing):
    """A server with one host, whose engine the test lets go."""

    def open_hosts(self, parts: AsyncExitStack) -> None:
        self.backend = EngineThatGoes()
        self.hosts = [Host("local", self.backend, NoCaptures(), supervisor=self.supervisor)]
        parts.push_async_callback(self._close_hosts)


async def test_an_engine_that_is_known_to_be_away_is_not_asked_by_each_execution(tmp_path: Path) -> None:
    async with running(ServerOfEngineThatGoes, tmp_path, 20) as (server, client):
        before = server.backend.pings
        server.backend.go()
        while server.dispatcher._on_thread:
            server.dispatcher._execution_ended.clear()
            await server.dispatcher._execution_ended.wait()
        assert server.backend.pings == before
        server.backend.away.clear()
        await client.stop_many(task_id="task")


async def test_all_stops_are_sent_at_once_and_ends_go_on_some_at_a_time(tmp_path: Path) -> None:
    async with running(ServerOfHangingEnds, tmp_path, JOBS) as (server, client):
        await client.stop_many(task_id="task")
        assert await asyncio.to_thread(server.backend.all_stopped.wait, SECONDS)
        await asyncio.to_thread(server.backend.asking.wait_for, ENDS_AT_ONCE)
        server.backend.answer()
    assert server.backend.asking.most == ENDS_AT_ONCE
