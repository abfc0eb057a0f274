"""Changes of stored jobs that callers ask for: one more run, another spec, a schedule paused and resumed.

Each function is called within the transaction of its caller."""

from dataclasses import replace
from datetime import datetime

from fastlane_grpc.errors import (
    EtagMismatch,
    InvalidRequest,
    JobExpired,
    JobNotFinal,
    NoSchedule,
    UniqueKeyTaken,
    Violation,
)
from fastlane_grpc.model import Execution, Hold, Job, JobSpec, State
from fastlane_grpc.schedule import Next, Ticks, first, resumed, without_pending
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.enqueue import Quota, digest_of, keep_labels, key_holders
from fastlane_grpc.store.job_state import Rules, insert_next, point_at, reopen, settle, write_schedule
from fastlane_grpc.store.outbox import catch_up, forget_job, note_jobs
from fastlane_grpc.store.queries import job_of, open_executions
from fastlane_grpc.store.rows import (
    EXECUTION,
    execution_from,
    microseconds_since_epoch,
    spec_bytes,
    unwatched_limit_of,
)
from fastlane_grpc.store.stops import withdraw
from fastlane_grpc.text.redaction import SecretNames


def etag_of(job: Job) -> str:
    """Return what changes with every change of the job's spec and schedule by callers."""
    return f"r{job.revision}"


def retry_job(
    db: Connection, job_id: str, *, request_id: str, now: datetime, quota: Quota, rules: Rules
) -> tuple[Job, bool, list[Execution]]:
    """Start one more run of a final job. Return the job, whether the request_id was known, and what changed.

    JobNotFound, JobNotFinal, JobExpired, UniqueKeyTaken, QueueFull, DiskFull."""
    job = job_of(db, job_id)
    if request_id and _is_known_retry(db, job_id, request_id):
        return job, True, []
    if not job.state.final:
        raise JobNotFinal(job_id, job.state.name)
    assert job.spec is not None, "read with the job"
    expire_time = job.spec.expire_time
    if expire_time is not None and expire_time < now:
        raise JobExpired(job_id, f"{expire_time:%Y-%m-%dT%H:%M:%SZ}")
    _check_key_is_free(db, job, job.spec)
    if refusal := quota.refusal(db, 1):
        raise refusal
    if request_id:
        db.execute("INSERT INTO job_retries (job_id, request_id) VALUES (?, ?)", (job_id, request_id))
    reopen(db, job_id)
    execution = insert_next(db, job, Next(now), now, rules)
    return job_of(db, job_id), False, [execution]


def replace_job(
    db: Connection,
    job_id: str,
    *,
    task_id: str,
    spec: JobSpec,
    etag: str,
    now: datetime,
    quota: Quota,
    rules: Rules,
    secret_names: SecretNames,
) -> tuple[Job, list[Execution]]:
    """Replace the spec of a stored job. Return the job, and what changed. A spec that is equal changes nothing, unless
    the job has ended or was told to stop.

    JobNotFound, EtagMismatch, InvalidRequest (another task), UniqueKeyTaken, QueueFull, DiskFull."""
    job = job_of(db, job_id)
    assert job.spec is not None, "read with the job"
    if job.task_id != task_id:
        raise InvalidRequest([Violation("task_id", f"is {task_id!r}; the job belongs to {job.task_id!r} for good")])
    if etag and etag != etag_of(job):
        raise EtagMismatch(job_id, etag_of(job))
    if job.spec == spec and not job.state.final and job.stop_time is None:
        return job, []
    _check_key_is_free(db, job, spec)
    _check_nobody_waits_for_key(db, job)
    if refusal := quota.refusal(db, 1):
        raise refusal
    changed = _withdraw_unstarted(db, job, now)
    if job.spec.notifications != spec.notifications:
        catch_up(db, rules.default_notifications, now)
    _write_spec(db, job, spec, secret_names)
    reopen(db, job_id)
    replaced = replace(job, spec=spec, runs=job.runs)
    following = first(job_id, spec, now)
    assert following.next is not None, "a job has a first execution"
    write_schedule(db, job_id, following.schedule, None)
    under_way = open_executions(db, job_id)
    if spec.cron and following.schedule and under_way:
        # A run of the former spec is under way: the first tick finds it so.
        point_at(db, under_way[0])
        tick_time = Ticks(spec.cron, expire_time=spec.expire_time).after(following.schedule.handled_time)
        write_schedule(db, job_id, following.schedule, tick_time)
        return job_of(db, job_id), changed
    changed.append(insert_next(db, replaced, following.next, now, rules))
    return job_of(db, job_id), changed


def pause_schedule(db: Connection, job_id: str, *, now: datetime) -> tuple[Job, list[Execution]]:
    """Pause the schedule of a job. Return the job, and what changed. JobNotFound, NoSchedule."""
    job = _job_with_schedule(db, job_id)
    assert job.schedule is not None, "the job has a schedule"
    if job.schedule.paused:
        return job, []
    paused = replace(without_pending(job.schedule, "the schedule was paused"), paused=True)
    write_schedule(db, job_id, paused, None)
    _count_revision(db, job_id)
    held = db.execute(
        f"""
        UPDATE executions SET held = {Hold.SCHEDULE_PAUSED}, state_time = ?
        WHERE job_id = ? AND state = {State.SCHEDULED} AND attempt = 1 AND tick_time IS NOT NULL AND held = {Hold.NONE}
        RETURNING {EXECUTION}
        """,
        (microseconds_since_epoch(now), job_id),
    ).fetchall()
    return job_of(db, job_id), [execution_from(row) for row in held]


def resume_schedule(db: Connection, job_id: str, *, now: datetime, rules: Rules) -> tuple[Job, list[Execution]]:
    """Resume the paused schedule of a job. Return the job, and what changed. JobNotFound, NoSchedule."""
    job = _job_with_schedule(db, job_id)
    assert job.schedule is not None, "the job has a schedule"
    if not job.schedule.paused:
        return job, []
    next_run, state, next_tick_time = resumed(job, now)
    _count_revision(db, job_id)
    # Held by the pause, or by a unique key that the job still waits for.
    held = [each for each in open_executions(db, job_id) if each.hold is not Hold.NONE]
    write_schedule(db, job_id, state, None if held else next_tick_time)
    if not held:
        return job_of(db, job_id), []
    if next_run is None:
        # No tick is left.
        withdrawn = withdraw(db, held[0].id, now=now, note="the schedule was over when it was resumed")
        changed = [withdrawn, *settle(db, withdrawn, now, rules)] if withdrawn else []
        return job_of(db, job_id), changed
    assert next_run.tick_time is not None, "a schedule runs at ticks"
    rows = db.execute(
        f"""
        UPDATE executions SET held = iif(held = {Hold.UNIQUE_KEY}, held, {Hold.NONE}), tick_time = ?, due_time = ?,
            state_time = ?
        WHERE execution_id = ? RETURNING {EXECUTION}
        """,
        (
            microseconds_since_epoch(next_run.tick_time),
            microseconds_since_epoch(next_run.due_time),
            microseconds_since_epoch(now),
            held[0].id,
        ),
    ).fetchall()
    return job_of(db, job_id), [execution_from(row) for row in rows]


def _job_with_schedule(db: Connection, job_id: str) -> Job:
    job = job_of(db, job_id)
    if job.schedule is None:
        raise NoSchedule(job_id, "has no schedule")
    if job.state.final or job.schedule.over:
        raise NoSchedule(job_id, "has a schedule that is over")
    return job


def _check_key_is_free(db: Connection, job: Job, spec: JobSpec) -> None:
    if spec.unique is None:
        return
    for holder in key_holders(db, job.task_id, spec.unique.key):
        if holder != job.id:
            raise UniqueKeyTaken(spec.unique.key, holder)


def _check_nobody_waits_for_key(db: Connection, job: Job) -> None:
    """Raise UniqueKeyTaken if a later job waits for the end of this one, which a new spec would put off."""
    if job.state.final or job.spec is None or job.spec.unique is None:
        return
    holders = key_holders(db, job.task_id, job.spec.unique.key)
    if holders[-1] != job.id:
        raise UniqueKeyTaken(job.spec.unique.key, holders[-1])


def _is_known_retry(db: Connection, job_id: str, request_id: str) -> bool:
    rows = db.execute("SELECT 1 FROM job_retries WHERE job_id = ? AND request_id = ?", (job_id, request_id)).fetchall()
    return bool(rows)


def _withdraw_unstarted(db: Connection, job: Job, now: datetime) -> list[Execution]:
    """End the executions that are not claimed, and note the former spec on those that are. Return what changed."""
    assert job.spec is not None, "read with the job"
    changed: list[Execution] = []
    for execution in open_executions(db, job.id):
        if withdrawn := withdraw(db, execution.id, now=now, note="the job was replaced"):
            changed.append(withdrawn)
        else:
            db.execute(
                "UPDATE executions SET spec = ? WHERE execution_id = ? AND spec IS NULL",
                (spec_bytes(job.spec), execution.id),
            )
    return changed


def _write_spec(db: Connection, job: Job, spec: JobSpec, secret_names: SecretNames) -> None:
    # The rows of labels go and come with the spec that names them.
    db.execute(
        """
        DELETE FROM job_labels WHERE (name, value, create_time, seq) IN (
            SELECT each.key, each.value, create_time, seq
            FROM jobs, json_each(CAST(spec AS TEXT), '$.labels') AS each WHERE job_id = ?
        )
        """,
        [job.id],
    )
    [(seq, create_time)] = db.execute(
        """
        UPDATE jobs SET spec = ?, revision = revision + 1, unique_key = ?, unwatched_limit = ?,
            request_digest = iif(request_digest = x'', ?, request_digest),
            schedule = NULL, tick_time = NULL, stop_time = NULL, stop_caller = ''
        WHERE job_id = ? RETURNING seq, create_time
        """,
        # The request that made the job may be repeated later.
        (
            spec_bytes(spec),
            spec.unique.key if spec.unique else "",
            unwatched_limit_of(spec),
            digest_of(job, secret_names),
            job.id,
        ),
    ).fetchall()
    keep_labels(db, [(name, value, create_time, seq) for name, value in spec.labels.items()])
    if spec.notifications:
        note_jobs(db, [job.id])
    elif job.spec and job.spec.notifications:
        forget_job(db, job.id)


def _count_revision(db: Connection, job_id: str) -> None:
    db.execute("UPDATE jobs SET revision = revision + 1 WHERE job_id = ?", [job_id])
