"""How the output of a container gets into its record: one contract, whichever way the bytes take."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fastlane_grpc.capture.handoff import CommandStatus, Delivery
from fastlane_grpc.docker.engine import Image
from fastlane_grpc.model import LogTotals
from fastlane_grpc.record import RecordReader, Trailer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """The end of a container, as far as it bears on whether all of its output was had.

    `witnessed`: the engine told of it while it was listened to without a break from before the start, so it is one life
    of the engine. `exit_code`: of its main process, by the engine."""

    end_time: datetime | None
    witnessed: bool
    exit_code: int | None = None


class Capture(Protocol):
    """CaptureChoice one execution. Used by one thread; what reads along in the background is its own affair.

    A record is exact, or has a gap where it is not; `seal` is only reached through `drain`, which settles which of the
    two. Only `wrap`, `open` and `resume` fail: with EngineDown or EngineRefuses, the first two also with OSError (no
    room for the record). They may then be called again. `is_running` fails with OSError where it cannot be told just now. The
    others wait until the disk allows an answer."""

    # Kept with the execution before its start: who takes it up again must capture it in the same way.
    name: str
    # The signal by which a container is killed that did not end when it was asked to. SIGKILL is always there as the
    # last resort.
    kill_signal: str

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        """Before the container is made: what the engine is to be asked for. Raises CannotRun if it cannot be captured
        like this."""

    def open(self, container_id: str) -> None:
        """Before the start. When it returns, everything that the container prints from its start on is followed."""

    def release_start_resources(self) -> bool:
        """After the start, again and again until it is True: everything that was needed for the start only is put
        away."""

    @property
    def following(self) -> bool:
        """Whether what the container prints is on its way into the record."""

    @property
    def is_running(self) -> bool:
        """Whether it is certain, whatever the engine says, that the container's main process is there."""

    def revoke(self) -> CommandStatus | None:
        """What became of the command; one that has not run by now never will. None: this way of capture cannot tell."""

    def signal(self, number: int) -> Delivery:
        """Sends a signal to the container's main process without the engine, which may hang or not know of it any
        more."""

    def resume(self, container_id: str | None) -> None:
        """After a break in which the container may have printed. What it printed then is a gap, unless the way of
        capture spans the break. None: it does not run any more."""

    def abandon_unwritten(self) -> None:
        """The container is being killed: what cannot be stored is counted as lost. Until then a full disk holds the
        container up."""

    def drain(self, end: ContainerEnd | None) -> str:
        """Waits for the last bytes; says what may be missing, empty if every byte is in the record. None: the container
        never ran, there is nothing to wait for."""

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        """Ends the record, on disk when it returns. One that has its trailer keeps it. None: there is no record, as
        nothing came so far."""

    def trailer(self) -> Trailer | None:
        """The trailer of a record that is sealed already."""

    def detach(self) -> None:
        """Lets go of the record as it is, for the next one to resume."""

    @property
    def first_byte_time(self) -> datetime | None:
        """When the first byte came."""


def ask_record(record: Path, question: Callable[[RecordReader], T]) -> T:
    """Opens a record to ask it something. Raises OSError."""
    reader = RecordReader(record)
    try:
        return question(reader)
    finally:
        reader.close()


def not_kept(totals: Iterable[LogTotals]) -> str:
    """What to say of a record that holds less than was printed; empty if it holds everything."""
    missing = [
        f"{total.missing_bytes} bytes of {total.source.name.lower()} are missing"
        for total in totals
        if total.missing_bytes
    ]
    return "not all output was kept: " + ", ".join(missing) if missing else ""
