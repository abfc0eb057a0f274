"""Enqueue: a new job with its first execution. Many enqueues in one transaction take no more statements than one."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from fastlane_grpc.errors import DiskFull, QueueFull, Refusal, RequestIdReused, UniqueKeyTaken
from fastlane_grpc.machine.data_directory import least_free_bytes, least_free_inodes, missing_room
from fastlane_grpc.model import ArrayPosition, Conflict, Execution, Hold, Job, JobSpec, State, Times, Unique, new_id
from fastlane_grpc.schedule import first, waiting_state
from fastlane_grpc.store.database import RETRY_SECONDS, Connection, sqlite3
from fastlane_grpc.store.outbox import note_jobs
from fastlane_grpc.store.parts import parts
from fastlane_grpc.store.queries import job_of
from fastlane_grpc.store.rows import (
    microseconds_or_none,
    microseconds_since_epoch,
    request_digest,
    schedule_text,
    spec_bytes,
    spec_from,
    unwatched_limit_of,
)
from fastlane_grpc.store.writer import Written
from fastlane_grpc.text.redaction import SecretNames

# Stops the job with the first id, as the second one takes its place. Returns the executions that changed.
StopHolder: TypeAlias = Callable[[Connection, str, str], list[Execution]]

_JOBS = """
    INSERT INTO jobs
        (job_id, execution_id, task_id, state, spec, create_time, request_id, request_digest, caller_address,
        schedule, unique_key, unwatched_limit, array_index, array_size, caller, trace)
    VALUES """
_JOB = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_EXECUTIONS = """
    INSERT INTO executions
        (execution_id, job_id, task_id, priority, run, attempt, state, state_time, create_time, due_time, expire_time,
        tick_time, tries, memory_bytes, held)
    VALUES """
_EXECUTION = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
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

# A job whose spec is the one it came with has no digest: repeated requests are compared with the spec.
NO_DIGEST = b""


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
        job_id: str | None = None,
        stop_holder: "StopHolder | None" = None,
        array: ArrayPosition | None = None,
        caller: str = "",
        trace: str = "",
    ) -> None:
        """`trace`: the context of the call, as text."""
        data = spec_bytes(spec)
        now = microseconds_since_epoch(time)
        self._spec = spec
        self.job = first_job(job_id or new_id(), task_id, spec, time, request_id, caller_address, array, caller)
        execution, state = self.job.execution, self.job.state
        # Stops a job that holds the unique key of this one.
        self._stop_holder = stop_holder
        self._quota = quota
        # Raised unless the job was kept before.
        self._refusal = refusal
        self._secret_names = secret_names
        self._job_row = (
            execution.job_id,
            execution.id,
            task_id,
            state,
            data,
            now,
            request_id,
            NO_DIGEST,
            caller_address,
            schedule_text(self.job.schedule),
            spec.unique.key if spec.unique else "",
            unwatched_limit_of(spec),
            *((array.index, array.size) if array else (None, None)),
            caller,
            trace,
        )
        self._create_time = now
        self._execution_row = _execution_row(execution, spec.priority)

    def sibling(
        self, job_id: str, execution_id: str, task_id: str, request_id: str, array: ArrayPosition | None
    ) -> "Enqueue":
        """Return one more job of the same spec, enqueued at the same time, at a fraction of the cost. Not for a
        schedule, whose jitter depends on the id of its job."""
        sibling = Enqueue.__new__(Enqueue)
        sibling.__dict__.update(self.__dict__)
        job, its = self.job, self.job.execution
        # Called directly: `replace` takes three times as long.
        execution = Execution(
            *(execution_id, job_id, task_id, its.state, its.times, its.state_time), expire_time=its.expire_time
        )
        sibling.job = Job(
            *(job_id, task_id, job.spec, execution, job.create_time, job.state, 1, request_id, job.caller_address),
            array=array,
            caller=job.caller,
        )
        row = self._job_row
        place = (array.index, array.size) if array else (None, None)
        sibling._job_row = (job_id, execution_id, task_id, *row[3:6], request_id, *row[7:12], *place, *row[14:])
        sibling._execution_row = (execution_id, job_id, task_id, *self._execution_row[3:])
        return sibling

    @property
    def alone(self) -> bool:
        """Whether the request cannot be stored together with others."""
        return self._refusal is not None or self._spec.unique is not None

    def __call__(self, db: Connection) -> Written[tuple[Job, bool]]:
        """Raise RequestIdReused, QueueFull, DiskFull or its own refusal; for a job that exists, only the first."""
        if refusal := self._refusal or self._quota.refusal(db, 1):
            if (job := self._kept_before(db)) is None:
                raise refusal
            return Written((job, True), job_id=job.id)
        if self._spec.unique:
            return self._unique(db, self._spec.unique)
        return self._insert(db)

    def _insert(self, db: Connection) -> Written[tuple[Job, bool]]:
        # Tried before it is looked for: nearly always it is new.
        kept = db.execute(
            f"{_JOBS} {_JOB} ON CONFLICT (task_id, request_id) WHERE request_id <> '' DO NOTHING", self._job_row
        )
        if not kept.rowcount:
            job = self._kept_before(db)
            assert job is not None, "what it conflicts with"
            return Written((job, True), job_id=job.id)
        db.execute(_EXECUTIONS + _EXECUTION, self._execution_row)
        keep_labels(db, self._label_rows(_last_seq(kept)))
        if self._spec.notifications:
            note_jobs(db, [self.job.id])
        return self.written

    def _unique(self, db: Connection, unique: Unique) -> Written[tuple[Job, bool]]:
        """Insert the job, if no job holds its unique key. Raise UniqueKeyTaken, or do what the job says."""
        if self.job.request_id and (job := self._kept_before(db)):
            return Written((job, True), job_id=job.id)
        holders = key_holders(db, self.job.task_id, unique.key)
        if not holders:
            return self._insert(db)
        if unique.conflict is Conflict.USE_EXISTING:
            return Written((job_of(db, holders[0]), True), job_id=holders[0])
        if unique.conflict is not Conflict.REPLACE or self._stop_holder is None:
            raise UniqueKeyTaken(unique.key, holders[0])
        changed = [each for holder in holders for each in self._stop_holder(db, holder, self.job.id)]
        # They end first, if they run.
        work = self._held() if key_holders(db, self.job.task_id, unique.key) else self
        written = work._insert(db)
        return Written(written.answer, [*changed, *written.changed], new_jobs=written.new_jobs, job_id=written.job_id)

    def _held(self) -> "Enqueue":
        """Return a copy of the job that waits for its unique key. This one stays as it is: the unit may be run again,
        on a database in which no job holds the key."""
        held = copy(self)
        execution = replace(self.job.execution, state=State.SCHEDULED, hold=Hold.UNIQUE_KEY)
        held.job = replace(self.job, state=State.SCHEDULED, execution=execution)
        held._execution_row = _execution_row(execution, self._spec.priority)
        held._job_row = (*self._job_row[:3], State.SCHEDULED, *self._job_row[4:])
        return held

    @staticmethod
    def together(db: Connection, works: Sequence["Enqueue"]) -> Sequence[Written[tuple[Job, bool]]]:
        """Raise an error of SQLite if one of the jobs was stored before; QueueFull or DiskFull if there is no room for
        all."""
        if refusal := works[0]._quota.refusal(db, len(works)):
            raise refusal
        for part in parts(works):
            Enqueue.insert(db, part)
        return [work.written for work in works]

    @staticmethod
    def insert(db: Connection, works: Sequence["Enqueue"]) -> None:
        """Insert a part of `parts`. Raise an IntegrityError, and insert none, if a job was stored before."""
        kept = db.execute(_JOBS + ", ".join([_JOB] * len(works)), [value for work in works for value in work._job_row])
        # The rows of one statement have consecutive numbers, each one more than the largest before.
        first_seq = _last_seq(kept) - len(works) + 1
        keep_labels(db, [row for seq, work in enumerate(works, first_seq) for row in work._label_rows(seq)])
        if notifying := [work.job.id for work in works if work._spec.notifications]:
            note_jobs(db, notifying)
        db.execute(
            _EXECUTIONS + ", ".join([_EXECUTION] * len(works)),
            [value for work in works for value in work._execution_row],
        )

    @property
    def written(self) -> Written[tuple[Job, bool]]:
        """The answer to a job that is new."""
        return Written((self.job, False), [self.job.execution], new_jobs=1, job_id=self.job.id)

    def _label_rows(self, seq: int) -> Sequence[tuple[str, str, int, int]]:
        return [(name, value, self._create_time, seq) for name, value in self._spec.labels.items()]

    def _kept_before(self, db: Connection) -> Job | None:
        found = db.execute(
            """
            SELECT job_id, request_digest, spec, array_size FROM jobs
            WHERE task_id = ? AND request_id = ? AND request_id <> ''
            """,
            (self.job.task_id, self.job.request_id),
        ).fetchall()
        if not found:
            return None
        [(job_id, digest, spec, size)] = found
        array = self.job.array
        compared = _compared(self._spec, array.size if array else None, self._secret_names)
        # Which names are secret may have been set anew since the digest was made: then the specs themselves are
        # compared.
        if digest != request_digest(self.job.task_id, compared) and compared != _compared(
            spec_from(spec), size, self._secret_names
        ):
            raise RequestIdReused(self.job.request_id, job_id)
        return job_of(db, job_id)


def digest_of(job: Job, secret_names: SecretNames) -> bytes:
    """Return the digest that stands for the spec of a job in comparisons with repeated requests. It is written when
    the spec is replaced."""
    assert job.spec is not None, "read with the job"
    return request_digest(job.task_id, _compared(job.spec, job.array.size if job.array else None, secret_names))


def _compared(spec: JobSpec, array_size: int | None, secret_names: SecretNames) -> bytes:
    """Return what has to be the same in a repeated request. The request_id of a job in an array has its index.

    Secrets are not in it: neither the answer nor the time that it takes tells a caller whether a guess at one was
    right."""
    compared = spec_bytes(spec.redacted(secret_names))
    return compared if array_size is None else compared + b" x %d" % array_size


def insert_execution(db: Connection, execution: Execution, priority: int) -> None:
    """Insert an execution of a stored job."""
    db.execute(_EXECUTIONS + _EXECUTION, _execution_row(execution, priority))


def _execution_row(execution: Execution, priority: int) -> tuple[object, ...]:
    now, due_time = microseconds_since_epoch(execution.state_time), microseconds_since_epoch(execution.times.due_time)
    expire_time = microseconds_or_none(execution.expire_time)
    return (
        *(execution.id, execution.job_id, execution.task_id, priority, execution.run, execution.attempt),
        *(execution.state, now, now, due_time, expire_time),
        *(microseconds_or_none(execution.tick_time), execution.tries, execution.memory_bytes, execution.hold),
    )


def first_job(
    job_id: str,
    task_id: str,
    spec: JobSpec,
    now: datetime,
    request_id: str = "",
    caller_address: str = "",
    array: ArrayPosition | None = None,
    caller: str = "",
) -> Job:
    """Return a job as it is enqueued now, with its first execution."""
    if spec.starts_at_once:
        execution = Execution(
            new_id(), job_id, task_id, State.QUEUED, Times(now, now), now, expire_time=spec.expire_time
        )
        return Job(
            *(job_id, task_id, spec, execution, now, State.QUEUED, 1, request_id, caller_address),
            array=array,
            caller=caller,
        )
    following = first(job_id, spec, now)
    assert following.next is not None, "a job has a first execution"
    begin = following.next
    # What is scheduled for a tick is queued by the tick.
    state = State.SCHEDULED if begin.tick_time else waiting_state(begin.due_time, now, begin.hold)
    execution = Execution(
        new_id(),
        job_id,
        task_id,
        state,
        Times(now, begin.due_time),
        now,
        expire_time=spec.expire_time,
        tick_time=begin.tick_time,
        hold=begin.hold,
    )
    return Job(
        *(job_id, task_id, spec, execution, now, state, 1, request_id, caller_address),
        schedule=following.schedule,
        array=array,
        caller=caller,
    )


def key_holders(db: Connection, task_id: str, key: str) -> list[str]:
    """Return the ids of the jobs of the task that are not final and have this unique key, the oldest one first."""
    rows = db.execute(
        f"""
        SELECT job_id FROM jobs INDEXED BY jobs_unique
        WHERE task_id = ? AND unique_key = ? AND unique_key <> '' AND state < {State.SUCCEEDED} ORDER BY seq
        """,
        (task_id, key),
    ).fetchall()
    return [job_id for (job_id,) in rows]


def keep_labels(db: Connection, rows: Sequence[tuple[str, str, int, int]]) -> None:
    """Insert rows by which jobs are found: name, value, create time and `seq` of a job."""
    for part in parts(rows):
        db.execute(_LABELS + ", ".join([_LABEL] * len(part)), [value for row in part for value in row])


def _last_seq(kept: "sqlite3.Cursor") -> int:
    assert kept.lastrowid is not None, "a row was inserted"
    return kept.lastrowid
