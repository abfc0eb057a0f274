"""Queries for single rows. Each is one statement, read to its last row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, TaskNotFound
from fastlane_grpc.model import ArrayPosition, Assignment, Execution, Job, JobSpec, State, Task
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import (
    EXECUTION,
    JOB,
    JOB_AS_TEXT,
    TASK,
    TASKS,
    Row,
    array_from,
    execution_from,
    job_from,
    microseconds_since_epoch,
    rows_at_once,
    spec_from,
    task_from,
)

# SQL: the spec that an execution was started with, or is to be started with, the place of its job in an array, and the
# trace of its job.
ITS_SPEC = "coalesce(executions.spec, jobs.spec), jobs.array_index, jobs.array_size, jobs.trace"

# SQL: how many queued executions of the same task and priority go before the row of `executions`, up to `:most`; 0 if
# that row is not queued. Goes along one index, and reads no row of a table.
_AHEAD = f"""
    (SELECT count(*) FROM (
        SELECT 1 FROM executions AS queued INDEXED BY executions_queued
        WHERE executions.state = {State.QUEUED} AND queued.state = {State.QUEUED}
            AND queued.priority = executions.priority AND queued.task_id = executions.task_id
            AND (queued.due_time, queued.seq) < (executions.due_time, executions.seq)
        LIMIT :most + 0
    ))
"""


def job_of(db: Connection, job_id: str) -> Job:
    """Return the job with its current execution. JobNotFound."""
    rows = db.execute(
        f"SELECT {JOB} FROM jobs JOIN executions USING (execution_id) WHERE jobs.job_id = ?", [job_id]
    ).fetchall()
    if not rows:
        raise JobNotFound(job_id)
    return job_from(rows[0])


def spec_of(db: Connection, job_id: str) -> JobSpec:
    """Return the spec of the job. JobNotFound."""
    rows = db.execute("SELECT spec FROM jobs WHERE job_id = ?", [job_id]).fetchall()
    if not rows:
        raise JobNotFound(job_id)
    return spec_from(rows[0][0])


def ahead_of(db: Connection, execution_id: str, most: int) -> int:
    """Count the queued executions of the same task and priority that go before this one, up to `most`; 0 if this one
    is not queued."""
    rows = db.execute(
        f"SELECT {_AHEAD} FROM executions WHERE execution_id = :execution_id",
        {"execution_id": execution_id, "most": most},
    ).fetchall()
    return int(rows[0][0]) if rows else 0


@dataclass(frozen=True, slots=True)
class JobInLine:
    """A query for a job, and for what `ahead_of` counts for its current execution."""

    job_id: str
    most: int

    def __call__(self, db: Connection) -> tuple[Job, int]:
        """Return both. JobNotFound."""
        rows = db.execute(
            f"SELECT {_AHEAD}, {JOB} FROM jobs JOIN executions USING (execution_id) WHERE jobs.job_id = :job_id",
            {"job_id": self.job_id, "most": self.most},
        ).fetchall()
        if not rows:
            raise JobNotFound(self.job_id)
        return job_from(rows[0][1:]), rows[0][0]

    @staticmethod
    def together(db: Connection, works: "Sequence[JobInLine]") -> Sequence[tuple[Job, int]]:
        """Return what each query returns. LookupError: there is no such job for one of them."""
        rows = rows_at_once(
            db,
            f"{_AHEAD}, {JOB_AS_TEXT}",
            """
            FROM json_each(:job_ids) AS wanted
            CROSS JOIN jobs ON jobs.job_id = wanted.value
            CROSS JOIN executions ON executions.execution_id = jobs.execution_id
            """,
            {"job_ids": json.dumps([work.job_id for work in works]), "most": max(work.most for work in works)},
        )
        if len(rows) < len(works):
            raise LookupError
        found = {job.id: (job, row[0]) for row in rows if (job := job_from(row[1:]))}
        return [(job, min(ahead, work.most)) for work in works for job, ahead in [found[work.job_id]]]


def execution_and_ahead(db: Connection, execution_id: str, most: int) -> tuple[Execution, int]:
    """Return the execution, and what `ahead_of` counts for it. ExecutionNotFound."""
    rows = db.execute(
        f"SELECT {_AHEAD}, {EXECUTION} FROM executions WHERE execution_id = :execution_id",
        {"execution_id": execution_id, "most": most},
    ).fetchall()
    if not rows:
        raise ExecutionNotFound(execution_id)
    return execution_from(rows[0][1:]), rows[0][0]


def execution_of(db: Connection, execution_id: str) -> Execution:
    """Return the execution. ExecutionNotFound."""
    rows = db.execute(f"SELECT {EXECUTION} FROM executions WHERE execution_id = ?", [execution_id]).fetchall()
    if not rows:
        raise ExecutionNotFound(execution_id)
    return execution_from(rows[0])


def assignment_of(db: Connection, execution_id: str) -> Assignment:
    """Return the execution with its spec. ExecutionNotFound."""
    rows = db.execute(
        f"SELECT {ITS_SPEC}, {EXECUTION} FROM executions JOIN jobs USING (job_id) WHERE executions.execution_id = ?",
        [execution_id],
    ).fetchall()
    if not rows:
        raise ExecutionNotFound(execution_id)
    return assignment_from(rows[0])


def assignments_of(db: Connection, execution_ids: Sequence[str]) -> list[Assignment]:
    """Return the executions with their specs, in the order of the ids, without those that are gone."""
    rows = db.execute(
        f"""
        SELECT {ITS_SPEC}, {EXECUTION} FROM json_each(?) AS asked
        JOIN executions ON executions.execution_id = asked.value JOIN jobs USING (job_id) ORDER BY asked.key""",
        [json.dumps([*execution_ids])],
    ).fetchall()
    return [assignment_from(row) for row in rows]


def assignment_from(row: Row) -> Assignment:
    """Return the assignment of a row with the columns ITS_SPEC and EXECUTION."""
    return assignment_of_row(execution_from(row[4:]), row)


def assignment_of_row(execution: Execution, row: Row) -> Assignment:
    """Return the assignment of an execution. `row` begins with the columns of ITS_SPEC."""
    spec, index, size, trace = row[:4]
    return Assignment(execution, _own_spec(execution, spec_from(spec), array_from(index, size)), trace)


def _own_spec(execution: Execution, spec: JobSpec, array: ArrayPosition | None) -> JobSpec:
    """Return the spec with what differs in this execution: its memory limit, and the variables that say its job's place
    in an array."""
    if array:
        spec = replace(spec, envs={**spec.envs, **array.envs})
    if execution.memory_bytes:
        spec = replace(spec, limits=replace(spec.limits, memory_bytes=execution.memory_bytes))
    return spec


def open_executions(db: Connection, job_id: str) -> list[Execution]:
    """Return the executions of the job that are not final, the newest one first."""
    # The unary plus keeps SQLite from the index of states: a job has few executions.
    rows = db.execute(
        f"SELECT {EXECUTION} FROM executions WHERE job_id = ? AND +state < {State.SUCCEEDED} ORDER BY seq DESC",
        [job_id],
    ).fetchall()
    return [execution_from(row) for row in rows]


def first_to_read(db: Connection, job_id: str) -> Execution:
    """Return the execution at which a reader of a job's logs starts: the first attempt of the newest run that has
    started, or the first execution that is kept. JobNotFound."""
    rows = db.execute(
        f"""
        SELECT {EXECUTION} FROM executions WHERE job_id = :job_id AND run >= coalesce((
            SELECT max(run) FROM executions WHERE job_id = :job_id AND claim_time IS NOT NULL
        ), 0)
        ORDER BY run, attempt LIMIT 1
        """,
        {"job_id": job_id},
    ).fetchall()
    if not rows:
        raise JobNotFound(job_id)
    return execution_from(rows[0])


def newest_started(db: Connection, job_id: str) -> Execution:
    """Return the newest execution of the job that has started, or the newest one. JobNotFound."""
    rows = db.execute(
        f"""
        SELECT {EXECUTION} FROM executions WHERE job_id = ?
        ORDER BY claim_time IS NOT NULL DESC, run DESC, attempt DESC LIMIT 1
        """,
        [job_id],
    ).fetchall()
    if not rows:
        raise JobNotFound(job_id)
    return execution_from(rows[0])


def first_ended_since(db: Connection, job_id: str, since: datetime) -> Execution | None:
    """Return the first execution of the job that ended at this time or later, or has not ended."""
    rows = db.execute(
        f"""
        SELECT {EXECUTION} FROM executions WHERE job_id = ? AND (end_time IS NULL OR end_time >= ?)
        ORDER BY run, attempt LIMIT 1
        """,
        (job_id, microseconds_since_epoch(since)),
    ).fetchall()
    return execution_from(rows[0]) if rows else None


def execution_after(db: Connection, job_id: str, run: int, attempt: int) -> Execution | None:
    """Return the execution of the job that follows this attempt of this run; None if there is none yet."""
    rows = db.execute(
        f"""
        SELECT {EXECUTION} FROM executions WHERE job_id = ? AND (run, attempt) > (?, ?)
        ORDER BY run, attempt LIMIT 1
        """,
        (job_id, run, attempt),
    ).fetchall()
    return execution_from(rows[0]) if rows else None


def execution_newer_than(db: Connection, job_id: str, execution_id: str) -> Execution | None:
    """Return the oldest execution of the job with a later id: ids are in the order of their creation."""
    # The unary plus keeps SQLite from the index of ids, which has those of all jobs.
    rows = db.execute(
        f"""
        SELECT {EXECUTION} FROM executions WHERE job_id = ? AND +execution_id > ?
        ORDER BY run, attempt LIMIT 1
        """,
        (job_id, execution_id),
    ).fetchall()
    return execution_from(rows[0]) if rows else None


def unwatched_limits(db: Connection) -> dict[str, timedelta]:
    """Return the open jobs that are stopped when nobody watches them for a time, by id, with that time. Jobs that were
    told to stop are left out."""
    rows = db.execute(
        """
        SELECT job_id, unwatched_limit FROM jobs INDEXED BY jobs_unwatched
        WHERE unwatched_limit IS NOT NULL AND stop_time IS NULL AND state < 6
        """
    )
    return {job_id: timedelta(microseconds=limit) for job_id, limit in rows}


def task_of(db: Connection, task_id: str) -> Task:
    """Return the task. TaskNotFound."""
    rows = db.execute(f"SELECT {TASK} FROM {TASKS} WHERE task_id = ?", [task_id]).fetchall()
    if not rows:
        raise TaskNotFound(task_id)
    return task_from(rows[0])
