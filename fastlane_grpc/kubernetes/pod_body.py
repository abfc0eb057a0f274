"""The pod of a job, as it is sent to the API server. A wish that no pod can fulfil is refused, and never dropped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fastlane_grpc.backend import CannotRun, Image
from fastlane_grpc.capture.relayed import ULIMITS
from fastlane_grpc.model import Assignment, JobSpec, PullPolicy, Reason
from fastlane_grpc.registry import Reference
from fastlane_grpc.text.shell_words import split_command

INSTANCE_LABEL = "fastlane.dev/instance"
EXECUTION_LABEL = "fastlane.dev/execution"
# Annotations: the values of labels may have 63 characters of a few kinds only.
HOST, JOB, TASK, LABELS = "fastlane.dev/host", "fastlane.dev/job", "fastlane.dev/task", "fastlane.dev/labels"
CAPTURE = "fastlane.dev/capture"
# The container of the job, and the gate without which the pod is given no node.
JOB_CONTAINER, START_GATE = "job", "fastlane.dev/start"

# Time beyond the timeout and the grace of a job after which the node ends its pod, if nobody else did. The node counts
# from when it got the pod: it may pull a large image first, and the relay may wait for the server.
_DEADLINE_SPARE = timedelta(hours=1)
_POLICIES = {PullPolicy.ALWAYS: "Always", PullPolicy.NEVER: "Never"}


def pod_name(execution_id: str) -> str:
    """Return the name of the pod of an execution. A namespace has at most one pod of a name."""
    return f"fastlane-{execution_id}"


@dataclass(frozen=True, slots=True)
class PodSettings:
    """The operator's choices for all pods of a host. Empty and zero: the cluster's defaults.

    `gpu_resource`: the resource that gives a container GPUs; empty: no job has any.
    `recorded`: jobs run under the recorder. Otherwise they run plainly, as their image says.
    """

    service_account: str = ""
    priority_class: str = ""
    runtime_class: str = ""
    gpu_resource: str = ""
    default_cpus: float = 0.0
    default_memory_bytes: int = 0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    image_pull_secrets: Sequence[str] = ()
    recorded: bool = True

    @property
    def architecture(self) -> str:
        """The architecture of all nodes that pods of this host may have, as Docker names it; empty: any."""
        return self.node_selector.get("kubernetes.io/arch", "")


def pod_body(
    assignment: Assignment,
    image: Image,
    *,
    instance: str,
    host: str,
    settings: PodSettings,
    capture: str = "",
    pull_secret: str = "",
    default_timeout: timedelta | None = None,
) -> Mapping[str, Any]:
    """Return the description of the pod, with the gate that keeps it from a node.

    An image with a digest is named by it: no tag that was moved meanwhile can bring another one. `capture`: the name of
    the way of capture, which is noted. `pull_secret` is that of the job's image; the nodes try it before those of the
    host. `default_timeout` is that of a job that says none; None: it may run for any time.

    Raises CannotRun if the job asks for what a pod does not have, and ValueError if its command is none.
    """
    execution, spec = assignment.execution, assignment.spec
    _refuse(spec, settings)
    timeout = default_timeout if spec.timeout is None else spec.timeout
    annotations = {HOST: host, CAPTURE: capture, JOB: execution.job_id, TASK: execution.task_id}
    if spec.labels:
        annotations[LABELS] = "\n".join(f"{name}={value}" for name, value in spec.labels.items())
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(execution.id),
            "labels": {INSTANCE_LABEL: instance, EXECUTION_LABEL: execution.id},
            "annotations": annotations,
        },
        "spec": _with_what_is_set(
            pod_spec(
                {
                    "restartPolicy": "Never",
                    "schedulingGates": [{"name": START_GATE}],
                    # A job gets no rights in the cluster, and no variables for each service of the namespace.
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": _seconds(spec.grace),
                    "containers": [_container(spec, image, settings)],
                },
                settings,
                pull_secret,
            ),
            {
                "activeDeadlineSeconds": timeout and _seconds(timeout + spec.grace + _DEADLINE_SPARE),
                "volumes": _volumes(spec),
                "hostAliases": [{"ip": ip, "hostnames": [name]} for name, ip in spec.extra_hosts.items()],
                "dnsPolicy": "None" if spec.dns and spec.dns.servers else "",
                "dnsConfig": _dns(spec),
            },
        ),
    }


def pod_spec(spec: Mapping[str, Any], settings: PodSettings, pull_secret: str = "") -> Mapping[str, Any]:
    """Return the spec of a pod with the operator's choices."""
    pull_secrets = dict.fromkeys(
        [pull_secret, *settings.image_pull_secrets] if pull_secret else settings.image_pull_secrets
    )
    return _with_what_is_set(
        spec,
        {
            "serviceAccountName": settings.service_account,
            "priorityClassName": settings.priority_class,
            "runtimeClassName": settings.runtime_class,
            "nodeSelector": dict(settings.node_selector),
            "tolerations": list(settings.tolerations),
            "imagePullSecrets": [{"name": name} for name in pull_secrets],
        },
    )


def _refuse(spec: JobSpec, settings: PodSettings) -> None:
    """Raise CannotRun with every wish that a pod cannot fulfil."""
    plain = not settings.recorded
    user, _, group = spec.user.partition(":")
    wishes = {
        "a user or group by name: give numbers": spec.user and not all(each.isdigit() for each in (user, group or "0")),
        "limits.pids": spec.limits.pids,
        "limits.cpuset": spec.limits.cpuset,
        "a network": spec.network,
        "volumes": spec.volumes,
        "devices": spec.devices,
        "gpus: the host has no gpu_resource": spec.gpus and not settings.gpu_resource,
        "all GPUs, or certain ones: give a number": spec.gpus and spec.gpus.count <= 0,
        "the mode of a tmpfs": any(tmpfs.mode for tmpfs in spec.tmpfs),
        "a stop_signal other than SIGTERM, without a relay": plain
        and spec.stop_signal.upper().removeprefix("SIG") not in {"", "TERM", "15"},
        "ulimits, without a recorder": plain and spec.ulimits,
    }
    if refused := [wish for wish, asked in wishes.items() if asked]:
        raise CannotRun(
            Reason.REFUSED_BY_ENGINE, f"pods of Kubernetes do not have what the job asks for: {'; '.join(refused)}"
        )


def _container(spec: JobSpec, image: Image, settings: PodSettings) -> Mapping[str, Any]:
    user, _, group = spec.user.partition(":")
    security = _with_what_is_set(
        {"allowPrivilegeEscalation": False},
        {
            "runAsUser": int(user) if user else None,
            "runAsGroup": int(group) if group else None,
            "readOnlyRootFilesystem": spec.read_only_root,
            "capabilities": spec.cap_drop and {"drop": [name.upper().removeprefix("CAP_") for name in spec.cap_drop]},
        },
    )
    return _with_what_is_set(
        {"name": JOB_CONTAINER, "image": _image_name(spec, image), "securityContext": security},
        {
            # Kubernetes calls `command` what replaces the image's entrypoint, and `args` what replaces its command.
            "command": [_literal(word) for word in spec.entrypoint],
            "args": [_literal(word) for word in (*split_command(spec.command), *spec.args)],
            "env": [{"name": name, "value": _literal(value)} for name, value in spec.envs.items()],
            "workingDir": spec.working_dir,
            "imagePullPolicy": _POLICIES.get(spec.pull_policy, "IfNotPresent"),
            "resources": _resources(spec, settings),
            ULIMITS: [
                {"Name": each.name, "Soft": each.soft, "Hard": each.soft if each.hard is None else each.hard}
                for each in spec.ulimits
            ],
            "volumeMounts": [
                *({"name": _name_of(number), "mountPath": tmpfs.path} for number, tmpfs in enumerate(spec.tmpfs)),
                *([{"name": "shm", "mountPath": "/dev/shm"}] if spec.limits.shm_bytes else []),
            ],
        },
    )


def _image_name(spec: JobSpec, image: Image) -> str:
    return str(Reference.parse(spec.image).at(image.digest)) if image.digest else spec.image


def _literal(word: str) -> str:
    """Return the word so that it comes out as it is: Kubernetes reads `$(NAME)` as a variable and `$$` as a dollar."""
    return word.replace("$", "$$")


def _resources(spec: JobSpec, settings: PodSettings) -> Mapping[str, Any]:
    """Return the limits of the job. What it may use is also what is reserved for it, unless it reserves less."""
    limits = spec.limits
    cpus = limits.cpus or settings.default_cpus
    memory_bytes = limits.memory_bytes
    if not memory_bytes and settings.default_memory_bytes:
        # A job may reserve more than the default.
        memory_bytes = max(settings.default_memory_bytes, limits.memory_reservation_bytes)
    processors = f"{round(cpus * 1000)}m" if cpus else ""
    memory = str(memory_bytes) if memory_bytes else ""
    reserved = str(limits.memory_reservation_bytes) if limits.memory_reservation_bytes else memory
    gpus = {settings.gpu_resource: str(spec.gpus.count)} if spec.gpus else {}
    return _with_what_is_set(
        {},
        {
            "limits": _with_what_is_set({}, {"cpu": processors, "memory": memory} | gpus),
            "requests": _with_what_is_set({}, {"cpu": processors, "memory": reserved}),
        },
    )


def _volumes(spec: JobSpec) -> Sequence[Mapping[str, Any]]:
    sizes = {_name_of(number): tmpfs.size_bytes for number, tmpfs in enumerate(spec.tmpfs)}
    if spec.limits.shm_bytes:
        sizes["shm"] = spec.limits.shm_bytes
    return [
        {"name": name, "emptyDir": {"medium": "Memory"} | ({"sizeLimit": str(size)} if size else {})}
        for name, size in sizes.items()
    ]


def _name_of(number: int) -> str:
    return f"tmpfs-{number}"


def _dns(spec: JobSpec) -> Mapping[str, Any]:
    dns = spec.dns
    if dns is None:
        return {}
    options = [option.partition(":") for option in dns.options]
    return _with_what_is_set(
        {},
        {
            "nameservers": list(dns.servers),
            "searches": list(dns.search_domains),
            "options": [{"name": name} | ({"value": value} if colon else {}) for name, colon, value in options],
        },
    )


def _seconds(span: timedelta) -> int:
    """Return whole seconds, rounded up."""
    return -(-span // timedelta(seconds=1))


def _with_what_is_set(given: Mapping[str, Any], optional: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add what is not empty: what is not set is the cluster's choice. A user or group may be 0."""
    return {
        **given,
        **{name: value for name, value in optional.items() if value or (value == 0 and value is not False)},
    }
