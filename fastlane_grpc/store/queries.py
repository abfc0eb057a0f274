"""Queries for single rows. Each is one statement, read to its last row."""

from dataclasses import replace
from datetime import datetime

from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, TaskNotFound
from fastlane_grpc.model import Assignment, Execution, Job, JobSpec, State, Task
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import (
    EXECUTION,
    JOB,
    TASK,
    Row,
    execution_from,
    job_from,
    microseconds_since_epoch,
    spec_from,
    task_from,
)

# SQL: the spec that an execution was started with, or is to be started with.
ITS_SPEC = "coalesce(executions.spec, jobs.spec)"


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
    # Two steps down two indexes, then along the second one: no row of a table is read but the first.
    rows = db.execute(
        f"""
        SELECT count(*) FROM (
            SELECT 1 FROM executions AS its CROSS JOIN executions AS queued INDEXED BY executions_queued
            ON queued.state = {State.QUEUED} AND queued.priority = its.priority AND queued.task_id = its.task_id
                AND (queued.due_time, queued.seq) < (its.due_time, its.seq)
            WHERE its.execution_id = :execution_id AND its.state = {State.QUEUED} LIMIT :most
        )
        """,
        {"execution_id": execution_id, "most": most},
    ).fetchall()
    return int(rows[0][0])


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


def assignment_from(row: Row) -> Assignment:
    """Return the assignment of a row with the columns ITS_SPEC and EXECUTION."""
    execution = execution_from(row[1:])
    return Assignment(execution, own_spec(execution, spec_from(row[0])))


def own_spec(execution: Execution, spec: JobSpec) -> JobSpec:
    """Return the spec with what differs in this execution."""
    if not execution.memory_bytes:
        return spec
    return replace(spec, limits=replace(spec.limits, memory_bytes=execution.memory_bytes))


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


def task_of(db: Connection, task_id: str) -> Task:
    """Return the task. TaskNotFound."""
    rows = db.execute(f"SELECT {TASK} FROM tasks WHERE task_id = ?", [task_id]).fetchall()
    if not rows:
        raise TaskNotFound(task_id)
    return task_from(rows[0])
