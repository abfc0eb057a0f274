"""Starts that a real engine refuses: what passes is tried again in a new container, and what is final says what is
wrong."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from fastlane_grpc.docker.capture_choice import CaptureChoice
from fastlane_grpc.docker.engine import Engine, container_name
from fastlane_grpc.docker.engine_errors import EngineDown
from fastlane_grpc.execution import Step
from fastlane_grpc.execution.events import Died
from fastlane_grpc.model import Allowed, CaptureMode, Execution, Outcome, PullPolicy, Reason, State
from tests.engine import EngineHarness, Killed, by_attach, by_recorder, engine_address, opened
from tests.images import busybox, loaded_image
from tests.own_engine import IMAGE, OwnEngine
from tests.proxy import Proxy, Refusing
from tests.registry import registry_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

ONCE = "echo once; exit 7"


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


class Remover:
    """Removes the container of an execution at a step: so many times, as somebody does who prunes."""

    def __init__(self, harness: EngineHarness, sdk: docker.DockerClient, step: Step, times: int) -> None:
        self.removed: list[str] = []
        self.passed = 0
        self._harness, self._sdk, self._step, self._times = harness, sdk, step, times
        harness.on_step = self

    def __call__(self, step: Step, execution_id: str) -> None:
        if step is self._step:
            self.passed += 1
            if self.passed <= self._times:
                container = self._sdk.containers.get(container_name(execution_id))
                self.removed.append(container.id)
                container.remove()


def starts(harness: EngineHarness, since: float) -> int:
    """How often the engine started a container of this server's: the engine is asked."""
    filters = {"event": "start", "label": f"fastlane.instance={harness.store.instance}"}
    with closing(docker.DockerClient(harness.address)) as client:
        return len(list(client.api.events(since=since, until=time.time(), filters=filters, decode=True)))


# -- somebody removes the container


@pytest.mark.parametrize("step", [Step.CREATED, Step.ATTACHED, Step.FENCED])
def test_a_container_that_is_removed_before_its_start_is_made_anew(
    harness: EngineHarness, sdk: docker.DockerClient, step: Step
) -> None:
    began = time.time()
    remover = Remover(harness, sdk, step, times=2)
    execution = harness.sh(ONCE)
    assert (execution.state, outcome(execution).exit_code, outcome(execution).reason) == (
        State.FAILED,
        7,
        Reason.EXIT_CODE,
    )
    output = harness.output(execution.id)
    assert (output.stdout, output.gaps) == (b"once\n", [])
    assert len(remover.removed) == 2
    assert execution.container_id not in remover.removed
    assert harness.system(execution.id).count("No such container") == 2
    assert starts(harness, began) == 1
    assert not harness.engine.containers(harness.store.instance)


def test_a_container_that_is_removed_each_time_ends_with_the_words_of_the_engine(
    harness: EngineHarness, sdk: docker.DockerClient
) -> None:
    harness.retry_seconds = 0.4
    harness.reopen()
    remover = Remover(harness, sdk, Step.FENCED, times=1000)
    execution = harness.sh(ONCE)
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.REFUSED_BY_ENGINE)
    assert "did not start the container in several tries: " in outcome(execution).detail
    assert "No such container" in outcome(execution).detail
    assert 2 <= len(remover.removed) < 8
    assert harness.output(execution.id).stdout == b""


def test_a_stop_between_two_tries_of_a_start_ends_the_tries(harness: EngineHarness, sdk: docker.DockerClient) -> None:
    Remover(harness, sdk, Step.FENCED, times=1000)
    going = harness.go("sh -c", ONCE)
    harness.wait_for_system(going.id, "a new one is made")
    harness.stop(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)
    assert "before it was started" in outcome(execution).detail
    assert not harness.engine.containers(harness.store.instance)


def test_a_stop_before_a_start_that_is_refused_is_a_stop(harness: EngineHarness) -> None:
    execution = harness.go("true", user="nosuch", stop_at=Step.FENCED).result()
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)
    assert "it would not have started" in outcome(execution).detail


@pytest.mark.parametrize("step", [Step.PULLED, Step.CREATED, Step.ATTACHED])
def test_a_server_killed_between_two_tries_leaves_the_execution_to_the_next(
    harness: EngineHarness, sdk: docker.DockerClient, step: Step
) -> None:
    began = time.time()
    remover = Remover(harness, sdk, Step.FENCED, times=1)

    def killed(at: Step, execution_id: str) -> None:
        remover(at, execution_id)
        if remover.removed and at is step:
            raise Killed

    harness.on_step = killed
    going = harness.go("sh -c", ONCE)
    assert isinstance(going.failure(), Killed)
    harness.on_step = lambda step, execution_id: None
    harness.reopen()
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = harness.output(execution.id)
    assert (output.stdout, output.gaps) == (b"once\n", [])
    assert starts(harness, began) == 1


@by_attach
def test_a_start_refused_for_a_moment_that_a_dead_server_left_is_tried_again(
    small: "Small", small_harness: EngineHarness
) -> None:
    going = small_harness.go("sh -c", ONCE, kill_at=Step.FENCED)
    assert isinstance(going.failure(), Killed)
    small.fill()
    with (
        closing(docker.DockerClient(small.address)) as sdk,
        pytest.raises(docker.errors.APIError, match="no space left"),
    ):
        sdk.containers.get(container_name(going.id)).start()
    small.make_room()
    small_harness.reopen()
    execution = small_harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert small_harness.output(execution.id).stdout == b"once\n"


# -- the engine says one thing and does another


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path / "engine.sock", engine_address().removeprefix("unix://"))
    yield proxy
    proxy.shut()


@pytest.fixture
def doubtful(tmp_path: Path, image: str, proxy: Proxy, capture: CaptureMode) -> Iterator[EngineHarness]:
    """A harness whose engine refuses what the proxy says."""
    (tmp_path / "data").mkdir()
    with opened(tmp_path / "data", image, proxy.address, engine=engine_address(), capture=capture) as harness:
        yield harness


def test_a_start_that_is_refused_and_carried_out_all_the_same_runs_the_command_once(
    doubtful: EngineHarness, proxy: Proxy
) -> None:
    began = time.time()
    proxy.refusing = Refusing(b"/start HTTP", "context deadline exceeded", carried_out=True)
    execution = doubtful.sh(ONCE)
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = doubtful.output(execution.id)
    assert (output.stdout, output.gaps) == (b"once\n", [])
    if doubtful.capture is CaptureMode.ATTACH:
        assert starts(doubtful, began) == 1


def test_a_start_of_unknown_fate_is_repeated_only_if_the_record_proves_it_safe(
    doubtful: EngineHarness, proxy: Proxy
) -> None:
    began = time.time()
    proxy.refusing = Refusing(b"/start HTTP", "transport is closing: unavailable")
    execution = doubtful.sh(ONCE)
    if doubtful.capture is CaptureMode.RECORDER:
        assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
        assert doubtful.output(execution.id).stdout == b"once\n"
        assert starts(doubtful, began) == 1
    else:
        assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.START_UNKNOWN)
        assert "what became of the start" in outcome(execution).detail
        assert starts(doubtful, began) == 0
    assert not doubtful.engine.containers(doubtful.store.instance)


@by_attach
def test_a_container_that_somebody_else_started_and_removed_does_not_run_again(
    harness: EngineHarness, sdk: docker.DockerClient
) -> None:
    def meddle(step: Step, execution_id: str) -> None:
        if step is Step.FENCED:
            container = sdk.containers.get(container_name(execution_id))
            container.start()
            harness.wait_for_output(execution_id, b"once")
            container.remove(force=True)

    harness.on_step = meddle
    execution = harness.sh("echo once; sleep 60")
    # As the engine told of its end.
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 137)
    assert harness.output(execution.id).stdout == b"once\n"
    assert "a new one is made" not in harness.system(execution.id)


def test_the_end_of_an_earlier_container_is_not_the_end_of_the_next(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "sleep 0.5; exit 7")
    going.wait_for(Step.RUNNING)
    going.mailbox.put(Died(119, time.time_ns(), 0.0, "an earlier one"))
    assert outcome(going.result()).exit_code == 7


def test_a_signal_that_the_engine_cannot_send_for_now_does_not_cost_the_grace(
    doubtful: EngineHarness, proxy: Proxy
) -> None:
    going = doubtful.go("sh -c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
    doubtful.wait_for_output(going.id, b"ready")
    proxy.refusing = Refusing(b"/kill?", "cannot kill container: context deadline exceeded")
    doubtful.stop(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code, outcome(execution).stop_signal) == (
        State.STOPPED,
        9,
        "SIGTERM",
    )


def test_an_engine_that_cannot_describe_a_container_does_not_take_away_its_end(
    doubtful: EngineHarness, proxy: Proxy
) -> None:
    going = doubtful.go("sh -c", "echo ready; sleep 0.5; exit 7")
    going.wait_for(Step.RUNNING)
    proxy.refusing = Refusing(b"/json HTTP", "layer does not exist", times=1000)
    execution = going.result()
    assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (
        State.FAILED,
        Reason.EXIT_CODE,
        7,
    )


@by_attach
def test_an_image_that_somebody_removes_right_after_its_pull_is_pulled_again(
    doubtful: EngineHarness, proxy: Proxy, sdk: docker.DockerClient
) -> None:
    with registry_for(sdk) as registry:
        proxy.refusing = Refusing(b"/images/", "No such image", status=404)
        image = f"{registry.name}/gone/image:first"
        proxy.refusing.request = f"GET /v1.41/images/{image}/json".encode()
        execution = doubtful.sh("true", image=image, pull_policy=PullPolicy.ALWAYS)
    assert execution.state is State.SUCCEEDED
    assert doubtful.system(execution.id).count(f"pulling {image} on host ") == 2


# -- the engine's disk is full


class Small(OwnEngine):
    """An engine whose disk has room for its image and little more."""

    def start(self) -> None:
        self.disk = self.directory / "data"
        if not self.disk.exists():
            self.disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", self.disk], check=True)
        super().start()

    def fill(self) -> None:
        room = os.statvfs(self.disk)
        (self.disk / "fill").write_bytes(bytes(room.f_bavail * room.f_bsize))

    def make_room(self) -> None:
        (self.disk / "fill").unlink()


@pytest.fixture(scope="module")
def small() -> Iterator[Small]:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system: needs root")
    engine = Small()
    yield engine
    engine.remove()


@pytest.fixture
def small_harness(small: Small, tmp_path: Path, capture: CaptureMode) -> Iterator[EngineHarness]:
    with opened(tmp_path, IMAGE, small.address, capture=capture) as harness:
        yield harness


def test_a_start_is_tried_again_until_the_disk_of_the_engine_has_room(
    small: Small, small_harness: EngineHarness
) -> None:
    full: list[str] = []

    def fill(step: Step, execution_id: str) -> None:
        if step is Step.FENCED and not full:
            small.fill()
            full.append(execution_id)

    small_harness.on_step = fill
    going = small_harness.go("sh -c", ONCE, network="none")
    # Refused is the start, and then making the next container.
    small_harness.wait_for_system(going.id, "the engine did not start the container, and a new one is made")
    small_harness.wait_for_system(going.id, "the engine does not make this container for now, and is asked again")
    assert "no space left on device" in small_harness.system(going.id)
    small.make_room()
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert small_harness.output(going.id).stdout == b"once\n"


@by_recorder
def test_a_disk_of_the_engine_that_stays_full_says_what_to_do(small: Small, small_harness: EngineHarness) -> None:
    small_harness.retry_seconds = 0.3
    small_harness.reopen()
    small.fill()
    try:
        execution = small_harness.sh(ONCE)
    finally:
        small.make_room()
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.REFUSED_BY_ENGINE)
    assert "in several tries: the engine's disk is full: make room on the host" in outcome(execution).detail
    assert "no space left" in small_harness.going[execution.id].mailbox.start_failure, "it is the host's fault"


def test_a_full_disk_of_the_engine_says_nothing_of_the_recorder(small: Small, tmp_path: Path) -> None:
    captures = CaptureChoice(CaptureMode.AUTO, tmp_path, instance="i")
    small.fill()
    try:
        with pytest.raises(EngineDown, match="fails for now: the engine's disk is full"):
            captures.determine(Engine(small.address))
    finally:
        small.make_room()
    assert captures.in_use == ""
    captures.determine(Engine(small.address))
    assert captures.in_use == "recorder"


# -- what is final


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"working_dir": "/proc/self/fd/3"}, "the working directory is a file"),
        ({"working_dir": "/bin/sh"}, "the working directory is a file"),
        ({"user": "nosuch"}, "the image does not have this user or group"),
        ({"network": "nosuch"}, "the host does not have this network"),
        ({"network": "container:nosuch"}, "No such container: nosuch"),
    ],
)
def test_a_refusal_that_is_final_says_what_is_wrong_and_is_not_tried_again(
    harness: EngineHarness, more: dict[str, object], words: str
) -> None:
    if "network" in more:
        harness.allowed = Allowed(networks={str(more["network"])})
        harness.reopen()
    execution = harness.run("true", **more)
    assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (
        State.FAILED,
        Reason.REFUSED_BY_ENGINE,
        None,
    )
    assert words in outcome(execution).detail
    assert not harness.going[execution.id].mailbox.start_failure, "it is the job's fault"
    assert "several tries" not in outcome(execution).detail
    assert "asked again" not in harness.system(execution.id)


def test_an_image_with_a_file_at_the_path_of_the_recorder_has_its_own_error(
    harness: EngineHarness, sdk: docker.DockerClient
) -> None:
    files = {"bin/busybox": busybox(), ".fastlane": b"mine"}
    with loaded_image(sdk, f"{harness.image}-file", files, architecture="amd64") as name:
        execution = harness.run("/bin/busybox echo ran", image=name)
    if harness.capture is CaptureMode.ATTACH:
        assert (execution.state, harness.output(execution.id).stdout) == (State.SUCCEEDED, b"ran\n")
    else:
        assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.REFUSED_BY_ENGINE)
        assert "the image has a file /.fastlane" in outcome(execution).detail
        assert not harness.going[execution.id].mailbox.start_failure
