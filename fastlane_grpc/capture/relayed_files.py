"""The files of a job in a pod, which its relay hands over before the start and copies back after the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastlane_grpc.backend import Handle
from fastlane_grpc.capture.container_files import InputArchive, OpenOutput
from fastlane_grpc.capture.relay_calls import relay_calls
from fastlane_grpc.capture.relayed_outputs import discard, kept


class RelayedFiles:
    """Implements ContainerFiles for the execution whose record is in `directory`. `is_of_pod` as in `JobFiles`."""

    def __init__(self, directory: Path, is_of_pod: Callable[[str], bool]) -> None:
        self.has_inputs = False
        self.output_paths: Sequence[str] = ()
        self.max_output_bytes = 0
        self._directory = directory
        self._is_of_pod = is_of_pod

    def use_inputs(self, archive: InputArchive) -> None:
        self.has_inputs = True
        relay_calls.offer_inputs(self._directory, archive, self._is_of_pod)

    def use_outputs(self, paths: Sequence[str], max_bytes: int) -> None:
        self.output_paths, self.max_output_bytes = paths, max_bytes

    def write_inputs(self, handle: Handle) -> bool:
        """Return False, as the pod asks for them when it begins."""
        return False

    @contextmanager
    def outputs(self, handle: Handle, paths: Sequence[str]) -> Iterator[OpenOutput]:
        yield partial(kept, self._directory, paths)

    def discard_outputs(self) -> None:
        discard(self._directory)
