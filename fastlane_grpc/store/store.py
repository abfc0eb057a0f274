"""Tasks, jobs and executions. One public method is one transaction, and a transition that lost a race changes
nothing."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from fastlane_grpc.errors import DiskFull, ExecutionNotFound, StoreFailed
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
from fastlane_grpc.store.pruning import Count, Found, Kept, Old, Place
from fastlane_grpc.store.queries import CURRENT, ahead_of, execution_of, job_of, task_of
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
    """Every method but `close` answers with a Pending: await it on the loop, take its `result()` on any other thread.

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
        """The store in `directory`, made if there is none; it takes jobs up to `quota`. StoreFailed if it cannot be
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
        """What was asked for is still done, what comes later raises ServerStopping. Blocks; each thread has `timeout`
        seconds to end."""
        self._readers.close(timeout)
        # The last connection that closes moves the log of SQLite into the file: that is to be the writer's.
        self._writer.close(timeout)

    # ---- what callers ask for

    def enqueue(
        self, *, task_id: str, spec: JobSpec, request_id: str, caller_address: str
    ) -> Pending[tuple[Job, bool]]:
        """A job with its first execution, queued or scheduled; and whether `request_id` had made it before.

        RequestIdReused: it had made another; secrets are not compared. QueueFull, DiskFull: no more jobs are taken now.
        """
        work = Enqueue(task_id, spec, request_id, caller_address, self._now(), self._quota, self._secret_names)
        return self._writer.write(work, many=Enqueue.together)

    def stop(
        self,
        job_id: str,
        *,
        grace: timedelta,
        note: str,
        logs: Sequence[LogTotals] = (),
        log_bytes: int = 0,
        carried_out_since: datetime | None = None,
    ) -> Pending[Job]:
        """Stops the job: nothing follows its current execution. Scheduled or queued: that is STOPPED, and its log holds
        `logs` and takes `log_bytes` of the disk. With a container: STOPPING. STOPPING: a shorter rest of grace counts.
        Final: as it is. JobNotFound.

        `carried_out_since`: the order was given then, and is tried again until it is stored."""

        def work(db: Connection) -> Written[Job]:
            now = carried_out_since or self._now()
            note_stop(db, job_id, now)
            changed = self._stop(db, CURRENT, {"job_id": job_id}, now, grace, note, logs, log_bytes)
            return Written(job_of(db, job_id), changed)

        return self._writer.write_until_stored(work) if carried_out_since else self._writer.write(work, vital=True)

    def stop_execution(
        self,
        execution_id: str,
        *,
        grace: timedelta,
        note: str,
        logs: Sequence[LogTotals] = (),
        log_bytes: int = 0,
        carried_out_since: datetime | None = None,
    ) -> Pending[Execution]:
        """The same for exactly this execution. ExecutionNotFound."""

        def work(db: Connection) -> Written[Execution]:
            now = carried_out_since or self._now()
            changed = self._stop(db, _THIS, {"execution_id": execution_id}, now, grace, note, logs, log_bytes)
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
        logs: Sequence[LogTotals],
        log_bytes: int,
    ) -> list[Execution]:
        """Stops the execution of which `which`, SQL with the values `of`, is the seq. Returns the executions that
        changed."""
        stop = {"now": microseconds_since_epoch(now), "grace": microseconds_of(grace), "note": note}
        order = {**of, **stop, "logs": logs_text(logs), "log_bytes": log_bytes}
        if execution := _stop_unclaimed(db, which, order):
            return [execution, *settle(db, execution, now, self._after)]
        if execution := _stop_claimed(db, which, order):
            follow(db, execution)
            return [execution]
        execution = _shorten_grace(db, which, order)
        return [execution] if execution else []

    def job(self, job_id: str) -> Pending[Job]:
        """JobNotFound."""
        return self._readers.read(lambda db: job_of(db, job_id))

    def job_in_line(self, job_id: str, most: int) -> Pending[tuple[Job, int]]:
        """The job, and how many executions go before its own, as `ahead`; in one step of a thread. JobNotFound."""

        def work(db: Connection) -> tuple[Job, int]:
            job = job_of(db, job_id)
            return job, ahead_of(db, job.execution.id, most) if job.execution.state is State.QUEUED else 0

        return self._readers.read(work)

    def execution_in_line(self, execution_id: str, most: int) -> Pending[tuple[Execution, int]]:
        """The execution, and how many go before it, as `ahead`; in one step of a thread. ExecutionNotFound."""

        def work(db: Connection) -> tuple[Execution, int]:
            execution = execution_of(db, execution_id)
            return execution, ahead_of(db, execution.id, most) if execution.state is State.QUEUED else 0

        return self._readers.read(work)

    def execution(self, execution_id: str) -> Pending[Execution]:
        """ExecutionNotFound."""
        return self._readers.read(lambda db: execution_of(db, execution_id))

    def task(self, task_id: str) -> Pending[Task]:
        """TaskNotFound."""
        return self._readers.read(lambda db: task_of(db, task_id))

    def jobs(self, query: JobQuery, *, after: tuple[int, int] | None = None, size: int) -> Pending[Page[Job]]:
        """A page of at most `size` from behind `after` on, newest first."""
        return self._readers.read(lambda db: page_of_jobs(db, query, after, size))

    def executions(
        self, query: ExecutionQuery, *, after: tuple[int] | None = None, size: int
    ) -> Pending[Page[Execution]]:
        """A page of at most `size` from behind `after` on, newest first."""
        return self._readers.read(lambda db: page_of_executions(db, query, after, size))

    def tasks(self, *, after: tuple[str] | None = None, size: int) -> Pending[Page[Task]]:
        """A page of at most `size` from behind `after` on, by name."""
        return self._readers.read(lambda db: page_of_tasks(db, after, size))

    def ahead(self, execution_id: str, most: int) -> Pending[int]:
        """How many queued executions of its task and priority go before this one, counted up to `most`; 0 if it is not
        queued."""
        return self._readers.read(lambda db: ahead_of(db, execution_id, most))

    # ---- what the dispatcher asks for

    def promote(self, limit: int) -> Pending[Promotion]:
        """Ends executions that have not been claimed by their expire_time, and queues those that are due: the oldest
        ones, at most `limit` in all."""

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
        """The earliest time at which an execution is due or has expired; None if nothing waits for a time."""
        return self._readers.read(due.next_time)

    def claim_on(self, hosts: Sequence[str]) -> Pending[list[Assignment]]:
        """As many of the queued ones as there are `hosts`, each on one of these, in their order: the highest priority
        first, its tasks in turns, each first in, first out."""

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
        """Those that were claimed and are not final, in the order in which they were claimed."""

        def work(db: Connection) -> list[Assignment]:
            rows = db.execute(
                f"""
                SELECT spec, {EXECUTION} FROM executions INDEXED BY executions_state CROSS JOIN jobs USING (job_id)
                WHERE executions.state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING}) ORDER BY claim_time, executions.seq
                """
            ).fetchall()
            return [Assignment(execution_from(row[1:]), spec_from(row[0])) for row in rows]

        return self._readers.read(work)

    def assignment(self, execution_id: str) -> Pending[Assignment]:
        """ExecutionNotFound."""

        def work(db: Connection) -> Assignment:
            rows = db.execute(
                f"SELECT spec, {EXECUTION} FROM executions JOIN jobs USING (job_id) WHERE executions.execution_id = ?",
                [execution_id],
            ).fetchall()
            if not rows:
                raise ExecutionNotFound(execution_id)
            return Assignment(execution_from(rows[0][1:]), spec_from(rows[0][0]))

        return self._readers.read(work)

    # ---- what a runner tells

    def starting(
        self,
        execution_id: str,
        *,
        container_id: str,
        capture: str,
        engine_life: str,
        image_digest: str,
        pull_time: datetime | None,
        container_time: datetime | None,
    ) -> Pending[Execution | None]:
        """The fence: who gets the execution may send its one start. None: it was told to stop, its expire_time has
        passed, or a start may have been sent before."""

        def work(db: Connection) -> Written[Execution | None]:
            return _written(
                _update(
                    db,
                    f"""
                    UPDATE executions
                    SET starting = 1, container_id = :container_id, capture = :capture, engine_life = :engine_life,
                        image_digest = :image_digest, pull_time = :pull_time, container_time = :container_time
                    WHERE execution_id = :execution_id AND state = {State.PREPARING} AND NOT starting
                        AND (expire_time IS NULL OR expire_time >= :now)
                    """,
                    now=microseconds_since_epoch(self._now()),
                    execution_id=execution_id,
                    container_id=container_id,
                    capture=capture,
                    engine_life=engine_life,
                    image_digest=image_digest,
                    pull_time=microseconds_or_none(pull_time),
                    container_time=microseconds_or_none(container_time),
                )
            )

        return self._writer.write_until_stored(work)

    def running(self, execution_id: str, *, start_time: datetime) -> Pending[Execution | None]:
        """PREPARING: RUNNING. RUNNING or STOPPING: the same state, with a start time. None: it is final, or queued."""

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
                    WHERE execution_id = :execution_id AND state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING})
                    """,
                    execution_id=execution_id,
                    start_time=microseconds_since_epoch(start_time),
                    now=microseconds_since_epoch(self._now()),
                ),
            )

        return self._writer.write_until_stored(work)

    def time_out(self, execution_id: str, *, grace: timedelta) -> Pending[Execution | None]:
        """RUNNING: STOPPING, because of its timeout. None: it is not RUNNING."""

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

    def requeue(self, execution_id: str) -> Pending[Execution]:
        """PREPARING, and no start was sent: QUEUED, in its old place of its task's line. Otherwise: as it is.
        ExecutionNotFound."""

        def work(db: Connection) -> Written[Execution]:
            execution = _update(
                db,
                f"""
                UPDATE executions
                SET state = {State.QUEUED}, state_time = :now, claim_time = NULL, pull_time = NULL, container_time = NULL,
                    host = '', container_id = '', image_digest = '', capture = '', engine_life = ''
                WHERE execution_id = :execution_id AND state = {State.PREPARING} AND NOT starting
                """,
                execution_id=execution_id,
                now=microseconds_since_epoch(self._now()),
            )
            if execution is None:
                return Written(execution_of(db, execution_id))
            follow(db, execution)
            return Written(execution, [execution])

        return self._writer.write_until_stored(work)

    def revoked(self, execution_id: str) -> Pending[Execution | None]:
        """The start that may have been sent can have no effect any more: as before the fence. None: it has started, or
        is final."""

        def work(db: Connection) -> Written[Execution | None]:
            return _written(
                _update(
                    db,
                    f"""
                    UPDATE executions
                    SET starting = 0, container_id = '', capture = '', engine_life = '', pull_time = NULL, container_time = NULL
                    WHERE execution_id = :execution_id AND state IN ({State.PREPARING}, {State.STOPPING}) AND start_time IS NULL
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
        """Not final: `state`, which is, from now on. Final: as it is. Times that are None stay as they are.
        ExecutionNotFound.

        `log_bytes`: the room on the disk that its log takes; 0: it has none.
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
                    reason = :reason, detail = :detail, exit_code = :exit_code, out_of_memory = :out_of_memory, stop_signal = :stop_signal,
                    logs = :logs, log_bytes = :log_bytes,
                    exit_time = coalesce(:exit_time, exit_time), seal_time = coalesce(:seal_time, seal_time),
                    first_byte_time = coalesce(:first_byte_time, first_byte_time), start_time = coalesce(:start_time, start_time)
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
        """Writes what changes nothing, down to the disk: DiskFull or StoreFailed where it cannot be written."""

        def work(db: Connection) -> Written[None]:
            db.execute("UPDATE kept SET waiting = waiting")
            # So little fits where a larger write has failed before, as SQLite's log keeps the room that it was given.
            if (free := free_bytes(self._writer.path.parent)) < PROBE_FREE_BYTES:
                raise DiskFull(f"there are {free} bytes left to write {self._writer.path}")
            if (inodes := free_inodes(self._writer.path.parent)) is not None and inodes < PROBE_FREE_INODES:
                raise DiskFull(f"there are {inodes} inodes left beside {self._writer.path}")
            return Written(None)

        return self._writer.write(work)

    # ---- what the upkeep asks for

    def kept(self) -> Pending[Kept]:
        """The oldest of what is kept, and how much that is."""
        return self._readers.read(pruning.kept)

    def oldest(self, old: Old, *, after: Place = Old.BEGIN, limit: int) -> Pending[list[Found]]:
        """What of it ended first, after that place: of at most `limit` logs, or all executions of at most `limit`
        jobs."""
        return self._readers.read(lambda db: pruning.oldest(db, old, after, limit))

    def count(self, old: Old, *, limit: int) -> Pending[Count]:
        """How much there is of it, counted up to `limit` logs or jobs."""
        return self._readers.read(lambda db: pruning.count(db, old, limit))

    def mark_pruned(self, execution_ids: Sequence[str]) -> Pending[None]:
        """Comes first, so that no reader takes a log whose files are gone for one that was lost. The files are known of
        still."""
        return self._writer.write(
            lambda db: Written(None, pruning.mark_pruned(db, execution_ids, self._now())), vital=True
        )

    def forget_logs(self, execution_ids: Sequence[str]) -> Pending[None]:
        """Comes when the files of these are gone."""
        return self._writer.write(
            lambda db: Written(None, pruning.forget_logs(db, execution_ids, self._now())), vital=True
        )

    def delete_jobs(self, job_ids: Sequence[str]) -> Pending[int]:
        """Comes when the files of all their executions are gone. How many of these jobs went: those that are final, and
        were there."""
        return self._writer.write(lambda db: Written(pruning.delete_jobs(db, job_ids)), vital=True)


# ---- parts of transactions


def _update(db: Connection, sql: str, **values: object) -> Execution | None:
    """An update of at most one execution: what it is now, or None if the guard in its WHERE kept it as it was."""
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
    # The lines are read in their order, and of the first one the execution that was due first: two steps down two
    # indexes, however many wait. Those that expired are passed over; they are few, as they were ended before places
    # were given.
    return _update(
        db,
        f"""
        UPDATE executions SET state = {State.PREPARING}, state_time = :now, claim_time = :now, host = :host
        WHERE state = {State.QUEUED} AND seq = (
            SELECT queued.seq FROM lines INDEXED BY lines_turn CROSS JOIN executions AS queued INDEXED BY executions_queued
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
            detail = 'stopped while it was ' || iif(state = {State.QUEUED}, 'queued', 'scheduled') || iif(:note = '', '', ': ' || :note),
            out_of_memory = 0, stop_signal = '', logs = :logs, log_bytes = :log_bytes
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
    """The connection that writes, also where the disk is full. StoreFailed."""
    while True:
        try:
            return open_for_writing(path)
        except StoreFailed as error:
            # Without a cause it is what the database says of itself, whatever room there is.
            if error.__cause__ is None or not is_full(path.parent):
                raise
            if not reserve.free():
                full = f"the disk of {path.parent} is full ({free_bytes(path.parent)} bytes free)"
                raise StoreFailed(f"cannot start: {full}; free some space and start again") from error
