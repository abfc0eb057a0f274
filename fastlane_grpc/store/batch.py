"""Many jobs that are enqueued by one transaction, each with an answer of its own.

A batch has the effect of its jobs enqueued one by one, in order. What refuses one job is its answer, and changes
nothing; what fails for lack of room on the disk, or by the disk itself, fails the batch as a whole."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from fastlane_grpc.errors import DiskFull, Refusal
from fastlane_grpc.model import ArrayPosition, Execution, Job, JobSpec, new_ids
from fastlane_grpc.store.database import Connection, sqlite3
from fastlane_grpc.store.enqueue import Enqueue, Quota
from fastlane_grpc.store.parts import parts
from fastlane_grpc.store.writer import Written

# The job and whether its request_id had made it before; or why it was refused.
Enqueued: TypeAlias = tuple[Job, bool] | Refusal

# Makes the unit of work of one job: called with its task, its spec, its request_id, its refusal and its array position.
MakeEnqueue: TypeAlias = Callable[[str, JobSpec, str, Refusal | None, ArrayPosition | None], Enqueue]

_Done: TypeAlias = Written[tuple[Job, bool]] | Refusal

_IDS_AT_ONCE = 256


class EnqueueBatch:
    """The unit of work of many jobs. It answers with one `Enqueued` for each, in their order."""

    def __init__(self, make: MakeEnqueue, quota: Quota) -> None:
        self._make = make
        self._quota = quota
        self._works: list[Enqueue] = []
        # The first job of each spec object.
        self._first: dict[int, Enqueue] = {}
        self._ids = _ids()

    def __len__(self) -> int:
        return len(self._works)

    def add(
        self,
        task_id: str,
        spec: JobSpec,
        request_id: str,
        refusal: Refusal | None = None,
        array: ArrayPosition | None = None,
    ) -> None:
        """Add a job. Jobs that share a spec object cost a fraction of others."""
        first = self._first.get(id(spec))
        if first is None or refusal or spec.cron:
            work = self._make(task_id, spec, request_id, refusal, array)
            if not refusal:
                self._first[id(spec)] = work
        else:
            work = first.sibling(next(self._ids), next(self._ids), task_id, request_id, array)
        self._works.append(work)

    def __call__(self, db: Connection) -> Written[Sequence[Enqueued]]:
        """DiskFull: nothing was stored, unless every job of the batch was stored before."""
        answers: list[Enqueued] = []
        changed: list[Execution] = []
        new_jobs = 0
        # Where there is no room for all, each job is looked at by itself: some may be stored already, others may fit.
        short = self._quota.refusal(db, len(self._works)) is not None
        for alone, works in groupby(self._works, lambda work: short or work.alone):
            for part in parts(list(works)):
                for written in _each(db, part) if alone else _together(db, part):
                    if isinstance(written, Refusal):
                        answers.append(written)
                    else:
                        answers.append(written.answer)
                        changed += written.changed
                        new_jobs += written.new_jobs
        return Written(answers, changed, new_jobs=new_jobs)


def _together(db: Connection, works: Sequence[Enqueue]) -> Sequence[_Done]:
    try:
        Enqueue.insert(db, works)
    except sqlite3.IntegrityError:
        # One of them was stored before, by this batch or an earlier call. SQLite has undone the statement.
        return _each(db, works)
    return [work.written for work in works]


def _each(db: Connection, works: Sequence[Enqueue]) -> Sequence[_Done]:
    return [_one(db, work) for work in works]


def _one(db: Connection, work: Enqueue) -> _Done:
    db.execute("SAVEPOINT one")
    written: _Done
    try:
        written = work(db)
    except DiskFull:
        raise
    except Refusal as refusal:
        db.execute("ROLLBACK TO one")
        written = refusal
    db.execute("RELEASE one")
    return written


def _ids() -> Iterator[str]:
    while True:
        yield from new_ids(_IDS_AT_ONCE)
