"""The manifests of docs/deploy/kubernetes on a real cluster: a server in a pod, and a job through its Service."""

import copy
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest
import requests

from fastlane_grpc.client import Backoff, Client
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.cluster import images
from tests.cluster.account import manifests
from tests.cluster.control_plane import ADDRESS as BRIDGE_ADDRESS
from tests.cluster.kit import RELAY, recorder_program
from tests.cluster.processes import run, wait_until
from tests.cluster.relayed import lines
from tests.reading import Reader
from tests.server_image import server_image
from tests.succession import free_address

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

NAMESPACE = SERVER = "fastlane"
# That of the Service. This cluster has no DNS, by which pods would find it.
ADDRESS = "10.96.0.77"
VOLUME = "/var/lib/fastlane-volume"
# Half of the lines, and the other half when a test listens at the address.
HALVES = """
print() { while [ $1 -lt $2 ]; do set -- $(($1 + 1)) $2; printf '%098d\\n' $1; done; }
print 0 200
until nc -w 5 $0 $1 </dev/null 2>/dev/null; do sleep 0.2; done
print 200 400
echo oh >&2
exit 3"""


class Deployed:
    """The objects of the manifests in a cluster, with its own images and a volume on one of its nodes."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.node = next(iter(cluster.nodes.values()))

    def apply(self) -> None:
        """Apply the manifests as they are, but for the address of the Service."""
        from kubernetes import config, utils

        api = self.cluster.api()
        api.create_namespace({"metadata": {"name": NAMESPACE}})
        api.create_persistent_volume(self._volume())
        run(*self.node.enter("mkdir", VOLUME))
        client = config.new_client_from_config(str(self.cluster.kubeconfig))
        for each in manifests():
            utils.create_from_dict(client, with_address(each), namespace=NAMESPACE)
        for node in self.cluster.nodes.values():
            node.start_proxy()
        run("ip", "route", "replace", f"{ADDRESS}/32", "via", self.node.address)

    def pod(self) -> Any:
        """Return the server's pod; None: there is none."""
        pods = self.cluster.api().list_namespaced_pod(NAMESPACE, label_selector=f"app.kubernetes.io/name={SERVER}")
        return next(iter(pods.items), None)

    def wait_until_ready(self, *, not_uid: str = "") -> str:
        """Wait until a pod of the server is ready, another one than that with this uid. Return its uid."""
        wait_until(lambda: self._is_ready(not_uid), "the server's pod is ready")
        return str(self.pod().metadata.uid)

    def _is_ready(self, not_uid: str) -> bool:
        pod = self.pod()
        conditions = (pod.status.conditions or ()) if pod and pod.metadata.uid != not_uid else ()
        return any(each.type == "Ready" and each.status == "True" for each in conditions)

    def remove(self) -> None:
        api = self.cluster.api()
        self.cluster.remove_namespace(NAMESPACE)
        api.delete_persistent_volume(self._volume()["metadata"]["name"])
        run("ip", "route", "del", f"{ADDRESS}/32")

    def _volume(self) -> Any:
        hostname = {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.node.name]}
        return {
            "metadata": {"name": "fastlane-test"},
            "spec": {
                "capacity": {"storage": "20Gi"},
                "accessModes": ["ReadWriteOnce"],
                "local": {"path": VOLUME},
                "claimRef": {"namespace": NAMESPACE, "name": f"data-{SERVER}-0"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hostname]}]}},
            },
        }


def with_address(manifest: Any) -> Any:
    """Return an object of the manifests with the address of the Service in place of its name."""
    changed = copy.deepcopy(manifest)
    if changed["kind"] == "Service":
        changed["spec"]["clusterIP"] = ADDRESS
    if changed["kind"] == "ConfigMap":
        file = changed["data"]["fastlane.toml"]
        changed["data"]["fastlane.toml"] = file.replace(f"{SERVER}.{NAMESPACE}.svc:", f"{ADDRESS}:")
        assert changed != manifest
    return changed


def image_names() -> tuple[str, str]:
    """Return the names of the server's image and of the kit in the manifests."""
    [stateful] = [each for each in manifests() if each["kind"] == "StatefulSet"]
    [map_] = [each for each in manifests() if each["kind"] == "ConfigMap"]
    [kit] = [line for line in map_["data"]["fastlane.toml"].splitlines() if line.startswith("kit_image")]
    return stateful["spec"]["template"]["spec"]["containers"][0]["image"], kit.split('"')[1]


@pytest.fixture
def deployed(
    own_cluster: "Cluster", sdk: docker.DockerClient, python_image: str, wheel: Path, tmp_path: Path
) -> Iterator[Deployed]:
    deployed = Deployed(own_cluster)
    name, kit = image_names()
    archive, kit_archive, wheels = tmp_path / "server.tar", tmp_path / "kit.tar", tmp_path / "wheels"
    wheels.mkdir()
    with server_image(sdk, name, wheels, base=python_image, wheel=wheel, extras="[kubernetes]"):
        images.save(name, archive)
    deployed.node.import_image(archive)
    archive.unlink()
    shutil.rmtree(wheels)
    images.write(kit, {"relay": RELAY, "recorder": recorder_program()}, kit_archive, entrypoint="/relay")
    for node in own_cluster.nodes.values():
        node.import_image(kit_archive)
    deployed.apply()
    yield deployed
    deployed.remove()


def test_a_server_in_a_pod_runs_jobs_through_its_service_and_is_started_again_on_its_volume(
    deployed: Deployed,
) -> None:
    first = deployed.wait_until_ready()
    with Client(f"{ADDRESS}:7020", backoff=Backoff(0.1, 1.0)) as client:
        [host] = client.hosts()
        assert (host.kind, host.capture, host.availability) == (
            pb.EngineHost.KIND_KUBERNETES,
            pb.EngineHost.CAPTURE_RELAY,
            pb.EngineHost.AVAILABILITY_UP,
        )
        args = [HALVES, *free_address(BRIDGE_ADDRESS).split(":")]
        job = client.enqueue("t", deployed.cluster.image, args=args, entrypoint=["sh", "-c"])
        reader = Reader(client, job.execution.id)
        reader.wait_for_output(lines(200))
        deployed.cluster.api().delete_namespaced_pod(f"{SERVER}-0", NAMESPACE)
        deployed.wait_until_ready(not_uid=first)
        with socket.create_server((args[1], int(args[2]))) as listener:
            listener.accept()[0].close()
            assert reader.end().exit_status == 3
        assert reader.cuts > 0
        assert (reader.stdout, reader.stderr, reader.gaps) == (lines(400), b"oh\n", [])
        assert client.job(job.id).state == pb.STATE_FAILED
    answer = requests.get(f"http://{ADDRESS}:10000/readyz", headers={"Host": "fastlane.fastlane.svc"}, timeout=60)
    assert answer.status_code == 200, answer.text
