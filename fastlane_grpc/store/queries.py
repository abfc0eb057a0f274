"""Queries for single rows. Each is one statement, read to its last row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, TaskNotFound
from fastlane_grpc.model import Assignment, Execution, Job, JobSpec, State, Task
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import EXECUTION, JOB, TASK, execution_from, job_from, spec_from, task_from

# SQL: the `seq` of the job's current execution.
CURRENT = "(SELECT seq FROM executions WHERE execution_id = (SELECT execution_id FROM jobs WHERE job_id = :job_id))"

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
        rows = db.execute(
            f"""
            SELECT {_AHEAD}, {JOB} FROM json_each(:job_ids) AS wanted
            CROSS JOIN jobs ON jobs.job_id = wanted.value
            CROSS JOIN executions ON executions.execution_id = jobs.execution_id
            """,
            {"job_ids": json.dumps([work.job_id for work in works]), "most": max(work.most for work in works)},
        ).fetchall()
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
    rows = db.execute(f"SELECT {TASK} FROM tasks WHERE task_id = ?", [task_id]).fetchall()
    if not rows:
        raise TaskNotFound(task_id)
    return task_from(rows[0])
