"""The Kubernetes backend: one pod for each execution. No other package speaks to a cluster.

The package needs the client library of Kubernetes, an extra of the distribution.
"""

from fastlane_grpc.kubernetes.backend import KubernetesBackend
from fastlane_grpc.kubernetes.cluster_api import ClusterApi
from fastlane_grpc.kubernetes.configured import api_of, pods_of
from fastlane_grpc.kubernetes.pod_body import PodSettings
from fastlane_grpc.kubernetes.pod_logs import PodLogs

__all__ = ["ClusterApi", "KubernetesBackend", "PodLogs", "PodSettings", "api_of", "pods_of"]
