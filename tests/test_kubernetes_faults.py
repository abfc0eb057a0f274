"""Faults of a cluster under executions that flood: what is killed or cut off comes back, and no byte is missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastlane_grpc.model import State
from tests.cluster.processes import kill_relay, wait_until
from tests.cluster.relayed import FLOOD, RelayedHarness, lines, outcome
from tests.engine import Going
from tests.tally import tally

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

LINES = 200_000


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[RelayedHarness]:
    harness = RelayedHarness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def flood(harness: RelayedHarness) -> Going:
    """Start a job that floods, and return when it does."""
    going = harness.go_script(FLOOD.format(lines=LINES) + "; exit 4")
    harness.wait_for_output(going.id)
    return going


def is_exact(harness: RelayedHarness, going: Going) -> bool:
    """Wait for the end of a flood, and check all of it."""
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 4)
    output = harness.output(going.id)
    assert output.gaps == []
    assert output.trailer
    return output.stdout == lines(LINES)


def test_no_byte_is_missing_after_the_kubelet_and_containerd_were_killed(harness: RelayedHarness) -> None:
    going = flood(harness)
    node = harness.node_of(going)
    node.kill("kubelet")
    node.kill("containerd")
    tally()
    node.start_containerd()
    node.start_kubelet()
    assert is_exact(harness, going)


def test_no_byte_is_missing_after_a_relay_was_killed(harness: RelayedHarness) -> None:
    going = flood(harness)
    kill_relay(going.id)
    tally()
    assert is_exact(harness, going)


def test_no_byte_is_missing_after_the_api_server_was_killed(harness: RelayedHarness) -> None:
    going = flood(harness)
    control_plane = harness.cluster.control_plane
    assert control_plane
    control_plane.kill_api_server()
    tally()
    wait_until(lambda: not harness.host.up, "the host is down")
    harness.wait_for_output(going.id, b"%098d\n" % LINES)
    control_plane.start_api_server()
    assert going.failure(), "the execution is left to be recovered"
    harness.wait_until(lambda: harness.host.up)
    assert is_exact(harness, harness.adopt(going.id))


def test_no_byte_is_missing_after_a_node_was_cut_off(harness: RelayedHarness) -> None:
    going = flood(harness)
    node = harness.node_of(going)
    node.cut_off()
    tally()
    # Until the job has ended behind the cut.
    wait_until(lambda: harness.has_ended_on_node(going), "the job ends")
    node.reconnect()
    assert is_exact(harness, going)
