"""The events of a watch."""

from dataclasses import dataclass
from typing import TypeAlias

from fastlane_grpc.client.errors import Error
from fastlane_grpc.client.events import Disconnected, Reconnected
from fastlane_grpc.v1 import fastlane_pb2


@dataclass(frozen=True, slots=True)
class JobChanged:
    """A job as it is now, without its spec: one that matched at the start, or one that changed. Changes in quick
    succession may be one event; the last change is always told."""

    job: fastlane_pb2.Job


@dataclass(frozen=True, slots=True)
class JobPruned:
    """The job does not exist: it was pruned, or no job has this id of `job_ids`."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All jobs that matched at the start were told; changes follow."""


@dataclass(frozen=True, slots=True)
class ChangesMissed:
    """Changes may have been missed: the watch begins anew.

    All matching jobs that are not final follow, then `CaughtUp`. An open job that is not told until then has ended or
    was pruned. `error`: the server does not keep changes that old; None: the stream was cut before it had caught up."""

    error: Error | None


WatchEvent: TypeAlias = JobChanged | JobPruned | CaughtUp | ChangesMissed | Disconnected | Reconnected
