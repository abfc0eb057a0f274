"""Exact, whatever dies: server, engine or both are killed with -9 at random moments, over and over, under jobs that
print in every way.

Captured by the recorder each job runs once and ends as it would have, and who followed it all along has every byte of
it once, in order. One of each round's jobs is hostile: it leaves whatever it can where its server finds it.
`CHAOS_ROUNDS` kills are made of each kind, at moments that follow from `CHAOS_SEED`; `make chaos` asks for hundreds.
"""

import os
import random
import shutil
import socket
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Backoff, Client
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Cause, Reason, Source, State
from fastlane_grpc.runner import HostDown
from tests.counter import CountingNetwork, count_me
from tests.engine import EngineHarness, engine_address, opened
from tests.hostile_jobs import ALL as ATTACKED
from tests.loads import FLOOD, SHORT, SLOW, Load, assert_whole
from tests.own_engine import IMAGE, OwnEngine
from tests.reading import Reader
from tests.recorder_program import eventually
from tests.serving import Server, clear
from tests.tally import tally

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "3"))
SEED = int(os.environ.get("CHAOS_SEED", "20261124"))

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(120 + 20 * ROUNDS)]

owns_an_engine = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("dockerd"), reason="starts an engine of its own: needs root and dockerd"
)


LOADS = [
    FLOOD,
    SLOW,
    SHORT,
    # Attacks its server, which may be killed at the moment when that helps.
    Load(f"{ATTACKED}; echo attacked; exit 5", b"attacked\n", b"", 5),
]


class Place:
    """A data directory on an engine, the servers over it one after another, all at one address, and a client that
    outlives them."""

    def __init__(self, data_dir: Path, engine: str, image: str) -> None:
        self._data_dir = data_dir
        self._engine = engine
        self._image = image
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            self._listen = f"127.0.0.1:{listener.getsockname()[1]}"
        self._client = Client(self._listen, backoff=Backoff(0.05, 0.5))
        self.jobs: list[tuple[Load, Reader]] = []

    def server(self, **settings: object) -> Server:
        settings = {"capture": "recorder", "max_running": 12, **settings}
        return Server(self._data_dir, listen=self._listen, engine=self._engine, **settings)

    def enqueue(self, load: Load) -> None:
        job = self._client.enqueue("exact", self._image, args=["sh", "-c", load.script], network="none")
        self.jobs.append((load, Reader(self._client, job.execution.id)))

    def settle(self, jobs: Sequence[tuple[Load, Reader]]) -> None:
        """Each of the jobs comes to its end, and is whole."""
        for load, reader in jobs:
            assert_whole(load, reader)

    def is_tidy(self) -> None:
        """Nothing is left of what a job made beside its log."""
        logs = self._data_dir / "logs"
        for _, reader in self.jobs:
            [directory] = logs.glob(f"*/{reader.execution_id}")
            assert sorted(path.name for path in directory.iterdir()) == ["log", "system"]
        eventually(lambda: not (logs / "deleted").exists())

    def close(self) -> None:
        self._client.close()


def rounds(place: Place, chance: random.Random, engine: OwnEngine | None, kill: str) -> None:
    """Kills `server`, `engine` or `both`, each time under new jobs and those that are left of the rounds before."""
    server = place.server()
    try:
        for number in range(ROUNDS):
            for load in LOADS:
                place.enqueue(load)
            threading.Event().wait(chance.uniform(0.0, 1.5))
            if kill != "engine":
                server.kill()
            if engine is not None:
                engine.kill()
                # Long enough for jobs to end meanwhile.
                threading.Event().wait(chance.uniform(0.0, 0.5))
                engine.start()
            tally()
            if kill != "engine":
                server = place.server()
            # Some of the round before last, and all before them, have come to their end by now, or never will.
            before = place.jobs[: max(0, (number - 3) * len(LOADS))]
            place.settle(before[-len(LOADS) :])
        place.settle(place.jobs)
        place.is_tidy()
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def live_restoring() -> Iterator[OwnEngine]:
    engine = OwnEngine("--live-restore")
    yield engine
    engine.remove()


def test_a_server_that_is_killed_costs_no_byte(
    tmp_path: Path, sdk: docker.DockerClient, image: str, chance: random.Random
) -> None:
    with closing(Place(tmp_path / "data", engine_address(), image)) as place:
        try:
            rounds(place, chance, None, "server")
        finally:
            clear(sdk, tmp_path / "data")


@owns_an_engine
@pytest.mark.parametrize("kill", ["engine", "both"])
def test_an_engine_that_is_killed_costs_no_byte(
    tmp_path: Path, live_restoring: OwnEngine, chance: random.Random, kill: str
) -> None:
    with closing(Place(tmp_path / "data", live_restoring.address, IMAGE)) as place:
        rounds(place, chance, live_restoring, kill)


# -- floods


def yes(size: int) -> Load:
    """The hardest there is for who counts lines, and the fastest that a shell can print."""
    return Load(f"yes | head -c {size}; exit 6", b"y\n" * (size // 2), b"", 6)


@pytest.fixture
def place(tmp_path: Path, sdk: docker.DockerClient, image: str) -> Iterator[Place]:
    with closing(Place(tmp_path / "data", engine_address(), image)) as place:
        yield place
    clear(sdk, tmp_path / "data")


@pytest.mark.parametrize("burst", range(max(1, ROUNDS // 10)))
def test_forty_that_print_megabytes_at_once_and_end_are_whole(place: Place, burst: int) -> None:
    server = place.server(max_running=40)
    try:
        for _ in range(40):
            place.enqueue(yes(5_000_000))
        place.settle(place.jobs)
    finally:
        server.kill()


def test_a_log_far_beyond_its_limit_keeps_head_and_tail_and_fills_no_disk(tmp_path: Path, image: str) -> None:
    limit, size = 64 << 20, (10_000_000_000 if ROUNDS >= 100 else 200_000_000)
    with opened(tmp_path, image, capture=CaptureMode.RECORDER, max_log_bytes=limit) as harness:
        going = harness.go("sh -c", f"yes 0123456789abcde | head -c {size}; exit 6", timeout=timedelta(minutes=10))
        path, most = harness.logs.output_path(going.id), 0
        harness.wait_for_output(going.id)
        while not harness.execution(going.id).state.final:
            most = max(most, path.stat().st_blocks * 512)
            threading.Event().wait(0.01)
        execution, output = going.result(), harness.output(going.id)
    assert execution.outcome is not None
    assert execution.outcome.exit_code == 6
    # One block more is there while a new one is begun, and the file system may keep a few for itself.
    assert limit // 2 < most <= limit + (1 << 20)
    [gap], [total] = output.gaps, [total for total in execution.logs if total.source is Source.STDOUT]
    assert (gap.cause, total.bytes, total.missing_bytes) == (Cause.SIZE_LIMIT, size, gap.missing_bytes)
    assert limit - (1 << 20) <= len(output.stdout) == size - (gap.missing_bytes or 0)
    lines = b"0123456789abcde\n"
    assert output.stdout[: gap.offset] == (lines * (gap.offset // 16 + 1))[: gap.offset]
    tail = output.stdout[gap.offset :]
    assert tail == (lines * (len(tail) // 16 + 2))[-len(tail) :]
    crc32, piece = 0, lines * 62_500
    for _ in range(size // len(piece)):
        crc32 = zlib.crc32(piece, crc32)
    assert total.crc32 == crc32


# -- around the start


# Counted before it prints; and it takes a while, so that it can be killed in between.
ONCE = f"{count_me('$NAME')}; echo ran; sleep 0.2; exit 7"


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[CountingNetwork]:
    with closing(CountingNetwork(tmp_path / "counts")) as network:
        yield network


@pytest.fixture
def counted(tmp_path: Path, counting: CountingNetwork) -> Iterator[tuple[EngineHarness, OwnEngine]]:
    engine = OwnEngine("--live-restore", network=counting.path)
    try:
        with opened(tmp_path, IMAGE, engine.address, capture=CaptureMode.RECORDER) as harness:
            yield harness, engine
    finally:
        engine.remove()


@owns_an_engine
def test_an_engine_that_is_killed_around_a_start_runs_nothing_twice(
    counted: tuple[EngineHarness, OwnEngine], counting: CountingNetwork, chance: random.Random
) -> None:
    harness, engine = counted
    ran = 0
    for number in range(ROUNDS):
        name, killer = f"round-{number}", threading.Timer(chance.uniform(0.0, 0.25), engine.kill)
        harness.on_step = lambda step, _, killer=killer: (
            killer.start() if step is Step.FENCED and not killer.ident else None
        )  # type: ignore[misc]
        going = harness.go("sh -c", ONCE, envs={"NAME": name})
        failure = going.failure()
        killer.join()
        tally()
        engine.start()
        while isinstance(failure, HostDown):
            harness.wait_until(lambda: harness.host.up)
            execution = harness.execution(going.id)
            if execution.state is State.QUEUED:
                harness.store.claim_on(["local"]).result()
            going = harness.adopt(going.id)
            failure = going.failure()
        assert failure is None
        execution, output = harness.execution(going.id), harness.output(going.id)
        what = f"{name}: {execution.state} {execution.outcome} {harness.system(going.id)}"
        assert execution.outcome is not None, what
        count = counting.counts()[name]
        if execution.outcome.exit_code == 7:
            assert (count, output.stdout, output.gaps) == (1, b"ran\n", []), what
            ran += 1
        else:
            assert execution.outcome.reason is not Reason.UNSPECIFIED, what
            assert count <= 1, what
    assert ran > ROUNDS // 2
    assert max(counting.counts().values()) == 1
