"""Jobs that are stopped when nobody watches them: a caller may vanish, as a step of a CI system that is killed."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import structlog

from fastlane_grpc.errors import JobNotFound, Refusal
from fastlane_grpc.model import Execution, Job
from fastlane_grpc.store import Store
from fastlane_grpc.wakeup import Wakeup

log = structlog.get_logger(__name__)

# The shortest time between two looks at the store, which may have commits all the time.
PACE_SECONDS = 1.0
# The time until a stop that failed is tried again.
AGAIN_SECONDS = 5.0


class UnwatchedJobs:
    """Stops the jobs that nobody has watched for as long as their specs say. Lives on the loop.

    Times are kept in memory and begin anew with the server: its clients need to come back after a restart. `stop` is
    called with the id of a job and the reason."""

    def __init__(self, store: Store, stop: Callable[[str, str], Coroutine[Any, Any, Job]]) -> None:
        self._store = store
        self._stop = stop
        self._watchers: Counter[str] = Counter()
        # The open jobs that ask for it; and the loop's time since when nobody watches a job.
        self._limits: Mapping[str, timedelta] = {}
        self._since: dict[str, float] = {}
        self._changed = Wakeup()

    def changed(self, executions: Sequence[Execution]) -> None:
        """Look for jobs that began or ended."""
        self._changed.set()

    @contextmanager
    def watching(self, job_ids: Collection[str]) -> Iterator[None]:
        """Count one more watcher of each of these jobs within the context."""
        self._watchers.update(job_ids)
        try:
            yield
        finally:
            for job_id in job_ids:
                self._watchers[job_id] -= 1
                if not self._watchers[job_id]:
                    del self._watchers[job_id]
                    if job_id in self._limits:
                        self._since[job_id] = asyncio.get_running_loop().time()
                        self._changed.set()

    async def run(self) -> None:
        """Stop jobs without end. An error of the store ends it: the supervisor starts it again."""
        now = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            look_time = now()
            self._limits = await self._store.unwatched_limits()
            self._since = {job_id: self._since.get(job_id, look_time) for job_id in self._limits}
            ends = {
                job_id: self._since[job_id] + limit.total_seconds()
                for job_id, limit in self._limits.items()
                if job_id not in self._watchers
            }
            for job_id, end in ends.items():
                if end <= now() and job_id not in self._watchers:
                    await self._stop_job(job_id)
                    ends[job_id] = now() + AGAIN_SECONDS
            await self._changed.wait(max(min(ends.values()) - now(), 0.0) if ends else None)
            await asyncio.sleep(max(look_time + PACE_SECONDS - now(), 0.0))

    async def _stop_job(self, job_id: str) -> None:
        seconds = self._limits[job_id].total_seconds()
        log.info("nobody watches the job: it is stopped", job_id=job_id, limit_seconds=seconds)
        try:
            await self._stop(job_id, f"nobody has watched it for {seconds:g} s")
        except JobNotFound:
            pass  # It was pruned.
        except Refusal as error:
            # The disk is full, or the server stops.
            log.warning("the job is not stopped yet", job_id=job_id, error=str(error))
