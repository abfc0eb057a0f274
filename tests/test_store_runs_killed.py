"""Each step that changes what a job does next is on disk as a whole or not at all, whenever the process is killed."""

from pathlib import Path

import pytest

from fastlane_grpc.store.database import open_for_writing
from tests import forked
from tests.store_checks import check_jobs, check_lines

# Prepares a store, then does one step and is killed at the Nth statement of it, for each N until the step goes through.
# Prints what the tables hold before the step and after it.
KILLED_AT_EACH_STATEMENT = """
import asyncio, os, shutil, signal, sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from fastlane_grpc.model import *
from fastlane_grpc.store import Attempt
from fastlane_grpc.store.writer import Written
from tests.moved_store import BEGIN, SPEC, RunsStore, minutes

HOUR = timedelta(hours=1)
HOURLY = Cron("0 * * * *")
ATTEMPT = NotificationEvent.ATTEMPT_ENDED
EXACT = Retry(2, initial_backoff=minutes(1), factor=1, jitter=Jitter.NONE)

async def run_at(moved, hour):
    return await moved.pass_time(BEGIN + hour * HOUR)

async def end_of_an_attempt(moved):
    await moved.job(retry=EXACT)
    [run] = await moved.look()
    return lambda: moved.end(run, State.FAILED)

async def due_retry(moved):
    await moved.job(retry=EXACT)
    await moved.end((await moved.look())[0], State.FAILED)
    moved.now += minutes(2)
    return lambda: moved.store.promote(100)

async def due_tick(moved):
    await moved.job(cron=HOURLY)
    moved.now += HOUR
    return lambda: moved.store.promote(100)

async def missed_tick(moved):
    await moved.job(cron=HOURLY)
    moved.now += 10 * HOUR
    return lambda: moved.store.promote(100)

async def last_tick_missed(moved):
    await moved.job(cron=replace(HOURLY, end_time=BEGIN + HOUR, catch_up=CatchUp.NONE))
    moved.now += 10 * HOUR
    return lambda: moved.store.promote(100)

async def end_of_a_run(moved):
    await moved.job(cron=HOURLY, history=1)
    for hour in (1, 2, 3):
        [run] = await run_at(moved, hour)
        await moved.end(run)
    [run] = await run_at(moved, 4)
    return lambda: moved.end(run)

def tick_during_a_run(overlap):
    async def prepare(moved):
        await moved.job(cron=replace(HOURLY, overlap=overlap))
        await run_at(moved, 1)
        moved.now += HOUR
        return lambda: moved.store.promote(100)
    return prepare

async def tick_replaces_a_waiting_retry(moved):
    await moved.job(cron=replace(HOURLY, overlap=Overlap.REPLACE), retry=replace(EXACT, initial_backoff=5 * HOUR))
    await moved.end((await run_at(moved, 1))[0], State.FAILED)
    moved.now += HOUR
    return lambda: moved.store.promote(100)

async def stop_of_runs(moved):
    job = await moved.job(cron=replace(HOURLY, overlap=Overlap.ALLOW))
    await run_at(moved, 1)
    await run_at(moved, 2)
    return lambda: moved.store.stop(job.id, grace=None, note="")

async def stop_of_a_schedule(moved):
    job = await moved.job(cron=HOURLY)
    return lambda: moved.store.stop(job.id, grace=None, note="")

async def stop_of_a_tick(moved):
    job = await moved.job(cron=HOURLY)
    return lambda: moved.store.stop_execution(job.execution.id, grace=None, note="")

async def retry_by_hand(moved):
    job = await moved.job()
    await moved.end((await moved.look())[0])
    return lambda: moved.store.retry_job(job.id, request_id="r")

async def creation(moved):
    return lambda: replaced(moved, new_id())

async def replacement(moved):
    job = await moved.job(cron=HOURLY, labels={"a": "b"})
    return lambda: replaced(moved, job.id)

async def replacement_of_a_running_job(moved):
    job = await moved.job(cron=HOURLY)
    await run_at(moved, 1)
    return lambda: replaced(moved, job.id)

def replaced(moved, job_id):
    spec = replace(SPEC, cron=Cron("30 * * * *"), labels={"c": "d"})
    return moved.store.replace_job(job_id, task_id="task", spec=spec, etag="", caller_address="")

async def pause(moved):
    job = await moved.job(cron=HOURLY)
    return lambda: moved.store.pause_schedule(job.id)

async def resume(moved):
    job = await moved.job(cron=HOURLY)
    await moved.store.pause_schedule(job.id)
    moved.now += 5 * HOUR
    return lambda: moved.store.resume_schedule(job.id)

async def replaced_holder_of_a_key(moved):
    await moved.job(unique=Unique("k"))
    await moved.look()
    return lambda: moved.job(unique=Unique("k", Conflict.REPLACE))

async def end_of_the_holder_of_a_key(moved):
    await moved.job(unique=Unique("k"))
    [run] = await moved.look()
    await moved.job(unique=Unique("k", Conflict.REPLACE))
    return lambda: moved.end(run, State.STOPPED)

TOLD = [Notification(Mail(("a@example.org", "b@example.org"))), Notification(Webhook("http://a"), event=ATTEMPT)]

async def ended_with_notifications(moved):
    job = await moved.job(notifications=TOLD)
    await moved.end((await moved.look())[0], State.FAILED)
    return job

async def enqueue_with_notifications(moved):
    return lambda: moved.job(notifications=TOLD)

async def reading_of_ends(moved):
    await ended_with_notifications(moved)
    return lambda: moved.store.feed_outbox()

async def deletion_of_jobs_that_nobody_was_told_of(moved):
    job = await ended_with_notifications(moved)
    return lambda: moved.store.delete_jobs([job.id])

async def deletion_of_changes_that_were_not_read(moved):
    await ended_with_notifications(moved)
    return lambda: moved.store.prune_changes(before=moved.now + HOUR, keep=0, limit=100)

async def result_of_an_attempt(moved):
    job = await ended_with_notifications(moved)
    await moved.store.retry_job(job.id)
    await moved.end((await moved.look())[0], State.FAILED)
    await moved.store.feed_outbox()
    [head, *_] = (await moved.store.due_deliveries(of_host=9, limit=9)).deliveries
    return lambda: moved.store.finish_attempt(head.id, Attempt(DeliveryState.FAILED, "HTTP 500"))

async def another_delivery_of_a_dead_letter(moved):
    await ended_with_notifications(moved)
    await moved.store.feed_outbox()
    [head, *_] = (await moved.store.due_deliveries(of_host=9, limit=9)).deliveries
    await moved.store.finish_attempt(head.id, Attempt(DeliveryState.FAILED, "HTTP 500"))
    return lambda: moved.store.redeliver(head.id)

async def replacement_by_a_silent_job(moved):
    job = await ended_with_notifications(moved)
    await moved.store.feed_outbox()
    return lambda: replaced(moved, job.id)

async def deletion_of_history(moved):
    await moved.job(cron=HOURLY, history=1)
    for hour in (1, 2, 3, 4):
        await moved.end((await run_at(moved, hour))[0])
    excess = [each.execution_id for each in await moved.store.excess(limit=100)]
    return lambda: moved.store.delete_excess(excess)

NO_STEPS = {"run_at", "ended_with_notifications"}
STEPS = {
    **{name: each for name, each in globals().items() if asyncio.iscoroutinefunction(each) and name not in NO_STEPS},
    **{f"tick_during_a_run_{overlap.name.lower()}": tick_during_a_run(overlap) for overlap in Overlap},
}

def die_at(number):
    left = number
    def on_statement(statement):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return on_statement

def state(moved):
    jobs = "state, executions, runs, schedule, tick_time, revision, unique_key, spec"
    jobs = moved.rows(f"SELECT {jobs} FROM jobs ORDER BY seq")
    executions = "run, attempt, state, due_time, tick_time, held, excess, tries"
    executions = moved.rows(f"SELECT {executions} FROM executions ORDER BY seq")
    outbox = "event, ended_state, receiver, state, attempts, next_time IS NULL, detail"
    outbox = moved.rows(f"SELECT {outbox} FROM deliveries ORDER BY seq")
    outbox += moved.rows("SELECT sequence, (SELECT count(*) FROM notifying_jobs) FROM outbox")
    return f"{len(executions)} {jobs} {executions} {outbox}"

async def step(directory, number):
    moved = RunsStore(directory, asyncio.get_running_loop())
    work = await STEPS[sys.argv[2]](moved)
    (directory / "before").write_text(state(moved))
    await moved.store._writer.write(lambda db: Written(db.set_trace_callback(die_at(number))))
    await work()
    await moved.store._writer.write(lambda db: Written(db.set_trace_callback(None)))
    (directory / "through").touch()
    moved.close()

if __name__ == "__main__":
    root = Path(sys.argv[1])
    template = root.with_name(root.name + "-template")
    template.mkdir()
    RunsStore(template, asyncio.new_event_loop()).close()
    number, killed = 0, True
    while killed:
        number += 1
        directory = root / f"{number:03}"
        shutil.copytree(template, directory)
        child = os.fork()
        if child == 0:
            asyncio.run(step(directory, number))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, status
"""

STEPS = [
    *("end_of_an_attempt", "due_retry", "due_tick", "missed_tick", "last_tick_missed", "end_of_a_run"),
    *("tick_during_a_run_skip", "tick_during_a_run_queue_one", "tick_during_a_run_replace", "tick_during_a_run_allow"),
    *("tick_replaces_a_waiting_retry", "stop_of_runs", "stop_of_a_schedule", "stop_of_a_tick", "retry_by_hand"),
    *("creation", "replacement", "replacement_of_a_running_job", "pause", "resume"),
    *("replaced_holder_of_a_key", "end_of_the_holder_of_a_key", "deletion_of_history"),
    *("enqueue_with_notifications", "reading_of_ends", "deletion_of_jobs_that_nobody_was_told_of"),
    *("deletion_of_changes_that_were_not_read", "result_of_an_attempt", "another_delivery_of_a_dead_letter"),
    "replacement_by_a_silent_job",
]


def state_of(directory: Path) -> str:
    """What the tables hold of jobs and executions, without their ids."""
    db = open_for_writing(directory / "fastlane.db")

    def rows(sql: str) -> list[tuple[object, ...]]:
        return db.execute(sql).fetchall()

    check_jobs(rows)
    check_lines(rows)
    jobs = rows(
        "SELECT state, executions, runs, schedule, tick_time, revision, unique_key, spec FROM jobs ORDER BY seq"
    )
    executions = rows(
        "SELECT run, attempt, state, due_time, tick_time, held, excess, tries FROM executions ORDER BY seq"
    )
    outbox = rows(
        "SELECT event, ended_state, receiver, state, attempts, next_time IS NULL, detail FROM deliveries ORDER BY seq"
    )
    outbox += rows("SELECT sequence, (SELECT count(*) FROM notifying_jobs) FROM outbox")
    db.close()
    return f"{len(executions)} {jobs} {executions} {outbox}"


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_kept_as_a_whole_or_not_at_all_whenever_it_is_killed(tmp_path: Path, step: str) -> None:
    ran = forked.run(KILLED_AT_EACH_STATEMENT, str(tmp_path), step, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
    rounds = sorted(tmp_path.iterdir())
    assert len(rounds) > 3, "it was killed at each of a number of statements"
    assert [(each / "through").exists() for each in rounds] == [False] * (len(rounds) - 1) + [True]
    after = state_of(rounds[-1])
    assert after != (rounds[-1] / "before").read_text(), "the step changes something"
    seen = [state_of(each) for each in rounds]
    before = [(each / "before").read_text() for each in rounds]
    kept = [one == other for one, other in zip(seen, before, strict=True)]
    assert kept == sorted(kept, reverse=True), "killed before its commit, and then after it"
    assert kept.count(True) > 3, "it was killed at each of a number of statements"
    assert {state for state, is_before in zip(seen, kept, strict=True) if not is_before} == {after}
