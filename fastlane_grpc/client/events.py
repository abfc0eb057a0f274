"""The events of a tail."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias

from fastlane_grpc.client.errors import Error
from fastlane_grpc.v1 import fastlane_pb2

STDOUT = fastlane_pb2.SOURCE_STDOUT
STDERR = fastlane_pb2.SOURCE_STDERR
SYSTEM = fastlane_pb2.SOURCE_SYSTEM

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Output(NamedTuple):
    """Bytes of one source, received together. `text` is set instead of `data` if text was requested."""

    # A tuple because it is made for every chunk of a flood: a frozen dataclass takes twice the time.
    source: int
    offset: int
    data: bytes
    text: str
    time_ns: int
    sequence: int

    @property
    def time(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.time_ns // 1000)


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing bytes from `offset` on; `missing_bytes` is None if their number is unknown. `cause` is a
    `fastlane.v1.LogGap.Cause`. `first_line`: the number of the first line that ends after the gap, if it was asked for
    and the gap may hide lines."""

    source: int
    offset: int
    missing_bytes: int | None
    cause: int
    first_line: int | None = None


@dataclass(frozen=True, slots=True)
class StateChange:
    """The state of the execution: sent first, then at each change. `first_line`: in the first one, the number of the
    first line that ends in the tail, if it was asked for."""

    state: int
    waiting: fastlane_pb2.Waiting | None
    time: datetime
    first_line: int | None = None


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The stream was cut, or could not be opened again, `seconds` after the cut. The tail goes on by itself when it is
    asked for more."""

    error: Error
    seconds: float


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The stream resumed, `seconds` after the interruption, at the exact byte."""

    seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """The end of an execution's log, and of a tail of it. `exit_status` is for a program that represents this
    execution."""

    sealed: bool
    state: int
    outcome: fastlane_pb2.Outcome | None
    totals: Sequence[fastlane_pb2.LogTotals]
    exit_status: int


@dataclass(frozen=True, slots=True)
class ExecutionStart:
    """The start of an execution's log, in the tail of a job. `max_attempts`: how many attempts its run may have.

    Of a retry, `execution.waiting` says when it starts. What follows, up to the next one, is of this execution."""

    execution: fastlane_pb2.Execution
    max_attempts: int


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of the tail of a job. `exit_status` is for a program that represents this job."""

    job: fastlane_pb2.Job
    exit_status: int


Event: TypeAlias = Output | Gap | StateChange | Disconnected | Reconnected | End | ExecutionStart | JobEnd


def state_change(state: fastlane_pb2.LogState, first_line: int) -> StateChange:
    waiting = state.waiting if state.HasField("waiting") else None
    return StateChange(state.state, waiting, state.time.ToDatetime(UTC), first_line or None)


def end_of(end: fastlane_pb2.LogEnd) -> End:
    return End(
        end.sealed, end.state, end.outcome if end.HasField("outcome") else None, tuple(end.totals), end.exit_status
    )
