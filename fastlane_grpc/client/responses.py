"""Responses: their pages, their JSON, the exit status of a job."""

from collections.abc import Mapping
from typing import Any, Protocol

from google.protobuf import json_format
from google.protobuf.message import Message

from fastlane_grpc.v1 import fastlane_pb2


class AsksForPages(Protocol):
    """A request for a page of a list."""

    page_token: str


class Page(Protocol):
    """A page of a list. More pages follow as long as it has a token, even if it is empty."""

    next_page_token: str


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON values: field names of the contract, empty fields omitted, times in RFC 3339."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def exit_status(job: fastlane_pb2.Job) -> int:
    """Return the exit status for a program that represents this job, as `End.exit_status` does for an execution.

    0 exactly when the job succeeded; 75 while it is not final.
    """
    if not job.HasField("outcome"):
        return _NOT_FINAL_STATUS
    if job.state == fastlane_pb2.STATE_FAILED and job.outcome.exit_code:
        return job.outcome.exit_code
    # An unknown state with an outcome, from a later release, is a failure.
    return _STATUSES.get(job.state, _NO_CONTAINER_STATUS)


_NOT_FINAL_STATUS, _NO_CONTAINER_STATUS = 75, 125
_STATUSES: Mapping[int, int] = {
    fastlane_pb2.STATE_SUCCEEDED: 0,
    fastlane_pb2.STATE_TIMED_OUT: 124,
    fastlane_pb2.STATE_STOPPED: 130,
}


def add_stopped(total: fastlane_pb2.BatchStopJobsResponse, answer: fastlane_pb2.BatchStopJobsResponse) -> None:
    total.stopped += answer.stopped
    total.more = answer.more


def add_retried(total: fastlane_pb2.BatchRetryJobsResponse, answer: fastlane_pb2.BatchRetryJobsResponse) -> None:
    total.retried += answer.retried
    total.skipped += answer.skipped
    total.more = answer.more
    total.until_time.CopyFrom(answer.until_time)


def add_pruned(total: fastlane_pb2.PruneResponse, answer: fastlane_pb2.PruneResponse) -> None:
    total.jobs += answer.jobs
    total.logs += answer.logs
    total.bytes += answer.bytes
    total.more = answer.more
