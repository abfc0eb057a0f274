"""An engine that hangs: what the recorder of a container is told, it is told without the engine, and in time."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import docker
import pytest

from fastlane_grpc.docker.engine import container_name
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, State
from fastlane_grpc.record import Trailer
from tests.engine import EngineHarness, Going, by_recorder, opened
from tests.own_engine import IMAGE, OwnEngine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("dockerd"), reason="starts engines of its own: needs root and dockerd"
    ),
    by_recorder,
]

LOOP = "while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def engine() -> Iterator[OwnEngine]:
    engine = OwnEngine()
    yield engine
    engine.remove()


@pytest.fixture
def harness(tmp_path: Path, engine: OwnEngine, capture: CaptureMode) -> Iterator[EngineHarness]:
    with opened(tmp_path, IMAGE, engine.address, capture=capture) as harness:
        yield harness
        engine.thaw()


def runs(harness: EngineHarness, script: str, timeout: float | None = None) -> Going:
    going = harness.go(
        "sh -c", f"{script}; echo ready; {LOOP}", network="none", timeout=timeout and timedelta(seconds=timeout)
    )
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"ready\n")
    return going


def sealed_by(harness: EngineHarness, going: Going, until: float) -> Trailer:
    """The end of a record, which its recorder has written by then."""
    while not (trailer := harness.output(going.id).trailer):
        assert time.monotonic() < until, "it was not ended in time"
        time.sleep(0.02)
    return trailer


def test_stop_timeout_and_kill_are_carried_out_while_the_engine_hangs(
    harness: EngineHarness, engine: OwnEngine
) -> None:
    obeys, resists = runs(harness, "trap 'echo told; exit 3' TERM"), runs(harness, "trap '' TERM")
    times_out = runs(harness, "trap 'exit 4' TERM", timeout=4)
    engine.freeze()
    begin = time.monotonic()
    harness.stop(obeys.id, grace=60)
    harness.stop(resists.id, grace=1)
    # An engine that hangs is asked for nothing: it would be waited for for half a minute.
    assert sealed_by(harness, obeys, begin + 5).exit_code == 3
    trailer = sealed_by(harness, resists, begin + 8)
    assert (trailer.exit_code, trailer.facts["hard_stop"]) == (137, True)
    assert sealed_by(harness, times_out, begin + 10).exit_code == 4
    engine.thaw()
    states = [going.result().state for going in (obeys, resists, times_out)]
    assert states == [State.STOPPED, State.STOPPED, State.TIMED_OUT]
    assert harness.output(obeys.id).stdout == b"ready\ntold\n"
    assert "sent SIGKILL" in harness.system(resists.id)


def test_a_recorder_that_does_not_hear_is_killed_while_the_engine_hangs(
    harness: EngineHarness, engine: OwnEngine
) -> None:
    going = runs(harness, "true")
    with closing(docker.DockerClient(engine.address)) as sdk:
        recorder = int(sdk.containers.get(container_name(going.id)).attrs["State"]["Pid"])
    engine.freeze()
    os.kill(recorder, signal.SIGSTOP)
    begin = time.monotonic()
    harness.stop(going.id, grace=0)
    while Path(f"/proc/{recorder}").exists():
        assert time.monotonic() < begin + 20, "it was not killed in time"
        time.sleep(0.05)
    engine.thaw()
    assert going.result().state is State.STOPPED


def test_a_container_that_is_paused_goes_on_to_be_stopped(harness: EngineHarness, engine: OwnEngine) -> None:
    """Signals that it was sent without its engine wait until it goes on."""
    going = runs(harness, "trap 'echo told; exit 3' TERM")
    with closing(docker.DockerClient(engine.address)) as sdk:
        sdk.containers.get(container_name(going.id)).pause()
    harness.stop(going.id, grace=60)
    execution = going.result()
    assert (execution.state, harness.output(going.id).stdout) == (State.STOPPED, b"ready\ntold\n")
