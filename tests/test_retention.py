"""The retention over a real store and real files: what is old goes, oldest first, files before rows; nothing else does,
and nobody waits."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fastlane_grpc import config
from fastlane_grpc.client import Client, NotFound
from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, ServerStopping
from fastlane_grpc.logs import Logs
from fastlane_grpc.logs.files import DELETE_ENTRIES, LeftOver
from fastlane_grpc.model import Execution, JobSpec, Outcome, Source, State
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.retention import STEP_ROWS, Pruned, Retention, RetentionLimits
from fastlane_grpc.store import Count, PruneQuery
from fastlane_grpc.store.database import open_for_reading
from tests.fakes import Announcements
from tests.hostile_tree import make_deep
from tests.parts import Parts
from tests.recorder_program import eventually
from tests.serving import serving

DAY = timedelta(days=1)
FOR_EVER = RetentionLimits()


class Clock:
    """The wall clock, moved by hand until it runs."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self._ran_since: float | None = None

    def __call__(self) -> datetime:
        return (
            self.time if self._ran_since is None else self.time + timedelta(seconds=time.monotonic() - self._ran_since)
        )

    def runs(self) -> None:
        self._ran_since = time.monotonic()


class House(Parts):
    """A store and logs by one clock, and the retention of both."""

    def __init__(self, path: Path, limits: RetentionLimits = FOR_EVER) -> None:
        self.clock = Clock()
        super().__init__(path, now=self.clock)
        self.path = path
        self.limits = limits
        self.listeners.append(announced := Announcements())
        self.announced = announced
        self.open_store(self.parts)
        self.open_logs(self.parts)
        self.open_retention(self.parts)

    def open_retention(self, parts: Any) -> None:
        """It runs where a test runs it."""
        self.retention = Retention(self.store, self.logs, self.limits, now=self.clock, rest_seconds=0, call_seconds=60)
        parts.callback(self.retention.close)
        self.listeners.append(self.retention.on_change)

    def close(self) -> None:
        self.close_parts()

    async def ended(self, task_id: str = "task", *, output: bytes = b"printed\n", left: int = 0) -> Execution:
        """One that ran, printed that, left so many bytes beside its log, and ended just now."""
        spec = JobSpec("busybox")
        job, _ = await self.store.enqueue(task_id=task_id, spec=spec, request_id="", caller_address="")
        await self.store.claim_on(["here"])
        id = job.execution.id
        self.logs.path(id).mkdir(parents=True)
        writer = RecordWriter.create(self.logs.output_path(id), execution_id=id, capture="test")
        writer.write([(Source.STDOUT, output)], time.time_ns())
        trailer = writer.seal(0, {}, time.time_ns())
        if left:
            (self.logs.path(id) / "box-1").mkdir()
            (self.logs.path(id) / "box-1" / "file").write_bytes(bytes(left))
        room = self.logs.room(id)
        return await self.store.finish(
            id, state=State.SUCCEEDED, outcome=Outcome(), logs=trailer.totals, log_bytes=room
        )

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        db = open_for_reading(self.path / "fastlane.db")
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def check_kept(self) -> None:
        """What is kept by triggers is what would be counted."""
        counted = "SELECT coalesce(sum(log_bytes), 0), count(*) FILTER (WHERE state <= 2) FROM executions"
        assert self.rows("SELECT log_bytes, waiting FROM kept") == self.rows(counted)
        by_task = (
            "SELECT task_id, count(*), count(*) FILTER (WHERE state < 6) FROM jobs GROUP BY task_id ORDER BY task_id"
        )
        assert self.rows("SELECT task_id, jobs, open_jobs FROM tasks ORDER BY task_id") == self.rows(by_task)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


async def log_is_pruned(house: House, execution: Execution) -> bool:
    """Whether it is, by what is told; the files agree."""
    now = await house.store.execution(execution.id)
    assert house.logs.output_path(execution.id).exists() == (now.times.prune_time is None)
    return now.times.prune_time is not None


async def test_a_log_that_is_old_enough_goes_and_its_job_stays(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_logs=30 * DAY))
    old = await house.ended()
    house.clock.time += DAY
    young = await house.ended()
    house.clock.time += 29 * DAY
    pruned = await house.retention.round(house.clock.time)
    assert (pruned.jobs, pruned.logs) == (0, 1)
    assert pruned.bytes >= house.logs.output_path(young.id).stat().st_blocks * 512
    assert [await log_is_pruned(house, each) for each in (old, young)] == [True, False]
    assert (await house.store.execution(old.id)).times.prune_time == house.clock.time
    assert (await house.store.execution(old.id)).logs == old.logs
    house.check_kept()
    house.close()


async def test_a_job_that_is_old_enough_goes_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_jobs=90 * DAY))
    old = await house.ended("old")
    house.clock.time += DAY
    young = await house.ended("young")
    house.clock.time += 89 * DAY
    assert (await house.retention.round(house.clock.time)).jobs == 1
    with pytest.raises(JobNotFound):
        await house.store.job(old.job_id)
    with pytest.raises(ExecutionNotFound):
        await house.store.execution(old.id)
    assert not house.logs.path(old.id).exists()
    assert not await log_is_pruned(house, young)
    assert house.rows("SELECT task_id FROM tasks") == [("young",)]
    house.check_kept()
    house.close()


async def test_a_job_whose_log_went_before_goes_in_its_time(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_logs=30 * DAY, keep_jobs=90 * DAY))
    await house.ended()
    house.clock.time += 30 * DAY
    assert (await house.retention.round(house.clock.time)).logs == 1
    house.clock.time += 60 * DAY
    assert await house.retention.round(house.clock.time) == Count(jobs=1)
    house.check_kept()
    house.close()


async def test_what_is_not_final_is_never_old(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_logs=DAY, keep_jobs=DAY, total_log_bytes=1))
    spec = JobSpec("busybox")
    running, _ = await house.store.enqueue(task_id="task", spec=spec, request_id="", caller_address="")
    await house.store.claim_on(["here"])
    queued, _ = await house.store.enqueue(task_id="task", spec=spec, request_id="", caller_address="")
    house.clock.time += 1000 * DAY
    assert await house.retention.round(house.clock.time) == Count()
    assert [(await house.store.job(job.id)).execution.state for job in (running, queued)] == [
        State.PREPARING,
        State.QUEUED,
    ]
    house.close()


async def test_beyond_their_size_the_logs_that_ended_first_go_and_no_more_than_that(tmp_path: Path) -> None:
    house = House(tmp_path)
    ended = []
    for _ in range(10):
        ended.append(await house.ended(output=bytes(100_000)))
        house.clock.time += DAY
    rooms = [house.logs.room(each.id) for each in ended]
    house.retention = Retention(
        house.store, house.logs, RetentionLimits(total_log_bytes=sum(rooms) - rooms[0] - 1), now=house.clock
    )
    assert (await house.retention.round(house.clock.time)).logs == 2
    assert [await log_is_pruned(house, each) for each in ended] == [True] * 2 + [False] * 8
    house.check_kept()
    house.close()


async def test_more_than_one_step_takes_is_pruned_in_several(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_logs=DAY))
    # All at one time: the walk goes on behind the last one, not behind its time.
    for _ in range(STEP_ROWS + 50):
        await house.ended()
    house.clock.time += DAY
    assert (await house.retention.round(house.clock.time)).logs == STEP_ROWS + 50
    assert house.rows("SELECT count(*) FROM executions WHERE log_bytes > 0 OR prune_time IS NULL") == [(0,)]
    assert list(house.logs.directory.iterdir()) == []
    house.check_kept()
    house.close()


async def test_the_directory_of_a_day_goes_with_its_last_log(house: House) -> None:
    first, second = await house.ended(), await house.ended()
    day = house.logs.path(first.id).parent
    house.logs.delete(first.id)
    assert day.exists()
    house.logs.delete(second.id)
    assert not day.exists()
    house.logs.delete(second.id)


async def test_of_a_task_or_of_all_a_call_prunes_what_ended_before(house: House) -> None:
    one, other = await house.ended("one"), await house.ended("other")
    house.clock.time += DAY
    late = await house.ended("one")
    old = PruneQuery(house.clock.time - DAY, logs_only=True, task_id="one")
    would = await house.retention.count(old)
    assert (would.count.jobs, would.count.logs, would.count.bytes, would.more) == (0, 1, house.logs.room(one.id), False)
    assert await house.retention.prune(old) == would
    assert [await log_is_pruned(house, each) for each in (one, other, late)] == [True, False, False]
    whole = PruneQuery(house.clock.time - DAY)
    room = house.logs.room(other.id)
    assert (await house.retention.count(whole)).count == Count(2, 1, room)
    assert (await house.retention.prune(whole)).count == Count(2, 1, room)
    assert not await log_is_pruned(house, late)
    house.check_kept()


@pytest.mark.parametrize("files_are_gone", [False, True])
async def test_a_crash_between_the_steps_leaves_nothing_that_is_not_pruned_again(
    house: House, files_are_gone: bool
) -> None:
    ended = await house.ended()
    await house.store.mark_pruned([ended.id])
    if files_are_gone:
        house.logs.delete(ended.id)
    assert (await house.retention.prune(PruneQuery(house.clock.time, logs_only=True))).count.logs == 1
    assert not house.logs.path(ended.id).exists()
    assert (await house.retention.prune(PruneQuery(house.clock.time, logs_only=True))).count == Count()
    house.check_kept()


async def test_a_log_that_cannot_be_deleted_stays_known_and_holds_up_no_other(house: House) -> None:
    stuck, other = await house.ended(), await house.ended()
    # In its place something that is not a directory: the disk refuses to remove it as one.
    aside = house.path / "aside"
    house.logs.path(stuck.id).rename(aside)
    house.logs.path(stuck.id).write_bytes(b"")
    old = PruneQuery(house.clock.time)
    assert (await house.retention.prune(old)).count.jobs == 1
    assert not house.logs.path(other.id).exists()
    assert (await house.retention.prune(old)).more is False
    house.logs.path(stuck.id).unlink()
    aside.rename(house.logs.path(stuck.id))
    assert (await house.retention.prune(old)).count.jobs == 1
    assert not house.logs.path(stuck.id).exists()


@pytest.mark.parametrize("what", ["deep", "full"])
async def test_a_log_with_a_tree_beside_it_goes_with_its_job_and_holds_up_no_other(house: House, what: str) -> None:
    hostile, other = await house.ended(), await house.ended()
    if what == "deep":
        make_deep(house.logs.path(hostile.id), 1_500)
    else:
        # More than is deleted at once.
        for number in range(DELETE_ENTRIES + 10):
            (house.logs.path(hostile.id) / str(number)).touch()
    pruned = await house.retention.prune(PruneQuery(house.clock.time))
    assert (pruned.count.jobs, pruned.count.logs) == (2, 2)
    assert not house.logs.path(other.id).exists()
    assert not house.logs.path(hostile.id).exists()
    task = asyncio.create_task(house.retention.run())
    await asyncio.to_thread(eventually, lambda: not house.logs.left_over.directory.exists())
    task.cancel()
    assert list(house.logs.directory.iterdir()) == []


class EndlessLeftOver(LeftOver):
    """As when a container that runs on fills it as fast as it is emptied."""

    def step(self) -> bool:
        return True


async def test_left_over_files_that_never_end_hold_up_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlane_grpc.retention.LEFT_OVER_SECONDS", 0.1)
    house = House(tmp_path, RetentionLimits(total_log_bytes=1))
    house.logs.left_over = EndlessLeftOver(tmp_path / "deleted")
    task = asyncio.create_task(house.retention.run())
    for _ in range(3):
        ended = (await house.ended()).id
        await house.announced.until(
            lambda ended=ended: any(each.id == ended and each.times.prune_time for each in house.announced.all)
        )
    task.cancel()
    house.close()


async def test_what_a_container_left_beside_its_log_costs_no_other_log(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(total_log_bytes=1 << 20))
    executions = [await house.ended(), await house.ended(left=5 << 20)]
    assert (await house.retention.round(house.clock.time)).logs == 0
    assert [await log_is_pruned(house, each) for each in executions] == [False, False]
    house.close()


async def test_what_an_earlier_server_had_set_aside_is_deleted(house: House) -> None:
    (house.logs.left_over.directory / "left" / "inner").mkdir(parents=True)
    task = asyncio.create_task(house.retention.run())
    await asyncio.to_thread(eventually, lambda: not house.logs.left_over.directory.exists())
    task.cancel()


async def test_what_cannot_be_deleted_is_told_once_and_tried_again_later(house: House) -> None:
    left_over = house.logs.left_over
    left_over.directory.mkdir(parents=True)
    # No directory: the disk refuses to remove it as one.
    (left_over.directory / "stuck").touch()
    (left_over.directory / "gone").mkdir()
    with capture_logs() as logs:
        while left_over.step():
            pass
        assert not left_over.step()
    assert [each["event"] for each in logs] == ["what a container left cannot be deleted"]
    assert [path.name for path in left_over.directory.iterdir()] == ["stuck"]
    due = left_over.due_seconds()
    assert due is not None
    assert 20 < due <= 30


class FailingLogs(Logs):
    """Of one execution, and for a while of what was set aside, something that nobody thought of is raised."""

    def __init__(self, directory: Path, execution_id: str) -> None:
        super().__init__(directory)
        self._execution_id = execution_id

    def delete(self, execution_id: str) -> bool:
        if execution_id == self._execution_id:
            raise RecursionError("what nobody thought of")
        return super().delete(execution_id)


async def test_a_log_that_raises_anything_holds_up_no_other_and_not_retention(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_jobs=DAY))
    bad, *others = [await house.ended() for _ in range(5)]
    logs = FailingLogs(house.logs.directory, bad.id)
    house.retention = Retention(
        house.store, logs, RetentionLimits(keep_jobs=DAY), now=house.clock, rest_seconds=0, call_seconds=60
    )
    assert (await house.retention.prune(PruneQuery(house.clock.time, task_id="task"))).count.jobs == 4
    assert [house.logs.path(each.id).exists() for each in (bad, *others)] == [True] + [False] * 4
    # The rounds go on as well, and those that end later are pruned.
    house.clock.time += DAY
    task = asyncio.create_task(house.retention.run())
    late = await house.ended()
    house.clock.time += DAY
    assert (await house.retention.round(house.clock.time)).jobs == 1
    assert not house.logs.path(late.id).exists()
    assert not task.done()
    task.cancel()
    house.close()


async def test_retention_goes_on_after_a_defect_of_a_round(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlane_grpc.retention.RETRY_SECONDS", 0.01)

    class Clockless(Retention):
        rounds = 0

        async def round(self, now: datetime) -> Count:
            self.rounds += 1
            if self.rounds < 3:
                raise ZeroDivisionError("what nobody thought of")
            return await super().round(now)

    retention = Clockless(house.store, house.logs, RetentionLimits(total_log_bytes=1), now=house.clock, rest_seconds=0)
    house.retention = retention
    house.listeners.append(retention.on_change)
    task = asyncio.create_task(retention.run())
    ended = await house.ended()
    await house.announced.until(
        lambda: any(each.id == ended.id and each.times.prune_time for each in house.announced.all)
    )
    assert retention.rounds >= 3
    assert not task.done()
    task.cancel()


async def test_retention_wakes_by_itself_when_what_is_kept_takes_too_much(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(total_log_bytes=1))
    task = asyncio.create_task(house.retention.run())
    ended = await house.ended()
    await house.announced.until(
        lambda: any(each.id == ended.id and each.times.prune_time for each in house.announced.all)
    )
    task.cancel()
    house.close()


async def test_retention_wakes_when_the_oldest_is_old_enough(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_logs=timedelta(seconds=0.2), keep_jobs=DAY))
    house.clock.runs()
    task = asyncio.create_task(house.retention.run())
    ended = await house.ended()
    await house.announced.until(
        lambda: any(each.id == ended.id and each.times.prune_time for each in house.announced.all)
    )
    pruned = house.announced.all[-1].times.prune_time
    assert ended.times.end_time
    assert pruned
    assert pruned - ended.times.end_time >= timedelta(seconds=0.2)
    task.cancel()
    house.close()


async def test_enqueues_go_on_while_much_is_pruned(tmp_path: Path) -> None:
    house = House(tmp_path, RetentionLimits(keep_jobs=DAY))
    for _ in range(2 * STEP_ROWS):
        await house.ended()
    house.clock.time += DAY
    pruning = asyncio.create_task(house.retention.round(house.clock.time))
    answered = 0
    while not pruning.done():
        await house.store.enqueue(task_id="task", spec=JobSpec("busybox"), request_id="", caller_address="")
        answered += 1
    assert pruning.result().jobs == 2 * STEP_ROWS
    # Some in each step, and in the pauses.
    assert answered > 4
    house.check_kept()
    house.close()


KILLED = """
import asyncio, os, signal, sys
from datetime import timedelta
from pathlib import Path
from fastlane_grpc.logs import Logs
from fastlane_grpc.logs import Logs
from fastlane_grpc.logs.files import DELETE_ENTRIES, LeftOver
from fastlane_grpc.model import utc_now
from fastlane_grpc.store import PruneQuery, Store
from fastlane_grpc.retention import RetentionLimits, Retention

path, left = Path(sys.argv[1]), int(sys.argv[2])

class DyingLogs(Logs):
    def delete(self, execution_id):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().delete(execution_id)

async def main():
    store = Store.open(path, on_commit=lambda executions: None, loop=asyncio.get_running_loop())
    retention = Retention(store, DyingLogs(path / "logs"), RetentionLimits(), call_seconds=60)
    await retention.prune(PruneQuery(utc_now() + timedelta(days=1)))

asyncio.run(main())
"""


@pytest.mark.parametrize("logs_deleted", [1, 3, STEP_ROWS + 2])
async def test_killed_in_the_middle_of_it_a_server_leaves_no_file_that_no_row_names(
    tmp_path: Path, logs_deleted: int
) -> None:
    house = House(tmp_path)
    for _ in range(STEP_ROWS + 10):
        await house.ended()
    house.close()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path), str(logs_deleted))
    assert await process.wait() == -signal.SIGKILL
    house = House(tmp_path)
    known = {str(id) for (id,) in house.rows("SELECT execution_id FROM executions")}
    assert {path.parent.name for path in house.logs.directory.glob("*/*/log")} <= known
    assert len(known) >= 10
    assert (await house.retention.prune(PruneQuery(datetime.now(UTC)))).count.jobs == len(known)
    assert list(house.logs.directory.glob("*/*")) == []
    house.check_kept()
    house.close()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc")), max_size=12),
    st.integers(0, 30),
    st.sampled_from(["", "a"]),
)
@pytest.mark.slow
def test_whatever_ended_when_exactly_the_old_is_pruned(ends: list[tuple[int, str]], days: int, task_id: str) -> None:
    async def check(path: Path) -> None:
        house = House(path)
        kept, gone = set(), set()
        limit = house.clock.time + days * DAY
        for after, task in ends:
            house.clock.time += after * DAY
            execution = await house.ended(task)
            (gone if house.clock.time <= limit and task_id in ("", task) else kept).add(execution.id)
        assert (await house.retention.prune(PruneQuery(limit, task_id=task_id))).count.jobs == len(gone)
        assert {id for (id,) in house.rows("SELECT execution_id FROM executions")} == kept
        assert {path.name for path in house.logs.directory.glob("*/*")} == kept
        house.check_kept()
        house.close()

    with TemporaryDirectory() as directory:
        asyncio.run(check(Path(directory)))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("keep_logs", "36h", timedelta(hours=36)),
        ("keep_logs", "1d12h", timedelta(hours=36)),
        ("keep_jobs", "off", None),
        ("max_total_log_bytes", "10g", 10 << 30),
        ("max_total_log_bytes", "off", 0),
        ("min_free_bytes", "OFF", 0),
        ("max_waiting", "5", 5),
    ],
)
def test_what_is_kept_is_a_matter_of_settings(name: str, text: str, value: object) -> None:
    assert getattr(config.load({name: text}, {}, None), name) == value


@pytest.mark.parametrize(
    ("name", "text"), [("keep_logs", "0s"), ("keep_jobs", "2w"), ("min_free_bytes", "none"), ("max_waiting", "off")]
)
def test_a_setting_that_cannot_be_is_named(name: str, text: str) -> None:
    with pytest.raises(config.ConfigError, match=name):
        config.load({name: text}, {}, None)


def test_a_server_prunes_by_its_settings_from_its_start_on(tmp_path: Path) -> None:
    nowhere = {"engine": f"unix://{tmp_path}/no-engine.sock"}
    with serving(tmp_path / "data", keep_jobs="off", **nowhere) as server, Client(server.address) as client:
        job = client.enqueue("task", "busybox")
        client.stop(job.id)
    with serving(tmp_path / "data", keep_jobs="1s", **nowhere) as server, Client(server.address) as client:
        # There a moment still, perhaps; then not.
        with pytest.raises(NotFound):
            while client.job(job.id):
                pass


async def test_calls_that_prune_while_the_server_stops_are_told_that_it_does(house: House) -> None:
    for _ in range(3):
        await house.ended()
    calls = [asyncio.ensure_future(house.retention.prune(PruneQuery(house.clock()))) for _ in range(3)]
    await asyncio.sleep(0)
    house.retention.close()
    answers = await asyncio.gather(*calls, house.retention.prune(PruneQuery(house.clock())), return_exceptions=True)
    # What was under way may have come to its end.
    assert [answer for answer in answers if not isinstance(answer, ServerStopping | Pruned)] == []
    assert isinstance(answers[-1], ServerStopping)


async def test_a_call_deletes_a_bounded_number_and_says_that_there_is_more(tmp_path: Path) -> None:
    house = House(tmp_path)
    for _ in range(STEP_ROWS + 1):
        await house.ended()
    hurried = Retention(house.store, house.logs, FOR_EVER, call_seconds=0)
    old = PruneQuery(house.clock.time)
    first = await hurried.prune(old)
    assert (first.count.jobs, first.more) == (STEP_ROWS, True)
    assert (await house.retention.prune(old)).more is False
    assert house.rows("SELECT count(*) FROM jobs") == [(0,)]
    hurried.close()
    house.close()
