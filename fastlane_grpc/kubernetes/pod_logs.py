"""The logs of pods, as the API server gets them from the kubelets: implements NodeLogs."""

from collections.abc import Iterator

from fastlane_grpc.backend import BackendDown
from fastlane_grpc.capture.node_log import LogNotThere
from fastlane_grpc.kubernetes.api_errors import ClusterRefuses
from fastlane_grpc.kubernetes.cluster_api import ClusterApi
from fastlane_grpc.kubernetes.pod_body import JOB_CONTAINER, pod_name

# The answers for a container that has not begun, and for a pod that is gone.
_NOT_YET, _GONE = 400, 404


class PodLogs:
    """The logs of the pods of one namespace."""

    def __init__(self, api: ClusterApi) -> None:
        self._api = api

    def log_of(self, execution_id: str) -> "PodLog":
        return PodLog(self._api, pod_name(execution_id))

    def check(self) -> None:
        if not self._api.may("get", "pods", "log"):
            raise BackendDown(
                f"capture = kubelet is set, and the account may not get pods/log in the namespace "
                f"{self._api.namespace}: add that to its Role"
            )


class PodLog:
    """The log of one pod's job."""

    def __init__(self, api: ClusterApi, pod: str) -> None:
        self._api = api
        self._pod = pod

    def read(self, last_lines: int | None) -> Iterator[bytes]:
        try:
            yield from self._api.log(self._pod, JOB_CONTAINER, last_lines)
        except ClusterRefuses as refusal:
            if refusal.status in {_NOT_YET, _GONE}:
                raise LogNotThere(refusal.message) from refusal
            raise
