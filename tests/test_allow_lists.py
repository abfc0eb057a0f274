"""Networks and volumes of an engine, which jobs may use as far as the operator allows it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import grpc
import pytest

from fastlane_grpc.api.allow_lists import AllowLists
from fastlane_grpc.app import Server
from fastlane_grpc.client import Client, Device, InvalidRequest, Volume
from fastlane_grpc.config import HostSettings, KubernetesHostSettings, PoolSettings, Settings
from fastlane_grpc.model import Device as ModelDevice
from fastlane_grpc.model import Gpus, HostKind, JobSpec
from fastlane_grpc.model import Volume as ModelVolume
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.reading import outcome, run
from tests.serving import serving_on


@pytest.fixture
def name(sdk: docker.DockerClient) -> Iterator[str]:
    """The name of a network and of a volume of the engine."""
    name = f"fastlane-test-{uuid4().hex[:12]}"
    network, volume = sdk.networks.create(name, internal=True), sdk.volumes.create(name)
    yield name
    network.remove()
    volume.remove(force=True)


@pytest.mark.engine
@pytest.mark.parametrize("capture", ["recorder", "attach"])
def test_jobs_use_what_is_allowed_and_nothing_else(
    tmp_path: Path, sdk: docker.DockerClient, image: str, name: str, capture: str
) -> None:
    data_dir, volume = tmp_path / "data", Volume(name, "/kept")
    settings: dict[str, Any] = {"allow_networks": name, "allow_volumes": name, "capture": capture}
    settings |= {"allow_devices": "/dev/full,/dev/nothing-here", "allow_gpus": "true"}
    with serving_on(sdk, data_dir, **settings) as server, Client(server.address) as client:
        run(client, image, "sh", "-c", "echo kept >/kept/file", volumes=[volume])
        log = run(client, image, "sh", "-c", "cat /kept/file", volumes=[volume])
        assert log.stdout == b"kept\n"
        log = run(client, image, "touch", "/kept/file", volumes=[Volume(name, "/kept", read_only=True)])
        assert b"Read-only file system" in log.stderr
        subnet = sdk.networks.get(name).attrs["IPAM"]["Config"][0]["Subnet"]
        assert f"\n{subnet} dev eth0" in "\n" + run(client, image, "ip", "route", network=name).stdout.decode()
        if capture == "recorder":
            check_devices(client, image)
        others = ({"network": "other"}, {"volumes": [Volume("other", "/kept")]}, {"devices": ["/dev/other"]})
        for options in others:
            with pytest.raises(InvalidRequest, match="other' is not allowed on host 'local'"):
                client.enqueue("t", image, **options)  # type: ignore[arg-type]
        client.update_task("t", paused=True)
        waiting = client.enqueue("t", image, "true", network=name, volumes=[volume], request_id="r")
    with serving_on(sdk, data_dir, capture=capture) as server, Client(server.address) as client:
        assert client.enqueue("t", image, "true", network=name, volumes=[volume], request_id="r").id == waiting.id
        client.update_task("t", paused=False)
        for _ in client.tail_job(waiting.id):
            pass
        refused = client.job(waiting.id).outcome
    assert refused.reason == pb.REASON_REFUSED_BY_ENGINE
    assert f"host 'local' does not allow the network {name!r} and the volume {name!r}: see allow_n" in refused.detail


def check_devices(client: Client, image: str) -> None:
    device = Device("/dev/full", "/dev/to-the-brim", "r")
    log = run(client, image, "head", "-c", "3", "/dev/to-the-brim", devices=[device])
    assert log.stdout == bytes(3)
    refused = (({"devices": ["/dev/nothing-here"]}, "devices: the host"), ({"gpus": 1}, "gpus: the engine"))
    for options, field in refused:
        ended = outcome(run(client, image, "true", **options))
        assert ended.reason == pb.REASON_REFUSED_BY_ENGINE
        assert field in ended.detail


@pytest.mark.engine
def test_a_network_that_the_engine_does_not_have_is_its_refusal(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    with serving_on(sdk, tmp_path / "data", allow_networks="gone") as server, Client(server.address) as client:
        ended = outcome(run(client, image, "true", network="gone"))
    assert (ended.reason, "gone" in ended.detail) == (pb.REASON_REFUSED_BY_ENGINE, True)


def test_a_job_may_use_what_every_host_of_its_pool_allows(tmp_path: Path) -> None:
    hosts = (
        HostSettings("a", "unix:///a", allow_networks=("builds",), allow_volumes=("cache",)),
        HostSettings("b", "unix:///b", allow_networks=("builds",)),
        HostSettings("c", "unix:///c"),
    )
    pools = (PoolSettings("big", "build-*", ("a", "b")), PoolSettings("small", "cached", ("a",)))
    lists = AllowLists(Settings(data_dir=tmp_path, hosts=hosts, pools=pools))
    spec = JobSpec("i", network="builds", volumes=[ModelVolume("cache", "/c")])

    def refused(task_id: str) -> list[tuple[str, str]]:
        return [(each.field, each.description.partition(" on ")[2][:8]) for each in lists.violations(task_id, spec)]

    assert refused("cached") == []
    assert refused("build-1") == [("spec.volumes[0].name", "host 'b'")]
    assert refused("other") == [("spec.network", "host 'c'"), ("spec.volumes[0].name", "host 'c'")]
    assert list(lists.violations("other", JobSpec("i", network="none"))) == []


def test_devices_and_gpus_are_used_where_every_host_allows_them(tmp_path: Path) -> None:
    hosts = (
        HostSettings("a", "unix:///a", allow_devices=("/dev/fuse", "/dev/kvm"), allow_gpus=True),
        HostSettings("b", "unix:///b", allow_devices=("/dev/kvm",)),
    )
    pools = (PoolSettings("small", "gpu", ("a",)), PoolSettings("all", "*", ("a", "b")))
    lists = AllowLists(Settings(data_dir=tmp_path, hosts=hosts, pools=pools))
    spec = JobSpec("i", devices=[ModelDevice("/dev/kvm"), ModelDevice("/dev/fuse")], gpus=Gpus(1))
    assert list(lists.violations("gpu", spec)) == []
    assert [(each.field, each.description.partition(",")[0]) for each in lists.violations("other", spec)] == [
        ("spec.devices[1].path", "the device '/dev/fuse' is not allowed on host 'b'"),
        ("spec.gpus", "the use of GPUs is not allowed on host 'b'"),
    ]


def test_gpus_of_a_cluster_are_used_where_it_names_their_resource(tmp_path: Path) -> None:
    def told(resource: str) -> list[str]:
        pods = KubernetesHostSettings("pods", HostKind.KUBERNETES, "jobs", gpu_resource=resource)
        lists = AllowLists(Settings(data_dir=tmp_path, hosts=(pods,)))
        return [each.description for each in lists.violations("t", JobSpec("i", gpus=Gpus(1)))]

    assert told("nvidia.com/gpu") == []
    assert told("") == ["the use of GPUs is not allowed on host 'pods', which may run the job: see gpu_resource"]


async def test_jobs_of_one_batch_use_what_the_hosts_of_their_own_tasks_allow(tmp_path: Path) -> None:
    hosts = (
        HostSettings("a", f"unix://{tmp_path}/a", allow_networks=("builds",)),
        HostSettings("b", f"unix://{tmp_path}/b"),
    )
    settings = Settings(
        data_dir=tmp_path / "data",
        listen="127.0.0.1:0",
        http_listen="",
        hosts=hosts,
        pools=(PoolSettings("small", "cached", ("a",)),),
    )
    spec = pb.JobSpec(image="busybox", network="builds")
    requests = [pb.EnqueueJobRequest(task_id=task_id, spec=spec) for task_id in ("cached", "other", "cached")]
    async with Server(settings) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        jobs = pb_grpc.JobServiceStub(channel)
        answered = await jobs.BatchEnqueueJobs(pb.BatchEnqueueJobsRequest(requests=requests))
    assert [each.WhichOneof("result") for each in answered.results] == ["enqueued", "rejection", "enqueued"]
