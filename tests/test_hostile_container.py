"""Containers that attack their server through what they share with it, as root and as a user, under a server of root
and of a user.

Any change to the recorder or to what is mounted for it has to pass this.
"""

import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import docker
import pytest
from docker.models.containers import Container

from fastlane_grpc.client import Client, NotFound
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import engine_address, read_output
from tests.hostile_jobs import ALL, ATTACKS, BOX
from tests.reading import Reader
from tests.serving import Server, clear, containers

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(180)]

# Of no account on this machine.
USER = 4242
SECONDS = 60


def engine_group() -> int:
    """The group that may use the engine's socket."""
    return Path(engine_address().removeprefix("unix://")).stat().st_gid


@cache
def python_of_a_user() -> tuple[str, Mapping[str, str]]:
    """A Python of this version that an ordinary user may execute, and the environment in which it finds what is
    installed for this one."""
    places = [str(Path(__file__).parents[1]), *(path for path in sys.path if path.endswith("site-packages"))]
    modules = {"PYTHONPATH": os.pathsep.join(places)}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        environment = {**os.environ, **modules, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            tried = subprocess.run(
                [python, "-c", "import fastlane_grpc.app"],
                user=USER,
                group=USER,
                extra_groups=[],
                env=environment,
                capture_output=True,
            )
        except OSError:
            continue
        if tried.returncode == 0:
            return python, environment
    pytest.skip("an ordinary user can execute no Python that has what fastlane needs")


def needs_a_server_of_a_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("becomes another user: needs root")
    if not engine_address().startswith("unix://"):
        pytest.skip("the engine has no socket here")
    if not Path(engine_address().removeprefix("unix://")).stat().st_mode & stat.S_IWGRP:
        pytest.skip("the engine's socket is for its owner alone")


class Place:
    """A data directory, and the servers over it, one after another, of root or of an ordinary user."""

    def __init__(self, directory: Path, user: int | None) -> None:
        self.data_dir = directory / "data"
        self.data_dir.mkdir()
        directory.chmod(0o755)
        self._process: Mapping[str, object] = {}
        self._python = sys.executable
        if user is not None:
            os.chown(self.data_dir, user, user)
            self._python, environment = python_of_a_user()
            self._process = {"user": user, "group": engine_group(), "extra_groups": [], "env": environment, "cwd": "/"}

    def server(self, **settings: object) -> Server:
        settings = {"capture": "recorder", "max_running": 40, "engine": engine_address(), **settings}
        return Server(self.data_dir, python=self._python, process=self._process, **settings)  # type: ignore[arg-type]

    @contextmanager
    def serving(self, **settings: object) -> Iterator[tuple[Server, Client]]:
        """A server that must be there still at the end, and to end in order."""
        server = self.server(**settings)
        try:
            with Client(server.address) as client:
                yield server, client
                assert server.process.poll() is None, self.server_log[-3000:]
            assert server.stop() == 0
        finally:
            server.kill()

    @property
    def server_log(self) -> str:
        return Path(f"{self.data_dir}.log").read_text()

    def directory(self, execution_id: str) -> Path:
        [directory] = self.data_dir.glob(f"logs/*/{execution_id}")
        return directory

    def left_over(self) -> list[str]:
        """All below the logs."""
        found: list[str] = []
        for directory in (self.data_dir / "logs").iterdir():
            with suppress(FileNotFoundError):  # the server removes it meanwhile
                found += [f"{directory.name}/{path.name}" for path in directory.iterdir()]
        return sorted(found)


@pytest.fixture(params=[pytest.param(None, id="server of root"), pytest.param(USER, id="server of a user")])
def place(request: pytest.FixtureRequest, sdk: docker.DockerClient) -> Iterator[Place]:
    if request.param is not None:
        needs_a_server_of_a_user()
    directory = Path(mkdtemp(prefix="fl-hostile-"))
    place = Place(directory, request.param)
    try:
        yield place
        clear(sdk, place.data_dir)
    finally:
        # Python's own way calls itself once a level.
        subprocess.run(["rm", "-rf", directory], check=True)


both_users = pytest.mark.parametrize("user", ["root", "nobody"])


def until(true: Callable[[], object], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def ends_as_it_should(reader: Reader, code: int, stdout: bytes) -> None:
    end = reader.end()
    what = f"{end.outcome} {reader.system}"
    assert (end.outcome.exit_code, end.outcome.reason) == (code, pb.REASON_EXIT_CODE), what
    assert (reader.stdout, reader.gaps) == (stdout, []), what


def is_pruned(place: Place, client: Client, job_id: str) -> None:
    """The job can be pruned, and no other one is kept from it."""
    other = client.enqueue("other", "no-such-image:1", pull_policy="NEVER")
    Reader(client, other.execution.id).end()
    assert client.prune(timedelta(0)).jobs >= 2
    for each in (job_id, other.id):
        with pytest.raises(NotFound):
            client.job(each)


# -- while the server is there


@both_users
def test_a_job_can_make_nothing_in_the_directory_that_was_mounted(place: Place, image: str, user: str) -> None:
    attempt = f"(: >{BOX}/log || : >{BOX}/$i || mkdir {BOX}/d) 2>/dev/null && echo made"
    tries = f"for i in $(seq 50); do {attempt}; done; ls -A {BOX}; exit 7"
    with place.serving() as (_, client):
        jobs = [
            client.enqueue("hostile", image, args=["sh", "-c", tries], user=user, read_only_root=True) for _ in range(8)
        ]
        for job in jobs:
            reader = Reader(client, job.execution.id)
            ends_as_it_should(reader, 7, b"")
            assert sorted(path.name for path in place.directory(job.execution.id).iterdir()) == ["log", "system"]


@both_users
def test_a_job_that_attacks_its_server_in_every_way_ends_as_it_would_have(place: Place, image: str, user: str) -> None:
    with place.serving() as (_, client):
        jobs = [
            client.enqueue("hostile", image, args=["sh", "-c", f"({attack}) 2>/dev/null; echo out; exit 7"], user=user)
            for attack in ATTACKS.values()
        ]
        for job in jobs:
            ends_as_it_should(Reader(client, job.execution.id), 7, b"out\n")
            assert sorted(path.name for path in place.directory(job.execution.id).iterdir()) == ["log", "system"]
        is_pruned(place, client, jobs[0].id)
        assert place.left_over() == []


# -- when the server died while it started the container


@contextmanager
def without_a_server(
    place: Place, sdk: docker.DockerClient, image: str, script: str, **options: object
) -> Iterator[tuple[str, Container]]:
    """The id of a job whose container was started, and has begun, while there was no server to take the mounted
    directory away."""
    server = place.server(kill_at="fenced", listen="127.0.0.1:0")
    with Client(server.address) as client:
        job = client.enqueue("hostile", image, args=["sh", "-c", script], **options)  # type: ignore[arg-type]
    server.wait()
    [container_id] = containers(sdk, place.data_dir)
    container = sdk.containers.get(container_id)
    container.start()
    yield job.id, container


def has_printed(place: Place, execution_id: str, content: bytes) -> bool:
    return content in read_output(place.directory(execution_id) / "log").stdout


@both_users
def test_what_a_job_left_while_no_server_was_there_is_of_no_account(
    place: Place, sdk: docker.DockerClient, image: str, user: str
) -> None:
    script = f"{ALL}; echo attacked; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7"
    with without_a_server(place, sdk, image, script, user=user) as (job_id, container):
        execution_id = next(iter(containers(sdk, place.data_dir).values()))
        until(lambda: has_printed(place, execution_id, b"attacked\n"))
        [box] = place.directory(execution_id).glob("box-*")
        assert len(list(box.iterdir())) > 5
        with place.serving() as (_, client):
            reader = Reader(client, execution_id)
            reader.wait_for_output(b"attacked\n")
            container.exec_run(["touch", "/tmp/go"])
            ends_as_it_should(reader, 7, b"attacked\n")
            # A directory that root has taken stays there until its log is pruned. It does not count as a log.
            taken = [box.name] if place.data_dir.stat().st_uid and user == "root" else []
            left = sorted(path.name for path in place.directory(execution_id).iterdir())
            assert left == [*taken, "log", "system"]
            assert client.prune(timedelta(0), validate_only=True).bytes < 1_000_000
            is_pruned(place, client, job_id)
            # A user cannot delete what another one made in a directory of its own. That is told, and is tried again.
            if place.data_dir.stat().st_uid:
                until(lambda: "cannot be deleted" in place.server_log)
                assert place.server_log.count("what a container left cannot be deleted") <= 2
                assert all(name.startswith("deleted/") for name in place.left_over())
            else:
                until(lambda: place.left_over() == [])
        # The next one has no trouble with it, either.
        with place.serving() as (_, client):
            reader = Reader(client, client.enqueue("next", image, command="echo next").execution.id)
            assert (reader.end().state, reader.stdout) == (pb.STATE_SUCCEEDED, b"next\n")


def test_a_command_waits_for_its_server_no_longer_than_a_moment(
    place: Place, sdk: docker.DockerClient, image: str
) -> None:
    with without_a_server(place, sdk, image, "echo ran; exit 7") as (_, container):
        execution_id = next(iter(containers(sdk, place.data_dir).values()))
        began = time.monotonic()
        assert container.wait()["StatusCode"] == 7
        assert time.monotonic() - began < 20
        with place.serving() as (_, client):
            ends_as_it_should(Reader(client, execution_id), 7, b"ran\n")
            assert sorted(path.name for path in place.directory(execution_id).iterdir()) == ["log", "system"]


# -- what happens to the record itself


def test_a_record_that_is_deleted_while_it_is_written_is_lost(place: Place, image: str) -> None:
    script = "echo begun; for i in $(seq 20); do sleep 0.1; done"
    with place.serving() as (_, client):
        job = client.enqueue("t", image, args=["sh", "-c", script])
        reader = Reader(client, job.execution.id)
        reader.wait_for_output(b"begun\n")
        (place.directory(job.execution.id) / "log").unlink()
        until(lambda: client.execution(job.execution.id).state >= pb.STATE_SUCCEEDED)
        execution = client.execution(job.execution.id)
        assert execution.state == pb.STATE_LOST
        assert "deleted its record" in execution.outcome.detail
        assert "not run" not in execution.outcome.detail


@pytest.mark.parametrize("by", [None, "pipe", "directory"], ids=["deleted", "by a pipe", "by a directory"])
def test_a_record_that_was_replaced_while_no_server_was_there_is_not_begun_anew(
    place: Place, sdk: docker.DockerClient, image: str, by: str | None
) -> None:
    with without_a_server(place, sdk, image, "echo ran") as (_, container):
        execution_id = next(iter(containers(sdk, place.data_dir).values()))
        container.wait()
        record = place.directory(execution_id) / "log"
        record.unlink()
        if by == "pipe":
            os.mkfifo(record)
        elif by == "directory":
            record.mkdir()
        with place.serving() as (_, client):
            until(lambda: client.execution(execution_id).state >= pb.STATE_SUCCEEDED)
            execution = client.execution(execution_id)
            assert (execution.state, execution.outcome.reason) == (pb.STATE_LOST, pb.REASON_CONTAINER_GONE)
            assert "deleted its record" in execution.outcome.detail
            # A reader neither waits for it nor holds up the server.
            assert Reader(client, execution_id).end().state == pb.STATE_LOST


# -- a machine that has too little of something


@pytest.mark.parametrize("place", [None], indirect=True, ids=["server of root"])
def test_a_job_that_ends_while_the_server_has_no_descriptors_ends_as_it_should(place: Place, image: str) -> None:
    script = "for i in $(seq 20); do echo $i; sleep 0.1; done; exit 7"
    with place.serving() as (server, client):
        jobs = [client.enqueue("t", image, args=["sh", "-c", script]) for _ in range(3)]
        readers = [Reader(client, job.execution.id) for job in jobs]
        for reader in readers:
            reader.wait_for_output(b"2\n")
        process = server.process.pid
        _, most = resource.prlimit(process, resource.RLIMIT_NOFILE)
        taken = {int(path.name) for path in Path(f"/proc/{process}/fd").iterdir()}
        lowest = next(number for number in range(len(taken) + 1) if number not in taken)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (lowest, most))
        try:
            threading.Event().wait(4)
        finally:
            resource.prlimit(process, resource.RLIMIT_NOFILE, (most, most))
        for reader in readers:
            ends_as_it_should(reader, 7, b"".join(b"%d\n" % number for number in range(1, 21)))
