"""Batches of any length, for both clients: how requests are cut into calls, and what became of each request."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fastlane_grpc.client.errors import Error, Exhausted, InvalidRequest, rejected
from fastlane_grpc.v1 import fastlane_pb2 as pb

# What one call takes: requests, and bytes without what is around them.
_MAX_REQUESTS = 1_000
_MAX_BYTES = (3 << 20) - 64
# The tag and the length of a request within its batch.
_OVERHEAD_BYTES = 5


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """The result of one request: `job`, as it was stored, without its spec, or `error`. `existing`: the request_id was
    known."""

    job: pb.Job | None = None
    existing: bool = False
    error: Error | None = None


def batches(requests: Iterable[pb.EnqueueJobRequest]) -> Iterator[pb.BatchEnqueueJobsRequest]:
    """Cut the requests into calls. TypeError: one of them is no request."""
    batch, size = pb.BatchEnqueueJobsRequest(), 0
    for number, request in enumerate(requests):
        if not isinstance(request, pb.EnqueueJobRequest):
            raise TypeError(
                f"requests[{number}] must be an EnqueueJobRequest, as job_request() makes it;"
                f" a value of type {type(request).__name__} was given"
            )
        its_size = request.ByteSize() + _OVERHEAD_BYTES
        if batch.requests and (size + its_size > _MAX_BYTES or len(batch.requests) == _MAX_REQUESTS):
            yield batch
            batch, size = pb.BatchEnqueueJobsRequest(), 0
        batch.requests.append(request)
        size += its_size
    if batch.requests:
        yield batch


def is_repeatable(batch: pb.BatchEnqueueJobsRequest) -> bool:
    """Return whether the call may be sent twice: every job that it stores has a request_id."""
    if batch.HasField("array"):
        return bool(batch.array.request.request_id)
    return all(request.request_id or request.validate_only for request in batch.requests)


def is_too_large(error: Error) -> bool:
    """Return whether the server rejected a batch for its size: its limit may be less than that of the contract."""
    if isinstance(error, InvalidRequest):
        return [field for field, _ in error.violations] == [""]
    # The answer of gRPC, which has a limit of its own.
    return isinstance(error, Exhausted) and not error.reason


def halves(batch: pb.BatchEnqueueJobsRequest) -> Sequence[pb.BatchEnqueueJobsRequest]:
    """Return two batches with half the requests each."""
    middle = len(batch.requests) // 2
    parts = (batch.requests[:middle], batch.requests[middle:])
    return [pb.BatchEnqueueJobsRequest(requests=part) for part in parts]


def results(response: pb.BatchEnqueueJobsResponse) -> Iterator[EnqueueResult]:
    """Return what became of each request."""
    for result in response.results:
        if result.HasField("rejection"):
            yield EnqueueResult(error=rejected(result.rejection))
        else:
            yield EnqueueResult(result.enqueued.job, result.enqueued.existing)
