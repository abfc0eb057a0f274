"""Gives work to the runner: as much as there are places for, as soon as there is any, each execution to one thread at a time."""

import asyncio
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from fastlane_grpc.errors import DiskFull, ExecutionNotFound, ServerStopping, StoreFailed
from fastlane_grpc.model import Assignment, Execution, Outcome, Reason, State, Stop, utc_now
from fastlane_grpc.runner.orders import HostDown, Leave, Orders, Remains, Runner, StopOrder
from fastlane_grpc.store import Store

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

    @property
    def capture(self) -> str:
        """How the output of new executions is captured, `recorder` or `attach`; empty while that is not known."""

    @property
    def capture_reason(self) -> str:
        """Why that is not the recorder; empty if it is."""


class Dispatcher:
    """Lives on the loop. Every execution has a thread to itself: a daemon, so that one that hangs does not keep the server from ending."""

    def __init__(self, store: Store, runner: Runner, host: HostView, *, max_running: int, retry_seconds: float = 1.0) -> None:
        self._store = store
        self._runner = runner
        self._host = host
        self._max_running = max_running
        self._retry_seconds = retry_seconds
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._rest: asyncio.TimerHandle | None = None
        self._closing = False
        # Of each execution that was claimed and is not over. A stop may be announced before the claim is answered: whichever comes first
        # makes the inbox.
        self._claims: dict[str, _Claim] = {}
        # Who has a place: those on a thread; those that are to be taken up again when the host is back; and those that were requeued and
        # claimed again, while the thread of their first claim has not ended.
        self._on_thread: dict[str, _Claim] = {}
        self._left: set[str] = set()
        self._behind: dict[str, Assignment] = {}
        # There are as many threads as there were executions on them at a time, and each takes what is first in the queue.
        self._threads = 0
        self._work: queue.SimpleQueue[tuple[Assignment, _Claim] | None] = queue.SimpleQueue()
        self._one_ended = asyncio.Event()

    @property
    def running(self) -> int:
        """Places that are taken; more than the limit where more were adopted."""
        return len(self._on_thread) + len(self._left) + len(self._behind)

    @property
    def place_free(self) -> bool:
        return self.running < self._max_running

    @property
    def host_error(self) -> str:
        """Why the host takes nothing; empty if it does."""
        return self._host.error

    @property
    def capture(self) -> tuple[str, str]:
        """How the output of new executions is captured on the host, and why not by recorder; both may be empty."""
        return self._host.capture, self._host.capture_reason

    def news(self, executions: Sequence[Execution]) -> None:
        """Every change of every execution, in order, as the store announces them."""
        for execution in executions:
            if execution.state is State.QUEUED:
                self._claims.pop(execution.id, None)
                self._wake.set()
            elif execution.state is State.STOPPING and execution.stop:
                self._claims.setdefault(execution.id, _Claim()).tell(execution.stop)

    def host_changed(self) -> None:
        """The host is up again, or down."""
        if self._host.up:
            self._end_rest()
        self._wake.set()

    async def run(self) -> None:
        """Takes up what an earlier server left, then what is due, until it is closed."""
        with suppress(ServerStopping):
            await self._adopt()
            while not self._closing:
                # Cleared before it looks: news that comes while it looks sets it again, and is not lost.
                self._wake.clear()
                await self._resume()
                await self._claim()
                await self._wake.wait()

    async def close(self, patience_seconds: float = 1.0) -> None:
        """Takes nothing new, and has the threads leave their containers as they are; those that hang are waited for no longer than that."""
        self._closing = True
        self._end_rest()
        for claim in self._on_thread.values():
            claim.orders.put(Leave())
        for _ in range(self._threads):
            self._work.put(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                while self._on_thread:
                    self._one_ended.clear()
                    await self._one_ended.wait()

    # ---- what there is to do

    async def _adopt(self) -> None:
        for assignment in await self._unfinished():
            self._begin(assignment)
            # To start a thousand threads takes a while: calls are answered in between.
            await asyncio.sleep(0)

    async def _unfinished(self) -> list[Assignment]:
        while True:
            try:
                return await self._store.unfinished()
            except (DiskFull, StoreFailed) as error:
                _warn("adoption waits for the store", error=str(error))
                await asyncio.sleep(self._retry_seconds)

    async def _resume(self) -> None:
        """Those that were left when the host went away, now that it is back; as they are on disk by now."""
        for execution_id in sorted(self._left):
            if not self._ready:
                return
            try:
                assignment = await self._store.assignment(execution_id)
            except (DiskFull, StoreFailed) as error:
                self._begin_rest("an execution waits for the store", execution_id=execution_id, error=str(error))
                return
            self._left.discard(execution_id)
            self._begin(assignment)

    async def _claim(self) -> None:
        while self._ready and self.place_free:
            places = self._max_running - self.running
            try:
                claimed = await self._store.claim(places, host=self._host.name)
            except (DiskFull, StoreFailed) as error:
                self._begin_rest("the queue waits for the store", error=str(error))
                return
            for assignment in claimed:
                self._begin(assignment)
            if len(claimed) < places:
                return

    @property
    def _ready(self) -> bool:
        return self._host.up and self._rest is None and not self._closing

    def _begin_rest(self, why: str, **ids: str) -> None:
        """Something failed that may fail again at once: nothing is taken up for a while."""
        _warn(why, retry_seconds=self._retry_seconds, **ids)
        self._end_rest()
        self._rest = self._loop.call_later(self._retry_seconds, self._end_rest)

    def _end_rest(self) -> None:
        if self._rest:
            self._rest.cancel()
            self._rest = None
        self._wake.set()

    # ---- one execution

    def _begin(self, assignment: Assignment) -> None:
        execution = assignment.execution
        if self._closing:
            return  # the next server finds it
        if execution.id in self._on_thread:
            self._behind[execution.id] = assignment
            return
        claim = self._claims.setdefault(execution.id, _Claim())
        claim.stop = claim.stop or execution.stop
        try:
            self._have_threads(len(self._on_thread) + 1)
        except RuntimeError as error:
            self._left.add(execution.id)
            self._begin_rest("no thread is to be had", execution_id=execution.id, error=str(error))
            return
        self._on_thread[execution.id] = claim
        self._work.put((assignment, claim))

    def _have_threads(self, count: int) -> None:
        # They are kept: to start one takes the loop up to a millisecond where others want the interpreter too.
        while self._threads < count:
            threading.Thread(target=self._work_until_closed, name=f"runner-{self._threads + 1}", daemon=True).start()
            self._threads += 1

    def _work_until_closed(self) -> None:
        while work := self._work.get():
            self._run(*work)

    def _run(self, assignment: Assignment, claim: "_Claim") -> None:
        host_down = False
        try:
            self._runner.run(assignment, claim.orders)
        except (HostDown, ServerStopping):
            host_down = True
        except Exception as error:
            self._end_as_lost(assignment.execution, error)
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                self._loop.call_soon_threadsafe(self._ended, assignment.execution.id, claim, host_down)

    def _end_as_lost(self, execution: Execution, error: Exception) -> None:
        """A defect. It must not leave the execution unfinished for ever; one that is final, or was pruned since, stays as it is."""
        with suppress(OSError):
            log.error("the runner failed", execution_id=execution.id, job_id=execution.job_id, task_id=execution.task_id, exc_info=error)
        outcome = Outcome(Reason.CONTAINER_GONE, f"a defect of fastlane, see the server's log for {execution.id}")
        with suppress(ServerStopping, ExecutionNotFound):
            remains = self._remains(execution.id, outcome.detail)
            self._store.finish(
                execution.id, state=State.LOST, outcome=outcome, logs=remains.logs, log_bytes=remains.log_bytes, seal_time=utc_now()
            ).result()

    def _remains(self, execution_id: str, why: str) -> Remains:
        try:
            return self._runner.abandon(execution_id, why)
        except (ServerStopping, ExecutionNotFound):
            raise
        except Exception as error:
            # The defect may be in what ends a log, too.
            with suppress(OSError):
                log.error("the log of a lost execution is not ended", execution_id=execution_id, exc_info=error)
            return Remains()

    def _ended(self, execution_id: str, claim: "_Claim", host_down: bool) -> None:
        del self._on_thread[execution_id]
        # Another claim, or none, in its place: it was requeued. That was announced before the thread went on, so it is known here.
        if self._claims.get(execution_id) is claim:
            del self._claims[execution_id]
            if host_down:
                self._left.add(execution_id)
        if host_down and self._host.up and not self._closing:
            # The runner got no answer from a host that seems to be there: no word that it is back would ever come.
            self._begin_rest("the host does not answer", execution_id=execution_id, host=self._host.name)
        if execution_id in self._behind:
            self._begin(self._behind.pop(execution_id))
        self._one_ended.set()
        self._wake.set()


@dataclass(slots=True, eq=False)
class _Claim:
    """A claim of an execution: its inbox, and the last order to stop that its runner knows of."""

    orders: Orders = field(default_factory=Orders)
    stop: Stop | None = None

    def tell(self, stop: Stop) -> None:
        # The same order is announced again with every other change of an execution that stops.
        if stop != self.stop:
            self.stop = stop
            self.orders.put(StopOrder(stop))


def _warn(event: str, **fields: object) -> None:
    with suppress(OSError):  # the log may be on the disk that is full
        log.warning(event, **fields)
