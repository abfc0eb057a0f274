"""What cannot be stored is tried again, and the log says so once, and once when it is over."""

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.writer import Writer, Written
from tests.new_database import open_database


async def test_a_shortage_is_logged_when_it_begins_and_when_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "fastlane.db"
    failures = 0
    often = asyncio.Event()

    def failed() -> None:
        nonlocal failures
        failures += 1
        if failures >= 5:
            often.set()

    def limit(db: Connection, further: int) -> Written[None]:
        pages = db.execute("PRAGMA page_count").fetchall()[0][0]
        db.execute(f"PRAGMA max_page_count = {pages + further}").fetchall()
        return Written(None)

    def big(db: Connection) -> Written[None]:
        db.execute("CREATE TABLE IF NOT EXISTS big (x)")
        db.execute("INSERT INTO big VALUES (zeroblob(100000))")
        return Written(None)

    writer = Writer(
        open_database(path),
        path,
        loop=asyncio.get_running_loop(),
        on_commit=lambda executions: None,
        on_failure=failed,
        retry_seconds=0.01,
    )
    try:
        with capture_logs() as logs:
            await writer.write(lambda db: limit(db, 2))
            owed = [writer.write_until_stored(big) for _ in range(2)]
            await often.wait()
            await writer.write(lambda db: limit(db, 1000))
            for each in owed:
                await each
            writer.close()
        assert [entry["event"] for entry in logs] == ["store.retry", "store.stored"]
    finally:
        writer.close()
