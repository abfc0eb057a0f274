"""The store: what was answered is on disk, transitions keep their guards, and the lines of the queue are exact."""

import asyncio
import random
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from sqlite_utils import Database

from fastlane_grpc.errors import DiskFull, ExecutionNotFound, JobNotFound, RequestIdReused, ServerStopping, StoreFailed
from fastlane_grpc.model import (
    Device,
    Dns,
    Execution,
    Gpus,
    Input,
    Job,
    JobSpec,
    Limits,
    LogTotals,
    Outcome,
    PullPolicy,
    Reason,
    Source,
    State,
    Stdin,
    StopCause,
    Tmpfs,
    Ulimit,
    Volume,
    utc_now,
)
from fastlane_grpc.store import Store
from fastlane_grpc.store.database import Connection, open_for_reading, open_for_writing
from fastlane_grpc.store.enqueue import Enqueue
from fastlane_grpc.store.migrations import migrations
from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.queries import ahead_of
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.rows import spec_bytes, spec_from
from fastlane_grpc.store.writer import SHARED_ENOUGH, SHARED_FROM, SHARED_SECONDS, Writer, Written
from fastlane_grpc.text.redaction import SecretNames
from tests.new_database import open_database
from tests.store_checks import check_jobs, check_lines

SPEC = JobSpec("busybox", command="true")
GRACE = timedelta(seconds=10)
AGES = 3600.0


class StoreHarness:
    """A store in a directory, what it announced, and its writer, through which a test does what only SQLite does
    otherwise."""

    def __init__(
        self,
        directory: Path,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], datetime] = utc_now,
        retry_seconds: float = 0.01,
        shared_seconds: float = SHARED_SECONDS,
    ) -> None:
        self.path = directory / "fastlane.db"
        self.commits: list[Sequence[Execution]] = []
        self.writer = Writer(
            open_database(self.path),
            self.path,
            loop=loop,
            on_commit=self.commits.append,
            retry_seconds=retry_seconds,
            shared_seconds=shared_seconds,
        )
        self.store = Store(self.writer, Readers(self.path, loop=loop), instance="", now=now)
        # To open a connection, and read the schema, takes longer than most statements.
        self._reading = open_for_reading(self.path)

    def close(self) -> None:
        self._reading.close()
        self.store.close()

    @property
    def announced(self) -> list[Execution]:
        return [execution for commit in self.commits for execution in commit]

    def rows(self, sql: str) -> list[Any]:
        return self._reading.execute(sql).fetchall()

    def check_lines(self) -> None:
        check_lines(self.rows)

    def check_jobs(self) -> None:
        check_jobs(self.rows)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The writing thread stands still, and what is asked for in the meantime gathers."""
        reached, go_on = threading.Event(), threading.Event()

        def hold(db: Connection) -> Written[None]:
            reached.set()
            go_on.wait()
            return Written(None)

        self.writer.write(hold)
        reached.wait()
        try:
            yield
        finally:
            go_on.set()

    async def limit_pages(self, *, further: int) -> None:
        """From here on the file grows by so many pages at most: SQLite then answers SQLITE_FULL, as on a full disk."""

        def limit(db: Connection) -> Written[None]:
            pages = db.execute("PRAGMA page_count").fetchall()[0][0]
            db.execute(f"PRAGMA max_page_count = {pages + further}").fetchall()
            return Written(None)

        await self.writer.write(limit)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[StoreHarness]:
    harness = StoreHarness(tmp_path, asyncio.get_running_loop())
    yield harness
    harness.close()


@pytest.fixture
def store(harness: StoreHarness) -> Store:
    return harness.store


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@contextmanager
def files_may_grow_to(byte_count: int) -> Iterator[None]:
    """Writes beyond that fail, in the whole process: SQLite gets an I/O error, as from a disk that goes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def enqueue(store: Store, task_id: str = "task", spec: JobSpec = SPEC, request_id: str = "") -> Execution:
    job, _ = await store.enqueue(task_id=task_id, spec=spec, request_id=request_id, caller_address="")
    return job.execution


async def claim(store: Store) -> Execution:
    [assignment] = await store.claim_on(["here"])
    return assignment.execution


async def start(store: Store, execution_id: str) -> Execution | None:
    return await store.starting(
        execution_id,
        container_id="c0ffee",
        handle='{"epoch": "1"}',
        image_digest="sha256:1",
        pull_time=utc_now(),
        container_time=utc_now(),
    )


async def finish(store: Store, execution_id: str, state: State = State.SUCCEEDED, detail: str = "") -> Execution:
    return await store.finish(execution_id, state=state, outcome=Outcome(detail=detail), logs=())


async def in_state(store: Store, state: State) -> Execution:
    """An execution that came to `state` in the ordinary way."""
    if state is State.SCHEDULED:
        return await enqueue(store, spec=replace(SPEC, start_in=timedelta(hours=1)))
    execution = await enqueue(store)
    if state is State.QUEUED:
        return execution
    execution = await claim(store)
    if state is State.PREPARING:
        return execution
    await start(store, execution.id)
    await store.running(execution.id, start_time=utc_now())
    if state is State.STOPPING:
        await store.stop(execution.job_id, grace=GRACE, note="")
    if state.final:
        await finish(store, execution.id, state)
    return await store.execution(execution.id)


EVERY_STATE = list(State)
FINAL_STATES = [state for state in State if state.final]


# ---- enqueue


async def test_a_probe_of_the_store_writes_to_the_disk(harness: StoreHarness) -> None:
    # SQLite appends to it in each commit that changes a page, and in no other.
    log = harness.path.with_name("fastlane.db-wal")
    before = log.stat().st_size
    await harness.store.probe()
    assert log.stat().st_size > before


async def test_the_same_request_id_with_the_same_request_answers_the_same_job(store: Store) -> None:
    first, existing = await store.enqueue(task_id="task", spec=SPEC, request_id="once", caller_address="a")
    assert not existing
    await claim(store)
    again, existing = await store.enqueue(task_id="task", spec=SPEC, request_id="once", caller_address="b")
    assert existing
    assert (again.id, again.execution.id, again.caller_address) == (first.id, first.execution.id, "a")
    assert again.execution.state is State.PREPARING


async def test_the_same_request_id_with_another_request_is_refused_and_names_the_job(harness: StoreHarness) -> None:
    first, _ = await harness.store.enqueue(task_id="task", spec=SPEC, request_id="once", caller_address="")
    with pytest.raises(RequestIdReused) as refused:
        await enqueue(harness.store, spec=JobSpec("busybox", command="false"), request_id="once")
    assert refused.value.metadata == {"job_id": first.id}
    assert harness.rows("SELECT count(*) FROM jobs") == [(1,)]


async def test_a_repeated_request_is_known_after_secret_names_were_set_anew(harness: StoreHarness) -> None:
    spec = JobSpec("busybox", envs={"PIN": "1234", "API_KEY": "a"})
    first, _ = await harness.store.enqueue(task_id="task", spec=spec, request_id="once", caller_address="")

    async def repeated(secret_names: str, **envs: str) -> tuple[Job, bool]:
        spec = JobSpec("busybox", envs=envs)
        return await harness.writer.write(
            Enqueue("task", spec, "once", "", utc_now(), secret_names=SecretNames.read(secret_names))
        )

    for names, envs in (
        ("default,pin", {"PIN": "0", "API_KEY": "b"}),
        ("pin", {"PIN": "0", "API_KEY": "a"}),
        ("default", {**spec.envs}),
    ):
        job, existing = await repeated(names, **envs)
        assert (job.id, existing) == (first.id, True)
    with pytest.raises(RequestIdReused):
        await repeated("pin", PIN="1234", API_KEY="b")


async def test_request_ids_are_unique_within_their_task_only_and_an_empty_one_is_none(harness: StoreHarness) -> None:
    executions = [
        await enqueue(harness.store, task, request_id=request_id)
        for task in ("a", "b")
        for request_id in ("once", "", "")
    ]
    assert len({execution.job_id for execution in executions}) == 6


async def test_the_same_request_at_the_same_time_is_one_job(harness: StoreHarness) -> None:
    with harness.held():
        calls = [
            harness.store.enqueue(task_id="task", spec=SPEC, request_id="once", caller_address="") for _ in range(20)
        ]
    answers = [await call for call in calls]
    assert len({job.id for job, _ in answers}) == 1
    assert sorted(existing for _, existing in answers) == [False] + [True] * 19


async def test_of_many_enqueues_at_once_one_that_is_refused_harms_no_other(harness: StoreHarness) -> None:
    first, _ = await harness.store.enqueue(task_id="task", spec=SPEC, request_id="once", caller_address="")
    requests = [
        ("task", SPEC, ""),
        ("other", SPEC, "once"),
        ("task", JobSpec("other"), "once"),
        ("task", SPEC, "once"),
        ("task", SPEC, ""),
    ]
    with harness.held():
        calls = [
            harness.store.enqueue(task_id=task, spec=spec, request_id=id_, caller_address="")
            for task, spec, id_ in requests * 30
        ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for number, answer in enumerate(answers):
        kind = number % 5
        if kind == 2:
            assert isinstance(answer, RequestIdReused)
        else:
            assert not isinstance(answer, BaseException)
            job, existing = answer
            assert existing is ((kind == 1 and number > 1) or kind == 3)
            assert await harness.store.job(job.id) == job
            assert (job.id == first.id) is (kind == 3)
    assert len({execution.id for execution in harness.announced}) == len(harness.announced) == 1 + 2 * 30 + 1
    assert sorted(harness.rows("SELECT task_id, jobs, open_jobs FROM tasks")) == [("other", 1, 1), ("task", 61, 61)]
    harness.check_lines()


async def test_a_task_counts_its_jobs_and_a_job_has_the_state_of_its_execution(harness: StoreHarness) -> None:
    for state in EVERY_STATE:
        execution = await in_state(harness.store, state)
        assert harness.rows(f"SELECT state FROM jobs WHERE job_id = '{execution.job_id}'") == [(execution.state,)]
    # One that is queued is claimed for the next.
    harness.check_jobs()
    assert harness.rows("SELECT jobs FROM tasks") == [(len(EVERY_STATE),)]


async def test_a_job_is_read_back_as_it_was_given(store: Store) -> None:
    spec = JobSpec(
        "registry:5000/mail@sha256:1",
        command="run 'it'",
        args=("a", ""),
        envs={"B": "2", "A": "\U0001f600"},
        entrypoint=("",),
        working_dir="/w",
        user="1:1",
        timeout=timedelta(milliseconds=1),
        pull_policy=PullPolicy.NEVER,
        limits=Limits(1 << 40, 0.5, 7),
        network="none",
        read_only_root=True,
        stop_signal="SIGINT",
        stop_grace=timedelta(),
        priority=-7,
        labels={"l": ""},
        metadata={},
        start_at=datetime(2026, 1, 1, tzinfo=UTC),
        expire_time=datetime(9999, 1, 1, tzinfo=UTC),
    )
    job, _ = await store.enqueue(task_id="task", spec=spec, request_id="r", caller_address="ipv4:1.2.3.4:5")
    assert await store.job(job.id) == job
    assert job.spec == spec
    assert await store.execution(job.execution.id) == job.execution
    assert (job.execution.state, job.execution.times.due_time, job.executions) == (State.QUEUED, job.create_time, 1)


texts = st.text(st.characters(codec="utf-8"), max_size=8)
specs = st.builds(
    JobSpec,
    image=texts,
    command=texts,
    args=st.lists(texts, max_size=3).map(tuple),
    envs=st.dictionaries(texts, texts, max_size=3),
    timeout=st.none() | st.timedeltas(timedelta(), timedelta(days=9)),
    pull_policy=st.sampled_from(PullPolicy),
    limits=st.builds(
        Limits,
        st.integers(0, 1 << 62),
        st.floats(0, 64),
        st.integers(0, 1 << 31),
        shm_bytes=st.integers(0, 1 << 62),
        memory_reservation_bytes=st.integers(0, 1 << 62),
        cpuset=texts,
    ),
    extra_hosts=st.dictionaries(texts, texts, max_size=3),
    tmpfs=st.lists(st.builds(Tmpfs, texts, st.integers(0, 1 << 62)), max_size=3).map(tuple),
    inputs=st.lists(
        st.builds(Input, texts, texts, st.integers(0, 9), st.integers(0, 9), unpack=st.booleans()), max_size=2
    ).map(tuple),
    outputs=st.lists(texts, max_size=2).map(tuple),
    devices=st.lists(st.builds(Device, texts, texts, texts), max_size=2).map(tuple),
    gpus=st.none() | st.builds(Gpus, st.integers(-1, 9), st.lists(texts, max_size=2).map(tuple)),
    stdin=st.none() | st.builds(Stdin, texts, st.integers(0, 9)),
    volumes=st.lists(st.builds(Volume, texts, texts, st.booleans()), max_size=2).map(tuple),
    ulimits=st.lists(st.builds(Ulimit, texts, st.integers(-1, 9), st.none() | st.integers(-1, 9)), max_size=3).map(
        tuple
    ),
    dns=st.none() | st.builds(Dns, *[st.lists(texts, max_size=2).map(tuple)] * 3),
    cap_drop=st.lists(texts, max_size=3).map(tuple),
    registry_credential=texts,
    secret_envs=st.dictionaries(texts, texts, max_size=2),
    read_only_root=st.booleans(),
    stop_grace=st.none() | st.timedeltas(timedelta(), timedelta(days=9)),
    priority=st.integers(-100, 100),
    start_in=st.none() | st.timedeltas(timedelta(), timedelta(days=9)),
    start_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    expire_time=st.none() | st.datetimes(timezones=st.just(UTC)),
    metadata=st.none()
    | st.dictionaries(texts, st.none() | st.booleans() | st.floats(allow_nan=False) | texts, max_size=3),
)


@given(specs)
def test_a_spec_survives_its_bytes(spec: JobSpec) -> None:
    assert spec_from(spec_bytes(spec)) == spec


def test_the_bytes_of_a_spec_depend_on_no_order_of_maps_and_on_no_unset_field() -> None:
    assert spec_bytes(JobSpec("i", envs={"a": "1", "b": "2"})) == spec_bytes(JobSpec("i", envs={"b": "2", "a": "1"}))
    assert spec_bytes(JobSpec("i")) == b'{"image":"i"}'


async def test_what_is_not_there_is_named(store: Store) -> None:
    stops = (store.stop("nope", grace=GRACE, note=""), store.stop("nope", grace=None, note=""))
    for call in (store.job("nope"), *stops):
        with pytest.raises(JobNotFound, match="nope"):
            await call
    stop_of_none = [store.stop_execution("nope", grace=grace, note="") for grace in (GRACE, None)]
    for wanted in (
        store.execution("nope"),
        store.assignment("nope"),
        store.requeue("nope"),
        finish(store, "nope"),
        *stop_of_none,
    ):
        with pytest.raises(ExecutionNotFound, match="nope"):
            await wanted


# ---- the queue


async def test_5000_are_claimed_in_order_and_tasks_take_turns(harness: StoreHarness) -> None:
    # One task has 4000 of them, and was there first; the hundred others have ten each.
    tasks = ["big"] * 4000 + [f"task-{number % 100}" for number in range(1000)]
    enqueued = await asyncio.gather(*(enqueue(harness.store, task) for task in tasks))
    claimed: list[Execution] = []
    while batch := await harness.store.claim_on(["here"] * 7):
        claimed += [assignment.execution for assignment in batch]
    assert Counter(execution.id for execution in claimed) == Counter(execution.id for execution in enqueued)

    by_task: dict[str, list[str]] = defaultdict(list)
    for execution in claimed:
        by_task[execution.task_id].append(execution.id)
    for task in set(tasks):
        assert by_task[task] == [execution.id for execution in enqueued if execution.task_id == task]

    rounds = [claimed[first : first + 101] for first in range(0, 1010, 101)]
    for turn in rounds:
        assert len({execution.task_id for execution in turn}) == 101
    harness.check_lines()


async def test_a_task_that_comes_later_takes_its_turn_behind_those_that_wait(store: Store) -> None:
    for task in ("a", "a", "a", "b", "b"):
        await enqueue(store, task)
    served = [(await claim(store)).task_id]
    await enqueue(store, "c")
    served += [(await claim(store)).task_id for _ in range(5)]
    assert served == ["a", "b", "a", "c", "b", "a"]


async def test_a_higher_priority_goes_first_and_turns_are_taken_within_it(store: Store) -> None:
    for task, priority in (("a", 0), ("a", 5), ("a", 5), ("b", 5), ("b", -1), ("c", 0)):
        await enqueue(store, task, JobSpec("busybox", priority=priority))
    claimed = await store.claim_on(["here"] * 10)
    assert [(one.execution.task_id, one.spec.priority) for one in claimed] == [
        ("a", 5),
        ("b", 5),
        ("a", 5),
        ("a", 0),
        ("c", 0),
        ("b", -1),
    ]


async def test_who_goes_before_one_that_waits_is_counted_within_its_task_and_priority(store: Store) -> None:
    urgent = replace(SPEC, priority=1)
    waiting = [await enqueue(store, "one") for _ in range(5)]
    await enqueue(store, "two")
    first = await enqueue(store, "one", urgent)
    second = await enqueue(store, "one", urgent)
    assert [await store.ahead(each.id, 1000) for each in (*waiting, first, second)] == [0, 1, 2, 3, 4, 0, 1]
    assert await store.ahead(waiting[4].id, 3) == 3
    assert (await claim(store)).id == first.id
    # Who has a place waits for nobody, and nobody for it.
    assert [await store.ahead(each.id, 1000) for each in (first, second)] == [0, 0]
    assert await store.ahead("nobody", 1000) == 0
    for each in (*waiting, first, second):
        execution, ahead = await store.execution_in_line(each.id, 1000)
        job, ahead_of_job = await store.job_in_line(each.job_id, 1000)
        assert execution.id == job.execution.id == each.id
        assert ahead == ahead_of_job == await store.ahead(each.id, 1000)


async def test_who_goes_before_is_counted_without_reading_a_row_of_theirs(harness: StoreHarness) -> None:
    execution = await enqueue(harness.store)
    db, statements = open_for_reading(harness.path), list[str]()
    db.set_trace_callback(statements.append)
    ahead_of(db, execution.id, 1000)
    db.set_trace_callback(None)
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statements[0]}").fetchall()]
    db.close()
    assert [step for step in plan if step.startswith("SEARCH queued")] == [
        "SEARCH queued USING COVERING INDEX executions_queued (priority=? AND task_id=? AND due_time<?)"
    ]


async def test_a_claim_gives_what_to_run_and_when_and_where(store: Store) -> None:
    execution = await enqueue(store, spec=JobSpec("busybox", args=("x",)))
    [assignment] = await store.claim_on(["here"] * 3)
    assert assignment.spec == JobSpec("busybox", args=("x",))
    claimed = assignment.execution
    assert (claimed.id, claimed.state, claimed.host, claimed.starting) == (execution.id, State.PREPARING, "here", False)
    assert claimed.times.claim_time == claimed.state_time >= execution.times.create_time
    assert await store.assignment(execution.id) == assignment
    assert await store.unfinished() == [assignment]
    assert await store.claim_on(["here"] * 3) == []


async def test_a_requeued_execution_gets_its_place_back_and_its_task_its_line(harness: StoreHarness) -> None:
    first, second = [await enqueue(harness.store, "a") for _ in range(2)]
    only = await enqueue(harness.store, "b")
    assert len(await harness.store.claim_on(["here"] * 3)) == 3
    harness.check_lines()
    again = await enqueue(harness.store, "a")
    for execution in (second, first, only):
        requeued = await harness.store.requeue(execution.id)
        assert (requeued.state, requeued.host, requeued.times.claim_time) == (State.QUEUED, "", None)
    harness.check_lines()
    claimed = [assignment.execution.id for assignment in await harness.store.claim_on(["here"] * 9)]
    assert claimed == [first.id, only.id, second.id, again.id]


# ---- transitions


async def test_the_way_of_an_execution_keeps_the_time_of_each_point(store: Store) -> None:
    execution = await enqueue(store)
    await claim(store)
    started = await start(store, execution.id)
    assert started
    assert (started.state, started.starting, started.container_id) == (State.PREPARING, True, "c0ffee")
    assert (started.handle, started.image_digest) == ('{"epoch": "1"}', "sha256:1")
    start_time, exit_time = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 1, 5, tzinfo=UTC)
    running = await store.running(execution.id, start_time=start_time)
    assert running
    assert (running.state, running.times.start_time) == (State.RUNNING, start_time)
    logs = (LogTotals(Source.STDOUT, 10, 2, None), LogTotals(Source.STDERR, 1, 0, 0xFFFFFFFF))
    outcome = Outcome(Reason.EXIT_CODE, "exited with 3", 3, True, "SIGTERM")
    ended = await store.finish(
        execution.id, state=State.FAILED, outcome=outcome, logs=logs, exit_time=exit_time, first_byte_time=start_time
    )
    assert (ended.state, ended.outcome, ended.logs) == (State.FAILED, outcome, logs)
    times = ended.times
    assert (times.start_time, times.exit_time, times.first_byte_time, times.seal_time) == (
        start_time,
        exit_time,
        start_time,
        None,
    )
    assert times.end_time == ended.state_time
    assert times.pull_time == started.times.pull_time
    assert await store.execution(execution.id) == ended
    assert await store.unfinished() == []


async def test_a_start_is_granted_once(store: Store) -> None:
    execution = await in_state(store, State.PREPARING)
    grants = await asyncio.gather(*(start(store, execution.id) for _ in range(10)))
    assert sum(grant is not None for grant in grants) == 1


@pytest.mark.parametrize("state", [state for state in EVERY_STATE if state is not State.PREPARING])
async def test_no_start_is_granted_unless_it_is_preparing(store: Store, state: State) -> None:
    execution = await in_state(store, state)
    assert await start(store, execution.id) is None
    assert await store.execution(execution.id) == execution


async def test_no_start_is_granted_after_a_stop(store: Store) -> None:
    execution = await in_state(store, State.PREPARING)
    await store.stop(execution.job_id, grace=GRACE, note="")
    assert await start(store, execution.id) is None


@pytest.mark.parametrize("state", EVERY_STATE)
async def test_only_what_is_running_times_out(store: Store, state: State) -> None:
    execution = await in_state(store, state)
    stopping = await store.time_out(execution.id, grace=GRACE)
    if state is State.RUNNING:
        assert stopping
        assert stopping.stop
        assert (stopping.state, stopping.stop.cause, stopping.stop.grace) == (State.STOPPING, StopCause.TIMEOUT, GRACE)
    else:
        assert stopping is None
        assert await store.execution(execution.id) == execution


@pytest.mark.parametrize("state", EVERY_STATE)
async def test_only_what_prepares_and_sent_no_start_is_requeued(harness: StoreHarness, state: State) -> None:
    execution = await in_state(harness.store, state)
    requeued = await harness.store.requeue(execution.id)
    if state is State.PREPARING:
        assert requeued.state is State.QUEUED
    else:
        assert requeued == execution
    harness.check_lines()


async def test_what_may_have_been_started_is_not_requeued(store: Store) -> None:
    execution = await in_state(store, State.PREPARING)
    await start(store, execution.id)
    assert (await store.requeue(execution.id)).state is State.PREPARING


@pytest.mark.parametrize("state", EVERY_STATE)
async def test_running_changes_what_prepares_and_gives_the_others_a_start_time_at_most(
    store: Store, state: State
) -> None:
    execution = await in_state(store, state)
    running = await store.running(execution.id, start_time=utc_now())
    if state in (State.PREPARING, State.RUNNING, State.STOPPING):
        assert running
        assert running.state is (State.RUNNING if state is State.PREPARING else state)
        assert running.times.start_time == execution.times.start_time or state is State.PREPARING
    else:
        assert running is None


@pytest.mark.parametrize("final", FINAL_STATES)
@pytest.mark.parametrize("state", EVERY_STATE)
async def test_finish_ends_what_is_not_final_and_final_is_final(
    harness: StoreHarness, state: State, final: State
) -> None:
    execution = await in_state(harness.store, state)
    ended = await finish(harness.store, execution.id, final, "the end")
    if state.final:
        assert ended == execution
    else:
        assert (ended.state, ended.outcome) == (final, Outcome(detail="the end"))
    harness.check_lines()


async def test_finish_wants_a_final_state(store: Store) -> None:
    execution = await in_state(store, State.RUNNING)
    with pytest.raises(ValueError, match="STOPPING is not final"):
        await finish(store, execution.id, State.STOPPING)


# ---- stop


async def test_a_queued_job_that_is_stopped_is_final_and_never_claimed(harness: StoreHarness) -> None:
    execution = await enqueue(harness.store)
    job = await harness.store.stop(execution.job_id, grace=GRACE, note="no longer wanted")
    assert job.execution.state is State.STOPPED
    assert job.execution.outcome
    assert "no longer wanted" in job.execution.outcome.detail
    assert job.end_time == job.execution.times.end_time is not None
    harness.check_lines()
    assert await harness.store.claim_on(["here"]) == []


async def test_a_stop_leaves_the_line_to_those_that_still_wait(harness: StoreHarness) -> None:
    first, second = [await enqueue(harness.store) for _ in range(2)]
    await harness.store.stop(first.job_id, grace=GRACE, note="")
    harness.check_lines()
    assert (await claim(harness.store)).id == second.id


@pytest.mark.parametrize("state", [State.PREPARING, State.RUNNING])
async def test_a_job_with_a_place_is_stopping_and_the_order_is_on_disk(store: Store, state: State) -> None:
    execution = await in_state(store, state)
    stopping = (await store.stop(execution.job_id, grace=GRACE, note="by hand")).execution
    assert stopping.state is State.STOPPING
    assert stopping.stop
    assert (stopping.stop.cause, stopping.stop.grace, stopping.stop.note) == (StopCause.CALLER, GRACE, "by hand")
    assert stopping.stop.time == stopping.state_time
    assert stopping.outcome is None


@pytest.mark.parametrize("state", FINAL_STATES)
async def test_a_stop_of_what_is_final_changes_nothing(harness: StoreHarness, state: State) -> None:
    execution = await in_state(harness.store, state)
    announced = len(harness.announced)
    assert (await harness.store.stop(execution.job_id, grace=GRACE, note="")).execution == execution
    assert len(harness.announced) == announced


@pytest.mark.parametrize("cause", StopCause)
async def test_a_second_stop_can_only_shorten_the_grace_and_the_first_cause_stays(
    tmp_path: Path, cause: StopCause
) -> None:
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    harness = StoreHarness(tmp_path, asyncio.get_running_loop(), now=lambda: clock[0])
    store = harness.store
    execution = await in_state(store, State.RUNNING)
    if cause is StopCause.CALLER:
        await store.stop(execution.job_id, grace=GRACE, note="first")
    else:
        await store.time_out(execution.id, grace=GRACE)
    first = await store.execution(execution.id)
    clock[0] += timedelta(seconds=4)
    for grace in (GRACE, timedelta(seconds=6)):
        assert (await store.stop(execution.job_id, grace=grace, note="second")).execution == first
    shorter = (await store.stop(execution.job_id, grace=timedelta(seconds=1), note="second")).execution
    assert shorter.stop
    assert first.stop
    assert shorter.stop.grace == timedelta(seconds=5)
    assert (shorter.stop.cause, shorter.stop.time, shorter.stop.note) == (cause, first.stop.time, first.stop.note)
    assert (shorter.state_time, shorter.state) == (first.state_time, State.STOPPING)
    store.close()


# ---- the writing thread


async def test_callers_that_come_together_share_a_commit(harness: StoreHarness) -> None:
    with harness.held():
        calls = [
            harness.store.enqueue(task_id=f"task-{number}", spec=SPEC, request_id="", caller_address="")
            for number in range(100)
        ]
    answered = [(await call)[0].execution for call in calls]
    assert harness.commits == [answered]


def enqueued_together(harness: StoreHarness, number: int) -> list[Pending[tuple[Job, bool]]]:
    return [harness.store.enqueue(task_id="task", spec=SPEC, request_id="", caller_address="") for _ in range(number)]


async def test_callers_of_a_shared_commit_share_the_next_one(tmp_path: Path) -> None:
    harness = StoreHarness(tmp_path, asyncio.get_running_loop(), shared_seconds=AGES)
    for _ in range(SHARED_FROM):
        # One caller by itself waits for nobody.
        await enqueue(harness.store)
    with harness.held():
        shared = enqueued_together(harness, SHARED_FROM)
    await asyncio.gather(*shared)
    # The first one waits until there are enough of them, though they come one after another.
    later = []
    for _ in range(SHARED_ENOUGH + 1):
        later += enqueued_together(harness, 1)
        await asyncio.to_thread(int)  # time for the writer to take it
    await asyncio.gather(*later)
    assert [len(commit) for commit in harness.commits] == [*[1] * SHARED_FROM, SHARED_FROM, SHARED_ENOUGH + 1]
    harness.store.close()


async def test_a_commit_that_waits_for_others_is_made_when_the_store_closes(tmp_path: Path) -> None:
    harness = StoreHarness(tmp_path, asyncio.get_running_loop(), shared_seconds=AGES)
    with harness.held():
        shared = enqueued_together(harness, SHARED_FROM)
    await asyncio.gather(*shared)
    [last] = enqueued_together(harness, 1)
    await asyncio.to_thread(harness.store.close)
    job, _ = await last
    assert [[job.id]] == [[one.job_id for one in commit] for commit in harness.commits[1:]]


async def test_a_commit_waits_for_others_no_longer_than_a_moment(tmp_path: Path) -> None:
    harness = StoreHarness(tmp_path, asyncio.get_running_loop(), shared_seconds=0.001)
    with harness.held():
        shared = enqueued_together(harness, SHARED_FROM)
    await asyncio.gather(*shared)
    await asyncio.gather(*enqueued_together(harness, 1))
    assert [len(commit) for commit in harness.commits] == [SHARED_FROM, 1]
    harness.store.close()


async def test_a_commit_announces_every_change_in_its_order(harness: StoreHarness) -> None:
    with harness.held():
        enqueued = harness.store.enqueue(task_id="task", spec=SPEC, request_id="", caller_address="")
        claimed = harness.store.claim_on(["here"])
    [assignment] = await claimed
    assert harness.commits == [[(await enqueued)[0].execution, assignment.execution]]


async def test_a_failing_unit_reaches_only_its_caller_and_leaves_nothing_behind(harness: StoreHarness) -> None:
    def fails(db: Connection) -> Written[None]:
        db.execute("DELETE FROM executions").fetchall()
        raise ZeroDivisionError("of this caller")

    with harness.held():
        before = harness.store.enqueue(task_id="a", spec=SPEC, request_id="", caller_address="")
        failing = harness.writer.write(fails)
        after = harness.store.enqueue(task_id="b", spec=SPEC, request_id="", caller_address="")
    with pytest.raises(ZeroDivisionError, match="of this caller"):
        await failing
    ids = {(await before)[0].execution.id, (await after)[0].execution.id}
    assert {one.execution.id for one in await harness.store.claim_on(["here"] * 9)} == ids
    assert len(harness.commits[0]) == 2, "the good ones shared a commit with the failing one"


async def test_a_defect_of_a_statement_is_not_told_as_a_failure_of_the_disk(harness: StoreHarness) -> None:
    with pytest.raises(Exception, match="NOT NULL"):
        await harness.writer.write_until_stored(
            lambda db: Written(db.execute("INSERT INTO tasks VALUES ('a', NULL, 1, 1, 1)"))
        )


async def test_a_commit_that_fails_is_told_to_all_of_it_and_the_store_goes_on(harness: StoreHarness) -> None:
    execution = await in_state(harness.store, State.RUNNING)
    announced = len(harness.announced)
    with files_may_grow_to(0):
        with harness.held():
            calls = [
                harness.store.enqueue(task_id=f"task-{number}", spec=SPEC, request_id="", caller_address="")
                for number in range(3)
            ]
            ended = harness.store.finish(execution.id, state=State.SUCCEEDED, outcome=Outcome(), logs=())
        for call in calls:
            with pytest.raises(StoreFailed, match=r"fastlane\.db cannot be used: disk I/O error") as failed:
                await call
            assert failed.value.retry_seconds
        assert len(harness.announced) == announced
        assert harness.rows("SELECT task_id FROM tasks") == [("task",)]
    assert (await ended).state is State.SUCCEEDED, "what a runner tells was stored by a later try"
    await enqueue(harness.store)
    harness.check_lines()


async def test_a_transaction_that_cannot_begin_is_told_to_all_its_writes(
    harness: StoreHarness,
) -> None:
    await harness.writer.write(lambda db: Written(db.execute("PRAGMA busy_timeout = 0").fetchall()))
    execution = await in_state(harness.store, State.RUNNING)
    another = open_for_writing(harness.path)
    another.execute("BEGIN IMMEDIATE")
    ended = harness.store.finish(execution.id, state=State.SUCCEEDED, outcome=Outcome(), logs=())
    with pytest.raises(StoreFailed, match="locked"):
        await enqueue(harness.store)
    another.close()
    assert (await ended).state is State.SUCCEEDED
    await enqueue(harness.store)


async def test_a_full_disk_is_told_to_callers_and_waited_out_for_runners(harness: StoreHarness) -> None:
    store = harness.store
    execution = await in_state(store, State.RUNNING)
    await harness.limit_pages(further=4)
    big = JobSpec("busybox", envs={"X": "x" * 100_000})
    small_calls = [
        store.enqueue(task_id="b", spec=big, request_id=str(number), caller_address="") for number in range(3)
    ]
    for call in small_calls:
        with pytest.raises(DiskFull, match=r"fastlane\.db") as full:
            await call
        assert full.value.retry_seconds
    ended = store.finish(
        execution.id, state=State.FAILED, outcome=Outcome(), logs=[LogTotals(Source.STDOUT, 1)] * 10_000
    )
    with pytest.raises(DiskFull):
        await enqueue(store, spec=big)
    assert (await store.execution(execution.id)).state is State.RUNNING
    await harness.limit_pages(further=10_000)
    assert (await ended).state is State.FAILED
    await enqueue(store, spec=big)
    harness.check_lines()


async def test_each_acknowledged_before_a_full_disk_is_there_afterwards(harness: StoreHarness) -> None:
    await harness.limit_pages(further=60)
    kept, refused = [], 0
    calls = [
        harness.store.enqueue(task_id=f"task-{number % 5}", spec=SPEC, request_id=str(number), caller_address="")
        for number in range(2000)
    ]
    for call in calls:
        try:
            kept.append((await call)[0].id)
        except DiskFull:
            refused += 1
    assert refused
    assert kept
    await harness.limit_pages(further=10_000)
    assert sorted(kept) == sorted(row[0] for row in harness.rows("SELECT job_id FROM jobs"))
    again = await asyncio.gather(
        *(enqueue(harness.store, f"task-{number % 5}", request_id=str(number)) for number in range(2000))
    )
    assert len({execution.job_id for execution in again}) == 2000
    harness.check_lines()


async def test_a_caller_that_went_away_undoes_nothing(harness: StoreHarness) -> None:
    with harness.held():
        call = asyncio.create_task(enqueue(harness.store))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert (await claim(harness.store)).state is State.PREPARING


async def test_a_call_from_the_loop_is_awaited_and_one_from_a_thread_is_waited_for(store: Store) -> None:
    on_loop = store.claim_on(["here"])
    with pytest.raises(RuntimeError, match="await it"):
        on_loop.result()
    assert await on_loop == []
    elsewhere = await asyncio.to_thread(store.claim_on, ["here"])
    assert elsewhere.result(5) == []
    with pytest.raises(RuntimeError, match="result"):
        await elsewhere


async def test_threads_and_loop_write_side_by_side(harness: StoreHarness) -> None:
    store = harness.store

    def on_a_thread(thread: int) -> list[str]:
        calls = [
            store.enqueue(task_id=f"thread-{thread}", spec=SPEC, request_id="", caller_address="") for _ in range(50)
        ]
        return [call.result(30)[0].execution.id for call in calls]

    with ThreadPoolExecutor(4) as pool:
        loop = asyncio.get_running_loop()
        threads = [loop.run_in_executor(pool, on_a_thread, thread) for thread in range(4)]
        ids = [execution.id for execution in await asyncio.gather(*(enqueue(store, "loop") for _ in range(200)))]
        for thread in threads:
            ids += await thread
    assert len(set(ids)) == 400
    assert {execution.id for execution in harness.announced} == set(ids)
    assert {one.execution.id for one in await store.claim_on(["here"] * 1000)} == set(ids)


# ---- open and close


async def test_close_lets_finish_what_was_asked_for_and_refuses_what_comes_later(tmp_path: Path) -> None:
    harness = StoreHarness(tmp_path, asyncio.get_running_loop())
    calls = [harness.store.enqueue(task_id="task", spec=SPEC, request_id="", caller_address="") for _ in range(500)]
    harness.store.close()
    harness.store.close()
    assert len({(await call)[0].id for call in calls}) == 500
    for late in (
        lambda: harness.store.claim_on(["here"]),
        lambda: harness.store.job("x"),
        lambda: harness.store.requeue("x"),
    ):
        with pytest.raises(ServerStopping):
            await late()


async def test_close_ends_the_wait_for_room_on_the_disk(tmp_path: Path) -> None:
    harness = StoreHarness(tmp_path, asyncio.get_running_loop())
    execution = await in_state(harness.store, State.RUNNING)
    await harness.limit_pages(further=0)
    ended = harness.store.finish(
        execution.id, state=State.FAILED, outcome=Outcome(), logs=[LogTotals(Source.STDOUT, 1)] * 10_000
    )
    harness.store.close()
    with pytest.raises(ServerStopping):
        await ended


async def test_close_does_not_wait_for_the_next_try_but_makes_it(tmp_path: Path) -> None:
    harness = StoreHarness(tmp_path, asyncio.get_running_loop(), retry_seconds=3600)
    execution = await in_state(harness.store, State.RUNNING)
    await harness.limit_pages(further=0)
    ended = harness.store.finish(
        execution.id, state=State.FAILED, outcome=Outcome(), logs=[LogTotals(Source.STDOUT, 1)] * 10_000
    )
    await harness.limit_pages(further=10_000)
    harness.store.close()
    assert (await ended).state is State.FAILED


def test_a_loop_that_is_closed_does_not_hold_up_the_writing_thread(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    harness = StoreHarness(tmp_path, loop)

    async def ask() -> None:
        for _ in range(10):
            harness.store.enqueue(task_id="task", spec=SPEC, request_id="", caller_address="")

    with harness.held():
        loop.run_until_complete(ask())
        loop.close()
    assert len(harness.store.claim_on(["here"] * 20).result(10)) == 10
    harness.store.close()


async def test_an_empty_directory_becomes_a_store_that_opens_again_with_all_it_had(tmp_path: Path) -> None:
    def opened() -> Store:
        return Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())

    first = opened()
    execution = await enqueue(first)
    first.close()
    second = opened()
    assert second.instance == first.instance
    assert await second.execution(execution.id) == execution
    second.close()
    names = [name for name in names_in(tmp_path) if not name.startswith("reserve-")]
    assert names == ["fastlane.db"], "SQLite's log was moved into the file"


async def test_every_migration_says_what_it_brings_and_is_applied_once(harness: StoreHarness) -> None:
    applied = [row[0] for row in harness.rows("SELECT name FROM _sqlite_migrations ORDER BY id")]
    steps = [
        "tasks_and_jobs",
        "executions",
        "lines_of_the_queue",
        "identity_of_the_instance",
        "labels_of_jobs",
        "upkeep",
    ]
    steps += ["state_of_jobs", "due_and_expire_times", "handles_of_backends", "many_executions_of_a_job"]
    steps += ["limits_of_tasks", "pools_of_hosts", "drained_hosts", "arrays_of_jobs", "change_log"]
    steps += ["jobs_that_stop_unwatched", "numbers_of_metrics", "notifications", "usage_of_executions"]
    steps += ["audit", "inputs", "outputs_of_executions", "standard_inputs", "traces_of_callers"]
    assert applied == steps
    assert migrations.pending(Database(open_for_reading(harness.path))) == []


async def test_the_log_of_sqlite_is_synced_at_each_commit(harness: StoreHarness) -> None:
    def pragmas(db: Connection) -> Written[list[Any]]:
        return Written(
            [db.execute(f"PRAGMA {name}").fetchall()[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")]
        )

    assert await harness.writer.write(pragmas) == ["wal", 2, 1]


async def test_a_database_of_a_newer_release_is_refused_by_name(tmp_path: Path) -> None:
    db = open_for_writing(tmp_path / "fastlane.db")
    db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('fastlane', 'schedules', '')")
    db.execute("PRAGMA user_version = 0")
    db.close()
    with pytest.raises(
        StoreFailed, match=rf"{tmp_path}/fastlane\.db was written by a newer fastlane and has schedules"
    ):
        open_for_writing(tmp_path / "fastlane.db")


@pytest.mark.parametrize(
    "content",
    [b"not a database, but long enough to be looked at by SQLite" * 100, b"SQLite format 3\0" + b"\xff" * 9000],
)
async def test_a_damaged_database_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fastlane.db").write_bytes(content)
    with pytest.raises(StoreFailed, match=rf"{tmp_path}/fastlane\.db"):
        Store.open(tmp_path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())


async def test_a_directory_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match=r"nowhere/fastlane\.db"):
        Store.open(tmp_path / "nowhere", on_commit=lambda executions: None, loop=asyncio.get_running_loop())


# ---- what survives


ENQUEUE_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from fastlane_grpc.model import JobSpec
from fastlane_grpc.store import Store

async def main():
    store = Store.open(Path(sys.argv[1]), on_commit=lambda executions: None, loop=asyncio.get_running_loop())

    async def caller(task_id):
        while True:
            job, _ = await store.enqueue(task_id=task_id, spec=JobSpec("busybox"), request_id="", caller_address="")
            sys.stdout.write(job.id + "\\n")
            sys.stdout.flush()
            if task_id == "task-0":
                await store.claim_on(["here"])

    await asyncio.gather(*(caller(f"task-{number}") for number in range(16)))

asyncio.run(main())
"""


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    acknowledged: list[str] = []
    for round_number in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", ENQUEUE_UNTIL_KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writing:
            assert writing.stdout
            lines = [writing.stdout.readline() for _ in range(50 + 211 * round_number)]
            writing.send_signal(signal.SIGKILL)
            # What was in the pipe was acknowledged too; its last line may be cut.
            lines += [line for line in writing.stdout if line.endswith("\n")]
        acknowledged += [line.strip() for line in lines]
        harness = StoreHarness(tmp_path, loop)
        kept = {row[0] for row in harness.rows("SELECT job_id FROM jobs")}
        assert set(acknowledged) <= kept
        assert harness.rows("SELECT count(*) FROM executions") == [(len(kept),)]
        harness.check_lines()
        harness.store.close()
    loop.close()
    assert len(set(acknowledged)) == len(acknowledged) > 2000


# ---- races


async def test_stops_claims_and_ends_at_once_leave_each_execution_in_one_final_state(harness: StoreHarness) -> None:
    store, chance = harness.store, random.Random(7)
    ends: list[Execution] = []

    async def stop_some(jobs: list[str]) -> None:
        for job_id in jobs:
            ended = (await store.stop(job_id, grace=GRACE, note="")).execution
            if ended.state is State.STOPPED:
                ends.append(ended)

    def run_all() -> None:
        for _ in range(400):
            for assignment in store.claim_on(["here"] * chance.randrange(1, 4)).result():
                execution_id = assignment.execution.id
                if chance.random() < 0.2 and store.requeue(execution_id).result().state is State.QUEUED:
                    continue
                started = store.starting(
                    execution_id,
                    container_id="c",
                    handle="{}",
                    image_digest="",
                    pull_time=None,
                    container_time=None,
                ).result()
                if started:
                    store.running(execution_id, start_time=utc_now()).result()
                ends.append(store.finish(execution_id, state=State.SUCCEEDED, outcome=Outcome(), logs=()).result())

    executions = await asyncio.gather(*(enqueue(store, f"task-{number % 7}") for number in range(600)))
    jobs = [execution.job_id for execution in executions]
    chance.shuffle(jobs)
    await asyncio.gather(
        stop_some(jobs[:200]), stop_some(jobs[150:300]), *(asyncio.to_thread(run_all) for _ in range(3))
    )
    await asyncio.to_thread(run_all)
    harness.check_lines()
    assert harness.rows("SELECT count(*) FROM executions WHERE state < 6") == [(0,)]
    states: dict[str, set[State]] = defaultdict(set)
    for execution in [*ends, *harness.announced]:
        if execution.state.final:
            states[execution.id].add(execution.state)
    assert len(states) == 600
    assert all(len(of_one) == 1 for of_one in states.values())


class StoreMachine(RuleBasedStateMachine):
    """Any order of calls leaves lines exact, states legal, and claims in the order that a plain model of the queue
    gives."""

    executions = Bundle("executions")

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        # Nobody runs this loop: every call is a thread's.
        self.loop = asyncio.new_event_loop()
        self.harness = StoreHarness(Path(self.directory.name), self.loop)
        self.store = self.harness.store
        self.queue = PlainQueue()
        self.states: dict[str, State] = {}
        self.started: set[str] = set()

    @rule(target=executions, task=st.sampled_from("abc"), priority=st.integers(0, 1))
    def enqueue(self, task: str, priority: int) -> Execution:
        spec = JobSpec("busybox", priority=priority)
        job, _ = self.store.enqueue(task_id=task, spec=spec, request_id="", caller_address="").result(10)
        self.queue.add(job.execution.id, priority, task)
        self.states[job.execution.id] = State.QUEUED
        return job.execution

    @rule(places=st.integers(0, 4))
    def claim(self, places: int) -> None:
        claimed = [assignment.execution.id for assignment in self.store.claim_on(["here"] * places).result(10)]
        assert claimed == self.queue.take(places)
        self.states |= dict.fromkeys(claimed, State.PREPARING)

    @rule(execution=executions)
    def requeue(self, execution: Execution) -> None:
        state = self.store.requeue(execution.id).result(10).state
        if self.states[execution.id] is State.PREPARING and execution.id not in self.started:
            self.queue.put_back(execution.id)
            self.states[execution.id] = State.QUEUED
        assert state is self.states[execution.id]

    @rule(execution=executions)
    def starting(self, execution: Execution) -> None:
        granted = self.store.starting(
            execution.id,
            container_id="c",
            handle="{}",
            image_digest="",
            pull_time=None,
            container_time=None,
        ).result(10)
        assert (granted is not None) == (
            self.states[execution.id] is State.PREPARING and execution.id not in self.started
        )
        if granted:
            self.started.add(execution.id)

    @rule(execution=executions)
    def running(self, execution: Execution) -> None:
        running = self.store.running(execution.id, start_time=utc_now()).result(10)
        if self.states[execution.id] is State.PREPARING:
            self.states[execution.id] = State.RUNNING
        assert (running.state if running else None) == (
            self.states[execution.id] if self.states[execution.id] in (State.RUNNING, State.STOPPING) else None
        )

    @rule(execution=executions)
    def time_out(self, execution: Execution) -> None:
        stopping = self.store.time_out(execution.id, grace=GRACE).result(10)
        assert (stopping is not None) == (self.states[execution.id] is State.RUNNING)
        if stopping:
            self.states[execution.id] = State.STOPPING

    @rule(execution=executions)
    def stop(self, execution: Execution) -> None:
        stopped = self.store.stop(execution.job_id, grace=GRACE, note="").result(10).execution
        if self.states[execution.id] is State.QUEUED:
            self.queue.remove(execution.id)
            self.states[execution.id] = State.STOPPED
        elif not self.states[execution.id].final:
            self.states[execution.id] = State.STOPPING
        assert stopped.state is self.states[execution.id]

    @rule(execution=executions, state=st.sampled_from(FINAL_STATES))
    def finish(self, execution: Execution, state: State) -> None:
        ended = self.store.finish(execution.id, state=state, outcome=Outcome(), logs=()).result(10)
        if not self.states[execution.id].final:
            self.queue.remove(execution.id)
            self.states[execution.id] = state
        assert ended.state is self.states[execution.id]

    @invariant()
    def lines_and_jobs_are_exact(self) -> None:
        self.harness.check_lines()
        self.harness.check_jobs()

    @invariant()
    def states_are_as_the_model_says(self) -> None:
        assert {
            row[0]: State(row[1]) for row in self.harness.rows("SELECT execution_id, state FROM executions")
        } == self.states
        with_outcome = {
            row[0]
            for row in self.harness.rows(
                "SELECT execution_id FROM executions WHERE reason IS NOT NULL AND end_time IS NOT NULL"
            )
        }
        assert with_outcome == {execution_id for execution_id, state in self.states.items() if state.final}

    def teardown(self) -> None:
        self.harness.close()
        self.loop.close()
        self.directory.cleanup()


class PlainQueue:
    """The rule of the queue, written down without a database: priorities, within one tasks in turns, within a task by
    arrival."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, str]] = {}
        self.arrivals: list[str] = []
        # For each priority the tasks that have something waiting, next one first.
        self.turns: dict[int, list[str]] = defaultdict(list)
        self.waiting: set[str] = set()

    def add(self, execution_id: str, priority: int, task: str) -> None:
        self.places[execution_id] = (priority, task)
        self.arrivals.append(execution_id)
        self.put_back(execution_id)

    def put_back(self, execution_id: str) -> None:
        priority, task = self.places[execution_id]
        self.waiting.add(execution_id)
        if task not in self.turns[priority]:
            self.turns[priority].append(task)

    def remove(self, execution_id: str) -> None:
        self.waiting.discard(execution_id)
        priority, task = self.places[execution_id]
        if task in self.turns[priority] and not self.of_line(priority, task):
            self.turns[priority].remove(task)

    def take(self, places: int) -> list[str]:
        taken: list[str] = []
        while len(taken) < places and (priorities := [priority for priority, tasks in self.turns.items() if tasks]):
            priority = max(priorities)
            task = self.turns[priority].pop(0)
            self.turns[priority].append(task)
            taken.append(self.of_line(priority, task)[0])
            self.remove(taken[-1])
        return taken

    def of_line(self, priority: int, task: str) -> list[str]:
        return [one for one in self.arrivals if one in self.waiting and self.places[one] == (priority, task)]


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAnyOrderOfCalls = pytest.mark.slow(StoreMachine.TestCase)
