"""The Kubernetes backend: implements Backend over the pods of one namespace.

The pod of an execution has the execution's name, so a create that is sent twice makes one pod. It is created with a
scheduling gate, and `start` removes the gate: until then no node has the pod, and nothing of it runs.
"""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta

from fastlane_grpc.backend import (
    BackendRefuses,
    CannotRun,
    Container,
    ContainerGone,
    Diagnosis,
    Handle,
    Image,
    Info,
    LeftContainer,
    NameTaken,
    NotRunning,
    Pull,
    RefusalKind,
    Wrapper,
)
from fastlane_grpc.config import RegistrySettings
from fastlane_grpc.kubernetes.api_errors import ClusterRefuses
from fastlane_grpc.kubernetes.cluster_api import ClusterApi, Pod
from fastlane_grpc.kubernetes.images import ImagesOfNodes, RegistryImages
from fastlane_grpc.kubernetes.pod_body import (
    EXECUTION_LABEL,
    HOST,
    INSTANCE_LABEL,
    PodSettings,
    pod_body,
    pod_name,
)
from fastlane_grpc.kubernetes.pod_events import PodEvents
from fastlane_grpc.kubernetes.pod_state import PodHandle, container_of, execution_of, handle_of
from fastlane_grpc.model import Assignment, Execution, HostKind, Reason, Usage
from fastlane_grpc.recorder import HARD_STOP
from fastlane_grpc.registry import Reference, credential_of_job
from fastlane_grpc.secrets import RegistryCredentials

# A grace of 0 would take the pod from the API server while its containers may run on; the node is asked instead.
_AT_ONCE_SECONDS = 1


class KubernetesBackend:
    """Implements Backend over `api`, for the host called `host` of the instance."""

    starts_at_once = False
    keeps_images = False
    kind = HostKind.KUBERNETES

    def __init__(
        self,
        api: ClusterApi,
        *,
        instance: str,
        host: str,
        settings: PodSettings | None = None,
        registries: Sequence[RegistrySettings] = (),
        default_timeout: timedelta | None = None,
    ) -> None:
        """`registries`: the operator's credentials, by which images are looked up; nodes pull by their `pull_secret`.

        `default_timeout`: that of a job that says none; None: such a job may run for any time.
        """
        self.address = api.address
        self._api = api
        self._instance = instance
        self._host = host
        self._settings = settings or PodSettings()
        self._default_timeout = default_timeout
        self._credentials = RegistryCredentials(registries)
        self._images = (
            RegistryImages(self._credentials, self._settings.architecture)
            if self._settings.recorded
            else ImagesOfNodes()
        )

    # -- images

    def image(self, assignment: Assignment) -> Image | None:
        """Return the image as its registry had it a moment ago; an empty one if the job says itself what it runs."""
        return self._images.known(assignment)

    def architecture(self, image_digest: str) -> str:
        return self._images.architecture(image_digest)

    def pull(
        self, assignment: Assignment, *, on_line: Callable[[str], None], on_end: Callable[[Exception | None], None]
    ) -> Pull:
        """Look the image up in its registry, as the nodes pull images, and do not tell their contents."""
        return self._images.look_up(assignment, on_line=on_line, on_end=on_end)

    # -- containers

    def create(self, assignment: Assignment, image: Image, wrapper: Wrapper) -> Handle:
        try:
            body = pod_body(
                assignment,
                image,
                instance=self._instance,
                host=self._host,
                capture=wrapper.name,
                settings=self._settings,
                pull_secret=self._pull_secret(assignment),
                default_timeout=self._default_timeout,
            )
        except ValueError as error:
            raise CannotRun(Reason.REFUSED_BY_ENGINE, f"the command is none: {error}") from error
        try:
            return handle_of(self._api.create(wrapper.wrap(body, image))).packed()
        except ClusterRefuses as refusal:
            if refusal.status == 409:
                raise NameTaken(refusal.diagnosis) from refusal
            raise

    def _pull_secret(self, assignment: Assignment) -> str:
        """Return the secret of the namespace for the image of the job; empty: it needs none. Raises CannotRun."""
        name, registry = assignment.spec.registry_credential, Reference.parse(assignment.spec.image).registry
        found = credential_of_job(self._credentials, name, assignment.execution.task_id, registry)
        if name and found and not found.pull_secret:
            raise CannotRun(
                Reason.REFUSED_BY_ENGINE,
                f"nodes of a cluster cannot pull with the registry credential {name!r}: it has no `pull_secret`, which "
                "names a secret of the namespace",
            )
        return found.pull_secret if found else ""

    def before_start(self, handle: Handle) -> Handle:
        return handle

    def start(self, handle: Handle) -> None:
        """Remove the gate of the pod; a repetition changes nothing. The scheduler then looks for a node."""
        pod = PodHandle.unpacked(handle.text)
        changes = {"metadata": {"uid": pod.uid}, "spec": {"schedulingGates": None}}
        try:
            self._api.patch(pod.name, changes)
        except ClusterRefuses as refusal:
            # The second case: another pod has the name by now, and uids cannot be changed.
            if refusal.status == 404 or (refusal.status == 422 and "metadata.uid" in refusal.message):
                raise ContainerGone(refusal.diagnosis) from refusal
            raise

    def revoke(self, handle: Handle) -> bool:
        """Delete the pod, unless it has a node: that changes its version, and only this version is deleted."""
        handled = PodHandle.unpacked(handle.text)
        pod = self._own(handled)
        if pod is None or pod["spec"].get("nodeName"):
            return False
        version = pod["metadata"]["resourceVersion"]
        return self._api.delete(handled.name, grace_seconds=0, uid=handled.uid, version=version)

    def inspect(self, handle: Handle) -> Container | None:
        pod = self._own(PodHandle.unpacked(handle.text))
        return None if pod is None else container_of(pod)

    def usage(self, handle: Handle) -> Usage | None:
        return None

    def find(self, execution: Execution) -> Container | None:
        name = pod_name(execution.id)
        pod = self._api.pod(name)
        if pod is None:
            return None
        labels = pod["metadata"].get("labels") or {}
        if (labels.get(INSTANCE_LABEL), labels.get(EXECUTION_LABEL)) != (self._instance, execution.id):
            detail = f"the namespace {self._api.namespace} has a pod {name} that this server did not make: remove it"
            raise CannotRun(Reason.REFUSED_BY_ENGINE, detail)
        return container_of(pod)

    def signal(
        self, handle: Handle, signal: str, *, grace_seconds: float = 0, answer_seconds: float | None = None
    ) -> None:
        """Delete the pod, as there is no call for a signal: the node sends SIGTERM, and SIGKILL after the grace.

        A node that was told does not take a shorter grace any more. SIGKILL, and a hard stop that no relay delivered,
        delete the pod with the shortest grace that waits for the node. Raises BackendRefuses for other signals: the
        relay may be connected a moment later.
        """
        kills = signal in {"SIGKILL", str(HARD_STOP)}
        if not kills and signal != "SIGTERM":
            relay = "the relay of the pod is not connected, and " if self._settings.recorded else ""
            message = f"{relay}the cluster sends SIGTERM and SIGKILL, not {signal}"
            raise BackendRefuses(Diagnosis(message, message, message, RefusalKind.PASSING))
        pod = PodHandle.unpacked(handle.text)
        whole_seconds = _AT_ONCE_SECONDS if kills else max(_AT_ONCE_SECONDS, math.ceil(grace_seconds))
        if not self._api.delete(pod.name, grace_seconds=whole_seconds, uid=pod.uid):
            message = f"there is no pod {pod.name} any more"
            raise NotRunning(Diagnosis(message, message, message, RefusalKind.FINAL))

    def remove(self, handle: Handle, *, force: bool) -> None:
        handled = PodHandle.unpacked(handle.text)
        pod = self._own(handled)
        if pod is None:
            return
        container = container_of(pod)
        idle = container.ended or not pod["spec"].get("nodeName")
        if not idle and not force:
            raise ClusterRefuses(409, f"the pod {handled.name} runs, or is about to")
        # A pod that gets a node meanwhile has another version: it stays, and the next sweep finds it.
        version = pod["metadata"]["resourceVersion"] if idle else ""
        grace_seconds = 0 if idle else _AT_ONCE_SECONDS
        if not self._api.delete(handled.name, grace_seconds=grace_seconds, uid=handled.uid, version=version) and idle:
            self._remove_changed(handled, force=force)

    def _remove_changed(self, handled: PodHandle, *, force: bool) -> None:
        """Remove a pod that changed while it was being removed, unless it runs by now."""
        pod = self._own(handled)
        if pod is None:
            return
        if not force and pod["spec"].get("nodeName") and not container_of(pod).ended:
            raise ClusterRefuses(409, f"the pod {handled.name} is about to run")
        self._api.delete(handled.name, grace_seconds=_AT_ONCE_SECONDS, uid=handled.uid)

    def containers(self) -> Sequence[LeftContainer]:
        pods, _ = self._api.pods(f"{INSTANCE_LABEL}={self._instance}")
        return [
            LeftContainer(handle_of(pod).packed(), execution_of(pod), _host_of(pod) == self._host)
            for pod in pods
            # A pod that somebody made from the description of another one has the labels, and not the name.
            if pod["metadata"]["name"] == pod_name(execution_of(pod))
        ]

    def restarted(self, handle: Handle) -> bool | None:
        """Return False, as containers outlive the API server and the kubelet."""
        return False

    # -- the cluster itself

    def events(self) -> PodEvents:
        return PodEvents(self._api, self._instance)

    def ping(self, timeout_seconds: float) -> None:
        self._api.version(timeout_seconds)

    def info(self) -> Info:
        """Return the identity of the namespace, and the number of the nodes that its pods may have.

        The architecture is empty if that of the nodes is not known.
        """
        version = str(self._api.version().get("gitVersion", ""))
        labels = ",".join(f"{name}={value}" for name, value in self._settings.node_selector.items())
        return Info(self._api.namespace_uid(), version, self._settings.architecture, self._api.nodes(labels))

    def forget(self) -> None:
        self._api.close()

    def _own(self, handle: PodHandle) -> Pod | None:
        """Return the pod; None if it is gone, and if another one has its name."""
        pod = self._api.pod(handle.name) if handle.name else None
        return pod if pod is not None and pod["metadata"]["uid"] == handle.uid else None


def _host_of(pod: Pod) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(HOST, ""))
