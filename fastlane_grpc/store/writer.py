"""The writing thread, the only one that writes: many units of work in one commit. An answer means that the unit is on
disk."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import structlog

from fastlane_grpc.counts import StoreCounts
from fastlane_grpc.errors import DiskFull, ServerStopping
from fastlane_grpc.model import Execution
from fastlane_grpc.store.audit import AUDITED, AuditedCall, insert_entries
from fastlane_grpc.store.database import Connection, is_failure, refusal, sqlite3
from fastlane_grpc.store.pending import Pending, Settled, tell
from fastlane_grpc.store.reserve import Reserve
from fastlane_grpc.supervisor import ALONE, Supervisor

T = TypeVar("T")

UNITS_PER_COMMIT = 256
# After a commit of so many units the callers that were answered are likely to write again at once.
SHARED_FROM = 4
# The next commit then waits so long for them, or until so many units wait. A commit costs as much as a dozen jobs.
SHARED_SECONDS = 0.002
SHARED_ENOUGH = 32

_log = structlog.get_logger()


class Written(NamedTuple, Generic[T]):
    """The answer of a unit of work, and the executions that it changed, as it left them.

    `changed_jobs`: the ids of jobs that it changed or deleted without an execution in `changed`. Each of `told` is
    called on the loop after the commit, before the executions are announced. `new_jobs`: how many jobs it stored, which
    are counted after the commit. `job_id`: the job that it was about, for the audit of a call that does not name it."""

    answer: T
    changed: Sequence[Execution] = ()
    changed_jobs: Sequence[str] = ()
    told: Sequence[Callable[[], None]] = ()
    new_jobs: int = 0
    job_id: str = ""


Work = Callable[[Connection], Written[T]]


# Does many works of one kind by no more statements than one takes, and answers as each would. It may raise where one of
# them could not be done: then each is done alone.
Many = Callable[[Connection, Sequence[Any]], Sequence[Written[Any]]]


class Writer:
    """A queue of units of work. The thread runs all that have gathered in one transaction, commits, and answers.

    One that fails is undone alone. For that it may be run more than once, each time on a database that knows nothing of
    the time before."""

    def __init__(
        self,
        db: Connection,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[Sequence[Execution]], None],
        on_failure: Callable[[], None] = lambda: None,
        retry_seconds: float = 1.0,
        supervisor: Supervisor = ALONE,
        reserve: Reserve | None = None,
        shared_seconds: float = SHARED_SECONDS,
        counts: StoreCounts | None = None,
    ) -> None:
        self._db = db
        self._reserve = reserve
        self.counts = counts or StoreCounts()
        self.path = path
        self._loop = loop
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._retry_seconds = retry_seconds
        self._shared_seconds = shared_seconds
        # Set when a commit has waited for other units long enough.
        self._enough = threading.Event()
        # None is the end. The lock keeps a unit from slipping in behind it, where nobody would answer.
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._entrance = threading.Lock()
        self._closed = False
        # Units that could not be stored and are tried again from `_retry_at` on, by the monotonic clock.
        self._owed: list[_Unit] = []
        self._retry_at = 0.0
        # The monotonic time since which units are owed; None: no unit is owed.
        self._owing_since: float | None = None
        # Units that were taken from the queue and are not answered.
        self._taken: Sequence[_Unit] = ()
        # How many units were taken last.
        self._last_taken = 0
        # Not restarted: what the thread was about when it failed is not known, and all that the server promises goes
        # through it.
        self._thread = supervisor.thread("store-writer", self._run, restart=False)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The units of work that are not answered yet."""
        return self._queue.qsize() + len(self._taken) + len(self._owed)

    def write(self, work: Work[T], *, many: Many | None = None, vital: bool = False, weight: int = 1) -> Pending[T]:
        """Run `work` in the next transaction. An error that it raises goes to its caller alone, and undoes `work`
        alone. Neighbours in the queue with the same `many` are run by one call of it. `vital`: may use the reserve.
        `weight`: as so many units it counts when units are gathered for a commit."""
        return self._put(work, until_stored=False, many=many, vital=vital, weight=weight)

    def write_until_stored(self, work: Work[T]) -> Pending[T]:
        """Do the same, but if SQLite fails, try `work` again until it is stored. It may use the reserve.
        ServerStopping: the server ended first."""
        return self._put(work, until_stored=True, vital=True)

    def close(self, timeout: float | None = None) -> None:
        """Write what waits and refuse what comes later. Blocks until then, for at most `timeout` seconds."""
        with self._entrance:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
                self._enough.set()
        self._thread.join(timeout)

    def _put(
        self, work: Work[T], *, until_stored: bool, many: Many | None = None, vital: bool, weight: int = 1
    ) -> Pending[T]:
        pending: Pending[T] = Pending(self._loop, "store_write")
        with self._entrance:
            if self._closed:
                raise ServerStopping("the server is going down")
            self._queue.put(_Unit(work, pending, until_stored, many, vital, weight, _taken_along()))
            if self._queue.qsize() >= SHARED_ENOUGH:
                self._enough.set()
        return pending

    # ---- on the thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            # Nobody is to wait for a thread that has ended.
            self._refuse_all()
            raise
        finally:
            self._db.close()

    def _work(self) -> None:
        last = False
        while not last:
            self._taken, last = self._gather()
            self._last_taken = len(self._taken)
            if self._taken:
                self._commit(self._taken)
                self._taken = ()
                if self._reserve:
                    self._reserve.make()
            if self._owed and (last or time.monotonic() >= self._retry_at):
                self._pay()
        self._give_up(self._owed)

    def _refuse_all(self) -> None:
        with self._entrance:
            self._closed = True
        waiting: list[_Unit] = []
        with suppress(queue.Empty):
            while True:
                if unit := self._queue.get_nowait():
                    waiting.append(unit)
        self._give_up([*self._taken, *self._owed, *waiting])

    def _gather(self) -> tuple[list["_Unit"], bool]:
        """Return all units that wait, and whether they are the last. Blocks for the first one, or until the next retry
        is due."""
        units: list[_Unit] = []
        weight = 0
        patience = max(self._retry_at - time.monotonic(), 0) if self._owed else None
        with suppress(queue.Empty):
            while weight < UNITS_PER_COMMIT:
                unit = self._queue.get(timeout=0 if units else patience)
                if unit is None:
                    return units, True
                if not units and unit.weight < SHARED_ENOUGH:
                    self._wait_for_others()
                units.append(unit)
                weight += unit.weight
        return units, False

    def _wait_for_others(self) -> None:
        """Wait a moment for units that can share the next commit, if several shared the last one."""
        if self._last_taken < SHARED_FROM:
            return
        # Cleared before the look at the queue: a unit that arrives after it sets the event again.
        self._enough.clear()
        if self._queue.qsize() < SHARED_ENOUGH and not self._closed:
            self._enough.wait(self._shared_seconds)

    def _pay(self) -> None:
        # Each in a transaction of its own: one that ruins its transaction every time ruins no other.
        self._taken, self._owed = self._owed, []
        for unit in self._taken:
            self._commit([unit])
        self._taken = ()
        if self._owing_since is not None and not self._owed:
            seconds, self._owing_since = time.monotonic() - self._owing_since, None
            with suppress(OSError):
                _log.info("store.stored", file=str(self.path), seconds=round(seconds, 1))

    def _give_up(self, units: Sequence["_Unit"]) -> None:
        message = "the server is going down, and this could not be stored; the next server finds out anew"
        tell(self._loop, [Settled(unit.pending, None, ServerStopping(message)) for unit in units])

    def _commit(self, units: Sequence["_Unit"]) -> None:
        done: Sequence[_Done]
        start = time.perf_counter()
        try:
            done = self._all_at_once(units) or self._each_by_itself(units)
        except Exception as error:
            # Whatever ended the transaction ended it for all. On a full disk SQLite has rolled back by itself,
            # savepoints included.
            if self._db.in_transaction:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            done = [(unit, error) for unit in units]
        else:
            self.counts.seconds.observe(time.perf_counter() - start)
            self.counts.units.observe(len(units))
        again = [unit for unit, result in done if unit.vital and isinstance(result, Exception) and is_failure(result)]
        if not again or not self._reserve or not self._reserve.free():
            self._settle(done)
            return
        self._settle([(unit, result) for unit, result in done if not any(unit is each for each in again)])
        # Each call takes a piece of the reserve, so the recursion ends.
        self._commit(again)

    def _all_at_once(self, units: Sequence["_Unit"]) -> Sequence["_Done"]:
        """Run the units without savepoints, and return their results. If one raises, nothing has changed. A savepoint
        for each would be two more statements, and each statement may yield the interpreter. Raises only if the
        transaction is gone."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            done = list(zip(units, self._run_all(units), strict=True))
            self._note_callers(done)
        except Exception:
            if not self._db.in_transaction:
                raise
            self._db.execute("ROLLBACK")
            return ()
        self._db.execute("COMMIT")
        return done

    def _run_all(self, units: Sequence["_Unit"]) -> Iterator[Written[Any]]:
        for many, units_of_kind in groupby(units, lambda unit: unit.many):
            works = [unit.work for unit in units_of_kind]
            yield from many(self._db, works) if many else (work(self._db) for work in works)

    def _each_by_itself(self, units: Sequence["_Unit"]) -> Sequence["_Done"]:
        """Return what each unit answers, or raises. Raises only if the transaction is gone."""
        self._db.execute("BEGIN IMMEDIATE")
        done = [(unit, self._attempt(unit)) for unit in units]
        self._db.execute("COMMIT")
        return done

    def _attempt(self, unit: "_Unit") -> Written[Any] | Exception:
        """Return what the unit answers, or raises. Raises only if the transaction is gone."""
        self._db.execute("SAVEPOINT unit")
        result: Written[Any] | Exception
        try:
            result = unit.work(self._db)
            self._note_callers([(unit, result)])
        except Exception as error:
            if not self._db.in_transaction:
                raise
            self._db.execute("ROLLBACK TO unit")
            result = error
        self._db.execute("RELEASE unit")
        return result

    def _note_callers(self, done: Sequence[tuple["_Unit", Written[Any]]]) -> None:
        calls = [(unit.call, written.job_id) for unit, written in done if unit.call]
        if calls:
            insert_entries(self._db, calls)

    def _settle(self, done: Sequence["_Done"]) -> None:
        settled: list[Settled] = []
        changed: list[Execution] = []
        told: list[Callable[[], None]] = []
        jobs_changed = False
        for unit, result in done:
            if isinstance(result, Written):
                settled.append(Settled(unit.pending, result.answer, None))
                changed += result.changed
                told += result.told
                self.counts.new_jobs.value += result.new_jobs
                jobs_changed = jobs_changed or bool(result.changed_jobs)
                if unit.call and result.job_id:
                    unit.call.job_id = result.job_id
                continue
            # The next write of the call takes its entry along.
            if unit.call and not (unit.until_stored and is_failure(result)):
                unit.call.written = False
            if not is_failure(result):
                settled.append(Settled(unit.pending, None, result))
            elif unit.until_stored:
                self.counts.failures.value += 1
                self._owe(unit, result)
            else:
                self.counts.failures.value += 1
                # A new one for each caller: one that is shared gathers the tracebacks of all.
                settled.append(Settled(unit.pending, None, refusal(result, self.path)))
        # Without an execution, too: those that read the change log are to look at it.
        on_commit = bool(changed) or jobs_changed
        announce = partial(self._announce, changed, told, on_commit=on_commit) if on_commit or told else None
        tell(self._loop, settled, announce)
        # That a job was refused for the disk is no failure yet, and a reason to look whether it can be written.
        if any(
            isinstance(result, Exception) and (is_failure(result) or isinstance(result, DiskFull)) for _, result in done
        ):
            tell(self._loop, (), self._on_failure)

    def _announce(self, changed: Sequence[Execution], told: Sequence[Callable[[], None]], *, on_commit: bool) -> None:
        """Announce what was committed, on the event loop."""
        for tell_one in told:
            tell_one()
        if on_commit:
            self._on_commit(changed)

    def _owe(self, unit: "_Unit", error: Exception) -> None:
        if not self._owed:
            self._retry_at = time.monotonic() + self._retry_seconds
        if self._owing_since is None:
            # Logged once, however often the unit is tried again.
            self._owing_since = time.monotonic()
            with suppress(OSError):  # the log may be on the disk that is full
                _log.warning("store.retry", file=str(self.path), error=str(error), retry_seconds=self._retry_seconds)
        self._owed.append(unit)


@dataclass(frozen=True, slots=True)
class _Unit:
    work: Work[Any]
    pending: Pending[Any]
    until_stored: bool
    many: Many | None
    vital: bool
    weight: int
    # Whose entry in the audit it takes along.
    call: AuditedCall | None


def _taken_along() -> AuditedCall | None:
    """Return the call that makes this write, if no earlier write of the call has taken its entry along."""
    call = AUDITED.get()
    if call is None or call.written:
        return None
    call.written = True
    return call


_Done: TypeAlias = tuple[_Unit, Written[Any] | Exception]
