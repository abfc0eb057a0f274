"""The state of a job: written by plain statements, in the transaction that changes one of its executions, only here.

A job that is not final has the state of its current execution, the newest one that is not final. When an execution
ends, the same transaction inserts what follows or makes the job final: there is no moment at which a crash could forget
it."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from fastlane_grpc.model import Assignment, Execution, Hold, Job, Notification, ScheduleState, State, Times, new_id
from fastlane_grpc.schedule import Final, Following, Next, after, waiting_state
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.enqueue import insert_execution, key_holders
from fastlane_grpc.store.queries import assignment_of_row, job_of, open_executions
from fastlane_grpc.store.rows import (
    EXECUTION,
    execution_from,
    microseconds_or_none,
    microseconds_since_epoch,
    schedule_text,
)

# Decides what follows an execution that has ended: called as `schedule.after` is.
After: TypeAlias = Callable[..., Following]

# SQL: as ITS_SPEC, for the execution `:execution_id` of the row of `jobs`, which is to be started. An execution that
# was requeued keeps its own spec if its job was replaced meanwhile.
_TO_START = """
    coalesce(iif(revision > 1, (SELECT spec FROM executions WHERE execution_id = :execution_id), NULL), spec),
    array_index, array_size, trace
"""


class Rules(NamedTuple):
    """The rules of the store: the function that decides what follows an execution, and the history and notifications of
    a job whose spec has none."""

    after: After = after
    default_history: int = 100
    # Of jobs that have none of their own, and whose tasks have none.
    default_notifications: Sequence[Notification] = ()


DEFAULT_RULES = Rules()


def follow(db: Connection, execution: Execution) -> None:
    """Give a job the state of this execution, which is not final, if it is the job's current one."""
    # Without a change nothing is written: not every transition of an execution is one of its state.
    db.execute(
        "UPDATE jobs SET state = :state WHERE job_id = :job_id AND execution_id = :execution_id AND state <> :state",
        {"state": execution.state, "job_id": execution.job_id, "execution_id": execution.id},
    )


def follow_claim(db: Connection, execution: Execution) -> Assignment:
    """Do the same for an execution that was just claimed, and return it with its spec: one statement does both, as
    claims have to be fast."""
    values = {"state": execution.state, "job_id": execution.job_id, "execution_id": execution.id}
    found = db.execute(
        f"UPDATE jobs SET state = :state WHERE job_id = :job_id AND execution_id = :execution_id RETURNING {_TO_START}",
        values,
    ).fetchall()
    found = found or db.execute(f"SELECT {_TO_START} FROM jobs WHERE job_id = :job_id", values).fetchall()
    return assignment_of_row(execution, found[0])


def settle(db: Connection, ended: Execution, now: datetime, rules: Rules) -> list[Execution]:
    """Write what follows the end of an execution. Return the next execution of the job, if there is one."""
    job = job_of(db, ended.job_id)
    if job.state.final:
        return []
    others = open_executions(db, job.id) if job.executions > 1 else []
    superseded = bool(job.revision > 1 and _was_replaced(db, ended.id))
    following = rules.after(job, ended, now, others_open=bool(others), superseded=superseded)
    if following.schedule != job.schedule:
        write_schedule(db, job.id, following.schedule, job.tick_time)
    if following.next:
        return [insert_next(db, job, following.next, now, rules)]
    if others:
        # Whichever of them is the newest one now.
        point_at(db, others[0])
        return []
    assert following.final, "a job without open executions ends"
    return _end(db, job, following.final, ended.id, now)


def insert_next(
    db: Connection, job: Job, following: Next, now: datetime, rules: Rules, *, started: bool = False
) -> Execution:
    """Insert the next execution of a job, and make it the current one. `started`: its tick was handled already."""
    assert job.spec is not None, "read with the job"
    due_time, hold = max(following.due_time, now), following.hold
    if job.spec.unique and key_holders(db, job.task_id, job.spec.unique.key)[:1] != [job.id]:
        # The job has not got its unique key yet: the execution that waited for it was stopped, or has expired.
        hold = Hold.UNIQUE_KEY
    waits_for_tick = following.tick_time is not None and following.attempt == 1 and not started
    execution = Execution(
        id=new_id(),
        job_id=job.id,
        task_id=job.task_id,
        # What is scheduled for a tick is queued by `due`, which handles the tick, even if the tick has come.
        state=State.SCHEDULED if waits_for_tick else waiting_state(due_time, now, hold),
        times=Times(create_time=now, due_time=due_time),
        state_time=now,
        run=job.runs + 1 if following.run is None else following.run,
        attempt=following.attempt,
        expire_time=job.spec.expire_time,
        tick_time=following.tick_time,
        tries=following.tries,
        memory_bytes=following.memory_bytes,
        hold=hold,
    )
    insert_execution(db, execution, job.spec.priority)
    db.execute(
        """
        UPDATE jobs SET state = ?, execution_id = ?, executions = executions + 1, runs = max(runs, ?),
            tick_time = iif(?, NULL, tick_time)
        WHERE job_id = ?
        """,
        (execution.state, execution.id, execution.run, waits_for_tick, job.id),
    )
    mark_excess(db, job.id, job.spec.history or rules.default_history)
    return execution


def point_at(db: Connection, execution: Execution) -> None:
    """Make this execution the current one of its job."""
    db.execute(
        "UPDATE jobs SET execution_id = ?, state = ? WHERE job_id = ? AND (execution_id, state) <> (?, ?)",
        (execution.id, execution.state, execution.job_id, execution.id, execution.state),
    )


def write_schedule(db: Connection, job_id: str, schedule: ScheduleState | None, tick_time: datetime | None) -> None:
    """Write the state of a schedule, and the next tick to handle during a run. One that is over has none."""
    if schedule is None or schedule.over or schedule.paused:
        tick_time = None
    db.execute(
        "UPDATE jobs SET schedule = ?, tick_time = ? WHERE job_id = ?",
        (schedule_text(schedule), microseconds_or_none(tick_time), job_id),
    )


def note_stop(db: Connection, job_id: str, now: datetime, caller: str) -> None:
    """Note that a caller stopped the job: no execution follows those that are open, and no tick of its schedule."""
    db.execute(
        f"""
        UPDATE jobs SET stop_time = ?, stop_caller = ?, tick_time = NULL,
            schedule = iif(schedule IS NULL, NULL, json_set(schedule, '$.over', json('true')))
        WHERE job_id = ? AND stop_time IS NULL AND state < {State.SUCCEEDED}
        """,
        (microseconds_since_epoch(now), caller, job_id),
    )


def mark_excess(db: Connection, job_id: str, history: int) -> None:
    """Mark the final executions beyond the newest ones that make up the history of a job. Retention deletes them."""
    db.execute(
        f"""
        UPDATE executions SET excess = 1
        WHERE seq IN (SELECT seq FROM executions WHERE job_id = ? ORDER BY seq DESC LIMIT -1 OFFSET ? + 0)
            AND state >= {State.SUCCEEDED} AND excess = 0
        """,
        (job_id, history),
    )


def reopen(db: Connection, job_id: str) -> None:
    """Make a final job one that is not: an execution is inserted next, in the same transaction."""
    db.execute(
        f"""
        UPDATE jobs SET state = {State.QUEUED}, stop_time = NULL, stop_caller = '', end_time = NULL,
            reason = NULL, detail = NULL, exit_code = NULL, out_of_memory = NULL, stop_signal = NULL
        WHERE job_id = ? AND state >= {State.SUCCEEDED}
        """,
        [job_id],
    )


def _was_replaced(db: Connection, execution_id: str) -> bool:
    rows = db.execute("SELECT spec IS NOT NULL FROM executions WHERE execution_id = ?", [execution_id]).fetchall()
    return bool(rows[0][0])


def _end(db: Connection, job: Job, final: Final, execution_id: str, now: datetime) -> list[Execution]:
    """Make the job final, as this execution decided. Return the execution of another job that waited for its unique
    key, if there is one."""
    if not final.state.final:
        raise ValueError(f"{final.state.name} is not final")
    db.execute(
        """
        UPDATE jobs
        SET state = :state, end_time = :now, reason = :reason, detail = :detail, exit_code = :exit_code,
            out_of_memory = :out_of_memory, stop_signal = :stop_signal, tick_time = NULL,
            execution_id = :execution_id
        WHERE job_id = :job_id
        """,
        {
            "job_id": job.id,
            "execution_id": execution_id,
            "state": final.state,
            "now": microseconds_since_epoch(now),
            "reason": final.outcome.reason,
            "detail": final.outcome.detail,
            "exit_code": final.outcome.exit_code,
            "out_of_memory": final.outcome.out_of_memory,
            "stop_signal": final.outcome.stop_signal,
        },
    )
    if job.spec is None or job.spec.unique is None:
        return []
    return _pass_on_key(db, job.task_id, job.spec.unique.key, now)


def _pass_on_key(db: Connection, task_id: str, key: str, now: datetime) -> list[Execution]:
    """Release the job that waits for a unique key that no job holds any more."""
    waiting = db.execute(
        f"""
        UPDATE executions
        SET held = iif(jobs.schedule ->> '$.paused', {Hold.SCHEDULE_PAUSED}, {Hold.NONE}),
            due_time = max(due_time, :now),
            state_time = :now, state = iif(due_time > :now OR tick_time IS NOT NULL, {State.SCHEDULED}, {State.QUEUED})
        FROM (
            SELECT execution_id AS waiting_id, schedule FROM jobs INDEXED BY jobs_unique
            WHERE task_id = :task_id AND unique_key = :key AND unique_key <> '' AND state < 6 ORDER BY seq LIMIT 1
        ) AS jobs
        WHERE executions.execution_id = waiting_id AND held = {Hold.UNIQUE_KEY}
        RETURNING {EXECUTION}
        """,
        {"task_id": task_id, "key": key, "now": microseconds_since_epoch(now)},
    ).fetchall()
    released = [execution_from(row) for row in waiting]
    for execution in released:
        follow(db, execution)
    return released
