"""Looks at a cluster from outside: its version, the rights of the account, and whether it would take a pod."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastlane_grpc.config import KubernetesHostSettings
from fastlane_grpc.kubernetes.api_errors import ClusterRefuses
from fastlane_grpc.kubernetes.configured import api_of, pods_of
from fastlane_grpc.kubernetes.pod_body import pod_spec
from fastlane_grpc.model import PodCaptureMode

# The rights of the server in the namespace: verbs for each resource. A Role with these is enough, with less it is not.
RIGHTS = {"pods": ("create", "delete", "get", "list", "patch", "watch")}
# What is needed beside these where output is captured by the kubelet's log.
RIGHTS_OF_KUBELET = {"pods/log": ("get",)}


@dataclass(frozen=True, slots=True)
class ClusterCheckup:
    """The answers of a cluster. `missing` has rights, each as `create pods`; `refusal` says why it takes no pods."""

    address: str
    version: str
    missing: Sequence[str]
    refusal: str


def check_up(host: KubernetesHostSettings) -> ClusterCheckup:
    """Ask a cluster without changing anything. Raises BackendDown and BackendRefuses."""
    api = api_of(host)
    try:
        version = str(api.version(5).get("gitVersion", ""))
        rights = RIGHTS | (RIGHTS_OF_KUBELET if host.capture is PodCaptureMode.KUBELET else {})
        missing = [
            f"{verb} {resource}"
            for resource, verbs in rights.items()
            for verb in verbs
            if not api.may(verb, *resource.split("/"))
        ]
        refusal = ""
        if "create pods" not in missing:
            try:
                api.create(_smallest_pod(host), dry_run=True)
            except ClusterRefuses as error:
                refusal = error.diagnosis.advice
        return ClusterCheckup(api.address, version, missing, refusal)
    finally:
        api.close()


def _smallest_pod(host: KubernetesHostSettings) -> dict[str, object]:
    # No image is pulled for an answer: without a kit any name will do.
    containers = [{"name": "kit", "image": host.kit_image or "fastlane.invalid/any:1"}]
    spec = pod_spec({"restartPolicy": "Never", "containers": containers}, pods_of(host))
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "fastlane-doctor-"}, "spec": spec}
