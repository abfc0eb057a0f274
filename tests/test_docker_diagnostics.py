"""Containers that bear our labels and are not ours: somebody committed an image from one of ours, and runs it."""

import os
from collections.abc import Iterator

import docker
import pytest
from docker.models.images import Image

from fastlane_grpc.execution import Step
from fastlane_grpc.model import State
from tests.engine import EngineHarness, Going

pytestmark = pytest.mark.engine


@pytest.fixture
def running(harness: EngineHarness) -> Going:
    going = harness.go("sh -c", "echo a; sleep 60; exit 7")
    going.wait_for(Step.RUNNING)
    return going


@pytest.fixture
def copy(running: Going, sdk: docker.DockerClient) -> Iterator[Image]:
    image = sdk.containers.get(f"fastlane-{running.id}").commit("fastlane-stranger", str(os.getpid()))
    yield image
    sdk.images.remove(image.id, force=True)


def test_the_end_of_a_stranger_is_not_the_end_of_a_job(
    harness: EngineHarness, running: Going, copy: Image, sdk: docker.DockerClient
) -> None:
    sdk.containers.run(copy.id, entrypoint="true", command=[], remove=True)
    harness.stop(running.id, grace=0)
    assert running.result().state is State.STOPPED


def test_a_stranger_is_not_swept_away(
    harness: EngineHarness, running: Going, copy: Image, sdk: docker.DockerClient
) -> None:
    stranger = sdk.containers.run(copy.id, entrypoint=["sleep", "1000"], command=[], detach=True)
    try:
        harness.stop(running.id, grace=0)
        running.result()
        harness.runner.sweep()
        stranger.reload()
        assert stranger.status == "running"
    finally:
        stranger.remove(force=True)
