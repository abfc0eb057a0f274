"""Visibility for callers whose token is limited to some tasks: the calls answer as if all else were not there.

A name of a task is refused by the pattern alone, so that the answer does not tell whether the task exists."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import wraps
from typing import Any, Protocol

from fastlane_grpc.errors import ExecutionNotFound, JobNotFound, PermissionDenied, TaskNotFound
from fastlane_grpc.model import Execution, Job
from fastlane_grpc.trust import PRINCIPAL, Permission, Principal, Scope


class Reads(Protocol):
    """The reads of the store that the checks need."""

    def job(self, job_id: str) -> Awaitable[Job]: ...

    def execution(self, execution_id: str) -> Awaitable[Execution]: ...


def visible_only(
    call: Callable[..., Awaitable[Any]], permission: Permission, store: Reads
) -> Callable[..., Awaitable[Any]]:
    """Return the call with a check before it: that its request is about what the caller sees."""

    @wraps(call)
    async def checked(request: Any, *args: Any, **more: Any) -> Any:
        principal = PRINCIPAL.get()
        if principal.tasks is not None:
            await _check(permission.scope, principal, request, store)
        return await call(request, *args, **more)

    return checked


async def seen_jobs(job_ids: Collection[str], store: Reads) -> frozenset[str]:
    """Return those of the ids whose jobs the caller sees."""
    principal = PRINCIPAL.get()
    if principal.tasks is None:
        return frozenset(job_ids)
    seen = set()
    for job_id in job_ids:
        with suppress(JobNotFound):
            await _check_job(principal, job_id, store)
            seen.add(job_id)
    return frozenset(seen)


async def _check(scope: Scope, principal: Principal, request: Any, store: Reads) -> None:
    match scope:
        case Scope.NONE | Scope.SERVER:
            # Whether such a token may make the call was decided before.
            return
        case Scope.TASK:
            _check_task(principal, request.task_id)
        case Scope.JOB:
            await _check_job(principal, request.job_id, store)
        case Scope.EXECUTION:
            if request.execution_id:
                execution = await store.execution(request.execution_id)
                if not principal.sees(execution.task_id):
                    raise ExecutionNotFound(request.execution_id)
        case Scope.REPLACEMENT:
            _check_task(principal, request.task_id)
            try:
                await _check_job(principal, request.job_id, store)
            except JobNotFound:
                if await _exists(request.job_id, store):
                    raise
        case Scope.BATCH:
            for each in [*request.requests, *([request.array.request] if request.HasField("array") else ())]:
                _check_task(principal, each.task_id)
        case Scope.FILTER:
            await _check_filter(principal, request.filter, store)
        case Scope.LIST:
            # Also of a list without the field: what it shows is filtered.
            _check_task(principal, getattr(request, "task_id", ""))
            if job_id := getattr(request, "job_id", ""):
                await _check_job(principal, job_id, store)
        case Scope.JOB_GIVEN:
            _require(principal, "job_id", request.job_id)
            await _check_job(principal, request.job_id, store)
        case Scope.TASK_GIVEN:
            _require(principal, "task_id", request.task_id)
            _check_task(principal, request.task_id)


async def _check_filter(principal: Principal, jobs: Any, store: Reads) -> None:
    if not jobs.job_ids:
        _require(principal, "filter.task_id", jobs.task_id)
    _check_task(principal, jobs.task_id)
    for job_id in () if jobs.task_id else jobs.job_ids[:_MOST_JOB_IDS]:
        await _check_job(principal, job_id, store)


# More are refused by the call itself.
_MOST_JOB_IDS = 1000


def _check_task(principal: Principal, task_id: str) -> None:
    # An empty one is refused by the call itself, which names the field.
    if task_id and not principal.sees(task_id):
        raise TaskNotFound(task_id)


async def _check_job(principal: Principal, job_id: str, store: Reads) -> None:
    if job_id and not principal.sees((await store.job(job_id)).task_id):
        raise JobNotFound(job_id)


async def _exists(job_id: str, store: Reads) -> bool:
    try:
        await store.job(job_id)
    except JobNotFound:
        return False
    return True


def _require(principal: Principal, field: str, value: str) -> None:
    if not value:
        assert principal.tasks is not None, "checked by the caller"
        raise PermissionDenied(
            f"the token {principal.name!r} is limited to the tasks {principal.tasks.text}: set {field}"
        )
