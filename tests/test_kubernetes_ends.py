"""Ends that a cluster puts to executions, and what keeps it from taking them: typed, with all output that there is."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastlane_grpc.capture import relayed
from fastlane_grpc.config import SecretSettings
from fastlane_grpc.execution import lifecycle
from fastlane_grpc.model import Cause, Limits, Reason, Source, State, WaitReason, utc_now
from fastlane_grpc.runner import LeaveCommand
from fastlane_grpc.secrets import NamedSecrets
from tests.cluster.loopback import on_nodes
from tests.cluster.processes import kill_recorder, recorders, wait_until
from tests.cluster.relayed import FLOOD, LINE_BYTES, RelayedHarness, lines, outcome
from tests.engine import Going, busybox_tar
from tests.registry import Registry

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

# Prints a line, and runs until it is told to end.
FIRST = "echo first; exec sleep 1000"
DEAF = "trap '' TERM; echo first; while :; do sleep 0.1; done"
BOTH_SOURCES = {(source, None, Cause.ENGINE) for source in (Source.STDOUT, Source.STDERR)}


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[RelayedHarness]:
    harness = RelayedHarness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def printed(harness: RelayedHarness, going: Going) -> tuple[bytes, set[tuple[Source, int | None, Cause]]]:
    """Return what arrived of stdout, and the gaps."""
    output = harness.output(going.id)
    return output.stdout, {(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps}


def test_a_pod_that_is_evicted_is_lost_for_that_reason_with_all_its_output(harness: RelayedHarness) -> None:
    evicted, forced = harness.go_script(FIRST), harness.go_script(FIRST)
    for going in (evicted, forced):
        harness.wait_for_output(going.id, b"first")
    api = harness.cluster.api()
    name = f"fastlane-{evicted.id}"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    api.create_namespaced_pod_eviction(name, harness.namespace, eviction)
    api.delete_namespaced_pod(f"fastlane-{forced.id}", harness.namespace, grace_period_seconds=0)
    execution = evicted.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.EVICTED)
    assert outcome(execution).exit_code == 143
    assert "EvictionByEvictionAPI" in outcome(execution).detail
    assert printed(harness, evicted) == (b"first\n", set())
    execution = forced.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.EVICTED)
    assert "somebody deleted the pod" in outcome(execution).detail
    assert printed(harness, forced)[0] == b"first\n"
    assert harness.pods_are_gone()


def test_a_quota_that_is_used_up_is_waited_for(harness: RelayedHarness) -> None:
    api = harness.cluster.api()
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    api.create_namespaced_resource_quota(harness.namespace, quota)
    wait_until(
        lambda: bool(api.read_namespaced_resource_quota("none", harness.namespace).status.hard), "the quota holds"
    )
    going = harness.go_script("exit 3")
    expires = harness.go_script("exit 3", expire_time=utc_now() + timedelta(seconds=2))
    wait_until(lambda: going.mailbox.waiting is not None, "it waits")
    waiting = going.mailbox.waiting
    assert waiting
    assert waiting.reason is WaitReason.UNSCHEDULABLE
    assert "the quota of the namespace is used up" in waiting.detail
    assert expires.result().state is State.EXPIRED
    api.delete_namespaced_resource_quota("none", harness.namespace)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3)


def test_a_namespace_that_is_deleted_is_waited_for_and_its_pods_are_lost(
    harness: RelayedHarness, own_cluster: "Cluster"
) -> None:
    api, kept = own_cluster.api(), harness.namespace
    harness.namespace = own_cluster.make_namespace()
    harness.reopen()
    ran = harness.go_script(FIRST)
    harness.wait_for_output(ran.id, b"first")
    api.delete_namespace(harness.namespace)
    execution = ran.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.EVICTED)
    assert printed(harness, ran) == (b"first\n", set())
    going = harness.go_script("exit 3")
    wait_until(lambda: going.mailbox.waiting is not None, "it waits")
    waiting = going.mailbox.waiting
    assert waiting
    assert waiting.reason is WaitReason.UNSCHEDULABLE
    assert "the namespace is gone: make it again" in waiting.detail
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.namespace = kept
    harness.reopen()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives up the silent relay of a pod that is gone at once."""
    monkeypatch.setattr(lifecycle, "DELIVERY_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(relayed, "SILENCE_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_output_that_comes_long_after_the_end_of_a_job_is_waited_for(harness: RelayedHarness) -> None:
    first, rest = FLOOD.format(lines=1_000), FLOOD.format(lines=200_000)
    going = harness.go_script(f"{first}; until [ -e /server-is-gone ]; do sleep 0.1; done; {rest}; exit 4")
    harness.wait_for_output(going.id)
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.serves = False
    harness.close_floors()
    # A quick relay would have copied everything before.
    (recorder,) = recorders(going.id)
    Path(f"/proc/{recorder}/root/server-is-gone").touch()
    wait_until(lambda: harness.has_ended_on_node(going), "the job has ended")
    # It would wait for the relay.
    kill_recorder(going.id)
    harness.wait_for_end_of_job(going)
    harness.open()
    going = harness.adopt(going.id)
    harness.wait_for_system(going.id, "waiting for the rest of its output")
    harness.serve()
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 4)
    assert printed(harness, going) == (lines(1_000) + lines(200_000), set())


def test_an_end_that_was_recorded_stays_when_the_pod_is_gone_before_a_server_looks(harness: RelayedHarness) -> None:
    going = harness.go_script("echo first; sleep 3; echo last; exit 7")
    harness.wait_for_output(going.id, b"first")
    # Relays go on, as if their execution had not been taken up again yet.
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    wait_until(lambda: harness.output(going.id).trailer is not None, "the record is complete")
    harness.cluster.api().delete_namespaced_pod(f"fastlane-{going.id}", harness.namespace)
    assert harness.pods_are_gone()
    harness.reopen()
    going = harness.adopt(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert printed(harness, going) == (b"first\nlast\n", set())


def test_a_timeout_ends_pods_that_listen_and_pods_that_do_not(harness: RelayedHarness) -> None:
    polite = harness.go_script(
        "trap 'echo bye; exit 7' TERM; echo first; while :; do sleep 0.1; done", timeout=timedelta(seconds=3)
    )
    deaf = harness.go_script(DEAF, timeout=timedelta(seconds=3), stop_grace=timedelta(seconds=1))
    ends = {going: going.result() for going in (polite, deaf)}
    assert [ends[going].state for going in (polite, deaf)] == [State.TIMED_OUT] * 2
    assert outcome(ends[polite]).exit_code == 7
    assert printed(harness, polite) == (b"first\nbye\n", set())
    assert printed(harness, deaf) == (b"first\n", set())
    assert harness.pods_are_gone()


def test_a_deaf_job_of_a_deleted_pod_ends_after_its_own_grace(harness: RelayedHarness) -> None:
    going = harness.go_script(DEAF, stop_grace=timedelta(seconds=1))
    harness.wait_for_output(going.id, b"first")
    # Nobody but its recorder can end it.
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.close_floors()
    harness.cluster.api().delete_namespaced_pod(f"fastlane-{going.id}", harness.namespace)
    wait_until(lambda: harness.has_ended_on_node(going), "the job has ended")
    harness.open()
    going = harness.adopt(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.EVICTED)
    assert outcome(execution).exit_code == 137
    assert printed(harness, going) == (b"first\n", set())


class LateKit(relayed.RelayKit):
    """In the first pod the recorder is not in its place."""

    is_first = True

    def wrap(self, body: Mapping[str, Any], *of_pod: Any) -> Mapping[str, Any]:
        wrapped = relayed.RelayKit.wrap(self, body, *of_pod)
        if LateKit.is_first:
            LateKit.is_first = False
            words = wrapped["spec"]["containers"][0]["command"]
            words[0] = f"{words[0]}-not-yet"
        return wrapped


def test_a_job_that_its_node_starts_without_the_recorder_gets_another_pod(
    harness: RelayedHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cluster.relayed.RelayKit", LateKit)
    harness.reopen()
    execution = harness.script("echo ran; exit 3")
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3)
    assert "bin/recorder-not-yet" in harness.system(execution.id)
    assert harness.output(execution.id).stdout == b"ran\n"
    assert harness.pods_are_gone()


def test_a_pod_that_ends_before_its_image_has_come_has_not_run(harness: RelayedHarness) -> None:
    with Registry(busybox_tar()).serving() as registry, on_nodes(registry, harness.cluster):
        image = f"{registry.name}/failing/x:first"
        stopped, deleted = (harness.go_script("echo ran", image=image) for _ in range(2))
        for going in (stopped, deleted):
            # Its relay has the grant by then.
            harness.wait_for_system(going.id, "does not start it for now")
        harness.stop(stopped.id, grace=1)
        assert stopped.result().state is State.STOPPED
        harness.cluster.api().delete_namespaced_pod(f"fastlane-{deleted.id}", harness.namespace)
        harness.wait_for_system(deleted.id, "a new one is made")
        registry.failures = 0
        assert deleted.result().state is State.SUCCEEDED
    assert printed(harness, stopped) == (b"", set())
    assert printed(harness, deleted) == (b"ran\n", set())
    assert harness.pods_are_gone()


def test_a_job_times_out_though_no_server_is_there(harness: RelayedHarness) -> None:
    going = harness.go_script(FIRST, timeout=timedelta(minutes=1))
    harness.wait_for_output(going.id, b"first")
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.close_floors()
    # The net that the pod has is the job's timeout and more than an hour.
    assert harness.pod(going).spec.active_deadline_seconds > 3600
    harness.cluster.api().patch_namespaced_pod(
        f"fastlane-{going.id}", harness.namespace, {"spec": {"activeDeadlineSeconds": 1}}
    )
    wait_until(lambda: harness.has_ended_on_node(going), "the job has ended")
    harness.open()
    going = harness.adopt(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.TIMED_OUT, 143)
    assert printed(harness, going) == (b"first\n", set())


def test_a_job_that_takes_too_much_memory_has_that_reason(harness: RelayedHarness) -> None:
    going = harness.go_script("echo first; tail /dev/zero", limits=Limits(memory_bytes=32 << 20))
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.OUT_OF_MEMORY)
    assert printed(harness, going) == (b"first\n", set())


def test_a_container_killed_with_its_recorder_costs_no_byte(harness: RelayedHarness) -> None:
    # Notes what it has printed, line by line, where a test can read it after the end.
    counting = "n=0; while :; do n=$((n + 1)); printf '%098d\\n' $n; echo $n >>/counted; done"
    floods = [harness.go_script(FLOOD.format(lines=100_000_000)) for _ in range(3)]
    slow = harness.go_script(counting)
    for going in (*floods, slow):
        harness.wait_for_output(going.id, b"%098d\n" % 1_000)
    (recorder,) = recorders(slow.id)
    with Path(f"/proc/{recorder}/root/counted").open() as counted:
        for going in (*floods, slow):
            kill_recorder(going.id)
        for going in (*floods, slow):
            execution = going.result()
            assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.EXIT_CODE)
            assert outcome(execution).exit_code == 137
            stdout, gaps = printed(harness, going)
            assert gaps == set()
            assert stdout == lines(len(stdout) // LINE_BYTES + 1)[: len(stdout)]
        *_, last = [line for line in counted.read().splitlines(keepends=True) if line.endswith("\n")]
    assert len(stdout) // LINE_BYTES in {int(last), int(last) + 1}
    assert harness.pods_are_gone()


def test_masked_output_that_is_killed_with_its_recorder_has_a_gap(harness: RelayedHarness, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of the job")
    harness.secrets = NamedSecrets([SecretSettings("s", "*", file=tmp_path / "secret")])
    harness.reopen()
    going = harness.go_script(FIRST, secret_envs={"S": "s"})
    harness.wait_for_output(going.id, b"first")
    kill_recorder(going.id)
    assert outcome(going.result()).exit_code == 137
    assert printed(harness, going) == (b"first\n", BOTH_SOURCES)
