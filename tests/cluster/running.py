"""The cluster beside which a command runs, as the command finds it by its environment."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes import client, config

from tests.cluster.control_plane import ControlPlane, has_service_account
from tests.cluster.node import Node
from tests.cluster.processes import wait_until

# The variables of a command's environment.
DIRECTORY, KUBECONFIG, IMAGE = "CLUSTER_DIRECTORY", "KUBECONFIG", "CLUSTER_IMAGE"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that takes pods. `image` has a shell, and its nodes have it or can pull it.

    Of a cluster that is somebody else's, `nodes` is empty and `control_plane` None.
    """

    kubeconfig: Path
    image: str
    nodes: Mapping[str, Node] = field(default_factory=dict)
    control_plane: ControlPlane | None = None

    def api(self) -> client.CoreV1Api:
        """Return a client with the rights of the kubeconfig."""
        return client.CoreV1Api(config.new_client_from_config(str(self.kubeconfig)))

    def make_namespace(self) -> str:
        """Make a namespace, and return its name when it takes pods."""
        name, api = f"test-{secrets.token_hex(4)}", self.api()
        api.create_namespace({"metadata": {"name": name}})
        wait_until(lambda: has_service_account(api, name), f"namespace {name} takes pods")
        return name

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace. Its pods end at once, and are gone some time later."""
        api = self.api()
        api.delete_collection_namespaced_pod(name, grace_period_seconds=0)
        api.delete_namespace(name)


def write(cluster: Cluster, directory: Path) -> Mapping[str, str]:
    """Write the description of a cluster, and return the variables by which a command finds it."""
    nodes = [node.as_json() for node in cluster.nodes.values()]
    (directory / "nodes.json").write_text(json.dumps(nodes))
    return {DIRECTORY: str(directory), KUBECONFIG: str(cluster.kubeconfig), IMAGE: cluster.image}


def running_cluster() -> Cluster | None:
    """Return the cluster that this process was started beside; None if there is none."""
    if not os.environ.get(KUBECONFIG) or not os.environ.get(IMAGE):
        return None
    kubeconfig, image = Path(os.environ[KUBECONFIG]), os.environ[IMAGE]
    if DIRECTORY not in os.environ:
        return Cluster(kubeconfig, image)
    directory = Path(os.environ[DIRECTORY])
    nodes = [Node.from_json(values) for values in json.loads((directory / "nodes.json").read_text())]
    programs = nodes[0].programs
    return Cluster(
        kubeconfig, image, {node.name: node for node in nodes}, ControlPlane(directory / "control", programs)
    )
