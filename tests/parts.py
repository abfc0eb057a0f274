"""The server of the app, with as many of its parts as a test looks at: others are left out, or replaced."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from fastlane_grpc.app import Server
from fastlane_grpc.config import Settings
from fastlane_grpc.model import utc_now
from fastlane_grpc.store import Rules, Store
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.readers import Readers
from fastlane_grpc.store.writer import Writer
from tests.new_database import open_database


class Parts(Server):
    """Parts are opened at once, by the `open_…` methods that a test calls with `parts`, and closed in reverse by
    `close_parts`.

    The store tries again at once what it could not write, and has its time from `now`.
    """

    writer_kind: type[Writer] = Writer
    store_kind: type[Store] = Store
    retry_seconds = 0.01

    def __init__(self, directory: Path, *, now: Callable[[], datetime] = utc_now, **settings: Any) -> None:
        super().__init__(
            Settings(data_dir=directory, listen="127.0.0.1:0", **{"http_listen": "", "max_running": 8, **settings})
        )
        self.now = now
        # What the parts above the logs would need in addition is for who opens them.
        self.parts: Any = ExitStack()

    @property
    def database(self) -> Path:
        return self.settings.data_dir / "fastlane.db"

    def open_store(self, parts: Any) -> None:
        self.writer = self.writer_kind(
            self.open_database(),
            self.database,
            loop=self.loop,
            on_commit=self._committed,
            on_failure=self.store_health.failed,
            retry_seconds=self.retry_seconds,
            supervisor=self.supervisor,
            counts=self.counts.store,
        )
        readers = Readers(self.database, loop=self.loop, supervisor=self.supervisor)
        rules = Rules(default_notifications=self.settings.default_notifications)
        self.store = self.store_kind(self.writer, readers, instance="", now=self.now, rules=rules)
        parts.callback(self.store.close)
        self.listeners += self.store.commit_listeners

    def open_database(self) -> Connection:
        return open_database(self.database)

    def close_parts(self) -> None:
        self.supervisor.close()
        self.parts.close()
