"""Retention: deletes logs by age and by their total size, jobs by age, old changes, and what a caller asks to prune.

It works in bounded steps, on a thread of its own, with pauses between them: enqueues, executions and readers do not
wait for it. Each step deletes files before the rows that name them. A crash in between leaves a row without files,
which the next round finds again, and never files that no row names."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import partial

import structlog

from fastlane_grpc.errors import DiskFull, ServerStopping, StoreFailed
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Execution, utc_now
from fastlane_grpc.store import Count, PruneCandidate, PruneCursor, PruneQuery, Store
from fastlane_grpc.wakeup import Wakeup

# Logs or jobs of one step: this many rows occupy the writer for some milliseconds.
STEP_ROWS = 100
# The most logs or jobs of one call, and the longest time of a call: a large file takes its time to unlink.
CALL_ROWS = 1000
CALL_SECONDS = 2.0
COUNTED_ROWS = 100_000
# Of the change log: how many changes are kept, how long, and how many are deleted in one step.
KEEP_CHANGES = 200_000
KEEP_CHANGES_FOR = timedelta(days=1)
STEP_CHANGES = 1000
# After so many announced changes the change log is looked at.
CHANGES_PER_LOOK = 10_000
# The longest time in each round for what was set aside.
LEFT_OVER_SECONDS = 5.0
# The pause after a round; after a round that failed; and the longest time without a round, as clocks may jump.
REST_SECONDS = 5.0
RETRY_SECONDS = 30.0
LONGEST_SECONDS = 3600.0
# The shortest time between two looks at the contents of inputs.
INPUTS_SECONDS = 600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """The time for which logs, jobs and deliveries are kept after their end, and the size of all logs; None: no limit.

    `changes` and `keep_changes`: how many changes are kept, and how long.
    """

    keep_logs: timedelta | None = None
    keep_jobs: timedelta | None = None
    total_log_bytes: int | None = None
    keep_deliveries: timedelta | None = None
    changes: int = KEEP_CHANGES
    keep_changes: timedelta = KEEP_CHANGES_FOR


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of pruning, and whether more is to be deleted."""

    count: Count
    more: bool


@dataclass(frozen=True, slots=True)
class _PruneStep:
    """The result of one step, and the cursor after it; None if it found nothing."""

    count: Count
    cursor: PruneCursor | None


class Retention:
    """Deletes what is due, on its own or on request. Lives on the loop. Ages are measured by the clock `now`."""

    def __init__(
        self,
        store: Store,
        logs: Logs,
        limits: RetentionLimits,
        *,
        inputs: InputFiles | None = None,
        now: Callable[[], datetime] = utc_now,
        rest_seconds: float = REST_SECONDS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._store = store
        self._logs = logs
        self._limits = limits
        self._now = now
        self._rest_seconds = rest_seconds
        self._call_seconds = call_seconds
        self._thread = ThreadPoolExecutor(1, "retention")
        # The thread is started now: later the machine may have no further thread.
        self._thread.submit(int)
        self._wake = Wakeup()
        self._inputs = inputs
        self._inputs_due = 0.0
        self._closed = False
        # Announced since the last look at the change log.
        self._changes = 0

    def on_change(self, executions: Sequence[Execution]) -> None:
        """Note what the store announces. Only an execution that ended, or very many changes, make retention look
        again."""
        self._changes += len(executions)
        if self._changes >= CHANGES_PER_LOOK:
            self._wake.set()
        if any(each.run > 1 or each.attempt > 1 for each in executions):
            # Its job may have more executions now than its history has room for.
            self._wake.set()
        ended = any(each.state.final and not each.times.prune_time for each in executions)
        if ended and (self._limits.total_log_bytes is not None or self._logs.left_over.due_seconds() == 0):
            self._wake.set()

    async def run(self) -> None:
        """Prune what is due and sleep until more is, until cancelled or until the store is closed."""
        with suppress(ServerStopping):
            while True:
                self._wake.clear()
                try:
                    now = self._now()
                    await self.round(now)
                    await self._delete_left_over()
                    seconds = await self._due_seconds(now)
                except (DiskFull, StoreFailed) as error:
                    log.warning("pruning waits for the store", error=str(error), retry_seconds=RETRY_SECONDS)
                    seconds = RETRY_SECONDS
                except ServerStopping:
                    raise
                except Exception as error:
                    # The server runs jobs without it, too.
                    log.error("pruning failed; trying again", retry_seconds=RETRY_SECONDS, exc_info=error)
                    seconds = RETRY_SECONDS
                await self._wake.wait(seconds)
                # The deletion of what was set aside has pauses of its own: no rest until it is gone.
                if seconds > 0:
                    await asyncio.sleep(self._rest_seconds)

    def close(self) -> None:
        """Let a running step end. Callers that wait for a further step get ServerStopping."""
        self._closed = True
        self._thread.shutdown(wait=False)

    async def prune(self, query: PruneQuery) -> Pruned:
        """Delete what the query finds, as far as one call goes."""
        total, cursor, rows, until = Count(), PruneQuery.START, 0, time.monotonic() + self._call_seconds
        while True:
            step = await self._step(query, cursor)
            if self._logs.left_over.due_seconds() == 0:
                self._wake.set()
            if step.cursor is None:
                return Pruned(total, False)
            total, cursor, rows = total + step.count, step.cursor, rows + STEP_ROWS
            if rows >= CALL_ROWS or time.monotonic() >= until:
                # Where the disk lets nothing be deleted, the caller is not asked to call again.
                return Pruned(total, total != Count())

    async def count(self, query: PruneQuery) -> Pruned:
        """Count what the query finds, up to a limit."""
        count = await self._store.count(query, limit=COUNTED_ROWS)
        return Pruned(count, max(count.jobs, count.logs) >= COUNTED_ROWS)

    async def round(self, now: datetime) -> Count:
        """Delete all that is due at the time `now`."""
        total = await self._prune_excess_executions()
        if self._limits.keep_logs is not None:
            total += await self._prune_all(PruneQuery(now - self._limits.keep_logs, logs_only=True))
        if self._limits.keep_jobs is not None:
            total += await self._prune_all(PruneQuery(now - self._limits.keep_jobs))
        if self._limits.total_log_bytes is not None:
            total += await self._prune_excess(self._limits.total_log_bytes, now)
        if total != Count():
            log.info("pruned", jobs=total.jobs, logs=total.logs, bytes=total.bytes)
        await self._prune_deliveries(now)
        await self._prune_audit(now)
        await self._prune_changes(now)
        await self._prune_inputs()
        return total

    async def _due_seconds(self, now: datetime) -> float:
        """Return how long there is nothing to do after the round of the time `now`, whatever ends meanwhile."""
        kept = await self._store.retention_totals()
        left_over = self._logs.left_over.due_seconds()
        waits = [LONGEST_SECONDS if left_over is None else left_over]
        for oldest, keep in (
            (kept.oldest_log_time, self._limits.keep_logs),
            (kept.oldest_job_time, self._limits.keep_jobs),
            (kept.oldest_delivery_time, self._limits.keep_deliveries),
            (kept.oldest_audit_time, self._limits.keep_jobs),
        ):
            if keep is not None:
                left = keep if oldest is None else min(oldest + keep - now, keep)
                # A log or job that was due in that round and still exists could not be deleted.
                waits.append(left.total_seconds() if left > timedelta() else RETRY_SECONDS)
        return min(waits)

    async def _prune_all(self, query: PruneQuery) -> Count:
        total, cursor = Count(), PruneQuery.START
        while True:
            began = time.monotonic()
            step = await self._step(query, cursor)
            if step.cursor is None:
                return total
            total, cursor = total + step.count, step.cursor
            await self._pause(began)

    async def _prune_excess(self, limit: int, now: datetime) -> Count:
        """Delete the logs that ended first, until the others take no more than `limit` bytes."""
        total, cursor, query = Count(), PruneQuery.START, PruneQuery(now, logs_only=True)
        while (excess := (await self._store.retention_totals()).log_bytes - limit) > 0:
            began = time.monotonic()
            step = await self._step(query, cursor, excess)
            if step.cursor is None:
                return total
            total, cursor = total + step.count, step.cursor
            await self._pause(began)
        return total

    async def _prune_deliveries(self, now: datetime) -> None:
        """Delete the deliveries that ended long ago."""
        if self._limits.keep_deliveries is None:
            return
        while True:
            began = time.monotonic()
            self._check_open()
            before = now - self._limits.keep_deliveries
            if await self._store.prune_deliveries(before=before, limit=STEP_ROWS) < STEP_ROWS:
                return
            await self._pause(began)

    async def _prune_audit(self, now: datetime) -> None:
        """Delete the entries of the audit that are older than jobs may be."""
        if self._limits.keep_jobs is None:
            return
        while True:
            began = time.monotonic()
            self._check_open()
            if await self._store.prune_audit(before=now - self._limits.keep_jobs, limit=STEP_CHANGES) < STEP_CHANGES:
                return
            await self._pause(began)

    async def _prune_inputs(self) -> None:
        """Delete the contents of inputs that no job uses."""
        if self._inputs is None or time.monotonic() < self._inputs_due:
            return
        self._check_open()
        self._inputs_due = time.monotonic() + INPUTS_SECONDS
        in_use = self._store.inputs_in_use
        delete = partial(self._inputs.delete_unused, lambda checksums: in_use(checksums).result())
        if deleted := await asyncio.get_running_loop().run_in_executor(self._thread, delete):
            log.info("inputs deleted that no job uses", files=deleted)

    async def _prune_changes(self, now: datetime) -> None:
        """Delete the changes that are too old or too many."""
        self._changes = 0
        while True:
            began = time.monotonic()
            self._check_open()
            deleted = await self._store.prune_changes(
                before=now - self._limits.keep_changes, keep=self._limits.changes, limit=STEP_CHANGES
            )
            if deleted < STEP_CHANGES:
                return
            await self._pause(began)

    async def _prune_excess_executions(self) -> Count:
        """Delete the executions beyond the history of their jobs, with their logs."""
        total, cursor = Count(), PruneQuery.START
        while True:
            began = time.monotonic()
            self._check_open()
            step = await asyncio.get_running_loop().run_in_executor(self._thread, self._prune_some_excess, cursor)
            if step.cursor is None:
                return total
            total, cursor = total + step.count, step.cursor
            await self._pause(began)

    async def _delete_left_over(self) -> None:
        """Delete what was set aside, for a limited time: a container that still runs may fill it as fast as it is
        emptied."""
        until = time.monotonic() + LEFT_OVER_SECONDS
        while time.monotonic() < until:
            began = time.monotonic()
            self._check_open()
            if not await asyncio.get_running_loop().run_in_executor(self._thread, self._logs.left_over.step):
                return
            await self._pause(began)

    async def _pause(self, began: float) -> None:
        """Pause for as long as the last step took: others need the disk and the writer, too."""
        await asyncio.sleep(time.monotonic() - began)

    async def _step(self, query: PruneQuery, after: PruneCursor, excess: int | None = None) -> _PruneStep:
        self._check_open()
        # In the context of the call, if there is one: its audit.
        prune = partial(copy_context().run, self._prune_some, query, after, excess)
        return await asyncio.get_running_loop().run_in_executor(self._thread, prune)

    def _check_open(self) -> None:
        if self._closed:
            raise ServerStopping("the server is stopping; try again", retry_seconds=1)

    # ---- on the thread

    def _prune_some(self, query: PruneQuery, after: PruneCursor, excess: int | None) -> _PruneStep:
        """Delete the next candidates after that cursor; with `excess`, only until so many bytes are free."""
        self._check_open()
        found = self._store.oldest(query, after=after, limit=STEP_ROWS).result()
        if excess is not None:
            found = _up_to(found, excess)
        if not found:
            return _PruneStep(Count(), None)
        # On a disk that is full to the last byte nothing can be marked: only the deletion of files makes room.
        with suppress(DiskFull):
            self._store.mark_pruned([each.execution_id for each in found if each.log_bytes]).result()
        deleted = {each.execution_id: self._delete_files(each.execution_id) for each in found}
        stuck = {each.job_id for each in found if deleted[each.execution_id] is _Deleted.NOTHING}
        gone = [each for each in found if each.job_id not in stuck]
        free = sum(each.log_bytes for each in gone if deleted[each.execution_id] is _Deleted.ALL)
        count = Count(0, sum(each.log_bytes > 0 for each in gone), free)
        if query.logs_only:
            self._store.forget_logs([each.execution_id for each in gone]).result()
        else:
            jobs = self._store.delete_jobs(sorted({each.job_id for each in gone})).result()
            count += Count(jobs)
        return _PruneStep(count, found[-1].cursor)

    def _prune_some_excess(self, after: PruneCursor) -> _PruneStep:
        """Delete the next executions beyond the history of their jobs, after that cursor."""
        self._check_open()
        found = self._store.excess(after=after, limit=STEP_ROWS).result()
        if not found:
            return _PruneStep(Count(), None)
        # On a disk that is full to the last byte nothing can be marked: only the deletion of files makes room.
        with suppress(DiskFull):
            self._store.mark_pruned([each.execution_id for each in found if each.log_bytes]).result()
        gone = [each for each in found if self._delete_files(each.execution_id) is not _Deleted.NOTHING]
        self._store.delete_excess([each.execution_id for each in gone]).result()
        count = Count(0, sum(each.log_bytes > 0 for each in gone), sum(each.log_bytes for each in gone))
        return _PruneStep(count, found[-1].cursor)

    def _delete_files(self, execution_id: str) -> "_Deleted":
        try:
            return _Deleted.ALL if self._logs.delete(execution_id) else _Deleted.A_PART
        except Exception as error:
            # Its row stays, and the next round tries again. The next candidates do not wait for it, whatever the error.
            log.warning("a log cannot be deleted", execution_id=execution_id, error=str(error))
            return _Deleted.NOTHING


class _Deleted(Enum):
    """How much of a log was deleted. The rest of a log that was deleted in part was set aside, and needs no row."""

    ALL = 1
    A_PART = 2
    NOTHING = 3


def _up_to(found: Sequence[PruneCandidate], excess: int) -> list[PruneCandidate]:
    """Return the first candidates, until they take so many bytes."""
    chosen: list[PruneCandidate] = []
    for each in found:
        if excess <= 0:
            break
        chosen.append(each)
        excess -= each.log_bytes
    return chosen
