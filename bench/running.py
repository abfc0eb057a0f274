"""Starts beside thousands of executions that run: the store and the dispatcher over hosts that run nothing."""

import asyncio
import resource
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bench.ratio import Limit, Ratio
from fastlane_grpc.dispatcher import Dispatcher
from fastlane_grpc.model import Assignment, Availability, Execution, HostReport, JobSpec, Outcome, State, utc_now
from fastlane_grpc.runner import AbandonedLog, Event, HostDown, LeaveCommand, Mailbox
from fastlane_grpc.slots import HostSlots
from fastlane_grpc.store import Store

FEW, MANY = 10, 10_000
# Executions that end, and others that start in their place.
STARTS = 500
HOSTS = 5_000
MOST_KILOBYTES = 40.0
_ENDED = Event()


class Measured(NamedTuple):
    """Starts per second, and what an execution that runs takes in memory."""

    starts_per_second: float
    kilobytes: float


def rows(stage: Path, rounds: int) -> Iterator[Ratio | Limit]:
    few, many, spread = list[Measured](), list[Measured](), list[Measured]()
    for number in range(rounds):
        few.append(_measure(stage / f"few-{number}", running=FEW, hosts=1))
        many.append(_measure(stage / f"many-{number}", running=MANY, hosts=1))
        spread.append(_measure(stage / f"spread-{number}", running=MANY, hosts=HOSTS))
    for which, measured in (("1 host", many), (f"{HOSTS} hosts", spread)):
        yield Ratio(
            f"starts, {MANY} running on {which}, against {FEW} running",
            "starts/s",
            [each.starts_per_second for each in measured],
            [each.starts_per_second for each in few],
            0.5,
        )
    yield Limit("memory of an execution that runs", "KiB", [each.kilobytes for each in many], MOST_KILOBYTES)


def _measure(directory: Path, *, running: int, hosts: int) -> Measured:
    directory.mkdir()
    return asyncio.run(_starts(directory, running, hosts))


async def _starts(directory: Path, running: int, hosts: int) -> Measured:
    loop = asyncio.get_running_loop()
    listeners: list[Dispatcher] = []

    def announce(executions: Sequence[Execution]) -> None:
        for each in listeners:
            each.on_change(executions)

    store = Store.open(directory, on_commit=announce, loop=loop)
    with closing(store):
        runner = _Runner(store)
        slots = max(running // hosts, 1)
        places = [HostSlots(_Host(f"host-{number}"), runner, slots) for number in range(hosts)]
        dispatcher = Dispatcher(store, places, removed=runner, max_running=running)
        listeners.append(dispatcher)
        for number in range(running + STARTS):
            await store.enqueue(
                task_id=f"task-{number % 50}", spec=JobSpec("busybox"), request_id="", caller_address=""
            )
        before = _kilobytes()
        task = asyncio.create_task(dispatcher.run())
        await runner.until_started(running)
        kilobytes = (_kilobytes() - before) / running
        begin = time.perf_counter()
        runner.end(STARTS)
        await runner.until_started(running + STARTS)
        seconds = time.perf_counter() - begin
        await dispatcher.close(60)
        await task
    return Measured(STARTS / seconds, kilobytes)


def _kilobytes() -> float:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


class _Host:
    """A host that is up."""

    up, error = True, ""

    def __init__(self, name: str) -> None:
        self.name = name

    def report(self, *, running: int, max_running: int) -> HostReport:
        return HostReport(
            self.name, "", Availability.UP, running, max_running, capture="attach", capture_reason="there is no engine"
        )


class _Runner:
    """Commits what the real one does, and runs nothing. An execution ends when it is told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._started = self._to_end = 0
        self._news = asyncio.Event()
        self._mailboxes: deque[Mailbox] = deque()

    async def until_started(self, count: int) -> None:
        while self._started < count:
            self._news.clear()
            await self._news.wait()

    def end(self, count: int) -> None:
        """End so many, the oldest first; where fewer run, as soon as others have started."""
        self._to_end += count
        while self._to_end and self._mailboxes:
            self._to_end -= 1
            self._mailboxes.popleft().put(_ENDED)

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        execution_id = assignment.execution.id
        self._store.starting(
            execution_id, container_id="c", handle="{}", image_digest="", pull_time=None, container_time=utc_now()
        ).result()
        self._store.running(execution_id, start_time=utc_now()).result()
        self._mailboxes.append(mailbox)
        self._loop.call_soon_threadsafe(self._note_start)
        while (received := mailbox.get(None)) is not _ENDED:
            if isinstance(received, LeaveCommand):
                raise HostDown("the server stops")
        self._store.finish(execution_id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=()).result()

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        return AbandonedLog()

    def _note_start(self) -> None:
        self._started += 1
        self.end(0)
        self._news.set()
