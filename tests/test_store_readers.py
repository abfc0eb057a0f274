"""The reading threads: reads of one kind are answered together, as each alone would be, by statements prepared once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlane_grpc.errors import JobNotFound
from fastlane_grpc.model import Job, JobSpec, State, utc_now
from fastlane_grpc.store import ExecutionQuery, JobQuery, PruneQuery, Store, due, pruning
from fastlane_grpc.store.database import Connection, open_for_reading, open_for_writing, sqlite3
from fastlane_grpc.store.job_state import DEFAULT_RULES
from fastlane_grpc.store.lists import SharedPage, page_of_executions, page_of_jobs, page_of_tasks
from fastlane_grpc.store.queries import JobInLine, ahead_of, execution_and_ahead
from fastlane_grpc.store.readers import MOST_TOGETHER, SHARED_FROM, THREADS, Readers

TASKS, JOBS = 3, 12


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    yield store
    store.close()


@pytest.fixture
async def jobs(store: Store) -> Sequence[Job]:
    """Jobs of several tasks and priorities; some are claimed."""
    made = [
        await store.enqueue(
            task_id=f"task-{number % TASKS}",
            spec=JobSpec("busybox", command="true", priority=number % 2),
            request_id="",
            caller_address="",
        )
        for number in range(JOBS)
    ]
    await store.claim_on(["here"] * 3)
    return [job for job, _ in made]


@pytest.fixture
async def readers(store: Store, tmp_path: Path) -> AsyncIterator[Readers]:
    readers = Readers(tmp_path / "fastlane.db", loop=asyncio.get_running_loop())
    yield readers
    readers.close()


class Held:
    """Keeps every reading thread busy within the context, so that reads gather."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._go_on = threading.Event()

    def __enter__(self) -> None:
        busy = threading.Barrier(THREADS + 1)

        def hold(db: Connection) -> None:
            busy.wait()
            self._go_on.wait()

        for _ in range(THREADS):
            self._readers.read(hold)
        busy.wait()

    def __exit__(self, *error: object) -> None:
        self._go_on.set()


# The fixtures are only read.
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(chosen=st.lists(st.tuples(st.integers(0, JOBS - 1), st.integers(0, 5)), min_size=1))
def test_jobs_that_are_read_together_are_what_each_alone_is(
    jobs: Sequence[Job], tmp_path: Path, chosen: Sequence[tuple[int, int]]
) -> None:
    works = [JobInLine(jobs[number].id, most) for number, most in chosen]
    db = open_for_reading(tmp_path / "fastlane.db")
    try:
        assert JobInLine.together(db, works) == [work(db) for work in works]
    finally:
        db.close()


async def test_an_unknown_job_fails_alone_among_those_that_are_read_with_it(
    jobs: Sequence[Job], readers: Readers
) -> None:
    asked = [*(job.id for job in jobs), "nobody", *(job.id for job in jobs)]
    with Held(readers):
        pending = [readers.read(JobInLine(job_id, 10), many=JobInLine.together) for job_id in asked]
    for job_id, answer in zip(asked, pending, strict=True):
        if job_id == "nobody":
            with pytest.raises(JobNotFound):
                await answer
        else:
            assert (await answer)[0].id == job_id


async def test_reads_of_one_kind_are_one_statement_until_another_kind_follows(
    jobs: Sequence[Job], readers: Readers
) -> None:
    batches: list[int] = []

    def together(db: Connection, works: Sequence[Any]) -> Sequence[Any]:
        batches.append(len(works))
        return [work(db) for work in works]

    def read(number: int, many: Callable[[Connection, Sequence[Any]], Sequence[Any]] | None) -> Any:
        return readers.read(lambda db: number, many=many)

    kinds = [together] * (MOST_TOGETHER + 3) + [None] + [together] * 2
    with Held(readers):
        pending = [read(number, many) for number, many in enumerate(kinds)]
    assert [await each for each in pending] == list(range(len(kinds)))
    # Two threads take from one queue: where each batch ends depends on them, not that each has an end.
    assert sum(batches) > MOST_TOGETHER
    assert max(batches) == MOST_TOGETHER


async def test_a_page_that_many_wait_for_is_read_once_for_all(jobs: Sequence[Job], readers: Readers) -> None:
    reads: list[int] = []

    def find(db: Connection, query: JobQuery, after: Any, size: int) -> Any:
        reads.append(size)
        return page_of_jobs(db, query, after, size)

    asked = [
        *[(JobQuery(), None, 5)] * MOST_TOGETHER,
        (JobQuery(), None, 4),
        *[(JobQuery(labels={"a": "b"}), None, 3)] * 2,
        (JobQuery(), (1, 1), 4),
    ]
    with Held(readers):
        pending = []
        for query, after, size in asked:
            # Equal, and not the same object: each call has a request of its own.
            page = SharedPage(find, JobQuery(labels=dict(query.labels)), after, size)
            pending.append(readers.read(page.read, many=page))
    pages = [await each for each in pending]
    assert [len(page.items) for page in pages] == [5] * MOST_TOGETHER + [4, 0, 0, 0]
    # Two threads take from one queue.
    assert reads.count(5) <= THREADS
    assert reads.count(4) == 2


async def test_reads_after_reads_that_came_together_are_answered_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastlane_grpc.store.readers.SHARED_FOR_SECONDS", 3600.0)
    readers = Readers(tmp_path / "fastlane.db", loop=asyncio.get_running_loop(), shared_seconds=0.3)
    with Held(readers):
        shared = [readers.read(lambda db: None) for _ in range(SHARED_FROM * THREADS)]
    await asyncio.gather(*shared)
    batches: list[int] = []

    def together(db: Connection, works: Sequence[Any]) -> Sequence[Any]:
        batches.append(len(works))
        return [None] * len(works)

    # Each thread takes one, and waits; one of the threads finds the others.
    later = []
    for _ in range(MOST_TOGETHER):
        later.append(readers.read(lambda db: None, many=together))
        await asyncio.to_thread(int)  # time for a thread to take it
    await asyncio.gather(*later)
    # Late ones are answered with others that are late.
    assert sum(batches) >= MOST_TOGETHER // 2
    readers.close()


NOW = utc_now()
Run = Callable[[Connection, Job, int], object]
# Each with a value of its own for its limit.
STATEMENTS: Mapping[str, Run] = {
    "job in line": lambda db, job, limit: JobInLine(job.id, limit)(db),
    "jobs in line": lambda db, job, limit: JobInLine.together(db, [JobInLine(job.id, limit)] * 2),
    "execution in line": lambda db, job, limit: execution_and_ahead(db, job.execution.id, limit),
    "ahead": lambda db, job, limit: ahead_of(db, job.execution.id, limit),
    "jobs": lambda db, job, limit: page_of_jobs(db, JobQuery(), None, limit),
    "jobs of states": lambda db, job, limit: page_of_jobs(db, JobQuery(states=[State.QUEUED]), None, limit),
    "jobs with specs": lambda db, job, limit: page_of_jobs(db, JobQuery(with_spec=True), None, limit),
    "jobs of a prefix": lambda db, job, limit: page_of_jobs(db, JobQuery(id_prefix=job.id[:8]), None, limit),
    "executions": lambda db, job, limit: page_of_executions(db, ExecutionQuery(host="here"), None, limit),
    "tasks": lambda db, job, limit: page_of_tasks(db, None, limit),
    "expired": lambda db, job, limit: due.expire(db, NOW, limit, DEFAULT_RULES),
    "due": lambda db, job, limit: due.promote(db, NOW, limit, DEFAULT_RULES),
    "old logs": lambda db, job, limit: pruning.oldest(db, PruneQuery(NOW, logs_only=True), PruneQuery.START, limit),
    "old jobs": lambda db, job, limit: pruning.count(db, PruneQuery(NOW), limit),
}


@pytest.mark.parametrize("run", STATEMENTS.values(), ids=STATEMENTS)
async def test_a_statement_with_another_limit_is_not_prepared_again(
    store: Store, jobs: Sequence[Job], tmp_path: Path, run: Run
) -> None:
    store.close()
    db = open_for_writing(tmp_path / "fastlane.db")
    prepared: list[tuple[object, ...]] = []

    def note(*action: object) -> int:
        prepared.append(action)
        return sqlite3.SQLITE_OK

    try:
        # SQLite asks the authorizer whenever it prepares a statement.
        db.set_authorizer(note)
        run(db, jobs[0], 5)
        assert prepared, "the authorizer is asked"
        prepared.clear()
        for limit in (6, 7, 8):
            run(db, jobs[limit], limit)
        assert not prepared
    finally:
        db.close()
