"""The change log: every change of a job or an execution is a row of it, in order and without gaps, and only its old end
is pruned."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.errors import CursorTooOld
from fastlane_grpc.model import JobSpec, Outcome, State
from fastlane_grpc.retention import STEP_CHANGES, Retention, RetentionLimits
from fastlane_grpc.store import FIRST_POSITION, Change, ChangeKind, ChangePosition
from fastlane_grpc.store.changes import prune_changes
from fastlane_grpc.store.database import open_for_writing, sqlite3
from fastlane_grpc.store.writer import Written
from tests.parts import Parts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(seconds=1)
EVERYTHING = 1_000_000


class ChangesHarness(Parts):
    """A store with a clock that is moved by hand, and its retention."""

    def __init__(self, path: Path, limits: RetentionLimits) -> None:
        self.time = NOW
        super().__init__(path, now=lambda: self.time)
        self.announcements = 0
        self.listeners.append(self._count)
        self.open_store(self.parts)
        self.open_logs(self.parts)
        self.retention = Retention(self.store, self.logs, limits, now=self.now, rest_seconds=0)
        self.parts.callback(self.retention.close)

    def _count(self, executions: object) -> None:
        self.announcements += 1

    async def enqueue(self, **spec: Any) -> str:
        spec = {"image": "busybox", **spec}
        job, _ = await self.store.enqueue(task_id="task", spec=JobSpec(**spec), request_id="", caller_address="")
        return job.id

    async def run(self) -> None:
        """Takes the oldest queued execution to its end."""
        [assignment] = await self.store.claim_on(["local"])
        await self.start(assignment.execution.id)
        await self.store.finish(assignment.execution.id, state=State.SUCCEEDED, outcome=Outcome(exit_code=0), logs=())

    async def start(self, execution_id: str) -> None:
        await self.store.starting(
            execution_id,
            container_id="c",
            handle="{}",
            image_digest="",
            pull_time=None,
            container_time=None,
        )
        await self.store.running(execution_id, start_time=self.time)

    async def log(self, after: ChangePosition = FIRST_POSITION) -> list[Change]:
        return await self.store.changes(after, EVERYTHING)

    async def told(self) -> list[tuple[str, str]]:
        return [(change.kind.name, change.state.name) for change in await self.log()]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ChangesHarness]:
    harness = ChangesHarness(tmp_path, RetentionLimits(changes=10, keep_changes=timedelta(hours=1)))
    yield harness
    harness.close_parts()


async def test_every_transition_is_a_row_in_its_order(harness: ChangesHarness) -> None:
    job_id = await harness.enqueue()
    await harness.run()
    assert await harness.told() == [
        ("EXECUTION", "QUEUED"),
        ("EXECUTION", "PREPARING"),
        ("DETAIL", "PREPARING"),
        ("EXECUTION", "RUNNING"),
        ("EXECUTION", "SUCCEEDED"),
        ("ENDED", "SUCCEEDED"),
    ]
    execution_id = (await harness.store.job(job_id)).execution.id
    for number, change in enumerate(await harness.log(), 1):
        assert (change.job_id, change.task_id, change.execution_id) == (job_id, "task", execution_id)
        assert (change.position.sequence, change.time) == (number, NOW)


async def test_a_stop_a_requeue_an_expiry_and_a_promotion_are_rows(harness: ChangesHarness) -> None:
    await harness.enqueue(start_at=NOW + GRACE)
    await harness.enqueue(expire_time=NOW - GRACE)
    harness.time += GRACE
    await harness.store.promote(10)
    [assignment] = await harness.store.claim_on(["local"])
    await harness.store.requeue(assignment.execution.id)
    stopped = await harness.store.stop(assignment.execution.job_id, grace=GRACE, note="")
    assert stopped.state is State.STOPPED
    assert await harness.told() == [
        ("EXECUTION", "SCHEDULED"),
        ("EXECUTION", "QUEUED"),
        ("EXECUTION", "EXPIRED"),
        ("ENDED", "EXPIRED"),
        ("EXECUTION", "QUEUED"),
        ("EXECUTION", "PREPARING"),
        ("EXECUTION", "QUEUED"),
        ("JOB", "QUEUED"),  # the note that a caller stopped it
        ("EXECUTION", "STOPPED"),
        ("ENDED", "STOPPED"),
    ]


async def test_a_change_that_is_undone_is_no_row(harness: ChangesHarness) -> None:
    await harness.enqueue(labels={"a": "b"})

    def fails(db: Any) -> Written[None]:
        db.execute("UPDATE executions SET state = 3")
        raise ValueError("undone")

    with pytest.raises(ValueError, match="undone"):
        await harness.writer.write(fails)
    await harness.enqueue()
    assert [change.position.sequence for change in await harness.log()] == [1, 2]


async def test_a_pruned_job_is_a_row_with_its_labels_and_is_announced(harness: ChangesHarness) -> None:
    job_id = await harness.enqueue(labels={"team": "mail"})
    await harness.run()
    [*_, last] = await harness.log()
    announced = harness.announcements
    assert await harness.store.delete_jobs([job_id]) == 1
    assert harness.announcements == announced + 1
    [pruned] = await harness.log(last.position)
    assert (pruned.kind, pruned.job_id, pruned.labels) == (ChangeKind.PRUNED, job_id, {"team": "mail"})


async def test_a_job_that_changes_alone_is_a_row_and_is_announced(harness: ChangesHarness) -> None:
    job_id = await harness.enqueue()

    def work(db: Any) -> Written[None]:
        db.execute("UPDATE jobs SET caller_address = 'elsewhere' WHERE job_id = ?", [job_id])
        return Written(None, changed_jobs=[job_id])

    announced = harness.announcements
    await harness.writer.write(work)
    assert harness.announcements == announced + 1
    assert (await harness.told())[-1] == ("JOB", "QUEUED")


async def test_a_reader_goes_on_behind_what_it_has_read(harness: ChangesHarness) -> None:
    for _ in range(5):
        await harness.enqueue()
    [first, second] = await harness.store.changes(FIRST_POSITION, 2)
    rest = await harness.log(second.position)
    assert [change.position.sequence for change in (first, second, *rest)] == [1, 2, 3, 4, 5]
    assert rest[-1].position == await harness.store.newest_change()
    assert await harness.log(rest[-1].position) == []


async def test_retention_prunes_changes_by_number(harness: ChangesHarness) -> None:
    for _ in range(25):
        await harness.enqueue()
    before = await harness.log()
    await harness.retention.round(harness.time)
    with pytest.raises(CursorTooOld):
        await harness.log()
    with pytest.raises(CursorTooOld):
        await harness.log(before[14].position)
    assert await harness.log(before[15].position) == before[16:]


async def test_retention_prunes_changes_by_age_and_keeps_the_newest(harness: ChangesHarness) -> None:
    await harness.enqueue()
    [old] = await harness.log()
    harness.time += timedelta(hours=2)
    for _ in range(2):
        await harness.enqueue()
    await harness.retention.round(harness.time)
    with pytest.raises(CursorTooOld):
        await harness.log(old.position)
    harness.time += timedelta(days=9)
    await harness.retention.round(harness.time)
    newest = await harness.store.newest_change()
    assert newest.sequence == 3
    await harness.enqueue()
    [following] = await harness.log(newest)
    assert following.position.sequence == 4, "numbers never come again"


async def test_a_hundred_pages_of_changes_are_pruned_in_bounded_steps(harness: ChangesHarness) -> None:
    def fill(db: Any) -> Written[None]:
        db.execute(
            """
            WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?)
            INSERT INTO changes SELECT number, 1, 'j', 't', 'e', 2, 0, NULL FROM numbers
            """,
            [10 * STEP_CHANGES],
        )
        return Written(None)

    await harness.writer.write(fill)
    assert await harness.store.prune_changes(before=NOW, keep=0, limit=STEP_CHANGES) == STEP_CHANGES
    await harness.retention.round(harness.time)
    assert await harness.store.prune_changes(before=NOW, keep=0, limit=STEP_CHANGES) == 0


async def test_a_position_of_another_history_is_too_old(harness: ChangesHarness) -> None:
    await harness.enqueue()
    [change] = await harness.log()
    # As after the restore of a backup: the same number, another row; and a number that is not there yet.
    for position in (ChangePosition(1, change.position.time_us + 1), ChangePosition(2, change.position.time_us)):
        with pytest.raises(CursorTooOld, match="watch again without a cursor"):
            await harness.log(position)


async def test_jobs_are_read_with_the_newest_change_of_that_moment(harness: ChangesHarness) -> None:
    ids = [await harness.enqueue(labels={"number": str(number)}) for number in range(3)]
    read = await harness.store.read_jobs([*ids[:2], "missing"], with_labels=True)
    assert read.sequence == 3
    assert read.jobs.keys() == set(ids[:2])
    assert read.labels == {ids[0]: {"number": "0"}, ids[1]: {"number": "1"}}
    assert all(job.spec is None for job in read.jobs.values())
    assert (await harness.store.read_jobs(ids)).labels == {}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Any:
    db = open_for_writing(tmp_path_factory.mktemp("changes") / "fastlane.db")
    yield db
    db.close()


@given(
    times=st.lists(st.integers(0, 20), max_size=30),
    before=st.integers(0, 21),
    keep=st.integers(0, 30),
    limit=st.integers(1, 31),
)
def test_pruning_deletes_a_beginning_whatever_times_the_rows_have(
    database: sqlite3.Connection, times: list[int], before: int, keep: int, limit: int
) -> None:
    database.execute("DELETE FROM changes")
    database.executemany(
        "INSERT INTO changes VALUES (?, 1, 'j', 't', 'e', 2, ?, NULL)",
        [(number, time * 1_000_000) for number, time in enumerate(times, 1)],
    )
    moment = datetime.fromtimestamp(before, UTC)
    deleted = prune_changes(database, before=moment, keep=keep, limit=limit, up_to=1 << 62)
    left = [sequence for (sequence,) in database.execute("SELECT sequence FROM changes ORDER BY 1").fetchall()]
    assert left == list(range(deleted + 1, len(times) + 1))
    assert deleted <= limit
    assert left or not times, "the newest is kept"
    for number in range(1, deleted + 1):
        assert number <= len(times) - keep or times[number - 1] < before
    if deleted < min(limit, len(times) - 1):
        assert deleted + 1 > len(times) - keep
        assert times[deleted] >= before
