"""The rules behind the calls, on values of the model. A request is validated as a whole before anything is done."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from fastlane_grpc.api import validation
from fastlane_grpc.api.allow_lists import AllowLists
from fastlane_grpc.api.inputs import Inputs, Upload
from fastlane_grpc.api.job_filters import (
    RetriedJobs,
    RetryJobsRequest,
    StopJobsRequest,
    filter_violations,
    retry_matching,
    retry_violations,
    stop_matching,
)
from fastlane_grpc.api.job_log_stream import JobLogRequest, JobWatches, job_log_stream
from fastlane_grpc.api.limits import update_task_violations, why_limited
from fastlane_grpc.api.log_stream import LogRequest, Send, StreamEncoding, log_stream
from fastlane_grpc.api.notification_validation import Receivers, notification_violations
from fastlane_grpc.api.outputs import MAX_PART_BYTES, OutputReader
from fastlane_grpc.api.pages import MAX_SAMPLED, OutputsQuery, PageRequest, PageResult, TaskQuery, position_of
from fastlane_grpc.api.schedule_validation import MAX_PREVIEW, preview_violations
from fastlane_grpc.api.unstored_stops import UnstoredStops
from fastlane_grpc.api.unwatched import UnwatchedJobs
from fastlane_grpc.api.visibility import seen_jobs
from fastlane_grpc.api.watch import WatchEncoding, WatchRequest, watch_stream, watch_violations
from fastlane_grpc.config import Settings
from fastlane_grpc.errors import (
    DiskFull,
    InvalidRequest,
    OutputsNotFound,
    Refusal,
    ServerStopping,
    StoreFailed,
    TooManyStreams,
    Violation,
)
from fastlane_grpc.execution import UsageSampler
from fastlane_grpc.logs import Cursor, Tails
from fastlane_grpc.model import (
    ArrayPosition,
    Cron,
    Delivery,
    Execution,
    Hold,
    HostReport,
    Job,
    JobSpec,
    Notification,
    OutputEntry,
    Outputs,
    State,
    Stop,
    StopCause,
    Task,
    TaskLimitsChange,
    Waiting,
    WaitReason,
    utc_now,
)
from fastlane_grpc.retention import Pruned, Retention
from fastlane_grpc.schedule import Ticks
from fastlane_grpc.store import (
    OPEN_STATES,
    AuditEntry,
    AuditQuery,
    DeliveryQuery,
    EnqueueBatch,
    Enqueued,
    ExecutionQuery,
    JobQuery,
    ListPage,
    PruneQuery,
    Store,
    first_job,
)
from fastlane_grpc.trust import PRINCIPAL
from fastlane_grpc.watch import WatchHub

Item = TypeVar("Item")

# The delay that a caller is advised when all streams are in use.
_STREAMS_RETRY_SECONDS = 5.0
# Ticks that a preview returns, unless it asks for more.
_PREVIEWED = 10
# Of a server that has no mail server and no keys.
NO_RECEIVERS = Receivers(has_mail=False, has_key=lambda name: False)
# Pages that are read for a caller that sees nothing of them.
_MOST_EMPTY_PAGES = 20
# Executions ahead of a queued one are counted up to this number.
_MOST_AHEAD = 1_000


@dataclass(frozen=True, slots=True)
class EnqueueRequest:
    """A job to enqueue."""

    task_id: str
    spec: JobSpec
    request_id: str = ""
    validate_only: bool = False
    caller_address: str = ""


@dataclass(frozen=True, slots=True)
class ReplaceRequest:
    """A job to create under the caller's id, or to replace."""

    job_id: str
    task_id: str
    spec: JobSpec
    etag: str = ""
    caller_address: str = ""


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """A schedule, the number of its ticks to return (0: 10), and the time after which they come; None: now."""

    cron: Cron
    count: int = 0
    from_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """A request to delete executions that ended at least `older_than` ago; None: the field was not set."""

    older_than: timedelta | None
    logs_only: bool = False
    task_id: str = ""
    validate_only: bool = False


class Capacity(Protocol):
    """The state of the hosts, and the reasons for which executions wait, as the dispatcher knows them."""

    @property
    def hosts(self) -> Sequence[HostReport]:
        """Each host as it is now, in the order of the configuration."""

    def why_queued(self, task_id: str) -> tuple[WaitReason, str] | None:
        """Return why queued executions of a task wait for a host or a slot; None: a slot is about to be assigned."""

    def pool_of_task(self, task_id: str) -> str:
        """Return the name of the task's pool; empty if it has none."""

    def why_queued_in(self, pool: str) -> tuple[WaitReason, str] | None:
        """Return the same for the tasks of a pool."""

    async def drain_host(self, name: str, note: str) -> HostReport:
        """Assign no further executions to a host. HostNotFound."""

    async def resume_host(self, name: str) -> HostReport:
        """Assign executions to a host again. HostNotFound."""

    def waiting(self, execution_id: str) -> Waiting | None:
        """Return why an execution with a slot cannot begin yet."""

    def wake_at(self, time: datetime | None) -> None:
        """Look for what is due at this time."""

    def stop_unstored(self, execution_id: str, stop: Stop) -> bool:
        """Pass a stop that is not on disk to the runner of this execution. Return whether the execution has a claim."""


class Service:
    """The use cases. Lives on the loop."""

    def __init__(
        self,
        store: Store,
        tails: Tails,
        capacity: Capacity,
        retention: Retention,
        settings: Settings,
        watches: WatchHub,
        inputs: Inputs,
        outputs: OutputReader,
        usage: UsageSampler,
        receivers: Receivers = NO_RECEIVERS,
    ) -> None:
        """`receivers`: what notifications can be sent to."""
        self.settings = settings
        self.start_time = utc_now()
        self._store = store
        self._tails = tails
        self._capacity = capacity
        self._retention = retention
        self._watches = watches
        self._inputs = inputs
        self._outputs = outputs
        self._usage = usage
        self._receivers = receivers
        self._allow_lists = AllowLists(settings)
        self.job_watches = JobWatches()
        self._unstored_stops = UnstoredStops(capacity.stop_unstored)
        self.unwatched_jobs = UnwatchedJobs(store, lambda job_id, note: self.stop(job_id, note=note, grace=None))
        self._streams = 0
        self._stopping = False

    def stop_serving(self) -> None:
        """End every open stream and every later call with ServerStopping."""
        self._stopping = True
        self._retention.close()
        self._tails.notify_all()
        self._watches.notify_all()
        self.job_watches.notify_all()

    async def enqueue(
        self, request: EnqueueRequest, conversion_violations: Sequence[Violation] = ()
    ) -> tuple[Job, bool]:
        """Keep the job, unless its request_id was used before. Return the kept job and whether it existed.

        `conversion_violations` are the violations found while the request was converted."""
        self._check_serving()
        refusal = self.check(request, conversion_violations)
        if request.spec.has_contents:
            request, refusal = await self.with_inputs(request, refusal)
        if request.validate_only:
            if refusal:
                raise refusal
            return validated_job(request), False
        return await self._store.enqueue(
            task_id=request.task_id,
            spec=request.spec,
            request_id=request.request_id,
            caller_address=request.caller_address,
            refusal=refusal,
        )

    def check(self, request: EnqueueRequest, conversion_violations: Sequence[Violation] = ()) -> Refusal | None:
        """Raise InvalidRequest. Return the refusal of the job if its request_id is new: the job could never start."""
        settings, now = self.settings, utc_now()
        violations = validation.enqueue_violations(
            request.task_id, request.spec, request.request_id, settings.max_timeout, now, settings.secret_names
        )
        of_notifications = self._notification_violations(request.spec.notifications, "spec.notifications")
        validation.raise_if_invalid(chain(conversion_violations, violations, of_notifications))
        return self._never_starts(request.task_id, request.spec, now)

    async def with_inputs(
        self, request: EnqueueRequest, refusal: Refusal | None
    ) -> tuple[EnqueueRequest, Refusal | None]:
        """Store the contents of a checked request's inputs. Return the request with their sizes, and the refusal of the
        job if its request_id is new. DiskFull."""
        spec, violations = await self._inputs.stored(request.spec, validate_only=request.validate_only)
        if violations:
            refusal = InvalidRequest([*(refusal.violations if refusal else ()), *violations])
        return replace(request, spec=spec), refusal

    async def upload_input(self, upload: Upload) -> tuple[int, bool]:
        """Store a part of a content. Return how many bytes of it are stored, and whether it is complete."""
        self._check_serving()
        received = await self._inputs.upload(upload)
        return received, received == upload.size_bytes

    def _never_starts(self, task_id: str, spec: JobSpec, now: datetime) -> Refusal | None:
        """Return the refusal of a job that could never start, as time or settings are now."""
        not_allowed = self._allow_lists.violations(task_id, spec) if spec.needs_permission else ()
        violations = [*validation.never_starts_violations(spec, now), *not_allowed]
        return InvalidRequest(violations) if violations else self._allow_lists.not_found(task_id, spec)

    def batch(self, caller_address: str) -> EnqueueBatch:
        """Return a batch without jobs, for `enqueue_batch`."""
        self._check_serving()
        return self._store.batch(caller_address)

    async def enqueue_batch(self, batch: EnqueueBatch) -> Sequence[Enqueued]:
        """Keep the jobs of a batch, which were checked, in one transaction. Return what became of each."""
        self._check_serving()
        return await self._store.enqueue_batch(batch)

    async def retry_jobs(
        self, request: RetryJobsRequest, conversion_violations: Sequence[Violation] = ()
    ) -> tuple[RetriedJobs, datetime]:
        """Retry jobs that match the filter, or count them where the request only validates. Return what was done, and
        the time before which these jobs ended."""
        self._check_serving()
        validation.raise_if_invalid(
            chain(conversion_violations, retry_violations(request, complete=not conversion_violations))
        )
        until_time = request.until_time or utc_now()
        return await retry_matching(self._store, request, until_time), until_time

    async def stop_jobs(
        self,
        request: StopJobsRequest,
        conversion_violations: Sequence[Violation] = (),
    ) -> tuple[int, bool]:
        """Stop jobs that match the filter, or count them where the request only validates. Return how many, and whether
        more match."""
        self._check_serving()
        validation.raise_if_invalid(
            chain(
                conversion_violations,
                filter_violations(request.filter, OPEN_STATES, complete=not conversion_violations),
                validation.stop_violations(request.note, request.grace),
            )
        )
        return await stop_matching(self._store, request)

    async def job(self, job_id: str) -> tuple[Job, Waiting | None]:
        """Return the job and what its execution waits for."""
        self._check_serving()
        _require("job_id", job_id)
        job, ahead = await self._store.job_in_line(job_id, _MOST_AHEAD)
        return job, self._waiting_behind(job.execution, ahead)

    async def execution(self, execution_id: str) -> tuple[Execution, Waiting | None]:
        """Return the execution and what it waits for."""
        self._check_serving()
        _require("execution_id", execution_id)
        execution, ahead = await self._store.execution_in_line(execution_id, _MOST_AHEAD)
        return execution, self._waiting_behind(execution, ahead)

    async def read_outputs(self, execution_id: str, offset: int, max_bytes: int) -> tuple[bytes, Outputs]:
        """Return a part of the archive of an execution's outputs, and what the archive is. OutputsNotFound."""
        self._check_serving()
        _require("execution_id", execution_id)
        if max_bytes < 0:
            raise InvalidRequest([Violation("max_bytes", f"is {max_bytes}; it must be 0 (1 MiB) or more")])
        outputs = await self._outputs_of(execution_id)
        if not 0 <= offset <= outputs.size_bytes:
            raise InvalidRequest(
                [Violation("offset", f"is {offset}; it must be from 0 to {outputs.size_bytes}, the size")]
            )
        size = min(max_bytes or MAX_PART_BYTES, MAX_PART_BYTES)
        return await self._outputs.part(execution_id, offset, size), outputs

    async def output_entries(self, request: PageRequest[OutputsQuery]) -> PageResult[OutputEntry]:
        """Return a page of the entries of an execution's outputs. OutputsNotFound."""
        self._check_serving()
        query = request.query
        _require("execution_id", query.execution_id)
        validation.raise_if_invalid(validation.page_violations(request.size))
        await self._outputs_of(query.execution_id)
        (offset,) = position_of(request.token, query) or (0,)
        return PageResult(query, await self._outputs.entries(query.execution_id, offset, request.max_items))

    async def _outputs_of(self, execution_id: str) -> Outputs:
        execution = await self._store.execution(execution_id)
        if execution.outputs is None or not execution.outputs.size_bytes:
            raise OutputsNotFound(execution_id, _why_no_outputs(execution))
        return execution.outputs

    async def stop(
        self, job_id: str, *, note: str, grace: timedelta | None, conversion_violations: Sequence[Violation] = ()
    ) -> Job:
        """Stop the job, with the job's own grace unless `grace` is given."""
        self._check_serving()
        _require("job_id", job_id)
        validation.raise_if_invalid([*conversion_violations, *validation.stop_violations(note, grace)])
        try:
            return await self._store.stop(job_id, grace=grace, note=note)
        except (DiskFull, StoreFailed) as error:
            job = await self._store.job(job_id)
            assert job.spec is not None, "read with the job"
            stop = Stop(StopCause.CALLER, utc_now(), job.spec.grace if grace is None else grace, note)
            write = partial(self._store.stop, job_id, grace=stop.grace, note=note)
            execution = self._unstored_stops.carry_out(
                job.execution, stop, lambda time: write(carried_out_since=time), error
            )
            return replace(job, execution=execution, state=execution.state, stop_time=job.stop_time or stop.time)

    async def stop_execution(
        self, execution_id: str, *, note: str, grace: timedelta | None, conversion_violations: Sequence[Violation] = ()
    ) -> Execution:
        """Stop this execution, with the grace of its job unless `grace` is given."""
        self._check_serving()
        _require("execution_id", execution_id)
        validation.raise_if_invalid([*conversion_violations, *validation.stop_violations(note, grace)])
        try:
            return await self._store.stop_execution(execution_id, grace=grace, note=note)
        except (DiskFull, StoreFailed) as error:
            assignment = await self._store.assignment(execution_id)
            stop = Stop(StopCause.CALLER, utc_now(), assignment.spec.grace if grace is None else grace, note)
            write = partial(self._store.stop_execution, execution_id, grace=stop.grace, note=note)
            return self._unstored_stops.carry_out(
                assignment.execution, stop, lambda time: write(carried_out_since=time), error
            )

    async def retry(self, job_id: str, request_id: str) -> tuple[Job, bool]:
        """Start one more run of a final job. Return the job, and whether `request_id` had started one before."""
        self._check_serving()
        _require("job_id", job_id)
        validation.raise_if_invalid(validation.request_id_violations(request_id))
        return await self._store.retry_job(job_id, request_id=request_id)

    async def replace(
        self, request: ReplaceRequest, conversion_violations: Sequence[Violation] = ()
    ) -> tuple[Job, bool]:
        """Create the job under its id, or replace its spec. Return the job, and whether it was created."""
        self._check_serving()
        _require("job_id", request.job_id)
        settings, now = self.settings, utc_now()
        violations = validation.enqueue_violations(
            request.task_id, request.spec, "", settings.max_timeout, now, settings.secret_names
        )
        validation.raise_if_invalid(
            chain(
                conversion_violations,
                validation.job_id_violations(request.job_id),
                violations,
                self._notification_violations(request.spec.notifications, "spec.notifications"),
            )
        )
        refusal, spec = self._never_starts(request.task_id, request.spec, now), request.spec
        if spec.has_contents:
            spec, missing = await self._inputs.stored(spec, validate_only=False)
            refusal = InvalidRequest(missing) if missing else refusal
        job, created = await self._store.replace_job(
            request.job_id,
            task_id=request.task_id,
            spec=spec,
            etag=request.etag,
            caller_address=request.caller_address,
            refusal=refusal,
        )
        self._capacity.wake_at(job.tick_time)
        return job, created

    async def pause_schedule(self, job_id: str) -> Job:
        """Stop the ticks of the job's schedule."""
        self._check_serving()
        _require("job_id", job_id)
        return await self._store.pause_schedule(job_id)

    async def resume_schedule(self, job_id: str) -> Job:
        """Continue a paused schedule with its next tick."""
        self._check_serving()
        _require("job_id", job_id)
        job = await self._store.resume_schedule(job_id)
        self._capacity.wake_at(job.tick_time)
        return job

    def preview(
        self, request: PreviewRequest, conversion_violations: Sequence[Violation] = ()
    ) -> tuple[list[datetime], str]:
        """Return the next ticks of a schedule, and the schedule in words."""
        self._check_serving()
        now = utc_now()
        validation.raise_if_invalid(chain(conversion_violations, preview_violations(request.cron, request.count, now)))
        ticks = Ticks(request.cron)
        most = min(request.count or _PREVIEWED, request.cron.max_runs or _PREVIEWED * MAX_PREVIEW)
        return list(islice(ticks.all_after(request.from_time or now), most)), ticks.description

    async def task(self, task_id: str) -> Task:
        """Return the task."""
        self._check_serving()
        _require("task_id", task_id)
        return await self._store.task(task_id)

    async def update_task(
        self, task_id: str, change: TaskLimitsChange, conversion_violations: Sequence[Violation] = ()
    ) -> Task:
        """Change the limits of a task."""
        self._check_serving()
        validation.raise_if_invalid(
            chain(
                conversion_violations,
                update_task_violations(task_id, change),
                self._notification_violations(change.notifications or (), "notifications.items"),
            )
        )
        return await self._store.update_task(task_id, change)

    async def deliveries(
        self, request: PageRequest[DeliveryQuery], conversion_violations: Sequence[Violation] = ()
    ) -> PageResult[Delivery]:
        """Return a page, newest first."""
        self._check_serving()
        query = request.query
        validation.raise_if_invalid(chain(conversion_violations, validation.page_violations(request.size)))
        return PageResult(
            query, await self._store.deliveries(query, after=position_of(request.token, query), size=request.max_items)
        )

    async def audit_entries(self, request: PageRequest[AuditQuery]) -> PageResult[AuditEntry]:
        """Return a page, newest first."""
        self._check_serving()
        query = request.query
        validation.raise_if_invalid(validation.page_violations(request.size))
        after = position_of(request.token, query)
        return PageResult(query, await self._store.audit_entries(query, after=after, size=request.max_items))

    async def redeliver(self, delivery_id: str) -> Delivery:
        """Deliver a notification once more."""
        self._check_serving()
        _require("delivery_id", delivery_id)
        return await self._store.redeliver(delivery_id)

    def _notification_violations(self, notifications: Sequence[Notification], field: str) -> Iterator[Violation]:
        return notification_violations(notifications, field, self._receivers, self.settings.secret_names)

    async def drain_host(self, name: str, note: str) -> HostReport:
        """Assign no further executions to a host."""
        self._check_serving()
        _require("host", name)
        validation.raise_if_invalid(validation.note_violations(note))
        return await self._capacity.drain_host(name, note)

    async def resume_host(self, name: str) -> HostReport:
        """Assign executions to a host again."""
        self._check_serving()
        _require("host", name)
        return await self._capacity.resume_host(name)

    async def jobs(
        self, request: PageRequest[JobQuery], conversion_violations: Sequence[Violation] = ()
    ) -> PageResult[Job]:
        """Return a page, newest first."""
        self._check_serving()
        query = request.query
        validation.raise_if_invalid(
            chain(
                conversion_violations,
                validation.page_violations(request.size),
                validation.id_prefix_violations(query.id_prefix),
                validation.task_filter_violations(query.task_id),
                validation.label_filter_violations(query.labels),
            )
        )
        return await self._visible_page(
            request,
            lambda token: self._store.jobs(query, after=position_of(token, query), size=request.max_items),
            lambda job: job.task_id,
        )

    async def executions(
        self,
        request: PageRequest[ExecutionQuery],
        conversion_violations: Sequence[Violation] = (),
        *,
        with_usage: bool = False,
    ) -> PageResult[Execution]:
        """Return a page, newest first. `with_usage`: with what running executions have used so far."""
        self._check_serving()
        query = request.query
        validation.raise_if_invalid(
            chain(
                conversion_violations,
                validation.page_violations(request.size),
                validation.id_prefix_violations(query.id_prefix),
                validation.task_filter_violations(query.task_id),
            )
        )
        size = min(request.max_items, MAX_SAMPLED) if with_usage else request.max_items
        page = await self._visible_page(
            request,
            lambda token: self._store.executions(query, after=position_of(token, query), size=size),
            lambda execution: execution.task_id,
        )
        return page.with_items(await self._sampled(page.items)) if with_usage else page

    async def _sampled(self, executions: Sequence[Execution]) -> Sequence[Execution]:
        used = await self._usage.of(executions)
        return [replace(each, usage=used[each.id]) if each.id in used else each for each in executions]

    async def tasks(self, request: PageRequest[TaskQuery]) -> PageResult[Task]:
        """Return a page, by name."""
        self._check_serving()
        validation.raise_if_invalid(validation.page_violations(request.size))
        query = request.query
        return await self._visible_page(
            request,
            lambda token: self._store.tasks(after=position_of(token, query), size=request.max_items),
            lambda task: task.id,
        )

    async def _visible_page(
        self,
        request: PageRequest[Any],
        read: Callable[[str], Awaitable[ListPage[Item]]],
        task_of: Callable[[Item], str],
    ) -> PageResult[Item]:
        """Return a page of what the caller sees. `read` reads the page of a token."""
        principal = PRINCIPAL.get()
        result = PageResult(request.query, await read(request.token))
        if principal.tasks is None:
            return result
        for _ in range(_MOST_EMPTY_PAGES):
            page = result.page
            seen = [index for index, item in enumerate(page.items) if principal.sees(task_of(item))]
            rest = PageResult(request.query, page).token(len(page.items))
            items, positions = [page.items[index] for index in seen], [page.positions[index] for index in seen]
            result = PageResult(request.query, ListPage(items, positions, page.rest))
            if seen or not rest:
                break
            result = PageResult(request.query, await read(rest))
        else:
            result = PageResult(request.query, ListPage((), (), result.page.rest))
        return result

    @property
    def reads(self) -> Store:
        """The store. `visibility` reads there to which task a job or an execution belongs."""
        return self._store

    async def log(
        self, request: LogRequest, conversion_violations: Sequence[Violation], encoding: StreamEncoding, send: Send
    ) -> None:
        """Send the log of one execution to its end; see `log_stream`."""
        self._check_serving()
        _require("execution_id", request.execution_id)
        with self._stream(request, conversion_violations), ExitStack() as watching:

            async def announce(cursor: Cursor, execution: Execution) -> None:
                if request.follow:
                    watching.enter_context(self.unwatched_jobs.watching([execution.job_id]))

            await log_stream(
                request,
                self._store,
                self._tails,
                self.waiting_in_line,
                lambda: self._stopping,
                encoding,
                send,
                announce,
            )

    async def job_log(
        self, request: JobLogRequest, conversion_violations: Sequence[Violation], encoding: StreamEncoding, send: Send
    ) -> None:
        """Send the logs of a job to its end; see `job_log_stream`."""
        self._check_serving()
        _require("job_id", request.job_id)
        watched = [request.job_id] if request.follow else []
        with self._stream(request, conversion_violations), self.unwatched_jobs.watching(watched):
            await job_log_stream(
                request,
                self._store,
                self._tails,
                self.job_watches,
                self.waiting_in_line,
                lambda: self._stopping,
                encoding,
                send,
            )

    @contextmanager
    def _stream(
        self, request: LogRequest | JobLogRequest, conversion_violations: Sequence[Violation]
    ) -> Iterator[None]:
        """Check a request for a log, and count its stream within the context. TooManyStreams."""
        tail_lines = request.start_point.tail_lines if request.start_point else None
        validation.raise_if_invalid(
            [
                *conversion_violations,
                *validation.tail_lines_violations(tail_lines),
                *validation.heartbeat_violations(request.heartbeat),
            ]
        )
        with self._counted():
            yield

    @property
    def streams_open(self) -> int:
        """The streams in flight."""
        return self._streams

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count one more stream within the context. TooManyStreams."""
        if self._streams >= self.settings.max_streams:
            raise TooManyStreams(
                f"all {self.settings.max_streams} streams are taken; try again later",
                retry_seconds=_STREAMS_RETRY_SECONDS,
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def watch(
        self, request: WatchRequest, conversion_violations: Sequence[Violation], encoding: WatchEncoding, send: Send
    ) -> None:
        """Send jobs and their changes; see `watch_stream`."""
        self._check_serving()
        validation.raise_if_invalid(chain(conversion_violations, watch_violations(request)))
        # A job that the caller does not see is not watched by it.
        watched = await seen_jobs(request.job_ids, self._store)
        with self._counted(), self.unwatched_jobs.watching(watched):
            await watch_stream(request, self._watches, lambda: self._stopping, encoding, send)

    async def prune(self, request: PruneRequest, conversion_violations: Sequence[Violation] = ()) -> Pruned:
        """Delete a bounded number of old executions, or count them where the request only validates."""
        self._check_serving()
        validation.raise_if_invalid(
            chain(conversion_violations, validation.prune_violations(request.older_than, request.task_id))
        )
        old = PruneQuery(_time_ago(request.older_than or timedelta()), request.logs_only, request.task_id)
        return await (self._retention.count(old) if request.validate_only else self._retention.prune(old))

    def waiting(self, execution: Execution) -> Waiting | None:
        """Return what the execution waits for, if it waits. The executions ahead of it are not counted."""
        return self._waiting(execution, self._capacity.why_queued)

    def waiting_of_each(self) -> Callable[[Execution], Waiting | None]:
        """Return `waiting` for the executions of one page: the hosts are asked once for each pool."""
        why_queued_in = cache(self._capacity.why_queued_in)
        return partial(self._waiting, why_queued=lambda task_id: why_queued_in(self._capacity.pool_of_task(task_id)))

    def _waiting(
        self, execution: Execution, why_queued: Callable[[str], tuple[WaitReason, str] | None]
    ) -> Waiting | None:
        if execution.state is State.QUEUED:
            if (limit := why_limited(execution, self._store.limited_tasks, utc_now())) is not None:
                return limit
            reason = why_queued(execution.task_id)
            return reason and Waiting(*reason, execution.state_time)
        if execution.state is State.PREPARING:
            return self._capacity.waiting(execution.id)
        return _waiting_for_time(execution) if execution.state is State.SCHEDULED else None

    async def waiting_in_line(self, execution: Execution) -> Waiting | None:
        """Return `waiting` with the number of executions ahead. Costs a query of the store, so not for lists."""
        if execution.state is not State.QUEUED or self.waiting(execution) is None:
            return self.waiting(execution)
        return self._waiting_behind(execution, await self._store.ahead(execution.id, _MOST_AHEAD))

    def _waiting_behind(self, execution: Execution, ahead: int) -> Waiting | None:
        waiting = self.waiting(execution)
        # The executions ahead may be of tasks that the caller does not see.
        return replace(waiting, ahead=ahead) if waiting and ahead and PRINCIPAL.get().tasks is None else waiting

    @property
    def instance(self) -> str:
        """The id of the server's data."""
        return self._store.instance

    def hosts(self) -> Sequence[HostReport]:
        """Return the current report of each host, in the order of the configuration."""
        self._check_serving()
        return self._capacity.hosts

    def _check_serving(self) -> None:
        if self._stopping:
            raise ServerStopping("the server is stopping; try again", retry_seconds=1)


def _require(field: str, value: str) -> None:
    if not value:
        validation.raise_if_invalid([Violation(field, "is required")])


def _time_ago(duration: timedelta) -> datetime:
    now = utc_now()
    # Bounded, as a duration may reach back beyond the first date.
    return now - min(duration, now - datetime(1970, 1, 1, tzinfo=UTC))


def _waiting_for_time(execution: Execution) -> Waiting:
    """Return what a scheduled execution waits for."""
    since, due_time = execution.state_time, execution.times.due_time
    if execution.hold is Hold.SCHEDULE_PAUSED:
        return Waiting(WaitReason.SCHEDULE_PAUSED, "the schedule is paused", since)
    if execution.hold is Hold.UNIQUE_KEY:
        return Waiting(WaitReason.UNIQUE_KEY, "another job holds its unique key, and is being stopped", since)
    time = f"{due_time:%Y-%m-%dT%H:%M:%SZ}"
    if execution.attempt > 1:
        return Waiting(WaitReason.BACKOFF, f"attempt {execution.attempt} starts at {time}", since, due_time=due_time)
    return Waiting(WaitReason.NOT_DUE, f"starts at {time}", since, due_time=due_time)


def validated_job(request: EnqueueRequest, array: ArrayPosition | None = None) -> Job:
    """Return the job as it would be kept, without ids."""
    job = first_job("", request.task_id, request.spec, utc_now(), request.request_id, request.caller_address, array)
    return replace(job, execution=replace(job.execution, id=""))


def _why_no_outputs(execution: Execution) -> str:
    if not execution.state.final:
        return "it has not ended"
    if execution.outputs is None:
        return "its job asks for none, or its container never began"
    return execution.outputs.detail or "its container had none of the paths"
