"""Images that are, or say that they are, for another architecture than the host's."""

from collections.abc import Mapping
from typing import ClassVar

import docker
import pytest

from fastlane_grpc.execution.architecture import foreign_image
from fastlane_grpc.execution.final_state import failed
from fastlane_grpc.model import CaptureMode, Execution, Outcome, Reason, State
from tests.engine import EngineHarness, by_attach, capture_of
from tests.images import busybox, for_another_architecture, loaded_image
from tests.tools import tool

on_engine = [pytest.mark.engine, pytest.mark.timeout(120)]

FAILED = failed(Reason.EXIT_CODE, "exited with 1")


@pytest.fixture(scope="module")
def files() -> Mapping[str, bytes]:
    assert tool("busybox")
    return {
        "bin/busybox": busybox(),
        "foreign": for_another_architecture(busybox()),
        "script": b"echo no interpreter\n",
    }


@pytest.fixture
def host_architecture(sdk: docker.DockerClient) -> str:
    return str(sdk.version()["Arch"])


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


@pytest.mark.parametrize(
    ("image", "host", "reason"),
    [
        ("s390x", "amd64", Reason.IMAGE_UNUSABLE),
        ("arm64", "amd64", Reason.IMAGE_UNUSABLE),
        ("amd64", "arm64", Reason.IMAGE_UNUSABLE),
        ("x86_64", "amd64", Reason.EXIT_CODE),
        ("386", "amd64", Reason.EXIT_CODE),
        ("", "amd64", Reason.EXIT_CODE),
        ("amd64", "", Reason.EXIT_CODE),
    ],
)
def test_an_image_is_foreign_only_if_it_says_so(image: str, host: str, reason: Reason) -> None:
    assert foreign_image(FAILED, "exec /x: exec format error", (image, host)).outcome.reason is reason


class TestOnAnEngine:
    pytestmark: ClassVar = on_engine

    @pytest.mark.parametrize("architecture", ["386", "s390x", ""], ids=["386", "s390x", "unlabelled"])
    def test_a_program_of_the_host_s_runs_whatever_its_image_is_labelled(
        self, harness: EngineHarness, sdk: docker.DockerClient, files: Mapping[str, bytes], architecture: str
    ) -> None:
        with loaded_image(sdk, f"{harness.image}-label", files, architecture=architecture) as name:
            execution = harness.run("/bin/busybox echo ran", image=name)
        assert (execution.state, harness.output(execution.id).stdout) == (State.SUCCEEDED, b"ran\n")
        # Whatever it is labelled, the host's own recorder serves it.
        assert capture_of(execution) == harness.capture

    def test_a_foreign_program_that_cannot_be_executed_makes_the_image_unusable(
        self, harness: EngineHarness, sdk: docker.DockerClient, files: Mapping[str, bytes], host_architecture: str
    ) -> None:
        with loaded_image(sdk, f"{harness.image}-foreign", files, architecture="s390x") as name:
            execution = harness.run("/foreign", image=name)
        assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (
            State.FAILED,
            Reason.IMAGE_UNUSABLE,
            None,
        )
        detail = outcome(execution).detail
        assert f"the image is for s390x and the host is {host_architecture}" in detail
        assert "xec format error" in detail
        assert "/foreign" in detail
        assert detail in harness.system(execution.id)

    @pytest.mark.parametrize("program", ["/foreign", "/script"])
    def test_a_program_of_an_image_of_the_host_s_architecture_is_itself_at_fault(
        self,
        harness: EngineHarness,
        sdk: docker.DockerClient,
        files: Mapping[str, bytes],
        host_architecture: str,
        program: str,
    ) -> None:
        with loaded_image(sdk, f"{harness.image}-own", files, architecture=host_architecture) as name:
            execution = harness.run(program, image=name)
        assert execution.state is State.FAILED
        if harness.capture is CaptureMode.RECORDER:
            assert outcome(execution).reason is Reason.COMMAND_NOT_EXECUTABLE
            assert (
                "another architecture, or a script whose first line does not name an interpreter"
                in outcome(execution).detail
            )
        else:
            # The runtime had begun: nobody can tell what it prints and exits with from what the command does.
            assert outcome(execution).reason is Reason.EXIT_CODE
            assert b"exec format error" in harness.output(execution.id).stderr

    @by_attach
    def test_a_job_that_prints_more_than_the_runtime_ended_by_itself(
        self, harness: EngineHarness, sdk: docker.DockerClient, files: Mapping[str, bytes]
    ) -> None:
        with loaded_image(sdk, f"{harness.image}-prints", files, architecture="s390x") as name:
            execution = harness.run(
                "/bin/busybox sh -c", "echo before; echo 'exec /x: exec format error' >&2; exit 1", image=name
            )
        assert (outcome(execution).reason, outcome(execution).exit_code) == (Reason.EXIT_CODE, 1)
