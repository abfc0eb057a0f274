"""A server's lower floors over one namespace of a cluster, with nothing above the runner."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlane_grpc.capture.capture import Captures
from fastlane_grpc.config import RegistrySettings
from fastlane_grpc.execution import Host
from fastlane_grpc.model import CaptureMode
from tests.cluster.processes import wait_until
from tests.engine import EngineHarness, Going
from tests.pods import NoCaptures

if TYPE_CHECKING:
    from fastlane_grpc.kubernetes import KubernetesBackend
    from tests.cluster.running import Cluster

# The nodes that pods ask for here. No node has the label until a test gives it to one.
LABEL = "fastlane.test/wanted"


class ClusterHarness(EngineHarness):
    """A server's lower floors over one namespace of a cluster. Nothing is captured here."""

    def __init__(self, directory: Path, cluster: "Cluster", namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.node_selector: dict[str, str] = {}
        # Further choices of the operator.
        self.settings: dict[str, Any] = {}
        self.registries: Sequence[RegistrySettings] = ()
        super().__init__(directory, cluster.image, "", "", CaptureMode.AUTO, 0)

    def connect(self) -> Host:
        return Host("local", self.pods(), self.captures_of_pods(), ping_seconds=1)

    def captures_of_pods(self) -> Captures:
        return NoCaptures()

    def pods(self) -> "KubernetesBackend":
        from fastlane_grpc.kubernetes import ClusterApi, KubernetesBackend, PodSettings

        api = ClusterApi(kubeconfig=self.cluster.kubeconfig, namespace=self.namespace)
        settings = PodSettings(node_selector=self.node_selector, **self.settings)
        return KubernetesBackend(
            api, instance=self.store.instance, host="local", settings=settings, registries=self.registries
        )

    def enqueue(self, command: str = "", *args: str, **more: Any) -> str:
        """The command is the entrypoint, unless that is given: no registry has the image of the tests."""
        entrypoint = more.pop("entrypoint", None)
        if entrypoint is not None or not command:
            return super().enqueue(command, *args, entrypoint=entrypoint or (), **more)
        return super().enqueue("", *args, entrypoint=command.split(), **more)

    def remove_all(self) -> None:
        """Do nothing, as the namespace is removed."""

    def want_node(self) -> str:
        """From now on ask for a node with a label of its own, which no node has. Return the value of the label."""
        self.node_selector = {LABEL: self.namespace}
        self.reopen()
        return self.namespace

    def go_waiting(self, script: str, **more: Any) -> Going:
        """Run a script on a node that is not there, until the scheduler has said so."""
        going = self.go("sh -c", script, **more)
        wait_until(lambda: going.mailbox.waiting is not None, "it waits for a node")
        return going

    def give_node(self) -> None:
        """Give the label that is asked for to a node."""
        api = self.cluster.api()
        node = api.list_node().items[0].metadata.name
        api.patch_node(node, {"metadata": {"labels": {LABEL: self.node_selector[LABEL]}}})

    def pod_names(self) -> list[str]:
        return [pod.metadata.name for pod in self.cluster.api().list_namespaced_pod(self.namespace).items]

    def pods_are_gone(self) -> bool:
        """Wait until the namespace has no pod, as a node takes its time."""
        wait_until(lambda: self.pod_names() == [], "the pods are gone")
        return True
