"""The interface between `execution/` and a backend, which runs containers: its verbs, values, errors and events.

The module imports no backend and no SDK. Every promise of `execution/` rests on the words of this module alone.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol, TypeAlias

from fastlane_grpc.model import Assignment, Execution, HostKind, Nodes, Reason, Usage

# -- errors


class BackendDown(Exception):
    """The backend did not answer. The request may have been carried out, or may be carried out later."""


class RefusalKind(Enum):
    """The kind of a refusal."""

    FINAL = "about the request: the backend refuses a repeated request, too"
    PASSING = "about the backend: a repeated request may succeed; this one was not carried out"
    CUT_OFF = "about the backend: a repeated request may succeed; this one may have been carried out"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The message of a backend that refused a request or gave up a start, and its meaning.

    `text` is the message without the names of inner parts, `advice` the same with what to do about it.
    `command_reason` is the reason if the message is about the job's command, `image_reason` if it is about the image.
    """

    message: str
    text: str
    advice: str
    refusal: RefusalKind
    command_reason: Reason | None = None
    image_reason: Reason | None = None

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.refusal is not RefusalKind.FINAL


class BackendRefuses(Exception):
    """The backend refused a request. The subclasses are what `execution/` must tell apart.

    `about_host`: as far as is known, the backend would refuse the containers of other jobs, too."""

    def __init__(self, diagnosis: Diagnosis, *, about_host: bool = False) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis
        self.about_host = about_host


class NameTaken(BackendRefuses):
    """`create`: there is a container with this name already; see `Backend.find`."""


class ImageGone(BackendRefuses):
    """`create`: the image was removed since it was resolved."""


class ContainerGone(BackendRefuses):
    """The container was removed, or is being removed."""


class NoCapacity(BackendRefuses):
    """`create`: the backend has no place for another container until others end, or until an operator makes one."""


class NotRunning(BackendRefuses):
    """`signal`: the container does not run any more. The event of its end is on its way."""


class CannotRun(Exception):
    """The job cannot be run as it is: nothing is down, and another try would not help."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class PullFailed(Exception):
    """The pull failed for a reason that may pass.

    `reason` is the reason of the execution if the failure stays. The registry asks to wait for `retry_seconds`.
    """

    def __init__(
        self, message: str, *, reason: Reason = Reason.REGISTRY_UNAVAILABLE, retry_seconds: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_seconds = retry_seconds


# -- values


@dataclass(frozen=True, slots=True)
class Handle:
    """The backend's knowledge about the container of an execution. `text` is JSON, and opaque to everybody else.

    One field of it is not: `capture` is the name of the way of capture (see `capture_of`).

    `container_id` is the container's name for people; no backend finds a container by it alone.
    """

    container_id: str
    text: str


def capture_of(text: str) -> str:
    """Return the way of capture that the text of a handle names; empty: none, as there is no container."""
    return str(json.loads(text).get("capture", "")) if text else ""


@dataclass(frozen=True, slots=True)
class StartWait:
    """The wait of a container between its start and its beginning: for a node as long as `node` is empty.

    `text`: why it waits, in the backend's words; empty if there is nothing to tell. `if_long`: what to tell of a wait
    that is ordinary for some seconds.
    """

    node: str
    text: str
    if_long: str = ""


class InterruptionCause(Enum):
    """The kind of an interruption."""

    EVICTED = "the backend or one of its users ended the container"
    NODE_LOST = "the node of the container does not answer, or was removed"
    DEADLINE = "the container ran longer than its backend was told to let it run"


@dataclass(frozen=True, slots=True)
class Interruption:
    """An end that a backend puts to a container without an order of the server. `text`: why, in the backend's words."""

    cause: InterruptionCause
    text: str


@dataclass(frozen=True, slots=True)
class Container:
    """The state of a container at the time of the call. `start_time` is None for a container that never ran.

    `start_failure` is set if the backend gave up the start of the container, or fails to start it for now. `start_wait`
    is set if the start was accepted, and the container has not begun. `exit_code` is None if the container has not
    ended, or if the backend does not know how. `delivering`: what brings its output to the server still runs.
    """

    handle: Handle
    # The container's main process is there, if paused.
    alive: bool
    ended: bool
    exit_code: int | None
    start_failure: Diagnosis | None
    out_of_memory: bool
    stop_signal: str
    start_time: datetime | None
    end_time: datetime | None
    # The program that the container or its recorder runs; None: unknown.
    program: str | None = None
    start_wait: StartWait | None = None
    interruption: Interruption | None = None
    delivering: bool = False


@dataclass(frozen=True, slots=True)
class LeftContainer:
    """A container of this instance, found in a list. `own`: this host made the container, not another host."""

    handle: Handle
    execution_id: str
    own: bool


@dataclass(frozen=True, slots=True)
class Image:
    """An image on a host. `architecture` is Docker's name ("amd64"). Fields that are not set are empty.

    `user`: as the image says it, by name or number; known only of an image that was read from its registry.
    """

    digest: str
    architecture: str
    entrypoint: Sequence[str]
    command: Sequence[str]
    user: str = ""


@dataclass(frozen=True, slots=True)
class Info:
    """Identity of a backend. `id` stays the same for as long as the backend's data directory lasts.

    `nodes`: None if the backend has none, or does not tell.
    """

    id: str
    version: str
    architecture: str
    nodes: Nodes | None = None


# -- events


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """The main process of a container ended, or (`died` is false) it was started or let go on.

    A container that waits for its start for another reason than before has an event of the second kind, too.

    `time_ns` is the time by the backend's clock. `exit_code` is None if the backend does not tell. `interruption` is
    that of a container that ended, as it may be gone by now.
    """

    execution_id: str
    container_id: str
    died: bool
    exit_code: int | None
    time_ns: int
    interruption: Interruption | None = None


@dataclass(frozen=True, slots=True)
class UnreadableEvent:
    """An event that cannot be read, with the fault. The event may have been the end of a container."""

    fault: str
    line: bytes


BackendEvent: TypeAlias = ContainerEvent | UnreadableEvent


class EventStream(Protocol):
    """Events of this instance's containers, some of them from before the call. An event may come twice."""

    def events(self) -> Iterator[BackendEvent]:
        """Yield events until the connection breaks. Raises OSError, and TimeoutError after a silence."""

    def set_timeout(self, seconds: float | None) -> None:
        """Set how long a silence may last from now on."""

    def cut(self) -> None:
        """Close the stream. May be called from any thread; a thread that reads gets its end or an OSError."""


# -- the verbs


class Pull(Protocol):
    """A pull under way."""

    def cancel(self) -> None:
        """Give up the pull. `on_end` may still be called."""


class Wrapper(Protocol):
    """A way of capture, as it bears on the creation of a container."""

    name: str

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        """Return the backend's description of the container, changed as this way of capture needs it."""


class Backend(Protocol):
    """Runs the containers of one host: one for each execution, named by the execution's id.

    Every method may be called from any thread. Every method raises BackendDown, and BackendRefuses with what its
    docstring names. A container is created, then started once. A backend whose containers start at their creation
    (Kubernetes) creates them with a gate, and `start` removes the gate.

    `starts_at_once`: a container runs when `start` returns. Otherwise it may wait for a node or its image first, and a
    start that is sent again changes nothing.

    `keeps_images`: a pull brings the image of a job to the host. Otherwise its nodes pull images, and a pull here only
    finds out what must be known of an image before its container is created.
    """

    address: str
    starts_at_once: bool
    keeps_images: bool
    kind: HostKind

    # -- images

    def image(self, assignment: Assignment) -> Image | None:
        """Resolve the image of a job; None: it is to be pulled first. Raises CannotRun if it is no name of an image."""

    def architecture(self, image_digest: str) -> str:
        """Return the architecture of an image that was resolved, as Docker names it; empty if it is not known."""

    def pull(
        self, assignment: Assignment, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]
    ) -> Pull:
        """Pull the image of a job in the background, and return at once.

        `on_line` is called with reports of progress, `on_end` once with CannotRun, PullFailed, BackendDown or None.
        """

    # -- containers

    def create(self, assignment: Assignment, image: Image, wrapper: Wrapper) -> Handle:
        """Create the container of an execution, with its description as `wrapper` changes it.

        Raises CannotRun, NameTaken, ImageGone, NoCapacity, and whatever `wrapper` raises; then nothing was created.
        """

    def before_start(self, handle: Handle) -> Handle:
        """Return the handle to store before the start is sent: with it, `restarted` judges the start later."""

    def start(self, handle: Handle) -> None:
        """Start a container: sent once, without a limit on the wait. After BackendDown it may start or not.

        Raises ContainerGone.
        """

    def revoke(self, handle: Handle) -> bool:
        """Remove a container that was started and has no node yet. True: it did not run, and never will.

        False: it has a node, is gone, or was changed just now.
        """

    def inspect(self, handle: Handle) -> Container | None:
        """Return the state of the container; None if there is no such container."""

    def usage(self, handle: Handle) -> Usage | None:
        """Return what a running container has used so far. Answers within seconds.

        None: the container does not run, or the backend does not tell.
        """

    def find(self, execution: Execution) -> Container | None:
        """Return the container with the execution's name, if there is one. Raises CannotRun if it is another's."""

    def signal(
        self, handle: Handle, signal: str, *, grace_seconds: float = 0, answer_seconds: float | None = None
    ) -> None:
        """Send a signal to the main process; a paused container goes on. Raises NotRunning.

        `grace_seconds`: when SIGKILL follows. A backend that cannot be told later has to know now. `answer_seconds`
        replaces the usual limit on the wait for the answer.
        """

    def remove(self, handle: Handle, *, force: bool) -> None:
        """Remove a container; one that does not exist counts as removed. Without `force` no running one is removed."""

    def containers(self) -> Sequence[LeftContainer]:
        """Return all containers of this instance that the backend has, those of other hosts, too."""

    def restarted(self, handle: Handle) -> bool | None:
        """Return whether the backend was restarted since `before_start`, and may have ended the container.

        None: that is not known.
        """

    # -- the backend itself

    def events(self) -> EventStream:
        """Return the events of this instance's containers, from some seconds ago on."""

    def ping(self, timeout_seconds: float) -> None:
        """Ask for an answer. Only a ping detects a backend that hangs, as such a backend accepts connections."""

    def info(self) -> Info:
        """Return the identity of the backend."""

    def forget(self) -> None:
        """Forget everything about the backend's process, as it went away. The next one may have another version."""
