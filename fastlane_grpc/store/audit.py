"""The audit: one entry for each call that wrote, in the transaction of its first write.

A call sets `AUDITED`; the writer adds the entry when it commits. Writes by no call, as those of the dispatcher, have
none."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.parts import parts
from fastlane_grpc.store.rows import Row, microseconds_since_epoch, time_from

AUDIT_NAMES = ("time", "method", "caller", "certificate", "address", "task_id", "job_id", "execution_id", "detail")
_INSERT = f"INSERT INTO audit ({', '.join(AUDIT_NAMES)}) VALUES "
_VALUES = f"({', '.join('?' for _ in AUDIT_NAMES)})"
AUDIT = ", ".join(f"audit.{name}" for name in AUDIT_NAMES)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change that a caller asked for. Empty texts: several of these, or none. `detail`: the rest of the request, as
    JSON."""

    time: datetime
    method: str
    caller: str = ""
    certificate: str = ""
    address: str = ""
    task_id: str = ""
    job_id: str = ""
    execution_id: str = ""
    detail: str = ""

    @property
    def who(self) -> str:
        """The best name of the caller that is known."""
        return self.caller or self.certificate or self.address


class AuditedCall:
    """A call that writes. Its first write takes the entry along; if that write fails, the next one does."""

    __slots__ = ("entry", "job_id", "written")

    def __init__(self, entry: AuditEntry) -> None:
        self.entry = entry
        # Whether a write has taken the entry along.
        self.written = False
        # The job that the call made, or that its execution belongs to.
        self.job_id = entry.job_id


# The call that runs in this task; None: no call that writes.
AUDITED: ContextVar[AuditedCall | None] = ContextVar("audited", default=None)


def caller_name() -> str:
    """Return the name of the caller of the present call; empty: it has none."""
    call = AUDITED.get()
    return "" if call is None else call.entry.caller or call.entry.certificate


def caller_name_or_address() -> str:
    """Return the name of the caller of the present call, or else its address; empty: no call is made."""
    call = AUDITED.get()
    return "" if call is None else call.entry.who


def insert_entries(db: Connection, calls: Sequence[tuple[AuditedCall, str]]) -> None:
    """Insert the entries of calls, each with the job that its write was about."""
    rows = [_row(db, call.entry, job_id) for call, job_id in calls]
    for part in parts(rows):
        db.execute(_INSERT + ", ".join([_VALUES] * len(part)), [value for row in part for value in row])


def entry_from(row: Row) -> AuditEntry:
    """Return the entry of a row with the columns AUDIT."""
    time, *texts = row
    return AuditEntry(time_from(time), *texts)


def prune_entries(db: Connection, *, before: datetime, limit: int) -> int:
    """Delete entries from before that time, of the oldest `limit`. Return how many these were."""
    return db.execute(
        "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit ORDER BY seq LIMIT ? + 0) AND time < ?",
        (limit, microseconds_since_epoch(before)),
    ).rowcount


def _row(db: Connection, entry: AuditEntry, job_id: str) -> tuple[object, ...]:
    job_id = entry.job_id or job_id
    task_id = entry.task_id
    if job_id and not task_id:
        found = db.execute("SELECT task_id FROM jobs WHERE job_id = ?", (job_id,)).fetchall()
        task_id = found[0][0] if found else ""
    return (
        *(microseconds_since_epoch(entry.time), entry.method, entry.caller, entry.certificate, entry.address),
        *(task_id, job_id, entry.execution_id, entry.detail),
    )
