"""Protobuf messages of WatchJobs, and their encoding."""

from collections.abc import Callable
from datetime import datetime

from fastlane_grpc.api.watch import cursor_text
from fastlane_grpc.model import Job
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.watch import JobUpdate


class WatchMessages:
    """A WatchEncoding whose events are WatchJobsResponses, serialised by the transport.

    `name` is that of the serialisation; `write` writes a job into an empty message."""

    def __init__(
        self,
        name: str,
        serialize: Callable[[pb.WatchJobsResponse], bytes],
        instance: str,
        write: Callable[[pb.Job, Job], object],
    ) -> None:
        self.name = name
        self._serialize = serialize
        self._instance = instance
        self._write = write

    def update(self, value: JobUpdate) -> bytes:
        cursor = cursor_text(self._instance, value.position)
        if value.job is None:
            return self._serialize(pb.WatchJobsResponse(cursor=cursor, pruned_job_id=value.job_id))
        return self._job(cursor, value.job)

    def found(self, job: Job) -> bytes:
        return self._job("", job)

    def missing(self, job_id: str) -> bytes:
        return self._serialize(pb.WatchJobsResponse(pruned_job_id=job_id))

    def caught_up(self, cursor: str) -> bytes:
        return self._serialize(pb.WatchJobsResponse(cursor=cursor, caught_up=pb.WatchJobsResponse.CaughtUp()))

    def heartbeat(self, cursor: str, now: datetime) -> bytes:
        message = pb.WatchJobsResponse(cursor=cursor)
        message.heartbeat.time.FromDatetime(now)
        return self._serialize(message)

    def _job(self, cursor: str, job: Job) -> bytes:
        # Written in place: a message that is built apart is copied.
        message = pb.WatchJobsResponse(cursor=cursor)
        self._write(message.job, job)
        return self._serialize(message)
