"""Hosts that a caller drained, kept over restarts."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import NamedTuple

from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import microseconds_since_epoch, time_from

# Stands for every host that the next server has: in a database that was restored.
EVERY_HOST = "*"


class Drain(NamedTuple):
    """A drain of a host: its note and its time."""

    note: str
    time: datetime


def drain(db: Connection, host: str, note: str, now: datetime) -> Drain:
    """Drain a host. One that is drained stays as it is."""
    db.execute(
        "INSERT INTO drained_hosts VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (host, note, microseconds_since_epoch(now)),
    )
    return drained(db)[host]


def resume(db: Connection, host: str) -> None:
    """Resume a host, if it is drained."""
    db.execute("DELETE FROM drained_hosts WHERE host = ?", [host])


def drained(db: Connection) -> Mapping[str, Drain]:
    """Return the drained hosts by name."""
    rows = db.execute("SELECT host, note, time FROM drained_hosts").fetchall()
    return {host: Drain(note, time_from(time)) for host, note, time in rows}


def drain_every_host(db: Connection, names: Collection[str]) -> None:
    """Drain the hosts of these names, where the database says that every host is drained."""
    deleted = db.execute("DELETE FROM drained_hosts WHERE host = ? RETURNING note, time", [EVERY_HOST]).fetchall()
    for note, time in deleted:
        for name in names:
            drain(db, name, note, time_from(time))
