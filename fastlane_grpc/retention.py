"""Deletes what has been kept for long enough: logs by age and by what all of them take, jobs by age, and whatever
somebody asks for.

In steps of a bounded number, on a thread of its own, with pauses in between: nobody who enqueues, runs or reads waits
for it. Each step goes from the files to the rows that name them. A crash in between leaves a row without files, which
the next round meets again, and never files that no row names."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

import structlog

from fastlane_grpc.errors import DiskFull, ServerStopping, StoreFailed
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Execution, utc_now
from fastlane_grpc.store import Count, Found, Old, Place, Store
from fastlane_grpc.wakeup import Wakeup

# Logs or jobs of one step: so many rows hold up the writer for some milliseconds.
STEP_ROWS = 100
# Of one call, and how long it goes on at most: a large file is not unlinked in no time.
CALL_ROWS = 1000
CALL_SECONDS = 2.0
COUNTED_ROWS = 100_000
# What was set aside is deleted for so long in each round.
LEFT_OVER_SECONDS = 5.0
# Between two rounds that what ended gave rise to; after one that failed; and without either, as clocks may jump.
REST_SECONDS = 5.0
RETRY_SECONDS = 30.0
LONGEST_SECONDS = 3600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a log and a job are kept after their end, and how much room the logs of all that ended may take; None:
    no limit."""

    keep_logs: timedelta | None = None
    keep_jobs: timedelta | None = None
    total_log_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted; and whether there is more."""

    count: Count
    more: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """What one step met, and deleted; `place` is the end of it, None if it met nothing."""

    count: Count
    place: Place | None


class Retention:
    """Lives on the loop. `now` is what ages are measured by."""

    def __init__(
        self,
        store: Store,
        logs: Logs,
        limits: Limits,
        *,
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
        self._thread = ThreadPoolExecutor(1, "upkeep")
        # Started now: later it might find that no further thread is to be had.
        self._thread.submit(int)
        self._wake = Wakeup()
        self._closed = False

    def news(self, executions: Sequence[Execution]) -> None:
        """What the store announces. Only what ended takes more room than before."""
        ended = any(each.state.final and not each.times.prune_time for each in executions)
        if ended and (self._limits.total_log_bytes is not None or self._logs.left_over.due_seconds() == 0):
            self._wake.set()

    async def run(self) -> None:
        """Prunes what is due, then sleeps until something is, until it is cancelled or the store is closed."""
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
                await asyncio.sleep(self._rest_seconds)

    def close(self) -> None:
        """What a step has begun it may end; whoever waits for the next one is told ServerStopping."""
        self._closed = True
        self._thread.shutdown(wait=False)

    async def prune(self, old: Old) -> Pruned:
        """Deletes what there is of it, as far as one call goes."""
        total, place, rows, until = Count(), Old.BEGIN, 0, time.monotonic() + self._call_seconds
        while True:
            step = await self._step(old, place)
            if self._logs.left_over.due_seconds() == 0:
                self._wake.set()
            if step.place is None:
                return Pruned(total, False)
            total, place, rows = total + step.count, step.place, rows + STEP_ROWS
            if rows >= CALL_ROWS or time.monotonic() >= until:
                # Where nothing can be deleted, as the disk refuses, nobody is to call again and again.
                return Pruned(total, total != Count())

    async def count(self, old: Old) -> Pruned:
        """What there is of it, as far as it is counted."""
        count = await self._store.count(old, limit=COUNTED_ROWS)
        return Pruned(count, max(count.jobs, count.logs) >= COUNTED_ROWS)

    async def round(self, now: datetime) -> Count:
        """All that is due by then."""
        total = Count()
        if self._limits.keep_logs is not None:
            total += await self._prune_all(Old(now - self._limits.keep_logs, logs_only=True))
        if self._limits.keep_jobs is not None:
            total += await self._prune_all(Old(now - self._limits.keep_jobs))
        if self._limits.total_log_bytes is not None:
            total += await self._prune_excess(self._limits.total_log_bytes, now)
        if total != Count():
            log.info("pruned", jobs=total.jobs, logs=total.logs, bytes=total.bytes)
        return total

    async def _due_seconds(self, now: datetime) -> float:
        """How long there is nothing to do after the round of then, whatever ends in the meantime."""
        kept = await self._store.kept()
        left_over = self._logs.left_over.due_seconds()
        waits = [LONGEST_SECONDS if left_over is None else left_over]
        for oldest, keep in (
            (kept.oldest_log_time, self._limits.keep_logs),
            (kept.oldest_job_time, self._limits.keep_jobs),
        ):
            if keep is not None:
                left = keep if oldest is None else min(oldest + keep - now, keep)
                # What was due in that round and is still there could not be deleted.
                waits.append(left.total_seconds() if left > timedelta() else RETRY_SECONDS)
        return min(waits)

    async def _prune_all(self, old: Old) -> Count:
        total, place = Count(), Old.BEGIN
        while True:
            began = time.monotonic()
            step = await self._step(old, place)
            if step.place is None:
                return total
            total, place = total + step.count, step.place
            await self._pause(began)

    async def _prune_excess(self, limit: int, now: datetime) -> Count:
        """The logs that ended first, until the others take no more than that."""
        total, place, old = Count(), Old.BEGIN, Old(now, logs_only=True)
        while (excess := (await self._store.kept()).log_bytes - limit) > 0:
            began = time.monotonic()
            step = await self._step(old, place, excess)
            if step.place is None:
                return total
            total, place = total + step.count, step.place
            await self._pause(began)
        return total

    async def _delete_left_over(self) -> None:
        """What was set aside, as far as it can be deleted in a while: a container that runs on may fill it as fast as
        it is emptied."""
        until = time.monotonic() + LEFT_OVER_SECONDS
        while time.monotonic() < until:
            began = time.monotonic()
            self._check_open()
            if not await asyncio.get_running_loop().run_in_executor(self._thread, self._logs.left_over.step):
                return
            await self._pause(began)

    async def _pause(self, began: float) -> None:
        """As long as it worked: others want the disk and the writer, too."""
        await asyncio.sleep(time.monotonic() - began)

    async def _step(self, old: Old, after: Place, excess: int | None = None) -> _Step:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._prune_some, old, after, excess)

    def _check_open(self) -> None:
        if self._closed:
            raise ServerStopping("the server is stopping; try again", retry_seconds=1)

    # ---- on the thread

    def _prune_some(self, old: Old, after: Place, excess: int | None) -> _Step:
        """The next ones after that place, as many as a step takes; with `excess`, only until so many bytes are free."""
        self._check_open()
        found = self._store.oldest(old, after=after, limit=STEP_ROWS).result()
        if excess is not None:
            found = _up_to(found, excess)
        if not found:
            return _Step(Count(), None)
        # On a disk that is full to the last byte nothing can be marked; it is the files that have to go.
        with suppress(DiskFull):
            self._store.mark_pruned([each.execution_id for each in found if each.log_bytes]).result()
        deleted = {each.execution_id: self._delete_files(each.execution_id) for each in found}
        stuck = {each.job_id for each in found if deleted[each.execution_id] is _Deleted.NOTHING}
        gone = [each for each in found if each.job_id not in stuck]
        free = sum(each.log_bytes for each in gone if deleted[each.execution_id] is _Deleted.ALL)
        count = Count(0, sum(each.log_bytes > 0 for each in gone), free)
        if old.logs_only:
            self._store.forget_logs([each.execution_id for each in gone]).result()
        else:
            jobs = self._store.delete_jobs(sorted({each.job_id for each in gone})).result()
            count += Count(jobs)
        return _Step(count, found[-1].place)

    def _delete_files(self, execution_id: str) -> "_Deleted":
        try:
            return _Deleted.ALL if self._logs.delete(execution_id) else _Deleted.A_PART
        except Exception as error:
            # It stays known, and is tried again in the next round. Those behind it do not wait for it, whatever was
            # raised.
            log.warning("a log cannot be deleted", execution_id=execution_id, error=str(error))
            return _Deleted.NOTHING


class _Deleted(Enum):
    """How much of a log is gone. The rest of one that is gone in part was set aside, and needs no row to be known."""

    ALL = 1
    A_PART = 2
    NOTHING = 3


def _up_to(found: Sequence[Found], excess: int) -> list[Found]:
    """As many of them as take so many bytes."""
    chosen: list[Found] = []
    for each in found:
        if excess <= 0:
            break
        chosen.append(each)
        excess -= each.log_bytes
    return chosen
