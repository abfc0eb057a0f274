"""A record that is written on another machine, and copied here byte for byte by a relay.

The relay asks for the record before it lets a recorder begin. That grant, and a revocation, are one file that is made
once: whichever of the two comes first stays, whatever is killed. So without a grant the command never ran.

Each pod has a number of its own, which its relay has to name: a new pod of the execution is decided about anew.
"""

import errno
import fcntl
import os
import secrets
import threading
from contextlib import suppress
from enum import Enum
from pathlib import Path

import structlog

from fastlane_grpc.record import open_record
from fastlane_grpc.record.format import BLOCK_BYTES
from fastlane_grpc.record.limit import Limit

# A file cannot be larger: a hostile relay must not make one that no program can read.
MAX_RECORD_BYTES = 1 << 50
# The name of the file that says that no command ran.
_UNBEGUN = "relay-unbegun"

# The content of the file that says that everything was received, if the record itself says what is missing in it.
COMPLETE = "complete"

# Copies that their disk did not take, by directory, and up to where each is on disk. A kernel reports such a failure
# once, and then counts what it could not write as written: only what is stored again after it gets to the disk.
_unsynced: dict[Path, int] = {}
# The file that tells the next server the same. A disk without room may leave it empty, or not take it.
_UNSYNCED = "relay-unsynced"

log = structlog.get_logger(__name__)


class Permission(Enum):
    """Whether a recorder may begin."""

    GRANTED = "granted"
    REVOKED = "revoked"
    # Granted before; the record is sealed, and nothing is stored any more.
    CLOSED = "closed"


class StartRevoked(Exception):
    """The start of the execution was revoked, or its record is closed: nothing of it is stored."""


class PieceInvalid(Exception):
    """A piece of a record does not fit to what was received before."""


def permission(directory: Path) -> Permission | None:
    """Return what was decided for the record in this directory; None: nothing yet."""
    try:
        return Permission((directory / "relay").read_text())
    except FileNotFoundError:
        return None


def decide(directory: Path, wanted: Permission) -> Permission:
    """Decide whether a recorder may begin, and return the decision: an earlier one stays. It is on disk."""
    decided = permission(directory)
    if decided is not None:
        return decided
    directory.mkdir(parents=True, exist_ok=True)
    new = _written(directory, wanted.value)
    try:
        with suppress(FileExistsError):
            (directory / "relay").hardlink_to(new)
    finally:
        new.unlink(missing_ok=True)
    _sync(directory)
    return Permission((directory / "relay").read_text())


def permission_granted(directory: Path) -> bool:
    """Whether a relay may store what it sends."""
    return permission(directory) is Permission.GRANTED


def check_start(directory: Path) -> None:
    """Raise StartRevoked if no command of the present pod may begin, and nothing of one is stored any more."""
    if (decided := permission(directory)) not in {None, Permission.GRANTED}:
        raise StartRevoked(f"the start of this execution was {decided.value}")
    if unbegun(directory) is not None:
        raise StartRevoked("the relay said that no command of this pod would run")


def note_unbegun(directory: Path, reason: str) -> None:
    """Note, on disk, that the command of the present pod has not run and never will, and why; empty: nobody knows."""
    write_anew(directory, _UNBEGUN, reason)


def unbegun(directory: Path) -> str | None:
    """Return why the command of the present pod never ran; None: it may have run."""
    try:
        return (directory / _UNBEGUN).read_text()
    except FileNotFoundError:
        return None


def close(directory: Path) -> None:
    """Let no relay store anything from now on. The start was granted before."""
    write_anew(directory, "relay", Permission.CLOSED.value)
    _forget_unsynced(directory)


def new_pod(directory: Path) -> str:
    """Return the number of a new pod, about which nothing is decided. No relay of an earlier pod is admitted.

    Raises FileExistsError if a command of this execution may have run already.
    """
    never_ran = not directory.exists() or unbegun(directory) is not None
    if not never_ran and decide(directory, Permission.REVOKED) is not Permission.REVOKED:
        raise FileExistsError(f"a start of the execution in {directory} was granted already")
    directory.mkdir(parents=True, exist_ok=True)
    number = secrets.token_hex(8)
    write_anew(directory, "relay-pod", number)
    (directory / "relay").unlink(missing_ok=True)
    _sync(directory)
    # Last, as until then it tells the next server that nothing ran.
    for name in (_UNBEGUN, "relay-end"):
        (directory / name).unlink(missing_ok=True)
    return number


def pod_number(directory: Path) -> str:
    """Return the number of the present pod; empty if there is none."""
    try:
        return (directory / "relay-pod").read_text()
    except FileNotFoundError:
        return ""


def write_anew(directory: Path, name: str, text: str) -> None:
    """Give a file this text, on disk: it has the old one or the new one, whatever is killed."""
    _written(directory, text).replace(directory / name)
    _sync(directory)


def is_received(directory: Path) -> bool:
    """Whether the relay has sent everything that the record has."""
    return (directory / "relay-end").exists()


def is_complete(directory: Path) -> bool:
    """Whether the record, as it was received, lacks nothing but what it says itself; also without a trailer."""
    try:
        return (directory / "relay-end").read_text() == COMPLETE
    except FileNotFoundError:
        return False


def _written(directory: Path, text: str) -> Path:
    """Return a new file with this text, which is on disk."""
    new = directory / f"relay-{secrets.token_hex(4)}.new"
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return new


def is_unsynced(directory: Path) -> bool:
    """Whether the disk did not take a part of the copy, which has to be sent again."""
    return directory in _unsynced or (directory / _UNSYNCED).exists()


def _unsynced_from(directory: Path) -> int | None:
    """Return up to where the copy is on disk; None: there was no failure. 0 if that is not known."""
    with suppress(KeyError):
        return _unsynced[directory]
    try:
        noted = (directory / _UNSYNCED).read_text(errors="replace")
    except FileNotFoundError:
        return None
    return int(noted) if noted.isascii() and noted.isdecimal() else 0


def _forget_unsynced(directory: Path) -> None:
    (directory / _UNSYNCED).unlink(missing_ok=True)
    _unsynced.pop(directory, None)


def put_on_disk(directory: Path) -> bool:
    """Put the copy on disk. False: the disk did not take a part of it, which has to be sent again. Raises OSError."""
    if is_unsynced(directory):
        return False
    opened = open_record(directory / "log", os.O_RDONLY)
    try:
        os.fdatasync(opened)
    except OSError as error:
        # The call of the relay, if there is one, gets this error for its own descriptor.
        _note_unsynced(directory, 0, error)
        return False
    finally:
        os.close(opened)
    _sync(directory)
    return True


def _note_unsynced(directory: Path, synced: int, error: OSError) -> None:
    """Note that the disk did not take what is behind an offset, also for the next server."""
    _unsynced[directory] = synced
    try:
        write_anew(directory, _UNSYNCED, str(synced))
    except OSError:
        # Empty, it needs less room.
        with suppress(OSError):
            (directory / _UNSYNCED).touch()
    log.warning(
        "the disk did not take a part of a record; its relay has to send that again",
        record=str(directory),
        offset=synced,
        error=str(error),
    )


class RelayedRecord:
    """The copy of one record, for one relay. Used by one thread at a time, but for `sync`.

    `max_bytes` is the size limit of the recorder; 0: none. `kept_from` is the offset from which its node still has the
    record. `pod` is the number of the relay's pod; empty: any. A piece is to be stored at `position`.
    """

    def __init__(self, directory: Path, max_bytes: int, kept_from: int = 0, *, pod: str = "") -> None:
        self.position = self.size = 0
        self._directory = directory
        self._pod = pod
        self._max_bytes = max_bytes
        self._kept_from = kept_from
        self._limit: Limit | None = None
        self._file = -1
        # Up to where the copy is known to be on disk.
        self._synced = 0
        self._has_failed = False
        self._syncing = threading.Lock()

    def open(self) -> None:
        """Grant the start, and open the record. Raises StartRevoked, and OSError: then it may be called again."""
        self._check_pod()
        check_start(self._directory)
        if (decided := decide(self._directory, Permission.GRANTED)) is not Permission.GRANTED:
            raise StartRevoked(f"the start of this execution was {decided.value}")
        # Again: the grant may have come just after the decision about this pod was forgotten.
        self._check_pod()
        # Of an earlier call, which had an earlier end.
        (self._directory / "relay-end").unlink(missing_ok=True)
        if self._file < 0:
            self._file = open_record(self._directory / "log", os.O_RDWR | os.O_CREAT)
        # A seal waits for this lock.
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._drop_unsynced()
        self._limit = Limit(self._file, self._max_bytes, 0) if self._max_bytes else None
        # The last block is sent again: a machine that went down may have lost what was not synced of it.
        self.size = os.fstat(self._file).st_size
        self.position = self.size - self.size % BLOCK_BYTES

    def store(self, offset: int, piece: bytes) -> None:
        """Write a piece at its place, which is `position`, or a later block after blocks that were punched out.

        Raises StartRevoked, PieceInvalid, and OSError: then the same piece may be stored again.
        """
        if not permission_granted(self._directory):
            raise StartRevoked("the record of this execution is closed")
        end = offset + len(piece)
        skips = offset > self.position and not offset % BLOCK_BYTES
        if not piece or end > MAX_RECORD_BYTES or not (offset == self.position or skips):
            raise PieceInvalid(f"a piece of {len(piece)} bytes at {offset}, after {self.position}")
        place, rest = offset, memoryview(piece)
        while rest:
            written = os.pwrite(self._file, rest, place)
            place, rest = place + written, rest[written:]
        begun = range(-(-offset // BLOCK_BYTES), -(-end // BLOCK_BYTES))
        self.position, self.size = end, max(self.size, end)
        if self._limit is not None and begun:
            self._limit.evict_blocks(begun[-1])

    def sync(self) -> int:
        """Put on disk what was stored, and return up to where everything is. Another thread may store meanwhile.

        Raises OSError: this object puts nothing more on disk, and the next one stores anew what is not.
        """
        # One at a time: of two, the kernel reports a failure to one alone.
        with self._syncing:
            reached = self.position
            if self._has_failed:
                raise OSError(errno.EIO, "the disk did not take an earlier part of the record")
            try:
                os.fdatasync(self._file)
                # Once, so that a new file has its name.
                if not self._synced:
                    _sync(self._directory)
            except OSError as error:
                self._has_failed = True
                _note_unsynced(self._directory, self._synced, error)
                raise
            self._synced = reached
            return reached

    def finish(self, offset: int, *, is_complete: bool = False) -> int:
        """Note that everything was received, and return the size of the record. All of it is on disk.

        `is_complete`: the record says itself what is missing in it, also without a trailer. `offset` is the end of the
        record by the relay. Raises PieceInvalid if something is missing, and OSError as `sync` does.
        """
        if offset != self.position:
            raise PieceInvalid(f"the record ends at {offset}, and was received up to {self.position}")
        self.sync()
        _written(self._directory, COMPLETE if is_complete else "").replace(self._directory / "relay-end")
        _sync(self._directory)
        return self.size

    def _check_pod(self) -> None:
        """Raise StartRevoked if the execution has got another pod since the relay was admitted."""
        if self._pod and pod_number(self._directory) != self._pod:
            raise StartRevoked("the execution has got another pod")

    def _drop_unsynced(self) -> None:
        """Take from the copy what its disk did not take. Readers that have it wait until it is there again."""
        if (synced := _unsynced_from(self._directory)) is None:
            return
        # What its node has no more was on disk, as an earlier object or server has told the relay.
        begin = max(synced, self._kept_from)
        begin -= begin % BLOCK_BYTES
        # Not merely written over: after a failure, ext4 may take blocks for empty that are written from its memory.
        if begin < os.fstat(self._file).st_size:
            os.ftruncate(self._file, begin)
        _forget_unsynced(self._directory)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
