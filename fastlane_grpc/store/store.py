"""Tasks, jobs and executions. One public method is one transaction, and a transition that lost a race changes nothing."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from fastlane_grpc.errors import ExecutionNotFound
from fastlane_grpc.model import Assignment, Execution, Job, JobSpec, LogTotals, Outcome, Reason, State, StopCause, utc_now
from fastlane_grpc.store.database import Connection, open_for_reading, open_for_writing
from fastlane_grpc.store.enqueue import Enqueue
from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.queries import NEWEST, execution_of, job_of
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.rows import EXECUTION, execution_from, logs_text, microseconds_of, microseconds_since_epoch, spec_from
from fastlane_grpc.store.writer import Writer, Written


class Store:
    """Every method but `close` answers with a Pending: await it on the loop, take its `result()` on any other thread.

    Those that write raise DiskFull or StoreFailed where nothing could be kept. Those a runner calls (`starting`, `running`, `time_out`,
    `requeue`, `finish`) do not: they are tried again until they are stored. ServerStopping: the store was closed before.
    """

    @classmethod
    def open(cls, directory: Path, *, on_commit: Callable[[Sequence[Execution]], None], loop: asyncio.AbstractEventLoop) -> Self:
        """The store in `directory`, made if there is none. StoreFailed if it cannot be opened.

        After each commit, on the loop, `on_commit` is given every change that the commit made to an execution (a new one is a change), in
        their order: of an execution that changed twice, the last one is how it is now. Callers on the loop were woken before; those on
        threads are woken after it was called for, so whatever they do next comes to the loop later.
        """
        path = directory / "fastlane.db"
        writer = Writer(open_for_writing(path), path, loop=loop, on_commit=on_commit)
        return cls(writer, Readers(path, loop=loop), instance=_instance(path))

    def __init__(self, writer: Writer, readers: Readers, *, instance: str, now: Callable[[], datetime] = utc_now) -> None:
        self._writer = writer
        self._readers = readers
        self._now = now
        self.instance = instance

    def close(self, timeout: float | None = None) -> None:
        """What was asked for is still done, what comes later raises ServerStopping. Blocks; each thread has `timeout` seconds to end."""
        self._readers.close(timeout)
        # The last connection that closes moves the log of SQLite into the file: that is to be the writer's.
        self._writer.close(timeout)

    # ---- what callers ask for

    def enqueue(self, *, task_id: str, spec: JobSpec, request_id: str, caller_address: str) -> Pending[tuple[Job, bool]]:
        """A job with its first execution, queued; and whether `request_id` had made it before. RequestIdReused: it had made another."""
        return self._writer.write(Enqueue(task_id, spec, request_id, caller_address, self._now()))

    def stop(self, job_id: str, *, grace: timedelta, note: str) -> Pending[Job]:
        """Queued: STOPPED. With a container: STOPPING. STOPPING: a shorter rest of grace counts. Final: as it is. JobNotFound."""

        def work(db: Connection) -> Written[Job]:
            execution = _stop(db, job_id, microseconds_since_epoch(self._now()), microseconds_of(grace), note)
            job = job_of(db, job_id)
            return Written(job, [execution] if execution else [])

        return self._writer.write(work)

    def job(self, job_id: str) -> Pending[Job]:
        """JobNotFound."""
        return self._readers.read(lambda db: job_of(db, job_id))

    def execution(self, execution_id: str) -> Pending[Execution]:
        """ExecutionNotFound."""
        return self._readers.read(lambda db: execution_of(db, execution_id))

    # ---- what the dispatcher asks for

    def claim(self, places: int, *, host: str) -> Pending[list[Assignment]]:
        """As `claim_on`, for so many places of one host."""
        return self.claim_on([host] * places)

    def claim_on(self, hosts: Sequence[str]) -> Pending[list[Assignment]]:
        """As many of the queued ones as there are `hosts`, each on one of these, in their order: the highest priority first, its tasks in
        turns, each first in, first out."""

        def work(db: Connection) -> Written[list[Assignment]]:
            now = microseconds_since_epoch(self._now())
            claimed: list[Assignment] = []
            for host in hosts:
                execution = _claim_next(db, host, now)
                if execution is None:
                    break
                claimed.append(Assignment(execution, _spec(db, execution.job_id)))
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
                f"SELECT spec, {EXECUTION} FROM executions JOIN jobs USING (job_id) WHERE execution_id = ?", [execution_id]
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
        """The fence: who gets the execution may send its one start. None: it was told to stop, or a start may have been sent before."""

        def work(db: Connection) -> Written[Execution | None]:
            return _written(
                _update(
                    db,
                    f"""
                    UPDATE executions
                    SET starting = 1, container_id = :container_id, capture = :capture, engine_life = :engine_life,
                        image_digest = :image_digest, pull_time = :pull_time, container_time = :container_time
                    WHERE execution_id = :execution_id AND state = {State.PREPARING} AND NOT starting
                    """,
                    execution_id=execution_id,
                    container_id=container_id,
                    capture=capture,
                    engine_life=engine_life,
                    image_digest=image_digest,
                    pull_time=_or_null(pull_time),
                    container_time=_or_null(container_time),
                )
            )

        return self._writer.write_until_stored(work)

    def running(self, execution_id: str, *, start_time: datetime) -> Pending[Execution | None]:
        """PREPARING: RUNNING. RUNNING or STOPPING: the same state, with a start time. None: it is final, or queued."""

        def work(db: Connection) -> Written[Execution | None]:
            return _written(
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
                )
            )

        return self._writer.write_until_stored(work)

    def time_out(self, execution_id: str, *, grace: timedelta) -> Pending[Execution | None]:
        """RUNNING: STOPPING, because of its timeout. None: it is not RUNNING."""

        def work(db: Connection) -> Written[Execution | None]:
            return _written(
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
                )
            )

        return self._writer.write_until_stored(work)

    def requeue(self, execution_id: str) -> Pending[Execution]:
        """PREPARING, and no start was sent: QUEUED, in its old place of its task's line. Otherwise: as it is. ExecutionNotFound."""

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
            return Written(execution, [execution])

        return self._writer.write_until_stored(work)

    def revoked(self, execution_id: str) -> Pending[Execution | None]:
        """The start that may have been sent can have no effect any more: as before the fence. None: it has started, or is final."""

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
        exit_time: datetime | None = None,
        seal_time: datetime | None = None,
        first_byte_time: datetime | None = None,
        start_time: datetime | None = None,
    ) -> Pending[Execution]:
        """Not final: `state`, which is, from now on. Final: as it is. Times that are None stay as they are. ExecutionNotFound."""
        if not state.final:
            raise ValueError(f"{state.name} is not final")

        def work(db: Connection) -> Written[Execution]:
            execution = _update(
                db,
                f"""
                UPDATE executions
                SET state = :state, state_time = :now, end_time = :now,
                    reason = :reason, detail = :detail, exit_code = :exit_code, out_of_memory = :out_of_memory, stop_signal = :stop_signal,
                    logs = :logs, exit_time = coalesce(:exit_time, exit_time), seal_time = coalesce(:seal_time, seal_time),
                    first_byte_time = coalesce(:first_byte_time, first_byte_time), start_time = coalesce(:start_time, start_time)
                WHERE execution_id = :execution_id AND state < {State.SUCCEEDED}
                """,
                execution_id=execution_id,
                state=state,
                now=microseconds_since_epoch(self._now()),
                reason=outcome.reason,
                detail=outcome.detail,
                exit_code=outcome.exit_code,
                out_of_memory=outcome.out_of_memory,
                stop_signal=outcome.stop_signal,
                logs=logs_text(logs),
                exit_time=_or_null(exit_time),
                seal_time=_or_null(seal_time),
                first_byte_time=_or_null(first_byte_time),
                start_time=_or_null(start_time),
            )
            if execution is None:
                return Written(execution_of(db, execution_id))
            return Written(execution, [execution])

        return self._writer.write_until_stored(work)


# ---- parts of transactions


def _update(db: Connection, sql: str, **values: object) -> Execution | None:
    """An update of at most one execution: what it is now, or None if the guard in its WHERE kept it as it was."""
    # Fetched to the end: COMMIT fails while a RETURNING has rows that nobody took.
    rows = db.execute(f"{sql} RETURNING {EXECUTION}", values).fetchall()
    return execution_from(rows[0]) if rows else None


def _written(execution: Execution | None) -> Written[Execution | None]:
    return Written(execution, [execution] if execution else [])


def _claim_next(db: Connection, host: str, now: int) -> Execution | None:
    # The lines are read in their order, and of the first one the oldest execution: two steps down two indexes, however many wait.
    return _update(
        db,
        f"""
        UPDATE executions SET state = {State.PREPARING}, state_time = :now, claim_time = :now, host = :host
        WHERE state = {State.QUEUED} AND seq = (
            SELECT queued.seq FROM lines INDEXED BY lines_turn CROSS JOIN executions AS queued INDEXED BY executions_queued
            ON queued.state = {State.QUEUED} AND queued.priority = lines.priority AND queued.task_id = lines.task_id
            ORDER BY lines.priority DESC, lines.turn, queued.seq LIMIT 1
        )
        """,
        host=host,
        now=now,
    )


def _stop(db: Connection, job_id: str, now: int, grace: int, note: str) -> Execution | None:
    """Stops the newest execution of the job; None if there is nothing to change."""
    order = {"job_id": job_id, "now": now, "grace": grace, "note": note}
    return _stop_queued(db, order) or _stop_claimed(db, order) or _shorten_grace(db, order)


def _stop_queued(db: Connection, order: Mapping[str, object]) -> Execution | None:
    return _update(
        db,
        f"""
        UPDATE executions
        SET state = {State.STOPPED}, state_time = :now, end_time = :now,
            stop_cause = '{StopCause.CALLER.value}', stop_time = :now, stop_grace = :grace, stop_note = :note,
            reason = {Reason.UNSPECIFIED}, detail = 'stopped while it was queued' || iif(:note = '', '', ': ' || :note),
            out_of_memory = 0, stop_signal = ''
        WHERE seq = {NEWEST} AND state = {State.QUEUED}
        """,
        **order,
    )


def _stop_claimed(db: Connection, order: Mapping[str, object]) -> Execution | None:
    return _update(
        db,
        f"""
        UPDATE executions
        SET state = {State.STOPPING}, state_time = :now,
            stop_cause = '{StopCause.CALLER.value}', stop_time = :now, stop_grace = :grace, stop_note = :note
        WHERE seq = {NEWEST} AND state IN ({State.PREPARING}, {State.RUNNING})
        """,
        **order,
    )


def _shorten_grace(db: Connection, order: Mapping[str, object]) -> Execution | None:
    # Grace counts from the first order, whose cause stays: it decides between STOPPED and TIMED_OUT.
    return _update(
        db,
        f"""
        UPDATE executions SET stop_grace = max(:now + :grace - stop_time, 0)
        WHERE seq = {NEWEST} AND state = {State.STOPPING} AND :now + :grace < stop_time + stop_grace
        """,
        **order,
    )


def _spec(db: Connection, job_id: str) -> JobSpec:
    return spec_from(db.execute("SELECT spec FROM jobs WHERE job_id = ?", [job_id]).fetchall()[0][0])


def _instance(path: Path) -> str:
    db = open_for_reading(path)
    instance: str = db.execute("SELECT instance_id FROM instance").fetchall()[0][0]
    db.close()
    return instance


def _or_null(time: datetime | None) -> int | None:
    return None if time is None else microseconds_since_epoch(time)
