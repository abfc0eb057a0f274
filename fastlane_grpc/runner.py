"""What the dispatcher and a runner say to each other: an order put into an execution's inbox is never lost, and is read
once."""

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from fastlane_grpc.model import Assignment, LogTotals, Outcome, State, Stop, Waiting


class HostDown(Exception):
    """The engine does not answer. The execution was requeued, or is to be taken up again when the host is back."""


@dataclass(frozen=True, slots=True)
class StopCommand:
    """The execution is to stop. It is on disk as STOPPING; a later order (a shorter grace) takes the place of an
    earlier one."""

    stop: Stop


@dataclass(frozen=True, slots=True)
class Leave:
    """The server stops. The execution is left as it is to the next server: `run` raises HostDown."""


@dataclass(frozen=True, slots=True)
class Began:
    """The engine says: the container runs, or runs again after a pause."""


@dataclass(frozen=True, slots=True)
class Died:
    """The engine says: the container's main process ended, at this time by its clock.

    `heard_since` is when we began to listen to it, without a break since, on CLOCK_BOOTTIME. An execution may have had
    an earlier container: `container_id` says which one it is, if the engine tells."""

    exit_code: int | None
    time_ns: int
    heard_since: float
    container_id: str = ""


@dataclass(frozen=True, slots=True)
class EngineGone:
    """What we listened to broke off, at this time on CLOCK_BOOTTIME. What happens until EngineBack is not told."""

    time: float


@dataclass(frozen=True, slots=True)
class EngineBack:
    """We listen again: time to look at what was missed."""


@dataclass(frozen=True, slots=True)
class PullEnded:
    """The pull that was asked for ended: well, or with this failure."""

    failure: Exception | None


# Every kind of order there is.
Order: TypeAlias = StopCommand | Leave | Began | Died | EngineGone | EngineBack | PullEnded


class Mailbox:
    """The inbox of one execution: any thread puts, its runner gets, in the order in which they were put.

    `waiting` goes the other way: what the runner waits for before it can begin. The runner writes, any thread reads.
    """

    def __init__(self) -> None:
        self.waiting: Waiting | None = None
        self._inbox: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def put(self, order: Order) -> None:
        self._inbox.put(order)

    def get(self, timeout_seconds: float | None) -> Order | None:
        """The next order; None if there was none within the time. None as a time waits for as long as it takes; 0 or
        less, not at all."""
        try:
            return self._inbox.get(timeout=None if timeout_seconds is None else max(timeout_seconds, 0))
        except queue.Empty:
            return None


@dataclass(frozen=True, slots=True)
class AbandonedLog:
    """What there is of a log when its execution is given up: how much it holds, and what room it takes, in bytes.

    `end` is how the execution ended, if its record tells that for certain.
    """

    logs: Sequence[LogTotals] = ()
    log_bytes: int = 0
    end: "CertainEnd | None" = None


@dataclass(frozen=True, slots=True)
class CertainEnd:
    """An end that is in a sealed record: the record's word on it stands, whatever happened to the server."""

    state: State
    outcome: Outcome
    start_time: datetime | None
    exit_time: datetime | None
    first_byte_time: datetime | None


class Runner(Protocol):
    """Runs one execution from its claim, or from whatever it finds of it, to its end."""

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        """Blocks until the outcome is committed and the container removed. Raises HostDown, and nothing else."""

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        """Of one that `run` failed at with a defect: ends its log where it stands, and says `why` in it. It may fail as
        well."""
