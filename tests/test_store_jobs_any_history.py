"""Many jobs in one store: replaced, retried, paused, stopped and enqueued for one unique key, in any order."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastlane_grpc.errors import EtagMismatch, JobNotFinal, JobNotFound, NoSchedule, UniqueKeyTaken
from fastlane_grpc.model import Conflict, Cron, Execution, Hold, Jitter, Overlap, Retry, State, Unique
from tests.moved_store import SPEC, RunsStore, minutes

NEW_ID = "0191d2c8-0000-7000-8000-000000000001"
STARTS: list[dict[str, Any]] = [
    {},
    {"start_in": minutes(3)},
    {"cron": Cron("*/5 * * * *")},
    {"cron": Cron("*/5 * * * *", overlap=Overlap.ALLOW)},
    {"cron": Cron("*/5 * * * *", overlap=Overlap.REPLACE)},
    {"cron": Cron("*/5 * * * *", overlap=Overlap.QUEUE_ONE, paused=True, max_runs=3)},
]
RETRIES = [None, Retry(1, initial_backoff=minutes(1), factor=1, jitter=Jitter.NONE)]
UNIQUES = [None, Unique("key"), Unique("key", Conflict.USE_EXISTING), Unique("key", Conflict.REPLACE)]
REFUSED = (EtagMismatch, JobNotFinal, JobNotFound, NoSchedule, UniqueKeyTaken)


class JobsMachine(RuleBasedStateMachine):
    """No job waits for ever, no two hold one unique key, and the tables agree, whatever callers do."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.moved = RunsStore(Path(self.directory.name), self.loop)
        self.jobs = [NEW_ID]
        self.running: list[Execution] = []

    def _run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work) if asyncio.iscoroutine(work) else work.result()

    def _call(self, call: Any, *arguments: Any, **named: Any) -> Any:
        with suppress(*REFUSED):
            return self._run(call(*arguments, **named))

    @initialize(start=st.sampled_from(STARTS), retry=st.sampled_from(RETRIES))
    def a_job_waits_for_the_key_of_one_that_runs(self, start: dict[str, Any], retry: Retry | None) -> None:
        self.enqueue({}, None, UNIQUES[1])
        self.running += self._run(self.moved.look())
        self.enqueue(start, retry, Unique("key", Conflict.REPLACE))

    @rule(start=st.sampled_from(STARTS), retry=st.sampled_from(RETRIES), unique=st.sampled_from(UNIQUES))
    def enqueue(self, start: dict[str, Any], retry: Retry | None, unique: Unique | None) -> None:
        job = self._call(self.moved.job, retry=retry, unique=unique, **start)
        if job and len(self.jobs) < 4 and job.id not in self.jobs:
            self.jobs.append(job.id)

    @rule(
        data=st.data(),
        start=st.sampled_from(STARTS),
        retry=st.sampled_from(RETRIES),
        unique=st.sampled_from(UNIQUES),
        etag=st.sampled_from(["", "", "r1"]),
    )
    def replace(
        self, data: st.DataObject, start: dict[str, Any], retry: Retry | None, unique: Unique | None, etag: str
    ) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        spec = replace(SPEC, retry=retry, unique=unique, **start)
        self._call(self.moved.store.replace_job, job_id, task_id="task", spec=spec, etag=etag, caller_address="")

    @rule(data=st.data(), call=st.sampled_from(["retry_job", "pause_schedule", "resume_schedule"]))
    def change(self, data: st.DataObject, call: str) -> None:
        self._call(getattr(self.moved.store, call), data.draw(st.sampled_from(self.jobs)))

    @rule(data=st.data(), whole=st.booleans())
    def stop(self, data: st.DataObject, whole: bool) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        if whole:
            self._call(self.moved.store.stop, job_id, grace=None, note="")
        elif job := self._call(self.moved.store.job, job_id):
            self._call(self.moved.store.stop_execution, job.execution.id, grace=None, note="")

    @rule(span=st.sampled_from([timedelta(seconds=20), minutes(6)]), awake=st.booleans())
    def time_passes(self, span: timedelta, awake: bool) -> None:
        self.running += self._run(self.moved.pass_time(self.moved.now + span, awake=awake))

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        state=st.sampled_from([State.SUCCEEDED, State.FAILED, State.STOPPED, State.LOST, State.QUEUED]),
    )
    def a_run_ends(self, data: st.DataObject, state: State) -> None:
        execution = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if state is State.QUEUED:
            if self._run(self.moved.store.requeue(execution.id)).state is not State.QUEUED:
                self.running.append(execution)
        else:
            self._run(self.moved.end(execution, state))

    @invariant()
    def the_tables_agree(self) -> None:
        self.moved.check()
        rows = self.moved.rows
        open_keys = "FROM jobs AS other WHERE other.unique_key = 'key' AND other.state < 6"
        held = rows(
            f"SELECT job_id, (SELECT min(seq) {open_keys}) < jobs.seq FROM executions JOIN jobs USING (job_id)"
            f" WHERE executions.state < 6 AND held = {Hold.UNIQUE_KEY}"
        )
        assert all(waits for _, waits in held), "what waits for a key waits for a job that holds it"
        assert len(rows(f"SELECT seq {open_keys}")) <= 1 + len(held), "one job holds a key, the others wait"
        ticks = rows(
            "SELECT held, schedule ->> '$.paused' FROM executions JOIN jobs USING (job_id) WHERE jobs.state < 6"
            f" AND executions.state = {State.SCHEDULED} AND attempt = 1 AND executions.tick_time IS NOT NULL"
        )
        assert (Hold.NONE, True) not in ticks, "nothing waits for the tick of a paused schedule"
        assert (Hold.SCHEDULE_PAUSED, False) not in ticks, "nothing is held by a schedule that goes on"

    def teardown(self) -> None:
        # Schedules go on, runs end: nothing may wait then but for the next tick, or for a key.
        for job_id in self.jobs:
            self._call(self.moved.store.resume_schedule, job_id)
        for _ in range(6):
            for execution in self.running:
                self._run(self.moved.end(execution))
            self.running = self._run(self.moved.pass_time(self.moved.now + minutes(5)))
        started = {execution.job_id for execution in self.running}
        for job_id, held in self.moved.rows(
            "SELECT jobs.job_id, held FROM jobs JOIN executions USING (execution_id) WHERE jobs.state < 6"
        ):
            assert held or job_id in started, f"{job_id} waits for nothing"
        self.moved.close()
        self.loop.close()
        self.directory.cleanup()


TestAnyHistoryOfManyJobs = JobsMachine.TestCase
TestAnyHistoryOfManyJobs.settings = settings(
    max_examples=40, stateful_step_count=12, suppress_health_check=list(HealthCheck)
)
