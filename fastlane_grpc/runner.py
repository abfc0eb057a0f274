"""The interface between the dispatcher and a runner: commands, the mailbox of an execution, and what a runner reports.

A command or an event that is put into a mailbox is never lost, and is read once. The module imports no backend and no
SDK.
"""

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from fastlane_grpc.model import Assignment, LogTotals, Outcome, State, Stop, Waiting


class HostDown(Exception):
    """The engine does not answer. The execution was requeued, or is recovered when the host is back."""


@dataclass(frozen=True, slots=True)
class StopCommand:
    """Command to stop the execution. The store has the execution as STOPPING already.

    A later command (with a shorter grace) replaces an earlier one.
    """

    stop: Stop


@dataclass(frozen=True, slots=True)
class LeaveCommand:
    """Command to leave the execution as it is to the next server, as this server stops: `run` raises HostDown."""


# Every command of the dispatcher.
Command: TypeAlias = StopCommand | LeaveCommand


class Event:
    """Base class of the events of a backend. The runner of that backend knows their types; the dispatcher does not."""

    __slots__ = ()


class Mailbox:
    """The commands and the events for one execution. Any thread puts; the runner gets, first in, first out.

    Two attributes go the other way: the runner writes them, any thread reads them. `waiting` is what the runner waits
    for before it can start the container. `start_failure` is set when a start failed for a reason of the host's, not of
    the job's.
    """

    def __init__(self) -> None:
        self.waiting: Waiting | None = None
        self.start_failure = ""
        self._inbox: queue.SimpleQueue[Command | Event] = queue.SimpleQueue()

    def put(self, received: Command | Event) -> None:
        self._inbox.put(received)

    def get(self, timeout_seconds: float | None) -> Command | Event | None:
        """Return the next command or event; None if there was none within the time.

        A timeout of None waits without a limit. A timeout of 0 or less does not wait.
        """
        try:
            return self._inbox.get(timeout=None if timeout_seconds is None else max(timeout_seconds, 0))
        except queue.Empty:
            return None


@dataclass(frozen=True, slots=True)
class AbandonedLog:
    """The log of an execution that its runner gave up: what the log holds, and its size on the disk in bytes.

    `end` is the end of the execution, if the record proves it.
    """

    logs: Sequence[LogTotals] = ()
    log_bytes: int = 0
    end: "CertainEnd | None" = None


@dataclass(frozen=True, slots=True)
class CertainEnd:
    """The end of an execution by its sealed record. Nothing that happened to the server since can change it."""

    state: State
    outcome: Outcome
    start_time: datetime | None
    exit_time: datetime | None
    first_byte_time: datetime | None


class Runner(Protocol):
    """Runs one execution to its end: from its claim, or from the point that an earlier server left it at."""

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        """Block until the outcome is committed and the container removed. Raises HostDown, and nothing else."""

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        """End the log of an execution at which `run` failed with a defect, and write `why` into the log.

        This method may fail as well.
        """
