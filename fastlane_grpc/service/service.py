"""What callers can ask for: the rules, and what follows from them. A request is looked at as a whole before anything is done."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Protocol

from fastlane_grpc.config import Settings
from fastlane_grpc.errors import ServerStopping, TooManyStreams, Violation
from fastlane_grpc.logs import Tails
from fastlane_grpc.model import Execution, HostReport, Job, JobSpec, State, Times, Waiting, WaitReason, utc_now
from fastlane_grpc.service import validation
from fastlane_grpc.service.log_stream import LogEvent, LogRequest, log_stream
from fastlane_grpc.store import Store

# How long a caller who found every stream taken had better wait.
_STREAMS_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EnqueueRequest:
    """A job to keep."""

    task_id: str
    spec: JobSpec
    request_id: str = ""
    validate_only: bool = False
    caller_address: str = ""


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


class Service:
    """Every use case, once. Lives on the loop."""

    def __init__(self, store: Store, tails: Tails, places: Places, settings: Settings) -> None:
        self.settings = settings
        self.start_time = utc_now()
        self._store = store
        self._tails = tails
        self._places = places
        self._streams = 0
        self._stopping = False

    def stop_serving(self) -> None:
        """From here on every call, and every open stream, ends with ServerStopping."""
        self._stopping = True
        self._tails.ring_all()

    async def enqueue(self, request: EnqueueRequest, malformed: Sequence[Violation] = ()) -> tuple[Job, bool]:
        """The job that is kept, with its first execution, and whether it was there already. `malformed`: fields the wire could not say."""
        self._check_serving()
        limit = self.settings.max_timeout
        validation.refuse(chain(malformed, validation.enqueue_violations(request.task_id, request.spec, request.request_id, limit)))
        if request.validate_only:
            return _unkept(request), False
        return await self._store.enqueue(
            task_id=request.task_id, spec=request.spec, request_id=request.request_id, caller_address=request.caller_address
        )

    async def job(self, job_id: str) -> Job:
        self._check_serving()
        _require("job_id", job_id)
        return await self._store.job(job_id)

    async def execution(self, execution_id: str) -> Execution:
        self._check_serving()
        _require("execution_id", execution_id)
        return await self._store.execution(execution_id)

    async def stop(self, job_id: str, *, note: str, grace: timedelta | None, malformed: Sequence[Violation] = ()) -> Job:
        """Ends the job; without a `grace` of its own with the job's."""
        self._check_serving()
        _require("job_id", job_id)
        violations = [*malformed, *validation.note_violations(note)]
        if grace is not None:
            violations += validation.grace_violations("grace", grace)
        validation.refuse(violations)
        job = await self._store.job(job_id)
        return await self._store.stop(job_id, grace=job.spec.grace if grace is None else grace, note=note)

    async def log(self, request: LogRequest, malformed: Sequence[Violation] = ()) -> AsyncIterator[LogEvent]:
        """The log of one execution; see `log_stream`."""
        self._check_serving()
        _require("execution_id", request.execution_id)
        validation.refuse([*malformed, *validation.heartbeat_violations(request.heartbeat)])
        if self._streams >= self.settings.max_streams:
            raise TooManyStreams(
                f"all {self.settings.max_streams} log streams are taken; try again later", retry_seconds=_STREAMS_RETRY_SECONDS
            )
        self._streams += 1
        try:
            async for event in log_stream(request, self._store, self._tails, lambda: self._stopping):
                yield event
        finally:
            self._streams -= 1

    def waiting(self, execution: Execution) -> Waiting | None:
        """What the execution waits for, if it does."""
        if execution.state is not State.QUEUED:
            return None
        if error := self._places.host_error:
            return Waiting(WaitReason.HOST_DOWN, error, execution.state_time)
        taken, places = self._places.places
        return Waiting(WaitReason.NO_FREE_PLACE, f"{taken} of {places} places taken", execution.state_time)

    def hosts(self) -> Sequence[HostReport]:
        """Each host as it is now, in the order of the configuration."""
        self._check_serving()
        return self._places.hosts

    def _check_serving(self) -> None:
        if self._stopping:
            raise ServerStopping("the server is stopping; try again", retry_seconds=1)


def _require(field: str, value: str) -> None:
    if not value:
        validation.refuse([Violation(field, "is required")])


def _unkept(request: EnqueueRequest) -> Job:
    """The job as it would be kept, without ids."""
    now = utc_now()
    execution = Execution("", "", request.task_id, State.QUEUED, Times(create_time=now, due_time=now), now)
    return Job("", request.task_id, request.spec, execution, now, 1, request.request_id, request.caller_address)
