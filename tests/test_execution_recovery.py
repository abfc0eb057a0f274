"""A server that was killed, and the next one: for each thing that the engine may have, what becomes of the execution.

What the ways of capture promise of output that was printed while no server was there is the one thing that tells them
apart: the recorder keeps every byte; of an attachment the time of the break is a gap of unknown size in each source.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import docker
import pytest
from docker.models.containers import Container

from fastlane_grpc import backend
from fastlane_grpc.capture.handoff import CommandStatus, RecordHandoff
from fastlane_grpc.docker import DockerBackend
from fastlane_grpc.docker.engine import container_name
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Cause, Execution, Outcome, Reason, Source, State
from fastlane_grpc.runner import HostDown, LeaveCommand
from tests.engine import EngineHarness, Going, Killed, Output, by_attach, by_recorder, capture_of
from tests.recorder_program import eventually
from tests.serving import within

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

# Prints numbers while a server goes and comes, and exits with a code that nobody else uses.
COUNT = "i=0; while [ $i -lt 15 ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit 7"
NUMBERS = [f"{number}".encode() for number in range(1, 16)]


# Of output that is missing, nobody knows how much of it.
UNKNOWN: list[tuple[Source, int | None, Cause]] = [
    (Source.STDOUT, None, Cause.ENGINE),
    (Source.STDERR, None, Cause.ENGINE),
]


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


def gaps(output: Output) -> list[tuple[Source, int | None, Cause]]:
    return [(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps]


def break_of(harness: EngineHarness) -> list[tuple[Source, int | None, Cause]]:
    """The gaps that a time without a server leaves in the log of a container that ran meanwhile."""
    return UNKNOWN if harness.capture is CaptureMode.ATTACH else []


@pytest.fixture
def container_of(harness: EngineHarness, sdk: docker.DockerClient) -> Callable[[str], Container]:
    """The container of an execution, by the SDK."""

    def find(execution_id: str) -> Container:
        return sdk.containers.get(container_name(execution_id))

    return find


# -- the start was not committed


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.PULLED, Step.CREATED, Step.ATTACHED])
def test_before_the_fence_it_begins_anew(harness: EngineHarness, step: Step) -> None:
    execution = harness.adopt(harness.kill_at(step, "echo once; exit 7")).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    output = harness.output(execution.id)
    assert (output.stdout, output.gaps) == (b"once\n", [])
    assert not harness.engine.containers(harness.store.instance)


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.ATTACHED])
def test_before_the_fence_a_stop_that_came_meanwhile_starts_nothing(harness: EngineHarness, step: Step) -> None:
    execution_id = harness.kill_at(step, "echo ran")
    harness.stop(execution_id)
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)
    assert not harness.engine.containers(harness.store.instance)


def test_a_container_of_another_under_this_name_is_left_alone(harness: EngineHarness, sdk: docker.DockerClient) -> None:
    assignment = harness.claim("true")
    foreign = sdk.containers.create(harness.image, "true", name=container_name(assignment.execution.id))
    try:
        execution = harness.adopt(assignment.execution.id).result()
        assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.REFUSED_BY_ENGINE)
        assert container_name(assignment.execution.id) in outcome(execution).detail
        foreign.reload()
        assert foreign.status == "created"
    finally:
        foreign.remove()


@pytest.mark.parametrize("command", ["true", "sleep 60"])
def test_a_container_that_ran_without_being_started_is_lost_and_removed(
    harness: EngineHarness, container_of: Callable[[str], Container], command: str
) -> None:
    execution_id = harness.kill_at(Step.ATTACHED, command)
    container = container_of(execution_id)
    container.start()
    if command == "true":
        container.wait()
    elif harness.capture is CaptureMode.RECORDER:
        # A recorder that has not taken the record yet never runs the command: a new container would be made.
        handoff = RecordHandoff(harness.logs.path(execution_id))
        eventually(lambda: handoff.recorder_is_running)
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.START_UNKNOWN)
    assert not harness.engine.containers(harness.store.instance)


# -- the start was committed


@by_attach
def test_nothing_there_is_lost(harness: EngineHarness, container_of: Callable[[str], Container]) -> None:
    execution_id = harness.kill_at(Step.FENCED, "echo never")
    container_of(execution_id).remove()
    going = harness.adopt(execution_id)
    execution = going.result()
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.CONTAINER_GONE)
    assert Step.STARTED not in going.steps
    output = harness.output(execution_id)
    assert gaps(output) == UNKNOWN
    assert output.trailer is not None


@by_recorder
@pytest.mark.parametrize("there", [True, False], ids=["created", "gone"])
def test_what_has_not_begun_for_certain_runs_in_a_new_container(
    harness: EngineHarness, container_of: Callable[[str], Container], there: bool
) -> None:
    execution_id = harness.kill_at(Step.FENCED, "echo once; exit 7")
    first = container_of(execution_id)
    if not there:
        first.remove()
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code, capture_of(execution)) == (State.FAILED, 7, "recorder")
    assert execution.container_id != first.id
    output = harness.output(execution_id)
    assert (output.stdout, output.gaps) == (b"once\n", [])
    assert "a new one is made" in harness.system(execution_id)
    assert not harness.engine.containers(harness.store.instance)


class Forgetful(DockerBackend):
    """An engine that takes every container for ended."""

    def inspect(self, handle: backend.Handle) -> backend.Container | None:
        found = super().inspect(handle)
        return found and replace(found, alive=False, ended=True, exit_code=255)


@by_recorder
def test_an_end_that_no_engine_reports_is_noticed_soon(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.RUNNING, "sleep 3; exit 7")
    # From now on the engine reports no end.
    harness.host.close()
    harness.host.backend = Forgetful(harness.engine, instance=harness.store.instance, host="local", default_pids=256)
    with within(20):
        execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)


@by_recorder
def test_what_is_taken_up_before_it_is_known_how_to_capture_waits_for_that(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.FENCED, "echo once")
    settled = harness.host.captures
    harness.host.captures = harness.captures(CaptureMode.AUTO)
    assert isinstance(harness.adopt(execution_id).failure(), HostDown)
    assert harness.execution(execution_id).state is State.QUEUED
    harness.host.captures = settled
    harness.store.claim_on(["local"]).result()
    execution = harness.adopt(execution_id).result()
    assert (execution.state, capture_of(execution), harness.output(execution_id).stdout) == (
        State.SUCCEEDED,
        "recorder",
        b"once\n",
    )


@by_recorder
def test_a_container_that_begins_after_all_finds_that_its_run_was_revoked(
    harness: EngineHarness, container_of: Callable[[str], Container]
) -> None:
    execution_id = harness.kill_at(Step.FENCED, "echo ran; exit 7")
    first = container_of(execution_id)
    assert RecordHandoff(harness.logs.path(execution_id)).revoke() is CommandStatus.NEVER_RAN
    first.start()
    assert first.wait()["StatusCode"] == 119
    execution = harness.adopt(execution_id).result()
    assert outcome(execution).exit_code == 7
    assert harness.output(execution_id).stdout == b"ran\n"


@by_attach
def test_a_record_that_became_a_pipe_is_begun_anew_with_a_gap(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.RUNNING, COUNT)
    record = harness.logs.output_path(execution_id)
    record.unlink()
    os.mkfifo(record)
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert gaps(harness.output(execution_id))[:2] == UNKNOWN


def test_a_record_of_another_execution_does_not_tell_the_final_state(
    harness: EngineHarness, container_of: Callable[[str], Container]
) -> None:
    other = harness.go("sh -c", "exit 0").result()
    execution_id = harness.kill_at(Step.RUNNING, "exit 7")
    container_of(execution_id).wait()
    record = harness.logs.output_path(execution_id)
    record.unlink()
    shutil.copy(harness.logs.output_path(other.id), record)
    execution = harness.adopt(execution_id).result()
    if harness.capture is CaptureMode.ATTACH:
        # The engine tells the exit code.
        assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    else:
        assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.CONTAINER_GONE)


@by_attach
def test_created_and_no_answer_to_a_start_is_lost_and_never_started(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.FENCED, "echo never")
    going = harness.adopt(execution_id)
    execution = going.result()
    assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (
        State.LOST,
        Reason.START_UNKNOWN,
        None,
    )
    assert Step.STARTED not in going.steps
    assert harness.output(execution_id).stdout == b""
    assert not harness.engine.containers(harness.store.instance)


@by_attach
def test_created_and_a_start_that_is_answered_yet_is_followed(
    harness: EngineHarness, container_of: Callable[[str], Container]
) -> None:
    execution_id = harness.kill_at(Step.FENCED, COUNT)
    going = harness.adopt(execution_id)
    going.wait_for(Step.CLAIMED)
    # As if the engine had been at work on the start of the dead server all the while.
    container_of(execution_id).start()
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert harness.output(execution_id).stdout.split() == NUMBERS[-len(harness.output(execution_id).stdout.split()) :]


def test_created_and_a_start_that_was_refused_says_why(
    harness: EngineHarness, container_of: Callable[[str], Container]
) -> None:
    execution_id = harness.kill_command_at(Step.FENCED, "nosuchcommand")
    if harness.capture is CaptureMode.ATTACH:
        with pytest.raises(docker.errors.APIError):
            container_of(execution_id).start()
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.COMMAND_NOT_FOUND)
    assert harness.output(execution_id).gaps == []


@pytest.mark.parametrize("step", [Step.STARTED, Step.RUNNING])
def test_a_running_container_is_followed_again_after_a_gap(harness: EngineHarness, step: Step) -> None:
    execution_id = harness.kill_at(step, COUNT)
    going = harness.adopt(execution_id)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert Step.STARTED not in going.steps
    output = harness.output(execution_id)
    printed = output.stdout.split()
    assert printed[-1] == b"15"
    assert printed == [number for number in NUMBERS if not output.gaps or number in printed]
    assert gaps(output) == break_of(harness)
    assert execution.times.start_time is not None
    assert {total.crc32 is None for total in execution.logs if total.source is not Source.SYSTEM} == {bool(output.gaps)}


def test_a_paused_container_is_followed_once_it_goes_on(
    harness: EngineHarness, container_of: Callable[[str], Container]
) -> None:
    going = harness.go("sh -c", COUNT, kill_at=Step.RUNNING)
    assert going.failure() is not None
    container_of(going.id).pause()
    harness.reopen()
    going = harness.adopt(going.id)
    going.wait_for(Step.RUNNING)
    container_of(going.id).unpause()
    assert outcome(going.result()).exit_code == 7
    assert harness.output(going.id).stdout.split()[-1] == b"15"


@pytest.mark.parametrize("step", [Step.RUNNING, Step.DIED, Step.DRAINED])
def test_an_exited_container_ends_by_its_code_with_a_gap(
    harness: EngineHarness, container_of: Callable[[str], Container], step: Step
) -> None:
    execution_id = harness.kill_at(step, "echo told; exit 7")
    container_of(execution_id).wait()
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution)) == (State.FAILED, Outcome(Reason.EXIT_CODE, "exited with 7", 7))
    assert execution.times.exit_time is not None
    output = harness.output(execution_id)
    assert gaps(output) == break_of(harness)
    assert output.stdout == b"told\n" or output.gaps
    assert ("may be missing" in harness.system(execution_id)) == bool(output.gaps)


def test_a_sealed_record_is_enough_to_finish(harness: EngineHarness, container_of: Callable[[str], Container]) -> None:
    execution_id = harness.kill_at(Step.SEALED, "echo told; exit 7")
    container_of(execution_id).remove(force=True)
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution)) == (State.FAILED, Outcome(Reason.EXIT_CODE, "exited with 7", 7))
    assert None not in (execution.times.start_time, execution.times.exit_time, execution.times.seal_time)
    output = harness.output(execution_id)
    assert (output.stdout, output.gaps) == (b"told\n", [])
    assert execution.logs[0].bytes == 5


def test_a_finished_execution_leaves_a_container_that_is_swept(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.FINISHED, "exit 7")
    assert harness.execution(execution_id).state is State.FAILED
    assert list(harness.engine.containers(harness.store.instance).values()) == [execution_id]
    harness.runner.sweep()
    assert not harness.engine.containers(harness.store.instance)


def test_the_sweep_takes_only_what_is_over(harness: EngineHarness, sdk: docker.DockerClient) -> None:
    going = harness.go("sleep 60")
    going.wait_for(Step.RUNNING)
    labels = {"fastlane.instance": harness.store.instance, "fastlane.execution": "01900000-0000-7000-8000-000000000000"}
    sdk.containers.create(harness.image, "true", labels=labels)
    harness.runner.sweep()
    assert list(harness.engine.containers(harness.store.instance).values()) == [going.id]
    harness.stop(going.id, grace=0)
    going.result()


def test_the_sweep_takes_what_was_made_for_an_execution_that_went_to_another_host(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.CREATED, "echo never")
    harness.store.requeue(execution_id).result()
    harness.runner.sweep()
    assert list(harness.engine.containers(harness.store.instance).values()) == [execution_id], "it may come back here"
    harness.store.claim_on(["other"]).result()
    harness.runner.sweep()
    assert not harness.engine.containers(harness.store.instance)


def test_the_sweep_takes_nothing_that_another_host_of_the_same_engine_is_at_work_on(harness: EngineHarness) -> None:
    harness.enqueue("echo never")
    (assignment,) = harness.store.claim_on(["other"]).result()
    going = Going(harness, assignment, kill_at=Step.CREATED)
    assert isinstance(going.failure(), Killed)
    harness.runner.sweep()
    assert list(harness.engine.containers(harness.store.instance).values()) == [going.id]


# -- orders go on


def test_a_stop_goes_on_with_the_next_server(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.RUNNING, "trap 'exit 9' TERM; while :; do sleep 0.1; done")
    harness.stop(execution_id, note="while nobody was there")
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code, outcome(execution).stop_signal) == (
        State.STOPPED,
        9,
        "SIGTERM",
    )
    assert "while nobody was there" in outcome(execution).detail


def test_a_stop_whose_grace_is_over_kills_at_once(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.RUNNING, "trap '' TERM; while :; do sleep 0.1; done")
    harness.stop(execution_id, grace=0)
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).stop_signal) == (State.STOPPED, "SIGKILL")


def test_a_timeout_goes_on_with_what_is_left_of_it(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(
        Step.RUNNING, "trap 'exit 0' TERM; while :; do sleep 0.1; done", timeout=timedelta(seconds=1)
    )
    execution = harness.adopt(execution_id).result()
    assert execution.state is State.TIMED_OUT
    ran = execution.times.exit_time - execution.times.start_time  # type: ignore[operator]
    assert timedelta(seconds=0.9) < ran < timedelta(seconds=8)


# -- a server that stops in order


def test_a_server_that_stops_leaves_its_containers_to_the_next(harness: EngineHarness) -> None:
    going = harness.go("sh -c", COUNT)
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"2\n")
    going.mailbox.put(LeaveCommand())
    assert isinstance(going.failure(), HostDown)
    assert harness.execution(going.id).state is State.RUNNING
    harness.reopen()
    execution = harness.adopt(going.id).result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 7)
    assert harness.output(going.id).stdout.startswith(b"1\n2\n")
    assert harness.output(going.id).stdout.endswith(b"15\n")


def test_a_server_that_stops_during_a_pull_leaves_the_execution_to_the_next(harness: EngineHarness) -> None:
    # Nobody listens at this port: the pull is tried again and again.
    going = harness.go("true", image="127.0.0.1:9/image")
    harness.wait_for_system(going.id, "tried again")
    going.mailbox.put(LeaveCommand())
    assert isinstance(going.failure(), HostDown)
    assert harness.execution(going.id).state is State.PREPARING
