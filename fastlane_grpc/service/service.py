"""What callers can ask for: the rules, and what follows from them. A request is looked at as a whole before anything is
done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Protocol

from fastlane_grpc.config import Settings
from fastlane_grpc.errors import DiskFull, ServerStopping, StoreFailed, TooManyStreams, Violation
from fastlane_grpc.logs import Tails
from fastlane_grpc.model import (
    Execution,
    HostReport,
    Job,
    JobSpec,
    LogTotals,
    State,
    Stop,
    StopCause,
    Task,
    Times,
    Waiting,
    WaitReason,
    utc_now,
)
from fastlane_grpc.retention import Pruned, Retention
from fastlane_grpc.schedule import first, waiting_state
from fastlane_grpc.service import validation
from fastlane_grpc.service.log_stream import LogRequest, Send, StreamEncoding, log_stream
from fastlane_grpc.service.pages import Listed, PageRequest, TaskQuery, position_of
from fastlane_grpc.service.unstored_stops import UnstoredStops
from fastlane_grpc.store import ExecutionQuery, JobQuery, Old, Store

# How long a caller who found every stream taken had better wait.
_STREAMS_RETRY_SECONDS = 5.0
# How many go before one that waits is counted so far.
_MOST_AHEAD = 1_000


@dataclass(frozen=True, slots=True)
class EnqueueRequest:
    """A job to keep."""

    task_id: str
    spec: JobSpec
    request_id: str = ""
    validate_only: bool = False
    caller_address: str = ""


@dataclass(frozen=True, slots=True)
class PruneRequest:
    """What to delete: what ended so long ago; None was not given."""

    older_than: timedelta | None
    logs_only: bool = False
    task_id: str = ""
    validate_only: bool = False


class Places(Protocol):
    """What the service has to know of the dispatcher, to say why an execution waits, and how the hosts are."""

    @property
    def places(self) -> tuple[int, int]:
        """Of those that can be had just now: how many are taken, and how many there are."""

    @property
    def host_error(self) -> str:
        """Why no host takes anything; empty if one does."""

    @property
    def hosts(self) -> Sequence[HostReport]:
        """Each host as it is now, in the order of the configuration."""

    def waiting(self, execution_id: str) -> Waiting | None:
        """What an execution that has a place waits for before it can begin."""

    def stop_unstored(self, execution_id: str, stop: Stop) -> bool:
        """Whether an execution has a runner, which is then given an order to stop that is not on disk."""


class Service:
    """Every use case, once. Lives on the loop."""

    def __init__(self, store: Store, tails: Tails, places: Places, upkeep: Retention, settings: Settings) -> None:
        self.settings = settings
        self.start_time = utc_now()
        self._store = store
        self._tails = tails
        self._places = places
        self._upkeep = upkeep
        self._unstored_stops = UnstoredStops(places.stop_unstored)
        self._streams = 0
        self._stopping = False

    def stop_serving(self) -> None:
        """From here on every call, and every open stream, ends with ServerStopping."""
        self._stopping = True
        self._upkeep.close()
        self._tails.ring_all()

    async def enqueue(self, request: EnqueueRequest, malformed: Sequence[Violation] = ()) -> tuple[Job, bool]:
        """The job that is kept, with its first execution, and whether it was there already. `malformed`: fields the
        wire could not say."""
        self._check_serving()
        settings = self.settings
        violations = validation.enqueue_violations(
            request.task_id, request.spec, request.request_id, settings.max_timeout, utc_now(), settings.secret_names
        )
        validation.refuse(chain(malformed, violations))
        if request.validate_only:
            return _unkept(request), False
        return await self._store.enqueue(
            task_id=request.task_id,
            spec=request.spec,
            request_id=request.request_id,
            caller_address=request.caller_address,
        )

    async def job(self, job_id: str) -> tuple[Job, Waiting | None]:
        """The job, and what its execution waits for."""
        self._check_serving()
        _require("job_id", job_id)
        job, ahead = await self._store.job_in_line(job_id, _MOST_AHEAD)
        return job, self._waiting_behind(job.execution, ahead)

    async def execution(self, execution_id: str) -> tuple[Execution, Waiting | None]:
        """The execution, and what it waits for."""
        self._check_serving()
        _require("execution_id", execution_id)
        execution, ahead = await self._store.execution_in_line(execution_id, _MOST_AHEAD)
        return execution, self._waiting_behind(execution, ahead)

    async def stop(
        self, job_id: str, *, note: str, grace: timedelta | None, malformed: Sequence[Violation] = ()
    ) -> Job:
        """Ends the job; without a `grace` of its own with the job's."""
        self._check_serving()
        _require("job_id", job_id)
        validation.refuse([*malformed, *validation.stop_violations(note, grace)])
        job = await self._store.job(job_id)
        logs, room = await self._waiting_lines(job.execution)
        assert job.spec is not None, "read with the job"
        grace = job.spec.grace if grace is None else grace
        write = partial(self._store.stop, job_id, grace=grace, note=note, logs=logs, log_bytes=room)
        try:
            return await write()
        except (DiskFull, StoreFailed) as error:
            job = await self._store.job(job_id)
            stop = Stop(StopCause.CALLER, utc_now(), grace, note)
            execution = self._unstored_stops.carry_out(
                job.execution, stop, lambda time: write(carried_out_since=time), error
            )
            return replace(job, execution=execution, state=execution.state, stop_time=job.stop_time or stop.time)

    async def stop_execution(
        self, execution_id: str, *, note: str, grace: timedelta | None, malformed: Sequence[Violation] = ()
    ) -> Execution:
        """Ends exactly this execution; without a `grace` of its own with its job's."""
        self._check_serving()
        _require("execution_id", execution_id)
        validation.refuse([*malformed, *validation.stop_violations(note, grace)])
        assignment = await self._store.assignment(execution_id)
        logs, room = await self._waiting_lines(assignment.execution)
        grace = assignment.spec.grace if grace is None else grace
        write = partial(self._store.stop_execution, execution_id, grace=grace, note=note, logs=logs, log_bytes=room)
        try:
            return await write()
        except (DiskFull, StoreFailed) as error:
            execution = await self._store.execution(execution_id)
            stop = Stop(StopCause.CALLER, utc_now(), grace, note)
            return self._unstored_stops.carry_out(execution, stop, lambda time: write(carried_out_since=time), error)

    async def task(self, task_id: str) -> Task:
        self._check_serving()
        _require("task_id", task_id)
        return await self._store.task(task_id)

    async def jobs(self, request: PageRequest[JobQuery], malformed: Sequence[Violation] = ()) -> Listed[Job]:
        """Newest first. `malformed`: fields the wire could not say."""
        self._check_serving()
        query = request.query
        validation.refuse(
            chain(
                malformed,
                validation.page_violations(request.size),
                validation.id_prefix_violations(query.id_prefix),
                validation.label_filter_violations(query.labels),
            )
        )
        return Listed(
            query, await self._store.jobs(query, after=position_of(request.token, query), size=request.wanted)
        )

    async def executions(
        self, request: PageRequest[ExecutionQuery], malformed: Sequence[Violation] = ()
    ) -> Listed[Execution]:
        """Newest first. `malformed`: fields the wire could not say."""
        self._check_serving()
        query = request.query
        validation.refuse(
            chain(malformed, validation.page_violations(request.size), validation.id_prefix_violations(query.id_prefix))
        )
        return Listed(
            query, await self._store.executions(query, after=position_of(request.token, query), size=request.wanted)
        )

    async def tasks(self, request: PageRequest[TaskQuery]) -> Listed[Task]:
        """By name."""
        self._check_serving()
        validation.refuse(validation.page_violations(request.size))
        return Listed(
            request.query, await self._store.tasks(after=position_of(request.token, request.query), size=request.wanted)
        )

    async def log(
        self, request: LogRequest, malformed: Sequence[Violation], encoding: StreamEncoding, send: Send
    ) -> None:
        """Send the log of one execution to its end; see `log_stream`. `malformed`: fields the wire could not say."""
        self._check_serving()
        _require("execution_id", request.execution_id)
        tail_lines = request.begin.tail_lines if request.begin else None
        validation.refuse(
            [
                *malformed,
                *validation.tail_lines_violations(tail_lines),
                *validation.heartbeat_violations(request.heartbeat),
            ]
        )
        if self._streams >= self.settings.max_streams:
            raise TooManyStreams(
                f"all {self.settings.max_streams} log streams are taken; try again later",
                retry_seconds=_STREAMS_RETRY_SECONDS,
            )
        self._streams += 1
        try:
            await log_stream(
                request, self._store, self._tails, self.waiting_in_line, lambda: self._stopping, encoding, send
            )
        finally:
            self._streams -= 1

    async def prune(self, request: PruneRequest, malformed: Sequence[Violation] = ()) -> Pruned:
        """Deletes what ended long enough ago, a bounded number; or counts it."""
        self._check_serving()
        validation.refuse(chain(malformed, validation.prune_violations(request.older_than)))
        old = Old(_time_ago(request.older_than or timedelta()), request.logs_only, request.task_id)
        return await (self._upkeep.count(old) if request.validate_only else self._upkeep.prune(old))

    def waiting(self, execution: Execution) -> Waiting | None:
        """What the execution waits for, if it does; who goes before it is not counted."""
        if execution.state is State.PREPARING:
            return self._places.waiting(execution.id)
        if execution.state is State.SCHEDULED:
            due_time = execution.times.due_time
            return Waiting(
                WaitReason.NOT_DUE, f"starts at {due_time:%Y-%m-%dT%H:%M:%SZ}", execution.state_time, due_time=due_time
            )
        if execution.state is not State.QUEUED:
            return None
        if error := self._places.host_error:
            return Waiting(WaitReason.HOST_DOWN, error, execution.state_time)
        taken, places = self._places.places
        if taken < places:
            return None  # It is about to get one of them.
        return Waiting(WaitReason.NO_FREE_PLACE, f"{taken} of {places} places taken", execution.state_time)

    async def waiting_in_line(self, execution: Execution) -> Waiting | None:
        """The same, with who goes before it: a question to the store for each, so it is for one, not for a list."""
        if execution.state is not State.QUEUED or self.waiting(execution) is None:
            return self.waiting(execution)
        return self._waiting_behind(execution, await self._store.ahead(execution.id, _MOST_AHEAD))

    def _waiting_behind(self, execution: Execution, ahead: int) -> Waiting | None:
        waiting = self.waiting(execution)
        return replace(waiting, ahead=ahead) if waiting and ahead else waiting

    def hosts(self) -> Sequence[HostReport]:
        """Each host as it is now, in the order of the configuration."""
        self._check_serving()
        return self._places.hosts

    async def _waiting_lines(self, execution: Execution) -> tuple[Sequence[LogTotals], int]:
        """What there is of the log of one that may be queued when the order is written, and its room on the disk. It
        has a line if somebody looked at it, and more if it was claimed before; one that is claimed may be about to go
        back."""
        return (
            await self._tails.waiting_lines(execution.id)
            if execution.state in {State.QUEUED, State.PREPARING}
            else ((), 0)
        )

    def _check_serving(self) -> None:
        if self._stopping:
            raise ServerStopping("the server is stopping; try again", retry_seconds=1)


def _require(field: str, value: str) -> None:
    if not value:
        validation.refuse([Violation(field, "is required")])


def _time_ago(duration: timedelta) -> datetime:
    now = utc_now()
    # Nothing ended before there were computers, and dates do not go back for as long as durations may be.
    return now - min(duration, now - datetime(1970, 1, 1, tzinfo=UTC))


def _unkept(request: EnqueueRequest) -> Job:
    """The job as it would be kept, without ids."""
    now = utc_now()
    due_time = first(request.spec, now).due_time
    state = waiting_state(due_time, now)
    execution = Execution("", "", request.task_id, state, Times(create_time=now, due_time=due_time), now)
    return Job("", request.task_id, request.spec, execution, now, state, 1, request.request_id, request.caller_address)
