"""The Kubernetes backend: one pod for each execution. No other package speaks to a cluster.

No server offers it yet: the way of a pod's output into its record is not built. The package needs the client library
of Kubernetes, which is not among the server's own requirements.
"""

from fastlane_grpc.kubernetes.backend import KubernetesBackend
from fastlane_grpc.kubernetes.cluster_api import ClusterApi
from fastlane_grpc.kubernetes.pod_body import PodSettings

__all__ = ["ClusterApi", "KubernetesBackend", "PodSettings"]
