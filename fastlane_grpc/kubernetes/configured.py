"""The client and the pods of a host, as its settings want them."""

from importlib.util import find_spec

from fastlane_grpc.backend import BackendDown
from fastlane_grpc.config import KubernetesHostSettings
from fastlane_grpc.kubernetes.cluster_api import ClusterApi
from fastlane_grpc.kubernetes.pod_body import PodSettings
from fastlane_grpc.model import PodCaptureMode

ADVICE = "`pip install 'fastlane-grpc[kubernetes]'` where the server is installed, or remove hosts of kind kubernetes"


def api_of(host: KubernetesHostSettings) -> ClusterApi:
    """Return the client of the host's cluster. Raises BackendDown if it is not installed or not configured."""
    if find_spec("kubernetes") is None:
        raise BackendDown(f"the client library of Kubernetes is not installed: {ADVICE}")
    return ClusterApi(kubeconfig=host.kubeconfig, context=host.context, namespace=host.namespace)


def pods_of(host: KubernetesHostSettings) -> PodSettings:
    """Return the operator's choices for the pods of the host."""
    return PodSettings(
        service_account=host.service_account,
        priority_class=host.priority_class,
        runtime_class=host.runtime_class,
        gpu_resource=host.gpu_resource,
        default_cpus=host.default_cpus or 0.0,
        default_memory_bytes=host.default_memory or 0,
        node_selector=host.node_labels,
        tolerations=host.tolerated_taints,
        image_pull_secrets=host.image_pull_secrets,
        recorded=host.capture is PodCaptureMode.RELAY,
    )
