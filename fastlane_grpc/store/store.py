"""The store of tasks, jobs and executions. Each public method is one transaction. A transition that has lost a race
changes nothing."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from fastlane_grpc.errors import DiskFull, Refusal, StoreFailed
from fastlane_grpc.machine.data_directory import free_bytes, free_inodes, is_full
from fastlane_grpc.model import (
    Assignment,
    Execution,
    Job,
    JobSpec,
    LogTotals,
    Outcome,
    Reason,
    State,
    StopCause,
    Task,
    utc_now,
)
from fastlane_grpc.schedule import After, after
from fastlane_grpc.store import due, pruning
from fastlane_grpc.store.database import Connection, open_for_reading, open_for_writing
from fastlane_grpc.store.due import Promotion
from fastlane_grpc.store.enqueue import DEFAULT_SECRET_NAMES, NO_QUOTA, Enqueue, Quota
from fastlane_grpc.store.job_state import follow, follow_claim, note_stop, settle
from fastlane_grpc.store.lists import ExecutionQuery, JobQuery, Page, page_of_executions, page_of_jobs, page_of_tasks
from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.pruning import Count, PruneCandidate, PruneCursor, PruneQuery, RetentionTotals
from fastlane_grpc.store.queries import CURRENT, ahead_of, assignment_of, execution_of, job_of, spec_of, task_of
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.reserve import Reserve
from fastlane_grpc.store.rows import (
    EXECUTION,
    execution_from,
    logs_text,
    microseconds_of,
    microseconds_or_none,
    microseconds_since_epoch,
    spec_from,
)
from fastlane_grpc.store.writer import Writer, Written
from fastlane_grpc.supervisor import ALONE, Supervisor
from fastlane_grpc.text.redaction import SecretNames

# A store that has less room than this is not taken for one that can write again.
PROBE_FREE_BYTES = 1 << 20
PROBE_FREE_INODES = 16


class Store:
    """Each method except `close` returns a Pending: await it on the loop, take its `result()` on any other thread.

    Those that write raise DiskFull or StoreFailed where nothing could be kept. Those a runner calls (`starting`,
    `running`, `time_out`, `requeue`, `finish`) do not: they are tried again until they are stored. ServerStopping: the
    store was closed before."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        on_commit: Callable[[Sequence[Execution]], None],
        loop: asyncio.AbstractEventLoop,
        quota: Quota | None = None,
        secret_names: SecretNames = DEFAULT_SECRET_NAMES,
        on_failure: Callable[[], None] = lambda: None,
        supervisor: Supervisor = ALONE,
    ) -> Self:
        """Open the store in `directory`, or make it. It takes jobs up to `quota`. StoreFailed if it cannot be
        opened.

        After each commit, on the loop, `on_commit` is given every change that the commit made to an execution (a new
        one is a change), in their order: of an execution that changed twice, the last one is how it is now. Callers on
        the loop were woken before; those on threads are woken after it was called for, so whatever they do next comes
        to the loop later. `on_failure` is called, on the loop as well, when something could not be written."""
        path = directory / "fastlane.db"
        reserve = Reserve(directory)
        db = _open_with_reserve(path, reserve)
        reserve.make()
        try:
            instance, readers = _instance(path), Readers(path, loop=loop, supervisor=supervisor)
        except BaseException:
            db.close()
            raise
        try:
            writer = Writer(
                db,
                path,
                loop=loop,
                on_commit=on_commit,
                on_failure=on_failure,
                supervisor=supervisor,
                reserve=reserve,
            )
        except BaseException:
            readers.close()
            db.close()
            raise
        return cls(writer, readers, instance=instance, quota=quota, secret_names=secret_names)

    def __init__(
        self,
        writer: Writer,
        readers: Readers,
        *,
        instance: str,
        now: Callable[[], datetime] = utc_now,
        quota: Quota | None = None,
        secret_names: SecretNames = DEFAULT_SECRET_NAMES,
        after: After = after,
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._now = now
        self._quota = quota or NO_QUOTA
        self._secret_names = secret_names
        # What follows the end of an execution.
        self._after = after
        self.instance = instance

    def close(self, timeout: float | None = None) -> None:
        """Finish the calls that were made; later ones raise ServerStopping. Blocks; each thread has `timeout` seconds
        to end."""
        self._readers.close(timeout)
        # The last connection that closes moves the log of SQLite into the file: that is to be the writer's.
        self._writer.close(timeout)

    # ---- what callers ask for

    def enqueue(
        self, *, task_id: str, spec: JobSpec, request_id: str, caller_address: str, refusal: Refusal | None = None
    ) -> Pending[tuple[Job, bool]]:
        """Store a job with its first execution, queued or scheduled. Return the job, and whether `request_id` had made
        it before. For a new job `refusal` is raised, if there is one.

        RequestIdReused: it had made another; secrets are not compared. QueueFull, DiskFull: no more jobs are taken now.
        """
        work = Enqueue(task_id, spec, request_id, caller_address, self._now(), self._quota, self._secret_names, refusal)
        return self._writer.write(work, many=None if refusal else Enqueue.together)

    def stop(
        self, job_id: str, *, grace: timedelta | None, note: str, carried_out_since: datetime | None = None
    ) -> Pending[Job]:
        """Stop the job: no execution follows the current one. Without a `grace`, the grace of the job counts.

        An execution that is scheduled or queued becomes STOPPED, one that is claimed becomes STOPPING. For one that is
        STOPPING, only a shorter grace counts. One that is final stays as it is. JobNotFound.

        `carried_out_since`: the time at which the runner got this stop. The stop is then tried until it is stored."""

        def work(db: Connection) -> Written[Job]:
            now = carried_out_since or self._now()
            its_grace = spec_of(db, job_id).grace if grace is None else grace
            note_stop(db, job_id, now)
            changed = self._stop(db, CURRENT, {"job_id": job_id}, now, its_grace, note)
            return Written(job_of(db, job_id), changed)

        return self._writer.write_until_stored(work) if carried_out_since else self._writer.write(work, vital=True)

    def stop_execution(
        self, execution_id: str, *, grace: timedelta | None, note: str, carried_out_since: datetime | None = None
    ) -> Pending[Execution]:
        """Stop exactly this execution, as `stop` does. ExecutionNotFound."""

        def work(db: Connection) -> Written[Execution]:
            now = carried_out_since or self._now()
            its_grace = assignment_of(db, execution_id).spec.grace if grace is None else grace
            changed = self._stop(db, _THIS, {"execution_id": execution_id}, now, its_grace, note)
            return Written(execution_of(db, execution_id), changed)

        return self._writer.write_until_stored(work) if carried_out_since else self._writer.write(work, vital=True)

    def _stop(
        self,
        db: Connection,
        which: str,
        of: Mapping[str, object],
        now: datetime,
        grace: timedelta,
        note: str,
    ) -> list[Execution]:
        """Stop the execution with the seq that `which`, SQL with the values `of`, selects. Return the executions that
        changed."""
        order = {**of, "now": microseconds_since_epoch(now), "grace": microseconds_of(grace), "note": note}
        if execution := _stop_unclaimed(db, which, order):
            return [execution, *settle(db, execution, now, self._after)]
        if execution := _stop_claimed(db, which, order):
            follow(db, execution)
            return [execution]
        execution = _shorten_grace(db, which, order)
        return [execution] if execution else []

    def job(self, job_id: str) -> Pending[Job]:
        """Return the job. JobNotFound."""
        return self._readers.read(lambda db: job_of(db, job_id))

    def job_in_line(self, job_id: str, most: int) -> Pending[tuple[Job, int]]:
        """Return the job, and how many executions go before its own, in one step of a thread. JobNotFound."""

        def work(db: Connection) -> tuple[Job, int]:
            job = job_of(db, job_id)
            return job, ahead_of(db, job.execution.id, most) if job.execution.state is State.QUEUED else 0

        return self._readers.read(work)

    def execution_in_line(self, execution_id: str, most: int) -> Pending[tuple[Execution, int]]:
        """Return the execution, and how many go before it, in one step of a thread. ExecutionNotFound."""

        def work(db: Connection) -> tuple[Execution, int]:
            execution = execution_of(db, execution_id)
            return execution, ahead_of(db, execution.id, most) if execution.state is State.QUEUED else 0

        return self._readers.read(work)

    def execution(self, execution_id: str) -> Pending[Execution]:
        """Return the execution. ExecutionNotFound."""
        return self._readers.read(lambda db: execution_of(db, execution_id))

    def task(self, task_id: str) -> Pending[Task]:
        """Return the task. TaskNotFound."""
        return self._readers.read(lambda db: task_of(db, task_id))

    def jobs(self, query: JobQuery, *, after: tuple[int, int] | None = None, size: int) -> Pending[Page[Job]]:
        """Return a page of at most `size` after `after`, newest first."""
        return self._readers.read(lambda db: page_of_jobs(db, query, after, size))

    def executions(
        self, query: ExecutionQuery, *, after: tuple[int] | None = None, size: int
    ) -> Pending[Page[Execution]]:
        """Return a page of at most `size` after `after`, newest first."""
        return self._readers.read(lambda db: page_of_executions(db, query, after, size))

    def tasks(self, *, after: tuple[str] | None = None, size: int) -> Pending[Page[Task]]:
        """Return a page of at most `size` tasks after `after`, by name."""
        return self._readers.read(lambda db: page_of_tasks(db, after, size))

    def ahead(self, execution_id: str, most: int) -> Pending[int]:
        """Count the queued executions of the same task and priority that go before this one, up to `most`; 0 if this
        one is not queued."""
        return self._readers.read(lambda db: ahead_of(db, execution_id, most))

    # ---- what the dispatcher asks for

    def promote(self, limit: int) -> Pending[Promotion]:
        """End executions that were not claimed by their expire_time, and queue those that are due: the oldest ones, at
        most `limit` in all."""

        def work(db: Connection) -> Written[Promotion]:
            now = self._now()
            expired = due.expire(db, now, limit)
            following = [each for execution in expired for each in settle(db, execution, now, self._after)]
            queued = due.promote(db, now, limit - len(expired))
            for execution in queued:
                follow(db, execution)
            changed = [*expired, *following, *queued]
            return Written(Promotion(len(expired) + len(queued) == limit, due.next_time(db)), changed)

        return self._writer.write(work)

    def next_due_time(self) -> Pending[datetime | None]:
        """Return the earliest time at which an execution is due or has expired; None if none waits for a time."""
        return self._readers.read(due.next_time)

    def claim_on(self, hosts: Sequence[str]) -> Pending[list[Assignment]]:
        """Claim a queued execution for each of `hosts`, as long as there are any. The highest priority goes first;
        within a priority tasks take turns; within a task the execution that was due first goes first."""

        def work(db: Connection) -> Written[list[Assignment]]:
            now = microseconds_since_epoch(self._now())
            claimed: list[Assignment] = []
            for host in hosts:
                execution = _claim_next(db, host, now)
                if execution is None:
                    break
                claimed.append(Assignment(execution, follow_claim(db, execution)))
            return Written(claimed, [assignment.execution for assignment in claimed])

        return self._writer.write(work)

    def unfinished(self) -> Pending[list[Assignment]]:
        """Return the executions that were claimed and are not final, in the order of their claims."""

        def work(db: Connection) -> list[Assignment]:
            rows = db.execute(
                f"""
                SELECT spec, {EXECUTION} FROM executions INDEXED BY executions_state CROSS JOIN jobs USING (job_id)
                WHERE executions.state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING})
                ORDER BY claim_time, executions.seq
                """
            ).fetchall()
            return [Assignment(execution_from(row[1:]), spec_from(row[0])) for row in rows]

        return self._readers.read(work)

    def assignment(self, execution_id: str) -> Pending[Assignment]:
        """Return the execution with the spec of its job. ExecutionNotFound."""
        return self._readers.read(lambda db: assignment_of(db, execution_id))

    # ---- what a runner tells

    def starting(
        self,
        execution_id: str,
        *,
        container_id: str,
        handle: str,
        image_digest: str,
        pull_time: datetime | None,
        container_time: datetime | None,
    ) -> Pending[Execution | None]:
        """Commit that the one start is about to be sent (the fence). A caller that gets the execution may send it.
        None: the execution was told to stop, has expired, or a start may have been sent before.

        `handle` is what the backend remembers of the container, as JSON; `container_id` is for callers."""

        def work(db: Connection) -> Written[Execution | None]:
            return _written(
                _update(
                    db,
                    f"""
                    UPDATE executions
                    SET starting = 1, container_id = :container_id, handle = :handle,
                        image_digest = :image_digest, pull_time = :pull_time, container_time = :container_time
                    WHERE execution_id = :execution_id AND state = {State.PREPARING} AND NOT starting
                        AND (expire_time IS NULL OR expire_time >= :now)
                    """,
                    now=microseconds_since_epoch(self._now()),
                    execution_id=execution_id,
                    container_id=container_id,
                    handle=handle,
                    image_digest=image_digest,
                    pull_time=microseconds_or_none(pull_time),
                    container_time=microseconds_or_none(container_time),
                )
            )

        return self._writer.write_until_stored(work)

    def running(self, execution_id: str, *, start_time: datetime) -> Pending[Execution | None]:
        """Note that the container has started: PREPARING becomes RUNNING, STOPPING gets a start time. None: the
        execution is final, or queued."""

        def work(db: Connection) -> Written[Execution | None]:
            return _followed(
                db,
                _update(
                    db,
                    f"""
                    UPDATE executions
                    SET start_time = coalesce(start_time, :start_time),
                        state = iif(state = {State.PREPARING}, {State.RUNNING}, state),
                        state_time = iif(state = {State.PREPARING}, :now, state_time)
                    WHERE execution_id = :execution_id
                        AND state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING})
                    """,
                    execution_id=execution_id,
                    start_time=microseconds_since_epoch(start_time),
                    now=microseconds_since_epoch(self._now()),
                ),
            )

        return self._writer.write_until_stored(work)

    def time_out(self, execution_id: str, *, grace: timedelta) -> Pending[Execution | None]:
        """Move an execution from RUNNING to STOPPING, because of its timeout. None: it is not RUNNING."""

        def work(db: Connection) -> Written[Execution | None]:
            return _followed(
                db,
                _update(
                    db,
                    f"""
                    UPDATE executions
                    SET state = {State.STOPPING}, state_time = :now,
                        stop_cause = '{StopCause.TIMEOUT.value}', stop_time = :now, stop_grace = :grace, stop_note = ''
                    WHERE execution_id = :execution_id AND state = {State.RUNNING}
                    """,
                    execution_id=execution_id,
                    now=microseconds_since_epoch(self._now()),
                    grace=microseconds_of(grace),
                ),
            )

        return self._writer.write_until_stored(work)

    def requeue(self, execution_id: str, *, logs: Sequence[LogTotals] = (), log_bytes: int = 0) -> Pending[Execution]:
        """Put an execution back into the queue, at the position it had, if it is PREPARING and no start was sent.
        Return the execution as it is then. ExecutionNotFound.

        `logs` and `log_bytes`: fastlane's lines so far, and the bytes that the log takes on the disk. They count if the
        execution ends in the queue."""

        def work(db: Connection) -> Written[Execution]:
            execution = _update(
                db,
                f"""
                UPDATE executions
                SET state = {State.QUEUED}, state_time = :now,
                    claim_time = NULL, pull_time = NULL, container_time = NULL,
                    host = '', container_id = '', image_digest = '', handle = '',
                    logs = :logs, log_bytes = :log_bytes
                WHERE execution_id = :execution_id AND state = {State.PREPARING} AND NOT starting
                """,
                execution_id=execution_id,
                logs=logs_text(logs),
                log_bytes=log_bytes,
                now=microseconds_since_epoch(self._now()),
            )
            if execution is None:
                return Written(execution_of(db, execution_id))
            follow(db, execution)
            return Written(execution, [execution])

        return self._writer.write_until_stored(work)

    def revoked(self, execution_id: str) -> Pending[Execution | None]:
        """Note that a start that may have been sent can have no effect any more: the execution is as before the fence.
        None: it has started, or is final."""

        def work(db: Connection) -> Written[Execution | None]:
            return _written(
                _update(
                    db,
                    f"""
                    UPDATE executions
                    SET starting = 0, container_id = '', handle = '',
                        pull_time = NULL, container_time = NULL
                    WHERE execution_id = :execution_id AND state IN ({State.PREPARING}, {State.STOPPING})
                        AND start_time IS NULL
                    """,
                    execution_id=execution_id,
                )
            )

        return self._writer.write_until_stored(work)

    def finish(
        self,
        execution_id: str,
        *,
        state: State,
        outcome: Outcome,
        logs: Sequence[LogTotals],
        log_bytes: int = 0,
        exit_time: datetime | None = None,
        seal_time: datetime | None = None,
        first_byte_time: datetime | None = None,
        start_time: datetime | None = None,
    ) -> Pending[Execution]:
        """Move an execution that is not final to the final `state`; return one that is final as it is. Times that are
        None stay as they are. ExecutionNotFound.

        `log_bytes`: what its log takes on the disk; 0: it has no log.
        """
        if not state.final:
            raise ValueError(f"{state.name} is not final")

        def work(db: Connection) -> Written[Execution]:
            now = self._now()
            execution = _update(
                db,
                f"""
                UPDATE executions
                SET state = :state, state_time = :now, end_time = :now,
                    reason = :reason, detail = :detail, exit_code = :exit_code,
                    out_of_memory = :out_of_memory, stop_signal = :stop_signal,
                    logs = :logs, log_bytes = :log_bytes,
                    exit_time = coalesce(:exit_time, exit_time), seal_time = coalesce(:seal_time, seal_time),
                    first_byte_time = coalesce(:first_byte_time, first_byte_time),
                    start_time = coalesce(:start_time, start_time)
                WHERE execution_id = :execution_id AND state < {State.SUCCEEDED}
                """,
                execution_id=execution_id,
                state=state,
                now=microseconds_since_epoch(now),
                reason=outcome.reason,
                detail=outcome.detail,
                exit_code=outcome.exit_code,
                out_of_memory=outcome.out_of_memory,
                stop_signal=outcome.stop_signal,
                logs=logs_text(logs),
                log_bytes=log_bytes,
                exit_time=microseconds_or_none(exit_time),
                seal_time=microseconds_or_none(seal_time),
                first_byte_time=microseconds_or_none(first_byte_time),
                start_time=microseconds_or_none(start_time),
            )
            if execution is None:
                return Written(execution_of(db, execution_id))
            return Written(execution, [execution, *settle(db, execution, now, self._after)])

        return self._writer.write_until_stored(work)

    def probe(self) -> Pending[None]:
        """Write something that changes nothing, down to the disk. DiskFull or StoreFailed: that was not possible."""

        def work(db: Connection) -> Written[None]:
            db.execute("UPDATE kept SET waiting = waiting")
            # A write as small as this may fit where a larger one has failed: SQLite's log keeps the space it was given.
            if (free := free_bytes(self._writer.path.parent)) < PROBE_FREE_BYTES:
                raise DiskFull(f"there are {free} bytes left to write {self._writer.path}")
            if (inodes := free_inodes(self._writer.path.parent)) is not None and inodes < PROBE_FREE_INODES:
                raise DiskFull(f"there are {inodes} inodes left beside {self._writer.path}")
            return Written(None)

        return self._writer.write(work)

    # ---- what retention asks for

    def retention_totals(self) -> Pending[RetentionTotals]:
        """Return the earliest ends of what is kept, and what the logs take on the disk."""
        return self._readers.read(pruning.retention_totals)

    def oldest(
        self, query: PruneQuery, *, after: PruneCursor = PruneQuery.START, limit: int
    ) -> Pending[list[PruneCandidate]]:
        """Return the first candidates after that cursor: those of at most `limit` logs, or all executions of at most
        `limit` jobs."""
        return self._readers.read(lambda db: pruning.oldest(db, query, after, limit))

    def count(self, query: PruneQuery, *, limit: int) -> Pending[Count]:
        """Count what the query finds, up to `limit` logs or jobs."""
        return self._readers.read(lambda db: pruning.count(db, query, limit))

    def mark_pruned(self, execution_ids: Sequence[str]) -> Pending[None]:
        """Note that these logs are being deleted. To be called before their files are deleted, so that no reader takes
        a deleted log for a lost one."""
        return self._writer.write(
            lambda db: Written(None, pruning.mark_pruned(db, execution_ids, self._now())), vital=True
        )

    def forget_logs(self, execution_ids: Sequence[str]) -> Pending[None]:
        """Note that the files of these logs are deleted."""
        return self._writer.write(
            lambda db: Written(None, pruning.forget_logs(db, execution_ids, self._now())), vital=True
        )

    def delete_jobs(self, job_ids: Sequence[str]) -> Pending[int]:
        """Delete those of the jobs that are final. Return how many these were. To be called when the files of all their
        executions are deleted."""
        return self._writer.write(lambda db: Written(pruning.delete_jobs(db, job_ids)), vital=True)


# ---- parts of transactions


def _update(db: Connection, sql: str, **values: object) -> Execution | None:
    """Update at most one execution. Return the execution as it is then; None if the guard in WHERE did not hold."""
    # Fetched to the end: COMMIT fails while a RETURNING has rows that nobody took.
    rows = db.execute(f"{sql} RETURNING {EXECUTION}", values).fetchall()
    return execution_from(rows[0]) if rows else None


def _written(execution: Execution | None) -> Written[Execution | None]:
    return Written(execution, [execution] if execution else [])


def _followed(db: Connection, execution: Execution | None) -> Written[Execution | None]:
    if execution:
        follow(db, execution)
    return _written(execution)


def _claim_next(db: Connection, host: str, now: int) -> Execution | None:
    # Round-robin: of the ready task with the next turn (table `lines`), the execution that was due first. That is two
    # steps down two indexes, however many wait. Expired executions are skipped; they are few, as `promote` ends them
    # before claims.
    return _update(
        db,
        f"""
        UPDATE executions SET state = {State.PREPARING}, state_time = :now, claim_time = :now, host = :host
        WHERE state = {State.QUEUED} AND seq = (
            SELECT queued.seq
            FROM lines INDEXED BY lines_turn CROSS JOIN executions AS queued INDEXED BY executions_queued
            ON queued.state = {State.QUEUED} AND queued.priority = lines.priority AND queued.task_id = lines.task_id
            WHERE queued.expire_time IS NULL OR queued.expire_time >= :now
            ORDER BY lines.priority DESC, lines.turn, queued.due_time, queued.seq LIMIT 1
        )
        """,
        host=host,
        now=now,
    )


# The `seq` of the execution that is called so.
_THIS = "(SELECT seq FROM executions WHERE execution_id = :execution_id)"


def _stop_unclaimed(db: Connection, which: str, order: Mapping[str, object]) -> Execution | None:
    return _update(
        db,
        f"""
        UPDATE executions
        SET state = {State.STOPPED}, state_time = :now, end_time = :now,
            stop_cause = '{StopCause.CALLER.value}', stop_time = :now, stop_grace = :grace, stop_note = :note,
            reason = {Reason.UNSPECIFIED},
            detail = 'stopped while it was ' || iif(state = {State.QUEUED}, 'queued', 'scheduled')
                || iif(:note = '', '', ': ' || :note),
            out_of_memory = 0, stop_signal = ''
        WHERE seq = {which} AND state IN ({State.SCHEDULED}, {State.QUEUED})
        """,
        **order,
    )


def _stop_claimed(db: Connection, which: str, order: Mapping[str, object]) -> Execution | None:
    return _update(
        db,
        f"""
        UPDATE executions
        SET state = {State.STOPPING}, state_time = :now,
            stop_cause = '{StopCause.CALLER.value}', stop_time = :now, stop_grace = :grace, stop_note = :note
        WHERE seq = {which} AND state IN ({State.PREPARING}, {State.RUNNING})
        """,
        **order,
    )


def _shorten_grace(db: Connection, which: str, order: Mapping[str, object]) -> Execution | None:
    # Grace counts from the first order, whose cause stays: it decides between STOPPED and TIMED_OUT.
    return _update(
        db,
        f"""
        UPDATE executions SET stop_grace = max(:now + :grace - stop_time, 0)
        WHERE seq = {which} AND state = {State.STOPPING} AND :now + :grace < stop_time + stop_grace
        """,
        **order,
    )


def _instance(path: Path) -> str:
    db = open_for_reading(path)
    instance: str = db.execute("SELECT instance_id FROM instance").fetchall()[0][0]
    db.close()
    return instance


def _open_with_reserve(path: Path, reserve: Reserve) -> Connection:
    """Open the connection that writes, also on a full disk. StoreFailed."""
    while True:
        try:
            return open_for_writing(path)
        except StoreFailed as error:
            # An error without a cause is about the database, not about the disk.
            if error.__cause__ is None or not is_full(path.parent):
                raise
            if not reserve.free():
                full = f"the disk of {path.parent} is full ({free_bytes(path.parent)} bytes free)"
                raise StoreFailed(f"cannot start: {full}; free some space and start again") from error
