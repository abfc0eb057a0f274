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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fastlane_grpc.dispatcher import Dispatcher
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


class House(Parts):
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
async def houses(tmp_path: Path) -> AsyncIterator[list[House]]:
    """Houses that are to be closed at the end."""
    houses: list[House] = []
    yield houses
    for house in houses:
        await house.close()


@pytest.fixture
async def house(houses: list[House], tmp_path: Path) -> House:
    """One with a runner that ends at once what it is given."""
    houses.append(House(tmp_path))
    houses[0].open()
    return houses[0]


@pytest.fixture
async def holding(houses: list[House], tmp_path: Path) -> House:
    """One with a runner that holds what it is given."""
    houses.append(House(tmp_path, hold=True))
    houses[0].open()
    return houses[0]


# ---- places and order


async def test_5000_jobs_run_in_order_and_fair_and_never_more_than_there_are_slots(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, max_running=12)
    houses.append(house)
    tasks = ["big"] * 4000 + [f"task-{number % 100}" for number in range(1000)]
    enqueued = await asyncio.gather(*(house.enqueue(task) for task in tasks))
    house.runner.when_given = lambda assignment, mailbox: within_limit(house, 12)
    house.open()
    await house.ends(5000)

    assert {execution.state for execution in house.ended} == {State.SUCCEEDED}
    assert sorted(house.runner.starts) == sorted(execution.id for execution in enqueued), "each was started, and once"
    assert house.most_unfinished == house.runner.most_present == 12
    expected, given = defaultdict(list), defaultdict(list)
    for execution in enqueued:
        expected[execution.task_id].append(execution.id)
    for execution in house.claimed:
        given[execution.task_id].append(execution.id)
    assert given == expected
    for first in range(0, 1010, 101):
        assert len({execution.task_id for execution in house.claimed[first : first + 101]}) == 101


def within_limit(house: House, places: int) -> None:
    assert house.dispatcher.running <= places
    assert house.runner.present <= places


async def test_a_place_is_free_again_when_the_end_is_committed(holding: House) -> None:
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


async def test_free_places_are_filled_in_one_transaction(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, max_running=8, hold=True)
    houses.append(house)
    for _ in range(20):
        await house.enqueue()
    asked = house.writer.asked
    house.open()
    await house.announced.until(lambda: len(house.claimed) == 8)
    assert house.writer.asked == asked + 1


async def test_a_job_whose_caller_went_away_is_run_all_the_same(house: House) -> None:
    for number in range(1, 21):
        call = asyncio.create_task(house.enqueue())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        if number % 2:  # so that some find a dispatcher that sleeps, and some one that is at work
            await house.ends(number)
    await house.ends(20)


async def test_no_wake_up_is_lost(house: House) -> None:
    chance, expected = random.Random(3), 0
    for _ in range(150):
        tasks = [f"task-{number}" for number in range(chance.randrange(1, 5))]
        await asyncio.gather(*(house.enqueue(task) for task in tasks))
        expected += len(tasks)
        await house.ends(expected)


# ---- stops


async def test_a_stop_reaches_the_runner_of_the_execution_and_nobody_else(holding: House) -> None:
    first, second = await holding.running(), await holding.running()
    await holding.store.stop(first.job_id, grace=GRACE, note="by hand")
    stopped = await holding.announced.reaches(first.id, State.STOPPED)
    assert stopped.outcome
    assert stopped.outcome.detail == "by hand"
    assert stopped.stop
    assert holding.runner.stop_orders == [(first.id, StopCommand(stopped.stop))]
    assert (await holding.store.execution(second.id)).state is State.RUNNING


async def test_a_stop_that_is_announced_with_the_claim_reaches_the_runner(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path)
    houses.append(house)
    got: list[Command | Event | None] = []
    house.runner.when_given = lambda assignment, mailbox: got.append(mailbox.get(30))
    execution = await house.enqueue()
    asked = house.writer.asked
    with held(house.writer):
        house.open()
        await spins_until(lambda: house.writer.asked == asked + 2)  # the one that holds, and the claim
        stopping = house.store.stop(execution.job_id, grace=GRACE, note="")
    await stopping
    stopped = await house.announced.reaches(execution.id, State.STOPPED)
    assert stopped.stop
    assert got == [StopCommand(stopped.stop)]
    assert house.runner.starts == []


async def test_a_shorter_grace_is_told_and_the_same_stop_is_not_told_twice(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path)
    houses.append(house)
    got: list[Command | Event | None] = []
    go_on = threading.Event()

    def wait_for_both(assignment: Assignment, mailbox: Mailbox) -> None:
        go_on.wait()
        got.extend([mailbox.get(0), mailbox.get(0), mailbox.get(0)])

    house.runner.when_given = wait_for_both
    house.open()
    execution = await house.enqueue()
    await house.announced.reaches(execution.id, State.PREPARING)
    first = (await house.store.stop(execution.job_id, grace=GRACE, note="")).execution.stop
    await house.store.running(execution.id, start_time=utc_now())
    second = (await house.store.stop(execution.job_id, grace=timedelta(), note="")).execution.stop
    go_on.set()
    await house.announced.reaches(execution.id, State.STOPPED)
    assert first
    assert second
    assert got == [StopCommand(first), StopCommand(second), None]


# ---- the host goes and comes


async def test_while_the_host_is_down_nothing_is_claimed(house: House) -> None:
    house.host_is(up=False)
    assert house.dispatcher.why_queued("t") == (WaitReason.HOST_DOWN, "host 'here' does not answer")
    execution = await house.enqueue()
    for _ in range(5):
        assert (await house.store.execution(execution.id)).state is State.QUEUED
    assert house.claimed == []
    house.host_is(up=True)
    assert house.dispatcher.why_queued("t") is None
    await house.announced.reaches(execution.id, State.SUCCEEDED)


async def test_what_runs_keeps_its_place_while_the_host_is_down_and_is_taken_up_again(holding: House) -> None:
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


async def test_an_execution_not_started_when_its_host_went_is_queued_and_its_slot_free(house: House) -> None:
    go_on = threading.Event()
    house.runner.when_given = lambda assignment, mailbox: _wait(go_on)
    execution = await house.enqueue()
    await spins_until(lambda: house.runner.present == 1)
    house.host.up = False
    go_on.set()
    await house.threads_end()
    assert house.dispatcher.running == 0
    assert (await house.store.execution(execution.id)).state is State.QUEUED
    house.host_is(up=True)
    await house.announced.reaches(execution.id, State.SUCCEEDED)
    assert house.runner.starts == [execution.id]


async def test_what_is_claimed_again_waits_for_the_thread_that_had_it(house: House) -> None:
    claimed_again = threading.Event()

    def give_back(assignment: Assignment, mailbox: Mailbox) -> None:
        if len(house.runner.given) == 1:
            house.store.requeue(assignment.execution.id).result()
            claimed_again.wait()
            raise HostDown

    house.runner.when_given = give_back
    execution = await house.enqueue()
    await house.announced.until(lambda: len(house.claimed) == 2)
    await house.store.execution(execution.id)
    assert house.dispatcher.running == 2
    claimed_again.set()
    await house.announced.reaches(execution.id, State.SUCCEEDED)
    assert [assignment.execution.id for assignment in house.runner.given] == [execution.id] * 2
    assert house.runner.starts == [execution.id]


async def test_a_host_that_answers_and_then_does_not_is_left_alone_for_a_while(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, max_running=1, retry_seconds=AGES)
    houses.append(house)
    house.open()

    def no_answer(assignment: Assignment, mailbox: Mailbox) -> None:
        if len(house.runner.given) < 3:
            raise HostDown

    house.runner.when_given = no_answer
    execution = await house.enqueue()
    for times in (1, 2):
        await spins_until(lambda: len(house.runner.given) == times)  # noqa: B023
        await house.threads_end()
        other = await house.enqueue("other")
        for _ in range(5):
            assert (await house.store.execution(other.id)).state is State.QUEUED
        assert len(house.runner.given) == times
        house.host_is(up=True)
    await house.announced.reaches(execution.id, State.SUCCEEDED)


async def test_after_that_while_it_is_tried_again_without_any_word(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, retry_seconds=0.01)
    houses.append(house)
    house.open()

    def no_answer(assignment: Assignment, mailbox: Mailbox) -> None:
        if len(house.runner.given) < 4:
            raise HostDown

    house.runner.when_given = no_answer
    execution = await house.enqueue()
    await house.announced.reaches(execution.id, State.SUCCEEDED)
    assert len(house.runner.given) == 4
    assert len(house.claimed) == 1, "it kept its place"


# ---- several hosts


async def test_the_next_execution_goes_to_the_host_with_the_largest_share_of_free_places(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, hosts={"small": 2, "large": 6, "equal": 2}, max_running=100, hold=True)
    houses.append(house)
    for _ in range(12):
        await house.enqueue()
    house.open()
    await house.announced.until(lambda: len(house.claimed) == 10)
    by_share = ["small", "large", "equal", "large", "large", "small", "large", "equal", "large", "large"]
    assert [execution.host for execution in house.claimed] == by_share
    assert house.dispatcher.why_queued("t") == (WaitReason.NO_FREE_SLOT, "10 of 10 slots in use")
    running = next(execution for execution in house.claimed if execution.host == "equal")
    await house.announced.reaches(running.id, State.RUNNING)
    house.runners["equal"].end(running.id)
    await house.announced.until(lambda: len(house.claimed) == 11)
    assert house.claimed[10].host == "equal"
    assert [(host.name, host.running, host.max_running) for host in house.dispatcher.hosts] == [
        ("small", 2, 2),
        ("large", 6, 6),
        ("equal", 2, 2),
    ]


async def test_the_limit_of_the_server_is_over_all_hosts(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, hosts={"a": 5, "b": 5}, max_running=3, hold=True)
    houses.append(house)
    house.open()
    executions = [await house.enqueue() for _ in range(6)]
    await house.announced.until(lambda: len(house.unfinished) == 3)
    assert house.dispatcher.why_queued("t") == (WaitReason.NO_FREE_SLOT, "3 of 3 slots in use")
    for execution in executions:
        await house.announced.reaches(execution.id, State.RUNNING)
        house.runners[house.unfinished[execution.id]].end(execution.id)
    await house.ends(6)
    assert house.most_unfinished == 3


async def test_many_free_places_are_filled_whatever_is_claimed_in_one_transaction(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, hosts={"a": 10**12, "b": 10**12}, max_running=10**12)
    houses.append(house)
    await asyncio.gather(*(house.enqueue() for _ in range(700)))
    house.open()
    await house.ends(700)
    assert sorted(house.most_on) == ["a", "b"]
    assert min(house.most_on.values()) > 0


async def test_a_host_that_is_down_holds_up_nobody_but_what_is_on_it(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, hosts={"a": 2, "b": 2}, max_running=4, hold=True)
    houses.append(house)
    house.open()
    first = [await house.running() for _ in range(4)]
    on_a = [execution.id for execution in first if execution.host == "a"]
    house.engine_dies("a")
    await spins_until(lambda: len(house.dispatcher._on_thread) == 2)
    assert house.dispatcher.why_queued("t") == (WaitReason.NO_FREE_SLOT, "2 of 2 slots in use")
    for execution in first:
        if execution.host == "b":
            house.runners["b"].end(execution.id)
    later = [await house.running() for _ in range(2)]
    assert {execution.host for execution in later} == {"b"}
    assert house.now_on() == {"a": 2, "b": 2}
    assert {execution_id for execution_id, host in house.unfinished.items() if host == "a"} == set(on_a)
    for execution in later:
        house.runners["b"].end(execution.id)
    await house.ends(4)
    house.host_is("a", up=True)
    await spins_until(lambda: len(house.runners["a"].given) == 4)
    for execution_id in on_a:
        await spins_until(lambda: execution_id in house.runners["a"]._inboxes)  # noqa: B023
        house.runners["a"].end(execution_id)
    await house.ends(6)
    assert sorted(house.starts) == sorted(execution.id for execution in house.ended)


async def test_why_nothing_is_taken_is_told_only_while_no_host_is_up(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, hosts={"a": 1, "b": 1}, max_running=2, hold=True)
    houses.append(house)
    house.open()
    house.host_is("a", up=False)
    assert (house.dispatcher.why_queued("t"), house.dispatcher.up) == (None, True)
    house.host_is("b", up=False)
    assert not house.dispatcher.up
    assert house.dispatcher.why_queued("t") == (
        WaitReason.HOST_DOWN,
        "host 'a' does not answer; host 'b' does not answer",
    )


async def test_what_was_not_started_on_a_host_that_went_down_is_run_by_another_one(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, hosts={"a": 1, "b": 1}, max_running=2)
    houses.append(house)
    go_on = threading.Event()
    house.runners["a"].when_given = lambda assignment, mailbox: _wait(go_on)
    house.open()
    execution = await house.enqueue()
    await spins_until(lambda: house.runners["a"].present == 1)
    house.hosts["a"].up = False
    go_on.set()
    await house.announced.reaches(execution.id, State.SUCCEEDED)
    assert (house.runners["a"].starts, house.runners["b"].starts) == ([], [execution.id])
    assert house.now_on() == {"a": 0, "b": 0}


async def test_a_host_that_answers_and_then_does_not_is_left_alone_while_another_goes_on(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, hosts={"a": 1, "b": 1}, max_running=2, retry_seconds=AGES)
    houses.append(house)
    house.open()

    def no_answer(assignment: Assignment, mailbox: Mailbox) -> None:
        house.store.requeue(assignment.execution.id).result()
        raise HostDown

    house.runners["a"].when_given = no_answer
    for number in range(1, 11):
        await house.enqueue()
        await house.ends(number)
    assert len(house.runners["a"].given) == 1, "it was not asked again"
    house.dispatcher.host_changed("b")
    await house.enqueue()
    await house.ends(11)
    assert len(house.runners["a"].given) == 1, "news of another host are none of it"


async def test_a_requeued_execution_has_a_slot_on_both_hosts_until_its_thread_ends(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, hosts={"a": 1, "b": 1}, max_running=2)
    houses.append(house)
    go_on = threading.Event()

    def give_back(assignment: Assignment, mailbox: Mailbox) -> None:
        house.store.requeue(assignment.execution.id).result()
        go_on.wait()
        raise HostDown

    house.runners["a"].when_given = give_back
    house.open()
    execution = await house.enqueue()
    await house.announced.until(lambda: len(house.claimed) == 2)
    await house.store.execution(execution.id)
    assert [(host.name, host.running) for host in house.dispatcher.hosts] == [("a", 1), ("b", 1)]
    other = await house.enqueue("other")
    assert (await house.store.execution(other.id)).state is State.QUEUED
    go_on.set()
    await house.announced.reaches(execution.id, State.SUCCEEDED)
    assert house.runners["b"].starts[0] == execution.id


ACTIONS = st.one_of(
    st.tuples(st.just("enqueue"), st.integers(1, 12)),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("stop"), st.integers(0, 30)),
    st.tuples(st.sampled_from(["up", "hangs", "dies"]), st.sampled_from(["a", "b", "c"])),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
    house = House(directory, hosts=hosts, max_running=max_running, hold=True, retry_seconds=0.001)
    house.open()
    enqueued: dict[str, str] = {}
    for name, what in actions:
        match name, what:
            case "enqueue", int(count):
                for each in await asyncio.gather(*(house.enqueue(f"task-{number % 3}") for number in range(count))):
                    enqueued[each.id] = each.job_id
            case "end", int(number):
                end_one(house, number)
            case "stop", int(number) if enqueued:
                job_id = list(enqueued.values())[number % len(enqueued)]
                await house.store.stop(job_id, grace=GRACE, note="")
            case "up", str(host):
                house.host_is(host, up=True)
            case "hangs", str(host):
                house.host_is(host, up=False)
            case "dies", str(host):
                house.engine_dies(host)
        await spins_until(lambda: nobody_starves(house, len(enqueued), max_running))
    for host in hosts:
        house.host_is(host, up=True)
    async with asyncio.timeout(30):
        while len(house.ended) < len(enqueued):
            end_one(house, 0)
            await asyncio.sleep(0)
    assert house.claimed_for_down == []
    assert len({execution.id for execution in house.ended}) == len(house.ended) == len(enqueued)
    assert len(set(house.starts)) == len(house.starts), "none was started twice"
    for name, count in hosts.items():
        assert house.most_on[name] <= count
        assert house.runners[name].most_present <= count
    assert house.most_unfinished <= max_running
    await house.threads_end()
    assert [host.running for host in house.dispatcher.hosts] == [0, 0, 0]
    await house.close()


def end_one(house: House, number: int) -> None:
    """The container of one that runs ends, wherever it is."""
    held = [(runner, execution_id) for runner in house.runners.values() for execution_id in list(runner._inboxes)]
    if held:
        runner, execution_id = held[number % len(held)]
        with suppress(KeyError):  # it has ended already
            runner.end(execution_id)


def nobody_starves(house: House, enqueued: int, max_running: int) -> bool:
    """Nobody waits while a place is free on a host that is up."""
    waiting = enqueued - len(house.ended) - len(house.unfinished)
    full = all(house.on(name) >= count for name, count in house.places.items() if house.hosts[name].up)
    return not waiting or full or len(house.unfinished) >= max_running


# ---- adoption


async def test_what_was_left_on_a_host_that_is_not_configured_any_more_takes_no_place(
    tmp_path: Path, houses: list[House]
) -> None:
    running, starting, claimed = await unfinished_of_an_earlier_server(tmp_path)
    house = House(tmp_path, hosts={"other": 1}, max_running=1)
    houses.append(house)
    house.open()
    for execution in (running, starting):
        lost = await house.announced.reaches(execution.id, State.LOST)
        assert lost.outcome
        assert lost.outcome.reason is Reason.HOST_GONE
    await house.announced.reaches(claimed.id, State.SUCCEEDED)
    assert house.runners["other"].starts == [claimed.id]
    await house.threads_end()
    assert house.dispatcher.running == 0


async def test_what_was_left_on_several_hosts_is_taken_up_on_its_own(tmp_path: Path, houses: list[House]) -> None:
    earlier = House(tmp_path, hosts={"a": 2, "b": 2}, max_running=4, hold=True)
    earlier.open()
    left = [await earlier.running() for _ in range(4)]
    await earlier.close()
    house = House(tmp_path, hosts={"b": 2, "a": 2}, max_running=4, hold=True)
    houses.append(house)
    house.hosts["a"].up = False
    house.open()
    for execution in left:
        if execution.host == "b":
            await spins_until(lambda: execution.id in house.runners["b"]._inboxes)  # noqa: B023
            house.runners["b"].end(execution.id)
    await house.ends(2)
    await spins_until(lambda: [(host.name, host.running) for host in house.dispatcher.hosts] == [("b", 0), ("a", 2)])
    house.host_is("a", up=True)
    for execution in left:
        if execution.host == "a":
            await spins_until(lambda: execution.id in house.runners["a"]._inboxes)  # noqa: B023
            house.runners["a"].end(execution.id)
    await house.ends(4)
    assert house.starts == []


async def unfinished_of_an_earlier_server(directory: Path) -> list[Execution]:
    """One that runs, one whose start may have been sent, one that was only claimed."""
    earlier = House(directory)
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
    tmp_path: Path, houses: list[House]
) -> None:
    left = await unfinished_of_an_earlier_server(tmp_path)
    house = House(tmp_path, max_running=2, hold=True)
    houses.append(house)
    queued = await house.enqueue()
    house.open()
    for execution in left[1:]:
        await house.announced.reaches(execution.id, State.RUNNING)
    assert [assignment.execution.id for assignment in house.runner.given] == [execution.id for execution in left]
    assert house.dispatcher.running == 3
    assert house.runner.starts == [left[2].id]
    for execution in left:
        assert house.claimed == [] or house.dispatcher.running <= 2
        house.runner.end(execution.id)
        await house.announced.reaches(execution.id, State.SUCCEEDED)
    await house.announced.reaches(queued.id, State.RUNNING)


async def test_what_was_left_waits_for_a_host_that_is_down_at_the_start(tmp_path: Path, houses: list[House]) -> None:
    running, starting, claimed = await unfinished_of_an_earlier_server(tmp_path)
    house = House(tmp_path, host_up=False)
    houses.append(house)
    house.open()
    await house.announced.reaches(claimed.id, State.QUEUED)
    await house.threads_end()
    assert house.dispatcher.running == 2
    await house.store.stop(running.job_id, grace=GRACE, note="")
    house.host_is(up=True)
    await house.announced.reaches(running.id, State.STOPPED)
    await house.announced.reaches(starting.id, State.SUCCEEDED)
    await house.announced.reaches(claimed.id, State.SUCCEEDED)
    assert house.runner.starts == [claimed.id]


async def test_a_stop_asked_of_an_earlier_server_comes_with_the_execution(tmp_path: Path, houses: list[House]) -> None:
    left = await unfinished_of_an_earlier_server(tmp_path)
    earlier = House(tmp_path)
    stop = (await earlier.store.stop(left[0].job_id, grace=GRACE, note="")).execution.stop
    await earlier.close()
    house = House(tmp_path)
    houses.append(house)
    told: list[tuple[str, Stop | None, Command | Event | None]] = []

    def announce_again(assignment: Assignment, mailbox: Mailbox) -> None:
        house.store.running(assignment.execution.id, start_time=utc_now()).result()
        # Whatever the loop was to do with that, it has done before this is answered.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), house.loop).result()
        told.append((assignment.execution.id, assignment.execution.stop, mailbox.get(0)))

    house.runner.when_given = announce_again
    house.open()
    await house.announced.reaches(left[0].id, State.STOPPED)
    assert (left[0].id, stop, None) in told


# ---- failures


async def test_a_defect_of_the_runner_ends_its_execution_as_lost_and_no_other(house: House) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        if assignment.execution.task_id == "bad":
            raise ZeroDivisionError("what nobody thought of")

    house.runner.when_given = defect
    with capture_logs() as logs:
        bad = await house.enqueue("bad")
        lost = await house.announced.reaches(bad.id, State.LOST)
    assert lost.outcome
    assert lost.outcome.reason is Reason.CONTAINER_GONE
    assert lost.outcome.detail == f"a defect of fastlane, see the server's log for {bad.id}"
    assert lost.logs == (LogTotals(Source.SYSTEM, len(lost.outcome.detail)),)
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (entry["execution_id"], entry["job_id"], entry["task_id"]) == (bad.id, bad.job_id, "bad")
    assert "what nobody thought of" in str(entry["exc_info"])
    for _ in range(5):
        good = await house.enqueue("good")
        await house.announced.reaches(good.id, State.SUCCEEDED)
    await house.threads_end()
    assert house.dispatcher.running == 0


async def test_a_defect_after_a_record_was_sealed_leaves_the_end_to_the_record(house: House) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        raise ZeroDivisionError

    def abandon(execution_id: str, why: str) -> AbandonedLog:
        end = CertainEnd(State.FAILED, Outcome(Reason.EXIT_CODE, exit_code=7), None, utc_now(), None)
        return AbandonedLog([LogTotals(Source.STDOUT, 5)], 4096, end)

    house.runner.when_given = defect
    house.runner.abandon = abandon  # type: ignore[method-assign]
    house.open()
    execution = await house.enqueue()
    ended = await house.announced.reaches(execution.id, State.FAILED)
    assert ended.outcome is not None
    assert (ended.outcome.exit_code, ended.logs) == (7, (LogTotals(Source.STDOUT, 5),))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.ENOMEM])
async def test_a_failure_of_the_machine_ends_no_execution(tmp_path: Path, number: int) -> None:
    house = House(tmp_path, retry_seconds=0.01)
    times: dict[str, int] = defaultdict(int)

    def fail(assignment: Assignment, mailbox: Mailbox) -> None:
        times[assignment.execution.id] += 1
        if times[assignment.execution.id] < 4 and assignment.execution.id == bad.id:
            raise OSError(number, "of the machine")

    house.runner.when_given = fail
    bad, good = await house.enqueue(), await house.enqueue()
    house.open()
    await house.announced.reaches(good.id, State.SUCCEEDED)
    await house.announced.reaches(bad.id, State.SUCCEEDED)
    assert (times[bad.id], times[good.id]) == (4, 1)
    await house.close()


@pytest.mark.parametrize(
    "shortage", [OSError(errno.EMFILE, "Too many open files"), MemoryError(), RuntimeError("can't start new thread")]
)
async def test_an_execution_whose_runner_was_short_of_something_is_taken_up_again(
    tmp_path: Path, shortage: Exception
) -> None:
    house = House(tmp_path, retry_seconds=0.01)
    tries: list[str] = []

    def short(assignment: Assignment, mailbox: Mailbox) -> None:
        tries.append(assignment.execution.id)
        if len(tries) < 3:
            raise shortage

    house.runner.when_given = short
    house.open()
    try:
        execution = await house.enqueue()
        async with asyncio.timeout(30):
            await house.announced.reaches(execution.id, State.SUCCEEDED)
        assert tries == [execution.id] * 3
        assert State.LOST not in {each.state for each in house.announced.all}
    finally:
        await house.close()


async def test_a_defect_after_the_end_changes_nothing(house: House) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        house.store.finish(assignment.execution.id, state=State.FAILED, outcome=Outcome(), logs=()).result()
        raise ZeroDivisionError

    house.runner.when_given = defect
    execution = await house.enqueue()
    await house.announced.reaches(execution.id, State.FAILED)
    await house.threads_end()
    assert (await house.store.execution(execution.id)).state is State.FAILED


async def test_a_defect_after_the_job_was_pruned_costs_no_place(house: House) -> None:
    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        if assignment.execution.task_id == "bad":
            house.store.finish(assignment.execution.id, state=State.FAILED, outcome=Outcome(), logs=()).result()
            house.store.delete_jobs([assignment.execution.job_id]).result()
            raise ZeroDivisionError

    house.runner.when_given = defect
    for _ in range(20):
        await house.enqueue("bad")
    good = await house.enqueue("good")
    await house.announced.reaches(good.id, State.SUCCEEDED)
    await house.threads_end()
    assert house.dispatcher.running == 0


async def test_an_execution_whose_end_fails_is_taken_up_again_and_no_thread_is_lost(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, max_running=1, retry_seconds=0.01)
    houses.append(house)
    defects: list[BaseException] = [ZeroDivisionError(), SystemExit(1), RecursionError()]

    def defect(assignment: Assignment, mailbox: Mailbox) -> None:
        if defects:
            raise defects.pop()

    def no_abandon(execution_id: str, why: str) -> AbandonedLog:
        raise SystemExit(2)

    house.runner.when_given, house.runner.abandon = defect, no_abandon  # type: ignore[method-assign]
    house.open()
    with capture_logs() as logs:
        execution = await house.enqueue()
        await house.announced.reaches(execution.id, State.SUCCEEDED)
    assert [log["work"] for log in logs if log["event"].startswith("a defect")] == [
        f"the end of execution {execution.id}"
    ] * 3
    await house.threads_end()
    assert house.dispatcher.running == 0


async def test_a_claim_that_could_not_be_stored_is_tried_again_but_not_at_once(
    tmp_path: Path, houses: list[House]
) -> None:
    house = House(tmp_path, retry_seconds=AGES)
    houses.append(house)
    execution = await house.enqueue()
    with locked(house), capture_logs() as logs:
        asked = house.writer.asked
        house.open()
        await spins_until(lambda: len(logs) == 1)
        assert logs[0]["event"] == "the queue waits for the store"
        for _ in range(5):
            await house.store.execution(execution.id)
        assert house.writer.asked == asked + 1
    house.dispatcher.host_changed("here")
    await house.announced.reaches(execution.id, State.SUCCEEDED)


async def test_the_dispatcher_goes_on_by_itself_when_the_store_does(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, retry_seconds=0.01)
    houses.append(house)
    execution = await house.enqueue()
    with locked(house), capture_logs() as logs:
        asked = house.writer.asked
        house.open()
        await spins_until(lambda: house.writer.asked >= asked + 3)
    assert [each["event"] for each in logs] == ["the queue waits for the store"]
    await house.announced.reaches(execution.id, State.SUCCEEDED)


async def test_an_execution_waits_for_a_thread_where_none_is_to_be_had(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, retry_seconds=0.01)
    houses.append(house)
    execution = await house.enqueue()
    usual = threading.stack_size(1 << 46)  # nobody has so much memory
    try:
        with capture_logs() as logs:
            house.open()
            await spins_until(lambda: len(logs) >= 2)
    finally:
        threading.stack_size(usual)
    assert logs[1]["event"] == "no thread is to be had"
    await house.announced.reaches(execution.id, State.SUCCEEDED)
    assert len(house.claimed) == 1


# ---- close


async def test_close_leaves_what_runs_and_takes_nothing_new(tmp_path: Path, houses: list[House]) -> None:
    house = House(tmp_path, hold=True)
    house.open()
    running = await house.running()
    await house.dispatcher.close()
    assert house.runner.present == 0
    queued = await house.enqueue()
    assert house.task
    await house.task
    for execution, state in ((running, State.RUNNING), (queued, State.QUEUED)):
        assert (await house.store.execution(execution.id)).state is state
    await house.close()


async def test_close_is_quick_with_a_runner_that_hangs(tmp_path: Path) -> None:
    house = House(tmp_path)
    for_ever = threading.Event()
    house.runner.when_given = lambda assignment, mailbox: _wait(for_ever)
    house.open()
    await house.enqueue()
    await spins_until(lambda: house.runner.present == 1)
    begin = time.monotonic()
    await house.dispatcher.close(timeout_seconds=0.05)
    assert time.monotonic() - begin < 5
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("runner-")), (
        "the interpreter waits for none"
    )
    await house.close()
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
def locked(house: House) -> Iterator[None]:
    """Somebody else has a lock on the database: every transaction fails at once."""
    another = open_for_writing(house.path)
    another.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        another.close()


async def spins_until(true: Callable[[], bool]) -> None:
    """Lets the loop go round until that is so; for what nobody announces."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0)
