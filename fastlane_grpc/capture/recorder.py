"""Capture by recorder: PID 1 of the container writes the record itself, so that neither this server nor the engine is
in the way of a byte.

Exact, whatever dies, but for the recorder itself: a SIGKILL to PID 1 loses what is in its pipes and leaves a gap of
unknown size."""

import secrets
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from fastlane_grpc import recorder as program
from fastlane_grpc.backoff import retry_until_written
from fastlane_grpc.capture.capture import End, ask_record, not_kept
from fastlane_grpc.capture.handoff import Box, CommandStatus, Delivery
from fastlane_grpc.capture.handoff_watcher import handoff_watcher
from fastlane_grpc.docker.engine import Image
from fastlane_grpc.docker.images import Refused
from fastlane_grpc.model import HARD_STOP, Cause, Reason, Source
from fastlane_grpc.record import Chunk, Position, RecordReader, RecordSealed, RecordWriter, Trailer

# Where a container has what is ours.
PROGRAM_TARGET, BOX_TARGET = "/.fastlane/recorder", "/.fastlane/box"
# A recorder that was told to end, past an engine that has lost it, has so long to store what is in its pipes; then it
# is killed.
END_SECONDS = 10.0
# What the program takes as a limit: two blocks of a record for the head, two for the newest part.
LEAST_LOG_BYTES = 4 * 65_536
# The exit status of a recorder that killed its command, as nothing could be stored any more, and could not store that
# either.
CANNOT_STORE_CODE = 117

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Recorder:
    """The recorder as an engine on this machine can start it. `data_dir` is called `seen_as` where the engine looks."""

    program: Path
    data_dir: Path
    seen_as: Path
    max_log_bytes: int

    @classmethod
    def install(cls, data_dir: Path, seen_as: Path, max_log_bytes: int, *, architecture: str) -> "Recorder | None":
        """Puts the program into the data directory: all that an engine is given lies in there. None: there is no
        program for the host.

        The kernel of the host executes it, whatever the image is for: it is static.
        """
        binary = program.binary(architecture)
        return cls(_installed(binary, data_dir / "recorder"), data_dir, seen_as, max_log_bytes) if binary else None

    def equip(self, body: Mapping[str, Any], image: Image, box: Path, execution_id: str) -> Mapping[str, Any]:
        """A body of a container whose PID 1 is the recorder, and what would have been PID 1 its command. Raises Refused
        if it has none."""
        words = _command(body, image)
        if not words:
            raise Refused(
                Reason.REFUSED_BY_ENGINE, "there is no command: neither the job nor its image says what to run"
            )
        host = body["HostConfig"]
        recorder = [PROGRAM_TARGET, "--execution", execution_id, "--limit", str(self.max_log_bytes), BOX_TARGET, "--"]
        mounts = [
            {"Type": "bind", "Source": self._seen(self.program), "Target": PROGRAM_TARGET, "ReadOnly": True},
            {"Type": "bind", "Source": self._seen(box), "Target": BOX_TARGET},
        ]
        # One process more: the recorder.
        ours = {"Mounts": mounts, "PidsLimit": host["PidsLimit"] + 1}
        return {
            **body,
            "Entrypoint": recorder,
            "Cmd": words,
            "AttachStdout": False,
            "AttachStderr": False,
            "HostConfig": {**host, **ours},
        }

    def _seen(self, path: Path) -> str:
        return str(self.seen_as / path.relative_to(self.data_dir))


class RecorderCapture:
    """Implements Capture over the record in `directory`. `recorder` is None where one that is there already is only
    followed."""

    name = "recorder"
    kill_signal = str(HARD_STOP)
    following = True

    def __init__(self, directory: Path, execution_id: str, recorder: Recorder | None) -> None:
        self._box = Box(directory)
        self._execution_id = execution_id
        self._recorder = recorder
        self._put_away = False
        # The recorder did not come to its end: how much it had not stored nobody knows.
        self._cut = False
        self._cut_by = Cause.ENGINE
        # Directories that are waited for to be handed off. An earlier server may have left one.
        self._mounted: list[Path] = []
        if recorder is None:
            self._expect(self._box.mounted())

    def equip(self, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
        assert self._recorder is not None
        self._expect([])
        mounted = self._box.make()
        self._expect([mounted])
        return self._recorder.equip(body, image, mounted, self._execution_id)

    def open(self, container_id: str) -> None:
        """Nothing: what the container prints needs nobody who follows."""

    def began(self) -> bool:
        # Only once the recorder has the record: its name there is what it takes.
        with suppress(OSError):
            self._put_away = self._put_away or (self._box.claimed and self._box.clear())
        return self._put_away

    @property
    def held(self) -> bool:
        return self._box.held

    def revoke(self) -> CommandStatus:
        return retry_until_written(self._box.revoke)

    def signal(self, number: int) -> Delivery:
        return self._box.signal(number)

    def resume(self, container_id: str | None) -> None:
        """There was no break for the recorder. One that is gone has written its trailer, or was killed."""
        self._cut = container_id is None

    def give_up(self) -> None:
        """The recorder gives up by itself when it is told to kill. That it is this server who tells it to is known by
        the record."""
        self._box.permit_hard_stop()

    def drain(self, end: End | None) -> str:
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
            return "some output may be missing: the recorder was killed, or its machine went down, before the end of the output was stored"
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
            self._box.clear()
        trailer = self.trailer()
        if trailer is None:
            with suppress(FileNotFoundError):
                trailer = retry_until_written(lambda: self._seal_in_its_place(exit_code, facts))
        return trailer

    def trailer(self) -> Trailer | None:
        try:
            return retry_until_written(partial(ask_record, self._box.record, RecordReader.trailer))
        except FileNotFoundError:
            return None

    def leave(self) -> None:
        """The recorder goes on by itself."""
        self._expect([])
        self._box.close()

    @property
    def first_byte_time(self) -> datetime | None:
        try:
            beginning = retry_until_written(
                partial(ask_record, self._box.record, lambda reader: reader.read(Position.BEGIN))
            )
        except FileNotFoundError:
            return None
        first = next(iter(beginning.entries), None)
        return datetime.fromtimestamp(first.time_ns / 1e9, UTC) if isinstance(first, Chunk) else None

    def _ended(self) -> bool:
        """Nobody writes the record any more; a recorder that is at work where nobody else can end it is told to, then
        killed."""
        for number in (HARD_STOP, 9):
            if self.revoke() is not CommandStatus.RUNS:
                return True
            log.warning("a recorder is left over; it is told to end", execution_id=self._execution_id, signal=number)
            self._box.permit_hard_stop()
            self._box.signal(number)
            until = time.monotonic() + END_SECONDS
            while retry_until_written(lambda: self._box.held) and time.monotonic() < until:
                time.sleep(0.05)
        return self.revoke() is not CommandStatus.RUNS

    def _expect(self, mounted: Sequence[Path]) -> None:
        """Has these directories, and no others, handed off."""
        for box in self._mounted:
            handoff_watcher.discard(box)
        self._mounted = list(mounted)
        for box in self._mounted:
            handoff_watcher.add(box, self._box.record)

    def _seal_in_its_place(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        """Of a recorder that was killed: what it had read and not stored is gone, and so is what was in its pipes."""
        try:
            record = RecordWriter.resume(self._box.record)
        except RecordSealed:
            return self.trailer()
        try:
            for source in (Source.STDOUT, Source.STDERR) if self._cut else ():
                record.gap(source, None, self._cut_by, time.time_ns())
            return record.seal(exit_code, facts, time.time_ns())
        finally:
            record.close()


def _command(body: Mapping[str, Any], image: Image) -> Sequence[str]:
    """What would be PID 1, as the engine puts it together from its body of a container and the image. Tried on 20.10
    and 28."""
    entrypoint, command = body["Entrypoint"], body["Cmd"]
    if entrypoint is None:
        return [*_reset(image.entrypoint), *(image.command if command is None else command)]
    # With an entrypoint of the job's, the image's command does not apply.
    return [*_reset(entrypoint), *(command or ())]


def _reset(entrypoint: Sequence[str]) -> Sequence[str]:
    """One empty word is no entrypoint: so somebody takes away that of the image below, or of the image that a job
    names."""
    return [] if list(entrypoint) == [""] else entrypoint


def _installed(binary: Path, directory: Path) -> Path:
    """A copy, named by its content: a container that runs keeps the one that it was started with."""
    content = binary.read_bytes()
    place = directory / f"{binary.name}-{zlib.crc32(content):08x}"
    if not place.exists():
        directory.mkdir(mode=0o755, exist_ok=True)
        # By a name of its own: each host of this server puts them there, all at the same time.
        new = place.with_suffix(f".{secrets.token_hex(4)}.new")
        new.write_bytes(content)
        # Whichever user a container has executes it.
        new.chmod(0o755)
        new.rename(place)
    return place
