"""Pods that a cluster ends for its own reasons: preemption, a node's pressure, a node that is out of service."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastlane_grpc.model import Cause, Limits, Reason, Source, State
from tests.cluster.control_plane import is_ready
from tests.cluster.processes import wait_until
from tests.cluster.relayed import RelayedHarness, outcome
from tests.engine import Going

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
FIRST = "echo first; exec sleep 1000"


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[RelayedHarness]:
    harness = RelayedHarness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def printed(harness: RelayedHarness, going: Going) -> tuple[bytes, list[tuple[Source, int | None, Cause]]]:
    output = harness.output(going.id)
    return output.stdout, [(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps]


@pytest.fixture
def urgent(harness: RelayedHarness) -> Iterator[str]:
    """The name of a priority class above that of jobs."""
    from kubernetes import client, config

    api = client.SchedulingV1Api(config.new_client_from_config(str(harness.cluster.kubeconfig)))
    name = f"{harness.namespace}-urgent"
    api.create_priority_class({"metadata": {"name": name}, "value": 1000})
    yield name
    api.delete_priority_class(name)


def test_a_pod_that_is_preempted_is_lost_for_that_reason_with_its_output(harness: RelayedHarness, urgent: str) -> None:
    harness.want_node()
    harness.give_node()
    api = harness.cluster.api()
    processors = processors_of_node(harness) * 0.6
    going = harness.go_script(
        "trap 'echo bye; exit 7' TERM; echo first; while :; do sleep 0.1; done", limits=Limits(cpus=processors)
    )
    harness.wait_for_output(going.id, b"first")
    resources = {"requests": {"cpu": f"{round(processors * 1000)}m"}}
    container = {"name": "x", "image": harness.cluster.image, "command": ["true"], "resources": resources}
    spec: dict[str, object] = {
        "containers": [container],
        "priorityClassName": urgent,
        "nodeSelector": harness.node_selector,
        "restartPolicy": "Never",
    }
    api.create_namespaced_pod(harness.namespace, {"metadata": {"name": "urgent"}, "spec": spec})
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.EVICTED)
    assert outcome(execution).exit_code == 7
    assert "PreemptionByScheduler" in outcome(execution).detail
    assert printed(harness, going) == (b"first\nbye\n", [])


def processors_of_node(harness: RelayedHarness) -> int:
    [node] = harness.cluster.api().list_node(label_selector=selector(harness)).items
    allocatable = node.status.allocatable
    assert allocatable
    return int(allocatable["cpu"])


def selector(harness: RelayedHarness) -> str:
    return ",".join(f"{name}={value}" for name, value in harness.node_selector.items())


def test_a_pod_that_its_node_evicts_is_lost_for_that_reason_with_its_output(harness: RelayedHarness) -> None:
    # The kubelet ends a pod that takes too much of its disk as it ends pods when the whole disk is full.
    limit = {"type": "Container", "default": {"ephemeral-storage": "20Mi"}}
    limit_range = {"metadata": {"name": "disk"}, "spec": {"limits": [limit]}}
    harness.cluster.api().create_namespaced_limit_range(harness.namespace, limit_range)
    going = harness.go_script("echo first; head -c 100000000 /dev/zero > /much; echo full; exec sleep 1000")
    harness.wait_for_output(going.id, b"full")
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.EVICTED)
    assert "ephemeral" in outcome(execution).detail
    assert printed(harness, going) == (b"first\nfull\n", [])


@pytest.mark.slow
def test_an_execution_on_a_node_that_is_out_of_service_is_lost_with_what_had_arrived(harness: RelayedHarness) -> None:
    going = harness.go_script(FIRST)
    harness.wait_for_output(going.id, b"first")
    node, api = harness.node_of(going), harness.cluster.api()
    node.cut_off()
    try:
        wait_until(lambda: not is_ready(api, node.name), "the cluster misses the node", seconds=120)
        # What an administrator says of a node that is certainly off.
        set_taints(api, node.name, [{"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}])
        wait_until(lambda: harness.pod_names() == [], "the pod is removed", seconds=120)
        execution = going.result()
    finally:
        set_taints(api, node.name, [])
        node.reconnect()
        wait_until(lambda: is_ready(api, node.name), "the node is ready", seconds=120)
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.NODE_LOST)
    assert "DeletionByTaintManager" in outcome(execution).detail
    output, gaps = printed(harness, going)
    assert output == b"first\n"
    assert set(gaps) == {(source, None, Cause.ENGINE) for source in (Source.STDOUT, Source.STDERR)}


def set_taints(api: Any, node: str, taints: list[dict[str, str]]) -> None:
    """Replace the taints of a node by those of this kind, and by what the cluster itself has put on it."""
    others = [each.to_dict() for each in api.read_node(node).spec.taints or () if each.key != OUT_OF_SERVICE]
    kept = [{name: each[name] for name in ("key", "value", "effect") if each.get(name)} for each in others]
    api.patch_node(node, {"spec": {"taints": [*kept, *taints]}})
