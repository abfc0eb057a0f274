"""Jobs and logs that retention deletes: found in the order in which they ended, and deleted in small batches.

Each query reads an index from its old end, however much is kept and however little of it is old.
"""

import json
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, NamedTuple

from fastlane_grpc.model import Execution
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import EXECUTION, execution_from, microseconds_since_epoch, time_from


class PruneCursor(NamedTuple):
    """A position in the order of ends: the end of a job or of a log's execution, and a `seq` that orders those with the
    same end."""

    end_time: int
    seq: int


@dataclass(frozen=True, slots=True)
class PruneQuery:
    """Jobs, or only their logs, that ended at or before `before`: those of one task, or of all."""

    START: ClassVar[PruneCursor] = PruneCursor(-1, -1)

    before: datetime
    logs_only: bool = False
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class PruneCandidate:
    """An execution whose log or job is to be deleted. `log_bytes`: what its log takes on the disk; 0: no log."""

    execution_id: str
    job_id: str
    log_bytes: int
    cursor: PruneCursor


@dataclass(frozen=True, slots=True)
class Count:
    """A number of jobs, a number of logs, and the bytes that these logs take on the disk."""

    jobs: int = 0
    logs: int = 0
    bytes: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.jobs + other.jobs, self.logs + other.logs, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class RetentionTotals:
    """The earliest end of an execution whose log is kept, and of a job; None if there is none. `log_bytes`: what all
    logs take on the disk, as far as the store knows it."""

    oldest_log_time: datetime | None
    oldest_job_time: datetime | None
    log_bytes: int
    # The earliest end of a delivery.
    oldest_delivery_time: datetime | None = None
    # The earliest entry of the audit.
    oldest_audit_time: datetime | None = None


def retention_totals(db: Connection) -> RetentionTotals:
    [(log_time, job_time, log_bytes, delivery_time, audit_time)] = db.execute(
        """
        SELECT
            (SELECT end_time FROM executions INDEXED BY executions_log_kept
             WHERE log_bytes > 0 AND end_time >= 0 ORDER BY end_time LIMIT 1),
            (SELECT end_time FROM jobs INDEXED BY jobs_ended WHERE state >= 6 ORDER BY end_time LIMIT 1),
            (SELECT log_bytes FROM kept),
            (SELECT min(end_time) FROM deliveries INDEXED BY deliveries_ended WHERE end_time IS NOT NULL),
            (SELECT time FROM audit ORDER BY seq LIMIT 1)
        """
    ).fetchall()
    return RetentionTotals(_time(log_time), _time(job_time), log_bytes, _time(delivery_time), _time(audit_time))


def oldest(db: Connection, query: PruneQuery, after: PruneCursor, limit: int) -> list[PruneCandidate]:
    """Return the candidates after that cursor: those of at most `limit` logs, or all executions of at most `limit`
    jobs."""
    rows = db.execute(_found(query), _values(query, after, limit)).fetchall()
    return [
        PruneCandidate(execution_id, job_id, log_bytes, PruneCursor(end_time, seq))
        for execution_id, job_id, log_bytes, end_time, seq in rows
    ]


def count(db: Connection, query: PruneQuery, limit: int) -> Count:
    """Count what the query finds, up to `limit` logs or jobs."""
    [(jobs, logs, log_bytes)] = db.execute(
        f"""
        SELECT count(DISTINCT job_id), coalesce(sum(log_bytes > 0), 0), coalesce(sum(log_bytes), 0)
        FROM ({_found(query)})
        """,
        _values(query, PruneQuery.START, limit),
    ).fetchall()
    return Count(0 if query.logs_only else jobs, logs, log_bytes)


def mark_pruned(db: Connection, execution_ids: Sequence[str], now: datetime) -> list[Execution]:
    """Note that these logs are being deleted, so that readers are told. Return the executions that changed. The bytes
    of their files stay on the rows."""
    return _update(db, "prune_time = :now", "prune_time IS NULL AND log_bytes > 0", execution_ids, now)


def forget_logs(db: Connection, execution_ids: Sequence[str], now: datetime) -> list[Execution]:
    """Note that the files of these logs are deleted. Return the executions that changed."""
    return _update(db, "prune_time = coalesce(prune_time, :now), log_bytes = 0", "log_bytes > 0", execution_ids, now)


def excess(db: Connection, after: PruneCursor, limit: int) -> list[PruneCandidate]:
    """Return final executions beyond the history of their jobs, in the order of their arrival: at most `limit` after
    that cursor."""
    rows = db.execute(
        """
        SELECT execution_id, job_id, log_bytes, end_time, seq FROM executions INDEXED BY executions_excess
        WHERE excess = 1 AND seq > ? ORDER BY seq LIMIT ? + 0
        """,
        [after.seq, limit],
    ).fetchall()
    return [
        PruneCandidate(execution_id, job_id, log_bytes, PruneCursor(end_time, seq))
        for execution_id, job_id, log_bytes, end_time, seq in rows
    ]


def delete_excess(db: Connection, execution_ids: Sequence[str]) -> int:
    """Delete those of the executions that are beyond the history of their jobs, and not the current ones. Return how
    many these were."""
    return db.execute(
        """
        DELETE FROM executions
        WHERE execution_id IN (SELECT value FROM json_each(?)) AND excess = 1
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.execution_id = executions.execution_id)
        """,
        [json.dumps(execution_ids)],
    ).rowcount


def delete_jobs(db: Connection, job_ids: Sequence[str]) -> int:
    """Delete those of the jobs that are final, with all their executions. Return how many these were."""
    ids = [json.dumps(job_ids)]
    final = "SELECT job_id FROM json_each(?) CROSS JOIN jobs ON job_id = value WHERE state >= 6"
    db.execute(f"DELETE FROM executions WHERE job_id IN ({final})", ids)
    return db.execute(f"DELETE FROM jobs WHERE job_id IN ({final})", ids).rowcount


def _update(db: Connection, change: str, guard: str, execution_ids: Sequence[str], now: datetime) -> list[Execution]:
    # Fetched to the end: COMMIT fails while a RETURNING has rows that nobody took.
    rows = db.execute(
        f"""
        UPDATE executions SET {change}
        WHERE execution_id IN (SELECT value FROM json_each(:ids)) AND state >= 6 AND {guard}
        RETURNING {EXECUTION}
        """,
        {"ids": json.dumps(execution_ids), "now": microseconds_since_epoch(now)},
    ).fetchall()
    return [execution_from(row) for row in rows]


def _found(query: PruneQuery) -> str:
    of_task = "task_id = :task_id AND" if query.task_id else ""
    page = f"""
        {of_task} end_time <= :before AND (end_time, seq) > (:end_time, :seq) ORDER BY end_time, seq LIMIT :limit + 0
    """
    suffix = "_of_task" if query.task_id else ""
    if query.logs_only:
        index = f"executions_log_kept{suffix}"
        return f"""
            SELECT execution_id, job_id, log_bytes, end_time, seq FROM executions INDEXED BY {index}
            WHERE log_bytes > 0 AND {page}
        """
    return f"""
        SELECT executions.execution_id, job_id, log_bytes, ended.end_time, ended.seq
        FROM (SELECT job_id, end_time, seq FROM jobs INDEXED BY jobs_ended{suffix} WHERE state >= 6 AND {page}) AS ended
        CROSS JOIN executions USING (job_id)
        ORDER BY ended.end_time, ended.seq
    """


def _values(query: PruneQuery, after: PruneCursor, limit: int) -> dict[str, object]:
    return {
        "before": microseconds_since_epoch(query.before),
        "task_id": query.task_id,
        "limit": limit,
    } | after._asdict()


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else time_from(microseconds)


def inputs_in_use(db: Connection, checksums: Collection[str]) -> Set[str]:
    """Return those of the checksums that jobs name in their inputs."""
    found = db.execute(
        "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM job_inputs WHERE sha256 = value)",
        (json.dumps(list(checksums)),),
    )
    return {checksum for (checksum,) in found.fetchall()}
