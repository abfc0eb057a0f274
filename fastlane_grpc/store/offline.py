"""The database as a file: copied, checked and held, whether a server has it open or not."""

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from sqlite_utils import Database

from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.model import Execution, State
from fastlane_grpc.store import hosts
from fastlane_grpc.store.database import Connection, sqlite3
from fastlane_grpc.store.migrations import migrations
from fastlane_grpc.store.rows import EXECUTION, execution_from

# Executions that are read at once.
_PAGE = 500
# Faults of the database that are told; where there is one there are often thousands.
_MAX_FAULTS = 20


def copy_database(source: Path, target: Path) -> str:
    """Write the database, as it is at one moment, into a new file. Return the id of the instance. StoreFailed."""
    with _reading(source) as db:
        instance = _instance(db)
        db.execute("VACUUM INTO ?", [str(target)])
    return instance


def instance_of(path: Path) -> str:
    """Return the id of the instance whose database this is. StoreFailed."""
    with _reading(path) as db:
        return _instance(db)


def faults_of(path: Path) -> list[str]:
    """Check the whole database, which takes minutes if it has gigabytes. Return what is wrong, in words. StoreFailed:
    it cannot be read at all."""
    with _reading(path) as db:
        found = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({_MAX_FAULTS})").fetchall()]
        faults = [] if found == ["ok"] else found
        dangling = db.execute("PRAGMA foreign_key_check").fetchmany(_MAX_FAULTS)
        faults += [
            f"row {rowid} of {table} refers to a row of {parent} that is missing"
            for table, rowid, parent, _ in dangling
        ]
        applied = {migration.name for migration in migrations.applied(Database(db))}
        if newer := applied - {migration.name for migration in migrations.pending(Database(memory=True))}:
            faults.append(f"it was written by a newer fastlane ({', '.join(sorted(newer))})")
    return faults


def executions_with_logs(path: Path) -> Iterator[Execution]:
    """Yield the executions whose log is kept, oldest first. StoreFailed."""
    with _reading(path) as db:
        after = 0
        while rows := db.execute(
            f"SELECT seq, {EXECUTION} FROM executions WHERE seq > ? AND log_bytes > 0 AND prune_time IS NULL"
            " ORDER BY seq LIMIT ? + 0",
            [after, _PAGE],
        ).fetchall():
            for row in rows:
                yield execution_from(row[1:])
            after = rows[-1][0]


def kept(path: Path, execution_ids: Collection[str]) -> set[str]:
    """Return those of the executions that the database knows, and whose log was not pruned. StoreFailed."""
    with _reading(path) as db:
        statement = "SELECT count(*) FROM executions WHERE execution_id = ? AND prune_time IS NULL"
        return {each for each in execution_ids if db.execute(statement, [each]).fetchone()[0]}


def inputs_of_jobs(path: Path) -> list[tuple[str, str]]:
    """Return the checksums that jobs name in their inputs, each with one of its jobs. StoreFailed."""
    with _reading(path) as db:
        return db.execute("SELECT sha256, min(job_id) FROM job_inputs GROUP BY sha256").fetchall()


def hold(path: Path, note: str, now: datetime) -> int:
    """Let the next server drain all of its hosts when it starts. Return the number of jobs that wait. StoreFailed."""
    with _writing(path) as db:
        hosts.drain(db, hosts.EVERY_HOST, note, now)
        waiting = f"state IN ({State.SCHEDULED}, {State.QUEUED})"
        (count,) = db.execute(f"SELECT count(*) FROM executions WHERE {waiting}").fetchone()
    return int(count)


def _instance(db: Connection) -> str:
    (instance,) = db.execute("SELECT instance_id FROM instance").fetchone()
    return str(instance)


@contextmanager
def _reading(path: Path) -> Iterator[Connection]:
    with _opened(f"{path.absolute().as_uri()}?mode=ro", path) as db:
        yield db


@contextmanager
def _writing(path: Path) -> Iterator[Connection]:
    with _opened(f"{path.absolute().as_uri()}?mode=rw", path) as db:
        yield db


@contextmanager
def _opened(uri: str, path: Path) -> Iterator[Connection]:
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            yield db
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise StoreFailed(f"cannot use {path}: {error}") from error
