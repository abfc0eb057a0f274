"""Queries for single rows. Each is one statement, read to its last row."""

from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, TaskNotFound
from fastlane_grpc.model import Assignment, Execution, Job, JobSpec, State, Task
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import EXECUTION, JOB, TASK, TASKS, execution_from, job_from, spec_from, task_from

# SQL: the `seq` of the job's current execution.
CURRENT = "(SELECT seq FROM executions WHERE execution_id = (SELECT execution_id FROM jobs WHERE job_id = :job_id))"


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
    """Return the execution with the spec of its job. ExecutionNotFound."""
    rows = db.execute(
        f"SELECT spec, {EXECUTION} FROM executions JOIN jobs USING (job_id) WHERE executions.execution_id = ?",
        [execution_id],
    ).fetchall()
    if not rows:
        raise ExecutionNotFound(execution_id)
    return Assignment(execution_from(rows[0][1:]), spec_from(rows[0][0]))


def task_of(db: Connection, task_id: str) -> Task:
    """Return the task. TaskNotFound."""
    rows = db.execute(f"SELECT {TASK} FROM {TASKS} WHERE task_id = ?", [task_id]).fetchall()
    if not rows:
        raise TaskNotFound(task_id)
    return task_from(rows[0])
