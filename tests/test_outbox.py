"""The outbox: whatever happens, each end is told once to those who asked for it, in order, and to nobody else."""

import asyncio
import atexit
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.errors import DeliveryNotFound
from fastlane_grpc.model import (
    Cron,
    Delivery,
    DeliveryState,
    Jitter,
    Mail,
    Notification,
    NotificationEvent,
    Retry,
    State,
    TaskLimitsChange,
    Webhook,
)
from fastlane_grpc.store import Attempt, DeliveryQuery
from fastlane_grpc.store.outbox import STEP_CHANGES
from fastlane_grpc.store.writer import Written
from tests.moved_store import BEGIN, RunsStore, minutes

URL, OTHER = "http://127.0.0.1:9/a", "https://hooks.example.org/b"
TOLD = Notification(Webhook(URL))
EXACT = Retry(2, initial_backoff=minutes(1), factor=1, jitter=Jitter.NONE)
DELIVERED = Attempt(DeliveryState.DELIVERED, "HTTP 200")
FAILED = Attempt(DeliveryState.FAILED, "HTTP 500")
ALL = 1000
RUN, JOB, ATTEMPT = NotificationEvent.RUN_ENDED, NotificationEvent.JOB_ENDED, NotificationEvent.ATTEMPT_ENDED


@pytest.fixture
async def moved(tmp_path: Path) -> AsyncIterator[RunsStore]:
    moved = RunsStore(tmp_path, asyncio.get_running_loop())
    yield moved
    moved.close()


async def feed(moved: RunsStore) -> None:
    while (await moved.store.feed_outbox())[0]:
        pass


async def outbox(moved: RunsStore) -> list[Delivery]:
    """All deliveries, the oldest one first."""
    found: list[Delivery] = []
    page = await moved.store.deliveries(DeliveryQuery(), size=ALL)
    while True:
        found += page.items
        if page.rest is None:
            return found[::-1]
        [rest] = page.rest
        page = await moved.store.deliveries(DeliveryQuery(), after=(int(rest),), size=ALL)


async def due(moved: RunsStore) -> list[Delivery]:
    return list((await moved.store.due_deliveries(of_host=ALL, limit=ALL)).deliveries)


async def run_one(moved: RunsStore, state: State = State.SUCCEEDED, **spec: Any) -> str:
    """A job that runs to its end."""
    job = await moved.job(**spec)
    for execution in await moved.look():
        await moved.end(execution, state)
    return job.id


# ------------------------------------------------------------------------------------------------------------ examples


async def test_the_end_of_a_job_is_told_with_what_it_was(moved: RunsStore) -> None:
    job_id = await run_one(moved, State.FAILED, notifications=[TOLD], labels={"team": "mail"})
    await feed(moved)
    [delivery] = await outbox(moved)
    job = await moved.store.job(job_id)
    assert delivery.job == replace(job, spec=None)
    assert (delivery.event, delivery.ended_state, delivery.labels) == (RUN, State.FAILED, {"team": "mail"})
    assert (delivery.state, delivery.attempts, delivery.next_time) == (DeliveryState.PENDING, 0, moved.now)
    assert delivery.execution.outcome == job.outcome


async def test_a_job_without_notifications_tells_nobody(moved: RunsStore) -> None:
    await run_one(moved)
    await feed(moved)
    assert not await outbox(moved)
    assert not moved.store.may_notify


async def test_each_attempt_the_run_and_the_job_have_events_of_their_own(moved: RunsStore) -> None:
    wanted = [Notification(Webhook(f"{URL}/{event.name}"), event=event) for event in NotificationEvent]
    await run_one(moved, State.FAILED, notifications=wanted, retry=replace(EXACT, max_retries=1))
    await feed(moved)
    assert [delivery.event for delivery in await outbox(moved)] == [ATTEMPT]
    for execution in await moved.pass_time(BEGIN + minutes(2)):
        await moved.end(execution)
    await feed(moved)
    told = [(delivery.event, delivery.execution.attempt, delivery.ended_state) for delivery in await outbox(moved)]
    assert told[0] == (ATTEMPT, 1, State.FAILED)
    assert sorted(told[1:]) == sorted((event, 2, State.SUCCEEDED) for event in (RUN, RUN, JOB, ATTEMPT))


async def test_a_schedule_tells_of_each_run_and_at_last_of_the_job(moved: RunsStore) -> None:
    wanted = [Notification(Webhook(f"{URL}/run")), Notification(Webhook(f"{URL}/job"), event=JOB)]
    await moved.job(notifications=wanted, cron=Cron("0 * * * *", max_runs=2))
    for hour in (1, 2):
        for execution in await moved.pass_time(BEGIN + timedelta(hours=hour)):
            await moved.end(execution)
    await feed(moved)
    told = [(delivery.event, delivery.execution.run) for delivery in await outbox(moved)]
    assert told == [(RUN, 1), (RUN, 2), (JOB, 2)]


async def test_only_the_states_that_were_asked_for_are_told(moved: RunsStore) -> None:
    wanted = [Notification(Webhook(URL), states=(State.FAILED, State.LOST))]
    for state in (State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.LOST):
        await run_one(moved, state, notifications=wanted)
    await feed(moved)
    assert [delivery.ended_state for delivery in await outbox(moved)] == [State.FAILED, State.LOST]


async def test_each_mail_address_has_a_delivery_of_its_own(moved: RunsStore) -> None:
    await run_one(moved, notifications=[Notification(Mail(("a@example.org", "b@example.org")))])
    await feed(moved)
    assert [delivery.receiver for delivery in await outbox(moved)] == ["a@example.org", "b@example.org"]


async def test_defaults_apply_to_jobs_that_say_nothing_themselves(tmp_path: Path) -> None:
    server = Notification(Mail(("server@example.org",)))
    moved = RunsStore(tmp_path, asyncio.get_running_loop(), default_notifications=[server])
    assert moved.store.may_notify
    await run_one(moved)
    await run_one(moved, notifications=[TOLD])
    await feed(moved)
    task = Notification(Mail(("task@example.org",)))
    await moved.store.update_task("task", TaskLimitsChange(notifications=[task]))
    await run_one(moved)
    await run_one(moved, notifications=[TOLD])
    await feed(moved)
    await moved.store.update_task("task", TaskLimitsChange(notifications=()))
    await run_one(moved)
    await feed(moved)
    told = [delivery.receiver for delivery in await outbox(moved)]
    assert told == ["server@example.org", URL, "task@example.org", URL, "server@example.org"]
    moved.close()


async def test_notifications_of_a_task_keep_it_and_are_answered(moved: RunsStore) -> None:
    task = await moved.store.update_task("quiet", TaskLimitsChange(notifications=[TOLD]))
    assert (await moved.store.task("quiet")).limits.notifications == task.limits.notifications == (TOLD,)
    await moved.store.update_task("quiet", TaskLimitsChange(notifications=()))
    assert not (await moved.store.tasks(size=ALL)).items


async def test_a_job_that_is_replaced_tells_whom_the_new_spec_says(moved: RunsStore) -> None:
    job = await moved.job(notifications=[TOLD], start_in=minutes(5))
    assert job.spec
    spec = replace(job.spec, notifications=(Notification(Webhook(OTHER)),), start_in=None)
    await moved.store.replace_job(job.id, task_id="task", spec=spec, etag="", caller_address="")
    [execution] = await moved.look()
    await moved.end(execution)
    await feed(moved)
    # The execution that was replaced has ended, too: whom the former spec says is told.
    told = [(delivery.receiver, delivery.ended_state) for delivery in await outbox(moved)]
    assert told == [(URL, State.STOPPED), (OTHER, State.SUCCEEDED)]
    silent = replace(spec, notifications=())
    await moved.store.replace_job(job.id, task_id="task", spec=silent, etag="", caller_address="")
    for execution in await moved.look():
        await moved.end(execution)
    before = len(await outbox(moved))
    await feed(moved)
    assert len(await outbox(moved)) == before
    assert not moved.rows("SELECT * FROM notifying_jobs")


async def test_an_end_is_told_to_those_who_were_to_be_told_then(tmp_path: Path) -> None:
    moved = RunsStore(tmp_path, asyncio.get_running_loop())
    await run_one(moved)
    # A task that has notifications from now on.
    await moved.store.update_task("task", TaskLimitsChange(notifications=[TOLD]))
    await run_one(moved, State.FAILED)
    await moved.store.update_task("task", TaskLimitsChange(notifications=()))
    # A job that has none from now on.
    job_id = await run_one(moved, State.LOST, notifications=[TOLD])
    job = await moved.store.job(job_id)
    assert job.spec
    silent = replace(job.spec, notifications=())
    await moved.store.replace_job(job_id, task_id="task", spec=silent, etag="", caller_address="")
    for execution in await moved.look():
        await moved.end(execution)
    # A server that has notifications from now on, and one that has none any more.
    moved.close()
    moved = RunsStore(tmp_path, asyncio.get_running_loop(), default_notifications=[Notification(Webhook(OTHER))])
    await run_one(moved, State.TIMED_OUT)
    moved.close()
    moved = RunsStore(tmp_path, asyncio.get_running_loop())
    await run_one(moved)
    await feed(moved)
    told = [(delivery.receiver, delivery.ended_state) for delivery in await outbox(moved)]
    assert told == [(URL, State.FAILED), (URL, State.LOST), (OTHER, State.TIMED_OUT)]
    moved.close()


async def test_a_job_that_was_retried_meanwhile_is_told_as_it_had_ended(moved: RunsStore) -> None:
    job_id = await run_one(moved, State.FAILED, notifications=[replace(TOLD, event=JOB)])
    before = await moved.store.job(job_id)
    await moved.store.retry_job(job_id)
    await feed(moved)
    [delivery] = await outbox(moved)
    assert (delivery.job.state, delivery.job.outcome) == (State.FAILED, before.outcome)
    assert (delivery.job.end_time, delivery.execution) == (before.end_time, before.execution)


async def test_a_change_of_a_final_job_is_no_other_end(moved: RunsStore) -> None:
    job_id = await run_one(moved, notifications=[replace(TOLD, event=JOB)])
    await feed(moved)
    job = await moved.store.job(job_id)
    assert job.spec
    # Writes the spec of a job that is final, before the job is opened again.
    await moved.store.replace_job(
        job_id, task_id="task", spec=replace(job.spec, priority=1), etag="", caller_address=""
    )
    await feed(moved)
    assert len(await outbox(moved)) == 1


# --------------------------------------------------------------------------------------------------------------- order


async def test_notifications_of_a_job_wait_for_earlier_ones_to_the_receiver(moved: RunsStore) -> None:
    job_id = await run_one(moved, notifications=[TOLD, Notification(Webhook(OTHER))])
    await moved.store.retry_job(job_id)
    for execution in await moved.look():
        await moved.end(execution, State.FAILED)
    await feed(moved)
    first, other, *_ = await outbox(moved)
    assert [delivery.id for delivery in await due(moved)] == [first.id, other.id]
    await moved.store.finish_attempt(
        first.id, Attempt(DeliveryState.PENDING, "HTTP 503", moved.now + timedelta(seconds=5))
    )
    assert [delivery.id for delivery in await due(moved)] == [other.id]
    moved.now += timedelta(seconds=5)
    [again, _] = sorted(await due(moved), key=lambda delivery: delivery.receiver)
    assert (again.id, again.attempts, again.detail) == (first.id, 1, "HTTP 503")
    await moved.store.finish_attempt(first.id, FAILED)
    second = next(delivery for delivery in await due(moved) if delivery.receiver == URL)
    assert (second.ended_state, second.attempts) == (State.FAILED, 0)


async def test_a_dead_letter_is_delivered_once_more_before_later_ones(moved: RunsStore) -> None:
    job_id = await run_one(moved, notifications=[TOLD])
    await feed(moved)
    [dead] = await outbox(moved)
    await moved.store.finish_attempt(dead.id, FAILED)
    for _ in range(2):
        await moved.store.retry_job(job_id)
        for execution in await moved.look():
            await moved.end(execution)
    await feed(moved)
    _, head, later = await outbox(moved)
    again = await moved.store.redeliver(dead.id)
    assert (again.state, again.attempts, again.end_time) == (DeliveryState.PENDING, 0, None)
    # One is under way: the dead letter comes after that one, and before the last.
    for expected in (head, dead, later):
        [delivery] = await due(moved)
        assert delivery.id == expected.id
        await moved.store.finish_attempt(delivery.id, DELIVERED)
    assert not await due(moved)


async def test_a_pending_delivery_can_be_attempted_at_once(moved: RunsStore) -> None:
    await run_one(moved, notifications=[TOLD])
    await feed(moved)
    [delivery] = await outbox(moved)
    later = Attempt(DeliveryState.PENDING, "HTTP 503", moved.now + minutes(60))
    await moved.store.finish_attempt(delivery.id, later)
    assert not await due(moved)
    again = await moved.store.redeliver(delivery.id)
    assert (again.attempts, again.next_time) == (1, moved.now)
    assert [each.id for each in await due(moved)] == [delivery.id]


async def test_an_unknown_delivery_is_an_error(moved: RunsStore) -> None:
    with pytest.raises(DeliveryNotFound, match="no delivery 'x'"):
        await moved.store.redeliver("x")


async def test_a_late_result_changes_nothing(moved: RunsStore) -> None:
    await run_one(moved, notifications=[TOLD])
    await feed(moved)
    [delivery] = await outbox(moved)
    await moved.store.finish_attempt(delivery.id, DELIVERED)
    await moved.store.finish_attempt(delivery.id, FAILED)
    [kept] = await outbox(moved)
    assert (kept.state, kept.attempts, kept.detail) == (DeliveryState.DELIVERED, 1, "HTTP 200")


async def test_a_busy_receiver_does_not_hide_what_is_due_for_others(moved: RunsStore) -> None:
    for number in range(30):
        await run_one(moved, notifications=[Notification(Webhook(f"http://busy.example.org/{number}"))])
    await run_one(moved, notifications=[Notification(Webhook("http://calm.example.org"))])
    await feed(moved)
    found = await moved.store.due_deliveries(of_host=3, limit=ALL)
    assert [delivery.receiver for delivery in found.deliveries] == [
        *(f"http://busy.example.org/{number}" for number in range(3)),
        "http://calm.example.org",
    ]


# ------------------------------------------------------------------------------------------------- what is never lost


async def test_pruned_changes_and_jobs_are_told_all_the_same(moved: RunsStore) -> None:
    first = await run_one(moved, notifications=[TOLD])
    await moved.store.delete_jobs([first])
    second = await run_one(moved, notifications=[TOLD])
    await moved.store.prune_changes(before=moved.now + minutes(1), keep=0, limit=ALL)
    assert moved.rows("SELECT count(*) FROM changes") == [(1,)]
    told = [delivery.job.id for delivery in await outbox(moved)]
    assert told == [first, second]
    assert moved.rows("SELECT count(*) FROM notifying_jobs") == [(1,)]


async def test_the_log_is_not_pruned_beyond_what_was_read(moved: RunsStore) -> None:
    await moved.job(notifications=[TOLD])
    # More changes than one step reads.
    await moved.store._writer.write(
        lambda db: Written(
            db.execute(
                f"""
                WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {STEP_CHANGES})
                INSERT INTO changes (kind, job_id, task_id, execution_id, state, time)
                SELECT 2, '', '', '', 4, 0 FROM numbers
                """
            ).rowcount
        )
    )
    for execution in await moved.look():
        await moved.end(execution)
    await moved.store.prune_changes(before=moved.now, keep=0, limit=10 * STEP_CHANGES)
    position = await moved.store.outbox_position()
    [(oldest,)] = moved.rows("SELECT min(sequence) FROM changes")
    assert oldest == position + 1
    await feed(moved)
    assert len(await outbox(moved)) == 1


async def test_a_restored_backup_gives_the_same_ids(moved: RunsStore) -> None:
    await run_one(moved, notifications=[TOLD, replace(TOLD, event=ATTEMPT)])
    await feed(moved)
    before = [delivery.id for delivery in await outbox(moved)]
    assert len(set(before)) == 2
    await moved.store._writer.write(
        lambda db: Written(
            (db.execute("DELETE FROM deliveries"), db.execute("UPDATE outbox SET sequence = 0"), None)[2]
        )
    )
    await feed(moved)
    assert [delivery.id for delivery in await outbox(moved)] == before


async def test_ended_deliveries_are_pruned_and_pending_ones_stay(moved: RunsStore) -> None:
    for url in ("http://a.example.org", "http://b.example.org", "http://c.example.org"):
        await run_one(moved, notifications=[Notification(Webhook(url))])
    await feed(moved)
    first, second, third = await outbox(moved)
    await moved.store.finish_attempt(first.id, DELIVERED)
    moved.now += minutes(1)
    await moved.store.finish_attempt(second.id, FAILED)
    assert (await moved.store.retention_totals()).oldest_delivery_time == BEGIN
    assert await moved.store.prune_deliveries(before=BEGIN, limit=ALL) == 1
    assert [delivery.id for delivery in await outbox(moved)] == [second.id, third.id]


# ------------------------------------------------------------------------------------------------------------ its costs


async def test_a_job_without_notifications_costs_no_step_more_beside_others(tmp_path: Path) -> None:
    counts = [await steps_of_a_job(made(tmp_path / str(others)), others) for others in (0, 100)]
    assert counts[0] == counts[1]


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def steps_of_a_job(directory: Path, others: int) -> tuple[int, list[str]]:
    """Steps of SQLite's machine that a plain job takes from its enqueue to its end, where so many other jobs with
    notifications are waiting to be told; and which statements read or write the outbox."""
    moved = RunsStore(directory, asyncio.get_running_loop())
    # As many jobs with or without notifications: what differs is the outbox alone.
    for number in range(100):
        notifications = [Notification(Webhook(f"http://{number}.example.org"))] if number < others else []
        await run_one(moved, notifications=notifications)
    await feed(moved)
    steps, statements = 0, list[str]()

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch(on: bool) -> Callable[[Any], Written[None]]:
        def work(db: Any) -> Written[None]:
            db.set_progress_handler(count if on else None, 1)
            db.set_trace_callback(statements.append if on else None)
            return Written(None)

        return work

    await moved.store._writer.write(watch(True))
    await run_one(moved)
    await moved.store._writer.write(watch(False))
    moved.close()
    tables = ("deliveries", "outbox", "notifying_jobs")
    touching = [statement for statement in statements if any(table in statement for table in tables)]
    assert not touching
    return steps, touching


async def test_what_is_due_costs_the_same_however_much_waits(tmp_path: Path) -> None:
    counts = [await steps_of_a_look(made(tmp_path / str(waiting)), waiting) for waiting in (20, 2_000)]
    assert counts[1] < counts[0] * 1.2, counts


async def steps_of_a_look(directory: Path, waiting: int) -> int:
    moved = RunsStore(directory, asyncio.get_running_loop())
    await run_one(moved, notifications=[TOLD])
    await feed(moved)
    columns = "job_id, event, ended_state, receiver, host, notification, snapshot, state, create_time"
    await moved.store._writer.write(
        lambda db: Written(
            db.execute(
                f"""
                WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {waiting})
                INSERT INTO deliveries (delivery_id, next_time, {columns})
                SELECT n, next_time + n % 2 * 1000000000, {columns} FROM deliveries CROSS JOIN numbers
                """
            ).rowcount
        )
    )
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def look(db: Any) -> int:
        from fastlane_grpc.store.outbox import due as due_in

        db.set_progress_handler(count, 1)
        found = due_in(db, moved.now, of_host=8, limit=256)
        db.set_progress_handler(None, 1)
        return len(found.deliveries)

    assert await moved.store._readers.read(look) == 8
    moved.close()
    return steps


# ------------------------------------------------------------------------------------------------------ any history

NOTIFICATIONS = st.lists(
    st.builds(
        Notification,
        st.one_of(
            st.builds(Webhook, st.sampled_from([URL, URL, OTHER])),
            st.builds(Mail, st.sampled_from([("a@example.org",), ("a@example.org", "b@example.org")])),
        ),
        st.sampled_from([(), (), (State.FAILED,), (State.SUCCEEDED, State.STOPPED)]),
        st.sampled_from(NotificationEvent),
    ),
    max_size=3,
)
STEPS = st.one_of(
    st.tuples(st.just("enqueue"), NOTIFICATIONS, st.sampled_from([None, EXACT]), st.booleans()),
    st.tuples(st.just("end"), st.integers(0, 5), st.sampled_from([State.SUCCEEDED, State.FAILED, State.LOST])),
    st.tuples(st.just("stop"), st.integers(0, 5)),
    st.tuples(st.just("retry"), st.integers(0, 5)),
    st.tuples(st.just("end"), st.integers(0, 5), st.sampled_from([State.SUCCEEDED, State.FAILED])),
    st.tuples(st.just("pass"), st.integers(1, 3)),
    st.tuples(st.just("feed")),
    st.tuples(st.just("deliver"), st.integers(0, 5), st.sampled_from(DeliveryState)),
    st.tuples(st.just("prune changes")),
    st.tuples(st.just("prune jobs")),
    st.tuples(st.just("restart")),
)


class History:
    """A store to which anything happens, and what each receiver is to be told then."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.moved = RunsStore(directory, asyncio.get_running_loop())
        self.notifications: dict[str, list[Notification]] = {}
        self.jobs: list[str] = []
        self.expected: dict[tuple[str, str], list[tuple[str, NotificationEvent]]] = {}
        self.delivered: dict[tuple[str, str], list[str]] = {}

    async def take(self, step: tuple[Any, ...]) -> None:
        moved = self.moved
        name, *values = step
        if name == "enqueue":
            job = await moved.job(notifications=tuple(values[0]), retry=values[1])
            self.notifications[job.id] = values[0]
            self.jobs.append(job.id)
            if values[2]:
                await moved.look()
        elif name == "pass":
            moved.now += minutes(values[0])
            await moved.look()
        elif name == "end":
            running = [each.execution for each in await moved.store.unfinished()]
            if running:
                execution = running[values[0] % len(running)]
                await moved.end(execution, values[1])
                await self._note_end(execution.id)
        elif name in {"stop", "retry"} and self.jobs:
            await self._stop_or_retry(name, self.jobs[values[0] % len(self.jobs)])
        elif name == "feed":
            await moved.store.feed_outbox()
        elif name == "deliver":
            pending = await due(moved)
            if pending:
                await self._deliver(pending[values[0] % len(pending)], values[1])
        elif name == "prune changes":
            await moved.store.prune_changes(before=moved.now + minutes(1), keep=3, limit=5)
        elif name == "prune jobs":
            await moved.store.delete_jobs(self.jobs[:2])
            kept = {job_id for (job_id,) in moved.rows("SELECT job_id FROM jobs")}
            self.jobs = [job_id for job_id in self.jobs if job_id in kept]
        elif name == "restart":
            now = moved.now
            moved.close()
            self.moved = RunsStore(self.directory, asyncio.get_running_loop(), now=now)

    async def _stop_or_retry(self, name: str, job_id: str) -> None:
        job = await self.moved.store.job(job_id)
        if name == "retry" and job.state.final:
            await self.moved.store.retry_job(job_id)
            await self.moved.look()
        elif name == "stop" and job.state in {State.SCHEDULED, State.QUEUED}:
            await self.moved.store.stop(job_id, grace=None, note="")
            await self._note_end(job.execution.id)

    async def _note_end(self, execution_id: str) -> None:
        """Note who is to be told of an execution that has just ended."""
        execution = await self.moved.store.execution(execution_id)
        job = await self.moved.store.job(execution.job_id)
        following = await self.moved.store.execution_after(job.id, execution.run, execution.attempt)
        ends = {ATTEMPT: execution.state}
        if following is None or following.run != execution.run:
            ends[RUN] = execution.state
        if job.state.final:
            ends[JOB] = job.state
        for event in (ATTEMPT, RUN, JOB):
            for notification in self.notifications[job.id]:
                wanted = notification.event or RUN
                if (
                    wanted is event
                    and event in ends
                    and (not notification.states or ends[event] in notification.states)
                ):
                    target = notification.target
                    for receiver in [target.url] if isinstance(target, Webhook) else target.to:
                        self.expected.setdefault((job.id, receiver), []).append((execution.id, event))

    async def _deliver(self, delivery: Delivery, state: DeliveryState) -> None:
        if state is not DeliveryState.PENDING:
            self.delivered.setdefault((delivery.job.id, delivery.receiver), []).append(delivery.id)
        next_time = self.moved.now if state is DeliveryState.PENDING else None
        await self.moved.store.finish_attempt(delivery.id, Attempt(state, "told", next_time))

    async def check(self) -> None:
        """Deliver all, and compare what each receiver was told."""
        await feed(self.moved)
        while pending := await due(self.moved):
            for delivery in pending:
                await self._deliver(delivery, DeliveryState.DELIVERED)
        found: dict[tuple[str, str], list[tuple[str, NotificationEvent]]] = {}
        ids: dict[tuple[str, str], list[str]] = {}
        for delivery in await outbox(self.moved):
            assert delivery.state is not DeliveryState.PENDING
            lane = delivery.job.id, delivery.receiver
            found.setdefault(lane, []).append((delivery.execution.id, delivery.event))
            ids.setdefault(lane, []).append(delivery.id)
        # Of one end, the order among notifications to one receiver is theirs in the spec.
        assert {lane: sorted(told) for lane, told in found.items()} == {
            lane: sorted(told) for lane, told in self.expected.items()
        }
        for lane, told in found.items():
            ends = [execution_id for execution_id, _ in told]
            assert ends == [execution_id for execution_id, _ in self.expected[lane]]
        assert ids == self.delivered, "in order, and each one once"


@cache
def template() -> Path:
    """A store without jobs: to make one takes longer than most histories."""
    directory = Path(mkdtemp())
    atexit.register(shutil.rmtree, directory)
    RunsStore(directory, asyncio.new_event_loop()).close()
    return directory / "fastlane.db"


@given(steps=st.lists(STEPS, min_size=10, max_size=30))
@settings(max_examples=80)
def test_each_end_is_told_once_and_in_order_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            shutil.copy(template(), directory)
            history = History(Path(directory))
            try:
                for step in steps:
                    await history.take(step)
                await history.check()
            finally:
                history.moved.close()

    asyncio.new_event_loop().run_until_complete(run())
