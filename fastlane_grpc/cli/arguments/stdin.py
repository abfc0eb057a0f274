"""Standard input that a job does not get: whether somebody gave some to this command."""

import os
import select
import stat
from pathlib import Path


def is_given(parent: int | None = None) -> bool:
    """Whether stdin is a pipe or a file that has something to say, and was given to this command alone.

    What the parent process has as its own stdin was not given to us: in a script that a shell reads from its stdin, or
    in a loop over the lines of a file, stdin belongs to the shell. A terminal, /dev/null and a closed stdin have
    nothing to say."""
    try:
        here = os.fstat(0)
        if stat.S_ISREG(here.st_mode):
            has_something = os.lseek(0, 0, os.SEEK_CUR) < here.st_size
        elif stat.S_ISFIFO(here.st_mode) or stat.S_ISSOCK(here.st_mode):
            has_something = _has_bytes()
        else:
            return False
    except OSError:
        return False
    return has_something and not _is_of_parent(here, os.getppid() if parent is None else parent)


def _has_bytes() -> bool:
    # A pipe whose writer is gone is readable too, and tells so by POLLHUP alone once it is empty.
    poll = select.poll()
    poll.register(0, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def _is_of_parent(here: os.stat_result, parent: int) -> bool:
    try:
        theirs = Path(f"/proc/{parent}/fd/0").stat()
    except OSError:
        return False
    return os.path.samestat(here, theirs)
