"""The files of a job in a container of a Docker engine, which reads and writes them itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from fastlane_grpc.backend import Handle
from fastlane_grpc.capture.container_files import InputArchive, OpenOutput
from fastlane_grpc.capture.recorder import MOUNT_TARGET
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.docker.engine_errors import EngineRefuses, gone_or


class EngineFiles:
    """Implements ContainerFiles over an engine. `directory` holds the record of the execution."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        self._directory = directory
        self._inputs: InputArchive | None = None

    def use_inputs(self, archive: InputArchive) -> None:
        self._inputs = archive

    def use_outputs(self, paths: Sequence[str], max_bytes: int) -> None:
        """Do nothing: the engine has them until the container is removed."""

    def write_inputs(self, handle: Handle) -> bool:
        if self._inputs is None:
            return False
        try:
            self._engine.unpack(handle.container_id, self._inputs())
        except EngineRefuses as refusal:
            raise gone_or(refusal, handle.container_id) from refusal
        return True

    @contextmanager
    def outputs(self, handle: Handle, paths: Sequence[str]) -> Iterator[OpenOutput]:
        """Create anew, and empty, the directory that the recorder was given, and open paths with it.

        An engine mounts all of a container's directories again to read its files, and finds no file if one is missing.
        """
        mounted = (self._engine.mounts(handle.container_id) or {}).get(Path(MOUNT_TARGET))
        open_output = partial(self._engine.archive, handle.container_id)
        if mounted is None:
            yield open_output
            return
        # The engine may know the data directory by another path.
        mount = self._directory / mounted.name
        mount.mkdir(mode=0o700, exist_ok=True)
        try:
            yield open_output
        finally:
            # Not empty, it is deleted with the log.
            with suppress(OSError):
                mount.rmdir()

    def discard_outputs(self) -> None:
        """Do nothing: they go with the container."""
