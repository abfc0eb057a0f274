"""Limits, pools, drained hosts and circuit breakers: what the dispatcher starts where, and what it says of the rest."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.api.limits import why_limited
from fastlane_grpc.dispatcher import Dispatcher
from fastlane_grpc.errors import HostNotFound
from fastlane_grpc.model import (
    Assignment,
    Availability,
    Execution,
    JobSpec,
    Outcome,
    Reason,
    State,
    TaskLimitsChange,
    WaitReason,
    utc_now,
)
from fastlane_grpc.pools import Pool, Pools
from fastlane_grpc.runner import Mailbox
from fastlane_grpc.slots import HostSlots
from fastlane_grpc.store import Store
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from tests.fakes import Announcements, FakeGone, FakeHost, FakeRunner
from tests.new_database import open_database

WINDOW = timedelta(seconds=1)


class FailingRunner(FakeRunner):
    """Its host refuses starts while `fails` says so, of the tasks that it names."""

    fails: Callable[[Assignment], str] = staticmethod(lambda assignment: "")

    def _run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        if why := self.fails(assignment):
            mailbox.start_failure = why if why != "the job's fault" else ""
            outcome = Outcome(Reason.REFUSED_BY_ENGINE, why)
            self._store.finish(assignment.execution.id, state=State.FAILED, outcome=outcome, logs=()).result()
        else:
            super()._run(assignment, mailbox)


class LimitedDispatcherHarness:
    """A dispatcher over a real store. Its hosts hold what runs on them until a test ends it."""

    def __init__(
        self,
        directory: Path,
        hosts: Mapping[str, int],
        pools: Sequence[Pool] = (),
        *,
        max_running: int = 100,
        hold: bool = True,
        circuit_seconds: float = 60.0,
    ) -> None:
        loop = asyncio.get_running_loop()
        path = directory / "fastlane.db"
        self.announced = Announcements()
        configured = Pools(pools, list(hosts))
        writer = Writer(open_database(path), path, loop=loop, on_commit=self._committed, retry_seconds=0.01)
        self.store = Store(writer, Readers(path, loop=loop), instance="", pools=configured)
        self.hosts = {name: FakeHost(name) for name in hosts}
        self.runners = {name: FailingRunner(self.store, host, hold=hold) for name, host in self.hosts.items()}
        self.dispatcher = Dispatcher(
            self.store,
            [HostSlots(self.hosts[name], self.runners[name], slots) for name, slots in hosts.items()],
            removed=FakeGone(self.store),
            max_running=max_running,
            pools=configured,
            retry_seconds=0.01,
            circuit_seconds=circuit_seconds,
        )
        self.changed = asyncio.Event()
        self.dispatcher.on_availability_change = self.changed.set
        self.task = asyncio.create_task(self.dispatcher.run())

    def _committed(self, executions: Sequence[Execution]) -> None:
        self.store.limited_tasks.on_commit(executions)
        self.dispatcher.on_change(executions)
        self.announced(executions)

    async def enqueue(self, task_id: str = "mail") -> Execution:
        spec = JobSpec("busybox")
        return (await self.store.enqueue(task_id=task_id, spec=spec, request_id="", caller_address=""))[0].execution

    async def running(self, execution: Execution) -> str:
        """Return the host on which this execution runs, as soon as it does."""
        return (await self.announced.reaches(execution.id, State.RUNNING)).host

    async def end(self, execution: Execution) -> None:
        self.runners[await self.running(execution)].end(execution.id)

    async def idle(self) -> None:
        """Return when the dispatcher has had the time to claim whatever it may."""
        probe = (await self.store.update_task("probe", TaskLimitsChange(paused=True))).id
        await self.store.update_task(probe, TaskLimitsChange(paused=False))
        for _ in range(50):
            await asyncio.sleep(0)
            await self.store.probe()

    async def state(self, execution: Execution) -> State:
        return (await self.store.execution(execution.id)).state

    def report(self, name: str) -> Any:
        return next(report for report in self.dispatcher.hosts if report.name == name)

    async def becomes(self, name: str, availability: Availability) -> None:
        while self.report(name).availability is not availability:
            self.changed.clear()
            await self.changed.wait()

    async def close(self) -> None:
        await self.dispatcher.close()
        with suppress(asyncio.CancelledError):
            await self.task
        self.store.close()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., LimitedDispatcherHarness]]:
    harnesses: list[LimitedDispatcherHarness] = []

    def made(*arguments: Any, **options: Any) -> LimitedDispatcherHarness:
        harnesses.append(LimitedDispatcherHarness(tmp_path, *arguments, **options))
        return harnesses[-1]

    yield made
    for harness in harnesses:
        if not harness.task.done():
            await harness.close()


Make = Callable[..., LimitedDispatcherHarness]

# ---- limits


async def test_the_end_of_an_execution_starts_the_next_one_of_a_task_at_its_limit(make: Make) -> None:
    harness = make({"here": 8})
    await harness.store.update_task("mail", TaskLimitsChange(max_running=2))
    first, second, third, fourth = [await harness.enqueue() for _ in range(4)]
    await harness.running(first)
    await harness.running(second)
    await harness.idle()
    assert await harness.state(third) is State.QUEUED
    waits = why_limited(third, harness.store.limited_tasks, utc_now())
    assert waits
    assert (waits.reason, waits.detail) == (WaitReason.TASK_LIMIT, "2 of 2 executions of the task run")
    await harness.end(first)
    await harness.running(third)
    await harness.store.update_task("mail", TaskLimitsChange(max_running=0))
    await harness.running(fourth)
    assert why_limited(fourth, harness.store.limited_tasks, utc_now()) is None


async def test_a_resumed_task_starts_at_once_though_its_caller_is_gone(make: Make) -> None:
    harness = make({"here": 8})
    await harness.store.update_task("mail", TaskLimitsChange(paused=True))
    mail = await harness.enqueue()
    await harness.idle()
    waits = why_limited(mail, harness.store.limited_tasks, utc_now())
    assert waits
    assert (waits.reason, waits.detail) == (WaitReason.TASK_PAUSED, "the task is paused")

    async def resume() -> None:
        await harness.store.update_task("mail", TaskLimitsChange(paused=False))

    call = asyncio.create_task(resume())
    await asyncio.sleep(0)
    call.cancel()
    await harness.running(mail)


async def test_a_task_with_a_rate_starts_by_itself_when_its_window_allows_it(make: Make) -> None:
    harness = make({"here": 8}, hold=False)
    await harness.store.update_task("mail", TaskLimitsChange(max_starts=2, rate_window=WINDOW))
    mails = [await harness.enqueue() for _ in range(4)]
    for mail in mails[:2]:
        await harness.announced.reaches(mail.id, State.SUCCEEDED)
    waits = why_limited(mails[2], harness.store.limited_tasks, utc_now())
    assert waits
    assert (waits.reason, waits.due_time) == (WaitReason.TASK_RATE, harness.store.limited_tasks.next_start("mail"))
    assert waits.detail.startswith("the task starts 2 executions within 1 s at most; the next one at 20")
    ended = [await harness.announced.reaches(mail.id, State.SUCCEEDED) for mail in mails]
    claims = [execution.times.claim_time for execution in ended]
    for first, third in zip(claims, claims[2:], strict=False):
        assert first
        assert third
        assert WINDOW <= third - first < 20 * WINDOW


# ---- pools


async def test_tasks_run_on_the_hosts_of_their_pool_and_others_where_no_pool_is(make: Make) -> None:
    harness = make({"a": 1, "b": 1, "c": 1}, [Pool("mail", "mail*", ("a",)), Pool("all", "mail*,sms", ("b", "a"))])
    mails, sms, other = [await harness.enqueue("mail-x") for _ in range(2)], await harness.enqueue("sms"), None
    other = await harness.enqueue("other")
    assert [await harness.running(each) for each in (mails[0], sms, other)] == ["a", "b", "c"]
    await harness.idle()
    assert await harness.state(mails[1]) is State.QUEUED, "its pool is full: it falls through to no other"
    assert harness.dispatcher.why_queued("mail-x") == (WaitReason.NO_FREE_SLOT, "1 of 1 slots of pool 'mail' in use")
    assert harness.dispatcher.why_queued("other") == (WaitReason.NO_FREE_SLOT, "1 of 1 slots in use")
    assert harness.report("a").pools == ["mail", "all"]
    await harness.end(mails[0])
    assert await harness.running(mails[1]) == "a"


async def test_a_task_without_a_host_waits_and_says_so(make: Make) -> None:
    harness = make({"a": 1}, [Pool("mail", "mail", ("a",))])
    other = await harness.enqueue("other")
    assert await harness.running(await harness.enqueue("mail")) == "a"
    await harness.idle()
    assert await harness.state(other) is State.QUEUED
    assert harness.dispatcher.why_queued("other") == (
        WaitReason.NO_POOL,
        "no pool matches the task, and every host belongs to a pool",
    )


async def test_a_pool_without_a_host_that_is_up_holds_up_no_other_pool(make: Make) -> None:
    harness = make({"a": 2, "b": 2}, [Pool("mail", "mail", ("a",)), Pool("rest", "*", ("b",))])
    harness.hosts["a"].up = False
    mails = [await harness.enqueue("mail") for _ in range(3)]
    others = [await harness.enqueue("other") for _ in range(2)]
    assert [await harness.running(each) for each in others] == ["b", "b"]
    assert harness.dispatcher.why_queued("mail") == (WaitReason.HOST_DOWN, "host 'a' does not answer")
    harness.hosts["a"].up = True
    harness.dispatcher.host_changed("a")
    assert [await harness.running(each) for each in mails[:2]] == ["a", "a"]


async def test_slots_that_one_pool_leaves_are_for_the_others_under_the_limit_of_the_server(make: Make) -> None:
    harness = make({"a": 300, "b": 4}, [Pool("mail", "mail", ("a",)), Pool("rest", "*", ("b",))], max_running=300)
    others = [await harness.enqueue("other") for _ in range(4)]
    assert [await harness.running(each) for each in others] == ["b"] * 4


# ---- drained hosts


async def test_a_drained_host_gets_nothing_and_what_runs_goes_on_also_after_a_restart(make: Make) -> None:
    harness = make({"a": 2, "b": 1})
    first, second = await harness.enqueue(), await harness.enqueue()
    on_a = first if await harness.running(first) == "a" else second
    await harness.running(second)
    drained = await harness.dispatcher.drain_host("a", "ada: new disk")
    assert (drained.availability, drained.drain_note) == (Availability.DRAINED, "ada: new disk")
    again = await harness.dispatcher.drain_host("a", "another note")
    assert (again.drain_note, again.drain_time) == ("ada: new disk", drained.drain_time), "it stays as it is"
    third = await harness.enqueue()
    await harness.idle()
    assert (await harness.state(third), await harness.state(on_a)) == (State.QUEUED, State.RUNNING)
    assert harness.dispatcher.up
    await harness.dispatcher.drain_host("b", "")
    assert harness.dispatcher.why_queued("mail") == (
        WaitReason.HOST_DRAINED,
        "host 'a' is drained: ada: new disk; host 'b' is drained",
    )
    await harness.close()
    successor = make({"a": 2, "b": 1})
    assert successor.report("a").drain_note == "ada: new disk"
    assert await successor.state(third) is State.QUEUED
    await successor.dispatcher.resume_host("a")
    await successor.dispatcher.resume_host("a")
    assert await successor.running(third) == "a"
    assert (successor.report("a").availability, successor.report("a").drain_time) == (Availability.UP, None)


async def test_health_of_the_engines_leaves_drained_hosts_out(make: Make) -> None:
    harness = make({"a": 1, "b": 1})
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    harness.dispatcher.on_availability_change = changed
    await harness.dispatcher.drain_host("a", "")
    harness.hosts["b"].up = False
    assert not harness.dispatcher.up, "nothing starts, and nobody wanted that"
    assert harness.dispatcher.why_queued("mail") == (
        WaitReason.HOST_DOWN,
        "host 'a' is drained; host 'b' does not answer",
    )
    await harness.dispatcher.drain_host("b", "")
    assert harness.dispatcher.up, "all hosts are drained on purpose, and one responds"
    harness.hosts["a"].up = False
    assert not harness.dispatcher.up
    assert changes == 2


async def test_a_host_that_is_not_configured_cannot_be_drained_or_resumed(make: Make) -> None:
    harness = make({"a": 1})
    for refused in (harness.dispatcher.drain_host("b", ""), harness.dispatcher.resume_host("b")):
        with pytest.raises(HostNotFound, match="there is no host 'b'"):
            await refused


# ---- the circuit breaker


async def test_failed_starts_in_a_row_open_the_circuit_and_a_trial_closes_it(make: Make) -> None:
    harness = make({"a": 1}, hold=False, circuit_seconds=0.5)
    harness.runners["a"].fails = lambda assignment: "no space left on device"
    failing = [await harness.enqueue() for _ in range(7)]
    for execution in failing[:5]:
        await harness.announced.reaches(execution.id, State.FAILED)
    await harness.becomes("a", Availability.CIRCUIT_OPEN)
    assert harness.report("a").last_error == ("several starts in a row failed; the last one: no space left on device")
    assert harness.dispatcher.why_queued("mail") == (
        WaitReason.HOST_DOWN,
        (
            "host 'a' gets no executions for a while: "
            "several starts in a row failed; the last one: no space left on device"
        ),
    )
    assert not harness.dispatcher.up
    assert await harness.state(failing[5]) is State.QUEUED
    trial = await harness.announced.reaches(failing[5].id, State.FAILED)
    assert trial.times.claim_time
    assert harness.report("a").last_error_time
    harness.runners["a"].fails = lambda assignment: ""
    closing = await harness.announced.reaches(failing[6].id, State.SUCCEEDED)
    assert closing.times.claim_time
    assert closing.times.claim_time - trial.times.claim_time >= timedelta(seconds=0.49), "one trial at a time"
    await harness.announced.reaches((await harness.enqueue()).id, State.SUCCEEDED)
    assert (harness.report("a").availability, harness.report("a").last_error) == (
        Availability.UP,
        "no space left on device",
    )


async def test_resume_closes_the_circuit(make: Make) -> None:
    harness = make({"a": 1}, hold=False)
    harness.runners["a"].fails = lambda assignment: "no space left on device"
    for execution in [await harness.enqueue() for _ in range(5)]:
        await harness.announced.reaches(execution.id, State.FAILED)
    await harness.becomes("a", Availability.CIRCUIT_OPEN)
    harness.runners["a"].fails = lambda assignment: ""
    waits = await harness.enqueue()
    await harness.idle()
    assert await harness.state(waits) is State.QUEUED
    assert (await harness.dispatcher.resume_host("a")).availability is Availability.UP
    await harness.announced.reaches(waits.id, State.SUCCEEDED)


async def test_starts_that_fail_for_the_jobs_fault_open_no_circuit(make: Make) -> None:
    harness = make({"a": 1}, hold=False)
    harness.runners["a"].fails = lambda assignment: "the job's fault"
    for execution in [await harness.enqueue() for _ in range(12)]:
        await harness.announced.reaches(execution.id, State.FAILED)
    assert harness.report("a").availability is Availability.UP


async def test_a_start_that_succeeds_begins_the_count_anew(make: Make) -> None:
    harness = make({"a": 1}, hold=False)
    harness.runners["a"].fails = lambda assignment: "busy" if assignment.execution.task_id == "bad" else ""
    for _ in range(3):
        for execution in [await harness.enqueue("bad") for _ in range(4)]:
            await harness.announced.reaches(execution.id, State.FAILED)
        await harness.announced.reaches((await harness.enqueue("good")).id, State.SUCCEEDED)
    assert harness.report("a").availability is Availability.UP


async def test_an_open_circuit_leaves_the_other_hosts_alone(make: Make) -> None:
    harness = make({"a": 1, "b": 1}, hold=False)
    harness.runners["a"].fails = lambda assignment: "cannot allocate memory"
    executions = [await harness.enqueue() for _ in range(30)]
    for execution in executions:
        await harness.announced.until(
            lambda: any(each.id == execution.id and each.state.final for each in harness.announced.all)  # noqa: B023
        )
    failed = [each for each in harness.announced.all if each.state is State.FAILED]
    assert len(failed) <= 5
    assert {each.host for each in failed} == {"a"}
    assert harness.dispatcher.up
