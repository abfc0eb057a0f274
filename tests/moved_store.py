"""A store whose clock the test moves, and runs of its jobs without an engine."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastlane_grpc.model import Execution, Job, JobSpec, Notification, Outcome, Reason, State
from fastlane_grpc.store import Quota, Rules, Store
from fastlane_grpc.store.database import open_for_reading
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from tests.new_database import open_database
from tests.store_checks import check_jobs, check_lines

SPEC = JobSpec("busybox", command="true")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ALL = 1000


class RunsStore:
    """A store whose clock the test moves. What is due is claimed at once, and runs until the test ends it."""

    def __init__(
        self,
        directory: Path,
        loop: asyncio.AbstractEventLoop,
        *,
        now: datetime = BEGIN,
        quota: Quota | None = None,
        default_history: int = 100,
        default_notifications: Sequence[Notification] = (),
    ) -> None:
        self.now = now
        self.path = directory / "fastlane.db"
        self.commits: list[Sequence[Execution]] = []
        writer = Writer(open_database(self.path), self.path, loop=loop, on_commit=self.commits.append)
        self.store = Store(
            writer,
            Readers(self.path, loop=loop),
            instance="",
            now=lambda: self.now,
            quota=quota,
            rules=Rules(default_history=default_history, default_notifications=default_notifications),
        )
        self._reading = open_for_reading(self.path)

    async def job(self, task_id: str = "task", request_id: str = "", **spec: Any) -> Job:
        job, _ = await self.store.enqueue(
            task_id=task_id, spec=replace(SPEC, **spec), request_id=request_id, caller_address=""
        )
        return job

    async def pass_time(self, until: datetime, *, awake: bool = True) -> list[Execution]:
        """Let time pass. A server that is awake does what is due when it is due, and claims what is queued; return what
        it claimed. One that is not does nothing."""
        claimed: list[Execution] = []
        while awake and (due_time := await self.store.next_due_time()) and due_time <= until:
            self.now = max(self.now, due_time)
            claimed += await self.look()
        self.now = until
        return claimed + (await self.look() if awake else [])

    async def look(self) -> list[Execution]:
        """Do what is due now, and claim what is queued."""
        while (await self.store.promote(ALL)).more:
            pass
        return [each.execution for each in await self.store.claim_on(["here"] * ALL)]

    async def end(self, execution: Execution, state: State = State.SUCCEEDED, code: int | None = None) -> Execution:
        reason = Reason.EXIT_CODE if state is State.FAILED else Reason.UNSPECIFIED
        outcome = Outcome(reason, f"as {state.name}", code if code is not None else int(state is State.FAILED))
        return await self.store.finish(execution.id, state=state, outcome=outcome, logs=())

    async def executions(self, job_id: str) -> list[Execution]:
        """All executions of the job, the oldest one first."""
        ids = self.rows(f"SELECT execution_id FROM executions WHERE job_id = '{job_id}' ORDER BY seq")
        return [await self.store.execution(execution_id) for (execution_id,) in ids]

    def rows(self, sql: str) -> list[Any]:
        return self._reading.execute(sql).fetchall()

    def check(self) -> None:
        check_lines(self.rows)
        check_jobs(self.rows)

    def close(self) -> None:
        self._reading.close()
        self.store.close()


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)
