"""Stops of jobs and executions by callers, each within the transaction of its caller."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from fastlane_grpc.model import Execution, Hold, Job, Reason, State, StopCause
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.job_state import Rules, follow, note_stop, settle
from fastlane_grpc.store.queries import assignment_of, execution_of, job_of, open_executions, spec_of
from fastlane_grpc.store.rows import EXECUTION, execution_from, microseconds_of, microseconds_since_epoch


def stop_job(
    db: Connection, job_id: str, *, now: datetime, grace: timedelta | None, note: str, rules: Rules, caller: str = ""
) -> tuple[Job, list[Execution]]:
    """Stop the job and all its open executions, for this caller. Return the job, and the executions that changed.
    JobNotFound."""
    its_grace = spec_of(db, job_id).grace if grace is None else grace
    note_stop(db, job_id, now, caller)
    changed = stop_open_executions(db, job_id, now=now, grace=its_grace, note=note, rules=rules)
    return job_of(db, job_id), changed


def stop_open_executions(
    db: Connection, job_id: str, *, now: datetime, grace: timedelta, note: str, rules: Rules
) -> list[Execution]:
    """Stop the executions of a job that are not final. Return those that changed."""
    changed: list[Execution] = []
    for execution in open_executions(db, job_id):
        changed += _stop(db, execution.id, now, grace, note, rules)
    return changed


def stop_execution(
    db: Connection, execution_id: str, *, now: datetime, grace: timedelta | None, note: str, rules: Rules
) -> tuple[Execution, list[Execution]]:
    """Stop exactly this execution. Return it, and the executions that changed. ExecutionNotFound."""
    its_grace = assignment_of(db, execution_id).spec.grace if grace is None else grace
    changed = _stop(db, execution_id, now, its_grace, note, rules)
    return execution_of(db, execution_id), changed


def withdraw(db: Connection, execution_id: str, *, now: datetime, note: str) -> Execution | None:
    """End an execution that was not claimed as STOPPED, without what would follow: the caller puts another one in its
    place. None: it was claimed, or is final."""
    return _stop_unclaimed(db, _order(execution_id, now, timedelta(), note))


def _stop(
    db: Connection, execution_id: str, now: datetime, grace: timedelta, note: str, rules: Rules
) -> list[Execution]:
    """Stop an execution. Return the executions that changed."""
    order = _order(execution_id, now, grace, note)
    if execution := _stop_unclaimed(db, order):
        return [execution, *settle(db, execution, now, rules)]
    if execution := _stop_claimed(db, order):
        follow(db, execution)
        return [execution]
    execution = _shorten_grace(db, order)
    return [execution] if execution else []


def _order(execution_id: str, now: datetime, grace: timedelta, note: str) -> Mapping[str, object]:
    return {
        "execution_id": execution_id,
        "now": microseconds_since_epoch(now),
        "grace": microseconds_of(grace),
        "note": note,
    }


def _stop_unclaimed(db: Connection, order: Mapping[str, object]) -> Execution | None:
    return _update(
        db,
        f"""
        UPDATE executions
        SET state = {State.STOPPED}, state_time = :now, end_time = :now, held = {Hold.NONE},
            stop_cause = '{StopCause.CALLER.value}', stop_time = :now, stop_grace = :grace, stop_note = :note,
            reason = {Reason.UNSPECIFIED},
            detail = 'stopped while it was ' || iif(state = {State.QUEUED}, 'queued', 'scheduled')
                || iif(:note = '', '', ': ' || :note),
            out_of_memory = 0, stop_signal = ''
        WHERE execution_id = :execution_id AND state IN ({State.SCHEDULED}, {State.QUEUED})
        """,
        order,
    )


def _stop_claimed(db: Connection, order: Mapping[str, object]) -> Execution | None:
    return _update(
        db,
        f"""
        UPDATE executions
        SET state = {State.STOPPING}, state_time = :now,
            stop_cause = '{StopCause.CALLER.value}', stop_time = :now, stop_grace = :grace, stop_note = :note
        WHERE execution_id = :execution_id AND state IN ({State.PREPARING}, {State.RUNNING})
        """,
        order,
    )


def _shorten_grace(db: Connection, order: Mapping[str, object]) -> Execution | None:
    # Grace counts from the first order, whose cause stays: it decides between STOPPED and TIMED_OUT.
    return _update(
        db,
        f"""
        UPDATE executions SET stop_grace = max(:now + :grace - stop_time, 0)
        WHERE execution_id = :execution_id AND state = {State.STOPPING} AND :now + :grace < stop_time + stop_grace
        """,
        order,
    )


def _update(db: Connection, sql: str, order: Mapping[str, object]) -> Execution | None:
    # Fetched to the end: COMMIT fails while a RETURNING has rows that nobody took.
    rows = db.execute(f"{sql} RETURNING {EXECUTION}", order).fetchall()
    return execution_from(rows[0]) if rows else None
