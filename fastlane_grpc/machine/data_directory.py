"""The data directory: one server at a time, on a disk of this machine."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastlane_grpc.errors import CannotServe

# File systems whose locks, or whose memory maps (SQLite's WAL), do not hold between machines.
NETWORK = {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
# Each of these tells a data directory; and all that may be in one where a first start did not get far, or the database
# was lost.
_PROOFS = {"fastlane.db", "fastlane.db-wal", "serving"}
_OURS = {"lock", "logs", "recorder", "fastlane.db-shm"}
# With less free room a disk is full: most writes fail there.
_FULL_BYTES = 1 << 20


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Makes the directory, for this user's eyes only, and holds it for as long as it lasts: also if this process is
    killed, not longer."""
    if strange := not_ours(path):
        raise CannotServe(strange)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One that was there may be open to all, and what jobs are given and print may be secret.
        path.chmod(0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CannotServe(
                f"{path / 'lock'} is a symbolic link, which no server makes; look at where it leads, and remove it"
            ) from error
        raise CannotServe(
            f"cannot use {path} as data directory: {error.strerror}; choose another with --data-dir"
        ) from error
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
        # For people. Without it, as on a full disk, the lock holds all the same.
        with suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def not_ours(path: Path) -> str:
    """Why the path is no data directory and is not made one; empty: it is one, is empty, or is not there."""
    try:
        names = {each.name for each in path.iterdir()} - {"lost+found"}
    except OSError:
        return ""  # Whoever uses it says why it cannot be used.
    if names & _PROOFS or all(name in _OURS or name.startswith("reserve-") for name in names):
        return ""
    return (
        f"{path} is not empty and is not a fastlane data directory; choose an empty directory, as {path / 'fastlane'}"
    )


def free_bytes(path: Path) -> int:
    """The room that is left for us on the disk that the path is on."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def is_full(path: Path) -> bool:
    """Whether the disk that the path is on has next to no room, or no inode, for us."""
    return free_bytes(path) < _FULL_BYTES or free_inodes(path) == 0


def disk_bytes(path: Path) -> int:
    """The size of the disk that the path is on."""
    disk = os.statvfs(path)
    return disk.f_blocks * disk.f_frsize


def least_free_bytes(path: Path) -> int:
    """With less free room than that no job is taken, unless the settings say otherwise."""
    return min(256 << 20, disk_bytes(path) // 16)


def free_inodes(path: Path) -> int | None:
    """How many further files the disk that the path is on has room for, for us. None: its file system makes inodes as
    it needs them."""
    disk = os.statvfs(path)
    return disk.f_favail if disk.f_files else None


def least_free_inodes(path: Path) -> int:
    """With fewer free inodes than that no job is taken: an execution needs some, beside those that the engine takes for
    its container."""
    return min(1024, os.statvfs(path).f_files // 16)


def missing_room(path: Path, *, least_bytes: int, least_inodes: int) -> str:
    """What the disk that the path is on has too little of; empty: nothing."""
    if (free := free_bytes(path)) < least_bytes:
        return f"{path} has {free} bytes of free room, and jobs are taken with {least_bytes} or more"
    if (inodes := free_inodes(path)) is not None and inodes < least_inodes:
        return (
            f"{path} has {inodes} free inodes, and jobs are taken with {least_inodes} or more: too many files are on that disk, however "
            "much room it has"
        )
    return ""


def file_system(path: Path) -> str:
    """The kind of file system that the path is on, as the kernel calls it; empty if it does not tell."""
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
