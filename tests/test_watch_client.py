"""`watch` of both Python clients against a real server: it resumes by itself, and says when changes may be missing."""

import asyncio
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.client import (
    AsyncClient,
    Backoff,
    CaughtUp,
    ChangesMissed,
    Client,
    CursorRefused,
    Disconnected,
    InvalidRequest,
    InvalidText,
    JobChanged,
    JobPruned,
    Reconnected,
    Watch,
    WatchEvent,
    as_json,
)
from fastlane_grpc.store.database import sqlite3
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.serving import Server
from tests.tools import ROOT

QUICK = Backoff(first_seconds=0.01, longest_seconds=0.1)
# Nothing runs: jobs are queued until they are stopped.
NO_ENGINE = "unix:///nowhere.sock"


PAGE = ROOT / "docs" / "watching.md"


class Place:
    """A data directory, and one server after another over it, at one address."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "data"
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        self.server = Server(self.directory, listen=self.address, engine=NO_ENGINE)

    def forget_changes(self) -> None:
        """As retention would after a day; no server runs."""
        with closing(sqlite3.connect(self.directory / "fastlane.db")) as db:
            db.execute("DELETE FROM changes WHERE sequence < (SELECT max(sequence) FROM changes)")
            db.commit()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.server.stop()


class Picture:
    """What a watcher knows by what it was told."""

    def __init__(self) -> None:
        self.jobs: dict[str, pb.Job] = {}
        self.caught_up = False
        self._doubtful: set[str] = set()

    def take(self, event: WatchEvent) -> None:
        match event:
            case JobChanged(job):
                self.jobs[job.id] = job
                self._doubtful.discard(job.id)
            case JobPruned(job_id):
                self.jobs.pop(job_id, None)
                self._doubtful.discard(job_id)
            case ChangesMissed():
                self._doubtful = set(self.jobs)
                self.caught_up = False
            case CaughtUp():
                for job_id in self._doubtful:
                    del self.jobs[job_id]
                self._doubtful, self.caught_up = set(), True


def until_caught_up(watch: Watch) -> Picture:
    picture = Picture()
    while not picture.caught_up:
        picture.take(next(watch))
    return picture


def changed(watch: Watch) -> pb.Job:
    """The next job that is told; the connection may be cut before."""
    while not isinstance(event := next(watch), JobChanged):
        assert isinstance(event, Disconnected | Reconnected), event
    return event.job


def test_a_watch_goes_on_after_a_restart_of_the_server(place: Place) -> None:
    with Client(place.address, backoff=QUICK) as client, client.watch("mail", heartbeat=1) as watch:
        assert until_caught_up(watch).jobs == {}
        client.enqueue("build", "busybox")
        first = client.enqueue("mail", "busybox")
        assert changed(watch).id == first.id
        place.server.kill()
        place.start()
        second = client.enqueue("mail", "busybox")
        assert changed(watch).id == second.id
        cursor = watch.cursor
    with Client(place.address) as client:
        client.stop(first.id)
        with client.watch("mail", cursor=cursor) as watch:
            job = changed(watch)
            assert (job.id, job.state) == (first.id, pb.STATE_STOPPED)


def test_a_watch_that_missed_changes_says_so_and_begins_anew(place: Place) -> None:
    with Client(place.address, backoff=QUICK) as client, client.watch(heartbeat=1) as watch:
        stays, ends = (client.enqueue("task", "busybox") for _ in range(2))
        picture = until_caught_up(watch)
        while len(picture.jobs) < 2:
            picture.take(next(watch))
        place.server.stop()
        with closing(sqlite3.connect(place.directory / "fastlane.db")) as db:
            db.execute("UPDATE executions SET state = 9 WHERE job_id = ?", [ends.id])
            db.execute("UPDATE jobs SET state = 9, end_time = 1 WHERE job_id = ?", [ends.id])
            db.commit()
        place.forget_changes()
        place.start()
        picture.take(next(event for event in watch if isinstance(event, ChangesMissed)))
        while not picture.caught_up:
            picture.take(next(watch))
        assert picture.jobs.keys() == {stays.id}
        assert client.stop(stays.id).state == pb.STATE_STOPPED
        assert changed(watch).id == stays.id


def test_a_cursor_that_is_too_old_begins_anew_and_an_invalid_one_is_an_error(place: Place) -> None:
    with Client(place.address) as client:
        with client.watch() as watch:
            until_caught_up(watch)
            cursor = watch.cursor
        job = client.enqueue("task", "busybox")
        client.stop(job.id)
        place.server.stop()
        place.forget_changes()
        place.start()
        with client.watch(cursor=cursor) as watch:
            event = next(watch)
            assert isinstance(event, ChangesMissed)
            assert isinstance(event.error, CursorRefused)
            assert until_caught_up(watch).jobs == {}
        with client.watch(cursor="1.2.3") as watch, pytest.raises(CursorRefused):
            next(watch)


def test_wrong_arguments_of_a_watch_are_named(place: Place) -> None:
    with Client(place.address) as client:
        with pytest.raises(TypeError, match=r"job_ids must be a list"):
            client.watch(job_ids="abc")
        with pytest.raises(InvalidText, match=r"labels\["):
            client.watch(labels={"a": "caf\udce9"})
        with client.watch(job_ids=["abc"]) as watch, pytest.raises(InvalidRequest, match=r"job_ids\[0\]"):
            next(watch)


def test_the_example_of_the_page_waits_until_no_job_is_open(place: Place) -> None:
    program = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert "127.0.0.1:7020" in program
    with Client(place.address) as client:
        jobs = [client.enqueue("mail", "busybox") for _ in range(2)]
        client.enqueue("other", "busybox")
        command = [sys.executable, "-c", program.replace("127.0.0.1:7020", place.address)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as example:
            for job in jobs:
                assert example.poll() is None
                client.stop(job.id)
            assert example.communicate(timeout=30)[0] == "no job of task mail is open\n"


def test_each_row_of_the_page_names_a_test_that_is_there() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*watch*.py"))
    named = re.findall(r"`(test_\w+)`", PAGE.read_text())
    assert len(named) > 8
    for name in named:
        assert f"def {name}(" in tests, name


def test_a_closed_watch_ends_and_so_does_that_of_a_closed_client(place: Place) -> None:
    client = Client(place.address)
    watch, other = client.watch(), client.watch()
    until_caught_up(watch)
    until_caught_up(other)
    threading.Timer(0.1, watch.close).start()
    assert list(watch) == []
    client.close()
    assert list(other) == []


async def test_an_asyncio_watch_tells_the_same_and_resumes(place: Place) -> None:
    async with AsyncClient(place.address, backoff=QUICK) as client, client.watch(heartbeat=1) as watch:
        picture = Picture()
        while not picture.caught_up:
            picture.take(await anext(watch))
        await asyncio.to_thread(place.server.kill)
        await asyncio.to_thread(place.start)
        job = await client.enqueue("task", "busybox")
        while job.id not in picture.jobs:
            picture.take(await anext(watch))
        events: list[Any] = []
        closing_task = asyncio.create_task(watch.close())
        async for event in watch:
            events.append(event)
        await closing_task
        assert events == []


def test_a_watch_ends_with_the_true_picture_whatever_is_killed(place: Place) -> None:
    """A short round with a seed: a server that is killed again and again, and a watcher that resumes."""
    chance = random.Random(20261128)
    picture, last = Picture(), threading.Event()
    with Client(place.address, backoff=QUICK) as client, client.watch(heartbeat=1) as watch:
        picture.take(next(watch))

        def follow() -> None:
            for event in watch:
                picture.take(event)
                if any(job.task_id == "last" for job in picture.jobs.values()):
                    last.set()
                    return

        follower = threading.Thread(target=follow)
        follower.start()
        ids: list[str] = []
        for _ in range(4):
            killer = threading.Timer(chance.uniform(0.05, 0.3), place.server.kill)
            killer.start()
            restarted = threading.Thread(target=lambda killer=killer: (killer.join(), place.start()))  # type: ignore[misc]
            restarted.start()
            while restarted.is_alive():
                ids.append(client.enqueue("task", "busybox").id)
                if chance.random() < 0.5:
                    client.stop(chance.choice(ids))
            restarted.join()
        client.enqueue("last", "busybox")
        assert last.wait(60)
        follower.join()
        jobs = {job.id: job for job in client.jobs()}
    for job_id, told in picture.jobs.items():
        told.execution.ClearField("waiting")
        jobs[job_id].execution.ClearField("waiting")
        assert as_json(told) == as_json(jobs[job_id])
    assert picture.jobs.keys() == jobs.keys()
