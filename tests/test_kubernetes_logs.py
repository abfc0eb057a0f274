"""Logs of executions on a real cluster, through the recorder and the relay: exact, whatever ends or goes away."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastlane_grpc.execution import Step
from fastlane_grpc.model import Cause, Reason, Source, State
from fastlane_grpc.runner import LeaveCommand
from tests.cluster.loopback import on_nodes
from tests.cluster.relayed import FLOOD, SH, RelayedHarness, lines, outcome
from tests.engine import Killed, busybox_tar
from tests.registry import Registry, digest

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[RelayedHarness]:
    harness = RelayedHarness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def test_twenty_megabytes_of_each_source_arrive_to_the_byte(harness: RelayedHarness) -> None:
    flood = FLOOD.format(lines=200_000)
    execution = harness.script(f"{flood}; head -c 20000000 /dev/urandom | tee /dev/stderr | sha256sum >&2; exit 3")
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3)
    output = harness.output(execution.id)
    assert output.stdout == lines(200_000)
    printed, digest = output.stderr[:20_000_000], output.stderr[20_000_000:].split()[0]
    assert hashlib.sha256(printed).hexdigest().encode() == digest
    assert output.gaps == []
    assert output.trailer
    assert harness.pods_are_gone()


def test_no_byte_is_missing_after_servers_that_went_away_in_a_flood(harness: RelayedHarness) -> None:
    going = harness.go("", FLOOD.format(lines=400_000) + "; exit 4", entrypoint=SH)
    for number in range(3):
        harness.wait_for_output(going.id)
        going.mailbox.put(LeaveCommand())
        assert going.failure(), number
        harness.reopen()
        going = harness.adopt(going.id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 4)
    output = harness.output(execution.id)
    assert output.stdout == lines(400_000)
    assert output.gaps == []


def test_servers_killed_at_any_step_leave_every_byte_of_one_run(harness: RelayedHarness) -> None:
    steps = (Step.CREATED, Step.FENCED, Step.STARTED, Step.RUNNING, Step.DIED, Step.SEALED)
    killed = [harness.go("", "echo once; exit 3", entrypoint=SH, kill_at=step) for step in steps]
    assert all(isinstance(going.failure(), Killed) for going in killed)
    harness.reopen()
    adopted = [harness.adopt(going.id) for going in killed]
    for step, going in zip(steps, adopted, strict=True):
        execution = going.result()
        assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 3), step
        output = harness.output(execution.id)
        assert (output.stdout, output.gaps) == (b"once\n", []), step
    assert harness.pods_are_gone()


def test_a_command_that_an_image_lacks_has_its_reason(harness: RelayedHarness) -> None:
    execution = harness.run("", entrypoint=("no-such-command",))
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.COMMAND_NOT_FOUND)
    assert "no-such-command" in outcome(execution).detail


def test_what_a_job_does_not_say_is_read_from_its_registry(harness: RelayedHarness) -> None:
    with Registry(busybox_tar()).serving() as registry, on_nodes(registry, harness.cluster):
        image = f"{registry.name}/any:first"
        execution = harness.run("echo", "$(found)", "$$", image=image, entrypoint=())
        assert execution.state is State.SUCCEEDED, execution.outcome
        assert execution.image_digest == digest(registry.manifest)
        assert harness.output(execution.id).stdout == b"$(found) $$\n"
        assert f"found {image}: {execution.image_digest}" in harness.system(execution.id)
        # The shell of the image, whose input is empty.
        assert harness.run(image=image, entrypoint=()).state is State.SUCCEEDED
        # The nodes were asked for what was read, whatever the tag names by then.
        assert digest(registry.manifest) in registry.pulls
        denied = harness.run("echo", image=f"{registry.name}/denied/x:first", entrypoint=())
        assert (denied.state, outcome(denied).reason) == (State.FAILED, Reason.IMAGE_DENIED)
        registry.failures = 2
        assert harness.run("true", image=f"{registry.name}/failing/x:first", entrypoint=()).state is State.SUCCEEDED
    assert harness.pods_are_gone()


def test_what_a_command_printed_before_its_end_is_kept_however_it_is_ended(harness: RelayedHarness) -> None:
    # At the same time, as each pod mostly waits.
    polite = harness.go("", "trap 'echo bye; exit 7' TERM; echo first; while :; do sleep 0.1; done", entrypoint=SH)
    deaf = harness.go("", "trap '' TERM; echo first; while :; do sleep 0.1; done", entrypoint=SH)
    deleted = harness.go("", "echo first; exec sleep 1000", entrypoint=SH)
    for going in (polite, deaf, deleted):
        harness.wait_for_output(going.id, b"first")
    harness.stop(polite.id, grace=60)
    harness.stop(deaf.id, grace=0)
    harness.cluster.api().delete_namespaced_pod(f"fastlane-{deleted.id}", harness.namespace)

    ends = {going: going.result() for going in (polite, deaf, deleted)}
    assert (ends[polite].state, outcome(ends[polite]).exit_code) == (State.STOPPED, 7)
    assert (ends[deleted].state, outcome(ends[deleted]).reason) == (State.LOST, Reason.EVICTED)
    assert outcome(ends[deleted]).exit_code == 143
    assert ends[deaf].state is State.STOPPED
    printed = [harness.output(going.id) for going in (polite, deaf, deleted)]
    assert [output.stdout for output in printed] == [b"first\nbye\n", b"first\n", b"first\n"]
    # The recorder of the deaf one was killed with it: what its pipes held is not known.
    assert (printed[0].gaps, printed[2].gaps) == ([], [])
    assert {(gap.source, gap.missing_bytes, gap.cause) for gap in printed[1].gaps} == {
        (source, None, Cause.ENGINE) for source in (Source.STDOUT, Source.STDERR)
    }
    assert harness.pods_are_gone()
