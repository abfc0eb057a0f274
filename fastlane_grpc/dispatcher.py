"""Gives work to the hosts: as much as they have places for, as soon as there is any, each execution to one thread at a
time.

A host that is down, or hangs, keeps what is on it and gets nothing more; the others go on.
"""

import asyncio
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Protocol, TypeVar

import structlog

from fastlane_grpc.errors import DiskFull, ExecutionNotFound, ServerStopping, StoreFailed
from fastlane_grpc.machine.shortage import is_machine_failure
from fastlane_grpc.model import Assignment, Execution, HostReport, Outcome, Reason, State, Stop, Waiting, utc_now
from fastlane_grpc.runner import AbandonedLog, CertainEnd, HostDown, Leave, Mailbox, Runner, StopCommand
from fastlane_grpc.schedule import expired_from
from fastlane_grpc.store import Pending, Store
from fastlane_grpc.supervisor import ALONE, Supervisor, report
from fastlane_grpc.wakeup import Wakeup

T = TypeVar("T")

# So many are claimed, or promoted, in one transaction: what else is to be written waits for no more than that.
CLAIMS_AT_ONCE = 256
# The longest pause after which an execution is taken up again whose machine failed.
LONGEST_PAUSE_SECONDS = 30.0
PROMOTIONS_AT_ONCE = 256
# The longest sleep while an execution waits for a time: a jump of the wall clock is noticed after that long.
LONGEST_SLEEP_SECONDS = 30.0
SHORTEST_SLEEP_SECONDS = 0.001

log = structlog.get_logger(__name__)


class HostView(Protocol):
    """What the dispatcher has to know of a host."""

    @property
    def name(self) -> str:
        """What executions say they ran on."""

    @property
    def up(self) -> bool:
        """Whether it takes executions."""

    @property
    def error(self) -> str:
        """Why it takes none; empty if it does."""

    def report(self, *, running: int, max_running: int) -> HostReport:
        """All that is to be told of it."""


@dataclass(frozen=True, slots=True)
class HostPlaces:
    """A host, who runs what has a place on it, and how many places there are."""

    host: HostView
    runner: Runner
    max_running: int


class Dispatcher:
    """Lives on the loop. Every execution has a thread to itself: a daemon, so that one that hangs does not keep the
    server from ending.

    `hosts` are in the order in which they are preferred where all else is equal; at most `max_running` executions run
    on all of them together. `gone` is given what an earlier server left on a host that is not among them."""

    def __init__(
        self,
        store: Store,
        hosts: Sequence[HostPlaces],
        *,
        gone: Runner,
        max_running: int,
        retry_seconds: float = 1.0,
        supervisor: Supervisor = ALONE,
        now: Callable[[], datetime] = utc_now,
        longest_sleep_seconds: float = LONGEST_SLEEP_SECONDS,
    ) -> None:
        self._store = store
        self._now = now
        self._longest_sleep_seconds = longest_sleep_seconds
        # When an execution is due or has expired, the earliest one; None: nothing waits for a time.
        self._due_time: datetime | None = None
        self._max_running = max_running
        self._retry_seconds = retry_seconds
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._wake = Wakeup()
        self._hosts = [_Host(each, _Rest(self._loop, self._wake)) for each in hosts]
        # No place is taken by what is on hosts that are not there.
        self._gone = _Host(HostPlaces(_Nowhere(), gone, 0), _Rest(self._loop, self._wake))
        self._rest = _Rest(self._loop, self._wake)
        # What waits for a store that could not write, and was logged.
        self._store_waits: set[str] = set()
        self._closing = False
        # Of each execution that was claimed and is not over. A stop may be announced before the claim is answered:
        # whichever comes first makes the inbox.
        self._claims: dict[str, _Claim] = {}
        self._on_thread: dict[str, _Claim] = {}
        # There are as many threads as there were executions on them at a time, and each takes what is first in the
        # queue.
        self._threads = 0
        self._work: queue.SimpleQueue[tuple[_Host, Assignment, _Claim] | None] = queue.SimpleQueue()
        self._one_ended = asyncio.Event()

    @property
    def running(self) -> int:
        """Places that are taken on all hosts; more than the limit where more were adopted."""
        return sum(host.running for host in self._hosts)

    @property
    def places(self) -> tuple[int, int]:
        """Of those that can be had just now: how many are taken, and how many there are."""
        up = [host for host in self._hosts if host.view.up]
        taken, there_are = sum(host.running for host in up), sum(host.max_running for host in up)
        if taken < there_are and self.running >= self._max_running:
            return self.running, self._max_running
        return taken, there_are

    @property
    def up(self) -> bool:
        """Whether a host takes executions."""
        return any(host.view.up for host in self._hosts)

    @property
    def host_error(self) -> str:
        """Why no host takes anything; empty if one does."""
        return "" if self.up else "; ".join(host.view.error for host in self._hosts)

    @property
    def hosts(self) -> Sequence[HostReport]:
        """Each host as it is now, in their order."""
        return [host.view.report(running=host.running, max_running=host.max_running) for host in self._hosts]

    def waiting(self, execution_id: str) -> Waiting | None:
        """What an execution that was claimed waits for before it can begin."""
        claim = self._on_thread.get(execution_id)
        return claim.mailbox.waiting if claim else None

    def stop_unstored(self, execution_id: str, stop: Stop) -> bool:
        """Whether an execution has a runner, which is then given an order to stop that is not on disk."""
        claim = self._claims.get(execution_id)
        if claim is not None:
            claim.tell(stop)
        return claim is not None

    def news(self, executions: Sequence[Execution]) -> None:
        """Every change of every execution, in order, as the store announces them."""
        for execution in executions:
            if execution.state in {State.SCHEDULED, State.QUEUED}:
                self._expect(execution)
            if execution.state is State.QUEUED:
                self._claims.pop(execution.id, None)
                self._wake.set()
            elif execution.state is State.STOPPING and execution.stop:
                self._claims.setdefault(execution.id, _Claim()).tell(execution.stop)

    def host_changed(self, name: str) -> None:
        """This host is up again, or down."""
        host = self._host(name)
        if host.view.up:
            host.rest.end()
            self._rest.end()
        self._wake.set()

    async def run(self) -> None:
        """Takes up what an earlier server left, then what is due, until it is closed."""
        with suppress(ServerStopping):
            await self._adopt()
            self._expect_at(await self._known_to_the_store(self._store.next_due_time))
            while not self._closing:
                self._wake.clear()
                await self._promote()
                await self._resume()
                await self._claim()
                await self._wake.wait(self._sleep_seconds())

    async def close(self, patience_seconds: float = 1.0) -> None:
        """Takes nothing new, and has the threads leave their containers as they are; those that hang are waited for no
        longer than that."""
        self._closing = True
        for rest in (self._rest, self._gone.rest, *(host.rest for host in self._hosts)):
            rest.end()
        for claim in self._on_thread.values():
            claim.mailbox.put(Leave())
        for _ in range(self._threads):
            self._work.put(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                while self._on_thread:
                    self._one_ended.clear()
                    await self._one_ended.wait()

    # ---- what there is to do

    async def _adopt(self) -> None:
        for assignment in await self._known_to_the_store(self._store.unfinished):
            self._begin(assignment)
            # To start a thousand threads takes a while: calls are answered in between.
            await asyncio.sleep(0)

    async def _known_to_the_store(self, ask: Callable[[], Pending[T]]) -> T:
        """What an earlier server left."""
        while True:
            try:
                return await ask()
            except (DiskFull, StoreFailed) as error:
                _warn("adoption waits for the store", error=str(error))
                await asyncio.sleep(self._retry_seconds)

    async def _resume(self) -> None:
        """Those that were left when their host went away, now that it is back; as they are on disk by now."""
        for host in (*self._hosts, self._gone):
            for execution_id in sorted(host.left - host.paused):
                if not self._ready(host):
                    break
                try:
                    assignment = await self._store.assignment(execution_id)
                except (DiskFull, StoreFailed) as error:
                    self._begin_rest(
                        self._rest, "an execution waits for the store", execution_id=execution_id, error=str(error)
                    )
                    return
                host.left.discard(execution_id)
                claim = self._claims.get(execution_id)
                if claim and claim.stop and not assignment.execution.stop:
                    # The runner that left knew the order; it is not on disk yet.
                    claim.mailbox.put(StopCommand(claim.stop))
                self._begin(assignment)

    def _expect(self, execution: Execution) -> None:
        """Sleeps no longer than until this execution is due, or has expired."""
        self._expect_at(execution.times.due_time if execution.state is State.SCHEDULED else None)
        self._expect_at(expired_from(execution.expire_time) if execution.expire_time else None)

    def _expect_at(self, time: datetime | None) -> None:
        if time and (self._due_time is None or time < self._due_time):
            self._due_time = time
            self._wake.set()

    async def _promote(self) -> None:
        """Has the store queue what is due and end what has expired: one batch, so that claims come in between."""
        due_time = self._due_time
        if due_time is None or self._now() < due_time or self._rest:
            return
        # Forgotten before the store is asked: what is announced while it looks may be earlier than its answer.
        self._due_time = None
        try:
            promotion = await self._store.promote(PROMOTIONS_AT_ONCE)
        except (DiskFull, StoreFailed) as error:
            self._due_time = due_time
            self._wait_for_store("what is due waits for the store", error=str(error))
            return
        self._store_waits.discard("what is due waits for the store")
        self._expect_at(due_time if promotion.more else promotion.next_time)

    def _sleep_seconds(self) -> float | None:
        """Until something is due, if anything waits for a time. While the store is left alone that is not looked at."""
        if self._due_time is None or self._rest:
            return None
        seconds = (self._due_time - self._now()).total_seconds()
        return min(max(seconds, SHORTEST_SLEEP_SECONDS), self._longest_sleep_seconds)

    async def _claim(self) -> None:
        while places := list(islice(self._free_places(), CLAIMS_AT_ONCE)):
            try:
                claimed = await self._store.claim_on(places)
            except (DiskFull, StoreFailed) as error:
                self._wait_for_store("the queue waits for the store", error=str(error))
                return
            if claimed:
                self._store_waits.clear()
            for assignment in claimed:
                self._begin(assignment)
            if len(claimed) < len(places):
                return

    def _free_places(self) -> Iterator[str]:
        """The host of each place that is free, in the order in which they are to be taken: always on the host of whose
        places the largest share is free."""
        free = {
            host: host.max_running - host.running
            for host in self._hosts
            if self._ready(host) and host.running < host.max_running
        }
        for _ in range(self._max_running - self.running):
            if not free:
                return
            host = max(free, key=lambda each: free[each] / each.max_running)
            yield host.view.name
            free[host] -= 1
            if not free[host]:
                del free[host]

    def _take_up_later(self, host: "_Host", execution_id: str) -> None:
        """What the machine has too little of may be there in a moment; the others on the host do not wait for that."""
        host.pauses[execution_id] = pause = min(
            host.pauses.get(execution_id, self._retry_seconds / 2) * 2, LONGEST_PAUSE_SECONDS
        )
        host.paused.add(execution_id)

        def is_over() -> None:
            host.paused.discard(execution_id)
            self._wake.set()

        self._loop.call_later(pause, is_over)

    def _host(self, name: str) -> "_Host":
        return next((host for host in self._hosts if host.view.name == name), self._gone)

    def _ready(self, host: "_Host") -> bool:
        return host.view.up and not host.rest and not self._rest and not self._closing

    def _begin_rest(self, rest: "_Rest", why: str, **ids: str) -> None:
        """Something failed that may fail again at once: nothing is taken up, by one host or by any, for a while."""
        _warn(why, retry_seconds=self._retry_seconds, **ids)
        rest.begin(self._retry_seconds)

    def _wait_for_store(self, why: str, **ids: str) -> None:
        """The same, said once until the store has written a claim again."""
        if why in self._store_waits:
            self._rest.begin(self._retry_seconds)
            return
        self._store_waits.add(why)
        self._begin_rest(self._rest, why, **ids)

    # ---- one execution

    def _begin(self, assignment: Assignment) -> None:
        execution = assignment.execution
        host = self._host(execution.host)
        if self._closing:
            return  # the next server finds it
        if execution.id in self._on_thread:
            host.behind[execution.id] = assignment
            return
        claim = self._claims.setdefault(execution.id, _Claim())
        claim.stop = claim.stop or execution.stop
        try:
            self._have_threads(len(self._on_thread) + 1)
        except RuntimeError as error:
            host.left.add(execution.id)
            self._begin_rest(self._rest, "no thread is to be had", execution_id=execution.id, error=str(error))
            return
        self._on_thread[execution.id] = claim
        host.on_thread.add(execution.id)
        self._work.put((host, assignment, claim))

    def _have_threads(self, count: int) -> None:
        # They are kept: to start one takes the loop up to a millisecond where others want the interpreter too.
        while self._threads < count:
            self._supervisor.thread(f"runner-{self._threads + 1}", self._work_until_closed, restart=True).start()
            self._threads += 1

    def _work_until_closed(self) -> None:
        while work := self._work.get():
            self._run(*work)

    def _run(self, host: "_Host", assignment: Assignment, claim: "_Claim") -> None:
        host_down = machine_failed = False
        try:
            host.runner.run(assignment, claim.mailbox)
        except (HostDown, ServerStopping):
            host_down = True
        except BaseException as error:
            # A failure of the machine says nothing about the container, which goes on: the execution is taken up again.
            machine_failed = isinstance(error, Exception) and is_machine_failure(error)
            if machine_failed:
                _warn("an execution is left for a while", execution_id=assignment.execution.id, error=repr(error))
            else:
                host_down = not self._ended_as_lost(host, assignment.execution, error)
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                self._loop.call_soon_threadsafe(
                    self._ended, host, assignment.execution.id, claim, host_down, machine_failed
                )

    def _ended_as_lost(self, host: "_Host", execution: Execution, error: BaseException) -> bool:
        """Whether it is over. One that is not is taken up again: nobody else would."""
        try:
            self._end_as_lost(host, execution, error)
        except BaseException as defect:
            report(f"the end of execution {execution.id}", defect)
            return False
        return True

    def _end_as_lost(self, host: "_Host", execution: Execution, error: BaseException) -> None:
        """A defect. It must not leave the execution unfinished for ever; one that is final, or was pruned since, stays
        as it is.

        Where the record was sealed before, it decides how the execution ended.
        """
        with suppress(OSError):
            log.error(
                "the runner failed",
                execution_id=execution.id,
                job_id=execution.job_id,
                task_id=execution.task_id,
                exc_info=error,
            )
        outcome = Outcome(Reason.CONTAINER_GONE, f"a defect of fastlane, see the server's log for {execution.id}")
        with suppress(ServerStopping, ExecutionNotFound):
            remains = _remains(host.runner, execution.id, outcome.detail)
            end = remains.end or CertainEnd(State.LOST, outcome, None, None, None)
            self._store.finish(
                execution.id,
                state=end.state,
                outcome=end.outcome,
                logs=remains.logs,
                log_bytes=remains.log_bytes,
                start_time=end.start_time,
                exit_time=end.exit_time,
                first_byte_time=end.first_byte_time,
                seal_time=utc_now(),
            ).result()

    def _ended(self, host: "_Host", execution_id: str, claim: "_Claim", host_down: bool, machine_failed: bool) -> None:
        del self._on_thread[execution_id]
        host.on_thread.discard(execution_id)
        # Another claim, or none, in its place: it was requeued. That was announced before the thread went on, so it is
        # known here.
        if self._claims.get(execution_id) is claim:
            del self._claims[execution_id]
            if host_down or machine_failed:
                host.left.add(execution_id)
        if machine_failed:
            self._take_up_later(host, execution_id)
        else:
            host.pauses.pop(execution_id, None)
        if host_down and host.view.up and not self._closing:
            # The runner got no answer from a host that seems to be there: no word that it is back would ever come.
            self._begin_rest(host.rest, "the host does not answer", execution_id=execution_id, host=host.view.name)
        for each in self._hosts:
            if execution_id in each.behind:
                self._begin(each.behind.pop(execution_id))
        self._one_ended.set()
        self._wake.set()


def _remains(runner: Runner, execution_id: str, why: str) -> AbandonedLog:
    try:
        return runner.abandon(execution_id, why)
    except (ServerStopping, ExecutionNotFound):
        raise
    except Exception as error:
        # The defect may be in what ends a log, too.
        with suppress(OSError):
            log.error("the log of a lost execution is not ended", execution_id=execution_id, exc_info=error)
        return AbandonedLog()


class _Rest:
    """A while in which nothing is taken up. At its end the dispatcher looks again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Wakeup) -> None:
        self._loop = loop
        self._wake = wake
        self._end: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return self._end is not None

    def begin(self, seconds: float) -> None:
        """One that has begun already begins anew."""
        self.end()
        self._end = self._loop.call_later(seconds, self.end)

    def end(self) -> None:
        if self._end:
            self._end.cancel()
            self._end = None
        self._wake.set()


class _Host:
    """A host as the dispatcher sees it, with those who have a place on it."""

    def __init__(self, places: HostPlaces, rest: _Rest) -> None:
        self.view = places.host
        self.runner = places.runner
        self.max_running = places.max_running
        self.rest = rest
        # Those on a thread; those that are to be taken up again when the host is back; and those that were requeued,
        # here or elsewhere, and claimed again for this host, while the thread of their first claim has not ended.
        self.on_thread: set[str] = set()
        self.left: set[str] = set()
        self.behind: dict[str, Assignment] = {}
        # Of those that are to be taken up again: which wait because the machine failed, and how long they waited the
        # last time.
        self.paused: set[str] = set()
        self.pauses: dict[str, float] = {}

    @property
    def running(self) -> int:
        return len(self.on_thread) + len(self.left) + len(self.behind)


class _Nowhere:
    """Stands for all hosts that are not configured any more. What is to be done about what was on them needs no
    engine."""

    name = ""
    up = True
    error = ""

    def report(self, *, running: int, max_running: int) -> HostReport:
        raise NotImplementedError("it is nobody's host")


@dataclass(slots=True, eq=False)
class _Claim:
    """A claim of an execution: its inbox, and the last order to stop that its runner knows of."""

    mailbox: Mailbox = field(default_factory=Mailbox)
    stop: Stop | None = None

    def tell(self, stop: Stop) -> None:
        # The same order is announced again with every other change of an execution that stops.
        if stop != self.stop:
            self.stop = stop
            self.mailbox.put(StopCommand(stop))


def _warn(event: str, **fields: object) -> None:
    with suppress(OSError):  # the log may be on the disk that is full
        log.warning(event, **fields)
