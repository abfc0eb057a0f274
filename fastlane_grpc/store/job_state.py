"""The state of a job: written by plain statements, in the transaction that changes the job's current execution, and
only here.

A job that is not final has the state of its current execution. When that ends, the same transaction makes the job final
or inserts the job's next execution: there is no moment at which a crash could forget it."""

from datetime import datetime

from fastlane_grpc.model import Execution, Job, JobSpec, State, Times, new_id
from fastlane_grpc.schedule import After, Final, Next, settled_by, waiting_state
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.enqueue import insert_execution
from fastlane_grpc.store.queries import job_of
from fastlane_grpc.store.rows import microseconds_since_epoch, spec_from


def follow(db: Connection, execution: Execution) -> None:
    """Give a job the state of its current execution, which is not final."""
    # Without a change nothing is written: not every transition of an execution is one of its state.
    db.execute(
        "UPDATE jobs SET state = :state WHERE job_id = :job_id AND execution_id = :execution_id AND state <> :state",
        {"state": execution.state, "job_id": execution.job_id, "execution_id": execution.id},
    )


def follow_claim(db: Connection, execution: Execution) -> JobSpec:
    """Do the same for an execution that was just claimed, and return the job's spec: one statement does both, as claims
    have to be fast."""
    found = db.execute(
        "UPDATE jobs SET state = ? WHERE job_id = ? AND execution_id = ? RETURNING spec",
        (execution.state, execution.job_id, execution.id),
    ).fetchall()
    found = found or db.execute("SELECT spec FROM jobs WHERE job_id = ?", (execution.job_id,)).fetchall()
    return spec_from(found[0][0])


def settle(db: Connection, ended: Execution, now: datetime, after: After) -> list[Execution]:
    """Write what follows the end of an execution. Return the next execution of the job, if there is one."""
    job = job_of(db, ended.job_id)
    if job.execution.id != ended.id or job.state.final:
        return []
    # A stop wins over whatever else would follow.
    match after(job, ended, now) if job.stop_time is None else settled_by(ended):
        case Final() as final:
            _end(db, job, final, now)
            return []
        case Next() as following:
            return [_insert_next(db, job, following, now)]


def note_stop(db: Connection, job_id: str, now: datetime) -> None:
    """Note that a caller stopped the job: no execution follows the current one."""
    db.execute(
        f"UPDATE jobs SET stop_time = ? WHERE job_id = ? AND stop_time IS NULL AND state < {State.SUCCEEDED}",
        (microseconds_since_epoch(now), job_id),
    )


def _end(db: Connection, job: Job, final: Final, now: datetime) -> None:
    if not final.state.final:
        raise ValueError(f"{final.state.name} is not final")
    db.execute(
        """
        UPDATE jobs
        SET state = :state, end_time = :now, reason = :reason, detail = :detail, exit_code = :exit_code,
            out_of_memory = :out_of_memory, stop_signal = :stop_signal
        WHERE job_id = :job_id
        """,
        {
            "job_id": job.id,
            "state": final.state,
            "now": microseconds_since_epoch(now),
            "reason": final.outcome.reason,
            "detail": final.outcome.detail,
            "exit_code": final.outcome.exit_code,
            "out_of_memory": final.outcome.out_of_memory,
            "stop_signal": final.outcome.stop_signal,
        },
    )


def _insert_next(db: Connection, job: Job, following: Next, now: datetime) -> Execution:
    assert job.spec is not None, "read with the job"
    due_time = max(following.due_time, now)
    execution = Execution(
        id=new_id(),
        job_id=job.id,
        task_id=job.task_id,
        state=waiting_state(due_time, now),
        times=Times(create_time=now, due_time=due_time),
        state_time=now,
        run=following.run,
        attempt=following.attempt,
        expire_time=job.spec.expire_time,
    )
    insert_execution(db, execution, job.spec.priority)
    db.execute(
        "UPDATE jobs SET state = ?, execution_id = ?, executions = executions + 1 WHERE job_id = ?",
        (execution.state, execution.id, job.id),
    )
    return execution
