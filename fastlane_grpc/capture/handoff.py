"""A record that is written by the container itself, under two names of one file; so it can always be told whether its
command ran.

    log             where readers find it
    box-<…>/log     the same file, in the one directory that is mounted into the container

The recorder, PID 1 of the container, locks the file for as long as it lives, takes the second name away, which only one
can, and has its first frame on disk. Then it waits until the server has removed the mounted directory, and only then
runs the command. So a lock that is free and a file that is empty and has one name mean: the command never ran and never
will.

All of that is told by the file itself. The names in the mounted directory tell nothing: where a server died between the
claim and the removal, the command can make any name in there."""

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

import structlog

from fastlane_grpc.machine.file_tree import Deletion
from fastlane_grpc.record import Position, RecordReader

# One step of the deletion of what a container left: the thread that takes it also keeps the time of an execution.
STEP_ENTRIES, STEP_SECONDS = 2_000, 0.02

# In place of a descriptor of the record.
_RECORDER_HAS_LOCK = -1

log = structlog.get_logger(__name__)
# A recorder takes a signal at once. One that has not taken it by then is paused.
TAKE_SECONDS = 1.0


class CommandStatus(Enum):
    """What became of a container's command."""

    NEVER_RAN = "never ran"
    RUNS = "runs"
    ENDED = "ended"
    # The record is not there any more: somebody deleted it.
    UNKNOWN = "unknown"


class Delivery(Enum):
    """What became of a signal that was sent to a recorder."""

    NOT_SENT = "not sent"
    PENDING = "pending"
    TAKEN = "taken"


class RecordHandoff:
    """The two names of one execution's record, below its directory. OSError from any method: it cannot be told just
    now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.record = directory / "log"
        self._deletions: dict[Path, Deletion] = {}
        self._warned = False

    def make(self) -> Path:
        """A new directory to be mounted, with the record under its second name: empty, and for whichever user the
        container has.

        Raises FileExistsError if a command of this execution has run already, OSError if there is no room.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if self.revoke() is CommandStatus.RUNS or self._has_output():
            raise FileExistsError(f"{self.record} has output already")
        self.clear()
        record = os.open(self.record, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # The container's user need not be ours. Nobody else gets this far: the data directory above is closed.
            os.fchmod(record, 0o666)
        finally:
            os.close(record)
        # A name of its own for each container: one that was made before and begins late finds no record in its place.
        mount = self._directory / f"box-{secrets.token_hex(4)}"
        mount.mkdir()
        mount.chmod(0o777)
        (mount / "log").hardlink_to(self.record)
        _sync(self._directory)
        return mount

    def mounted(self) -> list[Path]:
        """What was made to be mounted and is still there, as far as that can be seen."""
        try:
            return self._mounts()
        except OSError:
            return []

    @property
    def claimed(self) -> bool:
        """Whether a recorder has taken the record, or nobody can any more."""
        return is_claimed(self.record)

    @property
    def recorder_is_running(self) -> bool:
        """Whether a recorder has the record, so that a container's command runs, or is about to."""
        with self._locked() as lock:
            return lock == _RECORDER_HAS_LOCK

    def revoke(self) -> CommandStatus:
        """From now on no recorder can take the record; unless one has already, which then is still at work or is
        over."""
        with self._locked() as lock:
            if lock is None:
                return CommandStatus.UNKNOWN
            if lock == _RECORDER_HAS_LOCK:
                return CommandStatus.RUNS
            failure = self._take_names_away()
            record = os.fstat(lock)
            if record.st_size:
                return CommandStatus.ENDED
            if failure and record.st_nlink > 1:
                raise failure
            return CommandStatus.NEVER_RAN

    def clear(self) -> bool:
        """Deletes what was mounted, in a step of bounded work; a container that has it sees an empty directory in which
        nothing can be made. False: it is not all gone, and takes another step."""
        cleared = [self._clear(mount) for mount in self._mounts()]
        return all(cleared)

    def close(self) -> None:
        """Lets go of what `clear` has open."""
        for deletion in self._deletions.values():
            deletion.close()
        self._deletions.clear()

    def permit_hard_stop(self) -> None:
        """Marks the record, which nothing in the container can do: from now on its recorder believes a hard stop."""
        with suppress(OSError):
            self.record.chmod(0o600)

    def signal(self, number: int) -> Delivery:
        """Sends a signal to the recorder itself, past the engine. NOT_SENT: there is none, it is not seen from here, or
        another user's."""
        for process in self._holders():
            try:
                handle = os.pidfd_open(process)
            except OSError:
                continue
            try:
                # Still the same process: it cannot have ended and its number gone to another one since it was seen with
                # the lock.
                if process in self._holders():
                    signal.pidfd_send_signal(handle, number)
                    return Delivery.TAKEN if _takes(process, number) else Delivery.PENDING
            except OSError:
                continue
            finally:
                os.close(handle)
        return Delivery.NOT_SENT

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """Holds the lock and gives the record, open; a recorder that begins meanwhile waits. _RECORDER_HAS_LOCK: a recorder holds
        it. None: there is no record."""
        try:
            record = os.open(self.record, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _RECORDER_HAS_LOCK
        else:
            yield record
        finally:
            os.close(record)

    def _take_names_away(self) -> OSError | None:
        """Takes every second name of the record away; why one may be left."""
        failure = None
        for mount in self._mounts():
            try:
                (mount / "log").unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                failure = error
        return failure

    def _clear(self, mount: Path) -> bool:
        try:
            # All there is to do, unless the server was not there when the recorder took the record.
            mount.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return self._delete(mount)
        return True

    def _delete(self, mount: Path) -> bool:
        if mount not in self._deletions:
            # A user in the container that is not root makes nothing in there from now on.
            with suppress(OSError):
                mount.chmod(0o700)
            self._deletions[mount] = Deletion(mount)
        try:
            return self._deletions[mount].step(entries=STEP_ENTRIES, seconds=STEP_SECONDS)
        except OSError as error:
            if not self._warned:
                log.warning(
                    "what a container left cannot be deleted; trying again", directory=str(mount), error=str(error)
                )
            self._warned = True
            return False

    def _has_output(self) -> bool:
        """One that was captured in another way up to its start, and then was not started, has a beginning and nothing
        more."""
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
        """Processes, as they are called here, that have the record locked: the kernel lists every lock with its holder
        and its file."""
        try:
            record = self.record.stat()
            locks = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return []
        file = f"{os.major(record.st_dev):02x}:{os.minor(record.st_dev):02x}:{record.st_ino}"
        # number, kind, way, mode, process, file, …; a waiting one has an arrow after the number.
        fields = [line.split() for line in locks]
        return [
            int(each[4])
            for each in fields
            if each[1] == "FLOCK" and each[5] == file and each[4].isdigit() and each[4] != "0"
        ]

    def _mounts(self) -> list[Path]:
        try:
            return [path for path in self._directory.iterdir() if path.name.startswith("box-")]
        except FileNotFoundError:
            return []


def is_claimed(record: Path) -> bool:
    """Whether a recorder has taken this record, or nobody can any more."""
    try:
        found = record.stat()
    except FileNotFoundError:
        return True
    # By the number of its names; by its size, too, as somebody may give it more names, for a backup.
    return found.st_nlink < 2 or found.st_size > 0


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
