"""A server is told to end by SIGTERM and the next one goes on: readers notice a pause, jobs nothing, and no hanging
thing delays it."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from fastlane_grpc.client import Backoff
from fastlane_grpc.model import CaptureMode
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import engine_address
from tests.proxy import Proxy
from tests.reading import Reader
from tests.recorder_program import eventually
from tests.registry import registry_for
from tests.serving import clear, within
from tests.succession import Succession
from tests.tally import tally

pytestmark = pytest.mark.engine

# Prints for as long as it takes the next server to listen again, and then what must arrive whole.
TICKS = "echo begin; until [ -e /tmp/go ]; do echo tick; sleep 0.02; done; seq 1 20000; exit 7"
NUMBERS = b"".join(b"%d\n" % number for number in range(1, 20001))
UPGRADES = int(os.environ.get("CHAOS_ROUNDS", "2"))
# What an operator, or the init system, notices.
QUICK_SECONDS = 5


class HandoverHarness(Succession):
    """Servers that hand their containers over to the next one."""

    def __init__(self, data_dir: Path, sdk: docker.DockerClient, image: str, capture: CaptureMode) -> None:
        super().__init__(data_dir, sdk, image, backoff=Backoff(0.05, 0.2), capture=capture)
        self.capture = capture

    def start(self, script: str, image: str = "") -> str:
        """The id of a new job's execution."""
        return self.client.enqueue("handover", image or self.image, args=["sh", "-c", script]).execution.id

    def readers(self, execution_id: str, count: int) -> Sequence[Reader]:
        return [Reader(self.client, execution_id) for _ in range(count)]

    def go(self, execution_id: str) -> None:
        self.sdk.containers.get(self.client.execution(execution_id).container_id).exec_run("touch /tmp/go")

    def close(self) -> None:
        self.client.close()
        for server in self.servers:
            server.kill()
        clear(self.sdk, self.data_dir)


@pytest.fixture
def harness(tmp_path: Path, sdk: docker.DockerClient, image: str, capture: CaptureMode) -> Iterator[HandoverHarness]:
    harness = HandoverHarness(tmp_path / "data", sdk, image, capture)
    yield harness
    harness.close()


def goes_on(log: Reader) -> Callable[[], bool]:
    """Whether what the container prints from now on is heard."""
    had, gaps = len(log.data[pb.SOURCE_STDOUT]), len(log.gaps)
    return lambda: len(log.gaps) > gaps or len(log.data[pb.SOURCE_STDOUT]) > had


def test_readers_go_on_with_the_next_server_by_themselves(harness: HandoverHarness) -> None:
    first = harness.server()
    execution_id = harness.start(TICKS)
    logs = [*harness.readers(execution_id, 4)]
    for log in logs:
        log.wait_for_output(b"begin\ntick\n")
    with within(QUICK_SECONDS):
        assert first.stop() == 0
    heard = [goes_on(log) for log in logs]
    harness.server()
    for log, true in zip(logs, heard, strict=True):
        log.wait_for(true)
    logs += harness.readers(execution_id, 1)
    harness.go(execution_id)
    for log in logs:
        assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, 7)
        assert log.stdout.endswith(b"tick\n" + NUMBERS)
        assert {gap.cause for gap in log.gaps} == (
            {pb.LogGap.CAUSE_ENGINE} if harness.capture is CaptureMode.ATTACH else set()
        )
    assert all(log.cuts for log in logs[:4])
    assert len({log.stdout for log in logs}) == 1
    assert len({tuple(log.gaps) for log in logs}) == 1


def test_of_upgrades_one_after_another_no_client_sees_an_error(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    harness = HandoverHarness(tmp_path / "data", sdk, image, CaptureMode.RECORDER)
    server = harness.server()
    execution_id = harness.start(TICKS)
    logs = harness.readers(execution_id, 4)
    jobs: list[str] = []
    done = threading.Event()

    def enqueue() -> None:
        while not done.wait(0.3):
            # The client repeats a call that met no server, and the next one stores its job once.
            jobs.append(harness.client.enqueue("beside", image, args=["sh", "-c", "exit 7"]).id)

    try:
        with ThreadPoolExecutor(1) as thread:
            enqueuing = thread.submit(enqueue)
            for _ in range(UPGRADES):
                for log in logs:
                    log.wait_for(goes_on(log))
                with within(QUICK_SECONDS):
                    assert server.stop() == 0
                tally()
                server = harness.server()
            done.set()
            enqueuing.result(60)
        harness.go(execution_id)
        for log in logs:
            assert (log.end().exit_status, log.gaps) == (7, [])
            assert log.stdout.endswith(b"tick\n" + NUMBERS)
            assert log.cuts >= UPGRADES
        assert len({log.stdout for log in logs}) == 1
        assert len(set(jobs)) == len(jobs) > 0
        for job_id in jobs:
            eventually(lambda job_id=job_id: harness.client.job(job_id).state == pb.STATE_FAILED)
            assert (harness.client.job(job_id).executions, harness.client.job(job_id).outcome.exit_code) == (1, 7)
    finally:
        done.set()
        harness.close()


def test_what_has_not_begun_is_begun_by_the_next_server(harness: HandoverHarness, sdk: docker.DockerClient) -> None:
    with registry_for(sdk) as registry:
        first = harness.server(max_running=1)
        [pulling] = harness.readers(harness.start("echo pulled", f"{registry.name}/hanging/image"), 1)
        assert registry.asked.wait(60)
        [queued] = harness.readers(harness.start("echo ran"), 1)
        pulling.wait_for_state(pb.STATE_PREPARING)
        queued.wait_for_state(pb.STATE_QUEUED)
        with within(QUICK_SECONDS):
            assert first.stop() == 0
        registry.release.set()
        harness.server(max_running=1)
        assert (pulling.end().exit_status, queued.end().exit_status) == (0, 0)
    assert (pulling.stdout, queued.stdout) == (b"pulled\n", b"ran\n")
    assert pulling.gaps == queued.gaps == []


@pytest.mark.slow
def test_an_engine_that_hangs_delays_no_end(harness: HandoverHarness, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "engine.sock", engine_address().removeprefix("unix://"))
    try:
        first = harness.server(engine=proxy.address)
        running_id = harness.start(TICKS)
        [running] = harness.readers(running_id, 1)
        running.wait_for_state(pb.STATE_RUNNING)
        running.wait_for_output(b"tick\n")
        proxy.freeze()
        [preparing] = harness.readers(harness.start("echo ran"), 1)
        preparing.wait_for_state(pb.STATE_PREPARING)
        with within(QUICK_SECONDS):
            assert first.stop() == 0
        # Nor is a server delayed that found the engine hanging when it came.
        second = harness.server(engine=proxy.address)
        assert harness.client.execution(running_id).state == pb.STATE_RUNNING
        with within(QUICK_SECONDS):
            assert second.stop() == 0
        heard = goes_on(running)
        proxy.thaw()
        harness.server(engine=proxy.address)
        running.wait_for(heard)
        harness.go(running_id)
        assert (running.end().exit_status, preparing.end().exit_status) == (7, 0)
        assert running.stdout.endswith(NUMBERS)
        assert preparing.stdout == b"ran\n"
    finally:
        proxy.shut()
