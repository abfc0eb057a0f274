"""The change log: one row for each change of a job or an execution, in the order of the commits.

Triggers write the rows, in the transaction of the change. Sequences have no gaps and never go back. A reader keeps the
position after the last row that it has handled, and reads on from there, also after a restart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import ClassVar, NamedTuple

from fastlane_grpc.errors import CursorTooOld
from fastlane_grpc.model import Job, State
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import JOB_WITHOUT_SPEC, job_from, microseconds_since_epoch, time_from


class ChangeKind(IntEnum):
    """The kind of a change. The numbers are those of the table `changes`."""

    # A new execution, or another state of an execution. The state of its job may have changed with it.
    EXECUTION = 1
    # Something else of an execution: its container, its grace period, its log that was pruned.
    DETAIL = 2
    # A job changed without another state: its schedule, its spec.
    JOB = 3
    # A job was pruned, with all its executions.
    PRUNED = 4
    # A job became final. (Before a release with notifications: JOB.)
    ENDED = 5


class ChangePosition(NamedTuple):
    """The position after a row of the log: the row's sequence, and its time in microseconds since 1970.

    The time tells a row from another one with the same sequence, which a restored backup may have."""

    sequence: int
    time_us: int


# The position before the first row.
FIRST_POSITION = ChangePosition(0, 0)


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the log. `execution_id`: the execution, or the job's current one where the job itself has changed.
    `labels`: those of a job that was pruned."""

    NO_LABELS: ClassVar[Mapping[str, str]] = {}

    position: ChangePosition
    kind: ChangeKind
    job_id: str
    task_id: str
    execution_id: str
    state: State
    time: datetime
    labels: Mapping[str, str]


class JobsRead(NamedTuple):
    """Jobs without their specs, by id, as they were after the change `sequence`, and the labels of each. A job that
    does not exist is missing."""

    sequence: int
    jobs: Mapping[str, Job]
    labels: Mapping[str, Mapping[str, str]]


def newest_change(db: Connection) -> ChangePosition:
    """Return the position after the newest row."""
    rows = db.execute("SELECT sequence, time FROM changes ORDER BY sequence DESC LIMIT 1").fetchall()
    return ChangePosition(*rows[0]) if rows else FIRST_POSITION


def changes(db: Connection, after: ChangePosition, limit: int) -> list[Change]:
    """Return the first `limit` rows after that position. CursorTooOld: rows after it were pruned, or the position is
    not of this log."""
    # With the row before them: if that row is there, none is missing between it and the others.
    rows = db.execute(
        """
        SELECT sequence, time, kind, job_id, task_id, execution_id, state, labels FROM changes
        WHERE sequence >= ? ORDER BY sequence LIMIT ?
        """,
        (after.sequence, limit + 1),
    ).fetchall()
    if after == FIRST_POSITION:
        complete, rows = not rows or rows[0][0] == 1, rows[:limit]
    else:
        complete, rows = bool(rows) and ChangePosition(*rows[0][:2]) == after, rows[1:]
    if not complete:
        raise CursorTooOld("the changes after this cursor are not kept any more; watch again without a cursor")
    return [
        Change(
            ChangePosition(sequence, time_us),
            ChangeKind(kind),
            job_id,
            task_id,
            execution_id,
            State(state),
            time_from(time_us),
            json.loads(labels) if labels else Change.NO_LABELS,
        )
        for sequence, time_us, kind, job_id, task_id, execution_id, state, labels in rows
    ]


def read_jobs(db: Connection, job_ids: Sequence[str], *, with_labels: bool) -> JobsRead:
    """Return those of the jobs that exist; their labels only if `with_labels`."""
    rows = db.execute(
        f"""
        SELECT
            (SELECT max(sequence) FROM changes),
            iif(:with_labels, json_extract(CAST(jobs.spec AS TEXT), '$.labels'), NULL),
            {JOB_WITHOUT_SPEC}
        FROM json_each(:job_ids) CROSS JOIN jobs ON jobs.job_id = json_each.value
        JOIN executions ON executions.execution_id = jobs.execution_id
        """,
        {"job_ids": json.dumps(job_ids), "with_labels": with_labels},
    ).fetchall()
    jobs = [job_from(row[2:]) for row in rows]
    labels = {job.id: json.loads(row[1]) for job, row in zip(jobs, rows, strict=True) if row[1]}
    return JobsRead(rows[0][0] or 0 if rows else 0, {job.id: job for job in jobs}, labels)


def prune_changes(db: Connection, *, before: datetime, keep: int, limit: int, up_to: int) -> int:
    """Delete the oldest rows, at most `limit`: those beyond the newest `keep`, and those from before that time, up to
    the sequence `up_to`. Return how many these were.

    Only a beginning of the log is deleted, whatever times clocks gave its rows, and never its newest row."""
    before_us, newest = microseconds_since_epoch(before), newest_change(db).sequence
    rows = db.execute("SELECT sequence, time FROM changes ORDER BY sequence LIMIT ?", (limit,)).fetchall()
    last = 0
    for sequence, time_us in rows:
        if sequence >= newest or sequence > up_to or not (sequence <= newest - keep or time_us < before_us):
            break
        last = sequence
    return db.execute("DELETE FROM changes WHERE sequence <= ?", (last,)).rowcount if last else 0
