"""Where the images of jobs come from: the host, by tag and by id, and a real registry with a port; when one is pulled,
and when not."""

from collections.abc import Iterator

import docker
import pytest
from docker.errors import ImageNotFound

from fastlane_grpc.client import Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.docker_registry import DockerRegistry, docker_registry
from tests.reading import Reader, outcome, run
from tests.serving import serving_on

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient) -> Iterator[Client]:
    with serving_on(sdk, tmp_path_factory.mktemp("images") / "data") as server, Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient, image: str
) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry"), sdk, image) as registry:
        yield registry


# -- on the host


def test_an_image_of_the_host_is_found_by_tag_and_by_id(client: Client, sdk: docker.DockerClient, image: str) -> None:
    image_id = str(sdk.images.get(image).id)
    for name in (image, image_id):
        log = run(client, name, "echo", "here", pull_policy="never")
        assert log.stdout == b"here\n"
        assert log.execution().image_digest == image_id
        assert client.job(log.execution().job_id).spec.image == name
        assert "pulling" not in log.system


def test_an_image_that_is_not_there_and_must_not_be_pulled_ends_the_job(client: Client) -> None:
    log = run(client, "nobody/has-this:1", pull_policy="never")
    assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, 125)
    assert outcome(log).reason == pb.REASON_IMAGE_NOT_PRESENT
    assert "nobody/has-this:1" in outcome(log).detail
    assert "pulling" not in log.system


# -- from a registry


def test_an_image_is_pulled_from_a_registry_by_tag_and_then_not_again(client: Client, registry: DockerRegistry) -> None:
    registry.push("greet/hello:v1", "from the registry")
    name = f"{registry.address}/greet/hello:v1"
    log = run(client, name)
    assert (log.end().exit_status, log.stdout) == (0, b"from the registry\n")
    assert f"pulling {name}" in log.system
    assert client.job(log.execution().job_id).spec.image == name
    times = log.execution().times
    assert times.claim_time.ToNanoseconds() < times.pull_time.ToNanoseconds() < times.container_time.ToNanoseconds()
    again = run(client, name)
    assert (again.stdout, "pulling" in again.system) == (b"from the registry\n", False)


def test_an_image_is_pulled_from_a_registry_by_digest(client: Client, registry: DockerRegistry) -> None:
    digest = registry.push("greet/exact:v1", "exactly this")
    registry.push("greet/exact:v1", "something newer")
    log = run(client, f"{registry.address}/greet/exact@{digest}")
    assert (log.end().exit_status, log.stdout) == (0, b"exactly this\n")
    assert "pulling" in log.system
    # What is there by its digest does not go to the registry again.
    assert "pulling" not in run(client, f"{registry.address}/greet/exact@{digest}").system


def test_without_a_tag_it_is_latest_and_no_other(
    client: Client, registry: DockerRegistry, sdk: docker.DockerClient
) -> None:
    registry.push("greet/tags:other", "other")
    registry.push("greet/tags:latest", "latest")
    assert run(client, f"{registry.address}/greet/tags").stdout == b"latest\n"
    with pytest.raises(ImageNotFound):
        sdk.images.get(f"{registry.address}/greet/tags:other")


def test_the_pull_policy_says_whether_a_tag_that_moved_is_followed(client: Client, registry: DockerRegistry) -> None:
    name = f"{registry.address}/greet/moves:v1"
    registry.push("greet/moves:v1", "old")
    first = run(client, name)
    registry.push("greet/moves:v1", "new")
    # The push has taken the tag from the engine, so it is pulled again, whatever the policy but one.
    assert outcome(run(client, name, pull_policy="never")).reason == pb.REASON_IMAGE_NOT_PRESENT
    second = run(client, name, pull_policy="missing")
    assert (first.stdout, second.stdout) == (b"old\n", b"new\n")
    assert first.execution().image_digest != second.execution().image_digest
    # Now it is there: only one policy looks whether there is a newer one.
    registry.push("greet/moves:v2", "newest")
    registry.move("greet/moves", "v1", to="v2")
    for policy, said in (("missing", b"new\n"), ("never", b"new\n"), ("always", b"newest\n"), ("missing", b"newest\n")):
        log = run(client, name, pull_policy=policy)
        assert (log.stdout, "pulling" in log.system) == (said, policy == "always")


@pytest.mark.parametrize("name", ["greet/hello:no-such-tag", "no/such/image", f"greet/hello@sha256:{'0' * 64}"])
def test_what_the_registry_does_not_have_ends_the_job(client: Client, registry: DockerRegistry, name: str) -> None:
    registry.push("greet/hello:v1", "from the registry")
    log = run(client, f"{registry.address}/{name}")
    assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, 125)
    assert (outcome(log).reason, outcome(log).HasField("exit_code")) == (pb.REASON_IMAGE_NOT_FOUND, False)
    assert f"{registry.address}/{name}" in outcome(log).detail


def test_jobs_that_want_the_same_image_at_once_all_get_it(client: Client, registry: DockerRegistry) -> None:
    registry.push("greet/together:v1", "together")
    jobs = [client.enqueue("together", f"{registry.address}/greet/together:v1") for _ in range(5)]
    logs = [Reader(client, job.execution.id) for job in jobs]
    assert [log.end().exit_status for log in logs] == [0] * 5
    assert {log.stdout for log in logs} == {b"together\n"}
