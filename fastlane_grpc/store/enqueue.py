"""Enqueue: a new job with its first execution. Many enqueues in one transaction take no more statements than one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from fastlane_grpc.errors import DiskFull, QueueFull, Refusal, RequestIdReused
from fastlane_grpc.machine.data_directory import least_free_bytes, least_free_inodes, missing_room
from fastlane_grpc.model import Execution, Job, JobSpec, Times, new_id
from fastlane_grpc.schedule import first, waiting_state
from fastlane_grpc.store.database import RETRY_SECONDS, Connection, sqlite3
from fastlane_grpc.store.queries import job_of
from fastlane_grpc.store.rows import (
    microseconds_or_none,
    microseconds_since_epoch,
    request_digest,
    spec_bytes,
    spec_from,
)
from fastlane_grpc.store.writer import Written
from fastlane_grpc.text.redaction import SecretNames

T = TypeVar("T")

# Rows of one statement, at most. For each power of two up to this SQLite keeps the statement prepared.
_MOST_ROWS = 64

_JOBS = """
    INSERT INTO jobs
        (job_id, execution_id, task_id, state, spec, create_time, request_id, request_digest, caller_address)
    VALUES """
_JOB = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
_EXECUTIONS = """
    INSERT INTO executions
        (execution_id, job_id, task_id, priority, run, attempt, state, state_time, create_time, due_time, expire_time)
    VALUES """
_EXECUTION = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LABELS = "INSERT INTO job_labels (name, value, create_time, seq) VALUES "
_LABEL = "(?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits for new jobs: how many executions may wait, and how many bytes and inodes must be free on the disk of
    `directory`."""

    directory: Path
    max_waiting: int
    min_free_bytes: int
    min_free_inodes: int = 0

    @classmethod
    def of(cls, directory: Path, *, max_waiting: int, min_free_bytes: int | None) -> "Quota":
        """Return the quota of the directory. `min_free_bytes` None: a value that fits the disk; 0: the disk is not
        checked."""
        if min_free_bytes is None:
            min_free_bytes = least_free_bytes(directory)
        return cls(directory, max_waiting, min_free_bytes, least_free_inodes(directory) if min_free_bytes else 0)

    def refusal(self, db: Connection, jobs: int) -> Refusal | None:
        """Return why so many more jobs are refused; None if they are not. It costs microseconds, once for many jobs: a
        count on one row, and a look at the disk."""
        [(waiting,)] = db.execute("SELECT waiting FROM kept").fetchall()
        if waiting + jobs > self.max_waiting:
            message = f"{waiting} executions wait, and {self.max_waiting} may; try again when some have begun"
            return QueueFull(message, retry_seconds=RETRY_SECONDS, limit=str(self.max_waiting))
        if self.min_free_bytes and (
            missing := missing_room(self.directory, least_bytes=self.min_free_bytes, least_inodes=self.min_free_inodes)
        ):
            return DiskFull(missing, retry_seconds=RETRY_SECONDS)
        return None


# Without a disk to look at, and with room for more than will ever wait.
NO_QUOTA = Quota(Path(), 1 << 62, 0)

DEFAULT_SECRET_NAMES = SecretNames()


class Enqueue:
    """A job to be stored. The answer is the job, and whether its `request_id` had made it before."""

    def __init__(
        self,
        task_id: str,
        spec: JobSpec,
        request_id: str,
        caller_address: str,
        time: datetime,
        quota: Quota = NO_QUOTA,
        secret_names: SecretNames = DEFAULT_SECRET_NAMES,
        refusal: Refusal | None = None,
    ) -> None:
        data = spec_bytes(spec)
        now = microseconds_since_epoch(time)
        due_time = first(spec, time).due_time
        state = waiting_state(due_time, time)
        execution = Execution(
            new_id(), new_id(), task_id, state, Times(time, due_time), time, expire_time=spec.expire_time
        )
        self._spec = spec
        self._spec_bytes = data
        self.job = Job(execution.job_id, task_id, spec, execution, time, state, 1, request_id, caller_address)
        self._quota = quota
        # Raised unless the job was kept before.
        self._refusal = refusal
        self._secret_names = secret_names
        # Nothing is compared with a job that came without a request_id.
        self._digest = request_digest(task_id, self._compared(spec)) if request_id else b""
        self._job_row = (
            execution.job_id,
            execution.id,
            task_id,
            state,
            data,
            now,
            request_id,
            self._digest,
            caller_address,
        )
        self._create_time = now
        self._execution_row = _execution_row(execution, spec.priority)

    def __call__(self, db: Connection) -> Written[tuple[Job, bool]]:
        """Raise RequestIdReused, QueueFull, DiskFull or its own refusal; for a job that exists, only the first."""
        if refusal := self._refusal or self._quota.refusal(db, 1):
            if (job := self._kept_before(db)) is None:
                raise refusal
            return Written((job, True))
        # Tried before it is looked for: nearly always it is new.
        kept = db.execute(
            f"{_JOBS} {_JOB} ON CONFLICT (task_id, request_id) WHERE request_id <> '' DO NOTHING", self._job_row
        )
        if not kept.rowcount:
            job = self._kept_before(db)
            assert job is not None, "what it conflicts with"
            return Written((job, True))
        db.execute(_EXECUTIONS + _EXECUTION, self._execution_row)
        _keep_labels(db, self._label_rows(_last_seq(kept)))
        return self._written

    @staticmethod
    def together(db: Connection, works: Sequence["Enqueue"]) -> Sequence[Written[tuple[Job, bool]]]:
        """Raise an error of SQLite if one of the jobs was stored before; QueueFull or DiskFull if there is no room for
        all."""
        if refusal := works[0]._quota.refusal(db, len(works)):
            raise refusal
        for part in _parts(works):
            kept = db.execute(
                _JOBS + ", ".join([_JOB] * len(part)), [value for work in part for value in work._job_row]
            )
            # The rows of one statement have consecutive numbers, each one more than the largest before.
            first_seq = _last_seq(kept) - len(part) + 1
            _keep_labels(db, [row for seq, work in enumerate(part, first_seq) for row in work._label_rows(seq)])
            db.execute(
                _EXECUTIONS + ", ".join([_EXECUTION] * len(part)),
                [value for work in part for value in work._execution_row],
            )
        return [work._written for work in works]

    @property
    def _written(self) -> Written[tuple[Job, bool]]:
        return Written((self.job, False), [self.job.execution])

    def _label_rows(self, seq: int) -> Sequence[tuple[str, str, int, int]]:
        return [(name, value, self._create_time, seq) for name, value in self._spec.labels.items()]

    def _kept_before(self, db: Connection) -> Job | None:
        found = db.execute(
            "SELECT job_id, request_digest, spec FROM jobs WHERE task_id = ? AND request_id = ? AND request_id <> ''",
            (self.job.task_id, self.job.request_id),
        ).fetchall()
        if not found:
            return None
        [(job_id, digest, spec)] = found
        # Which names are secret may have been set anew since the digest was made: then the specs themselves are
        # compared.
        if digest != self._digest and self._compared(spec_from(spec)) != self._compared(self._spec):
            raise RequestIdReused(self.job.request_id, job_id)
        return job_of(db, job_id)

    def _compared(self, spec: JobSpec) -> bytes:
        """Return what has to be the same in a repeated request.

        Secrets are not in it: neither the answer nor the time that it takes tells a caller whether a guess at one was
        right."""
        shown = spec.redacted(self._secret_names)
        return self._spec_bytes if shown is self._spec else spec_bytes(shown)


def insert_execution(db: Connection, execution: Execution, priority: int) -> None:
    """Insert an execution of a stored job."""
    db.execute(_EXECUTIONS + _EXECUTION, _execution_row(execution, priority))


def _execution_row(execution: Execution, priority: int) -> tuple[object, ...]:
    now, due_time = microseconds_since_epoch(execution.state_time), microseconds_since_epoch(execution.times.due_time)
    expire_time = microseconds_or_none(execution.expire_time)
    return (
        *(execution.id, execution.job_id, execution.task_id, priority, execution.run, execution.attempt),
        *(execution.state, now, now, due_time, expire_time),
    )


def _keep_labels(db: Connection, rows: Sequence[tuple[str, str, int, int]]) -> None:
    for part in _parts(rows):
        db.execute(_LABELS + ", ".join([_LABEL] * len(part)), [value for row in part for value in row])


def _last_seq(kept: "sqlite3.Cursor") -> int:
    assert kept.lastrowid is not None, "a row was inserted"
    return kept.lastrowid


def _parts(works: Sequence[T]) -> Iterator[Sequence[T]]:
    begin = 0
    while left := len(works) - begin:
        size = min(1 << left.bit_length() - 1, _MOST_ROWS)
        yield works[begin : begin + size]
        begin += size
