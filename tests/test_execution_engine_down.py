"""Engines that go away, hang, come back, or come back as another: what is known to have happened, and what is not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Execution, Outcome, Source, State
from fastlane_grpc.runner import HostDown
from tests.engine import House, engine_address, opened
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
def house(tmp_path: Path, image: str, proxy: Proxy, capture: CaptureMode) -> Iterator[House]:
    (tmp_path / "data").mkdir()
    with opened(tmp_path / "data", image, proxy.address, engine=engine_address(), capture=capture) as house:
        yield house


def broken(house: House) -> set[Source]:
    """Where output is missing that was printed while the engine was away."""
    return {Source.STDOUT, Source.STDERR} if house.capture is CaptureMode.ATTACH else set()


def at(house: House, step: Step, act: Callable[[], None]) -> None:
    """Does it once, when some execution reaches the step."""
    acts = [act]

    def once(reached: Step, execution_id: str) -> None:
        if reached is step and acts:
            acts.pop()()

    house.on_step = once


def test_a_host_says_whether_its_engine_answers(house: House, proxy: Proxy) -> None:
    assert house.host.up
    proxy.shut()
    house.wait_until(lambda: not house.host.up)
    proxy.open()
    house.wait_until(lambda: house.host.up)


def test_a_frozen_engine_is_down_though_it_takes_connections(house: House, proxy: Proxy) -> None:
    proxy.freeze()
    house.wait_until(lambda: not house.host.up)
    proxy.thaw()
    house.wait_until(lambda: house.host.up)


def test_an_engine_that_hangs_in_a_pull_gives_the_execution_back_to_the_queue(
    house: House, proxy: Proxy, sdk: docker.DockerClient
) -> None:
    with registry_for(sdk) as registry:
        going = house.go("true", image=f"{registry.name}/hanging/image:first")
        assert registry.asked.wait(30)
        proxy.freeze()
        with within(30):
            assert isinstance(going.failure(), HostDown)
        assert house.execution(going.id).state is State.QUEUED
        proxy.thaw()
        house.wait_until(lambda: house.host.up)


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.PULLED, Step.CREATED, Step.ATTACHED])
def test_an_engine_that_goes_before_the_fence_gives_the_execution_back_to_the_queue(
    house: House, proxy: Proxy, step: Step
) -> None:
    at(house, step, proxy.shut)
    going = house.go("sh -c", "echo once; exit 7")
    assert isinstance(going.failure(), HostDown)
    assert not house.host.up
    execution = house.execution(going.id)
    assert (execution.state, execution.host) == (State.QUEUED, "")
    assert house.system(execution.id).splitlines()[-1] == "host local does not answer: back in the queue"
    proxy.open()
    house.wait_until(lambda: house.host.up)
    (assignment,) = house.store.claim_on(["local"]).result()
    execution = house.adopt(assignment.execution.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert (house.output(execution.id).stdout, house.output(execution.id).gaps) == (b"once\n", [])


def test_a_stop_before_the_fence_needs_no_engine(house: House, proxy: Proxy) -> None:
    def stop_and_shut() -> None:
        house.stop(going_ids[0])
        proxy.shut()

    assignment = house.claim("true")
    going_ids = [assignment.execution.id]
    at(house, Step.CLAIMED, stop_and_shut)
    assert house.adopt(assignment.execution.id).result().state is State.STOPPED


def test_a_running_container_outlives_the_engine_s_absence(house: House, proxy: Proxy) -> None:
    going = house.go("sh -c", COUNT)
    going.wait_for(Step.RUNNING)
    house.wait_for_output(going.id, b"3\n")
    proxy.shut()
    assert isinstance(going.failure(), HostDown)
    assert house.execution(going.id).state is State.RUNNING
    proxy.open()
    house.wait_until(lambda: house.host.up)
    execution = house.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = house.output(going.id)
    assert output.stdout.startswith(b"1\n2\n3\n")
    assert output.stdout.endswith(b"15\n")
    assert {gap.source for gap in output.gaps} == broken(house)
    assert output.gaps or output.stdout.split() == [f"{number}".encode() for number in range(1, 16)]


def test_a_frozen_engine_costs_a_running_container_nothing(house: House, proxy: Proxy) -> None:
    going = house.go("sh -c", COUNT)
    going.wait_for(Step.RUNNING)
    house.wait_for_output(going.id, b"3\n")
    proxy.freeze()
    house.wait_until(lambda: not house.host.up)
    proxy.thaw()
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = house.output(going.id)
    assert output.stdout.split() == [f"{number}".encode() for number in range(1, 16)]


def test_a_start_whose_answer_is_lost_is_not_sent_again(house: House, proxy: Proxy) -> None:
    proxy.lose_answer_to = b"/start HTTP"
    going = house.go("sh -c", "echo once; sleep 1; exit 7")
    assert isinstance(going.failure(), HostDown)
    assert proxy.lost.is_set()
    proxy.lose_answer_to = b""
    assert house.execution(going.id).starting
    again = house.adopt(going.id)
    execution = again.result()
    assert Step.STARTED not in again.steps
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = house.output(going.id)
    assert output.stdout in ({b"", b"once\n"} if output.gaps else {b"once\n"})
    assert {gap.source for gap in output.gaps} == broken(house)


def test_an_end_that_was_not_told_is_found_when_the_engine_is_back(
    house: House, proxy: Proxy, sdk: docker.DockerClient
) -> None:
    going = house.go("sh -c", "sleep 0.5; exit 7")
    going.wait_for(Step.RUNNING)
    proxy.shut()
    assert isinstance(going.failure(), HostDown)
    sdk.containers.get(house.execution(going.id).container_name).wait()
    proxy.open()
    house.wait_until(lambda: house.host.up)
    execution = house.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
