"""The calls for many jobs at once: each request of a batch is read and checked as EnqueueJob would, and has a result of
its own. Requests with the same task and spec are read and checked once."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from fastlane_grpc.api import converters, validation
from fastlane_grpc.api.error_table import rejection_of
from fastlane_grpc.api.request_parser import has_unknown_fields, reject_unknown_fields
from fastlane_grpc.api.service import EnqueueRequest, Service, validated_job
from fastlane_grpc.api.times import write_time
from fastlane_grpc.errors import InvalidRequest, Refusal, Violation
from fastlane_grpc.model import ARRAY_INDEX, ARRAY_SIZE, ArrayPosition, Job, Waiting
from fastlane_grpc.store import EnqueueBatch, Enqueued
from fastlane_grpc.v1 import fastlane_pb2 as pb

MAX_JOBS = 1_000

# No response is larger.
_MAX_RESPONSE_BYTES = 3 << 20
# What is left of the texts for people where a response would be larger.
_SHORT_TEXT, _SHORT_MESSAGE, _FEW_VIOLATIONS = 100, 300, 2
# The call gives way to others on the loop after so long.
_SLICE_SECONDS = 0.002


async def enqueue_jobs(
    service: Service, request: pb.BatchEnqueueJobsRequest, caller_address: str
) -> pb.BatchEnqueueJobsResponse:
    """Enqueue the jobs of a batch, or of an array, in one transaction."""
    unknown = has_unknown_fields(request)
    if unknown:
        reject_unknown_fields(request, without="requests")
    validation.raise_if_invalid(_batch_violations(request))
    batch = service.batch(caller_address)
    if request.HasField("array"):
        read = await _read_array(service, request.array, caller_address, batch)
    else:
        read = await _read_requests(service, request.requests, caller_address, batch, unknown=unknown)
    stored = iter(await service.enqueue_batch(batch) if len(batch) else ())
    # None stands for a job of the batch.
    return await _response(service, [next(stored) if each is None else each for each in read])


async def stop_jobs(service: Service, request: pb.BatchStopJobsRequest) -> pb.BatchStopJobsResponse:
    """Stop the jobs that match a filter."""
    stopped, more = await service.stop_jobs(*converters.read_stop_jobs(request))
    return pb.BatchStopJobsResponse(stopped=stopped, more=more)


async def retry_jobs(service: Service, request: pb.BatchRetryJobsRequest) -> pb.BatchRetryJobsResponse:
    """Retry the final jobs that match a filter."""
    done, until_time = await service.retry_jobs(*converters.read_retry_jobs(request))
    response = pb.BatchRetryJobsResponse(retried=done.retried, skipped=done.skipped, more=done.more)
    write_time(response.until_time, until_time)
    return response


def _batch_violations(request: pb.BatchEnqueueJobsRequest) -> Iterator[Violation]:
    if request.HasField("array"):
        if request.requests:
            yield Violation("array", "cannot be set together with requests; set one of them")
        if not 1 <= request.array.size <= MAX_JOBS:
            yield Violation("array.size", f"is {request.array.size}; it must be from 1 to {MAX_JOBS}")
    elif not request.requests:
        yield Violation("requests", "is empty; set requests, or array")
    elif len(request.requests) > MAX_JOBS:
        yield Violation("requests", f"has {len(request.requests)} entries; at most {MAX_JOBS} are allowed")


class _Checked(NamedTuple):
    """A request that was checked. `refusal`: why its job is refused if it is new."""

    request: EnqueueRequest
    refusal: Refusal | None


async def _read_requests(
    service: Service,
    requests: Sequence[pb.EnqueueJobRequest],
    caller_address: str,
    batch: EnqueueBatch,
    *,
    unknown: bool,
) -> list[Enqueued | None]:
    """Add the requests to the batch. Return None for each, or its result if it is no part of the batch."""
    # Valid requests by their specs: what else is in them is checked for each.
    valid: dict[tuple[bytes, str], _Checked] = {}
    read: list[Enqueued | None] = []
    slice_end = time.monotonic() + _SLICE_SECONDS
    for each in requests:
        if time.monotonic() > slice_end:
            await asyncio.sleep(0)
            slice_end = time.monotonic() + _SLICE_SECONDS
        task_id, request_id = each.task_id, each.request_id
        # Equal specs may have different encodings: then they are checked twice.
        # What a job may use depends on its task.
        spec = each.spec
        depends_on_task = (
            *(spec.network, spec.volumes, spec.devices, spec.HasField("gpus")),
            *(spec.registry_credential, spec.secret_envs),
        )
        checked = (each.spec.SerializeToString(), task_id if any(depends_on_task) else "")
        found: _Checked | Refusal | None = valid.get(checked)
        if found is None or unknown or not validation.are_ids_valid(task_id, request_id):
            found = await _check(service, each, caller_address, unknown=unknown)
        if isinstance(found, Refusal):
            read.append(found)
            continue
        valid.setdefault(checked, found)
        if each.validate_only:
            request = replace(found.request, task_id=task_id, request_id=request_id)
            read.append(found.refusal or (validated_job(request), False))
        else:
            batch.add(task_id, found.request.spec, request_id, found.refusal)
            read.append(None)
    return read


async def _check(
    service: Service, request: pb.EnqueueJobRequest, caller_address: str, *, unknown: bool = False
) -> _Checked | Refusal:
    """Return the request, or the error that EnqueueJob would raise for it."""
    try:
        if unknown:
            reject_unknown_fields(request)
        read, violations = converters.read_enqueue(request, caller_address)
        refusal = service.check(read, violations)
        if read.spec.has_contents:
            read, refusal = await service.with_inputs(read, refusal)
        return _Checked(read, refusal)
    except Refusal as refusal:
        return refusal


async def _read_array(
    service: Service, array: pb.JobArray, caller_address: str, batch: EnqueueBatch
) -> list[Enqueued | None]:
    """Add the jobs of the array to the batch, and return what `_read_requests` does. An invalid request is an error of
    the whole call."""
    found = await _check(service, array.request, caller_address)
    if isinstance(found, InvalidRequest):
        raise InvalidRequest([replace(each, field=f"array.request.{each.field}") for each in found.violations])
    if isinstance(found, Refusal):
        raise found
    request = found.request
    validation.raise_if_invalid(_array_violations(request, array.size))
    read: list[Enqueued | None] = []
    for index in range(array.size):
        request_id = request.request_id and f"{request.request_id}#{index}"
        position = ArrayPosition(index, array.size)
        if request.validate_only:
            job = validated_job(replace(request, request_id=request_id), position)
            read.append(found.refusal or (job, False))
        else:
            batch.add(request.task_id, request.spec, request_id, found.refusal, position)
            read.append(None)
    return read


def _array_violations(request: EnqueueRequest, size: int) -> Iterator[Violation]:
    if request.spec.unique:
        yield Violation("array.request.spec.unique", "cannot be set in an array: one job alone can hold a unique key")
    for name in (ARRAY_INDEX, ARRAY_SIZE):
        if name in request.spec.envs:
            yield Violation(
                f'array.request.spec.envs["{name}"]', "is set by fastlane for each job of an array; use another name"
            )
    suffix = f"#{size - 1}"
    if request.request_id and len(request.request_id) + len(suffix) > validation.MAX_REQUEST_ID:
        yield Violation(
            "array.request.request_id",
            f"has {len(request.request_id)} characters; at most {validation.MAX_REQUEST_ID - len(suffix)} are allowed,"
            f" as {suffix} is appended for the last job",
        )


async def _response(service: Service, results: Sequence[Enqueued]) -> pb.BatchEnqueueJobsResponse:
    response = pb.BatchEnqueueJobsResponse()
    waiting, secret_names = service.waiting_of_each(), service.settings.secret_names
    # Of new jobs that were enqueued at one time, and wait for the same, only the ids differ.
    templates: dict[tuple[object, ...], pb.Job] = {}
    waits: dict[tuple[object, ...], Waiting | None] = {}
    rejections: dict[int, pb.Rejection] = {}
    slice_end = time.monotonic() + _SLICE_SECONDS
    for each in results:
        if time.monotonic() > slice_end:
            await asyncio.sleep(0)
            slice_end = time.monotonic() + _SLICE_SECONDS
        result = response.results.add()
        if isinstance(each, Refusal):
            # One error may be that of many requests.
            if (rejection := rejections.get(id(each))) is None:
                rejection = rejections[id(each)] = rejection_of(each)
            result.rejection.CopyFrom(rejection)
            continue
        job, existing = each
        enqueued = result.enqueued
        if existing or job.schedule or not job.id:
            enqueued.existing = existing
            enqueued.job.CopyFrom(converters.job(replace(job, spec=None), waiting, secret_names))
            continue
        execution = job.execution
        kind = (execution.state, id(execution.times), execution.hold)
        its = (execution.task_id, *kind)
        if its not in waits:
            waits[its] = waiting(execution)
        key = (*kind, waits[its])
        template = templates.get(key)
        if template is None:
            template = templates[key] = converters.job(replace(job, spec=None), waiting, secret_names)
        message = enqueued.job
        message.CopyFrom(template)
        _write_ids(message, job)
    if response.ByteSize() > _MAX_RESPONSE_BYTES:
        _shorten(response)
    return response


def _write_ids(message: pb.Job, job: Job) -> None:
    execution = message.execution
    message.id = execution.job_id = job.id
    message.task_id = execution.task_id = job.task_id
    message.request_id, execution.id = job.request_id, job.execution.id
    if job.array:
        message.array.index = job.array.index


def _shorten(response: pb.BatchEnqueueJobsResponse) -> None:
    """Cut texts for people, so that 1 000 results take at most 3 MiB."""
    for result in response.results:
        job, rejection = result.enqueued.job, result.rejection
        if result.HasField("rejection"):
            rejection.message = rejection.message[:_SHORT_MESSAGE]
            del rejection.violations[_FEW_VIOLATIONS:]
            for violation in rejection.violations:
                violation.field = violation.field[:_SHORT_TEXT]
                violation.description = violation.description[:_SHORT_TEXT]
            continue
        for outcome in (job.outcome, job.execution.outcome):
            if outcome.detail:
                outcome.detail = outcome.detail[:_SHORT_TEXT]
        if job.execution.waiting.detail:
            job.execution.waiting.detail = job.execution.waiting.detail[:_SHORT_TEXT]
