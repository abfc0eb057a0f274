"""The Kubernetes backend on a real cluster: one pod for each execution, its start, its end, and what goes wrong."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fastlane_grpc.backend import (
    BackendDown,
    BackendRefuses,
    CannotRun,
    Container,
    ContainerEvent,
    ContainerGone,
    Handle,
    NameTaken,
    NotRunning,
    RefusalKind,
)
from fastlane_grpc.model import Assignment, Limits, PullPolicy, Reason, new_id
from tests.cluster.processes import wait_until
from tests.pods import NO_IMAGE, Bare, assignment

if TYPE_CHECKING:
    from fastlane_grpc.kubernetes import KubernetesBackend
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


class Harness:
    """A backend in a namespace, and the cluster that it is in."""

    def __init__(self, cluster: "Cluster", namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.instance = new_id()
        self.backend = self.another(self.instance)

    def another(self, instance: str, kubeconfig: Any = None) -> "KubernetesBackend":
        """Return a backend for the same namespace."""
        from fastlane_grpc.kubernetes import ClusterApi, KubernetesBackend

        api = ClusterApi(kubeconfig=kubeconfig or self.cluster.kubeconfig, namespace=self.namespace)
        return KubernetesBackend(api, instance=instance, host="k8s")

    def assignment(self, *args: str, **more: Any) -> Assignment:
        return assignment(str(more.pop("image", self.cluster.image)), *args, **more)

    def sh(self, script: str, **more: Any) -> Assignment:
        return self.assignment("sh", "-c", script, **more)

    def create(self, job: Assignment) -> Handle:
        return self.backend.create(job, NO_IMAGE, Bare())

    def start(self, job: Assignment) -> Handle:
        handle = self.create(job)
        self.backend.start(handle)
        return handle

    def run(self, job: Assignment) -> Container:
        return self.wait(self.start(job), lambda pod: pod.ended)

    def wait(self, handle: Handle, true: Callable[[Container], bool]) -> Container:
        found: list[Container] = []

        def is_true() -> bool:
            pod = self.backend.inspect(handle)
            assert pod
            found[:] = [pod]
            return true(pod)

        wait_until(is_true, "the pod is as it should be")
        return found[0]

    def wait_for_output(self, job: Assignment, content: str) -> None:
        """Wait until the job has printed something."""
        wait_until(lambda: content in self.output(job), f"{content!r} is printed")

    def output(self, job: Assignment) -> str:
        """Return what the job printed, by the log of the node."""
        from kubernetes.client import ApiException

        try:
            name = f"fastlane-{job.execution.id}"
            text: str = self.cluster.api().read_namespaced_pod_log(name, self.namespace)
        except ApiException:
            return ""
        return text


@pytest.fixture
def harness(cluster: "Cluster", namespace: str) -> Harness:
    return Harness(cluster, namespace)


def test_a_pod_has_no_node_until_it_is_started_and_then_ends(harness: Harness) -> None:
    handle = harness.create(harness.sh("exit 3"))
    pod = harness.backend.inspect(handle)
    assert pod
    assert (pod.alive, pod.ended, pod.start_time) == (False, False, None)
    harness.backend.start(handle)
    ended = harness.wait(handle, lambda pod: pod.ended)
    assert (ended.exit_code, ended.out_of_memory, ended.start_failure) == (3, False, None)
    assert ended.start_time
    assert ended.end_time
    assert ended.start_time <= ended.end_time


def test_a_second_create_makes_no_second_pod(harness: Harness) -> None:
    job = harness.sh("exit 0")
    handle = harness.create(job)
    with pytest.raises(NameTaken):
        harness.create(job)
    found = harness.backend.find(job.execution)
    assert found
    assert found.handle == handle


def test_a_pod_that_somebody_else_made_is_not_taken(harness: Harness) -> None:
    job = harness.sh("exit 0")
    other = harness.another(new_id())
    other.create(job, NO_IMAGE, Bare())
    with pytest.raises(CannotRun, match="this server did not make"):
        harness.backend.find(job.execution)


def test_a_second_start_changes_nothing(harness: Harness) -> None:
    handle = harness.start(harness.sh("exit 0"))
    harness.backend.start(handle)
    assert harness.wait(handle, lambda pod: pod.ended).exit_code == 0
    harness.backend.start(handle)


def test_a_pod_that_was_removed_is_not_started(harness: Harness) -> None:
    job = harness.sh("exit 0")
    handle = harness.create(job)
    harness.backend.remove(handle, force=False)
    assert harness.backend.inspect(handle) is None
    with pytest.raises(ContainerGone):
        harness.backend.start(handle)
    # Nor is the next pod of that name taken for it.
    again = harness.create(job)
    with pytest.raises(ContainerGone):
        harness.backend.start(handle)
    assert harness.backend.inspect(handle) is None
    assert harness.backend.inspect(again)


def test_words_arrive_as_they_are(harness: Harness) -> None:
    words = ["$(HOME)", "$$", "$HOME", "a b", "'", "ü", ""]
    job = harness.assignment(
        "sh", "-c", 'for each; do echo "<$each>"; done; echo "$A"', "-", *words, envs={"A": "$(B)$$"}
    )
    assert harness.run(job).exit_code == 0
    assert harness.output(job) == "".join(f"<{word}>\n" for word in words) + "$(B)$$\n"


def test_a_kill_for_memory_is_told(harness: Harness) -> None:
    pod = harness.run(harness.sh("tail /dev/zero", limits=Limits(memory_bytes=16 << 20)))
    assert (pod.out_of_memory, pod.exit_code) == (True, 137)


def test_a_command_that_is_not_there_is_told(harness: Harness) -> None:
    handle = harness.start(harness.assignment("no-such-command"))
    pod = harness.wait(handle, lambda pod: pod.start_failure is not None)
    assert pod.start_failure
    assert pod.start_failure.command_reason is Reason.COMMAND_NOT_FOUND
    assert (pod.start_time, pod.ended) == (None, False)


@pytest.mark.parametrize(
    ("image", "policy", "kind"),
    [
        ("fastlane.invalid/nothing:1", PullPolicy.NEVER, RefusalKind.FINAL),
        ("127.0.0.1:1/nothing:1", PullPolicy.UNSPECIFIED, RefusalKind.PASSING),
    ],
    ids=["not present", "registry away"],
)
def test_an_image_that_cannot_be_had_is_told(
    harness: Harness, image: str, policy: PullPolicy, kind: RefusalKind
) -> None:
    handle = harness.start(harness.sh("exit 0", image=image, pull_policy=policy))
    pod = harness.wait(handle, lambda pod: pod.start_failure is not None)
    assert pod.start_failure
    assert pod.start_failure.refusal is kind


def test_what_is_no_name_of_an_image_is_refused_before_there_is_a_pod(harness: Harness) -> None:
    job = harness.sh("exit 0", image="Not A Name")
    with pytest.raises(CannotRun, match="'Not A Name' is not the name of an image") as refused:
        harness.create(job)
    assert refused.value.reason is Reason.IMAGE_NOT_FOUND
    assert harness.backend.find(job.execution) is None


def test_a_stop_lets_the_command_end_itself(harness: Harness) -> None:
    job = harness.sh("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    stream = harness.backend.events()
    handle = harness.start(job)
    harness.wait_for_output(job, "ready")
    harness.backend.signal(handle, "SIGTERM", grace_seconds=60)
    assert [event.exit_code for event in events_of(stream, job, 2)] == [None, 7]


def test_a_kill_ends_a_deaf_command(harness: Harness) -> None:
    job = harness.sh("trap '' TERM; echo ready; while :; do sleep 0.1; done")
    stream = harness.backend.events()
    handle = harness.start(job)
    harness.wait_for_output(job, "ready")
    harness.backend.signal(handle, "SIGKILL")
    assert [event.exit_code for event in events_of(stream, job, 2)] == [None, 137]
    wait_until(lambda: harness.backend.inspect(handle) is None, "the pod is gone")
    with pytest.raises(NotRunning):
        harness.backend.signal(handle, "SIGKILL")


def test_a_running_pod_is_removed_by_force_alone(harness: Harness) -> None:
    job = harness.sh("echo ready; sleep 1000")
    handle = harness.start(job)
    harness.wait_for_output(job, "ready")
    with pytest.raises(BackendRefuses, match="runs"):
        harness.backend.remove(handle, force=False)
    harness.backend.remove(handle, force=True)
    wait_until(lambda: harness.backend.inspect(handle) is None, "the pod is gone")
    harness.backend.remove(handle, force=True)


def test_two_instances_leave_each_others_pods_alone(harness: Harness) -> None:
    mine, theirs = harness.sh("exit 0"), harness.sh("exit 0")
    other = harness.another(new_id())
    handle = harness.create(mine)
    other.create(theirs, NO_IMAGE, Bare())
    (left,) = harness.backend.containers()
    assert (left.handle, left.execution_id, left.own) == (handle, mine.execution.id, True)
    stream = harness.backend.events()
    other.start(other.containers()[0].handle)
    harness.backend.start(handle)
    assert {event.execution_id for event in take(stream, 2)} == {mine.execution.id}


def test_events_go_on_after_the_api_server_was_killed(own_cluster: "Cluster", harness: Harness) -> None:
    job = harness.sh("exit 5")
    handle = harness.create(job)
    stream = harness.backend.events()
    own_cluster.control_plane.kill_api_server()
    with pytest.raises(OSError, match=r"the (watch|API server)"):
        list(stream.events())
    with pytest.raises(BackendDown):
        harness.backend.start(handle)
    own_cluster.control_plane.start_api_server()
    harness.backend.start(handle)
    assert [event.exit_code for event in events_of(harness.backend.events(), job, 2)] == [None, 5]


def test_a_silence_of_the_watch_is_no_end_of_it(harness: Harness) -> None:
    job = harness.sh("exit 0")
    handle = harness.create(job)
    stream = harness.backend.events()
    stream.set_timeout(0.2)
    with pytest.raises(TimeoutError):
        list(stream.events())
    stream.set_timeout(60)
    harness.backend.start(handle)
    assert [event.died for event in events_of(stream, job, 2)] == [False, True]


def test_a_quota_of_the_namespace_holds_pods_up(harness: Harness) -> None:
    quota = {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}
    harness.cluster.api().create_namespaced_resource_quota(harness.namespace, quota)

    def is_refused() -> bool:
        try:
            harness.create(harness.sh("exit 0"))
        except BackendRefuses as refusal:
            return refusal.diagnosis.passes and refusal.about_host
        return False

    # The quota counts from a moment after its creation.
    wait_until(is_refused, "the quota holds")


def test_six_rights_in_the_namespace_are_enough(own_cluster: "Cluster", harness: Harness) -> None:
    from kubernetes import client, config

    backend = harness.another(harness.instance, own_cluster.control_plane.user_kubeconfig)
    with pytest.raises(BackendRefuses, match="cannot list") as refused:
        backend.events()
    assert refused.value.about_host
    assert "look at its Role" in refused.value.diagnosis.advice
    api = client.RbacAuthorizationV1Api(config.new_client_from_config(str(own_cluster.kubeconfig)))
    verbs = ["create", "delete", "get", "list", "patch", "watch"]
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]
    api.create_namespaced_role(harness.namespace, {"metadata": {"name": "fastlane"}, "rules": rules})
    subject = {"kind": "User", "name": "user", "apiGroup": "rbac.authorization.k8s.io"}
    role = {"kind": "Role", "name": "fastlane", "apiGroup": "rbac.authorization.k8s.io"}
    binding = {"metadata": {"name": "fastlane"}, "subjects": [subject], "roleRef": role}
    api.create_namespaced_role_binding(harness.namespace, binding)

    def is_allowed() -> bool:
        try:
            backend.containers()
        except BackendRefuses:
            return False
        return True

    wait_until(is_allowed, "the role is in force")
    job = harness.sh("exit 4")
    stream = backend.events()
    handle = backend.create(job, NO_IMAGE, Bare())
    backend.start(handle)
    assert [event.exit_code for event in events_of(stream, job, 2)] == [None, 4]
    backend.remove(handle, force=False)
    assert backend.containers() == []
    backend.ping(5)
    assert backend.info().version.startswith("v1.")


def events_of(stream: Any, job: Assignment, count: int) -> list[ContainerEvent]:
    events = take(stream, count)
    assert {event.execution_id for event in events} == {job.execution.id}
    return events


def take(stream: Any, count: int) -> list[ContainerEvent]:
    """Return the next events, and end the stream."""
    stream.set_timeout(60)
    found = []
    for event in stream.events():
        assert isinstance(event, ContainerEvent), event
        found.append(event)
        if len(found) == count:
            break
    stream.cut()
    return found
