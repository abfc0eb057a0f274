"""What is asked of the tables: each question is one statement, read to its last row."""

from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, TaskNotFound
from fastlane_grpc.model import Execution, Job, Task
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import EXECUTION, JOB, TASK, execution_from, job_from, task_from

# A job's state is its newest execution's.
NEWEST = "(SELECT max(seq) FROM executions WHERE job_id = :job_id)"


def job_of(db: Connection, job_id: str) -> Job:
    """JobNotFound."""
    rows = db.execute(
        f"SELECT {JOB} FROM jobs JOIN executions ON executions.seq = {NEWEST} WHERE jobs.job_id = :job_id", {"job_id": job_id}
    ).fetchall()
    if not rows:
        raise JobNotFound(job_id)
    return job_from(rows[0])


def execution_of(db: Connection, execution_id: str) -> Execution:
    """ExecutionNotFound."""
    rows = db.execute(f"SELECT {EXECUTION} FROM executions WHERE execution_id = ?", [execution_id]).fetchall()
    if not rows:
        raise ExecutionNotFound(execution_id)
    return execution_from(rows[0])


def task_of(db: Connection, task_id: str) -> Task:
    """TaskNotFound."""
    rows = db.execute(f"SELECT {TASK} FROM tasks WHERE task_id = ?", [task_id]).fetchall()
    if not rows:
        raise TaskNotFound(task_id)
    return task_from(rows[0])
