"""What is counted of executions agrees with the change log, which triggers write, whatever is asked of the store."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.counts import PHASE_SECONDS, Histogram
from fastlane_grpc.model import Cron, Execution, LogTotals, Outcome, Overlap, Reason, Retry, Source, State
from fastlane_grpc.store import ExecutionCounts
from fastlane_grpc.store.database import open_for_reading
from tests.moved_store import BEGIN, RunsStore, minutes

GRACE = timedelta(seconds=5)
EVENTS = (
    "enqueue",
    "enqueue_cron",
    "claim",
    "start",
    "fail",
    "succeed",
    "stop",
    "requeue",
    "pass_time",
    "prune",
    "reopen",
)


class CountedStore(RunsStore):
    """A store whose changes are counted, and where each execution is taken on by the test."""

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(directory, loop)
        self.counted: list[ExecutionCounts] = [self.store.execution_counts]

    def recount(self) -> ExecutionCounts:
        """Count all commits so far."""
        while self.commits:
            self.counted[-1].on_commit(self.commits.pop(0))
        return self.counted[-1]

    def reopen(self) -> None:
        """Count from here on as the next server over the same data does."""
        self.recount()
        self.counted.append(ExecutionCounts())
        with closing(open_for_reading(self.path)) as db:
            self.counted[-1].load(db)

    async def start(self, execution: Execution) -> None:
        """Take a claimed execution to RUNNING, or its stop to its start time: 2 s for the pull, 3 s for the start."""
        pull_time = self.now + timedelta(seconds=2)
        fenced = await self.store.starting(
            execution.id, container_id="c", handle="{}", image_digest="", pull_time=pull_time, container_time=pull_time
        )
        if fenced:
            await self.store.running(execution.id, start_time=pull_time + timedelta(seconds=3))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CountedStore]:
    store = CountedStore(tmp_path, asyncio.get_running_loop())
    yield store
    store.check()
    store.close()


async def claimed(store: CountedStore) -> Execution:
    (assignment,) = await store.store.claim_on(["here"])
    return assignment.execution


def observed(histogram: Histogram) -> tuple[int, float]:
    return sum(histogram.counts), histogram.sum


async def test_each_phase_of_an_execution_is_measured_once(store: CountedStore) -> None:
    await store.job()
    store.now += timedelta(seconds=7)
    execution = await claimed(store)
    await store.start(execution)
    # Told again, as by a server that recovers it.
    await store.store.running(execution.id, start_time=store.now)
    logs = [LogTotals(Source.STDOUT, 1000), LogTotals(Source.SYSTEM, 10, 3)]
    exit_time = store.now + timedelta(seconds=2 + 3 + 90)
    outcome = Outcome(Reason.EXIT_CODE, exit_code=1)
    await store.store.finish(
        execution.id, state=State.FAILED, outcome=outcome, logs=logs, log_bytes=4096, exit_time=exit_time
    )
    # Its log is pruned, which is announced as changes of the execution.
    await store.store.mark_pruned([execution.id])
    await store.store.forget_logs([execution.id])
    counts = store.recount()
    assert (counts.claims, counts.requeues, counts.starts) == (1, 0, {"enqueue": 1})
    assert counts.ends == {(State.FAILED, Reason.EXIT_CODE): 1}
    seconds = {phase: observed(histogram) for phase, histogram in counts.phases.items()}
    assert seconds == {"queued": (1, 7.0), "pulling": (1, 2.0), "starting": (1, 3.0), "running": (1, 90.0)}
    assert counts.log_bytes == {Source.STDOUT: 1000, Source.SYSTEM: 10}
    assert counts.missing_log_bytes == {Source.STDOUT: 0, Source.SYSTEM: 3}


async def test_an_execution_that_goes_back_to_the_queue_is_claimed_twice(store: CountedStore) -> None:
    await store.job()
    await store.store.requeue((await claimed(store)).id)
    await store.start(await claimed(store))
    counts = store.recount()
    assert (counts.claims, counts.requeues, counts.starts) == (2, 1, {"enqueue": 1})


async def test_a_start_is_counted_by_its_cause(store: CountedStore) -> None:
    await store.job(retry=Retry(max_retries=1, initial_backoff=minutes(1)))
    first = await claimed(store)
    await store.start(first)
    await store.end(first, State.FAILED)
    [retry] = await store.pass_time(BEGIN + minutes(3))
    await store.start(retry)
    await store.job(cron=Cron("*/10 * * * *"))
    [tick] = await store.pass_time(BEGIN + minutes(12))
    await store.start(tick)
    assert store.recount().starts == {"enqueue": 1, "retry": 1, "tick": 1}


async def test_a_start_that_was_not_stored_is_counted_with_the_end(store: CountedStore) -> None:
    await store.job()
    execution = await claimed(store)
    store.reopen()
    start_time = store.now + timedelta(seconds=1)
    outcome = Outcome(exit_code=0)
    await store.store.finish(execution.id, state=State.SUCCEEDED, outcome=outcome, logs=(), start_time=start_time)
    counts = store.recount()
    # The claim was counted by the server before.
    assert (counts.claims, counts.starts, sum(counts.ends.values())) == (0, {"enqueue": 1}, 1)


async def test_a_clock_that_was_set_back_makes_no_negative_time(store: CountedStore) -> None:
    await store.job()
    store.now -= minutes(5)
    await claimed(store)
    assert observed(store.recount().phases["queued"]) == (1, 0.0)


def test_a_value_is_counted_within_the_first_bound_that_it_does_not_exceed() -> None:
    histogram = Histogram(PHASE_SECONDS)
    for value in (0.0, 0.01, 0.011, 86400.0, 86401.0):
        histogram.observe(value)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-2], histogram.counts[-1]) == (2, 1, 1, 1)


async def carry_out(store: CountedStore, event: str, number: int) -> None:
    """Carry out one event, on one of the executions that it may concern."""
    by_state = {
        state: [row[0] for row in store.rows(f"SELECT execution_id FROM executions WHERE state = {state} ORDER BY seq")]
        for state in State
    }

    def one_of(*states: State) -> str:
        ids = [execution_id for state in states for execution_id in by_state[state]]
        return ids[number % len(ids)] if ids else ""

    under_way = one_of(State.PREPARING, State.RUNNING, State.STOPPING)
    if event == "enqueue":
        await store.job(retry=Retry(max_retries=2, initial_backoff=minutes(1)))
    elif event == "enqueue_cron":
        await store.job(cron=Cron("*/5 * * * *", overlap=list(Overlap)[number % len(Overlap)]))
    elif event == "claim":
        await store.store.claim_on(["here"] * (1 + number % 2))
    elif event == "start" and (execution_id := one_of(State.PREPARING, State.RUNNING)):
        await store.start(await store.store.execution(execution_id))
    elif event in {"fail", "succeed"} and under_way:
        state = State.FAILED if event == "fail" else State.SUCCEEDED
        await store.store.finish(under_way, state=state, outcome=Outcome(exit_code=1), logs=(), log_bytes=1)
    elif event == "stop" and (execution_id := one_of(*State)):
        await store.store.stop_execution(execution_id, grace=GRACE, note="")
    elif event == "requeue" and (execution_id := one_of(State.PREPARING)):
        await store.store.requeue(execution_id)
    elif event == "pass_time":
        store.now += minutes(1 + number % 7)
        await store.store.promote(1000)
    elif event == "prune" and (execution_id := one_of(State.SUCCEEDED, State.FAILED)):
        await store.store.mark_pruned([execution_id])
    elif event == "reopen":
        store.reopen()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 1000)), max_size=40))
def test_counts_agree_with_the_change_log_after_any_history(events: list[tuple[str, int]]) -> None:
    async def history() -> None:
        with TemporaryDirectory() as directory:
            store = CountedStore(Path(directory), asyncio.get_running_loop())
            try:
                for event, number in [("enqueue", 0), *events]:
                    await carry_out(store, event, number)
                store.recount()
                check_counts(store)
                store.check()
            finally:
                store.close()

    asyncio.run(history())


def check_counts(store: CountedStore) -> None:
    # A change of the kind 1 is one of an execution's state.
    log = Counter(dict(store.rows("SELECT state, count(*) FROM changes WHERE kind = 1 GROUP BY state")))
    ends: Counter[State] = Counter()
    for counts in store.counted:
        for (state, _), count in counts.ends.items():
            ends[state] += count
    assert ends == Counter({State(state): count for state, count in log.items() if State(state).final})
    assert sum(counts.claims for counts in store.counted) == log[State.PREPARING]
    [(requeues,)] = store.rows(
        "SELECT count(*) FROM changes AS later WHERE kind = 1 AND state = 2 AND EXISTS (SELECT 1 FROM changes AS former"
        " WHERE former.execution_id = later.execution_id AND former.state = 3 AND former.sequence < later.sequence)"
    )
    assert sum(counts.requeues for counts in store.counted) == requeues
    [(starts,)] = store.rows("SELECT count(*) FROM executions WHERE start_time IS NOT NULL")
    assert sum(sum(counts.starts.values()) for counts in store.counted) == starts
    skipped = "SELECT coalesce(sum(json_extract(schedule, '$.skipped')), 0) FROM jobs"
    assert store.rows("SELECT skipped_ticks FROM kept") == store.rows(skipped)
