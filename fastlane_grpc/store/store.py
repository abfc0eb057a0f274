"""The store of tasks, jobs and executions. Each public method is one transaction. A transition that has lost a race
changes nothing."""

import asyncio
from collections.abc import Callable, Collection, Sequence, Set
from contextlib import closing
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Self

from fastlane_grpc.counts import StoreCounts
from fastlane_grpc.errors import DiskFull, JobExpired, JobNotFound, Refusal, StoreFailed, UniqueKeyTaken
from fastlane_grpc.machine.data_directory import free_bytes, free_inodes, is_full
from fastlane_grpc.model import (
    ArrayPosition,
    Assignment,
    Conflict,
    Delivery,
    Execution,
    Job,
    JobSpec,
    LogTotals,
    Outcome,
    Outputs,
    State,
    StopCause,
    Task,
    TaskLimitsChange,
    Usage,
    utc_now,
)
from fastlane_grpc.pools import Pools
from fastlane_grpc.store import changes, due, hosts, outbox, placement, pruning, task_limits
from fastlane_grpc.store.audit import AuditEntry, caller_name, caller_name_or_address, prune_entries
from fastlane_grpc.store.batch import EnqueueBatch, Enqueued
from fastlane_grpc.store.census import Census, take_census
from fastlane_grpc.store.changes import Change, ChangePosition, JobsRead
from fastlane_grpc.store.database import Connection, open_for_reading, open_for_writing, sqlite3
from fastlane_grpc.store.due import Promotion
from fastlane_grpc.store.enqueue import DEFAULT_SECRET_NAMES, NO_QUOTA, Enqueue, Quota, key_holders
from fastlane_grpc.store.execution_counts import ExecutionCounts
from fastlane_grpc.store.hosts import Drain
from fastlane_grpc.store.job_changes import pause_schedule, replace_job, resume_schedule, retry_job
from fastlane_grpc.store.job_filter import (
    FINAL_STATES,
    OPEN_STATES,
    JobFilter,
    Matches,
    Order,
    Place,
    matching,
)
from fastlane_grpc.store.job_state import DEFAULT_RULES, Rules, follow, follow_claim, settle
from fastlane_grpc.store.lists import (
    AuditQuery,
    DeliveryQuery,
    ExecutionQuery,
    JobQuery,
    ListPage,
    SharedPage,
    page_of_audit_entries,
    page_of_deliveries,
    page_of_executions,
    page_of_jobs,
    page_of_tasks,
)
from fastlane_grpc.store.outbox import Attempt, Due, Ends
from fastlane_grpc.store.pending import Pending
from fastlane_grpc.store.pruning import Count, PruneCandidate, PruneCursor, PruneQuery, RetentionTotals
from fastlane_grpc.store.queries import (
    ITS_SPEC,
    JobInLine,
    ahead_of,
    assignment_from,
    assignment_of,
    assignments_of,
    execution_after,
    execution_and_ahead,
    execution_newer_than,
    execution_of,
    first_ended_since,
    first_to_read,
    job_of,
    newest_started,
    task_of,
    unwatched_limits,
)
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.reserve import Reserve
from fastlane_grpc.store.rows import (
    EXECUTION,
    execution_from,
    logs_text,
    microseconds_of,
    microseconds_or_none,
    microseconds_since_epoch,
    outputs_text,
    usage_text,
)
from fastlane_grpc.store.stops import stop_execution, stop_job
from fastlane_grpc.store.task_limits import LimitedTasks
from fastlane_grpc.store.writer import Writer, Written
from fastlane_grpc.supervisor import ALONE, Supervisor
from fastlane_grpc.text.redaction import SecretNames
from fastlane_grpc.trace_context import CALLERS_TRACE

# A store that has less room than this is not taken for one that can write again.
PROBE_FREE_BYTES = 1 << 20
PROBE_FREE_INODES = 16


# Without pools every host takes every task.
ANY_HOST = Pools()


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
        rules: Rules = DEFAULT_RULES,
        on_failure: Callable[[], None] = lambda: None,
        supervisor: Supervisor = ALONE,
        now: Callable[[], datetime] = utc_now,
        pools: Pools = ANY_HOST,
        counts: StoreCounts | None = None,
    ) -> Self:
        """Open the store in `directory`, or make it. It takes jobs up to `quota`. StoreFailed if it cannot be
        opened.

        After each commit, `on_commit` is called on the loop with the changes to executions, in their order; a new
        execution is a change. If an execution changed twice, the last change is its present state. The list is empty
        if the commit changed or deleted jobs alone. Callers on the loop are woken before `on_commit`. Callers on
        threads are woken after it was scheduled, so their next calls reach the loop later. `on_failure` is called on
        the loop when a write failed."""
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
                counts=counts,
            )
        except BaseException:
            readers.close()
            db.close()
            raise
        try:
            return cls(
                writer,
                readers,
                instance=instance,
                quota=quota,
                secret_names=secret_names,
                rules=rules,
                pools=pools,
                now=now,
            )
        except BaseException:
            readers.close()
            writer.close()
            raise

    def __init__(
        self,
        writer: Writer,
        readers: Readers,
        *,
        instance: str,
        now: Callable[[], datetime] = utc_now,
        quota: Quota | None = None,
        secret_names: SecretNames = DEFAULT_SECRET_NAMES,
        rules: Rules = DEFAULT_RULES,
        pools: Pools = ANY_HOST,
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._now = now
        self._quota = quota or NO_QUOTA
        self._secret_names = secret_names
        self._rules = rules
        self.instance = instance
        self._pools = pools
        # The tasks with limits, and the drained hosts by name, for callers on the loop.
        self.limited_tasks = LimitedTasks()
        # Called on the loop when a delivery may have become due.
        self.on_delivery_due: Callable[[], None] = lambda: None
        # What has happened to executions since the store was opened, for callers on the loop.
        self.execution_counts = ExecutionCounts()
        with closing(open_for_reading(writer.path)) as db:
            # Whether any job may have notifications. Once it is true it stays so: without notifications, nothing of
            # the outbox is ever read.
            self.may_notify = outbox.may_notify(db, rules.default_notifications)
            self.limited_tasks.load(db)
            self.execution_counts.load(db)
            self.drained_hosts = dict(hosts.drained(db))
            placed = placement.placed_by(db) == pools.placement
            has_defaults = outbox.has_defaults(db, rules.default_notifications)
        if restored := self.drained_hosts.pop(hosts.EVERY_HOST, None):
            self.drained_hosts = {**dict.fromkeys(pools.hosts, restored), **self.drained_hosts}
            self._writer.write_until_stored(self._drain_every_host)
        if not has_defaults:
            self._writer.write_until_stored(self._put_defaults_in_force)
        if not placed:
            # The first transaction of all: no claim comes before it.
            self._writer.write_until_stored(self._place_lines)

    def _put_defaults_in_force(self, db: Connection) -> Written[None]:
        outbox.put_defaults_in_force(db, self._rules.default_notifications, self._now())
        return Written(None)

    def _drain_every_host(self, db: Connection) -> Written[None]:
        hosts.drain_every_host(db, self._pools.hosts)
        return Written(None)

    def _place_lines(self, db: Connection) -> Written[None]:
        placement.put_in_force(db, self._pools)
        return Written(None)

    @property
    def commit_listeners(self) -> Sequence[Callable[[Sequence[Execution]], None]]:
        """The functions that `on_commit` calls with the executions of each commit, before all others."""
        return [self.limited_tasks.on_commit, self.execution_counts.on_commit]

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
        work = self._enqueue(task_id, spec, request_id, caller_address, refusal=refusal)
        return self._writer.write(work, many=None if refusal or spec.unique else Enqueue.together)

    def batch(self, caller_address: str) -> EnqueueBatch:
        """Return a batch without jobs, for `enqueue_batch`."""

        def make(
            task_id: str, spec: JobSpec, request_id: str, refusal: Refusal | None, array: ArrayPosition | None
        ) -> Enqueue:
            return self._enqueue(task_id, spec, request_id, caller_address, refusal=refusal, array=array)

        return EnqueueBatch(make, self._quota)

    def enqueue_batch(self, batch: EnqueueBatch) -> Pending[Sequence[Enqueued]]:
        """Store the jobs of a batch in one transaction. Return for each what `enqueue` would return or raise, in their
        order. DiskFull: none was stored."""
        return self._writer.write(batch, weight=len(batch))

    def _enqueue(
        self,
        task_id: str,
        spec: JobSpec,
        request_id: str,
        caller_address: str,
        *,
        refusal: Refusal | None = None,
        job_id: str | None = None,
        array: ArrayPosition | None = None,
    ) -> Enqueue:
        now, caller = self._now(), caller_name_or_address()
        # Set before the commit. A notifier that looks too early finds nothing, and looks again after the job's end.
        self.may_notify = self.may_notify or bool(spec.notifications)

        def stop_holder(db: Connection, holder: str, successor: str) -> list[Execution]:
            note = f"replaced by job {successor}, which has the same unique key"
            return stop_job(db, holder, now=now, grace=None, note=note, rules=self._rules, caller=caller)[1]

        return Enqueue(
            task_id,
            spec,
            request_id,
            caller_address,
            now,
            self._quota,
            self._secret_names,
            refusal,
            job_id=job_id,
            stop_holder=stop_holder,
            array=array,
            caller=caller_name(),
            trace=trace.text if (trace := CALLERS_TRACE.get()) else "",
        )

    def stop(
        self, job_id: str, *, grace: timedelta | None, note: str, carried_out_since: datetime | None = None
    ) -> Pending[Job]:
        """Stop the job: no execution follows the current one. Without a `grace`, the grace of the job counts.

        An execution that is scheduled or queued becomes STOPPED, one that is claimed becomes STOPPING. For one that is
        STOPPING, only a shorter grace counts. One that is final stays as it is. JobNotFound.

        `carried_out_since`: the time at which the runner got this stop. The stop is then tried until it is stored."""

        caller = caller_name_or_address()

        def work(db: Connection) -> Written[Job]:
            now = carried_out_since or self._now()
            stopped = stop_job(db, job_id, now=now, grace=grace, note=note, rules=self._rules, caller=caller)
            return Written(*stopped, [job_id])

        return self._writer.write_until_stored(work) if carried_out_since else self._writer.write(work, vital=True)

    def matching_jobs(
        self,
        query: JobFilter,
        states: Sequence[State],
        *,
        order: Order = Order.ENQUEUED,
        after: Place | None = None,
        limit: int,
    ) -> Pending[Matches]:
        """Return the ids of at most `limit` jobs that match the filter and are in one of `states`, in this order,
        oldest first. The work is bounded: the page may be empty and not the last one."""
        return self._readers.read(lambda db: matching(db, query, states, order=order, after=after, limit=limit))

    def stop_jobs(
        self, job_ids: Sequence[str], query: JobFilter, *, grace: timedelta | None, note: str
    ) -> Pending[int]:
        """Stop those of the jobs that still match the filter and are not final, as `stop` does, in one transaction.
        Return how many these were."""
        caller = caller_name_or_address()

        def work(db: Connection) -> Written[int]:
            now = self._now()
            found = matching(db, replace(query, job_ids=job_ids), OPEN_STATES, limit=len(job_ids))
            changed: list[Execution] = []
            for job_id in found.job_ids:
                changed += stop_job(db, job_id, now=now, grace=grace, note=note, rules=self._rules, caller=caller)[1]
            return Written(len(found.job_ids), changed)

        return self._writer.write(work, vital=True, weight=len(job_ids))

    def retry_jobs(self, job_ids: Sequence[str], query: JobFilter) -> Pending[tuple[int, int]]:
        """Start one more run of those of the jobs that still match the filter and are final, in one transaction. Return
        how many these were, and how many could not be retried: their expire_time has passed, or their unique key is
        taken. QueueFull, DiskFull."""

        def work(db: Connection) -> Written[tuple[int, int]]:
            now, changed, skipped = self._now(), list[Execution](), 0
            found = matching(db, replace(query, job_ids=job_ids), FINAL_STATES, order=Order.ENDED, limit=len(job_ids))
            for job_id in found.job_ids:
                try:
                    changed += retry_job(db, job_id, request_id="", now=now, quota=self._quota, rules=self._rules)[2]
                except (JobExpired, UniqueKeyTaken):
                    # Raised before anything was written.
                    skipped += 1
            return Written((len(found.job_ids) - skipped, skipped), changed, found.job_ids)

        return self._writer.write(work, weight=len(job_ids))

    def stop_execution(
        self, execution_id: str, *, grace: timedelta | None, note: str, carried_out_since: datetime | None = None
    ) -> Pending[Execution]:
        """Stop exactly this execution, as `stop` does. ExecutionNotFound."""

        def work(db: Connection) -> Written[Execution]:
            now = carried_out_since or self._now()
            execution, changed = stop_execution(db, execution_id, now=now, grace=grace, note=note, rules=self._rules)
            return Written(execution, changed, job_id=execution.job_id)

        return self._writer.write_until_stored(work) if carried_out_since else self._writer.write(work, vital=True)

    def retry_job(self, job_id: str, *, request_id: str = "") -> Pending[tuple[Job, bool]]:
        """Start one more run of a final job. Return the job, and whether `request_id` had started one before.

        JobNotFound, JobNotFinal, JobExpired, UniqueKeyTaken, QueueFull, DiskFull."""

        def work(db: Connection) -> Written[tuple[Job, bool]]:
            job, existing, changed = retry_job(
                db, job_id, request_id=request_id, now=self._now(), quota=self._quota, rules=self._rules
            )
            return Written((job, existing), changed, [job_id])

        return self._writer.write(work)

    def replace_job(
        self,
        job_id: str,
        *,
        task_id: str,
        spec: JobSpec,
        etag: str,
        caller_address: str,
        refusal: Refusal | None = None,
    ) -> Pending[tuple[Job, bool]]:
        """Create the job under this id, or replace its spec. Return the job, and whether it was created. `refusal` is
        raised unless the spec equals that of the job, if there is one.

        EtagMismatch, InvalidRequest (another task), UniqueKeyTaken, QueueFull, DiskFull."""
        self.may_notify = self.may_notify or bool(spec.notifications)
        # The writing thread knows nothing of the call.
        in_the_call = copy_context().run

        def work(db: Connection) -> Written[tuple[Job, bool]]:
            try:
                job = job_of(db, job_id)
            except JobNotFound:
                if etag:
                    raise
                if refusal:
                    raise refusal from None
                if spec.unique and spec.unique.conflict is Conflict.USE_EXISTING:
                    # The job under this id is asked for, and no other one.
                    for holder in key_holders(db, task_id, spec.unique.key):
                        raise UniqueKeyTaken(spec.unique.key, holder) from None
                created = in_the_call(self._enqueue, task_id, spec, "", caller_address, job_id=job_id)(db)
                return Written((created.answer[0], True), created.changed, new_jobs=1)
            if refusal and job.spec != spec:
                raise refusal
            job, changed = replace_job(
                db,
                job_id,
                task_id=task_id,
                spec=spec,
                etag=etag,
                now=self._now(),
                quota=self._quota,
                rules=self._rules,
                secret_names=self._secret_names,
            )
            return Written((job, False), changed, [job_id])

        return self._writer.write(work)

    def pause_schedule(self, job_id: str) -> Pending[Job]:
        """Stop the ticks of the job's schedule. JobNotFound, NoSchedule."""
        return self._writer.write(lambda db: Written(*pause_schedule(db, job_id, now=self._now()), [job_id]))

    def resume_schedule(self, job_id: str) -> Pending[Job]:
        """Continue a paused schedule with its next tick. JobNotFound, NoSchedule."""
        return self._writer.write(
            lambda db: Written(*resume_schedule(db, job_id, now=self._now(), rules=self._rules), [job_id])
        )

    def job(self, job_id: str) -> Pending[Job]:
        """Return the job. JobNotFound."""
        return self._readers.read(lambda db: job_of(db, job_id))

    def job_in_line(self, job_id: str, most: int) -> Pending[tuple[Job, int]]:
        """Return the job, and how many executions go before its own, up to `most`. JobNotFound."""
        return self._readers.read(JobInLine(job_id, most), many=JobInLine.together)

    def execution_in_line(self, execution_id: str, most: int) -> Pending[tuple[Execution, int]]:
        """Return the execution, and how many go before it, up to `most`. ExecutionNotFound."""
        return self._readers.read(lambda db: execution_and_ahead(db, execution_id, most))

    def execution(self, execution_id: str) -> Pending[Execution]:
        """Return the execution. ExecutionNotFound."""
        return self._readers.read(lambda db: execution_of(db, execution_id))

    def first_to_read(self, job_id: str) -> Pending[Execution]:
        """Return the execution at which a reader of a job's logs starts. JobNotFound."""
        return self._readers.read(lambda db: first_to_read(db, job_id))

    def newest_started(self, job_id: str) -> Pending[Execution]:
        """Return the newest execution of the job that has started, or the newest one. JobNotFound."""
        return self._readers.read(lambda db: newest_started(db, job_id))

    def first_ended_since(self, job_id: str, since: datetime) -> Pending[Execution | None]:
        """Return the first execution of the job that ended at this time or later, or has not ended."""
        return self._readers.read(lambda db: first_ended_since(db, job_id, since))

    def execution_after(self, job_id: str, run: int, attempt: int) -> Pending[Execution | None]:
        """Return the execution of the job that follows this attempt of this run; None if there is none yet."""
        return self._readers.read(lambda db: execution_after(db, job_id, run, attempt))

    def execution_newer_than(self, job_id: str, execution_id: str) -> Pending[Execution | None]:
        """Return the oldest execution of the job that was made after that one, which is not kept any more; None if
        there is none."""
        return self._readers.read(lambda db: execution_newer_than(db, job_id, execution_id))

    def task(self, task_id: str) -> Pending[Task]:
        """Return the task. TaskNotFound."""
        return self._readers.read(lambda db: task_of(db, task_id))

    def update_task(self, task_id: str, change: TaskLimitsChange) -> Pending[Task]:
        """Change the limits of a task, which need not have jobs. Return the task; without jobs and limits it has its id
        alone, and does not exist any more. DiskFull: a task without jobs is no more taken than a job would be."""
        self.may_notify = self.may_notify or bool(change.notifications)

        def work(db: Connection) -> Written[Task]:
            if not task_limits.exists(db, task_id) and (refusal := self._quota.refusal(db, 0)):
                raise refusal
            if change.notifications is not None:
                outbox.catch_up(db, self._rules.default_notifications, self._now())
            update = task_limits.update(db, task_id, change, self._now())
            return Written(update.task, told=[lambda: self.limited_tasks.updated(update)])

        return self._writer.write(work)

    def drain_host(self, host: str, note: str, then: Callable[[], None]) -> Pending[Drain]:
        """Note that a host is drained; one that is drained stays as it is. `then` is called on the loop after the
        commit."""

        def work(db: Connection) -> Written[Drain]:
            drain = hosts.drain(db, host, note, self._now())
            return Written(drain, told=[lambda: self.drained_hosts.update({host: drain}), then])

        return self._writer.write(work, vital=True)

    def resume_host(self, host: str, then: Callable[[], None]) -> Pending[None]:
        """Note that a host is not drained. `then` is called on the loop after the commit."""

        def work(db: Connection) -> Written[None]:
            hosts.resume(db, host)
            return Written(None, told=[lambda: self.drained_hosts.pop(host, None) and None, then])

        return self._writer.write(work, vital=True)

    def jobs(self, query: JobQuery, *, after: tuple[int, int] | None = None, size: int) -> Pending[ListPage[Job]]:
        """Return a page of at most `size` after `after`, newest first."""
        page = SharedPage(page_of_jobs, query, after, size)
        return self._readers.read(page.read, many=page)

    def executions(
        self, query: ExecutionQuery, *, after: tuple[int] | None = None, size: int
    ) -> Pending[ListPage[Execution]]:
        """Return a page of at most `size` after `after`, newest first."""
        page = SharedPage(page_of_executions, query, after, size)
        return self._readers.read(page.read, many=page)

    def tasks(self, *, after: tuple[str] | None = None, size: int) -> Pending[ListPage[Task]]:
        """Return a page of at most `size` tasks after `after`, by name."""
        return self._readers.read(lambda db: page_of_tasks(db, after, size))

    def ahead(self, execution_id: str, most: int) -> Pending[int]:
        """Count the queued executions of the same task and priority that go before this one, up to `most`; 0 if this
        one is not queued."""
        return self._readers.read(lambda db: ahead_of(db, execution_id, most))

    def unwatched_limits(self) -> Pending[dict[str, timedelta]]:
        """Return the open jobs that are stopped when nobody watches them for a time, by id, with that time."""
        return self._readers.read(unwatched_limits)

    # ---- the change log

    def newest_change(self) -> Pending[ChangePosition]:
        """Return the position after the newest change."""
        return self._readers.read(changes.newest_change)

    def changes(self, after: ChangePosition, limit: int) -> Pending[list[Change]]:
        """Return the first `limit` changes after that position. CursorTooOld: changes after it were pruned, or the
        position is not of this log."""
        return self._readers.read(lambda db: changes.changes(db, after, limit))

    def read_jobs(self, job_ids: Sequence[str], *, with_labels: bool = False) -> Pending[JobsRead]:
        """Return those of the jobs that exist, without their specs, and the sequence of the newest change then."""
        return self._readers.read(lambda db: changes.read_jobs(db, job_ids, with_labels=with_labels))

    def census(self) -> Pending[Census]:
        """Count what is stored; see `take_census` for what it costs."""
        return self._readers.read(lambda db: take_census(db, self._pools))

    @property
    def sqlite_version(self) -> str:
        """The version of the library of SQLite."""
        return sqlite3.sqlite_version

    @property
    def writes_waiting(self) -> int:
        """The units of work that are not answered yet."""
        return self._writer.waiting

    @property
    def reads_waiting(self) -> int:
        """The reads that no thread has begun."""
        return self._readers.waiting

    # ---- the outbox

    def outbox_position(self) -> Pending[int]:
        """Return the sequence of the last change that was read for the outbox."""
        return self._readers.read(outbox.position)

    def ends_after(self, position: int) -> Pending[Ends]:
        """Return whether somebody may be told of the changes after a position; it costs the writer nothing."""
        return self._readers.read(lambda db: outbox.ends_after(db, position, self._rules.default_notifications))

    def feed_outbox(self) -> Pending[tuple[bool, int]]:
        """Read the next changes for the outbox. Return whether there are more, and the position after these."""

        def work(db: Connection) -> Written[tuple[bool, int]]:
            more = outbox.feed(db, self._rules.default_notifications, self._now())
            return Written((more, outbox.position(db)), told=[self.on_delivery_due])

        return self._writer.write(work)

    def due_deliveries(
        self, *, of_host: int, limit: int, without: Collection[str] = (), only: Collection[str] | None = None
    ) -> Pending[Due]:
        """Return at most `limit` deliveries that are due now, at most `of_host` of each host, and when the next one is.

        `only`: of these hosts alone. `without`: none of these hosts."""
        return self._readers.read(
            lambda db: outbox.due(db, self._now(), of_host=of_host, limit=limit, without=without, only=only)
        )

    def finish_attempt(self, delivery_id: str, attempt: Attempt) -> Pending[None]:
        """Write the result of an attempt to deliver. It is tried again until it is stored."""

        def work(db: Connection) -> Written[None]:
            outbox.finish_attempt(db, delivery_id, attempt, self._now())
            return Written(None, told=[self.on_delivery_due])

        return self._writer.write_until_stored(work)

    def deliveries(
        self, query: DeliveryQuery, *, after: tuple[int] | None = None, size: int
    ) -> Pending[ListPage[Delivery]]:
        """Return a page of at most `size` after `after`, newest first."""
        return self._readers.read(lambda db: page_of_deliveries(db, query, after, size))

    def redeliver(self, delivery_id: str) -> Pending[Delivery]:
        """Make a delivery pending again. DeliveryNotFound."""

        def work(db: Connection) -> Written[Delivery]:
            delivery = outbox.redeliver(db, delivery_id, self._now())
            return Written(delivery, told=[self.on_delivery_due], job_id=delivery.job.id)

        return self._writer.write(work)

    def prune_deliveries(self, *, before: datetime, limit: int) -> Pending[int]:
        """Delete deliveries that ended before that time, at most `limit`. Return how many these were."""
        return self._writer.write(
            lambda db: Written(outbox.prune_deliveries(db, before=before, limit=limit)), vital=True
        )

    # ---- the audit

    def audit_entries(
        self, query: AuditQuery, *, after: tuple[int] | None = None, size: int
    ) -> Pending[ListPage[AuditEntry]]:
        """Return a page of at most `size` after `after`, newest first. The work is bounded: the page may be empty and
        not the last one."""
        return self._readers.read(lambda db: page_of_audit_entries(db, query, after, size))

    def prune_audit(self, *, before: datetime, limit: int) -> Pending[int]:
        """Delete entries of the audit from before that time, at most `limit`. Return how many these were."""
        return self._writer.write(lambda db: Written(prune_entries(db, before=before, limit=limit)), vital=True)

    # ---- what the dispatcher asks for

    def promote(self, limit: int) -> Pending[Promotion]:
        """End executions that were not claimed by their expire_time, queue those that are due, and handle the ticks of
        schedules: the oldest ones, at most `limit` in all."""

        def work(db: Connection) -> Written[Promotion]:
            now, handled = self._now(), 0
            changed: list[Execution] = []
            # Expired executions first, so that none of them is queued; ticks last, which find the runs that have ended.
            for step in (due.expire, due.promote, due.handle_ticks):
                count, executions = step(db, now, limit - handled, self._rules)
                handled += count
                changed += executions
            return Written(Promotion(handled >= limit, due.next_time(db)), changed)

        return self._writer.write(work)

    def next_due_time(self) -> Pending[datetime | None]:
        """Return the earliest time at which an execution is due or has expired; None if none waits for a time."""
        return self._readers.read(due.next_time)

    def claim_on(self, hosts: Sequence[str]) -> Pending[list[Assignment]]:
        """Claim a queued execution for each of `hosts`, as long as there are any in the host's pools. The highest
        priority goes first; within a priority tasks take turns; within a task the execution that was due first goes
        first. Tasks that are at a limit or paused are left out."""

        def work(db: Connection) -> Written[list[Assignment]]:
            now = self._now()
            claimed: list[Assignment] = []
            rates: dict[str, datetime | None] = {}
            empty: set[Sequence[str]] = set()
            if self._pools:
                placement.place(db, self._pools)
            for host in hosts:
                pools = self._pools.of_host(host)
                if pools in empty:
                    continue
                claim = _claim_next(db, host, pools, microseconds_since_epoch(now))
                if claim is None:
                    empty.add(pools)
                    continue
                execution, has_rate = claim
                claimed.append(follow_claim(db, execution))
                if has_rate:
                    rates |= task_limits.note_start(db, execution, now)
            told = [lambda: self.limited_tasks.rates_changed(rates)] if rates else []
            return Written(claimed, [assignment.execution for assignment in claimed], told=told)

        return self._writer.write(work)

    def release_rates(self, limit: int) -> Pending[None]:
        """Let tasks start executions again whose rate allows it: at most `limit` of them."""

        def work(db: Connection) -> Written[None]:
            rates = task_limits.release_rates(db, self._now(), limit)
            return Written(None, told=[lambda: self.limited_tasks.rates_changed(rates)])

        return self._writer.write(work)

    def unfinished(self) -> Pending[list[Assignment]]:
        """Return the executions that were claimed and are not final, in the order of their claims."""

        def work(db: Connection) -> list[Assignment]:
            rows = db.execute(
                f"""
                SELECT {ITS_SPEC}, {EXECUTION}
                FROM executions INDEXED BY executions_state CROSS JOIN jobs USING (job_id)
                WHERE executions.state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING})
                ORDER BY claim_time, executions.seq
                """
            ).fetchall()
            return [assignment_from(row) for row in rows]

        return self._readers.read(work)

    def assignment(self, execution_id: str) -> Pending[Assignment]:
        """Return the execution with the spec of its job. ExecutionNotFound."""
        return self._readers.read(lambda db: assignment_of(db, execution_id))

    def assignments(self, execution_ids: Sequence[str]) -> Pending[list[Assignment]]:
        """Return the executions with the specs of their jobs, in the order of the ids, without those that are gone."""
        return self._readers.read(lambda db: assignments_of(db, execution_ids))

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
            rates = task_limits.take_back_start(db, execution, self._now())
            return Written(
                execution, [execution], told=[lambda: self.limited_tasks.rates_changed(rates)] if rates else ()
            )

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
        usage: Usage | None = None,
        outputs: Outputs | None = None,
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
                    logs = :logs, log_bytes = :log_bytes, usage = :usage, outputs = :outputs,
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
                usage=usage_text(usage),
                outputs=outputs_text(outputs),
                exit_time=microseconds_or_none(exit_time),
                seal_time=microseconds_or_none(seal_time),
                first_byte_time=microseconds_or_none(first_byte_time),
                start_time=microseconds_or_none(start_time),
            )
            if execution is None:
                return Written(execution_of(db, execution_id))
            return Written(execution, [execution, *settle(db, execution, now, self._rules)])

        return self._writer.write_until_stored(work)

    def probe(self) -> Pending[None]:
        """Write something that changes nothing, down to the disk. DiskFull or StoreFailed: that was not possible."""

        def work(db: Connection) -> Written[None]:
            # SQLite writes nothing for a row that stays as it is. Here the page has changed, and changed back.
            for change in (1, -1):
                db.execute("UPDATE kept SET waiting = waiting + ?", [change])
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

    def inputs_in_use(self, checksums: Collection[str]) -> Pending[Set[str]]:
        """Return those of the checksums that jobs name in their inputs."""
        return self._readers.read(lambda db: pruning.inputs_in_use(db, checksums))

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

    def excess(self, *, after: PruneCursor = PruneQuery.START, limit: int) -> Pending[list[PruneCandidate]]:
        """Return executions beyond the history of their jobs, at most `limit` after that cursor."""
        return self._readers.read(lambda db: pruning.excess(db, after, limit))

    def delete_excess(self, execution_ids: Sequence[str]) -> Pending[int]:
        """Delete executions beyond the history of their jobs. Return how many these were. To be called when their files
        are deleted."""

        def work(db: Connection) -> Written[int]:
            outbox.catch_up(db, self._rules.default_notifications, self._now())
            return Written(pruning.delete_excess(db, execution_ids), told=[self.on_delivery_due])

        return self._writer.write(work, vital=True)

    def delete_jobs(self, job_ids: Sequence[str]) -> Pending[int]:
        """Delete those of the jobs that are final. Return how many these were. To be called when the files of all their
        executions are deleted."""

        def work(db: Connection) -> Written[int]:
            outbox.catch_up(db, self._rules.default_notifications, self._now())
            deleted = pruning.delete_jobs(db, job_ids)
            outbox.forget_deleted(db, job_ids)
            return Written(deleted, changed_jobs=job_ids, told=[self.on_delivery_due])

        return self._writer.write(work, vital=True)

    def prune_changes(self, *, before: datetime, keep: int, limit: int) -> Pending[int]:
        """Delete the oldest rows of the change log, at most `limit`: those beyond the newest `keep`, and those from
        before that time. Return how many these were. What is deleted was read for the outbox before."""

        def work(db: Connection) -> Written[int]:
            outbox.feed(db, self._rules.default_notifications, self._now())
            up_to = outbox.position(db)
            deleted = changes.prune_changes(db, before=before, keep=keep, limit=limit, up_to=up_to)
            return Written(deleted, told=[self.on_delivery_due])

        return self._writer.write(work, vital=True)


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


def _claim_next(db: Connection, host: str, pools: Sequence[str], now: int) -> tuple[Execution, bool] | None:
    """Claim the next execution for the host. Return it, and whether its task has a rate; None: nothing waits."""
    values = {"host": host, "now": now, **{f"pool_{number}": pool for number, pool in enumerate(pools)}}
    rows = db.execute(_claim_sql(len(pools)), values).fetchall()
    return (execution_from(rows[0][1:]), bool(rows[0][0])) if rows else None


@cache
def _claim_sql(pools: int) -> str:
    # Of each pool of the host, the next execution; of these, the one whose line has the highest priority and the next
    # turn. Round-robin: a line that is served gets the last turn.
    following = [_NEXT_OF_POOL.format(number=number) for number in range(pools)]
    of_all = following[0] if pools == 1 else " UNION ALL ".join(f"SELECT * FROM ({each})" for each in following)
    return f"""
        UPDATE executions SET state = {State.PREPARING}, state_time = :now, claim_time = :now, host = :host
        WHERE state = {State.QUEUED} AND seq = (SELECT seq FROM ({of_all}) ORDER BY priority DESC, turn LIMIT 1)
        RETURNING {task_limits.HAS_RATE}, {EXECUTION}
        """


# Of the ready lines of a pool (index `lines_ready`), the one with the next turn; of its executions, the one that was
# due first. That is two steps down two indexes, however many wait, and however many are blocked. Expired executions are
# skipped; they are few, as `promote` ends them before claims.
_NEXT_OF_POOL = f"""
    SELECT queued.seq AS seq, lines.priority AS priority, lines.turn AS turn
    FROM lines INDEXED BY lines_ready CROSS JOIN executions AS queued INDEXED BY executions_queued
    ON queued.state = {State.QUEUED} AND queued.priority = lines.priority AND queued.task_id = lines.task_id
    WHERE lines.pool = :pool_{{number}} AND lines.blocked = 0
        AND (queued.expire_time IS NULL OR queued.expire_time >= :now)
    ORDER BY lines.priority DESC, lines.turn, queued.due_time, queued.seq LIMIT 1
"""


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
