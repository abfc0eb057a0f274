"""Diagnostics of the database, with or without a server that runs. They change nothing."""

import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.model import State
from fastlane_grpc.store.database import Connection, sqlite3

# A large database takes longer to be read through than somebody waits who wonders what is wrong.
_CHECK_SECONDS = 15.0
# So many steps of SQLite's machine between two looks at the clock: some milliseconds.
_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class DatabaseDiagnosis:
    """`damage`: what SQLite found wrong, empty if nothing. `whole`: whether SQLite has checked the whole database."""

    instance: str
    damage: str
    whole: bool
    # Of the executions that were asked about, those that are over, or are not there.
    over: frozenset[str]


def diagnose(path: Path, execution_ids: Collection[str]) -> DatabaseDiagnosis:
    """Check the database at `path`, which exists. StoreFailed: it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            (instance,) = db.execute("SELECT instance_id FROM instance").fetchone()
            over = frozenset(each for each in execution_ids if _is_over(db, each))
            damage, whole = _damage(db)
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise StoreFailed(f"cannot read {path}: {error}") from error
    return DatabaseDiagnosis(str(instance), damage, whole, over)


def _is_over(db: Connection, execution_id: str) -> bool:
    rows = db.execute("SELECT state FROM executions WHERE execution_id = ?", [execution_id]).fetchall()
    return not rows or State(rows[0][0]).final


def _damage(db: Connection) -> tuple[str, bool]:
    until = time.monotonic() + _CHECK_SECONDS
    db.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
    try:
        found = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)").fetchall()]
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return "", False
    return ("" if found == ["ok"] else "; ".join(found)), True
