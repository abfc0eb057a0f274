"""The protocol of a capture, which brings the output of one container into its record.

Every implementation guarantees a record that is exact, or that has a gap wherever it is not.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from fastlane_grpc.backend import Image
from fastlane_grpc.capture.container_files import ContainerFiles
from fastlane_grpc.capture.handoff import CommandStatus, Delivery
from fastlane_grpc.model import Execution, LogTotals
from fastlane_grpc.record import RecordReader, Trailer

T = TypeVar("T")

# Returns the value of each variable.
ReadSecrets: TypeAlias = Callable[[], Mapping[str, bytes]]

# Waits for so many seconds, or less. Raises what the caller does not wait any longer for.
Wait: TypeAlias = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """The end of a container, as far as it bears on the completeness of the captured output.

    `witnessed`: the engine reported the end to a listener that was connected without a break since before the start.
    `exit_code`: of the main process, by the engine.
    """

    end_time: datetime | None
    witnessed: bool
    exit_code: int | None = None


class Capture(Protocol):
    """The capture of one execution. Used by one thread; threads in the background are the capture's own.

    A record is exact, or has a gap where it is not. `drain` comes before `seal` and decides which of the two. Only
    `wrap`, `open` and `resume` fail, with BackendDown or BackendRefuses; `wrap` and `open` also with OSError (no room
    for the record). They may then be called again. `is_running` raises OSError if the answer is not known just now.
    The other methods wait until the disk allows an answer.
    """

    # Stored with the execution before its start: a recovered execution must be captured in the same way.
    name: str
    # The first signal by which a container is killed that did not end within its grace. SIGKILL is the last resort.
    kill_signal: str

    @property
    def files(self) -> ContainerFiles:
        """The inputs and outputs of the job."""

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        """Return the backend's description of the container to create, changed as this capture needs it.

        Called before the container is created. Raises CannotRun if the container cannot be captured in this way.
        """

    def use_secrets(self, read: ReadSecrets) -> None:
        """Give variables with secrets to the command of each container, and mask their values in the record.

        `wrap` raises what `read` raises. Raises CannotRun if this way of capture cannot mask.
        """

    def use_stdin(self, content: Path) -> None:
        """Give a file, which any user can read, to the command of each container as its standard input.

        Raises CannotRun if this way of capture cannot.
        """

    def discard_secrets(self) -> None:
        """Delete secrets that are on their way to a container that is not started."""

    def open(self, container_id: str) -> None:
        """Follow all output from the start on. Called before the start; the output is followed when this returns.

        Raises ContainerGone if somebody removed the container.
        """

    def release_start_resources(self) -> bool:
        """Release what only the start needed. Called after the start, repeatedly until the result is True."""

    @property
    def following(self) -> bool:
        """Whether the container's output is on its way into the record."""

    @property
    def is_running(self) -> bool:
        """Whether the container's main process certainly runs, whatever the engine says."""

    def revoke(self) -> CommandStatus | None:
        """Revoke the start, and return what became of the command. A command that has not run by now never will.

        None: this way of capture cannot tell.
        """

    @property
    def start_granted(self) -> bool:
        """Whether the command of a container that runs may run. False: it waits for a grant, until `revoke`."""

    @property
    def unbegun(self) -> str | None:
        """The reason why the command of a started container never ran, and never will; empty: it is not known.

        None: the command may have run, or its start was revoked.
        """

    def signal(self, number: int) -> Delivery:
        """Send a signal to the main process without the engine, which may hang or not know the container."""

    def resume(self, container_id: str | None) -> None:
        """Resume after a break. Output of the break is a gap, unless this way of capture spans the break.

        `container_id` is None if the container does not run any more.
        """

    def abandon_unwritten(self) -> None:
        """Count output that cannot be stored as lost, as the container is being killed.

        Until then a full disk blocks the container.
        """

    @property
    def delivered(self) -> bool:
        """Whether nothing of the output of an ended container is on its way from another machine."""

    def drain(self, end: ContainerEnd | None, wait: Wait) -> str:
        """Wait for the last bytes, and return what may be missing; empty if every byte is in the record.

        `end` is None if the container never ran and there is nothing to wait for. What `wait` raises ends a wait for
        bytes that are still there for a later `resume`.
        """

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        """Seal the record with a trailer, which is on disk when this returns. An existing trailer stays.

        None: there is no record, as no output came.
        """

    def trailer(self) -> Trailer | None:
        """Return the trailer of the record; None if the record is not sealed."""

    def detach(self) -> None:
        """Release the record as it is; a later capture may resume it."""

    @property
    def first_byte_time(self) -> datetime | None:
        """The time of the first byte; None if there is none."""


class Captures(Protocol):
    """The ways of capture on one host: which one is in use, and the capture of each execution."""

    @property
    def reason(self) -> str:
        """The reason why a better way to capture is not in use, or a limitation of the way in use on this host."""

    @property
    def in_use(self) -> str:
        """The name of the way of new executions; empty while the way is not known, or if the configured one fails."""

    def determine(self) -> None:
        """Find out which way works at present. Raises BackendDown. May be called from any thread."""

    def for_new(self, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> Capture:
        """Return the capture of an execution that is about to start; `directory` holds its record.

        Raises BackendDown while the way of capture is not known.
        """

    def for_existing(self, directory: Path, execution: Execution, log_line: Callable[[str], None]) -> Capture:
        """Return the capture of an execution that was started before: in the same way, whatever is in use now."""


def ask_record(record: Path, question: Callable[[RecordReader], T]) -> T:
    """Open a record, and return the answer to `question` about it. Raises OSError."""
    reader = RecordReader(record)
    try:
        return question(reader)
    finally:
        reader.close()


def trailer_of(reader: RecordReader, execution_id: str) -> Trailer | None:
    """Return the trailer of the record; None if the record has none, or is another execution's."""
    return reader.trailer() if reader.is_of(execution_id) else None


def not_kept(totals: Iterable[LogTotals]) -> str:
    """Return a sentence about output that the record lacks; empty if the record holds everything."""
    missing = [
        f"{total.missing_bytes} bytes of {total.source.name.lower()} are missing"
        for total in totals
        if total.missing_bytes
    ]
    return "not all output was kept: " + ", ".join(missing) if missing else ""
