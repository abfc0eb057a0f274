"""The cluster of this machine that other tests run on: it takes pods, its parts can be killed, it leaves nothing."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.processes import run, wait_until

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def start_pod(cluster: "Cluster", namespace: str, name: str, script: str, *, node: str = "") -> Callable[[], Any]:
    """Start a pod, and return the question after its state."""
    container = {"name": "job", "image": cluster.image, "command": ["sh", "-c", script]}
    spec: dict[str, Any] = {
        "containers": [container],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    api = cluster.api()
    api.create_namespaced_pod(namespace, {"metadata": {"name": name}, "spec": spec})
    return lambda: api.read_namespaced_pod(name, namespace)


def wait_for_phase(pod: Callable[[], Any], *phases: str) -> Any:
    wait_until(lambda: pod().status.phase in phases, f"the pod is {' or '.join(phases)}")
    return pod()


def exit_code(pod: Any) -> int:
    return int(pod.status.container_statuses[0].state.terminated.exit_code)


def test_pods_run_to_their_ends_on_each_node(own_cluster: "Cluster", namespace: str) -> None:
    pods = {name: start_pod(own_cluster, namespace, f"on-{name}", "exit 7", node=name) for name in own_cluster.nodes}
    for name, pod in pods.items():
        ended = wait_for_phase(pod, "Failed")
        assert (ended.spec.node_name, exit_code(ended)) == (name, 7)


def test_the_scheduler_finds_a_node_for_a_pod(cluster: "Cluster", namespace: str) -> None:
    pod = wait_for_phase(start_pod(cluster, namespace, "anywhere", "exit 0"), "Succeeded")
    assert pod.spec.node_name


def test_a_container_outlives_the_kubelet_and_containerd(own_cluster: "Cluster", namespace: str) -> None:
    node = own_cluster.nodes["n1"]
    script = "mkfifo /tmp/end; read line </tmp/end; exit 3"
    pod = start_pod(own_cluster, namespace, "outlives", script, node="n1")
    wait_for_phase(pod, "Running")
    wait_until(lambda: is_at_fifo(script), "the container waits")
    node.kill("kubelet")
    node.kill("containerd")
    (process,) = processes_with(script)
    Path("/proc", str(process), "root", "tmp", "end").write_text("\n")
    wait_until(lambda: not processes_with(script), "the container ends")
    node.start_containerd()
    node.start_kubelet()
    assert exit_code(wait_for_phase(pod, "Failed")) == 3


def is_at_fifo(script: str) -> bool:
    """Whether the shell has made its pipe: by a process, which looks like the shell for a moment."""
    processes = processes_with(script)
    return len(processes) == 1 and Path("/proc", str(processes[0]), "root", "tmp", "end").exists()


def test_an_api_server_that_is_killed_comes_back_with_its_pods(own_cluster: "Cluster", namespace: str) -> None:
    pod = start_pod(own_cluster, namespace, "kept", "exit 0")
    own_cluster.control_plane.kill_api_server()
    own_cluster.control_plane.start_api_server()
    wait_for_phase(pod, "Succeeded")


def test_a_node_that_is_cut_off_is_not_reached_until_it_is_back(own_cluster: "Cluster") -> None:
    node = own_cluster.nodes["n2"]
    wait_until(lambda: kubelet_answers(node.address), "the kubelet answers")
    node.cut_off()
    assert not kubelet_answers(node.address)
    node.reconnect()
    wait_until(lambda: kubelet_answers(node.address), "the node is back")


def kubelet_answers(address: str) -> bool:
    from tests.cluster.node import KUBELET_PORT

    try:
        with socket.create_connection((address, KUBELET_PORT), timeout=1):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("killed", [False, True], ids=["taken down", "killed"])
def test_a_cluster_leaves_nothing_behind(own_cluster: "Cluster", tmp_path: Path, killed: bool) -> None:
    programs, directory = own_cluster.nodes["n1"].programs, tmp_path / "second"
    before = kernel_settings()
    command = ["-m", "tests.cluster", str(programs), str(directory), own_cluster.image]
    with subprocess.Popen(["unshare", "--net", sys.executable, *command], stderr=subprocess.PIPE, text=True) as second:
        assert second.stderr
        said = ""
        while "Ctrl-C" not in said:
            line = second.stderr.readline()
            assert line, said
            said += line
        assert processes_with(str(directory))
        second.send_signal(signal.SIGKILL if killed else signal.SIGINT)
    wait_until(lambda: not processes_with(str(directory)), "all processes end")
    if killed:
        run(sys.executable, "-c", "from tests.cluster import cgroups; cgroups.remove_left()")
    groups = f"fastlane-cluster-{second.pid}-*"
    assert not [*Path("/sys/fs/cgroup").glob(groups), *Path("/sys/fs/cgroup").glob(f"*/{groups}")]
    assert kernel_settings() == before
    assert str(directory) not in Path("/proc/self/mounts").read_text()


def kernel_settings() -> list[str]:
    names = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
    return [Path("/proc/sys", name).read_text() for name in names]


def processes_with(words: str) -> list[int]:
    """The processes of this machine, but this one, with these words in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if words in path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(path.name))
        except OSError:
            continue
    return [process for process in found if process != os.getpid()]
