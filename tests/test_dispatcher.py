"""The dispatcher over a real store, with a runner that keeps the real one's promises."""

import asyncio
import errno
import random
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fastlane_grpc.dispatcher import LEAVING_AT_ONCE, Dispatcher
from fastlane_grpc.model import (
    Assignment,
    Execution,
    JobSpec,
    LogTotals,
    Outcome,
    Reason,
    Source,
    State,
    Stop,
    WaitReason,
    utc_now,
)
from fastlane_grpc.runner import AbandonedLog, CertainEnd, Command, Event, HostDown, Mailbox, StopCommand
from fastlane_grpc.slots import HostSlots
from fastlane_grpc.store import Pending, Store
from fastlane_grpc.store.database import Connection, open_for_writing
from fastlane_grpc.store.writer import Many, Work, Writer, Written
from tests.fakes import Announcements, FakeGone, FakeHost, FakeRunner
from tests.parts import Parts

T = TypeVar("T")

SPEC = JobSpec("busybox", command="true")
GRACE = timedelta(seconds=10)
AGES = 3600.0


class WatchedWriter(Writer):
    """Tells how much was asked for, what waits included."""

    asked = 0

    def write(self, work: Work[T], *, many: Many | None = None, vital: bool = False) -> Pending[T]:
        pending = super().write(work, many=many, vital=vital)
        self.asked += 1
        return pending


class WatchedStore(Store):
    """Tells which hosts are asked for, at the moment when they are."""

    def when_claimed(self, hosts: Sequence[str]) -> None:
        """To be replaced."""

    def claim_on(self, hosts: Sequence[str]) -> Pending[list[Assignment]]:
        self.when_claimed(hosts)
        return super().claim_on(hosts)


class DispatcherHarness(Parts):
    """The dispatcher over a store and fake runners: one host with `max_running` places, or those of `hosts`."""

    writer_kind, store_kind = WatchedWriter, WatchedStore
    writer: WatchedWriter
    store: WatchedStore
    hosts: dict[str, FakeHost]  # type: ignore[assignment]

    def __init__(
        self,
        directory: Path,
        *,
        max_running: int = 2,
        hosts: Mapping[str, int] | None = None,
        hold: bool = False,
        host_up: bool = True,
        retry_seconds: float = AGES,
    ) -> None:
        super().__init__(directory, max_running=max_running)
        self.path = self.database
        self.announced = Announcements()
        self.dispatcher_retry_seconds = retry_seconds
        self.task: asyncio.Task[None] | None = None
        # Who has a place, by the announcements alone.
        self.unfinished: dict[str, str] = {}
        self.most_unfinished = 0
        self.claimed_for_down: list[str] = []
        self.places = hosts or {"here": max_running}
        self.most_on = dict.fromkeys(self.places, 0)
        self.claimed: list[Execution] = []
        self.ended: list[Execution] = []
        self.open_store(self.parts)
        self.store.when_claimed = self._claiming  # type: ignore[method-assign]
        self.hosts = {name: FakeHost(name, up=host_up) for name in self.places}
        self.runners = {name: FakeRunner(self.store, host, hold=hold) for name, host in self.hosts.items()}
        self.host, self.runner = self.hosts[next(iter(self.places))], self.runners[next(iter(self.places))]
        self.gone = FakeGone(self.store)
        self.open_dispatcher(self.parts)
        self.listeners += [self._count, self.announced]

    def open_database(self) -> Connection:
        db = super().open_database()
        db.execute("PRAGMA busy_timeout = 0")
        return db

    def open_dispatcher(self, parts: Any) -> None:
        """It runs from `open` to `close`."""
        places = [HostSlots(self.hosts[name], self.runners[name], count) for name, count in self.places.items()]
        self.dispatcher = Dispatcher(
            self.store,
            places,
            removed=self.gone,
            max_running=self.settings.max_running,
            retry_seconds=self.dispatcher_retry_seconds,
            supervisor=self.supervisor,
        )
        self.listeners.append(self.dispatcher.on_change)

    def open(self) -> None:  # type: ignore[override]  # the parts are open; here they begin to work
        self.task = asyncio.create_task(self.dispatcher.run())

    async def close(self) -> None:
        await self.dispatcher.close()
        if self.task:
            await self.task
        self.close_parts()

    def _count(self, executions: Sequence[Execution]) -> None:
        for execution in executions:
            if execution.state in (State.PREPARING, State.RUNNING, State.STOPPING):
                self.unfinished[execution.id] = execution.host
            else:
                self.unfinished.pop(execution.id, None)
            if execution.state.final:
                self.ended.append(execution)
            if execution.state is State.PREPARING and not execution.starting:
                self.claimed.append(execution)
            self.most_unfinished = max(self.most_unfinished, len(self.unfinished))
            for name, most in self.most_on.items():
                self.most_on[name] = max(most, self.on(name))

    def _claiming(self, hosts: Sequence[str]) -> None:
        self.claimed_for_down += [name for name in hosts if not self.hosts[name].up]

    def on(self, name: str) -> int:
        """How many have a place on this host, by the announcements alone."""
        return list(self.unfinished.values()).count(name)

    def now_on(self) -> dict[str, int]:
        return {name: self.on(name) for name in self.places}

    @property
    def starts(self) -> list[str]:
        return [execution_id for runner in self.runners.values() for execution_id in runner.starts]

    async def enqueue(self, task_id: str = "task") -> Execution:
        job, _ = await self.store.enqueue(task_id=task_id, spec=SPEC, request_id="", caller_address="")
        return job.execution

    async def running(self, task_id: str = "task") -> Execution:
        """An execution that the runner holds."""
        execution = await self.enqueue(task_id)
        return await self.announced.reaches(execution.id, State.RUNNING)

    def host_is(self, name: str = "", *, up: bool) -> None:
        host = self.hosts[name or self.host.name]
        host.up = up
        self.dispatcher.host_changed(host.name)

    def engine_dies(self, name: str) -> None:
        """Whoever waits for it is told before the host is known to be down."""
        self.hosts[name].up = False
        self.runners[name].lose_engine()
        self.dispatcher.host_changed(name)

    async def ends(self, executions: int) -> None:
        """Waits until so many are over."""
        async with asyncio.timeout(60):
            await self.announced.until(lambda: len(self.ended) == executions)

    async def threads_end(self) -> None:
        """Waits until no execution is on a thread, and the dispatcher knows it."""
        await spins_until(lambda: not self.dispatcher._on_thread)


@pytest.fixture
async def harnesses(tmp_path: Path) -> AsyncIterator[list[DispatcherHarness]]:
    """Harnesses that are to be closed at the end."""
    harnesses: list[DispatcherHarness] = []
    yield harnesses
    for harness in harnesses:
        await harness.close()


@pytest.fixture
async def harness(harnesses: list[DispatcherHarness], tmp_path: Path) -> DispatcherHarness:
    """One with a runner that ends at once what it is given."""
    harnesses.append(DispatcherHarness(tmp_path))
    harnesses[0].open()
    return harnesses[0]


@pytest.fixture
async def holding(harnesses: list[DispatcherHarness], tmp_path: Path) -> DispatcherHarness:
    """One with a runner that holds what it is given."""
    harnesses.append(DispatcherHarness(tmp_path, hold=True))
    harnesses[0].open()
    return harnesses[0]


# ---- places and order


async def test_5000_jobs_run_in_order_and_fair_and_never_more_than_there_are_slots(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, max_running=12)
    harnesses.append(harness)
    tasks = ["big"] * 4000 + [f"task-{number % 100}" for number in range(1000)]
    enqueued = await asyncio.gather(*(harness.enqueue(task) for task in tasks))
    harness.runner.when_given = lambda assignment, mailbox: within_limit(harness, 12)
    harness.open()
    await harness.ends(5000)

    assert {execution.state for execution in harness.ended} == {State.SUCCEEDED}
    assert sorted(harness.runner.starts) == sorted(execution.id for execution in enqueued), "each was started, and once"
    assert harness.most_unfinished == harness.runner.most_present == 12
    expected, given = defaultdict(list), defaultdict(list)
    for execution in enqueued:
        expected[execution.task_id].append(execution.id)
    for execution in harness.claimed:
        given[execution.task_id].append(execution.id)
    assert given == expected
    for first in range(0, 1010, 101):
        assert len({execution.task_id for execution in harness.claimed[first : first + 101]}) == 101


def within_limit(harness: DispatcherHarness, places: int) -> None:
    assert harness.dispatcher.running <= places
    assert harness.runner.present <= places


async def test_a_place_is_free_again_when_the_end_is_committed(holding: DispatcherHarness) -> None:
    first, second = await holding.running(), await holding.running()
    third = await holding.enqueue()
    assert holding.dispatcher.running == 2
    assert (await holding.store.execution(third.id)).state is State.QUEUED
    holding.runner.end(first.id)
    await holding.announced.reaches(third.id, State.RUNNING)
    states = [(execution.id, execution.state) for execution in holding.announced.all]
    assert states.index((first.id, State.SUCCEEDED)) < states.index((third.id, State.PREPARING))
    assert holding.most_unfinished == 2
    holding.runner.end(second.id, exit_code=3)
    failed = await holding.announced.reaches(second.id, State.FAILED)
    assert failed.outcome
    assert (failed.outcome.reason, failed.outcome.exit_code) == (Reason.EXIT_CODE, 3)


async def test_free_places_are_filled_in_one_transaction(tmp_path: Path, harnesses: list[DispatcherHarness]) -> None:
    harness = DispatcherHarness(tmp_path, max_running=8, hold=True)
    harnesses.append(harness)
    for _ in range(20):
        await harness.enqueue()
    asked = harness.writer.asked
    harness.open()
    await harness.announced.until(lambda: len(harness.claimed) == 8)
    assert harness.writer.asked == asked + 1


async def test_a_job_whose_caller_went_away_is_run_all_the_same(harness: DispatcherHarness) -> None:
    for number in range(1, 21):
        call = asyncio.create_task(harness.enqueue())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        if number % 2:  # so that some find a dispatcher that sleeps, and some one that is at work
            await harness.ends(number)
    await harness.ends(20)


async def test_no_wake_up_is_lost(harness: DispatcherHarness) -> None:
    chance, expected = random.Random(3), 0
    for _ in range(150):
        tasks = [f"task-{number}" for number in range(chance.randrange(1, 5))]
        await asyncio.gather(*(harness.enqueue(task) for task in tasks))
        expected += len(tasks)
        await harness.ends(expected)


# ---- stops


async def test_a_stop_reaches_the_runner_of_the_execution_and_nobody_else(holding: DispatcherHarness) -> None:
    first, second = await holding.running(), await holding.running()
    await holding.store.stop(first.job_id, grace=GRACE, note="by hand")
    stopped = await holding.announced.reaches(first.id, State.STOPPED)
    assert stopped.outcome
    assert stopped.outcome.detail == "by hand"
    assert stopped.stop
    assert holding.runner.stop_orders == [(first.id, StopCommand(stopped.stop))]
    assert (await holding.store.execution(second.id)).state is State.RUNNING


async def test_a_stop_that_is_announced_with_the_claim_reaches_the_runner(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path)
    harnesses.append(harness)
    got: list[Command | Event | None] = []
    harness.runner.when_given = lambda assignment, mailbox: got.append(mailbox.get(30))
    execution = await harness.enqueue()
    asked = harness.writer.asked
    with held(harness.writer):
        harness.open()
        await spins_until(lambda: harness.writer.asked == asked + 2)  # the unit that blocks the writer, and the claim
        stopping = harness.store.stop(execution.job_id, grace=GRACE, note="")
    await stopping
    stopped = await harness.announced.reaches(execution.id, State.STOPPED)
    assert stopped.stop
    assert got == [StopCommand(stopped.stop)]
    assert harness.runner.starts == []


async def test_a_shorter_grace_is_told_and_the_same_stop_is_not_told_twice(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path)
    harnesses.append(harness)
    got: list[Command | Event | None] = []
    go_on = threading.Event()

    def wait_for_both(assignment: Assignment, mailbox: Mailbox) -> None:
        go_on.wait()
        got.extend([mailbox.get(0), mailbox.get(0), mailbox.get(0)])

    harness.runner.when_given = wait_for_both
    harness.open()
    execution = await harness.enqueue()
    await harness.announced.reaches(execution.id, State.PREPARING)
    first = (await harness.store.stop(execution.job_id, grace=GRACE, note="")).execution.stop
    await harness.store.running(execution.id, start_time=utc_now())
    second = (await harness.store.stop(execution.job_id, grace=timedelta(), note="")).execution.stop
    go_on.set()
    await harness.announced.reaches(execution.id, State.STOPPED)
    assert first
    assert second
    assert got == [StopCommand(first), StopCommand(second), None]


# ---- the host goes and comes


async def test_while_the_host_is_down_nothing_is_claimed(harness: DispatcherHarness) -> None:
    harness.host_is(up=False)
    assert harness.dispatcher.why_queued("t") == (WaitReason.HOST_DOWN, "host 'here' does not answer")
    execution = await harness.enqueue()
    for _ in range(5):
        assert (await harness.store.execution(execution.id)).state is State.QUEUED
    assert harness.claimed == []
    harness.host_is(up=True)
    assert harness.dispatcher.why_queued("t") is None
    await harness.announced.reaches(execution.id, State.SUCCEEDED)


async def test_what_runs_keeps_its_place_while_the_host_is_down_and_is_taken_up_again(
    holding: DispatcherHarness,
) -> None:
    first, second = await holding.running(), await holding.running()
    third = await holding.enqueue()
    holding.host.up = False
    holding.runner.lose_engine()
    await holding.threads_end()
    assert holding.dispatcher.running == 2
    await holding.store.stop(second.job_id, grace=GRACE, note="meanwhile")
    holding.host_is(up=True)
    stopped = await holding.announced.reaches(second.id, State.STOPPED)
    await holding.announced.reaches(third.id, State.RUNNING)
    holding.runner.end(first.id)
    await holding.announced.reaches(first.id, State.SUCCEEDED)
    assert stopped.stop
    again = {assignment.execution.id: assignment.execution for assignment in holding.runner.given[2:]}
    assert again[first.id].starting
    assert again[second.id].stop == stopped.stop
    assert sorted(holding.runner.starts) == sorted([first.id, second.id, third.id]), "nothing was started twice"


async def test_an_execution_not_started_when_its_host_went_is_queued_and_its_slot_free(
    harness: DispatcherHarness,
) -> None:
    go_on = threading.Event()
    harness.runner.when_given = lambda assignment, mailbox: _wait(go_on)
    execution = await harness.enqueue()
    await spins_until(lambda: harness.runner.present == 1)
    harness.host.up = False
    go_on.set()
    await harness.threads_end()
    assert harness.dispatcher.running == 0
    assert (await harness.store.execution(execution.id)).state is State.QUEUED
    harness.host_is(up=True)
    await harness.announced.reaches(execution.id, State.SUCCEEDED)
    assert harness.runner.starts == [execution.id]


async def test_what_is_claimed_again_waits_for_the_thread_that_had_it(harness: DispatcherHarness) -> None:
    claimed_again = threading.Event()

    def give_back(assignment: Assignment, mailbox: Mailbox) -> None:
        if len(harness.runner.given) == 1:
            harness.store.requeue(assignment.execution.id).result()
            claimed_again.wait()
            raise HostDown

    harness.runner.when_given = give_back
    execution = await harness.enqueue()
    await harness.announced.until(lambda: len(harness.claimed) == 2)
    await harness.store.execution(execution.id)
    assert harness.dispatcher.running == 2
    claimed_again.set()
    await harness.announced.reaches(execution.id, State.SUCCEEDED)
    assert [assignment.execution.id for assignment in harness.runner.given] == [execution.id] * 2
    assert harness.runner.starts == [execution.id]


async def test_a_host_that_answers_and_then_does_not_is_left_alone_for_a_while(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, max_running=1, retry_seconds=AGES)
    harnesses.append(harness)
    harness.open()

    def no_answer(assignment: Assignment, mailbox: Mailbox) -> None:
        if len(harness.runner.given) < 3:
            raise HostDown

    harness.runner.when_given = no_answer
    execution = await harness.enqueue()
    for times in (1, 2):
        await spins_until(lambda: len(harness.runner.given) == times)  # noqa: B023
        await harness.threads_end()
        other = await harness.enqueue("other")
        for _ in range(5):
            assert (await harness.store.execution(other.id)).state is State.QUEUED
        assert len(harness.runner.given) == times
        harness.host_is(up=True)
    await harness.announced.reaches(execution.id, State.SUCCEEDED)


async def test_after_that_while_it_is_tried_again_without_any_word(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, retry_seconds=0.01)
    harnesses.append(harness)
    harness.open()

    def no_answer(assignment: Assignment, mailbox: Mailbox) -> None:
        if len(harness.runner.given) < 4:
            raise HostDown

    harness.runner.when_given = no_answer
    execution = await harness.enqueue()
    await harness.announced.reaches(execution.id, State.SUCCEEDED)
    assert len(harness.runner.given) == 4
    assert len(harness.claimed) == 1, "it kept its place"


# ---- several hosts


async def test_the_next_execution_goes_to_the_host_with_the_largest_share_of_free_places(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"small": 2, "large": 6, "equal": 2}, max_running=100, hold=True)
    harnesses.append(harness)
    for _ in range(12):
        await harness.enqueue()
    harness.open()
    await harness.announced.until(lambda: len(harness.claimed) == 10)
    by_share = ["small", "large", "equal", "large", "large", "small", "large", "equal", "large", "large"]
    assert [execution.host for execution in harness.claimed] == by_share
    assert harness.dispatcher.why_queued("t") == (WaitReason.NO_FREE_SLOT, "10 of 10 slots in use")
    running = next(execution for execution in harness.claimed if execution.host == "equal")
    await harness.announced.reaches(running.id, State.RUNNING)
    harness.runners["equal"].end(running.id)
    await harness.announced.until(lambda: len(harness.claimed) == 11)
    assert harness.claimed[10].host == "equal"
    assert [(host.name, host.running, host.max_running) for host in harness.dispatcher.hosts] == [
        ("small", 2, 2),
        ("large", 6, 6),
        ("equal", 2, 2),
    ]


async def test_the_limit_of_the_server_is_over_all_hosts(tmp_path: Path, harnesses: list[DispatcherHarness]) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"a": 5, "b": 5}, max_running=3, hold=True)
    harnesses.append(harness)
    harness.open()
    executions = [await harness.enqueue() for _ in range(6)]
    await harness.announced.until(lambda: len(harness.unfinished) == 3)
    assert harness.dispatcher.why_queued("t") == (WaitReason.NO_FREE_SLOT, "3 of 3 slots in use")
    for execution in executions:
        await harness.announced.reaches(execution.id, State.RUNNING)
        harness.runners[harness.unfinished[execution.id]].end(execution.id)
    await harness.ends(6)
    assert harness.most_unfinished == 3


async def test_many_free_places_are_filled_whatever_is_claimed_in_one_transaction(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"a": 10**12, "b": 10**12}, max_running=10**12)
    harnesses.append(harness)
    await asyncio.gather(*(harness.enqueue() for _ in range(700)))
    harness.open()
    await harness.ends(700)
    assert sorted(harness.most_on) == ["a", "b"]
    assert min(harness.most_on.values()) > 0


async def test_a_host_that_is_down_holds_up_nobody_but_what_is_on_it(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"a": 2, "b": 2}, max_running=4, hold=True)
    harnesses.append(harness)
    harness.open()
    first = [await harness.running() for _ in range(4)]
    on_a = [execution.id for execution in first if execution.host == "a"]
    harness.engine_dies("a")
    await spins_until(lambda: len(harness.dispatcher._on_thread) == 2)
    assert harness.dispatcher.why_queued("t") == (WaitReason.NO_FREE_SLOT, "2 of 2 slots in use")
    for execution in first:
        if execution.host == "b":
            harness.runners["b"].end(execution.id)
    later = [await harness.running() for _ in range(2)]
    assert {execution.host for execution in later} == {"b"}
    assert harness.now_on() == {"a": 2, "b": 2}
    assert {execution_id for execution_id, host in harness.unfinished.items() if host == "a"} == set(on_a)
    for execution in later:
        harness.runners["b"].end(execution.id)
    await harness.ends(4)
    harness.host_is("a", up=True)
    await spins_until(lambda: len(harness.runners["a"].given) == 4)
    for execution_id in on_a:
        await spins_until(lambda: execution_id in harness.runners["a"]._inboxes)  # noqa: B023
        harness.runners["a"].end(execution_id)
    await harness.ends(6)
    assert sorted(harness.starts) == sorted(execution.id for execution in harness.ended)


async def test_why_nothing_is_taken_is_told_only_while_no_host_is_up(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"a": 1, "b": 1}, max_running=2, hold=True)
    harnesses.append(harness)
    harness.open()
    harness.host_is("a", up=False)
    assert (harness.dispatcher.why_queued("t"), harness.dispatcher.up) == (None, True)
    harness.host_is("b", up=False)
    assert not harness.dispatcher.up
    assert harness.dispatcher.why_queued("t") == (
        WaitReason.HOST_DOWN,
        "host 'a' does not answer; host 'b' does not answer",
    )


async def test_what_was_not_started_on_a_host_that_went_down_is_run_by_another_one(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"a": 1, "b": 1}, max_running=2)
    harnesses.append(harness)
    go_on = threading.Event()
    harness.runners["a"].when_given = lambda assignment, mailbox: _wait(go_on)
    harness.open()
    execution = await harness.enqueue()
    await spins_until(lambda: harness.runners["a"].present == 1)
    harness.hosts["a"].up = False
    go_on.set()
    await harness.announced.reaches(execution.id, State.SUCCEEDED)
    assert (harness.runners["a"].starts, harness.runners["b"].starts) == ([], [execution.id])
    assert harness.now_on() == {"a": 0, "b": 0}


async def test_a_host_that_answers_and_then_does_not_is_left_alone_while_another_goes_on(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"a": 1, "b": 1}, max_running=2, retry_seconds=AGES)
    harnesses.append(harness)
    harness.open()

    def no_answer(assignment: Assignment, mailbox: Mailbox) -> None:
        harness.store.requeue(assignment.execution.id).result()
        raise HostDown

    harness.runners["a"].when_given = no_answer
    for number in range(1, 11):
        await harness.enqueue()
        await harness.ends(number)
    assert len(harness.runners["a"].given) == 1, "it was not asked again"
    harness.dispatcher.host_changed("b")
    await harness.enqueue()
    await harness.ends(11)
    assert len(harness.runners["a"].given) == 1, "news of another host are none of it"


async def test_a_requeued_execution_has_a_slot_on_both_hosts_until_its_thread_ends(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, hosts={"a": 1, "b": 1}, max_running=2)
    harnesses.append(harness)
    go_on = threading.Event()

    def give_back(assignment: Assignment, mailbox: Mailbox) -> None:
        harness.store.requeue(assignment.execution.id).result()
        go_on.wait()
        raise HostDown

    harness.runners["a"].when_given = give_back
    harness.open()
    execution = await harness.enqueue()
    await harness.announced.until(lambda: len(harness.claimed) == 2)
    await harness.store.execution(execution.id)
    assert [(host.name, host.running) for host in harness.dispatcher.hosts] == [("a", 1), ("b", 1)]
    other = await harness.enqueue("other")
    assert (await harness.store.execution(other.id)).state is State.QUEUED
    go_on.set()
    await harness.announced.reaches(execution.id, State.SUCCEEDED)
    assert harness.runners["b"].starts[0] == execution.id


ACTIONS = st.one_of(
    st.tuples(st.just("enqueue"), st.integers(1, 12)),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("stop"), st.integers(0, 30)),
    st.tuples(st.sampled_from(["up", "hangs", "dies"]), st.sampled_from(["a", "b", "c"])),
)


@settings(max_examples=30)
@given(
    places=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    max_running=st.integers(1, 12),
    actions=st.lists(ACTIONS, min_size=5, max_size=25),
)
def test_whatever_hosts_do_limits_are_exact_nobody_starves_and_everything_ends(
    places: tuple[int, int, int], max_running: int, actions: list[tuple[str, object]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        hosts = dict(zip("abc", places, strict=True))
        asyncio.run(go_through(Path(directory), hosts, max_running, actions))


async def go_through(
    directory: Path, hosts: Mapping[str, int], max_running: int, actions: list[tuple[str, object]]
) -> None:
    harness = DispatcherHarness(directory, hosts=hosts, max_running=max_running, hold=True, retry_seconds=0.001)
    harness.open()
    enqueued: dict[str, str] = {}
    for name, what in actions:
        match name, what:
            case "enqueue", int(count):
                for each in await asyncio.gather(*(harness.enqueue(f"task-{number % 3}") for number in range(count))):
                    enqueued[each.id] = each.job_id
            case "end", int(number):
                end_one(harness, number)
            case "stop", int(number) if enqueued:
                job_id = list(enqueued.values())[number % len(enqueued)]
                await harness.store.stop(job_id, grace=GRACE, note="")
            case "up", str(host):
                harness.host_is(host, up=True)
            case "hangs", str(host):
                harness.host_is(host, up=False)
            case "dies", str(host):
                harness.engine_dies(host)
        await spins_until(lambda: nobody_starves(harness, len(enqueued), max_running))
    for host in hosts:
        harness.host_is(host, up=True)
    async with asyncio.timeout(30):
        while len(harness.ended) < len(enqueued):
            end_one(harness, 0)
            await asyncio.sleep(0)
    assert harness.claimed_for_down == []
    assert len({execution.id for execution in harness.ended}) == len(harness.ended) == len(enqueued)
    assert len(set(harness.starts)) == len(harness.starts), "none was started twice"
    for name, count in hosts.items():
        assert harness.most_on[name] <= count
        assert harness.runners[name].most_present <= count
    assert harness.most_unfinished <= max_running
    await harness.threads_end()
    assert [host.running for host in harness.dispatcher.hosts] == [0, 0, 0]
    await harness.close()


def end_one(harness: DispatcherHarness, number: int) -> None:
    """The container of one that runs ends, wherever it is."""
    held = [(runner, execution_id) for runner in harness.runners.values() for execution_id in list(runner._inboxes)]
    if held:
        runner, execution_id = held[number % len(held)]
        with suppress(KeyError):  # it has ended already
            runner.end(execution_id)


def nobody_starves(harness: DispatcherHarness, enqueued: int, max_running: int) -> bool:
    """Nobody waits while a place is free on a host that is up."""
    waiting = enqueued - len(harness.ended) - len(harness.unfinished)
    full = all(harness.on(name) >= count for name, count in harness.places.items() if harness.hosts[name].up)
    return not waiting or full or len(harness.unfinished) >= max_running


# ---- adoption


async def test_what_was_left_on_a_host_that_is_not_configured_any_more_takes_no_place(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    running, starting, claimed = await unfinished_of_an_earlier_server(tmp_path)
    harness = DispatcherHarness(tmp_path, hosts={"other": 1}, max_running=1)
    harnesses.append(harness)
    harness.open()
    for execution in (running, starting):
        lost = await harness.announced.reaches(execution.id, State.LOST)
        assert lost.outcome
        assert lost.outcome.reason is Reason.HOST_GONE
    await harness.announced.reaches(claimed.id, State.SUCCEEDED)
    assert harness.runners["other"].starts == [claimed.id]
    await harness.threads_end()
    assert harness.dispatcher.running == 0


async def test_what_was_left_on_several_hosts_is_taken_up_on_its_own(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    earlier = DispatcherHarness(tmp_path, hosts={"a": 2, "b": 2}, max_running=4, hold=True)
    earlier.open()
    left = [await earlier.running() for _ in range(4)]
    await earlier.close()
    harness = DispatcherHarness(tmp_path, hosts={"b": 2, "a": 2}, max_running=4, hold=True)
    harnesses.append(harness)
    harness.hosts["a"].up = False
    harness.open()
    for execution in left:
        if execution.host == "b":
            await spins_until(lambda: execution.id in harness.runners["b"]._inboxes)  # noqa: B023
            harness.runners["b"].end(execution.id)
    await harness.ends(2)
    await spins_until(lambda: [(host.name, host.running) for host in harness.dispatcher.hosts] == [("b", 0), ("a", 2)])
    harness.host_is("a", up=True)
    for execution in left:
        if execution.host == "a":
            await spins_until(lambda: execution.id in harness.runners["a"]._inboxes)  # noqa: B023
            harness.runners["a"].end(execution.id)
    await harness.ends(4)
    assert harness.starts == []


async def unfinished_of_an_earlier_server(directory: Path) -> list[Execution]:
    """One that runs, one whose start may have been sent, one that was only claimed."""
    earlier = DispatcherHarness(directory)
    for _ in range(3):
        await earlier.enqueue()
    await earlier.store.claim_on(["here"] * 3)
    for execution in earlier.claimed[:2]:
        await earlier.store.starting(
            execution.id,
            container_id="c",
            handle="{}",
            image_digest="",
            pull_time=None,
            container_time=None,
        )
    await earlier.store.running(earlier.claimed[0].id, start_time=utc_now())
    await earlier.close()
    return earlier.claimed


async def test_what_an_earlier_server_left_is_taken_up_and_counted_beyond_the_limit(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    left = await unfinished_of_an_earlier_server(tmp_path)
    harness = DispatcherHarness(tmp_path, max_running=2, hold=True)
    harnesses.append(harness)
    queued = await harness.enqueue()
    harness.open()
    for execution in left[1:]:
        await harness.announced.reaches(execution.id, State.RUNNING)
    assert [assignment.execution.id for assignment in harness.runner.given] == [execution.id for execution in left]
    assert harness.dispatcher.running == 3
    assert harness.runner.starts == [left[2].id]
    for execution in left:
        assert harness.claimed == [] or harness.dispatcher.running <= 2
        harness.runner.end(execution.id)
        await harness.announced.reaches(execution.id, State.SUCCEEDED)
    await harness.announced.reaches(queued.id, State.RUNNING)


async def test_what_was_left_waits_for_a_host_that_is_down_at_the_start(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    running, starting, claimed = await unfinished_of_an_earlier_server(tmp_path)
    harness = DispatcherHarness(tmp_path, host_up=False)
    harnesses.append(harness)
    harness.open()
    await harness.announced.reaches(claimed.id, State.QUEUED)
    await harness.threads_end()
    assert harness.dispatcher.running == 2
    await harness.store.stop(running.job_id, grace=GRACE, note="")
    harness.host_is(up=True)
    await harness.announced.reaches(running.id, State.STOPPED)
    await harness.announced.reaches(starting.id, State.SUCCEEDED)
    await harness.announced.reaches(claimed.id, State.SUCCEEDED)
    assert harness.runner.starts == [claimed.id]


async def test_a_stop_asked_of_an_earlier_server_comes_with_the_execution(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    left = await unfinished_of_an_earlier_server(tmp_path)
    earlier = DispatcherHarness(tmp_path)
    stop = (await earlier.store.stop(left[0].job_id, grace=GRACE, note="")).execution.stop
    await earlier.close()
    harness = DispatcherHarness(tmp_path)
    harnesses.append(harness)
    told: list[tuple[str, Stop | None, Command | Event | None]] = []

    def announce_again(assignment: Assignment, mailbox: Mailbox) -> None:
        harness.store.running(assignment.execution.id, start_time=utc_now()).result()
        # Whatever the loop was to do with that, it has done before this is answered.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), harness.loop).result()
        told.append((assignment.execution.id, assignment.execution.stop, mailbox.get(0)))

    harness.runner.when_given = announce_again
    harness.open()
    await harness.announced.reaches(left[0].id, State.STOPPED)
    assert (left[0].id, stop, None) in told


# ---- failures


async def test_a_defect_of_the_runner_ends_its_execution_as_lost_and_no_other(harness: DispatcherHarness) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        if assignment.execution.task_id == "bad":
            raise ZeroDivisionError("what nobody thought of")

    harness.runner.when_given = defect
    with capture_logs() as logs:
        bad = await harness.enqueue("bad")
        lost = await harness.announced.reaches(bad.id, State.LOST)
    assert lost.outcome
    assert lost.outcome.reason is Reason.CONTAINER_GONE
    assert lost.outcome.detail == f"a defect of fastlane, see the server's log for {bad.id}"
    assert lost.logs == (LogTotals(Source.SYSTEM, len(lost.outcome.detail)),)
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (entry["execution_id"], entry["job_id"], entry["task_id"]) == (bad.id, bad.job_id, "bad")
    assert "what nobody thought of" in str(entry["exc_info"])
    for _ in range(5):
        good = await harness.enqueue("good")
        await harness.announced.reaches(good.id, State.SUCCEEDED)
    await harness.threads_end()
    assert harness.dispatcher.running == 0


async def test_a_defect_after_a_record_was_sealed_leaves_the_end_to_the_record(harness: DispatcherHarness) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        raise ZeroDivisionError

    def abandon(execution_id: str, why: str) -> AbandonedLog:
        end = CertainEnd(State.FAILED, Outcome(Reason.EXIT_CODE, exit_code=7), None, utc_now(), None)
        return AbandonedLog([LogTotals(Source.STDOUT, 5)], 4096, end)

    harness.runner.when_given = defect
    harness.runner.abandon = abandon  # type: ignore[method-assign]
    harness.open()
    execution = await harness.enqueue()
    ended = await harness.announced.reaches(execution.id, State.FAILED)
    assert ended.outcome is not None
    assert (ended.outcome.exit_code, ended.logs) == (7, (LogTotals(Source.STDOUT, 5),))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.ENOMEM])
async def test_a_failure_of_the_machine_ends_no_execution(tmp_path: Path, number: int) -> None:
    harness = DispatcherHarness(tmp_path, retry_seconds=0.01)
    times: dict[str, int] = defaultdict(int)

    def fail(assignment: Assignment, mailbox: Mailbox) -> None:
        times[assignment.execution.id] += 1
        if times[assignment.execution.id] < 4 and assignment.execution.id == bad.id:
            raise OSError(number, "of the machine")

    harness.runner.when_given = fail
    bad, good = await harness.enqueue(), await harness.enqueue()
    harness.open()
    await harness.announced.reaches(good.id, State.SUCCEEDED)
    await harness.announced.reaches(bad.id, State.SUCCEEDED)
    assert (times[bad.id], times[good.id]) == (4, 1)
    await harness.close()


@pytest.mark.parametrize(
    "shortage", [OSError(errno.EMFILE, "Too many open files"), MemoryError(), RuntimeError("can't start new thread")]
)
async def test_an_execution_whose_runner_was_short_of_something_is_taken_up_again(
    tmp_path: Path, shortage: Exception
) -> None:
    harness = DispatcherHarness(tmp_path, retry_seconds=0.01)
    tries: list[str] = []

    def short(assignment: Assignment, mailbox: Mailbox) -> None:
        tries.append(assignment.execution.id)
        if len(tries) < 3:
            raise shortage

    harness.runner.when_given = short
    harness.open()
    try:
        execution = await harness.enqueue()
        async with asyncio.timeout(30):
            await harness.announced.reaches(execution.id, State.SUCCEEDED)
        assert tries == [execution.id] * 3
        assert State.LOST not in {each.state for each in harness.announced.all}
    finally:
        await harness.close()


async def test_a_defect_after_the_end_changes_nothing(harness: DispatcherHarness) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        harness.store.finish(assignment.execution.id, state=State.FAILED, outcome=Outcome(), logs=()).result()
        raise ZeroDivisionError

    harness.runner.when_given = defect
    execution = await harness.enqueue()
    await harness.announced.reaches(execution.id, State.FAILED)
    await harness.threads_end()
    assert (await harness.store.execution(execution.id)).state is State.FAILED


async def test_a_defect_after_the_job_was_pruned_costs_no_place(harness: DispatcherHarness) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        if assignment.execution.task_id == "bad":
            harness.store.finish(assignment.execution.id, state=State.FAILED, outcome=Outcome(), logs=()).result()
            harness.store.delete_jobs([assignment.execution.job_id]).result()
            raise ZeroDivisionError

    harness.runner.when_given = defect
    for _ in range(20):
        await harness.enqueue("bad")
    good = await harness.enqueue("good")
    await harness.announced.reaches(good.id, State.SUCCEEDED)
    await harness.threads_end()
    assert harness.dispatcher.running == 0


async def test_an_execution_whose_end_fails_is_taken_up_again_and_no_thread_is_lost(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, max_running=1, retry_seconds=0.01)
    harnesses.append(harness)
    defects: list[BaseException] = [ZeroDivisionError(), SystemExit(1), RecursionError()]

    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        if defects:
            raise defects.pop()

    def no_abandon(execution_id: str, why: str) -> AbandonedLog:
        raise SystemExit(2)

    harness.runner.when_given, harness.runner.abandon = defect, no_abandon  # type: ignore[method-assign]
    harness.open()
    with capture_logs() as logs:
        execution = await harness.enqueue()
        await harness.announced.reaches(execution.id, State.SUCCEEDED)
    assert [log["work"] for log in logs if log["event"].startswith("a defect")] == [
        f"the end of execution {execution.id}"
    ] * 3
    await harness.threads_end()
    assert harness.dispatcher.running == 0


async def test_a_claim_that_could_not_be_stored_is_tried_again_but_not_at_once(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, retry_seconds=AGES)
    harnesses.append(harness)
    execution = await harness.enqueue()
    with locked(harness), capture_logs() as logs:
        asked = harness.writer.asked
        harness.open()
        await spins_until(lambda: len(logs) == 1)
        assert logs[0]["event"] == "the queue waits for the store"
        for _ in range(5):
            await harness.store.execution(execution.id)
        assert harness.writer.asked == asked + 1
    harness.dispatcher.host_changed("here")
    await harness.announced.reaches(execution.id, State.SUCCEEDED)


async def test_the_dispatcher_goes_on_by_itself_when_the_store_does(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, retry_seconds=0.01)
    harnesses.append(harness)
    execution = await harness.enqueue()
    with locked(harness), capture_logs() as logs:
        asked = harness.writer.asked
        harness.open()
        await spins_until(lambda: harness.writer.asked >= asked + 3)
    assert [each["event"] for each in logs] == ["the queue waits for the store"]
    await harness.announced.reaches(execution.id, State.SUCCEEDED)


async def test_an_execution_waits_for_a_thread_where_none_is_to_be_had(
    tmp_path: Path, harnesses: list[DispatcherHarness]
) -> None:
    harness = DispatcherHarness(tmp_path, retry_seconds=0.01)
    harnesses.append(harness)
    execution = await harness.enqueue()
    usual = threading.stack_size(1 << 46)  # nobody has so much memory
    try:
        with capture_logs() as logs:
            harness.open()
            await spins_until(lambda: len(logs) >= 2)
    finally:
        threading.stack_size(usual)
    assert logs[1]["event"] == "no thread is to be had"
    await harness.announced.reaches(execution.id, State.SUCCEEDED)
    assert len(harness.claimed) == 1


# ---- close


async def test_close_leaves_what_runs_and_takes_nothing_new(tmp_path: Path, harnesses: list[DispatcherHarness]) -> None:
    harness = DispatcherHarness(tmp_path, hold=True)
    harness.open()
    running = await harness.running()
    await harness.dispatcher.close()
    assert harness.runner.present == 0
    queued = await harness.enqueue()
    assert harness.task
    await harness.task
    for execution, state in ((running, State.RUNNING), (queued, State.QUEUED)):
        assert (await harness.store.execution(execution.id)).state is state
    await harness.close()


async def test_close_is_quick_with_a_runner_that_hangs(tmp_path: Path) -> None:
    harness = DispatcherHarness(tmp_path)
    for_ever = threading.Event()
    harness.runner.when_given = lambda assignment, mailbox: _wait(for_ever)
    harness.open()
    await harness.enqueue()
    await spins_until(lambda: harness.runner.present == 1)
    begin = time.monotonic()
    await harness.dispatcher.close(timeout_seconds=0.05)
    assert time.monotonic() - begin < 5
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("runner-")), (
        "the interpreter waits for none"
    )
    await harness.close()
    for_ever.set()


async def test_close_tells_threads_to_leave_some_at_a_time(tmp_path: Path) -> None:
    harness = DispatcherHarness(tmp_path, max_running=LEAVING_AT_ONCE + 6)
    for_ever, mailboxes = threading.Event(), list[Mailbox]()

    def hang(assignment: Assignment, mailbox: Mailbox) -> None:
        mailboxes.append(mailbox)
        _wait(for_ever)

    harness.runner.when_given = hang
    harness.open()
    for _ in range(LEAVING_AT_ONCE + 6):
        await harness.enqueue()
    await spins_until(lambda: len(mailboxes) == LEAVING_AT_ONCE + 6)
    await harness.dispatcher.close(timeout_seconds=0)
    assert sum(mailbox.get(0) is not None for mailbox in mailboxes) == LEAVING_AT_ONCE
    await harness.close()
    assert sum(mailbox.get(0) is not None for mailbox in mailboxes) == LEAVING_AT_ONCE + 6, (
        "hung ones hold up no others"
    )
    for_ever.set()


# ---- what a test needs


def _wait(event: threading.Event) -> None:
    event.wait()


@contextmanager
def held(writer: Writer) -> Iterator[None]:
    """The writing thread stands still, and what is asked for in the meantime is committed together."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(db: Connection) -> Written[None]:
        reached.set()
        go_on.wait()
        return Written(None)

    writer.write(hold)
    reached.wait()
    try:
        yield
    finally:
        go_on.set()


@contextmanager
def locked(harness: DispatcherHarness) -> Iterator[None]:
    """Somebody else has a lock on the database: every transaction fails at once."""
    another = open_for_writing(harness.path)
    another.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        another.close()


async def spins_until(true: Callable[[], bool]) -> None:
    """Looks each millisecond whether that is so; for what nobody announces."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
