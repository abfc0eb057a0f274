"""The file fastlane.db: connections to it, and what the errors of SQLite mean. Every error names the file.

Statements write a bound limit as `LIMIT :limit + 0`. With a bare parameter SQLite prepares the statement again for each
execution, which costs more than most statements themselves."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlite_utils import Database

from fastlane_grpc.errors import DiskFull, Refusal, StoreFailed
from fastlane_grpc.machine.data_directory import write_error
from fastlane_grpc.store import loss
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

# The steps of the migrations are more than 200, and stay in the cache of the connection that
# made a new database: in a cache that they fill, all others would be compiled again for each execution.
_CACHED_STATEMENTS = 1024

AnyConnection = TypeVar("AnyConnection", bound=Connection)


class _Owned(Connection):
    """The connection that writes. While it is open, a marker lies beside the file."""

    path: Path

    def close(self) -> None:
        with suppress(OSError):
            loss.unmark(self.path)
        super().close()


def open_for_writing(path: Path) -> Connection:
    """Open the one connection that writes, and bring the schema up to date.

    StoreFailed: the file is damaged, not ours, of a newer fastlane, or has lost what was committed.
    """
    _refuse_loss(path)
    with _opening(path, _Owned) as db:
        db.path = path
        if db.execute("PRAGMA journal_mode = WAL").fetchall() != [("wal",)]:
            raise StoreFailed(f"{path} cannot have a write-ahead log: keep it on a local disk")
        # FULL syncs that log at each commit: what was acknowledged survives a power cut.
        db.execute("PRAGMA synchronous = FULL")
        # Enqueues of many tasks change a page of each index for each task: those pages stay in memory.
        db.execute("PRAGMA cache_size = -16384")
        _migrate(db, path)
        loss.mark(path)
    return db


def open_for_reading(path: Path) -> Connection:
    """Open a connection that cannot write. Each statement is a transaction of its own."""
    with _opening(path, Connection) as db:
        db.execute("PRAGMA query_only = ON")
    return db


def is_failure(error: Exception) -> bool:
    """Whether SQLite or its disk has failed. Its other errors, such as a violated constraint, are defects of
    fastlane."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def refusal(error: Exception, path: Path) -> Refusal:
    """Return the refusal for such a failure. Nothing was stored, and the same call may succeed later."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return DiskFull(f"there is no room to write {path}", retry_seconds=RETRY_SECONDS)
    # SQLite says "disk I/O error" also for a file system that is read-only.
    reason = write_error(path.parent)
    return StoreFailed(f"{path} cannot be used: {error}{reason and f' ({reason})'}", retry_seconds=RETRY_SECONDS)


@contextmanager
def _opening(path: Path, kind: "type[AnyConnection]") -> "Iterator[AnyConnection]":
    """Open a connection, and close it if the body fails. StoreFailed."""
    try:
        # It is opened on one thread and used on another, one at a time. Transactions are begun and ended by hand, hence
        # no isolation level.
        db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=_CACHED_STATEMENTS, factory=kind
        )
        try:
            db.execute("PRAGMA foreign_keys = ON")
            yield db
        except BaseException:
            db.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise StoreFailed(f"cannot open {path}: {error}") from error


def _migrate(db: Connection, path: Path) -> None:
    database = Database(db)
    applied = {migration.name for migration in migrations.applied(database)}
    known = {migration.name for migration in migrations.pending(Database(memory=True))}
    if unknown := applied - known:
        writer = _written_by(db)
        raise StoreFailed(
            f"{path} was written by {writer or 'a newer fastlane'} and has {', '.join(sorted(unknown))}, which "
            f"fastlane {version('fastlane-grpc')} does not know: run {writer or 'that one'} or a later one, or "
            "restore a backup that was made before the upgrade"
        )
    if applied:
        # Each step is a transaction. One for all would keep in memory how every page of a large database was before.
        migrations.apply(database)
    else:
        # A new database comes into being at once or not at all, and with one sync instead of one for each step.
        db.execute("BEGIN IMMEDIATE")
        migrations.apply(database)
        db.execute("COMMIT")
    if known - applied:
        # Into the file itself, while nobody else has it open: what a database is, and whose, is then not lost with its
        # write-ahead log.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if (number := _number_of(version("fastlane-grpc"))) > _stored_number(db):
        # Told by an older server that does not know the schema.
        db.execute(f"PRAGMA user_version = {number}")


def _number_of(text: str) -> int:
    """Return the number by which a database names a version: 1.2.3 is 1002003."""
    parts = re.match(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})", text)
    return int(parts[1]) * 1_000_000 + int(parts[2]) * 1000 + int(parts[3]) if parts else 0


def _stored_number(db: Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchall()[0][0])


def _written_by(db: Connection) -> str:
    """Return the newest fastlane that has served the database; empty: unknown, as it is older than this number."""
    number = _stored_number(db)
    return f"fastlane {number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number > 0 else ""


def _refuse_loss(path: Path) -> None:
    """Raise StoreFailed if the database has lost committed data. The files stay as they are."""
    try:
        lost = _loss(path)
    except (sqlite3.Error, OSError) as error:
        raise StoreFailed(f"cannot open {path}: {error}") from error
    if lost:
        raise StoreFailed(lost)


def _loss(path: Path) -> str:
    """Return what is missing, and what to do; empty if nothing is."""
    lost = loss.loss(path)
    if lost or not path.exists() or not path.stat().st_size:
        return lost
    # Read-only: a connection that may write would take a write-ahead log away that was cut, when it is closed.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
        if not db.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0]:
            return loss.without_schema(path)
        # Without a marker it is no fault to know less than the logs: in a backup, these are copied later.
        newest = loss.newest_with_logs(path.parent) if loss.marker(path).exists() else ()
        return next((loss.unknown(path, each) for each in newest if not _knows(db, each)), "")


def _knows(db: Connection, execution_id: str) -> bool:
    return bool(db.execute("SELECT 1 FROM executions WHERE execution_id = ?", [execution_id]).fetchall())
