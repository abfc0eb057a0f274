"""Capture by recorder: PID 1 of the container writes the record, without the server or the engine in between.

The record is exact, whatever is killed, except the recorder itself: a SIGKILL to PID 1 loses the bytes in its pipes,
and leaves a gap of unknown size.
"""

import os
import secrets
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from fastlane_grpc import recorder as program
from fastlane_grpc.backend import CannotRun, Image
from fastlane_grpc.capture.capture import ContainerEnd, ReadSecrets, Wait, ask_record, not_kept
from fastlane_grpc.capture.container_files import ContainerFiles
from fastlane_grpc.capture.handoff import CommandStatus, Delivery, RecordHandoff
from fastlane_grpc.capture.handoff_watcher import handoff_watcher
from fastlane_grpc.capture.record_retries import retry_until_written
from fastlane_grpc.capture.written_record import first_byte_time_in, trailer_in
from fastlane_grpc.model import Cause, Reason, Source
from fastlane_grpc.record import RecordSealed, RecordWriter, Trailer

# Paths in a container of the recorder program and the mounted directory.
PROGRAM_TARGET, MOUNT_TARGET = "/.fastlane/recorder", "/.fastlane/box"
# The path in a container of the standard input of its command.
STDIN_TARGET = "/.fastlane/stdin"
# The time that a left-over recorder gets, after a hard stop, to store the bytes in its pipes. Then it is killed.
END_SECONDS = 10.0
# The least limit of the program: two blocks of a record for the head, two for the newest part.
LEAST_LOG_BYTES = 4 * 65_536
# The exit status of a recorder that could store nothing any more, not even its trailer, and killed its command.
CANNOT_STORE_CODE = 117

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Recorder:
    """The recorder as an engine on this machine can start it. The engine sees `data_dir` as `seen_as`."""

    program: Path
    data_dir: Path
    seen_as: Path
    max_log_bytes: int

    @classmethod
    def install(cls, data_dir: Path, seen_as: Path, max_log_bytes: int, *, architecture: str) -> "Recorder | None":
        """Install the program into the data directory. None: there is no program for the host's architecture.

        The program is static: the kernel of the host executes it in a container of any image.
        """
        binary = program.binary(architecture)
        return cls(_installed(binary, data_dir / "recorder"), data_dir, seen_as, max_log_bytes) if binary else None

    def wrap(
        self,
        body: Mapping[str, Any],
        image: Image,
        mount: Path,
        execution_id: str,
        *,
        variables: int = 0,
        stdin: Path | None = None,
    ) -> Mapping[str, Any]:
        """Return the body of a container whose PID 1 is the recorder, which runs the container's original command.

        `variables`: the number of those in the file of secrets. `stdin`: the standard input of the command, below the
        data directory. Raises CannotRun if there is no command.
        """
        words = command_of(body["Entrypoint"], body["Cmd"], image)
        host = body["HostConfig"]
        limits, privileges = ulimits_by_recorder(host), capabilities_by_recorder(host)
        recorder = [PROGRAM_TARGET, "--execution", execution_id, "--limit", str(self.max_log_bytes)]
        recorder += ["--secrets", str(variables)] if variables else []
        recorder += ["--stdin", STDIN_TARGET] if stdin else []
        recorder += [*limits.options, *privileges.options, MOUNT_TARGET, "--"]
        mounts = [
            {"Type": "bind", "Source": self._seen(self.program), "Target": PROGRAM_TARGET, "ReadOnly": True},
            {"Type": "bind", "Source": self._seen(mount), "Target": MOUNT_TARGET},
        ]
        if stdin:
            # Read-only is the mount, not the file: nobody in the container can open what is behind it for writing, and
            # change what a retry reads.
            mounts.append({"Type": "bind", "Source": self._seen(stdin), "Target": STDIN_TARGET, "ReadOnly": True})
        # One process more: the recorder.
        additions = {"Mounts": [*host.get("Mounts", ()), *mounts], "PidsLimit": host["PidsLimit"] + 1}
        return {
            **body,
            "Entrypoint": recorder,
            "Cmd": words,
            "AttachStdout": False,
            "AttachStderr": False,
            "HostConfig": {**host, **additions, **limits.host_config, **privileges.host_config},
        }

    def _seen(self, path: Path) -> str:
        return str(self.seen_as / path.relative_to(self.data_dir))


@dataclass(frozen=True, slots=True)
class ByRecorder:
    """Options of the recorder, which hold for the command alone, and the engine's part, which holds for both."""

    options: Sequence[str]
    host_config: Mapping[str, Any]


# The least limits under which a recorder works, -1: none. The command may have less: the recorder sets its limits.
_LEAST_ULIMITS = {"cpu": -1, "data": -1, "fsize": -1, "nproc": -1, "nofile": 1024, "sigpending": 1024, "stack": 8 << 20}
# A recorder that is root ends processes of all users by KILL, and takes both from the command by SETPCAP.
_OWN_CAPABILITIES = ("KILL", "SETPCAP")


def ulimits_by_recorder(host: Mapping[str, Any]) -> ByRecorder:
    """Give the limits of the container to its command. The engine's must allow the recorder to set and to survive
    them."""
    options: list[str] = []
    by_engine: list[Mapping[str, Any]] = []
    for each in host.get("Ulimits", ()):
        name, soft, hard = each["Name"], each["Soft"], each["Hard"]
        options += ["--ulimit", f"{name}={soft}:{hard}"]
        least = _LEAST_ULIMITS.get(name, 0)
        limit = -1 if -1 in (least, hard) else max(least, hard)
        by_engine.append({"Name": name, "Soft": limit, "Hard": limit})
    return ByRecorder(options, {"Ulimits": by_engine} if by_engine else {})


def capabilities_by_recorder(host: Mapping[str, Any]) -> ByRecorder:
    """Take the capabilities of the container from its command; the recorder keeps those that it needs."""
    dropped = host.get("CapDrop", ())
    everything = "ALL" in dropped
    by_recorder = [name for name in _OWN_CAPABILITIES if everything or name in dropped]
    options = [word for name in by_recorder for word in ("--cap-drop", name)]
    if not by_recorder:
        return ByRecorder(options, {})
    by_engine: dict[str, Any] = {"CapDrop": [name for name in dropped if name not in _OWN_CAPABILITIES]}
    # Both are among the engine's default ones: nothing is added to what a container has without `cap_drop`.
    return ByRecorder(options, by_engine | ({"CapAdd": list(_OWN_CAPABILITIES)} if everything else {}))


class RecorderCapture:
    """Implements Capture over the record in `directory`. `recorder` is None for an execution that is recovered."""

    name = "recorder"
    kill_signal = str(program.HARD_STOP)
    following = True
    delivered = True
    start_granted = True
    unbegun = None

    def __init__(self, files: ContainerFiles, directory: Path, execution_id: str, recorder: Recorder | None) -> None:
        self.files = files
        self._handoff = RecordHandoff(directory)
        self._execution_id = execution_id
        self._recorder = recorder
        self._read_secrets: ReadSecrets = dict
        self._stdin: Path | None = None
        self._released = False
        # The recorder did not write its trailer: the amount of lost output is unknown.
        self._cut = False
        self._cut_by = Cause.ENGINE
        # Mounted directories that wait for their hand-off. An earlier server may have left one.
        self._mounts: list[Path] = []
        if recorder is None:
            self._expect(self._handoff.mounted())

    def wrap(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        assert self._recorder is not None
        self._expect([])
        variables = self._read_secrets()
        mount = self._handoff.make(variables)
        self._expect([mount])
        return self._recorder.wrap(body, image, mount, self._execution_id, variables=len(variables), stdin=self._stdin)

    def use_secrets(self, read: ReadSecrets) -> None:
        self._read_secrets = read

    def use_stdin(self, content: Path) -> None:
        self._stdin = content

    def discard_secrets(self) -> None:
        self._handoff.discard_secrets()

    def open(self, container_id: str) -> None:
        """Do nothing, as the recorder needs no reader."""

    def release_start_resources(self) -> bool:
        # Only once the recorder has taken the record by its name in the mounted directory.
        with suppress(OSError):
            self._released = self._released or (self._handoff.claimed and self._handoff.clear())
        return self._released

    @property
    def is_running(self) -> bool:
        return self._handoff.recorder_is_running

    def revoke(self) -> CommandStatus:
        command_status = retry_until_written(self._handoff.revoke)
        if command_status is CommandStatus.ENDED and not self._is_own():
            # Somebody put the record of another execution in its place: the own record is gone.
            return CommandStatus.UNKNOWN
        return command_status

    def signal(self, number: int) -> Delivery:
        return self._handoff.signal(number)

    def resume(self, container_id: str | None) -> None:
        """Note whether the recorder is gone; it then wrote its trailer or was killed. A running one had no break."""
        self._cut = container_id is None

    def abandon_unwritten(self) -> None:
        """Let the recorder obey a hard stop. The mark on the record proves that the hard stop comes from a server."""
        self._handoff.permit_hard_stop()

    def drain(self, end: ContainerEnd | None, wait: Wait) -> str:
        if end is None:
            return ""
        trailer = self.trailer()
        self._cut = trailer is None
        if trailer is None and end.exit_code == CANNOT_STORE_CODE:
            self._cut_by = Cause.STORE
            return (
                "some output is missing: the recorder was not allowed to make its file larger, and killed the command"
            )
        if trailer is None:
            return (
                "some output may be missing: "
                "the recorder was killed, or its machine went down, before the end of the output was stored"
            )
        if missing := not_kept(trailer.totals):
            return missing
        return (
            ""
            if all(total.crc32 is not None for total in trailer.totals)
            else "some output may be missing: nobody knows how much"
        )

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        if not self._ended():
            log.error("a recorder does not end; its record is left as it is", execution_id=self._execution_id)
            return None
        with suppress(OSError):
            self._handoff.clear()
        trailer = self.trailer()
        if trailer is None:
            with suppress(FileNotFoundError):
                trailer = retry_until_written(lambda: self._seal_in_its_place(exit_code, facts))
        return trailer

    def trailer(self) -> Trailer | None:
        return trailer_in(self._handoff.record, self._execution_id)

    def detach(self) -> None:
        """Release the files of this capture. The recorder goes on by itself."""
        self._expect([])
        self._handoff.close()

    @property
    def first_byte_time(self) -> datetime | None:
        return first_byte_time_in(self._handoff.record)

    def _ended(self) -> bool:
        """Whether no recorder writes the record. A left-over recorder is stopped first, then killed."""
        for number in (program.HARD_STOP, 9):
            if self.revoke() is not CommandStatus.RUNS:
                return True
            log.warning("a recorder is left over; it is told to end", execution_id=self._execution_id, signal=number)
            self._handoff.permit_hard_stop()
            self._handoff.signal(number)
            until = time.monotonic() + END_SECONDS
            while retry_until_written(lambda: self._handoff.recorder_is_running) and time.monotonic() < until:
                time.sleep(0.05)
        return self.revoke() is not CommandStatus.RUNS

    def _is_own(self) -> bool:
        try:
            return retry_until_written(
                partial(ask_record, self._handoff.record, lambda reader: reader.is_of(self._execution_id))
            )
        except FileNotFoundError:
            return False

    def _expect(self, mounts: Sequence[Path]) -> None:
        """Wait for the hand-off of these directories and no others."""
        for mount in self._mounts:
            handoff_watcher.discard(mount)
        self._mounts = list(mounts)
        for mount in self._mounts:
            handoff_watcher.add(mount, self._handoff.record)

    def _seal_in_its_place(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        """Seal the record of a killed recorder, with gaps for the bytes that it had not stored."""
        try:
            record = RecordWriter.resume(self._handoff.record)
        except RecordSealed:
            return self.trailer()
        try:
            for source in (Source.STDOUT, Source.STDERR) if self._cut else ():
                record.gap(source, None, self._cut_by, time.time_ns())
            return record.seal(exit_code, facts, time.time_ns())
        finally:
            record.close()


def command_of(entrypoint: Sequence[str] | None, command: Sequence[str] | None, image: Image) -> Sequence[str]:
    """Return the command that an engine would run as PID 1 of a container. None: the job does not say it.

    Tried on 20.10 and 28. Raises CannotRun if there is no command.
    """
    if entrypoint is None:
        words = [*_reset(image.entrypoint), *(image.command if command is None else command)]
    else:
        # The image's command does not apply if the job sets an entrypoint.
        words = [*_reset(entrypoint), *(command or ())]
    if not words:
        raise CannotRun(Reason.REFUSED_BY_ENGINE, "there is no command: neither the job nor its image says what to run")
    return words


def _reset(entrypoint: Sequence[str]) -> Sequence[str]:
    """Return no words for an entrypoint of one empty word, which removes the entrypoint of the image below."""
    return [] if list(entrypoint) == [""] else entrypoint


def _installed(binary: Path, directory: Path) -> Path:
    """Copy the program under a name from its content: a running container keeps its own version."""
    content = binary.read_bytes()
    target = directory / f"{binary.name}-{zlib.crc32(content):08x}"
    # A crash of the machine, or a disk with errors, may leave less of it than its name says.
    if not target.exists() or target.read_bytes() != content:
        directory.mkdir(mode=0o755, exist_ok=True)
        # Under a temporary name, as all hosts of this server install the program at the same time.
        new = target.with_suffix(f".{secrets.token_hex(4)}.new")
        with new.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        # Executable for the user of any container.
        new.chmod(0o755)
        new.rename(target)
    return target
