"""Lists of the store: pages put together are what was asked for, each once, and a page costs the same however much is
kept."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlane_grpc.errors import ExecutionNotFound, TaskNotFound
from fastlane_grpc.model import JobSpec, State, StopCause, new_id
from fastlane_grpc.store import ExecutionQuery, JobQuery, ListPage, Store
from fastlane_grpc.store.database import Connection, open_for_writing, sqlite3
from fastlane_grpc.store.enqueue import Enqueue
from fastlane_grpc.store.lists import MOST_SPEC_BYTES, page_of_executions, page_of_jobs, page_of_tasks
from fastlane_grpc.store.rows import rows_at_once

SPEC = JobSpec("busybox")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    db = open_for_writing(tmp_path_factory.mktemp("store") / "fastlane.db")
    yield db
    db.close()


@contextmanager
def undone(db: Connection) -> Iterator[Connection]:
    """The database, as if nothing had happened to it afterwards."""
    db.execute("BEGIN")
    try:
        yield db
    finally:
        db.execute("ROLLBACK")


@pytest.fixture
def db(kept: Connection) -> Iterator[Connection]:
    with undone(kept):
        yield kept


def at(microseconds: int) -> datetime:
    return BEGIN + timedelta(microseconds=microseconds)


def keep(
    db: Connection, task_id: str = "task", labels: Mapping[str, str] | None = None, time: int = 0, spec: JobSpec = SPEC
) -> str:
    job, _ = Enqueue(task_id, replace(spec, labels=labels or {}), "", "", at(time))(db).answer
    return job.id


def change(db: Connection, job_id: str, state: State, host: str = "") -> None:
    outcome = 0 if state.final else None
    db.execute("UPDATE executions SET host = ?, reason = ?, detail = '' WHERE job_id = ?", (host, outcome, job_id))
    db.execute(
        "UPDATE executions SET state = ? WHERE execution_id = (SELECT execution_id FROM jobs WHERE job_id = ?)",
        (state, job_id),
    )
    db.execute("UPDATE jobs SET state = ? WHERE job_id = ?", (state, job_id))


def run_again(db: Connection, job_id: str) -> None:
    """A second container for the job: nothing makes one yet, but every list is to be right when something does."""
    execution_id = new_id()
    db.execute(
        """
        INSERT INTO executions
            (execution_id, job_id, task_id, priority, run, attempt, state, state_time, create_time, due_time)
        SELECT ?, job_id, task_id, 0, 2, 1, 2, 0, 0, 0 FROM jobs WHERE job_id = ?
        """,
        (execution_id, job_id),
    )
    db.execute(
        "UPDATE jobs SET state = 2, execution_id = ?, executions = executions + 1 WHERE job_id = ?",
        [execution_id, job_id],
    )


def pages(read: Callable[[Any], ListPage[Any]], between: Callable[[], None] = lambda: None) -> list[Any]:
    """Items of all pages, one after the other."""
    items: list[Any] = []
    after = None
    for _ in range(10_000):
        page = read(after)
        assert len(page.items) == len(page.positions)
        items += page.items
        if page.rest is None:
            return items
        assert page.rest != after, "it goes on"
        after = page.rest
        between()
    pytest.fail("a list without an end")


# ---------------------------------------------------------------------------------------------- pages, whatever happens


TASKS = st.sampled_from(["a", "b", "c"])
STATES = st.sampled_from(list(State))
LABELS = st.dictionaries(st.sampled_from(["team", "env", "ü"]), st.sampled_from(["x", "y", ""]), max_size=3)
HOSTS = st.sampled_from(["here", "there"])
TIMES = st.integers(0, 6)


@dataclass(frozen=True)
class Came:
    """A job that comes, now or later, and what becomes of it."""

    task_id: str
    labels: Mapping[str, str]
    time: int
    state: State
    host: str
    again: bool

    def happen(self, db: Connection, jobs: dict[str, Mapping[str, str]]) -> None:
        job_id = keep(db, self.task_id, self.labels, self.time)
        jobs[job_id] = self.labels
        if self.state is not State.QUEUED:
            change(db, job_id, self.state, self.host)
        if self.again:
            run_again(db, job_id)


@dataclass(frozen=True)
class Changed:
    """A job that is there changes its state."""

    which: int
    state: State

    def happen(self, db: Connection, jobs: dict[str, Mapping[str, str]]) -> None:
        if jobs:
            change(db, list(jobs)[self.which % len(jobs)], self.state, "here")


CAME = st.builds(Came, TASKS, LABELS, TIMES, STATES, HOSTS, st.booleans())
EVENTS = st.lists(st.one_of(CAME, st.builds(Changed, st.integers(0, 30), STATES)), max_size=6)
# The length of a prefix of the id of one of the jobs, and which; longer ones leave few.
PREFIXES = st.tuples(st.sampled_from([0, 0, 0, 1, 13, 15, 20, 36]), st.integers(0, 30))

JOB_QUERIES = st.builds(
    JobQuery,
    task_id=st.one_of(st.just(""), TASKS),
    states=st.sets(STATES, max_size=4).map(sorted).map(tuple),
    labels=LABELS,
    since_time=st.one_of(st.none(), TIMES.map(at)),
    until_time=st.one_of(st.none(), TIMES.map(at)),
    with_spec=st.booleans(),
)
EXECUTION_QUERIES = st.builds(
    ExecutionQuery,
    task_id=st.one_of(st.just(""), TASKS),
    states=st.sets(STATES, max_size=4).map(sorted).map(tuple),
    host=st.one_of(st.just(""), HOSTS),
)
MANY = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def wanted_jobs(db: Connection, query: JobQuery, jobs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """By a scan and by Python: ids in the order of the list."""
    rows = db.execute(
        "SELECT job_id, task_id, state, create_time FROM jobs ORDER BY create_time DESC, seq DESC"
    ).fetchall()
    return [
        job_id
        for job_id, task_id, state, microseconds in rows
        if query.task_id in ("", task_id)
        and (not query.states or state in query.states)
        and query.labels.items() <= jobs[job_id].items()
        and (
            query.since_time is None
            or datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds) >= query.since_time
        )
        and (
            query.until_time is None
            or datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds) < query.until_time
        )
        and job_id.startswith(query.id_prefix)
    ]


def wanted_executions(db: Connection, query: ExecutionQuery) -> list[str]:
    rows = db.execute("SELECT execution_id, job_id, task_id, state, host FROM executions ORDER BY seq DESC").fetchall()
    return [
        execution_id
        for execution_id, job_id, task_id, state, host in rows
        if query.job_id in ("", job_id)
        and query.task_id in ("", task_id)
        and (not query.states or state in query.states)
        and query.host in ("", host)
        and execution_id.startswith(query.id_prefix)
    ]


@given(
    there=st.lists(CAME, max_size=25),
    query=JOB_QUERIES,
    prefix=PREFIXES,
    size=st.integers(1, 8),
    most=st.sampled_from([1, 4, 20, 10_000]),
)
@MANY
def test_pages_of_jobs_put_together_are_what_was_asked_for(
    kept: Connection, there: list[Came], query: JobQuery, prefix: tuple[int, int], size: int, most: int
) -> None:
    with undone(kept) as db:
        jobs: dict[str, Mapping[str, str]] = {}
        for came in there:
            came.happen(db, jobs)
        if jobs:
            query = replace(query, id_prefix=list(jobs)[prefix[1] % len(jobs)][: prefix[0]])
        found = pages(lambda after: page_of_jobs(db, query, after, size, most=most))
        assert [job.id for job in found] == wanted_jobs(db, query, jobs)
        for job in found:
            assert job.execution.state == db.execute("SELECT state FROM jobs WHERE job_id = ?", [job.id]).fetchone()[0]
            assert job.spec == (replace(SPEC, labels=jobs[job.id]) if query.with_spec else None)
            assert job.executions == job.execution.run


@given(
    there=st.lists(CAME, max_size=25),
    query=EXECUTION_QUERIES,
    prefix=PREFIXES,
    size=st.integers(1, 8),
    most=st.sampled_from([1, 4, 20]),
)
@MANY
def test_pages_of_executions_put_together_are_what_was_asked_for(
    kept: Connection, there: list[Came], query: ExecutionQuery, prefix: tuple[int, int], size: int, most: int
) -> None:
    with undone(kept) as db:
        jobs: dict[str, Mapping[str, str]] = {}
        for came in there:
            came.happen(db, jobs)
        ids = wanted_executions(db, ExecutionQuery())
        queries = [query]
        if ids:
            queries.append(replace(query, id_prefix=ids[prefix[1] % len(ids)][: prefix[0]]))
            queries.append(replace(query, job_id=list(jobs)[prefix[1] % len(jobs)]))
        for each in queries:
            found = pages(lambda after, each=each: page_of_executions(db, each, after, size, most=most))  # type: ignore[misc]
            assert [execution.id for execution in found] == wanted_executions(db, each)


@given(
    there=st.lists(CAME, max_size=20),
    events=st.lists(EVENTS, max_size=10),
    query=JOB_QUERIES,
    size=st.integers(1, 5),
    most=st.sampled_from([3, 10_000]),
)
@MANY
def test_what_comes_and_changes_between_pages_of_jobs_hides_and_doubles_nothing(
    kept: Connection, there: list[Came], events: list[list[Came | Changed]], query: JobQuery, size: int, most: int
) -> None:
    with undone(kept) as db:
        jobs: dict[str, Mapping[str, str]] = {}
        for came in there:
            came.happen(db, jobs)
        times = [wanted_jobs(db, query, jobs)]
        rounds = iter(events)

        def between() -> None:
            for event in next(rounds, []):
                event.happen(db, jobs)
                times.append(wanted_jobs(db, query, jobs))

        found = [job.id for job in pages(lambda after: page_of_jobs(db, query, after, size, most=most), between)]
        assert len(found) == len(set(found)), "nothing twice"
        assert set.intersection(*map(set, times)) <= set(found), "what was there all along is there"
        assert set(found) <= set.union(*map(set, times)), "and what never was is not"
        order = db.execute("SELECT job_id FROM jobs ORDER BY create_time DESC, seq DESC").fetchall()
        assert found == [job_id for (job_id,) in order if job_id in found]


@given(
    there=st.lists(CAME, max_size=20),
    events=st.lists(EVENTS, max_size=10),
    query=EXECUTION_QUERIES,
    size=st.integers(1, 5),
    most=st.sampled_from([3, 10_000]),
)
@MANY
def test_changes_between_pages_of_executions_hide_and_repeat_nothing(
    kept: Connection, there: list[Came], events: list[list[Came | Changed]], query: ExecutionQuery, size: int, most: int
) -> None:
    with undone(kept) as db:
        jobs: dict[str, Mapping[str, str]] = {}
        for came in there:
            came.happen(db, jobs)
        times = [wanted_executions(db, query)]
        rounds = iter(events)

        def between() -> None:
            for event in next(rounds, []):
                event.happen(db, jobs)
                times.append(wanted_executions(db, query))

        found = [
            execution.id
            for execution in pages(lambda after: page_of_executions(db, query, after, size, most=most), between)
        ]
        assert len(found) == len(set(found)), "nothing twice"
        assert set.intersection(*map(set, times)) <= set(found), "what was there all along is there"
        assert set(found) <= set.union(*map(set, times)), "and what never was is not"


@pytest.mark.parametrize("size", [1, 3, 10])
def test_tasks_come_by_name_with_the_number_of_their_jobs(db: Connection, size: int) -> None:
    for number, task_id in enumerate(["b", "a", "c.1", "B", "c", "a"]):
        job_id = keep(db, task_id, time=number)
    change(db, job_id, State.SUCCEEDED)
    found = pages(lambda after: page_of_tasks(db, after, size))
    assert [(task.id, task.jobs, task.open_jobs) for task in found] == [
        ("B", 1, 1),
        ("a", 2, 1),
        ("b", 1, 1),
        ("c", 1, 1),
        ("c.1", 1, 1),
    ]
    assert (found[1].create_time, found[1].last_enqueue_time) == (at(1), at(5))


# ---------------------------------------------------------------------------------------------------- what is in a page


def test_a_page_holds_no_more_specs_than_fit_into_memory_and_the_next_goes_on(db: Connection) -> None:
    large = replace(SPEC, args=["x" * 1000] * 1000)
    ids = [keep(db, spec=large, time=number) for number in range(8)]
    query = JobQuery(with_spec=True)
    page = page_of_jobs(db, query, None, 1000)
    assert len(page.items) == MOST_SPEC_BYTES // 1_000_000
    assert [job.id for job in pages(lambda after: page_of_jobs(db, query, after, 1000))] == ids[::-1]
    assert len(page_of_jobs(db, JobQuery(), None, 1000).items) == 8


def test_a_spec_that_is_larger_than_a_page_is_a_page_of_its_own(db: Connection) -> None:
    # The wire holds such a character in one byte, the store in six.
    larger = replace(SPEC, args=["\x01" * 100_000] * 6)
    ids = [keep(db, spec=larger, time=number) for number in range(3)]
    assert [job.id for job in pages(lambda after: page_of_jobs(db, JobQuery(with_spec=True), after, 10))] == ids[::-1]


@given(
    st.lists(
        st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1), st.text(st.characters(exclude_categories=["Cs"]))),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=200)
def test_rows_that_are_read_at_once_are_the_rows(values: list[int | str | None]) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE each (value ANY) STRICT")
        db.executemany("INSERT INTO each VALUES (?)", [(value,) for value in values])
        rows = rows_at_once(db, "rowid, value", "FROM each WHERE rowid > :after", {"after": 0})
        assert [tuple(row) for row in rows] == db.execute("SELECT rowid, value FROM each").fetchall()
        assert rows_at_once(db, "value", "FROM each WHERE rowid > :after", {"after": 99}) == []


def test_labels_go_with_their_job(db: Connection) -> None:
    labels = {"a": 'with "quotes"', "ü": "\\", "n": ""}
    gone, stays = keep(db, labels=labels, time=1), keep(db, labels=labels, time=1)
    db.execute("DELETE FROM executions WHERE job_id = ?", [gone])
    db.execute("DELETE FROM jobs WHERE job_id = ?", [gone])
    assert db.execute("SELECT count(*) FROM job_labels").fetchone() == (3,)
    assert [job.id for job in page_of_jobs(db, JobQuery(labels=labels), None, 10).items] == [stays]


def test_jobs_that_are_kept_together_are_found_by_their_own_labels(db: Connection) -> None:
    works = [
        Enqueue("task", replace(SPEC, labels={"number": str(number), "third": str(number % 3)}), "", "", at(0))
        for number in range(200)
    ]
    Enqueue.together(db, works)
    for number, work in enumerate(works):
        assert [job.id for job in page_of_jobs(db, JobQuery(labels={"number": str(number)}), None, 10).items] == [
            work.job.id
        ]
    found = pages(lambda after: page_of_jobs(db, JobQuery(labels={"third": "1"}), after, 10))
    assert [job.id for job in found] == [work.job.id for work in works if work.job.spec.labels["third"] == "1"][::-1]


# -------------------------------------------------------------------------------------------------------- what it costs


def fill(db: Connection, count: int) -> None:
    """Jobs by the number, three in each microsecond: every tenth waits, one in a hundred runs; of 50 tasks."""
    numbers = range(1, count + 1)

    def state(number: int) -> State:
        return State.QUEUED if number % 10 == 0 else State.RUNNING if number % 100 == 1 else State.SUCCEEDED

    ids = [(f"{number:012x}-0", f"t{number % 50}", state(number), number // 3) for number in numbers]
    db.executemany("INSERT INTO tasks VALUES (?, 0, 0, 0, 0)", [(f"t{number}",) for number in range(50)])
    db.executemany(
        """
        INSERT INTO jobs
            (job_id, execution_id, task_id, state, spec, create_time, request_id, request_digest, caller_address)
        VALUES (?1, ?1, ?2, ?3, CAST('{}' AS BLOB), ?4, '', x'00', '')
        """,
        ids,
    )
    db.executemany(
        """
        INSERT INTO executions
            (execution_id, job_id, task_id, priority, run, attempt, state, state_time, create_time, due_time, host)
        VALUES (?1, ?1, ?2, 0, 1, 1, ?3, ?4, ?4, 0, 'here')
        """,
        ids,
    )
    labels = [
        (name, value, number // 3, number)
        for number in numbers
        for name, value in (("env", "prod"), ("run", str(number // 10)))
    ]
    db.executemany("INSERT INTO job_labels VALUES (?, ?, ?, ?)", labels)


def steps(db: Connection, read: Callable[[], object]) -> int:
    """Of SQLite's machine, to the next hundred."""
    hundreds = 0

    def count() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    db.set_progress_handler(count, 100)
    try:
        read()
    finally:
        db.set_progress_handler(None, 0)
    return 100 * hundreds


# No more than this, however much is kept, where an index leads to all that is wanted; and where each of 10 000 rows is
# checked.
STRAIGHT, CHECKED = 20_000, 600_000
QUERIES: list[tuple[JobQuery | ExecutionQuery, int]] = [
    (JobQuery(), STRAIGHT),
    (JobQuery(states=[State.QUEUED]), STRAIGHT),
    (JobQuery(states=[State.RUNNING, State.LOST]), STRAIGHT),
    (JobQuery(task_id="t7"), STRAIGHT),
    (JobQuery(task_id="t7", states=[State.LOST]), STRAIGHT),
    (JobQuery(task_id="unknown"), STRAIGHT),
    (
        JobQuery(
            since_time=datetime(1970, 1, 1, tzinfo=UTC), until_time=datetime(1970, 1, 1, 0, 0, 0, 200, tzinfo=UTC)
        ),
        STRAIGHT,
    ),
    (JobQuery(labels={"env": "prod"}), STRAIGHT),
    (JobQuery(labels={"run": "7"}), STRAIGHT),
    (JobQuery(labels={"env": "prod", "run": "7"}), CHECKED),
    (JobQuery(labels={"env": "prod"}, states=[State.LOST]), CHECKED),
    (JobQuery(labels={"env": "prod"}, task_id="unknown"), CHECKED),
    (JobQuery(id_prefix="0000000000"), CHECKED),
    (JobQuery(id_prefix="0"), CHECKED),
    (JobQuery(id_prefix="0", labels={"env": "none"}), CHECKED),
    (ExecutionQuery(), STRAIGHT),
    (ExecutionQuery(states=[State.RUNNING]), STRAIGHT),
    (ExecutionQuery(task_id="t7"), STRAIGHT),
    (ExecutionQuery(host="here"), STRAIGHT),
    (ExecutionQuery(job_id=f"{7:012x}-0"), STRAIGHT),
    (ExecutionQuery(host="here", task_id="t7", states=[State.LOST]), CHECKED),
    (ExecutionQuery(id_prefix="0", host="here"), CHECKED),
]


@pytest.mark.slow
def test_a_page_costs_the_same_however_much_is_kept(tmp_path: Path) -> None:
    of_few, of_many = costs(tmp_path / "few", 20_000), costs(tmp_path / "many", 200_000)
    for (query, most), *each in zip(QUERIES, of_few, of_many, strict=True):
        for few, many in zip(*each, strict=True):
            assert many <= most, f"{query} takes {many} steps"
            assert many <= 2 * few + 2_000, f"{query} takes {many} steps, and {few} with a tenth of the jobs"


def costs(directory: Path, count: int) -> list[tuple[int, int]]:
    """Of each query: of its first page, and of one that begins in the middle."""
    directory.mkdir()
    db = open_for_writing(directory / "fastlane.db")
    # The queue is beside the point, and its upkeep is half of the work.
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    db.execute("PRAGMA synchronous = OFF")
    db.execute("BEGIN")
    fill(db, count)
    measured = [
        (steps(db, partial(page, db, query, 0)), steps(db, partial(page, db, query, count // 2)))
        for query, _ in QUERIES
    ]
    # The executions that run are counted, of which there are no more than slots.
    db.execute(f"UPDATE executions SET state = {State.SUCCEEDED} WHERE state BETWEEN 3 AND 5")
    assert steps(db, lambda: page_of_tasks(db, None, 50)) < 5_000
    db.execute("ROLLBACK")
    db.close()
    return measured


def page(db: Connection, query: JobQuery | ExecutionQuery, after: int) -> object:
    if isinstance(query, JobQuery):
        return page_of_jobs(db, query, (after // 3, after) if after else None, 50)
    return page_of_executions(db, query, (after,) if after else None, 50)


# ---------------------------------------------------------------------------------------------------------- the methods


async def test_the_store_answers_pages_from_its_reading_threads(tmp_path: Path) -> None:
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    jobs = [(await store.enqueue(task_id="t", spec=SPEC, request_id="", caller_address=""))[0] for _ in range(3)]
    first = await store.jobs(JobQuery(with_spec=True), size=2)
    assert first.items == jobs[:0:-1]
    rest = await store.jobs(JobQuery(with_spec=True), after=first.rest, size=2)  # type: ignore[arg-type]
    assert (rest.items, rest.rest) == (jobs[:1], None)
    executions = await store.executions(ExecutionQuery(job_id=jobs[0].id), size=5)
    assert executions.items == [jobs[0].execution]
    [task] = (await store.tasks(size=5)).items
    assert (task, task.jobs) == (await store.task("t"), 3)
    with pytest.raises(TaskNotFound, match="there is no task 'T'"):
        await store.task("T")
    store.close()


async def test_one_execution_is_stopped_as_a_job_is(tmp_path: Path) -> None:
    announced: list[object] = []
    store = Store.open(tmp_path, on_commit=announced.extend, loop=asyncio.get_running_loop())
    grace = timedelta(seconds=10)
    job, _ = await store.enqueue(task_id="t", spec=SPEC, request_id="", caller_address="")
    stopped = await store.stop_execution(job.execution.id, grace=grace, note="why")
    assert stopped.outcome is not None
    assert (stopped.state, stopped.outcome.detail, announced[-1]) == (
        State.STOPPED,
        "stopped while it was queued: why",
        stopped,
    )
    assert await store.stop_execution(job.execution.id, grace=grace, note="again") == stopped
    await store.enqueue(task_id="t", spec=SPEC, request_id="", caller_address="")
    [assignment] = await store.claim_on(["here"])
    stopping = await store.stop_execution(assignment.execution.id, grace=grace, note="")
    assert stopping.stop is not None
    assert (stopping.state, stopping.stop.cause, stopping.stop.grace) == (State.STOPPING, StopCause.CALLER, grace)
    sooner = await store.stop_execution(assignment.execution.id, grace=timedelta(), note="")
    assert sooner.stop is not None
    assert sooner.stop.grace < timedelta(seconds=1)
    with pytest.raises(ExecutionNotFound):
        await store.stop_execution("nope", grace=grace, note="")
    store.close()


async def test_a_stop_of_an_older_execution_leaves_the_newest_alone(tmp_path: Path) -> None:
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    job, _ = await store.enqueue(task_id="t", spec=SPEC, request_id="", caller_address="")
    db = open_for_writing(tmp_path / "fastlane.db")
    run_again(db, job.id)
    db.close()
    assert (await store.stop_execution(job.execution.id, grace=timedelta(), note="")).state is State.STOPPED
    assert (await store.job(job.id)).execution.state is State.QUEUED
    assert (await store.execution(job.execution.id)).state is State.STOPPED
    store.close()
