"""The protocol of a job's files: its inputs on their way into each container, and its outputs on their way back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, NoReturn, Protocol, TypeAlias

from fastlane_grpc.backend import BackendRefuses, CannotRun, Diagnosis, Handle, RefusalKind
from fastlane_grpc.model import Reason

# Returns the tar archive of a job's inputs in blocks.
InputArchive: TypeAlias = Callable[[], Iterator[bytes]]
# Opens the tar archive of a path in a container; None: the container has no such path. The names in the archive begin
# with the last name of the path.
OpenOutput: TypeAlias = Callable[[str], BinaryIO | None]


class OutputsTooLarge(Exception):
    """The outputs of a job have more bytes than they may have."""


class ContainerFiles(Protocol):
    """The files of one execution. Used by the thread of its capture."""

    def use_inputs(self, archive: InputArchive) -> None:
        """Bring inputs into each container. Called before a container is created. Raises CannotRun."""

    def use_outputs(self, paths: Sequence[str], max_bytes: int) -> None:
        """Bring these paths back from each container that ran, if they are not larger. Called as `use_inputs` is."""

    def write_inputs(self, handle: Handle) -> bool:
        """Write the inputs into a container that was not started. False: there are none, or the start brings them.

        Raises ContainerGone, and what the iteration of the archive raises.
        """

    def outputs(self, handle: Handle, paths: Sequence[str]) -> AbstractContextManager[OpenOutput]:
        """Return what opens each of the paths of `use_outputs`, in a container that has ended.

        Opening raises OutputsTooLarge and OSError. Reading raises BackendDown.
        """

    def discard_outputs(self) -> None:
        """Delete what was brought back, as it is kept elsewhere or not wanted any more. Raises OSError."""


class NoFiles:
    """Implements ContainerFiles where nothing reaches the files of a container. `why` goes to jobs with files."""

    def __init__(self, why: str) -> None:
        self._why = why

    def use_inputs(self, archive: InputArchive) -> None:
        raise CannotRun(Reason.INPUT_UNAVAILABLE, f"inputs: {self._why}")

    def use_outputs(self, paths: Sequence[str], max_bytes: int) -> None:
        raise CannotRun(Reason.REFUSED_BY_ENGINE, f"outputs: {self._why}")

    def write_inputs(self, handle: Handle) -> bool:
        return False

    def outputs(self, handle: Handle, paths: Sequence[str]) -> NoReturn:
        raise BackendRefuses(Diagnosis(self._why, self._why, self._why, RefusalKind.FINAL))

    def discard_outputs(self) -> None:
        """Do nothing, as there are none."""
