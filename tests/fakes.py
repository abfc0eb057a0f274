"""Stand-ins that keep the promises of what they stand for, where a real engine is beside the point."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastlane_grpc.execution.events import Died, EngineGone
from fastlane_grpc.model import (
    Assignment,
    Availability,
    Execution,
    HostReport,
    LogTotals,
    Outcome,
    Reason,
    Source,
    State,
    StopCause,
    utc_now,
)
from fastlane_grpc.runner import AbandonedLog, HostDown, LeaveCommand, Mailbox, StopCommand
from fastlane_grpc.store import Store


@dataclass
class FakeHost:
    """A host that is up or down as the test says."""

    name: str = "here"
    up: bool = True

    @property
    def error(self) -> str:
        return "" if self.up else f"host {self.name!r} does not answer"

    def report(self, *, running: int, max_running: int) -> HostReport:
        availability = Availability.UP if self.up else Availability.DOWN
        return HostReport(
            self.name,
            f"fake://{self.name}",
            availability,
            running,
            max_running,
            capture="attach",
            capture_reason="a fake",
        )


class FakeGone:
    """What is done with executions of hosts that are not configured: those that may have been started are lost, others
    are queued again."""

    def __init__(self, store: Store) -> None:
        self.given: list[Assignment] = []
        self._store = store

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        self.given.append(assignment)
        execution = assignment.execution
        if execution.starting:
            self._store.finish(execution.id, state=State.LOST, outcome=Outcome(Reason.HOST_GONE), logs=()).result()
        else:
            self._store.requeue(execution.id).result()

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        return AbandonedLog()


class FakeRunner:
    """Runs executions without containers: fence, start, stop and end are committed in the same order as the real one
    commits them.

    What it runs ends at once, with exit code 0; with `hold`, when the test says so by `end`. It obeys StopCommand and
    LeaveCommand, and does with a host that is down as the real one does: executions that were
    not started are requeued, the others are left.
    """

    def __init__(self, store: Store, host: FakeHost, *, hold: bool = False) -> None:
        self.hold = hold
        # Called on the execution's thread when it was given to the runner. What it raises, `run` raises.
        self.when_given: Callable[[Assignment, Mailbox], None] = lambda assignment, mailbox: None
        self.given: list[Assignment] = []
        self.starts: list[str] = []
        self.stop_orders: list[tuple[str, StopCommand]] = []
        self.present = 0
        self.most_present = 0
        self._store = store
        self._host = host
        self._inboxes: dict[str, Mailbox] = {}
        self._lock = threading.Lock()

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        with self._lock:
            self.present += 1
            self.most_present = max(self.present, self.most_present)
            self.given.append(assignment)
            assert assignment.execution.id not in self._inboxes, "one thread at a time"
            self._inboxes[assignment.execution.id] = mailbox
        try:
            self.when_given(assignment, mailbox)
            self._run(assignment, mailbox)
        finally:
            with self._lock:
                self.present -= 1
                del self._inboxes[assignment.execution.id]

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        return AbandonedLog([LogTotals(Source.SYSTEM, len(why))], 4096)

    def end(self, execution_id: str, exit_code: int = 0) -> None:
        """The container ends."""
        self._inboxes[execution_id].put(Died(exit_code, time.time_ns(), 0.0))

    def lose_engine(self) -> None:
        """Whoever waits for a container to end finds that the engine is gone."""
        with self._lock:
            for mailbox in self._inboxes.values():
                mailbox.put(EngineGone(0.0))

    def _run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        execution = assignment.execution
        if not self._host.up:
            self._leave(execution)
        if not execution.starting and not self._start(assignment):
            self._finish(self._store.execution(execution.id).result(), None)
            return
        self._store.running(execution.id, start_time=utc_now()).result()
        exit_code = self._follow(execution, mailbox)
        self._finish(self._store.execution(execution.id).result(), exit_code)

    def _start(self, assignment: Assignment) -> bool:
        """Whether the start was granted: it was not if a stop came before."""
        execution_id, now = assignment.execution.id, utc_now()
        granted = self._store.starting(
            execution_id,
            container_id=f"container of {execution_id}",
            handle="{}",
            image_digest="sha256:fake",
            pull_time=now,
            container_time=now,
        ).result()
        if not granted:
            return False
        self.starts.append(execution_id)
        return True

    def _follow(self, execution: Execution, mailbox: Mailbox) -> int:
        """The exit code; 143 where it was stopped."""
        if execution.stop:
            return 143
        while self.hold:
            order = mailbox.get(None)
            if isinstance(order, Died):
                return order.exit_code or 0
            if isinstance(order, StopCommand):
                self.stop_orders.append((execution.id, order))
                return 143
            if isinstance(order, LeaveCommand):
                raise HostDown("the server stops")
            if isinstance(order, EngineGone):
                self._leave(execution)
        return 0

    def _leave(self, execution: Execution) -> None:
        if not execution.starting:
            self._store.requeue(execution.id).result()
        raise HostDown(f"host {self._host.name!r} is down")

    def _finish(self, execution: Execution, exit_code: int | None) -> None:
        state, outcome = _end_of(execution, exit_code)
        logs = () if exit_code is None else (LogTotals(Source.STDOUT, 0, 0, 0),)
        self._store.finish(
            execution.id, state=state, outcome=outcome, logs=logs, exit_time=utc_now(), seal_time=utc_now()
        ).result()


def _end_of(execution: Execution, exit_code: int | None) -> tuple[State, Outcome]:
    if execution.stop:
        state = State.TIMED_OUT if execution.stop.cause is StopCause.TIMEOUT else State.STOPPED
        return state, Outcome(detail=execution.stop.note, exit_code=exit_code, stop_signal="SIGTERM")
    if exit_code is None:
        return State.EXPIRED, Outcome(detail="it had not started by its expire_time")
    if exit_code:
        return State.FAILED, Outcome(Reason.EXIT_CODE, exit_code=exit_code)
    return State.SUCCEEDED, Outcome(exit_code=0)


class Announcements:
    """What a store announced, to be given to it as (a part of) `on_commit`; and somewhere to wait for what it is going
    to announce."""

    def __init__(self) -> None:
        self.all: list[Execution] = []
        self._news = asyncio.Event()

    def __call__(self, executions: Sequence[Execution]) -> None:
        self.all += executions
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits until that is so; looks at it after each commit."""
        while not true():
            self._news.clear()
            await self._news.wait()

    async def reaches(self, execution_id: str, state: State) -> Execution:
        """The execution, as it was announced when it first was in that state."""
        found: list[Execution] = []

        def reached() -> bool:
            found[:] = [execution for execution in self.all if (execution.id, execution.state) == (execution_id, state)]
            return bool(found)

        await self.until(reached)
        return found[0]
