"""Opening the file of a record. Whatever has the record's name, the caller never waits."""

import errno
import os
import stat
from pathlib import Path


class NotARecord(FileNotFoundError):
    """Something else than a regular file has the name of the record. The record itself is gone, as if deleted."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ENOENT, "what has the name of the record is not a regular file", str(path))


def open_record(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a record and return its descriptor. Raise NotARecord for anything but a regular file.

    A named pipe or a device never delays the caller, and no symbolic link is followed.
    """
    try:
        record = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        if _is_something_else(path):
            raise NotARecord(path) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(record).st_mode):
            raise NotARecord(path)
    except BaseException:
        os.close(record)
        raise
    return record


def _is_something_else(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
