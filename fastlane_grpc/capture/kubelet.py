"""Capture by the log that a kubelet keeps, for pods that do not reach the server: nothing is added to the pod.

The record is honest, not exact: it has a gap of unknown size wherever it is not certain that the node handed out every
byte. The node does not tell stdout from stderr, so all output counts as stdout.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from fastlane_grpc.backend import BackendDown, BackendRefuses, CannotRun, Image
from fastlane_grpc.capture.capture import ContainerEnd, ReadSecrets, Wait, not_kept
from fastlane_grpc.capture.container_files import NoFiles
from fastlane_grpc.capture.handoff import CommandStatus, Delivery
from fastlane_grpc.capture.node_log import LogNotThere, NodeLog, NodeLogReader, ReadingStopped
from fastlane_grpc.capture.record_retries import retry_until_written
from fastlane_grpc.capture.server_record import ServerRecord
from fastlane_grpc.machine.shortage import outlast
from fastlane_grpc.model import Cause, Execution, Reason, Source
from fastlane_grpc.record import Trailer
from fastlane_grpc.supervisor import thread

# Pauses between two answers of a node: after output, and at most, in a silence. Each is longer than the one before.
SHORTEST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 2.0
# The longest wait for the rest of the log of a container that has ended.
DRAIN_SECONDS = 20.0
# Pauses in which a server that waits for that hears of other things.
LOOK_SECONDS = 0.05

_UNSURE = "some output may be missing: it is not certain that the node handed out all of it"

log = structlog.get_logger(__name__)


class NodeLogs(Protocol):
    """The logs that the nodes of a cluster keep."""

    def log_of(self, execution_id: str) -> NodeLog:
        """Return the log of the container of an execution."""

    def check(self) -> None:
        """Find out whether logs may be read. Raises BackendDown with what to do."""


class KubeletCapture:
    """Implements Capture. `log_line` is called with what keeps the output from being read."""

    name = "kubelet"
    kill_signal = "SIGKILL"
    is_running = False
    delivered = True
    start_granted = True
    unbegun = None
    files = NoFiles(
        "the host captures output by kubelet, and nothing brings files to its pods or back: they need the relay"
    )

    def __init__(
        self,
        node_logs: NodeLogs,
        directory: Path,
        execution_id: str,
        *,
        max_log_bytes: int,
        log_line: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._execution_id = execution_id
        self._node_log = node_logs.log_of(execution_id)
        self._log_line = log_line
        self._record = ServerRecord(directory / "log", execution_id, capture=self.name, max_log_bytes=max_log_bytes)
        self._reader: NodeLogReader | None = None
        self._follower: _Follower | None = None
        # The container is gone, and nobody has looked yet whether its node has more of the log.
        self._cut = False

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        return body

    def use_secrets(self, read: ReadSecrets) -> None:
        raise CannotRun(
            Reason.SECRET_UNAVAILABLE,
            "secret_envs: the host captures output by kubelet, which cannot mask the secrets of the job: they need "
            "the relay",
        )

    def use_stdin(self, content: Path) -> None:
        raise CannotRun(
            Reason.INPUT_UNAVAILABLE,
            "stdin: the host captures output by kubelet, which hands no standard input to the job: it needs the relay",
        )

    def discard_secrets(self) -> None:
        """Do nothing, as there are none."""

    @property
    def following(self) -> bool:
        return self._reader is not None

    @property
    def first_byte_time(self) -> datetime | None:
        return self._record.first_byte_time

    def open(self, container_id: str) -> None:
        self._record.open()
        self._use_reader(is_new=True)

    def release_start_resources(self) -> bool:
        """Begin to read, as there is a log from now on."""
        self._follow()
        return True

    def resume(self, container_id: str | None) -> None:
        retry_until_written(self._record.open)
        self._use_reader(is_new=False)
        if container_id is not None:
            self._follow()
        self._cut = container_id is None

    def revoke(self) -> CommandStatus | None:
        return None

    def signal(self, number: int) -> Delivery:
        return Delivery.NOT_SENT

    def abandon_unwritten(self) -> None:
        """Do nothing: a full disk here does not hold up the container."""

    def drain(self, end: ContainerEnd | None, wait: Wait) -> str:
        reader, record = self._reader, self._record.writer
        if end is None or reader is None or record is None:
            return ""
        self._cut = False
        follower = self._follow()
        follower.read_rest()
        while not follower.has_ended(LOOK_SECONDS):
            wait(0)
        if not follower.reached_end:
            reader.mark_gap()
        return not_kept(record.totals()) if reader.whole else _UNSURE

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        self._stop_following()
        if self._cut and self._record.writer:
            gap = partial(self._record.writer.gap, Source.STDOUT, None, Cause.ENGINE)
            retry_until_written(lambda: gap(time.time_ns()))
        return self._record.seal(exit_code, facts)

    def trailer(self) -> Trailer | None:
        return self._record.trailer()

    def detach(self) -> None:
        self._stop_following()
        self._record.close()
        self._reader = None

    def _use_reader(self, *, is_new: bool) -> None:
        assert self._record.writer is not None
        self._reader = self._reader or NodeLogReader(
            self._node_log, self._record.writer, self._directory / "node-log", is_new=is_new
        )

    def _follow(self) -> "_Follower":
        assert self._reader is not None
        self._follower = self._follower or _Follower(self._reader, self._execution_id, self._log_line)
        return self._follower

    def _stop_following(self) -> None:
        follower, self._follower = self._follower, None
        if follower:
            follower.stop()


class _Follower:
    """The thread that reads what is new, and at the end of the container the rest.

    The thread may wait for an answer of the node for a long time: nobody waits for the thread itself.
    """

    def __init__(self, reader: NodeLogReader, execution_id: str, log_line: Callable[[str], None]) -> None:
        self._reader = reader
        self._execution_id = execution_id
        self._log_line = log_line
        self._told = ""
        # Whether everything that the node has of an ended container is in the record.
        self.reached_end = False
        # Set at the end of the container, and when nothing is to be read any more.
        self._over = threading.Event()
        # If the thread fails, the end is not reached.
        self._thread = thread(f"kubelet-{execution_id}", self._run, on_failure=lambda error: None)
        outlast(self._thread.start)

    def read_rest(self) -> None:
        """Read the log of the container, which has ended, to its end."""
        self._over.set()

    def has_ended(self, seconds: float) -> bool:
        """Wait for the end of the thread. False: it did not end within the time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Write nothing more into the record."""
        self._reader.stop()
        self._over.set()

    def _run(self) -> None:
        self._read_until_over()
        self.reached_end = not self._reader.stopping.is_set() and self._read_to_end()

    def _read_until_over(self) -> None:
        pause_seconds = SHORTEST_PAUSE_SECONDS / 4
        while not self._over.wait(pause_seconds):
            longer = min(1.5 * pause_seconds, LONGEST_PAUSE_SECONDS)
            try:
                pause_seconds = SHORTEST_PAUSE_SECONDS if self._reader.read_on() else longer
            except ReadingStopped:
                return
            except LogNotThere:
                pause_seconds = longer
            except (BackendDown, BackendRefuses, OSError) as error:
                pause_seconds = longer
                self._tell(str(error))
            else:
                self._told = ""

    def _read_to_end(self) -> bool:
        """Read the log of a container that has ended. False: its end was not reached."""
        until = time.monotonic() + DRAIN_SECONDS
        while True:
            try:
                while self._reader.read_on() > 0:
                    until = time.monotonic() + DRAIN_SECONDS
            except (LogNotThere, ReadingStopped) as error:
                log.info("the log of a pod is gone", execution_id=self._execution_id, why=str(error))
                return False
            except (BackendDown, BackendRefuses, OSError) as error:
                log.warning("the log of a pod is not read", execution_id=self._execution_id, error=str(error))
                if time.monotonic() > until or self._reader.stopping.wait(SHORTEST_PAUSE_SECONDS):
                    return False
            else:
                return True

    def _tell(self, why: str) -> None:
        """Write into the log why it is not read, once for each reason."""
        if why != self._told and not self._reader.stopping.is_set():
            self._told = why
            log.warning("the log of a pod is not read for now", execution_id=self._execution_id, error=why)
            self._log_line(f"the output is not read for now: {why}")


class NoNodeLogs:
    """Implements NodeLogs and NodeLog for a cluster that is not configured any more: no log is there."""

    def log_of(self, execution_id: str) -> NodeLog:
        return self

    def check(self) -> None:
        """Do nothing, as nothing is read."""

    def read(self, last_lines: int | None) -> Iterator[bytes]:
        raise LogNotThere("its cluster is not configured any more")


class KubeletCaptures:
    """Implements Captures for a cluster whose pods do not reach the server."""

    name = KubeletCapture.name
    reason = "capture = kubelet is set"

    def __init__(self, node_logs: NodeLogs, *, max_log_bytes: int) -> None:
        self._node_logs = node_logs
        self._max_log_bytes = max_log_bytes
        # Empty until it is known that logs may be read.
        self.in_use = ""

    def determine(self) -> None:
        self.in_use = ""
        self._node_logs.check()
        self.in_use = self.name

    def for_new(self, directory: Path, execution_id: str, log_line: Callable[[str], None]) -> KubeletCapture:
        return KubeletCapture(
            self._node_logs, directory, execution_id, max_log_bytes=self._max_log_bytes, log_line=log_line
        )

    def for_existing(self, directory: Path, execution: Execution, log_line: Callable[[str], None]) -> KubeletCapture:
        return self.for_new(directory, execution.id, log_line)
