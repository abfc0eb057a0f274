"""The dispatcher: claims due executions for the free slots of hosts, and runs each execution on one thread at a time.

The dispatcher guarantees the limits on running executions. A host that is down or hangs keeps its executions and gets
no new ones; the other hosts are not held up.
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
from fastlane_grpc.model import Assignment, Execution, Hold, HostReport, Outcome, Reason, State, Stop, Waiting, utc_now
from fastlane_grpc.runner import AbandonedLog, CertainEnd, HostDown, LeaveCommand, Mailbox, Runner, StopCommand
from fastlane_grpc.schedule import expired_from
from fastlane_grpc.store import Pending, Store
from fastlane_grpc.supervisor import ALONE, Supervisor, report
from fastlane_grpc.wakeup import Wakeup

T = TypeVar("T")

# Most executions that one transaction claims or promotes. Other writes wait for no more than that.
CLAIMS_AT_ONCE = 256
# The longest pause before an execution is resumed after a failure of the machine.
LONGEST_PAUSE_SECONDS = 30.0
PROMOTIONS_AT_ONCE = 256
# The longest sleep while an execution waits for a time. A jump of the wall clock is noticed after that time.
LONGEST_SLEEP_SECONDS = 30.0
SHORTEST_SLEEP_SECONDS = 0.001

log = structlog.get_logger(__name__)


class HostView(Protocol):
    """The part of a host that the dispatcher needs."""

    @property
    def name(self) -> str:
        """The name that executions on this host carry."""

    @property
    def up(self) -> bool:
        """Whether the host takes executions."""

    @property
    def error(self) -> str:
        """Why the host takes no executions; empty if it takes some."""

    def report(self, *, running: int, max_running: int) -> HostReport:
        """Return the state of the host for callers, with these counts."""


@dataclass(frozen=True, slots=True)
class HostSlots:
    """A host, the runner of its executions, and its number of slots."""

    host: HostView
    runner: Runner
    max_running: int


class Dispatcher:
    """Dispatches executions to hosts. Lives on the event loop.

    Every execution has a thread of its own. The threads are daemons, so that a thread that hangs does not keep the
    server from ending. `hosts` are in order of preference, which decides where all else is equal. At most `max_running`
    executions run on all hosts together. `removed` runs the executions that an earlier server left on a host that is
    not configured any more.
    """

    def __init__(
        self,
        store: Store,
        hosts: Sequence[HostSlots],
        *,
        removed: Runner,
        max_running: int,
        retry_seconds: float = 1.0,
        supervisor: Supervisor = ALONE,
        now: Callable[[], datetime] = utc_now,
        longest_sleep_seconds: float = LONGEST_SLEEP_SECONDS,
    ) -> None:
        self._store = store
        self._now = now
        self._longest_sleep_seconds = longest_sleep_seconds
        # The earliest time at which an execution becomes due or expires; None: no execution waits for a time.
        self._due_time: datetime | None = None
        self._max_running = max_running
        self._retry_seconds = retry_seconds
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._wake = Wakeup()
        self._hosts = [_Host(each, _Backoff(self._loop, self._wake)) for each in hosts]
        # Executions on removed hosts take no slot.
        self._removed = _Host(HostSlots(_NoHost(), removed, 0), _Backoff(self._loop, self._wake))
        self._backoff = _Backoff(self._loop, self._wake)
        # The warnings of a store that cannot write, each logged once until the store writes again.
        self._store_warnings: set[str] = set()
        self._closing = False
        # The claim of each execution that was claimed and has not ended. The store may announce a stop before it
        # answers the claim: whichever comes first makes the mailbox.
        self._claims: dict[str, _Claim] = {}
        self._on_thread: dict[str, _Claim] = {}
        # As many threads as executions ran at one time. Each thread takes the first item of the queue.
        self._threads = 0
        self._work: queue.SimpleQueue[tuple[_Host, Assignment, _Claim] | None] = queue.SimpleQueue()
        self._execution_ended = asyncio.Event()

    @property
    def running(self) -> int:
        """Taken slots of all hosts. More than the limit if an earlier server left more executions than that."""
        return sum(host.running for host in self._hosts)

    @property
    def slots(self) -> tuple[int, int]:
        """Number of taken slots, and of all slots, of the hosts that are up."""
        up = [host for host in self._hosts if host.view.up]
        taken, total = sum(host.running for host in up), sum(host.max_running for host in up)
        if taken < total and self.running >= self._max_running:
            return self.running, self._max_running
        return taken, total

    @property
    def up(self) -> bool:
        """Whether at least one host takes executions."""
        return any(host.view.up for host in self._hosts)

    @property
    def host_error(self) -> str:
        """Why no host takes executions; empty if one does."""
        return "" if self.up else "; ".join(host.view.error for host in self._hosts)

    @property
    def hosts(self) -> Sequence[HostReport]:
        """The current state of each host, in the order of the configuration."""
        return [host.view.report(running=host.running, max_running=host.max_running) for host in self._hosts]

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
                await self._resume()
                await self._claim()
                await self._wake.wait(self._sleep_seconds())

    async def close(self, timeout_seconds: float = 1.0) -> None:
        """Claim no more executions, and have the threads leave their containers running.

        Threads that hang are waited for no longer than `timeout_seconds`.
        """
        self._closing = True
        for backoff in (self._backoff, self._removed.backoff, *(host.backoff for host in self._hosts)):
            backoff.stop()
        for claim in self._on_thread.values():
            claim.mailbox.put(LeaveCommand())
        for _ in range(self._threads):
            self._work.put(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._on_thread:
                    self._execution_ended.clear()
                    await self._execution_ended.wait()

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
        for host in (*self._hosts, self._removed):
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

    def _sleep_seconds(self) -> float | None:
        """Return the time until an execution is due; None if none waits for a time, or during a backoff."""
        if self._due_time is None or self._backoff:
            return None
        seconds = (self._due_time - self._now()).total_seconds()
        return min(max(seconds, SHORTEST_SLEEP_SECONDS), self._longest_sleep_seconds)

    async def _claim(self) -> None:
        while slots := list(islice(self._free_slots(), CLAIMS_AT_ONCE)):
            try:
                claimed = await self._store.claim_on(slots)
            except (DiskFull, StoreFailed) as error:
                self._wait_for_store("the queue waits for the store", error=str(error))
                return
            if claimed:
                self._store_warnings.clear()
            for assignment in claimed:
                self._start(assignment)
            if len(claimed) < len(slots):
                return

    def _free_slots(self) -> Iterator[str]:
        """Yield the host's name for each free slot, in the order in which to take them.

        The next slot is always one of the host with the largest share of free slots.
        """
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

    def _resume_later(self, host: "_Host", execution_id: str) -> None:
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

    def _host(self, name: str) -> "_Host":
        return next((host for host in self._hosts if host.view.name == name), self._removed)

    def _ready(self, host: "_Host") -> bool:
        return host.view.up and not host.backoff and not self._backoff and not self._closing

    def _back_off(self, backoff: "_Backoff", why: str, **ids: str) -> None:
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

    def _run(self, host: "_Host", assignment: Assignment, claim: "_Claim") -> None:
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

    def _ended_as_lost(self, host: "_Host", execution: Execution, error: BaseException) -> bool:
        """Whether the execution could be ended. One that could not is resumed, as nobody else would do so."""
        try:
            self._end_as_lost(host, execution, error)
        except BaseException as defect:
            report(f"the end of execution {execution.id}", defect)
            return False
        return True

    def _end_as_lost(self, host: "_Host", execution: Execution, error: BaseException) -> None:
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

    def _ended(self, host: "_Host", execution_id: str, claim: "_Claim", host_down: bool, machine_failed: bool) -> None:
        del self._on_thread[execution_id]
        host.on_thread.discard(execution_id)
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
        for each in self._hosts:
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


class _Backoff:
    """A period in which no execution is started. The dispatcher is woken at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Wakeup) -> None:
        self._loop = loop
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return self._timer is not None

    def start(self, seconds: float) -> None:
        """Start the period, or start it anew."""
        self.stop()
        self._timer = self._loop.call_later(seconds, self.stop)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._wake.set()


class _Host:
    """A host with the executions that have a slot on it."""

    def __init__(self, slots: HostSlots, backoff: _Backoff) -> None:
        self.view = slots.host
        self.runner = slots.runner
        self.max_running = slots.max_running
        self.backoff = backoff
        # Executions on a thread; suspended ones, which are resumed when the host is back; and those that were requeued
        # and claimed again for this host while the thread of their first claim, here or elsewhere, has not ended.
        self.on_thread: set[str] = set()
        self.suspended: set[str] = set()
        self.superseded: dict[str, Assignment] = {}
        # Of the suspended executions, those that wait after a failure of the machine, and the last pause of each.
        self.paused: set[str] = set()
        self.pauses: dict[str, float] = {}

    @property
    def running(self) -> int:
        return len(self.on_thread) + len(self.suspended) + len(self.superseded)


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
