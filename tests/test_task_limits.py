"""Limits of tasks and pools of hosts, in the store: a claim takes what may run, in order, and nothing else."""

import asyncio
import random
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fastlane_grpc.errors import DiskFull, TaskNotFound
from fastlane_grpc.model import (
    NO_LIMITS,
    Execution,
    JobSpec,
    Outcome,
    State,
    TaskLimits,
    TaskLimitsChange,
    new_id,
)
from fastlane_grpc.pools import Pool, Pools
from fastlane_grpc.store import Quota, Store
from fastlane_grpc.store.database import open_for_reading, open_for_writing
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from tests.store_checks import check_jobs, check_lines

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOSTS = ("fast", "slow", "spare")


class LimitedStore:
    """A store whose clock a test moves. A new one over the same directory is the store of the next server."""

    def __init__(
        self, directory: Path, loop: asyncio.AbstractEventLoop, *, now: datetime = BEGIN, pools: Pools | None = None
    ) -> None:
        self.now = now
        path = directory / "fastlane.db"
        self.announced: list[Execution] = []
        writer = Writer(open_for_writing(path), path, loop=loop, on_commit=self._committed)
        self.store = Store(
            writer, Readers(path, loop=loop), instance="", now=lambda: self.now, pools=pools or Pools(hosts=HOSTS)
        )
        self._reading = open_for_reading(path)

    def _committed(self, executions: Sequence[Execution]) -> None:
        self.store.limited_tasks.on_commit(executions)
        self.announced += executions

    async def enqueue(self, task_id: str = "mail", priority: int = 0) -> Execution:
        spec = JobSpec("busybox", priority=priority)
        job, _ = await self.store.enqueue(task_id=task_id, spec=spec, request_id="", caller_address="")
        return job.execution

    async def claim(self, *hosts: str) -> list[str]:
        await self.store.release_rates(100)
        return [assignment.execution.id for assignment in await self.store.claim_on(hosts or ("fast",) * 20)]

    async def finish(self, execution_id: str) -> None:
        await self.store.finish(execution_id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=())

    async def limit(self, task_id: str = "mail", **limits: Any) -> None:
        await self.store.update_task(task_id, TaskLimitsChange(**limits))

    def rows(self, sql: str) -> list[Any]:
        return self._reading.execute(sql).fetchall()

    def close(self) -> None:
        check_lines(self.rows)
        check_jobs(self.rows)
        self._reading.close()
        self.store.close()


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[LimitedStore]:
    limited = LimitedStore(tmp_path, asyncio.get_running_loop())
    yield limited
    limited.close()


# ---- limits


async def test_a_task_runs_as_many_executions_as_it_may_and_others_go_on(limited: LimitedStore) -> None:
    await limited.limit(max_running=2)
    mails = [await limited.enqueue() for _ in range(5)]
    other = await limited.enqueue("other")
    first = await limited.claim()
    assert first == [mails[0].id, other.id, mails[1].id]
    assert await limited.claim() == []
    assert (await limited.store.task("mail")).running == 2
    await limited.finish(first[0])
    assert await limited.claim() == [mails[2].id]


async def test_a_limit_that_is_lowered_stops_nothing_and_one_that_is_raised_counts_at_once(
    limited: LimitedStore,
) -> None:
    mails = [(await limited.enqueue()).id for _ in range(6)]
    assert await limited.claim("fast", "fast", "fast") == mails[:3]
    await limited.limit(max_running=2)
    await limited.finish(mails[0])
    assert await limited.claim() == []
    await limited.finish(mails[1])
    assert await limited.claim() == mails[3:4]
    await limited.limit(max_running=3)
    assert await limited.claim() == mails[4:5]
    await limited.limit(max_running=0)
    assert await limited.claim() == mails[5:]


async def test_a_requeued_execution_makes_room_for_the_next_and_goes_first(limited: LimitedStore) -> None:
    await limited.limit(max_running=1, max_starts=1, rate_window=MINUTE)
    mails = [(await limited.enqueue()).id for _ in range(2)]
    assert await limited.claim() == mails[:1]
    await limited.store.requeue(mails[0])
    assert await limited.claim() == mails[:1], "its start was taken back"
    assert await limited.claim() == []


async def test_a_paused_task_starts_nothing_until_it_is_resumed(limited: LimitedStore) -> None:
    await limited.limit(paused=True)
    mail = await limited.enqueue()
    high = await limited.enqueue(priority=5)
    assert await limited.claim() == []
    await limited.limit(paused=False)
    assert await limited.claim() == [high.id, mail.id]


async def test_any_starts_within_a_window_are_as_many_as_the_rate_allows(limited: LimitedStore) -> None:
    await limited.limit(max_starts=2, rate_window=MINUTE)
    for _ in range(6):
        await limited.enqueue()
    assert len(await limited.claim("fast")) == 1
    limited.now += MINUTE / 2
    assert len(await limited.claim()) == 1
    assert limited.store.limited_tasks.next_start_time == BEGIN + MINUTE
    limited.now = BEGIN + MINUTE - timedelta(microseconds=1)
    assert await limited.claim() == []
    limited.now = BEGIN + MINUTE
    assert len(await limited.claim()) == 1
    assert limited.store.limited_tasks.next_start_time == BEGIN + 1.5 * MINUTE
    limited.now = BEGIN + 10 * MINUTE
    assert len(await limited.claim()) == 2


async def test_starts_of_a_window_count_when_the_window_becomes_longer(limited: LimitedStore) -> None:
    await limited.limit(max_starts=1, rate_window=timedelta(seconds=1))
    for _ in range(4):
        await limited.enqueue()
    for _ in range(3):
        assert len(await limited.claim()) == 1
        limited.now += timedelta(seconds=2)
    await limited.limit(max_starts=3, rate_window=MINUTE)
    assert await limited.claim() == []
    limited.now = BEGIN + MINUTE
    assert len(await limited.claim()) == 1


async def test_a_clock_that_is_set_back_delays_a_task_by_one_window_at_most(limited: LimitedStore) -> None:
    await limited.limit(max_starts=1, rate_window=MINUTE)
    for _ in range(2):
        await limited.enqueue()
    assert len(await limited.claim()) == 1
    limited.now -= timedelta(hours=5)
    assert await limited.claim() == []
    assert limited.store.limited_tasks.next_start_time == limited.now + MINUTE
    limited.now += MINUTE
    assert len(await limited.claim()) == 1


async def test_limits_and_what_they_count_outlive_the_server(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    first = LimitedStore(tmp_path, loop)
    await first.limit("mail", max_running=2)
    await first.limit("rated", max_starts=1, rate_window=MINUTE)
    await first.limit("paused", paused=True)
    for task_id in ("mail", "mail", "mail", "rated", "rated", "paused"):
        await first.enqueue(task_id)
    assert len(await first.claim()) == 3
    first.close()
    second = LimitedStore(tmp_path, loop, now=BEGIN + MINUTE / 2)
    tasks = second.store.limited_tasks
    assert await second.claim() == []
    assert (tasks.running("mail"), tasks.next_start_time) == (2, BEGIN + MINUTE)
    assert tasks.limits["paused"] == TaskLimits(paused=True)
    second.now = BEGIN + MINUTE
    assert len(await second.claim()) == 1
    second.close()


async def test_a_task_without_jobs_exists_as_long_as_it_has_limits(limited: LimitedStore) -> None:
    with pytest.raises(TaskNotFound):
        await limited.store.task("mail")
    await limited.limit(max_running=3)
    task = await limited.store.task("mail")
    assert (task.create_time, task.last_enqueue_time, task.jobs) == (None, None, 0)
    assert [each.id for each in (await limited.store.tasks(size=9)).items] == ["mail"]
    await limited.limit(max_running=0)
    with pytest.raises(TaskNotFound):
        await limited.store.task("mail")


async def test_a_task_without_jobs_is_not_limited_where_no_job_would_be_taken(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    # More has to be free than any disk has.
    quota = Quota(tmp_path, 9, 1 << 62)
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=loop, quota=quota)
    with pytest.raises(DiskFull):
        await store.update_task("mail", TaskLimitsChange(paused=True))
    store.close()
    limited = LimitedStore(tmp_path, loop)
    await limited.enqueue()
    limited.close()
    store = Store.open(tmp_path, on_commit=lambda executions: None, loop=loop, quota=quota)
    assert (await store.update_task("mail", TaskLimitsChange(paused=True))).limits.paused
    store.close()


async def test_limits_outlive_the_last_job_of_a_task(limited: LimitedStore) -> None:
    job = (await limited.enqueue()).job_id
    await limited.limit(max_running=1)
    [execution_id] = await limited.claim()
    await limited.finish(execution_id)
    assert await limited.store.delete_jobs([job]) == 1
    task = await limited.store.task("mail")
    assert (task.jobs, task.create_time, task.limits) == (0, None, TaskLimits(max_running=1))
    limited.now += MINUTE
    await limited.enqueue()
    assert (await limited.store.task("mail")).create_time == BEGIN + MINUTE
    await limited.limit(max_running=0)
    assert (await limited.store.task("mail")).limits == NO_LIMITS


async def test_a_change_leaves_the_other_limits_as_they_are(limited: LimitedStore) -> None:
    await limited.limit(max_running=3)
    await limited.limit(max_starts=5, rate_window=MINUTE)
    await limited.limit(paused=True)
    assert (await limited.store.task("mail")).limits == TaskLimits(3, True, 5, MINUTE)
    await limited.limit(max_starts=0)
    assert (await limited.store.task("mail")).limits == TaskLimits(3, True)


# ---- pools


def pools(*configured: tuple[str, str, Sequence[str]]) -> Pools:
    return Pools([Pool(*each) for each in configured], HOSTS)


async def test_a_host_gets_executions_of_its_pools_alone(tmp_path: Path) -> None:
    configured = pools(("mail", "mail,mail-*", ("fast",)), ("all", "*", ("slow", "fast")))
    limited = LimitedStore(tmp_path, asyncio.get_running_loop(), pools=configured)
    mails = [(await limited.enqueue("mail-a")).id, (await limited.enqueue("mail")).id]
    other = (await limited.enqueue("other")).id
    assert await limited.claim("spare", "spare") == []
    assert await limited.claim("slow", "slow", "slow") == [other]
    assert await limited.claim("spare", "slow", "fast", "slow", "fast") == mails
    limited.close()


async def test_priority_and_turns_hold_over_the_pools_of_a_host(tmp_path: Path) -> None:
    configured = pools(("a", "a*", ("fast",)), ("b", "b*", ("fast",)))
    limited = LimitedStore(tmp_path, asyncio.get_running_loop(), pools=configured)
    ids = {
        name: (await limited.enqueue(task_id, priority)).id
        for name, task_id, priority in (
            *(("a1", "a", 0), ("a2", "a", 0), ("b1", "b", 0), ("b2", "b", 0), ("ax", "ax", 0)),
            *(("high", "b", 9), ("low", "a", -9)),
        )
    }
    claimed = await limited.claim()
    assert [name for each in claimed for name, its_id in ids.items() if its_id == each] == [
        *("high", "a1", "b1", "ax", "a2", "b2", "low")
    ]
    limited.close()


async def test_other_pools_at_the_next_start_move_what_waits(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    first = LimitedStore(tmp_path, loop)
    mail, other = [(await first.enqueue(task_id)).id for task_id in ("mail", "other")]
    first.close()
    second = LimitedStore(tmp_path, loop, pools=pools(("mail", "mail", ("slow",))))
    assert await second.claim("slow", "slow") == [mail]
    await second.store.requeue(mail)
    second.close()
    third = LimitedStore(tmp_path, loop, pools=pools(("mail", "mail", ("fast",)), ("rest", "*", ("slow",))))
    assert await third.claim("spare") == []
    assert await third.claim("slow", "slow") == [other]
    third.close()
    fourth = LimitedStore(tmp_path, loop)
    assert await fourth.claim("spare") == [mail]
    fourth.close()


# ---- the cost


def test_a_claim_takes_as_many_steps_however_much_waits_and_is_blocked(tmp_path: Path) -> None:
    of_few, of_many = (steps_of_a_claim(tmp_path / str(count), count) for count in (10, 5_000))
    assert of_many <= of_few + 200


def steps_of_a_claim(directory: Path, waiting: int) -> int:
    """Steps of SQLite's machine of a claim, where so many tasks are paused that would be served first, and so many
    executions of the next task wait."""
    directory.mkdir()
    loop = asyncio.new_event_loop()
    with closing(open_for_writing(directory / "fastlane.db")) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("BEGIN")
        free = [(new_id(), "free", 0) for _ in range(waiting)]
        rows = [(new_id(), f"paused-{number}", 9) for number in range(waiting)]
        db.executemany("INSERT INTO task_limits VALUES (?, 0, 1, 0, 0, 0, NULL, '')", [(row[1],) for row in rows])
        db.executemany(
            """
            INSERT INTO executions
                (execution_id, job_id, task_id, priority, run, attempt, state, state_time, create_time, due_time)
            VALUES (?, '', ?, ?, 1, 1, 2, 0, 0, 0)
            """,
            [*rows, *free],
        )
        db.execute(
            "INSERT INTO jobs (job_id, execution_id, task_id, state, spec, create_time, request_id, request_digest,"
            " caller_address) VALUES ('', ?, 'free', 2, x'7b7d', 0, '', x'', '')",
            [free[0][0]],
        )
        db.execute("COMMIT")
    hundreds = 0

    def counted() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    db = open_for_writing(directory / "fastlane.db")
    writer = Writer(db, directory / "fastlane.db", loop=loop, on_commit=lambda executions: None)
    store = Store(writer, Readers(directory / "fastlane.db", loop=loop), instance="")
    db.set_progress_handler(counted, 100)
    [assignment] = store.claim_on(["fast"]).result(10)
    assert assignment.execution.id == free[0][0]
    store.close()
    loop.close()
    return 100 * hundreds


# ---- what survives


CLAIM_UNTIL_KILLED = """
import asyncio, random, sys
from datetime import timedelta
from pathlib import Path
from fastlane_grpc.model import JobSpec, Outcome, State, TaskLimitsChange
from fastlane_grpc.store import Store

async def main():
    chance = random.Random(sys.argv[2])
    store = Store.open(Path(sys.argv[1]), on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    running = [assignment.execution.id for assignment in await store.unfinished()]

    async def act():
        while True:
            task = chance.choice(["a", "b", "c"])
            if chance.random() < 0.1:
                await store.update_task("a", TaskLimitsChange(max_running=chance.randrange(1, 4)))
                await store.update_task("b", TaskLimitsChange(max_starts=3, rate_window=timedelta(days=1)))
            await store.enqueue(task_id=task, spec=JobSpec("busybox"), request_id="", caller_address="")
            running.extend(assignment.execution.id for assignment in await store.claim_on(["here"] * 2))
            if running and chance.random() < 0.8:
                execution_id = running.pop(chance.randrange(len(running)))
                if chance.random() < 0.3:
                    await store.requeue(execution_id)
                else:
                    await store.finish(execution_id, state=State.SUCCEEDED, outcome=Outcome(), logs=())
            print("x", flush=True)

    await asyncio.gather(*(act() for _ in range(4)))

asyncio.run(main())
"""


def test_counts_and_limits_are_exact_after_kill_9(tmp_path: Path) -> None:
    chance = random.Random(13)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", CLAIM_UNTIL_KILLED, str(tmp_path), str(chance.random())],
            stdout=subprocess.PIPE,
            text=True,
        ) as acting:
            assert acting.stdout
            for _ in range(chance.randrange(20, 120)):
                assert acting.stdout.readline()
            acting.send_signal(signal.SIGKILL)
        with closing(open_for_reading(tmp_path / "fastlane.db")) as db:

            def rows(sql: str, db: Any = db) -> list[Any]:
                return db.execute(sql).fetchall()  # type: ignore[no-any-return]

            check_lines(rows)
            check_jobs(rows)
            [(started,)] = rows("SELECT count(*) FROM executions WHERE task_id = 'b' AND claim_time IS NOT NULL")
            limited = rows("SELECT 1 FROM task_limits WHERE task_id = 'b'")
            assert rows("SELECT count(*) FROM task_starts") <= [(3,)]
            assert started >= rows("SELECT count(*) FROM task_starts")[0][0]
            assert limited or not rows("SELECT 1 FROM task_starts")


# ---- any order of calls, at any time

CONFIGURATIONS = [
    pools(),
    pools(("a", "a", ("fast",)), ("rest", "*", ("slow", "spare"))),
    pools(("ab", "a,b", ("fast", "slow")), ("c", "c", ("slow",))),
    pools(("c", "?", ("spare",)), ("a", "a", ("fast",))),
]


class LimitsMachine(RuleBasedStateMachine):
    """After any order of calls a claim takes exactly what a plain model of queue, limits and pools takes."""

    executions = Bundle("executions")

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        # Nobody runs this loop: every call is a thread's.
        self.loop = asyncio.new_event_loop()
        self.pools = CONFIGURATIONS[0]
        self.limited = LimitedStore(Path(self.directory.name), self.loop)
        # In the order of arrival, with the priority of each.
        self.tasks: dict[str, tuple[int, str]] = {}
        self.queued: list[str] = []
        # For each priority the tasks that have something queued, the next one first.
        self.turns: dict[int, list[str]] = defaultdict(list)
        self.running: set[str] = set()
        self.limits: dict[str, TaskLimits] = {}
        self.starts: dict[str, dict[str, datetime]] = defaultdict(dict)

    @property
    def store(self) -> Store:
        return self.limited.store

    @rule(target=executions, task=st.sampled_from("abc"), priority=st.integers(0, 1))
    def enqueue(self, task: str, priority: int) -> str:
        spec = JobSpec("busybox", priority=priority)
        job, _ = self.store.enqueue(task_id=task, spec=spec, request_id="", caller_address="").result(10)
        self.tasks[job.execution.id] = (priority, task)
        self._queue(job.execution.id)
        return job.execution.id

    @rule(
        task=st.sampled_from("abc"),
        max_running=st.none() | st.integers(0, 3),
        paused=st.none() | st.booleans(),
        rate=st.none() | st.tuples(st.integers(0, 3), st.integers(1, 60)),
    )
    def update(self, task: str, max_running: int | None, paused: bool | None, rate: tuple[int, int] | None) -> None:
        starts = None if rate is None else rate[0]
        window = timedelta(seconds=rate[1]) if rate and rate[0] else None
        change = TaskLimitsChange(max_running, paused, starts, window)
        answer = self.store.update_task(task, change).result(10)
        self.limits[task] = change.applied_to(self.limits.get(task, NO_LIMITS))
        if not self.limits[task].max_starts:
            self.starts[task].clear()
        assert answer.limits == self.limits[task]

    @rule(hosts=st.lists(st.sampled_from(HOSTS), max_size=5))
    def claim(self, hosts: list[str]) -> None:
        self.store.release_rates(100).result(10)
        claimed = [assignment.execution for assignment in self.store.claim_on(hosts).result(10)]
        expected = [(host, taken) for host in hosts if (taken := self._take(host))]
        assert [(execution.host, execution.id) for execution in claimed] == expected

    @rule(execution_id=executions)
    def requeue(self, execution_id: str) -> None:
        self.store.requeue(execution_id).result(10)
        if execution_id in self.running:
            self.running.discard(execution_id)
            self.starts[self.tasks[execution_id][1]].pop(execution_id, None)
            self._queue(execution_id)

    @rule(execution_id=executions)
    def finish(self, execution_id: str) -> None:
        self.store.finish(execution_id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=()).result(10)
        self.running.discard(execution_id)
        if execution_id in self.queued:
            self._leave_queue(execution_id)

    @rule(seconds=st.integers(1, 70))
    def wait(self, seconds: int) -> None:
        self.limited.now += timedelta(seconds=seconds)

    @rule(configuration=st.sampled_from(CONFIGURATIONS))
    def restart(self, configuration: Pools) -> None:
        self.limited.close()
        self.pools = configuration
        self.limited = LimitedStore(Path(self.directory.name), self.loop, now=self.limited.now, pools=configuration)

    @invariant()
    def the_store_is_exact(self) -> None:
        check_lines(self.limited.rows)
        check_jobs(self.limited.rows)

    def _queue(self, execution_id: str) -> None:
        priority, task = self.tasks[execution_id]
        self.queued.append(execution_id)
        self.queued.sort(key=list(self.tasks).index)
        if task not in self.turns[priority]:
            self.turns[priority].append(task)

    def _leave_queue(self, execution_id: str) -> None:
        self.queued.remove(execution_id)
        priority, task = self.tasks[execution_id]
        if all(self.tasks[each] != (priority, task) for each in self.queued):
            self.turns[priority].remove(task)

    def _may_start(self, task: str) -> bool:
        limits = self.limits.get(task, NO_LIMITS)
        running = sum(self.tasks[each][1] == task for each in self.running)
        window = limits.rate_window or timedelta()
        recent = sum(time > self.limited.now - window for time in self.starts[task].values())
        return not (limits.paused or 0 < limits.max_running <= running or 0 < limits.max_starts <= recent)

    def _take(self, host: str) -> str | None:
        for priority in sorted(self.turns, reverse=True):
            for task in self.turns[priority]:
                if self.pools.of_task(task) not in self.pools.of_host(host) or not self._may_start(task):
                    continue
                taken = next(each for each in self.queued if self.tasks[each] == (priority, task))
                self.turns[priority].remove(task)
                self.turns[priority].append(task)
                self._leave_queue(taken)
                self.running.add(taken)
                if self.limits.get(task, NO_LIMITS).max_starts:
                    self.starts[task][taken] = self.limited.now
                return taken
        return None

    def teardown(self) -> None:
        self.limited.close()
        self.loop.close()
        self.directory.cleanup()


LimitsMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
TestAnyOrderOfCalls = pytest.mark.slow(LimitsMachine.TestCase)
