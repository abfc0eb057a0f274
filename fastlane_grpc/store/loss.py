"""Detection of lost files. SQLite treats a missing database file as a new one, and a missing or truncated write-ahead
log as one that ends there. Acknowledged jobs would be lost silently, and a server would not know their containers."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

# Beside the database while a server has it open for writing. A server that was killed leaves it, and a write-ahead log
# with it.
MARKER = "serving"
# So many executions, the newest that have a log, are looked for in the database. What is lost first is what came last.
NEWEST = 20
# Of a UUID as text.
_ID_LENGTH = 36
# What else lies beside the directories of days is no log that is kept.
_DAY = re.compile(r"\d{4}-\d\d-\d\d")

_RESTORE = "put it back, or restore a backup (see Restore in docs/operations.md)"


def loss(path: Path) -> str:
    """Return what is missing of the database at `path`, and what to do; empty if nothing is. The database is not
    opened."""
    empty = not path.exists() or not path.stat().st_size
    if empty and (found := next(executions_with_logs(path.parent), "")):
        state = "is empty" if path.exists() else "is missing"
        return (
            f"{path} {state}, and there are logs of executions, as {found}: {_RESTORE};"
            f" or, to begin anew, move {path.parent} away"
        )
    # Whoever closes a database last takes away both, and first moves what is in the one into the file: as does a look
    # from outside, after a server was killed. One of them alone is never left.
    if not empty and marker(path).exists() and _beside(path, "shm").exists() and not _write_ahead_log(path).exists():
        return (
            f"{_write_ahead_log(path)} is missing, and holds what the last server, which was killed, wrote last:"
            f" {_RESTORE}; or, to go on without, remove {marker(path)}"
        )
    return ""


def without_schema(path: Path) -> str:
    """Do the same for a database without tables. Empty: it is new."""
    found = next(executions_with_logs(path.parent), "")
    return found and (
        f"{path} has no jobs in it, and there are logs of executions, as {found}: {_write_ahead_log(path)} was cut, or"
        f" is missing; {_RESTORE}; or, to begin anew, move {path.parent} away"
    )


def unknown(path: Path, execution_id: str) -> str:
    """Do the same for a database that does not know an execution that has a log."""
    return (
        f"{path} does not know execution {execution_id}, whose log is there: {_write_ahead_log(path)} was cut, or is of"
        f" another time; {_RESTORE}; or, to go on with what is there, remove {marker(path)}"
    )


def marker(path: Path) -> Path:
    """Return the path of the marker file of the database at `path`."""
    return path.parent / MARKER


def mark(path: Path) -> None:
    """Note that the database is open, and so has a write-ahead log."""
    marker(path).touch(mode=0o600)


def unmark(path: Path) -> None:
    """Note that the database is about to be closed; on disk before SQLite takes its write-ahead log away."""
    marker(path).unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def executions_with_logs(directory: Path) -> Iterator[str]:
    """The ids of executions that have a log in this data directory, of the newest day first, and of a day the newest
    first."""
    for day in sorted(filter(_DAY.fullmatch, _names(directory / "logs")), reverse=True):
        yield from sorted((name for name in _names(directory / "logs" / day) if len(name) == _ID_LENGTH), reverse=True)


def newest_with_logs(directory: Path) -> list[str]:
    """Some of these, to be looked for in the database."""
    return list(islice(executions_with_logs(directory), NEWEST))


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write_ahead_log(path: Path) -> Path:
    return _beside(path, "wal")


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}-{what}")
