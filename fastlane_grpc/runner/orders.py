"""What the dispatcher and a runner say to each other: an order put into an execution's inbox is never lost, and is read once."""

import queue
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from fastlane_grpc.model import Assignment, Stop


class HostDown(Exception):
    """The engine does not answer. The execution was requeued, or is to be taken up again when the host is back."""


@dataclass(frozen=True, slots=True)
class StopOrder:
    """The execution is to stop. It is on disk as STOPPING; a later order (a shorter grace) takes the place of an earlier one."""

    stop: Stop


# Every kind of order there is.
Order: TypeAlias = StopOrder


class Orders:
    """The inbox of one execution: any thread puts, its runner gets, in the order in which they were put."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def put(self, order: Order) -> None:
        self._inbox.put(order)

    def get(self, timeout_seconds: float | None) -> Order | None:
        """The next order; None if there was none within the time. None as a time waits for as long as it takes; 0 or less, not at all."""
        try:
            return self._inbox.get(timeout=None if timeout_seconds is None else max(timeout_seconds, 0))
        except queue.Empty:
            return None


class Runner(Protocol):
    """Runs one execution from its claim, or from whatever it finds of it, to its end."""

    def run(self, assignment: Assignment, orders: Orders) -> None:
        """Blocks until the outcome is committed and the container removed. Raises HostDown, and nothing else."""
