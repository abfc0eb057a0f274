"""Engines that are really killed, and come back as another life of themselves, with the containers or without."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Execution, Outcome, Reason, State
from fastlane_grpc.runner import HostDown
from tests.engine import EngineHarness, by_attach, by_recorder, opened
from tests.own_engine import IMAGE, OwnEngine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("dockerd"), reason="starts engines of its own: needs root and dockerd"
    ),
]

COUNT = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit 7"


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[OwnEngine]:
    engine = OwnEngine(*request.param)
    yield engine
    engine.remove()


@pytest.fixture
def harness(tmp_path: Path, engine: OwnEngine, capture: CaptureMode) -> Iterator[EngineHarness]:
    with opened(tmp_path, IMAGE, engine.address, capture=capture) as harness:
        yield harness


keeps_containers = pytest.mark.parametrize("engine", [["--live-restore"]], indirect=True, ids=["live-restore"])
ends_containers = pytest.mark.parametrize("engine", [[]], indirect=True, ids=["no-live-restore"])


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


def back(harness: EngineHarness, engine: OwnEngine) -> None:
    engine.start()
    harness.wait_until(lambda: harness.host.up)


@keeps_containers
def test_a_container_that_outlives_its_engine_is_followed_again(harness: EngineHarness, engine: OwnEngine) -> None:
    going = harness.go("sh -c", COUNT, network="none")
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"3\n")
    engine.kill()
    assert isinstance(going.failure(), HostDown)
    back(harness, engine)
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = harness.output(going.id)
    assert output.stdout.endswith(b"40\n")
    assert bool(output.gaps) == (harness.capture is CaptureMode.ATTACH)
    assert output.gaps or output.stdout == b"".join(b"%d\n" % number for number in range(1, 41))


@ends_containers
@pytest.mark.parametrize("orderly", [False, True], ids=["killed", "stopped"])
def test_a_container_that_its_engine_took_along_is_lost(
    harness: EngineHarness, engine: OwnEngine, orderly: bool
) -> None:
    # By the code of one that the engine told to end, which it may have of its own accord as well.
    going = harness.go("sh -c", "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1; done", network="none")
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id)
    if orderly:
        engine.stop()
    else:
        engine.kill()
    assert isinstance(going.failure(), HostDown)
    back(harness, engine)
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.CONTAINER_GONE)


@by_attach
@keeps_containers
def test_a_start_that_another_epoch_of_the_engine_may_have_got_is_lost_at_once(
    harness: EngineHarness, engine: OwnEngine
) -> None:
    going = harness.go("sleep 60", kill_at=Step.FENCED, network="none")
    assert going.failure()
    engine.kill()
    engine.start()
    harness.reopen()
    going = harness.adopt(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.START_UNKNOWN)
    assert "may be running" in outcome(execution).detail
    assert Step.STARTED not in going.steps


@by_recorder
@keeps_containers
def test_a_start_that_no_epoch_of_the_engine_got_is_made_anew(harness: EngineHarness, engine: OwnEngine) -> None:
    going = harness.go("sh -c", "echo once; exit 7", kill_at=Step.FENCED, network="none")
    assert going.failure()
    engine.kill()
    engine.start()
    harness.reopen()
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert (harness.output(going.id).stdout, harness.output(going.id).gaps) == (b"once\n", [])


@by_attach
@keeps_containers
def test_an_epoch_of_an_engine_ends_with_it(harness: EngineHarness, engine: OwnEngine) -> None:
    first = harness.engine.epoch()
    assert first
    assert harness.engine.epoch() == first
    engine.kill()
    back(harness, engine)
    assert harness.engine.epoch() not in {"", first}
