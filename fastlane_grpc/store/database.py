"""The file fastlane.db: how it is opened, and what SQLite's errors mean. Every error names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlite_utils import Database

from fastlane_grpc.errors import DiskFull, Refusal, StoreFailed
from fastlane_grpc.store.migrations import migrations

if TYPE_CHECKING:
    import sqlite3
    from sqlite3 import Connection
else:
    # The SQLite that sqlite-utils took: where pysqlite3 is installed, a newer one than the system's.
    from sqlite_utils.utils import sqlite3

    Connection = sqlite3.Connection

__all__ = ["Connection", "is_failure", "open_for_reading", "open_for_writing", "refusal", "sqlite3"]

RETRY_SECONDS = 5.0


def open_for_writing(path: Path) -> Connection:
    """The one connection that writes, the schema brought up to date. StoreFailed: the file is damaged, not ours, or of a newer fastlane."""
    with _opening(path) as db:
        if db.execute("PRAGMA journal_mode = WAL").fetchall() != [("wal",)]:
            raise StoreFailed(f"{path} cannot have a write-ahead log: keep it on a local disk")
        # FULL syncs that log at each commit: what was acknowledged survives a power cut.
        db.execute("PRAGMA synchronous = FULL")
        _migrate(db, path)
    return db


def open_for_reading(path: Path) -> Connection:
    """A connection that cannot write; each statement is a transaction of its own."""
    with _opening(path) as db:
        db.execute("PRAGMA query_only = ON")
    return db


def is_failure(error: Exception) -> bool:
    """Whether SQLite or its disk has failed. The rest of its errors, as a constraint that is violated, are defects of ours."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def refusal(error: Exception, path: Path) -> Refusal:
    """What the caller is told of such a failure. Nothing was kept, and the same call may succeed later."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return DiskFull(f"there is no room to write {path}", retry_seconds=RETRY_SECONDS)
    return StoreFailed(f"{path} cannot be used: {error}", retry_seconds=RETRY_SECONDS)


@contextmanager
def _opening(path: Path) -> Iterator[Connection]:
    """A connection that is closed if what is done in it fails. StoreFailed."""
    try:
        # It is opened on one thread and used on another, one at a time. Transactions are begun and ended by hand, hence no isolation level.
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
        try:
            db.execute("PRAGMA foreign_keys = ON")
            yield db
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise StoreFailed(f"cannot open {path}: {error}") from error


def _migrate(db: Connection, path: Path) -> None:
    house = Database(db)
    applied = {migration.name for migration in migrations.applied(house)}
    known = {migration.name for migration in migrations.pending(Database(memory=True))}
    if unknown := applied - known:
        raise StoreFailed(f"{path} was written by a newer fastlane ({', '.join(sorted(unknown))}): run that one, or a later one")
    migrations.apply(house)
