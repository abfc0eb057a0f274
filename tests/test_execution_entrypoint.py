"""Images whose entrypoint was taken away, as `ENTRYPOINT [""]` does: the engine and the recorder make the same of
them."""

from collections.abc import Mapping

import docker
import pytest

from fastlane_grpc.model import Execution, Outcome, Reason, State
from tests.engine import EngineHarness
from tests.images import busybox, loaded_image

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def files() -> Mapping[str, bytes]:
    return {"bin/busybox": busybox()}


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


@pytest.mark.parametrize(
    ("asked", "printed"),
    [({}, b"from the image\n"), ({"args": ("/bin/busybox", "echo", "from the job")}, b"from the job\n")],
    ids=["image", "job"],
)
def test_an_image_whose_entrypoint_was_taken_away_runs_its_command(
    harness: EngineHarness,
    sdk: docker.DockerClient,
    files: Mapping[str, bytes],
    asked: Mapping[str, tuple[str, ...]],
    printed: bytes,
) -> None:
    config = {"Entrypoint": [""], "Cmd": ["/bin/busybox", "echo", "from the image"]}
    with loaded_image(sdk, f"{harness.image}-reset", files, architecture="amd64", **config) as name:
        execution = harness.run("", *asked.get("args", ()), image=name)
    assert (execution.state, harness.output(execution.id).stdout) == (State.SUCCEEDED, printed)


def test_an_image_whose_entrypoint_was_taken_away_and_that_has_no_command_has_none(
    harness: EngineHarness, sdk: docker.DockerClient, files: Mapping[str, bytes]
) -> None:
    with loaded_image(sdk, f"{harness.image}-none", files, architecture="amd64", Entrypoint=[""]) as name:
        execution = harness.run("", image=name)
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.REFUSED_BY_ENGINE)
    assert "there is no command: neither the job nor its image says what to run" in outcome(execution).detail
