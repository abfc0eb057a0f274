"""A database that has lost what was committed to it is refused, and nothing is begun anew in its place without a
word."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastlane_grpc.client import Client
from fastlane_grpc.errors import StoreFailed
from fastlane_grpc.logs import Logs
from fastlane_grpc.store import Store
from fastlane_grpc.store.database import open_for_writing
from tests.serving import Server, instance, serving

JOBS = 5


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that was killed when it had some jobs, each with a log."""
    data_dir = tmp_path_factory.mktemp("killed") / "data"
    server = Server(data_dir, engine="unix:///nowhere.sock")
    with Client(server.address) as client:
        executions = [client.enqueue("lost", "image", "true").execution.id for _ in range(JOBS)]
    server.kill()
    logs = Logs(data_dir / "logs")
    for execution_id in executions:
        logs.system(execution_id, "a line")
    logs.close()
    return data_dir


@pytest.fixture
def data_dir(killed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(killed, tmp_path / "data"))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """The database of a data directory without any logs, and of a server that was killed."""
    path = tmp_path / "fresh" / "fastlane.db"
    path.parent.mkdir()
    with closing(open_for_writing(path)):
        shutil.copytree(path.parent, tmp_path / "copy")
        yield tmp_path / "copy" / "fastlane.db"


def reopen(data_dir: Path) -> int:
    """The number of jobs that a server finds there."""
    with closing(open_for_writing(data_dir / "fastlane.db")) as db:
        (count,) = db.execute("SELECT count(*) FROM jobs").fetchone()
        return int(count)


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(data_dir: Path) -> None:
        log = data_dir / "fastlane.db-wal"
        with log.open("r+b") as file:
            file.truncate(size(log.stat().st_size))

    return damage


def test_a_killed_server_leaves_all_that_it_was_told(data_dir: Path) -> None:
    # What is being deleted is known to nobody any more, and no loss.
    (data_dir / "logs" / "deleted" / "01a2217f-4b3a-7622-9c9f-c1db760f251d").mkdir(parents=True)
    assert reopen(data_dir) == JOBS
    assert reopen(data_dir) == JOBS, "and so it is after a server that closed it"


def test_the_file_itself_has_the_schema_and_the_instance_from_the_first_moment(killed: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(killed / "fastlane.db", alone)
    assert instance(alone) == instance(Path(shutil.copytree(killed, tmp_path / "whole")))
    # Without a marker beside it this is a backup, however old.
    assert reopen(alone) == 0


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda data: (data / "fastlane.db-wal").unlink(), "fastlane.db-wal is missing", id="wal-missing"),
        pytest.param(
            lambda data: [(data / f"fastlane.db-{name}").unlink() for name in ("wal", "shm")],
            "does not know execution",
            id="both-missing",
        ),
        pytest.param(cut(lambda size: 0), "does not know execution", id="wal-cut-to-nothing"),
        pytest.param(cut(lambda size: 32), "does not know execution", id="wal-cut-to-its-header"),
        pytest.param(cut(lambda size: size // 2), "does not know execution", id="wal-cut-to-a-half"),
        pytest.param(cut(lambda size: size - 10), "does not know execution", id="wal-cut-by-some-bytes"),
        pytest.param(lambda data: (data / "fastlane.db").write_bytes(b""), "fastlane.db is empty", id="db-empty"),
        pytest.param(lambda data: (data / "fastlane.db").unlink(), "fastlane.db is missing", id="db-missing"),
    ],
)
def test_what_was_lost_is_said_with_what_to_do_and_nothing_is_changed(
    data_dir: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(data_dir)
    before = {
        path.name: path.read_bytes() for path in data_dir.iterdir() if path.is_file() and path.suffix != ".db-shm"
    }
    for _ in range(2):
        with pytest.raises(StoreFailed) as failure:
            reopen(data_dir)
        assert says in str(failure.value)
        assert "restore a backup" in str(failure.value)
        assert "remove " in str(failure.value) or "move " in str(failure.value)
    there = {name for name, content in before.items() if content}
    assert there - {"fastlane.db-shm"} <= {path.name for path in data_dir.iterdir()}


def test_a_database_that_was_never_made_whole_is_told_by_its_logs(data_dir: Path) -> None:
    for name in ("fastlane.db", "fastlane.db-wal", "fastlane.db-shm", "serving"):
        (data_dir / name).unlink(missing_ok=True)
    with closing(sqlite3.connect(data_dir / "fastlane.db")) as db:
        # As a server left it that was killed before it had a schema in the file itself.
        db.execute("PRAGMA journal_mode = WAL").fetchall()
    with pytest.raises(StoreFailed, match="has no jobs in it"):
        reopen(data_dir)


def test_who_takes_the_marker_away_goes_on_with_what_is_there(data_dir: Path) -> None:
    before = instance(Path(shutil.copytree(data_dir, data_dir.with_name("other"))))
    (data_dir / "fastlane.db-wal").unlink()
    (data_dir / "serving").unlink()
    assert reopen(data_dir) == 0
    assert instance(data_dir) == before


def test_who_looked_into_the_database_of_a_killed_server_has_lost_nothing(data_dir: Path) -> None:
    # As `sqlite3 fastlane.db` does: the last one that closes it takes the write-ahead log away, and has all in the file
    # before that.
    with closing(sqlite3.connect(data_dir / "fastlane.db")) as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchall() == [(JOBS,)]
    assert not (data_dir / "fastlane.db-wal").exists()
    assert reopen(data_dir) == JOBS


def test_a_new_directory_and_a_server_killed_before_its_first_job_are_no_loss(fresh: Path) -> None:
    assert (fresh.parent / "serving").exists()
    assert reopen(fresh.parent) == 0
    assert not (fresh.parent / "serving").exists()


def test_a_store_that_is_closed_leaves_no_marker(tmp_path: Path) -> None:
    async def open_and_close() -> None:
        store = Store.open(tmp_path, on_commit=lambda changed: None, loop=asyncio.get_running_loop())
        assert (tmp_path / "serving").exists()
        store.close()

    asyncio.run(open_and_close())
    assert not (tmp_path / "serving").exists()
    assert not (tmp_path / "fastlane.db-wal").exists()


def test_a_server_over_a_damaged_directory_ends_with_the_reason(data_dir: Path) -> None:
    (data_dir / "fastlane.db").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"fastlane\.db is empty, and there are logs of executions"):
        Server(data_dir, engine="unix:///nowhere.sock")
    # With the logs out of the way it is a new one.
    (data_dir / "logs").rename(data_dir.with_name("logs"))
    with serving(data_dir, engine="unix:///nowhere.sock"):
        pass
