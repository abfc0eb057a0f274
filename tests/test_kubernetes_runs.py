"""Executions on a real cluster, by a server's lower floors: waits for a node or an image, and what ends them."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastlane_grpc.execution import Step, host
from fastlane_grpc.model import Execution, Gpus, Nodes, Outcome, Reason, State, WaitReason, utc_now
from fastlane_grpc.runner import LeaveCommand
from tests.cluster.harness import ClusterHarness
from tests.cluster.processes import wait_until

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

AWAY = "127.0.0.1:1/nothing:1"


@pytest.fixture
def harness(tmp_path: Path, cluster: "Cluster", namespace: str) -> Iterator[ClusterHarness]:
    harness = ClusterHarness(tmp_path, cluster, namespace)
    yield harness
    harness.close()


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


def test_nodes_that_come_are_counted_without_a_restart(
    harness: ClusterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "NODES_SECONDS", 0.1)
    harness.want_node()
    assert harness.host.report(running=0, max_running=1).nodes == Nodes(0, 0)
    harness.give_node()
    wait_until(lambda: harness.host.report(running=0, max_running=1).nodes == Nodes(1, 1), "the node is counted")


def test_a_pod_that_waits_for_a_node_says_why_and_runs_when_there_is_one(harness: ClusterHarness) -> None:
    harness.want_node()
    going = harness.go_waiting("exit 3")
    waiting = going.mailbox.waiting
    assert waiting
    assert waiting.reason is WaitReason.UNSCHEDULABLE
    assert "the cluster has no node for it: 0/" in waiting.detail
    assert harness.execution(going.id).state is State.PREPARING
    harness.give_node()
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3)
    assert going.mailbox.waiting is None
    assert harness.system(going.id).count("waiting: ") == 1
    assert "goes on after" in harness.system(going.id)
    assert harness.pods_are_gone()


def test_a_job_gets_gpus_of_a_node_that_offers_them(harness: ClusterHarness) -> None:
    # Any resource with a name of its own is given out as those of a plugin for GPUs are.
    api = harness.cluster.api()
    node = api.list_node().items[0].metadata.name
    resource = f"{harness.namespace}.test/gpu"
    api.patch_node_status(node, {"status": {"capacity": {resource: "2"}}})
    harness.settings = {"gpu_resource": resource, "default_cpus": 0.1, "default_memory_bytes": 64 << 20}
    harness.reopen()
    assert harness.sh("exit 3", gpus=Gpus(2)).state is State.FAILED
    going = harness.go("sh -c", "exit 3", gpus=Gpus(3))
    wait_until(lambda: going.mailbox.waiting is not None, "it waits for a node")
    assert going.mailbox.waiting
    assert f"Insufficient {resource}" in going.mailbox.waiting.detail
    harness.stop(going.id)
    assert going.result().state is State.STOPPED
    assert harness.pods_are_gone()


def test_a_stop_takes_back_a_start_that_waits_for_a_node(harness: ClusterHarness) -> None:
    harness.want_node()
    going = harness.go_waiting("exit 3")
    harness.stop(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)
    assert "before it was started" in outcome(execution).detail
    assert harness.pods_are_gone()


def test_the_next_server_waits_on_in_the_place_of_one_that_left(harness: ClusterHarness) -> None:
    harness.want_node()
    going = harness.go_waiting("exit 3")
    (pod,) = harness.pod_names()
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.reopen()
    next_one = harness.adopt(going.id)
    wait_until(lambda: next_one.mailbox.waiting is not None, "it waits for a node")
    assert harness.pod_names() == [pod]
    harness.give_node()
    execution = next_one.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3)


@pytest.mark.parametrize("step", [Step.CREATED, Step.FENCED, Step.STARTED])
def test_a_server_killed_around_the_start_leaves_one_pod_to_the_next(harness: ClusterHarness, step: Step) -> None:
    execution = harness.adopt(harness.kill_at(step, "exit 3")).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3)
    assert harness.pods_are_gone()


def test_a_stop_while_no_server_runs_takes_back_a_start(harness: ClusterHarness) -> None:
    harness.want_node()
    going = harness.go_waiting("exit 3")
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.stop(going.id)
    harness.reopen()
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)
    assert harness.pods_are_gone()


def test_an_execution_expires_while_it_waits_for_a_node(harness: ClusterHarness) -> None:
    harness.want_node()
    execution = harness.go("sh -c", "exit 3", expire_time=utc_now() + timedelta(seconds=3)).result()
    assert execution.state is State.EXPIRED
    assert harness.pods_are_gone()


def test_a_pod_removed_while_it_waits_is_not_made_again(harness: ClusterHarness) -> None:
    harness.want_node()
    going = harness.go_waiting("exit 3")
    harness.cluster.api().delete_namespaced_pod(harness.pod_names()[0], harness.namespace)
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.START_UNKNOWN)
    assert "somebody removed" in outcome(execution).detail


def test_a_command_that_an_image_lacks_has_its_reason(harness: ClusterHarness) -> None:
    execution = harness.run("no-such-command")
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.COMMAND_NOT_FOUND)


def test_a_registry_that_stays_away_is_given_up(harness: ClusterHarness) -> None:
    harness.retry_seconds = 0.5
    harness.reopen()
    execution = harness.run("true", image=AWAY)
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.REGISTRY_UNAVAILABLE)
    assert harness.pods_are_gone()


def test_a_stop_ends_the_tries_of_a_node_to_get_an_image(harness: ClusterHarness) -> None:
    going = harness.go("true", image=AWAY)
    harness.wait_for_system(going.id, "tries again")
    harness.stop(going.id)
    assert going.result().state is State.STOPPED
    assert harness.pods_are_gone()
