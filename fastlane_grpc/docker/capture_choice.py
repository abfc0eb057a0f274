"""The choice of the way of capture: which way works on a host, and which one an execution gets."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from fastlane_grpc.backend import capture_of
from fastlane_grpc.capture.attach import AttachCapture, OutputSource, OutputStream
from fastlane_grpc.capture.capture import Capture
from fastlane_grpc.capture.container_files import ContainerFiles, NoFiles
from fastlane_grpc.capture.recorder import Recorder, RecorderCapture
from fastlane_grpc.docker.container_files import EngineFiles
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.docker.engine_errors import EngineDown, EngineRefuses, gone_or
from fastlane_grpc.docker.probe import NotHere, not_here, probe
from fastlane_grpc.machine.shortage import is_shortage, outlast
from fastlane_grpc.model import CaptureMode, Execution

DEFAULT_MAX_LOG_BYTES = 1 << 30
_NO_ENGINE = "its engine is not configured any more"

log = structlog.get_logger(__name__)


class CaptureChoice:
    """The way of capture of one host, called `host`.

    `seen_as` is the path of the data directory on the engine's machine; None: the path is found out. Whether the
    recorder works is probed once for an engine, and success is noted in the data directory for the next server.
    """

    def __init__(
        self,
        mode: CaptureMode,
        data_dir: Path,
        *,
        instance: str,
        max_log_bytes: int = DEFAULT_MAX_LOG_BYTES,
        seen_as: Path | None = None,
        host: str = "local",
    ) -> None:
        self._mode = mode
        self._data_dir = data_dir
        # The label of the host's probes: two hosts may be one engine, and must not remove each other's probes.
        self._owner = f"{instance}/{host}"
        self._max_log_bytes = max_log_bytes
        self._seen_as = seen_as
        self._host = host
        self._recorder: Recorder | None = None
        self._works_with: object = None
        self._determining = threading.Lock()
        # Why the recorder is not in use, or what the recorder cannot do on this host.
        self.reason = "capture = attach is set" if mode is CaptureMode.ATTACH else ""

    @property
    def in_use(self) -> str:
        """The way of capture of new executions: `recorder` or `attach`.

        Empty while the way is not known, or if the configured way does not work.
        """
        if self._recorder:
            return RecorderCapture.name
        return AttachCapture.name if self.reason and self._mode is not CaptureMode.RECORDER else ""

    def determine(self, engine: Engine) -> None:
        """Find out which way of capture works with the present engine. Raises EngineDown.

        May be called from any thread; concurrent calls wait for each other.
        """
        if self._mode is CaptureMode.ATTACH:
            return
        with self._determining:
            before = self.in_use, self.reason
            try:
                # A shortage is waited for, as it is no reason to choose another way of capture.
                self.reason = outlast(lambda: self._try(engine))
            except NotHere as error:
                self._recorder, self._works_with, self.reason = None, None, str(error)
            if before != (self.in_use, self.reason):
                # By attach, output is lost whenever the server or the engine goes away.
                tell = log.warning if self.in_use == AttachCapture.name else log.info
                tell("capture", host=self._host, in_use=self.in_use, reason=self.reason)

    def for_new(self, engine: Engine, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> Capture:
        """Return the capture of an execution that is about to start; `directory` holds its record.

        Raises EngineDown while the way of capture is not known: an execution that is launched anew comes from an
        earlier server, and may come before this server has determined the way.
        """
        if not self.in_use:
            raise EngineDown("it is not known yet how the output of its containers is captured")
        files = EngineFiles(engine, directory)
        if self._recorder:
            return RecorderCapture(files, directory, execution_id, self._recorder)
        return AttachCapture(
            _Output(engine),
            files,
            directory / "log",
            execution_id,
            max_log_bytes=self._max_log_bytes,
            log_line=log_line,
        )

    def for_existing(
        self, engine: Engine, directory: Path, execution: Execution, log_line: Callable[[str], None]
    ) -> Capture:
        """Return the capture of an execution that was started before: in the same way, whatever is in use now."""
        files = EngineFiles(engine, directory)
        return _existing(_Output(engine), files, directory, execution, log_line, self._max_log_bytes)

    def _try(self, engine: Engine) -> str:
        """Return what the recorder cannot do on this host; empty: nothing. Raises NotHere if it does not work."""
        try:
            if not engine.local:
                raise NotHere(
                    f"the engine is elsewhere ({engine.address}): its recorders cannot write on this server's disk"
                )
            info = engine.info()
            seen_as = self._seen_as or _seen_as(engine, self._data_dir)
            recorder = Recorder.install(self._data_dir, seen_as, self._max_log_bytes, architecture=info.architecture)
            if recorder is None:
                raise NotHere(
                    f"there is no recorder for {info.architecture!r}: it was not built, or this is another architecture"
                )
            works_with = [info.id, info.version, str(recorder.seen_as), str(recorder.program)]
            if self._works_with != works_with:
                noted = self._noted()
                if noted is None or noted[0] != works_with:
                    probed = probe(engine, recorder, owner=self._owner)
                    noted = works_with, probed.lacks
                    if probed.whole:
                        self._note(noted)
                reason = noted[1]
            else:
                reason = self.reason
        except EngineRefuses as refusal:
            raise not_here(refusal) from refusal
        except OSError as error:
            if is_shortage(error):
                raise
            raise NotHere(f"the data directory cannot be used for it: {error}") from error
        self._recorder, self._works_with = recorder, works_with
        return reason

    def _noted(self) -> tuple[object, str] | None:
        try:
            works_with, reason = json.loads(self._note_path.read_text())
            return works_with, str(reason)
        except (OSError, ValueError, TypeError):
            return None

    def _note(self, works_with: tuple[object, str]) -> None:
        new = self._note_path.with_suffix(".new")
        new.write_text(json.dumps(works_with))
        new.rename(self._note_path)

    @property
    def _note_path(self) -> Path:
        return self._data_dir / "recorder" / f"works-with-{self._host}"


def capture_without_engine(directory: Path, execution: Execution, log_line: Callable[[str], None]) -> Capture:
    """Return the capture of an execution on an engine that is not configured any more, and is never asked."""
    files = NoFiles(_NO_ENGINE)
    return _existing(_NoEngine(), files, directory, execution, log_line, DEFAULT_MAX_LOG_BYTES)


class _Output:
    """The output of an engine's containers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.local = engine.local

    def attach(self, container_id: str) -> OutputStream:
        try:
            return self._engine.attach(container_id)
        except EngineRefuses as refusal:
            raise gone_or(refusal, container_id) from refusal


class _NoEngine:
    local = False

    def attach(self, container_id: str) -> OutputStream:
        raise EngineDown(_NO_ENGINE)


def _existing(
    source: OutputSource,
    files: ContainerFiles,
    directory: Path,
    execution: Execution,
    log_line: Callable[[str], None],
    max_log_bytes: int,
) -> Capture:
    if capture_of(execution.handle) == RecorderCapture.name:
        return RecorderCapture(files, directory, execution.id, None)
    return AttachCapture(source, files, directory / "log", execution.id, max_log_bytes=max_log_bytes, log_line=log_line)


def _seen_as(engine: Engine, data_dir: Path) -> Path:
    """Return the path of the data directory on the engine's machine.

    The path differs if this server runs in a container of that engine.
    """
    own_id = _own_container()
    mounts = engine.mounts(own_id) if own_id else None
    if mounts is None:
        return data_dir
    inside = max(
        (path for path in mounts if data_dir.is_relative_to(path)), key=lambda path: len(path.parts), default=None
    )
    if inside is None:
        raise NotHere(
            f"this server runs in a container, and {data_dir} is not mounted into it, "
            "so that it would be gone with it and no other container can write there: "
            "mount a directory of the host there, or set engine_data_dir to what the host calls it"
        )
    return mounts[inside] / data_dir.relative_to(inside)


def _own_container() -> str:
    """Return the id of the container that this process runs in; empty if it runs in none, as far as can be seen."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    # An engine mounts these two of its files into every container, from a directory named by the container's id.
    found = re.search(r"/containers/([0-9a-f]{64})/(?:hostname|resolv\.conf) /etc/", mounts)
    return found[1] if found else ""
