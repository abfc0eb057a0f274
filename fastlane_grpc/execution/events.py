"""The events of a backend about one execution, as a host puts them into the mailbox of the execution."""

from dataclasses import dataclass

from fastlane_grpc.backend import Interruption
from fastlane_grpc.runner import Event


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The engine reports that the container runs, or runs again after a pause."""


@dataclass(frozen=True, slots=True)
class Died(Event):
    """The engine reports that the main process of the container ended, at `time_ns` by the engine's clock.

    `heard_since` is the time on CLOCK_BOOTTIME since when the host has listened to the engine without a break. An
    execution may have had an earlier container: `container_id` names the container, if the engine tells.
    """

    exit_code: int | None
    time_ns: int
    heard_since: float
    container_id: str = ""
    interruption: Interruption | None = None


@dataclass(frozen=True, slots=True)
class EngineGone(Event):
    """The stream of the engine's events broke off, at `time` on CLOCK_BOOTTIME. Events are missed until EngineBack."""

    time: float


@dataclass(frozen=True, slots=True)
class EngineBack(Event):
    """The host listens to the engine again. Each execution now checks what it missed."""


@dataclass(frozen=True, slots=True)
class PullEnded(Event):
    """The pull of the execution's image ended: with success, or with this failure."""

    failure: Exception | None
