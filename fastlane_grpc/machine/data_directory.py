"""The data directory: its lock, and the free room on its disk."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastlane_grpc.errors import CannotServe

# File systems whose locks, or whose memory maps (SQLite's WAL), do not hold between machines.
NETWORK = {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
# Each of the first names proves a data directory. Without them, a data directory holds only the other names: its first
# start failed, or its database was lost.
_PROOFS = {"fastlane.db", "fastlane.db-wal", "serving"}
# What the debugging of a running server writes.
DEBUG_DUMP = "debug-dump.json"
DEBUG_STACKS = "debug-stacks"
_OURS = {
    *("tokens.json", "tokens.new", "lock", "inputs", "logs", "recorder", "fastlane.db-shm"),
    *(DEBUG_DUMP, "debug-dump.new", DEBUG_STACKS),
    *("relay-key", "relay-key.new"),
}
# With less free room a disk is full: most writes fail there.
_FULL_BYTES = 1 << 20


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Create the directory, readable by this user alone, and hold its lock. Raises CannotServe.

    The kernel releases the lock when the process ends, also when the process is killed."""
    if foreign := foreign_directory(path):
        raise CannotServe(foreign)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # An existing directory may be readable by all users, and specs and logs may hold secrets.
        path.chmod(0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CannotServe(
                f"{path / 'lock'} is a symbolic link, which no server creates; check its target, and remove it"
            ) from error
        advice = "choose another with --data-dir"
        if error.errno == errno.EROFS:
            advice = f"the kernel's log (dmesg) says why it became so; repair it and mount it again, or {advice}"
        raise CannotServe(f"cannot use {path} as data directory: {error.strerror}; {advice}") from error
    try:
        if (kind := file_system(path)) in NETWORK:
            raise CannotServe(
                f"{path} is on a network file system ({kind}), where a queue cannot be kept safely; choose a local disk"
            )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise CannotServe(
                f"another server (process {holder}) uses {path}; stop it, or choose another with --data-dir"
            ) from None
        # The process id is for people. On a full disk the lock holds without it.
        with suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def holder(path: Path) -> int | None:
    """Return the id of the process that holds the lock of the directory; None: none does, or it is not visible."""
    try:
        text = (path / "lock").read_text()
        process_id = int(text)
        files = list(Path(f"/proc/{process_id}/fd").iterdir())
    except (OSError, ValueError):
        return None
    # A process that has the number of a server that was killed is another one.
    for file in files:
        with suppress(OSError):
            if file.samefile(path / "lock"):
                return process_id
    return None


def foreign_directory(path: Path) -> str:
    """Return an error if the directory holds files of others; empty: a data directory, an empty or a missing one."""
    try:
        names = {each.name for each in path.iterdir()} - {"lost+found"}
    except OSError:
        return ""  # The next use of the path reports the error.
    if names & _PROOFS or all(name in _OURS or name.startswith("reserve-") for name in names):
        return ""
    return (
        f"{path} is not empty and is not a fastlane data directory; choose an empty directory, as {path / 'fastlane'}"
    )


def free_bytes(path: Path) -> int:
    """Return the bytes that this user can still write on the disk of the path."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def is_full(path: Path) -> bool:
    """Return whether the disk of the path has next to no room, or no inode, for this user. False if unknown."""
    try:
        return free_bytes(path) < _FULL_BYTES or free_inodes(path) == 0
    except OSError:
        return False


def write_error(path: Path) -> str:
    """Return why no file can be created in the directory, in the kernel's words; empty: one can. Leaves no file."""
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        # A file system without files that have no name.
        return "" if error.errno in {errno.EOPNOTSUPP, errno.EISDIR} else str(error.strerror)
    return ""


def disk_bytes(path: Path) -> int:
    """Return the size of the disk of the path, in bytes."""
    disk = os.statvfs(path)
    return disk.f_blocks * disk.f_frsize


def least_free_bytes(path: Path) -> int:
    """Return the default of the free bytes below which enqueues are rejected."""
    return min(256 << 20, disk_bytes(path) // 16)


def free_inodes(path: Path) -> int | None:
    """Return how many files this user can still create on the disk of the path. None: the file system allocates inodes
    on demand."""
    disk = os.statvfs(path)
    return disk.f_favail if disk.f_files else None


def least_free_inodes(path: Path) -> int:
    """Return the free inodes below which enqueues are rejected. An execution needs some, and so does its container."""
    return min(1024, os.statvfs(path).f_files // 16)


def missing_room(path: Path, *, least_bytes: int, least_inodes: int) -> str:
    """Return an error if the disk of the path lacks bytes or inodes; empty: the disk has enough."""
    if (free := free_bytes(path)) < least_bytes:
        return f"{path} has {free} bytes of free room, and jobs are taken with {least_bytes} or more"
    if (inodes := free_inodes(path)) is not None and inodes < least_inodes:
        return (
            f"{path} has {inodes} free inodes, and jobs are taken with {least_inodes} or more: "
            "too many files are on that disk, however much room it has"
        )
    return ""


def file_system(path: Path) -> str:
    """Return the kernel's name of the path's file system; empty: unknown."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for mount in mounts:
        # id, parent, device, root, mount point, options, any number of tags, "-", kind, …
        fields, _, rest = mount.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return ""
