"""Faults of a cluster under executions that flood: what is killed or cut off comes back, and no byte is missing."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastlane_grpc.model import Cause, Reason, Source, State
from tests.cluster.control_plane import is_ready
from tests.cluster.processes import kill_relay, wait_until
from tests.cluster.relayed import FLOOD, RelayedHarness, lines, outcome
from tests.engine import Going
from tests.tally import tally

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

# Each of this many floods has one fault, at a random place.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120 + 60 * ROUNDS)]

LINES = 200_000
FLOOD_BYTES = LINES * 100


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[RelayedHarness]:
    harness = RelayedHarness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def floods(harness: RelayedHarness) -> Iterator[Going]:
    """Start jobs that flood, one after another; each is there when a random part of its output has arrived."""
    chance = random.Random(SEED)
    for _ in range(ROUNDS):
        going = harness.go_script(FLOOD.format(lines=LINES) + "; exit 4")
        arrived = chance.uniform(0, 0.7) * FLOOD_BYTES
        path = harness.logs.output_path(going.id)
        wait_until(lambda path=path, arrived=arrived: path.exists() and path.stat().st_size > arrived, "it floods")
        yield going
        tally()


def is_exact(harness: RelayedHarness, going: Going) -> bool:
    """Wait for the end of a flood, and check all of it."""
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 4)
    output = harness.output(going.id)
    assert output.gaps == []
    assert output.trailer
    return output.stdout == lines(LINES)


def test_no_byte_is_missing_after_the_kubelet_and_containerd_were_killed(harness: RelayedHarness) -> None:
    for going in floods(harness):
        node = harness.node_of(going)
        node.kill("kubelet")
        node.kill("containerd")
        node.start_containerd()
        node.start_kubelet()
        assert is_exact(harness, going)


def test_no_byte_is_missing_after_a_relay_was_killed(harness: RelayedHarness) -> None:
    for going in floods(harness):
        kill_relay(going.id)
        assert is_exact(harness, going)


def test_no_byte_is_missing_after_the_api_server_was_killed(harness: RelayedHarness) -> None:
    control_plane = harness.cluster.control_plane
    assert control_plane
    for going in floods(harness):
        control_plane.kill_api_server()
        wait_until(lambda: not harness.host.up, "the host is down")
        wait_until(lambda going=going: harness.has_ended_on_node(going), "the job ends")
        control_plane.start_api_server()
        assert going.failure(), "the execution is left to be recovered"
        harness.wait_until(lambda: harness.host.up)
        assert is_exact(harness, harness.adopt(going.id))


def test_no_byte_is_missing_after_a_node_was_cut_off(harness: RelayedHarness) -> None:
    for going in floods(harness):
        node = harness.node_of(going)
        node.cut_off()
        # Until the job has ended behind the cut.
        wait_until(lambda going=going: harness.has_ended_on_node(going), "the job ends")
        node.reconnect()
        assert is_exact(harness, going)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_execution_on_a_node_that_is_removed_is_lost_with_what_had_arrived(harness: RelayedHarness) -> None:
    going = harness.go_script("echo first; exec sleep 1000")
    harness.wait_for_output(going.id, b"first")
    node, api = harness.node_of(going), harness.cluster.api()
    node.cut_off()
    try:
        # The cluster waits for some time before it takes the pods of a removed node for orphans.
        api.delete_node(node.name)
        wait_until(lambda: harness.pod_names() == [], "the pod is removed", seconds=300)
        assert not harness.has_ended_on_node(going), "it still runs there, and nobody can know"
        execution = going.result()
    finally:
        node.reconnect()
        # A kubelet adds its node when it starts.
        node.kill("kubelet")
        node.start_kubelet()
        wait_until(lambda: is_ready(api, node.name), "the node is ready")
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.NODE_LOST)
    output = harness.output(going.id)
    assert output.stdout == b"first\n"
    assert {(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps} == {
        (source, None, Cause.ENGINE) for source in (Source.STDOUT, Source.STDERR)
    }
    # The node finds that the pod is gone, and ends what still ran.
    wait_until(lambda: harness.has_ended_on_node(going), "the job ends")
