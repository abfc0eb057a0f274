"""New databases for tests: one is made in each process, and copied. To make one takes ten times as long."""

import tempfile
from functools import cache
from pathlib import Path
from uuid import uuid4

from fastlane_grpc.store.database import Connection, open_for_writing


def open_database(path: Path) -> Connection:
    """Open the database at `path` for writing. One that is not there is made."""
    make_database(path)
    return open_for_writing(path)


def make_database(path: Path) -> None:
    """Make a new database, with an id of its own, unless there is one or no directory for it."""
    if not path.exists() and path.parent.is_dir():
        made, instance = _made()
        path.write_bytes(made.replace(instance, str(uuid4()).encode()))


@cache
def _made() -> tuple[bytes, bytes]:
    """Return the bytes of a new database, and the id of its instance in them."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fastlane.db"
        db = open_for_writing(path)
        instance: str = db.execute("SELECT instance_id FROM instance").fetchall()[0][0]
        db.close()
        return path.read_bytes(), instance.encode()
