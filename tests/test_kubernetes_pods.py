"""The pod of a job: each field of a spec is in it, or refused; and the state that a pod tells."""

import json
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

import pytest

from fastlane_grpc.backend import CannotRun, Container, InterruptionCause, NoCapacity, RefusalKind, StartWait
from fastlane_grpc.execution.final_state import not_started
from fastlane_grpc.kubernetes.api_errors import ClusterRefuses, refusal_of
from fastlane_grpc.kubernetes.pod_body import START_GATE, PodSettings, pod_body, pod_name
from fastlane_grpc.kubernetes.pod_state import container_of
from fastlane_grpc.model import (
    Device,
    Dns,
    Gpus,
    JobSpec,
    Limits,
    PullPolicy,
    Reason,
    Tmpfs,
    Ulimit,
    Volume,
)
from tests.pods import NO_IMAGE, assignment


def body_of(**spec: Any) -> Any:
    return pod_body(assignment("busybox", **spec), NO_IMAGE, instance="i", host="k8s", settings=PodSettings())


def job_of(**spec: Any) -> Any:
    return body_of(**spec)["spec"]["containers"][0]


# A value for each field that is in the pod, and where it is found there.
IN_POD = {
    "image": ("nginx", lambda pod, job: job["image"] == "nginx"),
    "command": ("echo 'a b'", lambda pod, job: job["args"] == ["echo", "a b"]),
    "args": (["a", "b"], lambda pod, job: job["args"] == ["a", "b"]),
    "entrypoint": (["/bin/x"], lambda pod, job: job["command"] == ["/bin/x"]),
    "envs": ({"A": "1"}, lambda pod, job: job["env"] == [{"name": "A", "value": "1"}]),
    "working_dir": ("/tmp", lambda pod, job: job["workingDir"] == "/tmp"),
    "user": ("0:7", lambda pod, job: [job["securityContext"][f"runAs{each}"] for each in ("User", "Group")] == [0, 7]),
    "timeout": (timedelta(seconds=1), lambda pod, job: pod["spec"]["activeDeadlineSeconds"] == 3611),
    "pull_policy": (PullPolicy.NEVER, lambda pod, job: job["imagePullPolicy"] == "Never"),
    "limits": (
        Limits(memory_bytes=1 << 20, cpus=0.5, memory_reservation_bytes=1 << 19),
        lambda pod, job: (
            job["resources"]
            == {"limits": {"cpu": "500m", "memory": "1048576"}, "requests": {"cpu": "500m", "memory": "524288"}}
        ),
    ),
    "read_only_root": (True, lambda pod, job: job["securityContext"]["readOnlyRootFilesystem"]),
    "stop_grace": (
        timedelta(seconds=1.5),
        lambda pod, job: pod["spec"]["terminationGracePeriodSeconds"] == 2,
    ),
    "labels": ({"a/b": "any value"}, lambda pod, job: "a/b=any value" in pod["metadata"]["annotations"].values()),
    "extra_hosts": ({"db": "10.0.0.1"}, lambda pod, job: pod["spec"]["hostAliases"][0]["hostnames"] == ["db"]),
    "tmpfs": (
        [Tmpfs("/t", size_bytes=4096)],
        lambda pod, job: (
            job["volumeMounts"] == [{"name": "tmpfs-0", "mountPath": "/t"}]
            and pod["spec"]["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4096"}
        ),
    ),
    "dns": (
        Dns(servers=["10.0.0.2"], options=["ndots:2", "rotate"]),
        lambda pod, job: (
            pod["spec"]["dnsPolicy"] == "None"
            and pod["spec"]["dnsConfig"]["options"] == [{"name": "ndots", "value": "2"}, {"name": "rotate"}]
        ),
    ),
    "ulimits": (
        [Ulimit("nofile", 1), Ulimit("core", 0, 5)],
        lambda pod, job: (
            job["ulimits"] == [{"Name": "nofile", "Soft": 1, "Hard": 1}, {"Name": "core", "Soft": 0, "Hard": 5}]
        ),
    ),
    "cap_drop": (["cap_chown"], lambda pod, job: job["securityContext"]["capabilities"] == {"drop": ["CHOWN"]}),
}
REFUSED: dict[str, Any] = {
    "user": "nobody",
    "network": "none",
    "volumes": [Volume("v", "/v")],
    "devices": [Device("/dev/fuse")],
    "gpus": Gpus(1),
}
# Those that the server itself acts on, and those that the relay brings to the recorder.
OF_SERVER = {
    *("stop_signal", "stdin", "secret_envs", "inputs", "outputs"),
    *("priority", "metadata", "start_in", "start_at", "cron", "expire_time", "retry", "notifications", "unique"),
    *("history", "stop_when_unwatched", "registry_credential"),
}


def test_each_field_of_a_spec_is_in_the_pod_or_refused_or_the_servers() -> None:
    assert {field.name for field in fields(JobSpec)} == {*IN_POD, *REFUSED, *OF_SERVER}


@pytest.mark.parametrize("name", IN_POD)
def test_a_field_is_in_the_pod(name: str) -> None:
    value, is_there = IN_POD[name]
    spec = {"image": "busybox", name: value}
    pod = pod_body(assignment(**spec), NO_IMAGE, instance="i", host="k8s", settings=PodSettings())
    assert is_there(pod, pod["spec"]["containers"][0])


def test_a_job_without_a_timeout_has_the_default_one_as_its_deadline() -> None:
    def deadline(**spec: Any) -> Any:
        job = assignment("busybox", stop_grace=timedelta(seconds=1.5), **spec)
        default = timedelta(minutes=30)
        pod = pod_body(job, NO_IMAGE, instance="i", host="k8s", settings=PodSettings(), default_timeout=default)
        return pod["spec"]["activeDeadlineSeconds"]

    assert deadline() == 1800 + 2 + 3600
    assert deadline(timeout=timedelta(hours=1)) == 3600 + 2 + 3600


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_pods_do_not_have_is_refused(name: str) -> None:
    with pytest.raises(CannotRun, match="pods of Kubernetes do not have") as refused:
        body_of(**{name: REFUSED[name]})
    assert refused.value.reason is Reason.REFUSED_BY_ENGINE


@pytest.mark.parametrize("limits", [Limits(pids=1), Limits(cpuset="0")], ids=["pids", "cpuset"])
def test_a_limit_that_pods_do_not_have_is_refused(limits: Limits) -> None:
    with pytest.raises(CannotRun, match="limits"):
        body_of(limits=limits)


def test_shared_memory_is_a_volume_of_its_size() -> None:
    pod = body_of(limits=Limits(shm_bytes=1 << 20))
    assert pod["spec"]["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1048576"}}]
    assert pod["spec"]["containers"][0]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]


def test_a_pod_gets_no_more_than_the_job_asks_for() -> None:
    pod = body_of()
    assert {
        "volumes",
        "dnsConfig",
        "hostAliases",
        "nodeSelector",
        "activeDeadlineSeconds",
        "runtimeClassName",
    }.isdisjoint(pod["spec"])
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert "resources" not in job_of()


def resources(settings: PodSettings, **spec: Any) -> Any:
    pod = pod_body(assignment("busybox", **spec), NO_IMAGE, instance="i", host="k8s", settings=settings)
    return pod["spec"]["containers"][0]["resources"]


def test_a_number_of_gpus_is_a_limit_of_the_resource_of_the_host() -> None:
    settings = PodSettings(gpu_resource="nvidia.com/gpu")
    its = resources(settings, gpus=Gpus(2), limits=Limits(cpus=1))
    assert its["limits"] == {"cpu": "1000m", "nvidia.com/gpu": "2"}
    for gpus in (Gpus(-1), Gpus(ids=["0"])):
        with pytest.raises(CannotRun, match="all GPUs, or certain ones: give a number"):
            resources(settings, gpus=gpus)


@pytest.mark.parametrize(
    ("limits", "most", "reserved"),
    [
        (Limits(), "2000", "2000"),
        (Limits(memory_bytes=3000), "3000", "3000"),
        (Limits(memory_reservation_bytes=1000), "2000", "1000"),
        (Limits(memory_reservation_bytes=3000), "3000", "3000"),
    ],
    ids=["none", "limit", "less reserved", "more reserved"],
)
def test_what_a_job_does_not_limit_has_the_limits_of_the_host(limits: Limits, most: str, reserved: str) -> None:
    its = resources(PodSettings(default_cpus=0.5, default_memory_bytes=2000), limits=limits)
    assert its == {"limits": {"cpu": "500m", "memory": most}, "requests": {"cpu": "500m", "memory": reserved}}


def test_pods_have_the_runtime_class_of_the_host() -> None:
    settings = PodSettings(runtime_class="gvisor")
    pod = pod_body(assignment("busybox"), NO_IMAGE, instance="i", host="k8s", settings=settings)
    assert pod["spec"]["runtimeClassName"] == "gvisor"


def test_the_pull_secret_of_an_image_is_tried_before_those_of_the_host() -> None:
    def pull_secrets(pull_secret: str) -> Any:
        settings = PodSettings(image_pull_secrets=["a", "b"])
        job = assignment("busybox")
        pod = pod_body(job, NO_IMAGE, instance="i", host="k8s", settings=settings, pull_secret=pull_secret)
        return [each["name"] for each in pod["spec"]["imagePullSecrets"]]

    assert [pull_secrets(each) for each in ("", "c", "b")] == [["a", "b"], ["c", "a", "b"], ["b", "a"]]


def test_what_kubernetes_would_take_for_a_variable_is_escaped() -> None:
    job = job_of(entrypoint=["$(A)"], args=["$$", "a$"], envs={"B": "$(A)"})
    assert (job["command"], job["args"], job["env"][0]["value"]) == (["$$(A)"], ["$$$$", "a$$"], "$$(A)")


# ---------------------------------------------------------------------------------------------------------- the state


def state(phase: str = "Running", **of_job: Any) -> Container:
    status = {"phase": phase, "containerStatuses": [{"name": "job", "state": of_job}] if of_job else []}
    metadata = {"name": pod_name("e"), "uid": "u", "resourceVersion": "1"}
    return container_of({"metadata": metadata, "spec": {"containers": [{"name": "job"}]}, "status": status})


BEGAN, ENDED = "2026-11-29T10:00:00Z", "2026-11-29T10:00:05Z"


def test_a_pod_without_a_node_has_neither_begun_nor_ended() -> None:
    pod = state("Pending")
    assert (pod.alive, pod.ended, pod.start_time, pod.start_failure) == (False, False, None, None)


def test_an_exit_code_is_told_before_the_pod_is_over() -> None:
    pod = state(terminated={"exitCode": 3, "reason": "Error", "startedAt": BEGAN, "finishedAt": ENDED})
    assert (pod.ended, pod.exit_code) == (True, 3)
    assert (pod.start_time, pod.end_time) == (datetime.fromisoformat(BEGAN), datetime.fromisoformat(ENDED))


@pytest.mark.parametrize(
    ("program", "refusal"),
    [("/.fastlane/bin/recorder", RefusalKind.CUT_OFF), ("no-such-command", RefusalKind.FINAL)],
    ids=["recorder", "command"],
)
def test_a_container_without_its_recorder_is_started_anew(program: str, refusal: RefusalKind) -> None:
    message = f'exec: "{program}": stat {program}: no such file or directory: unknown'
    failure = state(terminated={"exitCode": 128, "reason": "StartError", "message": message}).start_failure
    assert failure
    assert failure.refusal is refusal


def test_a_kill_for_memory_is_told() -> None:
    terminated = {"exitCode": 137, "reason": "OOMKilled", "startedAt": BEGAN, "finishedAt": ENDED}
    assert state(terminated=terminated).out_of_memory


def test_a_pod_that_was_evicted_before_its_start_has_ended_without_an_exit_code() -> None:
    pod = state("Failed")
    assert (pod.ended, pod.start_time, pod.exit_code) == (True, None, None)


def test_an_exit_code_that_a_node_makes_up_is_none() -> None:
    pod = state("Failed", terminated={"exitCode": 137, "reason": "ContainerStatusUnknown"})
    assert (pod.ended, pod.exit_code) == (True, None)


def test_a_container_runs_on_in_a_pod_that_its_node_is_ending() -> None:
    pod = state("Failed", running={"startedAt": BEGAN})
    assert (pod.alive, pod.ended, pod.exit_code) == (True, False, None)


@pytest.mark.parametrize(
    ("status", "metadata", "cause", "text"),
    [
        ({"reason": "Evicted", "message": "low on memory"}, {}, InterruptionCause.EVICTED, "Evicted: low on memory"),
        (
            {"reason": "DeadlineExceeded", "message": "active too long"},
            {},
            InterruptionCause.DEADLINE,
            "active too long",
        ),
        (
            {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]},
            {},
            InterruptionCause.EVICTED,
            "EvictionByEvictionAPI",
        ),
        (
            {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]},
            {},
            InterruptionCause.NODE_LOST,
            "DeletionByPodGC",
        ),
        ({}, {"deletionTimestamp": BEGAN}, InterruptionCause.EVICTED, "somebody deleted the pod"),
        ({"conditions": [{"type": "DisruptionTarget", "status": "False"}]}, {}, None, ""),
    ],
)
def test_a_pod_says_why_the_cluster_ends_it(
    status: dict[str, Any], metadata: dict[str, str], cause: InterruptionCause | None, text: str
) -> None:
    named = {"name": pod_name("e"), "uid": "u", "resourceVersion": "1", **metadata}
    interruption = container_of({"metadata": named, "spec": {}, "status": status}).interruption
    assert (interruption and interruption.cause, interruption.text if interruption else "") == (cause, text)


@pytest.mark.parametrize(
    ("reason", "message", "kind"),
    [
        ("ErrImagePull", "dial tcp: lookup registry.example: no such host", RefusalKind.PASSING),
        ("ImagePullBackOff", 'Back-off pulling image "x"', RefusalKind.PASSING),
        ("ErrImagePull", "failed to resolve reference: pull access denied", RefusalKind.FINAL),
        ("ErrImagePull", "registry.example/x:1: not found", RefusalKind.FINAL),
        ("InvalidImageName", "couldn't parse image name", RefusalKind.FINAL),
        ("ErrImageNeverPull", "", RefusalKind.FINAL),
        ("CreateContainerConfigError", 'secret "x" not found', RefusalKind.FINAL),
    ],
)
def test_a_container_that_waits_for_its_image_says_whether_that_passes(
    reason: str, message: str, kind: RefusalKind
) -> None:
    pod = state("Pending", waiting={"reason": reason, "message": message})
    assert pod.start_failure
    assert pod.start_failure.refusal is kind
    assert reason in pod.start_failure.text
    assert not pod.ended


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        ({"reason": "ErrImagePull", "message": "dial tcp: no such host"}, Reason.REGISTRY_UNAVAILABLE),
        ({"reason": "ErrImagePull", "message": "pull access denied"}, Reason.IMAGE_DENIED),
        ({"reason": "ErrImagePull", "message": "no match for platform in manifest"}, Reason.IMAGE_UNUSABLE),
        ({"reason": "ImagePullBackOff", "message": "x: not found"}, Reason.IMAGE_NOT_FOUND),
        ({"reason": "InvalidImageName"}, Reason.IMAGE_NOT_FOUND),
        ({"reason": "ErrImageNeverPull"}, Reason.IMAGE_NOT_PRESENT),
        ({"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}, None),
    ],
)
def test_an_image_that_cannot_be_had_has_its_reason(waiting: dict[str, str], reason: Reason | None) -> None:
    failure = state("Pending", waiting=waiting).start_failure
    assert failure
    assert failure.image_reason is reason
    if reason:
        assert not_started(failure, None, by_recorder=True).outcome.reason is reason


def waits(spec: dict[str, Any], condition: dict[str, str]) -> StartWait | None:
    status = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", **condition}]}
    metadata = {"name": pod_name("e"), "uid": "u", "resourceVersion": "1"}
    return container_of({"metadata": metadata, "spec": spec, "status": status}).start_wait


def test_a_pod_without_its_gate_waits_in_the_words_of_the_scheduler() -> None:
    gated = {"reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates"}
    full = {"reason": "Unschedulable", "message": "0/2 nodes are available: 2 Insufficient cpu.\x1b[31m"}
    assert waits({"schedulingGates": [{"name": START_GATE}]}, gated) is None
    assert waits({}, gated) == StartWait("", "")
    assert waits({"nodeName": "n1"}, {}) == StartWait("n1", "")
    waiting = waits({}, full)
    assert waiting
    assert waiting.text.startswith("0/2 nodes are available: 2 Insufficient cpu.")
    assert "\x1b" not in waiting.text


def test_a_pod_says_what_holds_up_its_relay() -> None:
    def wait(relay: Any, job: Any = None) -> StartWait | None:
        statuses = {"initContainerStatuses": [{"name": "relay", "state": relay}]}
        if job:
            statuses["containerStatuses"] = [{"name": "job", "state": job}]
        pod = {"metadata": {"name": "x", "uid": "u"}, "spec": {"nodeName": "n1"}, "status": statuses}
        return container_of(pod).start_wait

    pulled = wait({"waiting": {"reason": "ErrImagePull", "message": "no such host"}})
    assert pulled == StartWait("n1", "the kit image: ErrImagePull: no such host")
    runs = {"running": {"startedAt": BEGAN}}
    # A job that runs waits for the grant alone, if it waits.
    for waiting in (wait(runs, runs), wait({"waiting": {"reason": "CrashLoopBackOff"}})):
        assert waiting
        assert waiting.text == ""
        assert waiting.if_long.startswith("its relay has not reached the server")
    # Then the node pulls the job's image, which takes its time.
    assert wait(runs) == StartWait("n1", "")
    assert wait({"waiting": {"reason": "PodInitializing"}}) == StartWait("n1", "")
    assert wait(runs, {"terminated": {"exitCode": 0}}) is None


def test_a_container_that_is_being_created_has_not_failed() -> None:
    assert state("Pending", waiting={"reason": "ContainerCreating"}).start_failure is None


# ---------------------------------------------------------------------------------------------------------- the errors


def test_a_quota_that_is_used_up_passes_and_a_missing_right_does_not() -> None:
    quota = refusal_of(403, '{"message": "pods \\"x\\" is forbidden: exceeded quota: q"}')
    right = refusal_of(403, '{"message": "User \\"u\\" cannot create resource \\"pods\\""}')
    assert isinstance(quota, ClusterRefuses)
    assert isinstance(right, ClusterRefuses)
    assert (quota.diagnosis.passes, right.diagnosis.passes) == (True, False)
    assert quota.about_host
    assert right.about_host
    assert "look at its Role" in right.diagnosis.advice
    assert isinstance(quota, NoCapacity)
    assert not isinstance(right, NoCapacity)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, 'namespaces "x" not found'),
        (403, 'pods "p" is forbidden: unable to create new content in namespace x because it is being terminated'),
    ],
)
def test_a_namespace_that_is_gone_is_waited_for(status: int, message: str) -> None:
    refusal = refusal_of(status, json.dumps({"message": message}))
    assert isinstance(refusal, NoCapacity)
    assert "make it again" in refusal.diagnosis.advice


def test_words_of_a_server_that_is_no_api_server_are_not_repeated() -> None:
    refusal = refusal_of(404, "<html>\x1b[31m")
    assert str(refusal) == "status 404"
