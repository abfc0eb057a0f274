"""Engines that go away, hang, come back, or come back as another: what is known to have happened, and what is not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from fastlane_grpc.docker.engine import container_name
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Execution, Outcome, Source, State
from fastlane_grpc.runner import HostDown
from tests.engine import EngineHarness, engine_address, opened
from tests.proxy import Proxy
from tests.registry import registry_for
from tests.serving import within

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

COUNT = "i=0; while [ $i -lt 15 ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit 7"


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path / "engine.sock", engine_address().removeprefix("unix://"))
    yield proxy
    proxy.shut()


@pytest.fixture
def harness(tmp_path: Path, image: str, proxy: Proxy, capture: CaptureMode) -> Iterator[EngineHarness]:
    (tmp_path / "data").mkdir()
    with opened(tmp_path / "data", image, proxy.address, engine=engine_address(), capture=capture) as harness:
        yield harness


def broken(harness: EngineHarness) -> set[Source]:
    """Where output is missing that was printed while the engine was away."""
    return {Source.STDOUT, Source.STDERR} if harness.capture is CaptureMode.ATTACH else set()


def at(harness: EngineHarness, step: Step, act: Callable[[], None]) -> None:
    """Does it once, when some execution reaches the step."""
    acts = [act]

    def once(reached: Step, execution_id: str) -> None:
        if reached is step and acts:
            acts.pop()()

    harness.on_step = once


def test_a_host_says_whether_its_engine_answers(harness: EngineHarness, proxy: Proxy) -> None:
    assert harness.host.up
    proxy.shut()
    harness.wait_until(lambda: not harness.host.up)
    proxy.open()
    harness.wait_until(lambda: harness.host.up)


def test_a_frozen_engine_is_down_though_it_takes_connections(harness: EngineHarness, proxy: Proxy) -> None:
    proxy.freeze()
    harness.wait_until(lambda: not harness.host.up)
    proxy.thaw()
    harness.wait_until(lambda: harness.host.up)


def test_an_engine_that_hangs_in_a_pull_gives_the_execution_back_to_the_queue(
    harness: EngineHarness, proxy: Proxy, sdk: docker.DockerClient
) -> None:
    with registry_for(sdk) as registry:
        going = harness.go("true", image=f"{registry.name}/hanging/image:first")
        assert registry.asked.wait(30)
        proxy.freeze()
        with within(30):
            assert isinstance(going.failure(), HostDown)
        assert harness.execution(going.id).state is State.QUEUED
        proxy.thaw()
        harness.wait_until(lambda: harness.host.up)


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.PULLED, Step.CREATED, Step.ATTACHED])
def test_an_engine_that_goes_before_the_fence_gives_the_execution_back_to_the_queue(
    harness: EngineHarness, proxy: Proxy, step: Step
) -> None:
    at(harness, step, proxy.shut)
    going = harness.go("sh -c", "echo once; exit 7")
    assert isinstance(going.failure(), HostDown)
    assert not harness.host.up
    execution = harness.execution(going.id)
    assert (execution.state, execution.host) == (State.QUEUED, "")
    assert harness.system(execution.id).splitlines()[-1] == "host local does not answer: back in the queue"
    proxy.open()
    harness.wait_until(lambda: harness.host.up)
    (assignment,) = harness.store.claim_on(["local"]).result()
    execution = harness.adopt(assignment.execution.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert (harness.output(execution.id).stdout, harness.output(execution.id).gaps) == (b"once\n", [])


def test_a_stop_before_the_fence_needs_no_engine(harness: EngineHarness, proxy: Proxy) -> None:
    def stop_and_shut() -> None:
        harness.stop(going_ids[0])
        proxy.shut()

    assignment = harness.claim("true")
    going_ids = [assignment.execution.id]
    at(harness, Step.CLAIMED, stop_and_shut)
    assert harness.adopt(assignment.execution.id).result().state is State.STOPPED


def test_a_running_container_outlives_the_engine_s_absence(harness: EngineHarness, proxy: Proxy) -> None:
    going = harness.go("sh -c", COUNT)
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"3\n")
    proxy.shut()
    assert isinstance(going.failure(), HostDown)
    assert harness.execution(going.id).state is State.RUNNING
    proxy.open()
    harness.wait_until(lambda: harness.host.up)
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = harness.output(going.id)
    assert output.stdout.startswith(b"1\n2\n3\n")
    assert output.stdout.endswith(b"15\n")
    assert {gap.source for gap in output.gaps} == broken(harness)
    assert output.gaps or output.stdout.split() == [f"{number}".encode() for number in range(1, 16)]


def test_a_frozen_engine_costs_a_running_container_nothing(harness: EngineHarness, proxy: Proxy) -> None:
    going = harness.go("sh -c", COUNT)
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"3\n")
    proxy.freeze()
    harness.wait_until(lambda: not harness.host.up)
    proxy.thaw()
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = harness.output(going.id)
    assert output.stdout.split() == [f"{number}".encode() for number in range(1, 16)]


def test_a_start_whose_answer_is_lost_is_not_sent_again(harness: EngineHarness, proxy: Proxy) -> None:
    proxy.lose_answer_to = b"/start HTTP"
    going = harness.go("sh -c", "echo once; sleep 1; exit 7")
    assert isinstance(going.failure(), HostDown)
    assert proxy.lost.is_set()
    proxy.lose_answer_to = b""
    assert harness.execution(going.id).starting
    again = harness.adopt(going.id)
    execution = again.result()
    assert Step.STARTED not in again.steps
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = harness.output(going.id)
    assert output.stdout in ({b"", b"once\n"} if output.gaps else {b"once\n"})
    assert {gap.source for gap in output.gaps} == broken(harness)


def test_an_end_that_was_not_told_is_found_when_the_engine_is_back(
    harness: EngineHarness, proxy: Proxy, sdk: docker.DockerClient
) -> None:
    going = harness.go("sh -c", "sleep 0.5; exit 7")
    going.wait_for(Step.RUNNING)
    proxy.shut()
    assert isinstance(going.failure(), HostDown)
    sdk.containers.get(container_name(going.id)).wait()
    proxy.open()
    harness.wait_until(lambda: harness.host.up)
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
