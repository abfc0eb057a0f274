"""A record that is written by the container itself, under two names of one file; so it can always be told whether its command ran.

    log             where readers find it
    box-<…>/log     the same file, in the one directory that is mounted into the container

The recorder, PID 1 of the container, locks the file for as long as it lives, takes the second name away, which only one can, and has its
first frame on disk before it runs the command. Whoever finds the lock free and the file empty, and has taken the name away, knows: it never
ran and never will.
"""

import fcntl
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from fastlane_grpc.record import Position, RecordReader

# A recorder takes a signal at once. One that has not taken it by then is paused.
TAKE_SECONDS = 1.0


class Fate(Enum):
    """What became of a container's command."""

    NEVER_RAN = "never ran"
    RUNS = "runs"
    ENDED = "ended"


class Delivery(Enum):
    """What became of a signal that was sent to a recorder."""

    NOT_SENT = "not sent"
    PENDING = "pending"
    TAKEN = "taken"


class Box:
    """The two names of one execution's record, below its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.record = directory / "log"

    def make(self) -> Path:
        """A new directory to be mounted, with the record under its second name: empty, and for whichever user the container has.

        Raises FileExistsError if a command of this execution has run already, OSError if there is no room.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if self.revoke() is Fate.RUNS or self._has_output():
            raise FileExistsError(f"{self.record} has output already")
        self.clear()
        record = os.open(self.record, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # The container's user need not be ours. Nobody else gets this far: the data directory above is closed.
            os.fchmod(record, 0o666)
        finally:
            os.close(record)
        # A name of its own for each container: one that was made before and begins late finds no record in its place.
        box = self._directory / f"box-{secrets.token_hex(4)}"
        box.mkdir()
        box.chmod(0o777)
        (box / "log").hardlink_to(self.record)
        _sync(self._directory)
        return box

    @property
    def claimed(self) -> bool:
        """Whether the second name is gone: a recorder has taken the record, or nobody can any more."""
        return not any((box / "log").exists() for box in self._boxes())

    @property
    def held(self) -> bool:
        """Whether a recorder has the record, so that a container's command runs, or is about to."""
        with self._locked() as free:
            return not free

    def revoke(self) -> Fate:
        """From now on no recorder can take the record; unless one has already, which then is still at work or is over."""
        with self._locked() as free:
            if not free:
                return Fate.RUNS
            for box in self._boxes():
                (box / "log").unlink(missing_ok=True)
            try:
                return Fate.ENDED if self.record.stat().st_size else Fate.NEVER_RAN
            except FileNotFoundError:
                return Fate.NEVER_RAN

    def clear(self) -> bool:
        """Removes what was mounted; a container that has it sees an empty directory in which nothing can be made. False: it is not gone."""
        for box in self._boxes():
            # A job may be putting files into it just now.
            with suppress(OSError):
                shutil.rmtree(box)
        return not self._boxes()

    def permit_hard_stop(self) -> None:
        """Marks the record, which nothing in the container can do: from now on its recorder believes a hard stop."""
        with suppress(OSError):
            self.record.chmod(0o600)

    def signal(self, number: int) -> Delivery:
        """Sends a signal to the recorder itself, past the engine. NOT_SENT: there is none, it is not seen from here, or another user's."""
        for process in self._holders():
            try:
                handle = os.pidfd_open(process)
            except OSError:
                continue
            try:
                # Still the same process: it cannot have ended and its number gone to another one since it was seen with the lock.
                if process in self._holders():
                    signal.pidfd_send_signal(handle, number)
                    return Delivery.TAKEN if _takes(process, number) else Delivery.PENDING
            except OSError:
                continue
            finally:
                os.close(handle)
        return Delivery.NOT_SENT

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Holds the lock, if nobody else does; a recorder that begins meanwhile waits."""
        try:
            record = os.open(self.record, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(record)

    def _has_output(self) -> bool:
        """One that was captured in another way up to its start, and then was not started, has a beginning and nothing more."""
        try:
            reader = RecordReader(self.record)
        except FileNotFoundError:
            return False
        try:
            stretch = reader.read(Position.BEGIN)
        finally:
            reader.close()
        return bool(stretch.entries or stretch.trailer)

    def _holders(self) -> list[int]:
        """Processes, as they are called here, that have the record locked: the kernel lists every lock with its holder and its file."""
        try:
            record = self.record.stat()
            locks = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return []
        file = f"{os.major(record.st_dev):02x}:{os.minor(record.st_dev):02x}:{record.st_ino}"
        # number, kind, way, mode, process, file, …; a waiting one has an arrow after the number.
        fields = [line.split() for line in locks]
        return [int(each[4]) for each in fields if each[1] == "FLOCK" and each[5] == file and each[4].isdigit() and each[4] != "0"]

    def _boxes(self) -> list[Path]:
        return list(self._directory.glob("box-*"))


def _takes(process: int, number: int) -> bool:
    """Waits until a process has taken a signal that was sent to it. False: it is paused, or stopped."""
    until = time.monotonic() + TAKE_SECONDS
    while _is_pending(process, number):
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def _is_pending(process: int, number: int) -> bool:
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    except OSError:
        return False
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return fields["State"].split()[0] != "Z" and bool(pending >> (number - 1) & 1)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
