"""What an earlier server left on a host that is configured no more: the engine that it was on is there in these tests,
and is not asked."""

import time
from datetime import timedelta

import docker
import pytest

from fastlane_grpc.capture.handoff import RecordHandoff
from fastlane_grpc.docker import capture_without_engine
from fastlane_grpc.execution import RemovedHostRunner, Step
from fastlane_grpc.model import CaptureMode, Cause, Execution, Outcome, Reason, Source, State
from fastlane_grpc.runner import Mailbox
from tests.engine import SECONDS, EngineHarness, by_attach, by_recorder, capture_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


def give_up(harness: EngineHarness, execution_id: str) -> Execution:
    """The execution after a server without its host has taken it up."""
    runner = RemovedHostRunner(
        harness.store, harness.logs, capture_without_engine, default_timeout=timedelta(seconds=SECONDS)
    )
    runner.run(harness.store.assignment(execution_id).result(), Mailbox())
    return harness.execution(execution_id)


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.CREATED, Step.ATTACHED])
def test_what_had_not_passed_the_fence_goes_back_to_the_queue_and_runs_once(harness: EngineHarness, step: Step) -> None:
    execution_id = harness.kill_at(step, "echo once; exit 7")
    assert give_up(harness, execution_id).state is State.QUEUED
    harness.store.claim_on(["local"]).result()
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code, harness.output(execution_id).stdout) == (
        State.FAILED,
        7,
        b"once\n",
    )


def test_what_had_not_passed_the_fence_and_was_told_to_stop_ends_as_stopped(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.CREATED, "echo never")
    harness.stop(execution_id)
    execution = give_up(harness, execution_id)
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)


@by_recorder
def test_an_execution_that_never_ran_is_queued_again_and_no_other_can_start_it(
    harness: EngineHarness, sdk: docker.DockerClient
) -> None:
    execution_id = harness.kill_at(Step.FENCED, "echo once; exit 7")
    assert give_up(harness, execution_id).state is State.QUEUED
    # As a start would that is still on its way to an engine that hangs.
    left = sdk.containers.get(f"fastlane-{execution_id}")
    try:
        left.start()
    except docker.errors.APIError as error:
        # What was to be mounted is gone by then, as often as not.
        assert "bind source path does not exist" in str(error)
    else:
        assert left.wait()["StatusCode"] not in {0, 7}
    left.remove()
    harness.store.claim_on(["local"]).result()
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code, harness.output(execution_id).stdout) == (
        State.FAILED,
        7,
        b"once\n",
    )


@by_attach
def test_of_what_may_have_been_started_nobody_knows_and_its_log_says_so(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.RUNNING, "echo some; sleep 1000")
    execution = give_up(harness, execution_id)
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.HOST_GONE)
    assert "host 'local', which it was started on, is not configured any more" in outcome(execution).detail
    output = harness.output(execution_id)
    assert output.trailer is not None
    assert [(gap.source, gap.missing_bytes, gap.cause) for gap in output.gaps] == [
        (Source.STDOUT, None, Cause.ENGINE),
        (Source.STDERR, None, Cause.ENGINE),
    ]
    assert "host 'local'" in harness.system(execution_id)


@by_recorder
def test_what_runs_on_this_machine_is_killed_and_keeps_what_it_printed(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.RUNNING, "echo some; sleep 1000")
    harness.wait_for_output(execution_id, b"some\n")
    execution = give_up(harness, execution_id)
    assert (execution.state, outcome(execution).reason) == (State.LOST, Reason.HOST_GONE)
    assert (harness.output(execution_id).stdout, harness.output(execution_id).gaps) == (b"some\n", [])
    assert not RecordHandoff(harness.logs.path(execution_id)).recorder_is_running


@by_recorder
@pytest.mark.parametrize(("code", "state"), [(0, State.SUCCEEDED), (7, State.FAILED)])
def test_what_ended_before_has_ended_as_its_record_says(harness: EngineHarness, code: int, state: State) -> None:
    execution_id = harness.kill_at(Step.RUNNING, f"sleep 0.2; echo all; exit {code}")
    until = time.monotonic() + SECONDS
    while harness.output(execution_id).trailer is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    execution = give_up(harness, execution_id)
    assert (execution.state, outcome(execution).exit_code, harness.output(execution_id).stdout) == (
        state,
        code,
        b"all\n",
    )
    assert execution.times.exit_time is not None


@by_recorder
def test_what_was_sealed_before_is_finished_as_it_was_sealed(harness: EngineHarness) -> None:
    execution_id = harness.kill_at(Step.SEALED, "exit 9")
    execution = give_up(harness, execution_id)
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 9)


@pytest.mark.parametrize("step", [Step.CREATED, Step.ATTACHED])
def test_what_goes_to_another_host_may_be_captured_there_in_the_other_way(harness: EngineHarness, step: Step) -> None:
    execution_id = harness.kill_at(step, "echo once; exit 7")
    assert give_up(harness, execution_id).state is State.QUEUED
    other = CaptureMode.ATTACH if harness.capture is CaptureMode.RECORDER else CaptureMode.RECORDER
    harness.host.captures = harness.captures(other)
    harness.host.captures.determine()
    harness.store.claim_on(["local"]).result()
    execution = harness.adopt(execution_id).result()
    assert (execution.state, outcome(execution).exit_code, capture_of(execution)) == (State.FAILED, 7, other)
    assert (harness.output(execution_id).stdout, harness.output(execution_id).gaps) == (b"once\n", [])
