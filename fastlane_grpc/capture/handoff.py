"""The hand-off of a record to the recorder in a container; the hand-off proves, after any crash, whether a command ran.

The record is one file with two names:

    log             the name that readers open
    box-<…>/log     the same file, in the one directory that is mounted into the container

The recorder is PID 1 of the container. The recorder locks the file for as long as it lives. It removes the
second name, which only one process can do, and writes its first frame to disk. It waits until the server has removed
the mounted directory, and only then runs the command. So a free lock and an empty file with one name prove that the
command never ran and never will.

Only the file itself proves this. The names in the mounted directory prove nothing: if a server died between the claim
and the removal, the command can create any name in the directory.
"""

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import structlog

from fastlane_grpc.machine.file_tree import Deletion
from fastlane_grpc.record import Position, RecordReader, open_record

# Bounds of one step of a deletion. The thread that deletes also watches the timeout of an execution.
STEP_ENTRIES, STEP_SECONDS = 2_000, 0.02

# In place of a descriptor of the record.
_RECORDER_HAS_LOCK = -1

log = structlog.get_logger(__name__)
# A recorder takes a signal at once. A recorder that has not taken a signal by then is paused.
TAKE_SECONDS = 1.0


class CommandStatus(Enum):
    """The status of a container's command."""

    NEVER_RAN = "never ran"
    RUNS = "runs"
    ENDED = "ended"
    # Somebody deleted the record, or put something else in its place.
    UNKNOWN = "unknown"


class Delivery(Enum):
    """The result of sending a signal to a recorder."""

    NOT_SENT = "not sent"
    PENDING = "pending"
    TAKEN = "taken"


# The file of secrets beside the second name of the record: variables, each with a NUL at its end.
_SECRETS = "secrets"
NO_VARIABLES: Mapping[str, bytes] = MappingProxyType({})


class RecordHandoff:
    """The hand-off of one execution's record, in the directory of the execution.

    Any method may raise OSError: the state of the hand-off cannot be read just now.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.record = directory / "log"
        self._deletions: dict[Path, Deletion] = {}
        self._warned = False

    def make(self, variables: Mapping[str, bytes] = NO_VARIABLES) -> Path:
        """Create a directory to mount, with the empty record under its second name, writable for any user.

        `variables`: secrets of the command, which the recorder takes from the directory.
        Raises FileExistsError if a command of this execution has run already, OSError if there is no room.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if self.revoke() is CommandStatus.RUNS or self._has_output():
            raise FileExistsError(f"{self.record} has output already")
        self.clear()
        record = open_record(self.record, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            # The container's user may differ from the server's. The data directory above is closed to all other users.
            os.fchmod(record, 0o666)
        finally:
            os.close(record)
        # A new name for each container: an earlier container that starts late finds no record under its name.
        mount = self._directory / f"box-{secrets.token_hex(4)}"
        mount.mkdir()
        mount.chmod(0o777)
        if variables:
            _write_secrets(mount / _SECRETS, variables)
        (mount / "log").hardlink_to(self.record)
        _sync(self._directory)
        return mount

    def discard_secrets(self) -> None:
        """Delete secrets that no recorder has taken."""
        for mount in self.mounted():
            with suppress(OSError):
                (mount / _SECRETS).unlink()

    def mounted(self) -> list[Path]:
        """Return the directories of `make` that still exist, as far as that can be seen."""
        try:
            return self._mounts()
        except OSError:
            return []

    @property
    def claimed(self) -> bool:
        """Whether a recorder has taken the record, or no recorder can any more."""
        return is_claimed(self.record)

    @property
    def recorder_is_running(self) -> bool:
        """Whether a recorder has locked the record: the command of a container runs, or is about to."""
        with self._locked() as lock:
            return lock == _RECORDER_HAS_LOCK

    def revoke(self) -> CommandStatus:
        """Keep any recorder from taking the record from now on, and return what became of the command.

        A recorder that took the record before keeps it.
        """
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
        """Delete the mounted directories, in a step of bounded work. False: another step is needed.

        A container that has a deleted directory mounted sees it empty and can create nothing in it.
        """
        cleared = [self._clear(mount) for mount in self._mounts()]
        return all(cleared)

    def close(self) -> None:
        """Close the files that `clear` has open."""
        for deletion in self._deletions.values():
            deletion.close()
        self._deletions.clear()

    def permit_hard_stop(self) -> None:
        """Mark the record, so that its recorder obeys a hard stop. Nothing in the container can set the mark."""
        with suppress(OSError):
            self.record.chmod(0o600)

    def signal(self, number: int) -> Delivery:
        """Send a signal to the recorder, without the engine.

        NOT_SENT: there is no recorder, or its process is invisible here or another user's.
        """
        for process in self._holders():
            try:
                handle = os.pidfd_open(process)
            except OSError:
                continue
            try:
                # The handle is of the process that has the lock: a process that ended, and whose number was reused, has
                # no lock now.
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
        """Lock the record and yield its open descriptor; a recorder that starts meanwhile waits.

        Yield _RECORDER_HAS_LOCK if a recorder has the lock, None if there is no record.
        """
        try:
            record = open_record(self.record, os.O_RDONLY)
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
        """Remove every second name of the record; return why one may be left."""
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
            # Enough, unless no server ran when the recorder took the record.
            mount.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return self._delete(mount)
        return True

    def _delete(self, mount: Path) -> bool:
        if mount not in self._deletions:
            # From now on only root in the container can create files in the directory.
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
        """Whether the record holds more than its header.

        An execution that was captured in another way and then not started has a record with a header only.
        """
        try:
            reader = RecordReader(self.record)
        except FileNotFoundError:
            return False
        try:
            segment = reader.read(Position.BEGIN)
        finally:
            reader.close()
        return bool(segment.entries or segment.trailer)

    def _holders(self) -> list[int]:
        """Return the ids of the processes that have locked the record, from the kernel's list of locks."""
        try:
            record = self.record.stat()
            locks = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return []
        file = f"{os.major(record.st_dev):02x}:{os.minor(record.st_dev):02x}:{record.st_ino}"
        # number, kind, mode, access, process, file, …; a waiting process has an arrow after the number.
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
    """Whether a recorder has taken this record, or no recorder can any more."""
    try:
        found = record.stat()
    except FileNotFoundError:
        return True
    # By the number of its names; also by its size, as a backup may give the file more names.
    return found.st_nlink < 2 or found.st_size > 0


def _takes(process: int, number: int) -> bool:
    """Wait until a process has taken its pending signal. False: the process is paused or stopped."""
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


def _write_secrets(path: Path, variables: Mapping[str, bytes]) -> None:
    """Write the file, which any user may read and change: the recorder is the container's user.

    It is not synced: the less of it is on the disk, the better.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as stream:
        os.fchmod(file, 0o666)
        stream.write(packed_variables(variables))


def packed_variables(variables: Mapping[str, bytes]) -> bytes:
    """Return the content of a file of secrets, as a recorder takes it."""
    return b"".join(name.encode() + b"=" + value + b"\0" for name, value in variables.items())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
