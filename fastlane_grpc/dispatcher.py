"""The dispatcher: claims due executions for the free slots of hosts, and runs each execution on one thread at a time.

The dispatcher guarantees the limits on running executions. A host that is down or hangs keeps its executions and gets
no new ones; the other hosts are not held up.
"""

import asyncio
import queue
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TypeVar

import structlog

from fastlane_grpc.circuit import OPEN_SECONDS, Circuit
from fastlane_grpc.errors import DiskFull, ExecutionNotFound, HostNotFound, ServerStopping, StoreFailed
from fastlane_grpc.machine.shortage import is_machine_failure
from fastlane_grpc.model import (
    Assignment,
    Execution,
    Hold,
    HostReport,
    Outcome,
    Reason,
    State,
    Stop,
    Waiting,
    WaitReason,
    utc_now,
)
from fastlane_grpc.pools import Pools
from fastlane_grpc.runner import AbandonedLog, CertainEnd, HostDown, LeaveCommand, Mailbox, Runner, StopCommand
from fastlane_grpc.schedule import expired_from
from fastlane_grpc.slots import HostSlots, HostState, SlotsBackoff, SlotsOfHost, SlotsOfHosts
from fastlane_grpc.store import Pending, Store
from fastlane_grpc.supervisor import ALONE, Supervisor, report
from fastlane_grpc.wakeup import Wakeup

T = TypeVar("T")

# Most executions that one transaction claims or promotes. Other writes wait for no more than that.
CLAIMS_AT_ONCE = 256
# Threads that leave their containers at the same time when the server stops, and the time for which they may hang.
LEAVING_AT_ONCE = 64
LEAVE_SECONDS = 0.05
# The longest pause before an execution is resumed after a failure of the machine.
LONGEST_PAUSE_SECONDS = 30.0
PROMOTIONS_AT_ONCE = 256
# The longest sleep while an execution waits for a time. A jump of the wall clock is noticed after that time.
LONGEST_SLEEP_SECONDS = 30.0
SHORTEST_SLEEP_SECONDS = 0.001

log = structlog.get_logger(__name__)


class Dispatcher:
    """Dispatches executions to hosts. Lives on the event loop.

    Every execution has a thread of its own. The threads are daemons, so that a thread that hangs does not keep the
    server from ending. `hosts` are in order of preference, which decides where all else is equal. At most `max_running`
    executions run on all hosts together. `pools` say which tasks a host takes; without them every host takes all.
    `removed` runs the executions that an earlier server left on a host that is not configured any more.
    """

    def __init__(
        self,
        store: Store,
        hosts: Sequence[HostSlots],
        *,
        removed: Runner,
        max_running: int,
        pools: Pools | None = None,
        retry_seconds: float = 1.0,
        circuit_seconds: float = OPEN_SECONDS,
        supervisor: Supervisor = ALONE,
        now: Callable[[], datetime] = utc_now,
        longest_sleep_seconds: float = LONGEST_SLEEP_SECONDS,
    ) -> None:
        self._store = store
        self._now = now
        self._longest_sleep_seconds = longest_sleep_seconds
        # The earliest time at which an execution becomes due or expires; None: no execution waits for a time.
        self._due_time: datetime | None = None
        # The wall clock when rates were last looked at.
        self._last_time = now()
        self._retry_seconds = retry_seconds
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._wake = Wakeup()
        pools = pools or Pools(hosts=[each.host.name for each in hosts])
        self._hosts = SlotsOfHosts(
            [
                SlotsOfHost(
                    each,
                    SlotsBackoff(self._loop, self._wake),
                    pools=pools.of_host(each.host.name),
                    drains=store.drained_hosts,
                    circuit=Circuit(open_seconds=circuit_seconds),
                )
                for each in hosts
            ],
            pools,
            max_running=max_running,
        )
        # Executions on removed hosts take no slot.
        self._removed = SlotsOfHost(
            HostSlots(_NoHost(), removed, 0), SlotsBackoff(self._loop, self._wake), drains={}, circuit=Circuit()
        )
        # Called after a host was drained or resumed, and when its circuit was opened or closed.
        self.on_availability_change: Callable[[], None] = lambda: None
        store.limited_tasks.on_change = self._wake.set
        self._backoff = SlotsBackoff(self._loop, self._wake)
        # The warnings of a store that cannot write, each logged once until the store writes again.
        self._store_warnings: set[str] = set()
        self._closing = False
        # The claim of each execution that was claimed and has not ended. The store may announce a stop before it
        # answers the claim: whichever comes first makes the mailbox.
        self._claims: dict[str, _Claim] = {}
        self._on_thread: dict[str, _Claim] = {}
        # As many threads as executions ran at one time. Each thread takes the first item of the queue; None ends it.
        self._threads = 0
        self._work: queue.SimpleQueue[tuple[SlotsOfHost, Assignment, _Claim] | None] = queue.SimpleQueue()
        self._execution_ended = asyncio.Event()

    @property
    def running(self) -> int:
        """Taken slots of all hosts. More than the limit if an earlier server left more executions than that."""
        return self._hosts.running

    @property
    def up(self) -> bool:
        """Whether executions can be run: the health of the engines. See `SlotsOfHosts.serve`."""
        return self._hosts.serve

    @property
    def hosts(self) -> Sequence[HostReport]:
        """The current state of each host, in the order of the configuration."""
        return [host.report() for host in self._hosts.all]

    @property
    def host_states(self) -> Sequence[HostState]:
        """The state of each host, in the order of the configuration."""
        return [host.state for host in self._hosts.all]

    def pool_of_task(self, task_id: str) -> str:
        """Return the name of the task's pool; empty if it has none."""
        return self._hosts.pool_of_task(task_id)

    def why_queued_in(self, pool: str) -> tuple[WaitReason, str] | None:
        """Return why queued executions of a pool wait; None: a slot is about to be assigned."""
        return self._hosts.why_queued_in(pool)

    @property
    def claimed_waits(self) -> Counter[WaitReason]:
        """The number of claimed executions that wait before their containers can start, by reason."""
        waits = [claim.mailbox.waiting for claim in self._on_thread.values()]
        return Counter(waiting.reason for waiting in waits if waiting)

    def why_queued(self, task_id: str) -> tuple[WaitReason, str] | None:
        """Return why queued executions of a task wait for a host or a slot; None: a slot is about to be assigned."""
        return self._hosts.why_queued(task_id)

    async def drain_host(self, name: str, note: str) -> HostReport:
        """Assign no further executions to a host, until `resume_host`. HostNotFound."""
        host = self._named(name)
        await self._store.drain_host(name, note, self._availability_changed)
        return host.report()

    async def resume_host(self, name: str) -> HostReport:
        """Assign executions to a drained host again, and close its circuit. HostNotFound."""
        host = self._named(name)

        def resumed() -> None:
            host.circuit.close()
            self._availability_changed()

        await self._store.resume_host(name, resumed)
        return host.report()

    def waiting(self, execution_id: str) -> Waiting | None:
        """Return what a claimed execution waits for before its container can start."""
        claim = self._on_thread.get(execution_id)
        return claim.mailbox.waiting if claim else None

    def stop_unstored(self, execution_id: str, stop: Stop) -> bool:
        """Pass a stop that is not on disk to the runner of this execution. Return whether the execution has a claim."""
        claim = self._claims.get(execution_id)
        if claim is not None:
            claim.request_stop(stop)
        return claim is not None

    def on_change(self, executions: Sequence[Execution]) -> None:
        """Handle the changes of executions that the store announces, in order."""
        for execution in executions:
            if execution.state in {State.SCHEDULED, State.QUEUED}:
                self._schedule_wakeup(execution)
            if execution.state is State.RUNNING:
                self._started(execution)
            if execution.state is State.QUEUED:
                self._claims.pop(execution.id, None)
                self._wake.set()
            elif execution.state is State.STOPPING and execution.stop:
                self._claims.setdefault(execution.id, _Claim()).request_stop(execution.stop)

    def wake_at(self, time: datetime | None) -> None:
        """Look for what is due at this time."""
        self._schedule_wakeup_at(time)

    def host_changed(self, name: str) -> None:
        """Handle a change of whether this host is up."""
        host = self._host(name)
        if host.view.up:
            host.backoff.stop()
            self._backoff.stop()
        self._wake.set()

    async def run(self) -> None:
        """Recover the executions that an earlier server left, then dispatch what is due, until `close`."""
        with suppress(ServerStopping):
            await self._recover()
            self._schedule_wakeup_at(await self._ask_store(self._store.next_due_time))
            while not self._closing:
                self._wake.clear()
                await self._promote()
                await self._release_rates()
                await self._resume()
                await self._claim()
                await self._wake.wait(self._sleep_seconds())

    async def close(self, timeout_seconds: float = 1.0) -> None:
        """Claim no more executions, and have the threads leave their containers running.

        Threads that hang are waited for no longer than `timeout_seconds`.
        """
        self._closing = True
        for backoff in (self._backoff, self._removed.backoff, *(host.backoff for host in self._hosts.all)):
            backoff.stop()
        self._work.put(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._leave_all()

    async def _leave_all(self) -> None:
        """Have the threads leave their containers, some at a time, and wait for all of them.

        Thousands of threads that woke at once would take the interpreter from the loop for minutes.
        """
        untold = list(self._on_thread)
        told: set[str] = set()
        while self._on_thread:
            self._execution_ended.clear()
            told &= self._on_thread.keys()
            while untold and len(told) < LEAVING_AT_ONCE:
                execution_id = untold.pop()
                if claim := self._on_thread.get(execution_id):
                    claim.mailbox.put(LeaveCommand())
                    told.add(execution_id)
            try:
                await asyncio.wait_for(self._execution_ended.wait(), LEAVE_SECONDS)
            except TimeoutError:
                # These hang. The next ones have their turn.
                told.clear()

    # ---- finding work

    async def _recover(self) -> None:
        for assignment in await self._ask_store(self._store.unfinished):
            self._start(assignment)
            # Starting a thousand threads takes a while: let the loop answer calls in between.
            await asyncio.sleep(0)

    async def _ask_store(self, ask: Callable[[], Pending[T]]) -> T:
        """Return the store's answer, asking again until the store can read."""
        while True:
            try:
                return await ask()
            except (DiskFull, StoreFailed) as error:
                _warn("recovery waits for the store", error=str(error))
                await asyncio.sleep(self._retry_seconds)

    async def _resume(self) -> None:
        """Start suspended executions whose host is up again, as they are on disk by now."""
        for host in (*self._hosts.all, self._removed):
            for execution_id in sorted(host.suspended - host.paused):
                if not self._ready(host):
                    break
                try:
                    assignment = await self._store.assignment(execution_id)
                except (DiskFull, StoreFailed) as error:
                    self._back_off(
                        self._backoff, "an execution waits for the store", execution_id=execution_id, error=str(error)
                    )
                    return
                host.suspended.discard(execution_id)
                claim = self._claims.get(execution_id)
                if claim and claim.stop and not assignment.execution.stop:
                    # The last runner took the stop from the mailbox, and the stop is not on disk yet.
                    claim.mailbox.put(StopCommand(claim.stop))
                self._start(assignment)

    def _schedule_wakeup(self, execution: Execution) -> None:
        """Sleep no longer than until this execution is due or has expired."""
        waits = execution.state is State.SCHEDULED and execution.hold is Hold.NONE
        self._schedule_wakeup_at(execution.times.due_time if waits else None)
        self._schedule_wakeup_at(expired_from(execution.expire_time) if execution.expire_time else None)

    def _schedule_wakeup_at(self, time: datetime | None) -> None:
        if time and (self._due_time is None or time < self._due_time):
            self._due_time = time
            self._wake.set()

    async def _promote(self) -> None:
        """Have the store queue due executions and end expired ones: one batch, so that claims come in between."""
        due_time = self._due_time
        if due_time is None or self._now() < due_time or self._backoff:
            return
        # Cleared before the store is asked: a time that is announced meanwhile may be earlier than the answer.
        self._due_time = None
        try:
            promotion = await self._store.promote(PROMOTIONS_AT_ONCE)
        except (DiskFull, StoreFailed) as error:
            self._due_time = due_time
            self._wait_for_store("what is due waits for the store", error=str(error))
            return
        self._store_warnings.discard("what is due waits for the store")
        self._schedule_wakeup_at(due_time if promotion.more else promotion.next_time)

    async def _release_rates(self) -> None:
        """Have the store let tasks start executions again whose rate allows it by now."""
        time = self._store.limited_tasks.next_start_time
        # A clock that was set back delays no task by more than its window: the store looks.
        set_back, self._last_time = self._now() < self._last_time, self._now()
        if time is None or self._backoff or (self._last_time < time and not set_back):
            return
        try:
            await self._store.release_rates(PROMOTIONS_AT_ONCE)
        except (DiskFull, StoreFailed) as error:
            self._wait_for_store("tasks at their rate wait for the store", error=str(error))

    def _sleep_seconds(self) -> float | None:
        """Return the time until an execution is due, or the rate of a task allows a start; None if nothing waits for a
        time, or during a backoff."""
        times = [time for time in (self._due_time, self._store.limited_tasks.next_start_time) if time]
        if not times or self._backoff:
            return None
        seconds = (min(times) - self._now()).total_seconds()
        return min(max(seconds, SHORTEST_SLEEP_SECONDS), self._longest_sleep_seconds)

    async def _claim(self) -> None:
        # Pools for whose hosts nothing is left to claim.
        empty: set[Sequence[str]] = set()
        while slots := list(islice(self._hosts.free_slots(self._ready, empty, self._loop.time()), CLAIMS_AT_ONCE)):
            try:
                claimed = await self._store.claim_on([host.view.name for host in slots])
            except (DiskFull, StoreFailed) as error:
                self._wait_for_store("the queue waits for the store", error=str(error))
                return
            if claimed:
                self._store_warnings.clear()
            for assignment in claimed:
                if host := self._hosts.named(assignment.execution.host):
                    host.circuit.starting(assignment.execution.id)
                self._start(assignment)
            left = Counter(host.view.name for host in slots)
            left.subtract(assignment.execution.host for assignment in claimed)
            empty |= {host.pools for host in slots if left[host.view.name] > 0}

    def _resume_later(self, host: SlotsOfHost, execution_id: str) -> None:
        """Resume an execution after a pause, as the machine was short of something.

        The other executions of the host do not wait.
        """
        host.pauses[execution_id] = pause = min(
            host.pauses.get(execution_id, self._retry_seconds / 2) * 2, LONGEST_PAUSE_SECONDS
        )
        host.paused.add(execution_id)

        def resume() -> None:
            host.paused.discard(execution_id)
            self._wake.set()

        self._loop.call_later(pause, resume)

    def _host(self, name: str) -> SlotsOfHost:
        return self._hosts.named(name) or self._removed

    def _named(self, name: str) -> SlotsOfHost:
        if host := self._hosts.named(name):
            return host
        raise HostNotFound(name)

    def _availability_changed(self) -> None:
        self._wake.set()
        self.on_availability_change()

    def _started(self, execution: Execution) -> None:
        """Note that a container has started on a host."""
        host = self._hosts.named(execution.host)
        if host and host.circuit.close():
            log.info("a start succeeded: the host gets executions again", host=host.view.name)
            self._availability_changed()

    def _note_failed_start(self, host: SlotsOfHost, execution_id: str, why: str) -> None:
        """Count a start that failed for a reason of the host's. Several in a row open the host's circuit."""
        if host.circuit.failed(why, self._now(), self._loop.time()):
            seconds = host.circuit.open_seconds
            _warn(
                f"several starts in a row failed: the host gets no executions for {seconds:g} s",
                host=host.view.name,
                execution_id=execution_id,
                error=why,
            )
            self._loop.call_later(seconds, self._wake.set)
            self._availability_changed()

    def _ready(self, host: SlotsOfHost) -> bool:
        return host.view.up and not host.backoff and not self._backoff and not self._closing

    def _back_off(self, backoff: SlotsBackoff, why: str, **ids: str) -> None:
        """Start no execution for a while, on one host or on any, after a failure that may repeat at once."""
        _warn(why, retry_seconds=self._retry_seconds, **ids)
        backoff.start(self._retry_seconds)

    def _wait_for_store(self, why: str, **ids: str) -> None:
        """Back off after a failure of the store. The log gets one warning until the store writes again."""
        if why in self._store_warnings:
            self._backoff.start(self._retry_seconds)
            return
        self._store_warnings.add(why)
        self._back_off(self._backoff, why, **ids)

    # ---- one execution

    def _start(self, assignment: Assignment) -> None:
        execution = assignment.execution
        host = self._host(execution.host)
        if self._closing:
            return  # the next server recovers the execution
        if execution.id in self._on_thread:
            host.superseded[execution.id] = assignment
            return
        claim = self._claims.setdefault(execution.id, _Claim())
        claim.stop = claim.stop or execution.stop
        try:
            self._have_threads(len(self._on_thread) + 1)
        except RuntimeError as error:
            host.suspended.add(execution.id)
            self._back_off(self._backoff, "no thread is to be had", execution_id=execution.id, error=str(error))
            return
        self._on_thread[execution.id] = claim
        host.on_thread.add(execution.id)
        self._work.put((host, assignment, claim))

    def _have_threads(self, count: int) -> None:
        # Threads are kept: starting one takes the loop up to a millisecond while other threads want the interpreter.
        while self._threads < count:
            self._supervisor.thread(f"runner-{self._threads + 1}", self._work_until_closed, restart=True).start()
            self._threads += 1

    def _work_until_closed(self) -> None:
        while work := self._work.get():
            self._run(*work)
        # One thread ends the next: see `_leave_all`.
        self._work.put(None)

    def _run(self, host: SlotsOfHost, assignment: Assignment, claim: "_Claim") -> None:
        host_down = machine_failed = False
        try:
            host.runner.run(assignment, claim.mailbox)
        except (HostDown, ServerStopping):
            host_down = True
        except BaseException as error:
            # A failure of the machine says nothing about the container, which goes on: the execution is resumed later.
            machine_failed = isinstance(error, Exception) and is_machine_failure(error)
            if machine_failed:
                _warn("an execution is left for a while", execution_id=assignment.execution.id, error=repr(error))
            else:
                host_down = not self._ended_as_lost(host, assignment.execution, error)
        finally:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(
                    self._ended, host, assignment.execution.id, claim, host_down, machine_failed
                )

    def _ended_as_lost(self, host: SlotsOfHost, execution: Execution, error: BaseException) -> bool:
        """End the execution as LOST. Return False if that failed: the execution is then resumed."""
        try:
            self._end_as_lost(host, execution, error)
        except BaseException as defect:
            report(f"the end of execution {execution.id}", defect)
            return False
        return True

    def _end_as_lost(self, host: SlotsOfHost, execution: Execution, error: BaseException) -> None:
        """End an execution whose runner failed with a defect, so that it is not unfinished for ever.

        An execution that is final, or was pruned since, stays as it is. A record that was sealed before decides how the
        execution ended.
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

    def _ended(
        self, host: SlotsOfHost, execution_id: str, claim: "_Claim", host_down: bool, machine_failed: bool
    ) -> None:
        del self._on_thread[execution_id]
        host.on_thread.discard(execution_id)
        if claim.mailbox.start_failure:
            self._note_failed_start(host, execution_id, claim.mailbox.start_failure)
        host.circuit.ended(execution_id)
        # Another claim, or none, is here now if the execution was requeued. The requeue was announced before the thread
        # went on, so it is known here.
        if self._claims.get(execution_id) is claim:
            del self._claims[execution_id]
            if host_down or machine_failed:
                host.suspended.add(execution_id)
        if machine_failed:
            self._resume_later(host, execution_id)
        else:
            host.pauses.pop(execution_id, None)
        if host_down and host.view.up and not self._closing:
            # The runner got no answer from a host that seems to be up: no notice that it is back would ever come.
            self._back_off(host.backoff, "the host does not answer", execution_id=execution_id, host=host.view.name)
        for each in self._hosts.all:
            if execution_id in each.superseded:
                self._start(each.superseded.pop(execution_id))
        self._execution_ended.set()
        self._wake.set()


def _remains(runner: Runner, execution_id: str, why: str) -> AbandonedLog:
    try:
        return runner.abandon(execution_id, why)
    except (ServerStopping, ExecutionNotFound):
        raise
    except Exception as error:
        # The defect may be in the code that ends a log, too.
        with suppress(OSError):
            log.error("the log of a lost execution is not ended", execution_id=execution_id, exc_info=error)
        return AbandonedLog()


class _NoHost:
    """A stand-in for all hosts that are not configured any more. Ending their executions needs no engine."""

    name = ""
    up = True
    error = ""

    def report(self, *, running: int, max_running: int) -> HostReport:
        raise NotImplementedError("a removed host has no report")


@dataclass(slots=True, eq=False)
class _Claim:
    """A claim of an execution: its mailbox, and the last stop that its runner knows of."""

    mailbox: Mailbox = field(default_factory=Mailbox)
    stop: Stop | None = None

    def request_stop(self, stop: Stop) -> None:
        # The same stop is announced again with every other change of a stopping execution.
        if stop != self.stop:
            self.stop = stop
            self.mailbox.put(StopCommand(stop))


def _warn(event: str, **fields: object) -> None:
    with suppress(OSError):  # the log may be on the disk that is full
        log.warning(event, **fields)
