"""Executions on a real engine, each captured in either way: how they run, how they end, and that what they print is in
their records."""

import hashlib
import io
import time
import zlib
from datetime import timedelta

import docker
import pytest

from fastlane_grpc.docker.engine import container_name
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Execution, Limits, Outcome, Reason, Source, State, utc_now
from tests.engine import EngineHarness, by_attach, by_recorder, capture_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(90)]

# Nothing but SIGKILL ends it. To have no handler is not enough: PID 1 then ignores a signal, but under the recorder it
# is not PID 1.
STUBBORN = "trap '' TERM USR1; while :; do sleep 0.1; done"


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


# -- the way of an execution


def test_a_command_runs_and_its_output_is_in_the_record(harness: EngineHarness) -> None:
    going = harness.go("echo hello")
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.SUCCEEDED, 0)
    output = harness.output(execution.id)
    assert output.stdout == b"hello\n"
    assert output.trailer is not None
    assert (output.trailer.exit_code, output.gaps) == (0, [])
    assert going.steps == list(Step)


def test_an_execution_knows_its_container_its_totals_and_the_time_of_every_phase(
    harness: EngineHarness, sdk: docker.DockerClient
) -> None:
    execution = harness.sh("printf abc; sleep 0.1; printf de >&2")
    assert execution.image_digest == sdk.images.get(harness.image).id
    assert (capture_of(execution), execution.host) == (harness.capture, "local")
    totals = {total.source: total for total in execution.logs}
    assert (totals[Source.STDOUT].bytes, totals[Source.STDOUT].crc32) == (3, zlib.crc32(b"abc"))
    assert (totals[Source.STDERR].bytes, totals[Source.STDERR].crc32) == (2, zlib.crc32(b"de"))
    assert totals[Source.SYSTEM].bytes == len(harness.system(execution.id))
    times = execution.times
    assert times.create_time <= times.claim_time <= times.pull_time <= times.container_time <= times.start_time  # type: ignore[operator]
    assert times.start_time < times.exit_time < times.seal_time <= times.end_time  # type: ignore[operator]
    assert times.container_time < times.first_byte_time < times.exit_time  # type: ignore[operator]


def test_the_container_is_gone_when_the_execution_has_ended(harness: EngineHarness) -> None:
    harness.run("true")
    assert not harness.engine.containers(harness.store.instance)


def test_a_failure_keeps_its_exit_code_and_its_output(harness: EngineHarness) -> None:
    execution = harness.sh("echo before; exit 123")
    assert (execution.state, outcome(execution)) == (State.FAILED, Outcome(Reason.EXIT_CODE, "exited with 123", 123))
    assert harness.output(execution.id).stdout == b"before\n"


def test_stdout_and_stderr_are_kept_apart(harness: EngineHarness) -> None:
    execution = harness.sh("echo out; echo err >&2; echo out again")
    output = harness.output(execution.id)
    assert (output.stdout, output.stderr) == (b"out\nout again\n", b"err\n")


def test_closed_streams_are_not_an_exit(harness: EngineHarness) -> None:
    execution = harness.sh("echo first; exec >&- 2>&-; sleep 0.5; exit 5")
    assert outcome(execution).exit_code == 5
    assert execution.times.exit_time - execution.times.start_time > timedelta(seconds=0.3)  # type: ignore[operator]
    output = harness.output(execution.id)
    assert (output.stdout, output.gaps) == (b"first\n", [])


def test_system_lines_tell_the_way(harness: EngineHarness) -> None:
    execution = harness.sh("exit 3")
    assert harness.system(execution.id).splitlines() == [
        f"started on host local, output captured by {capture_of(execution)}",
        "failed: exited with 3",
    ]


def test_an_execution_whose_expire_time_passes_before_its_start_is_not_started(harness: EngineHarness) -> None:
    expire_time = utc_now() + timedelta(seconds=1.5)

    def pass_expire_time(step: Step, execution_id: str) -> None:
        while step is Step.ATTACHED and utc_now() <= expire_time:
            time.sleep(0.05)

    harness.on_step = pass_expire_time
    going = harness.go("echo never", expire_time=expire_time)
    execution = going.result()
    detail = f"it had not started by its expire_time, {expire_time:%Y-%m-%dT%H:%M:%SZ}"
    assert (execution.state, execution.outcome) == (State.EXPIRED, Outcome(detail=detail))
    assert (execution.starting, execution.times.start_time) == (False, None)
    assert Step.STARTED not in going.steps
    assert harness.system(execution.id).splitlines() == [f"expired: {detail}"]
    assert {total.source for total in execution.logs if total.bytes} == {Source.SYSTEM}
    assert not harness.engine.containers(harness.store.instance)


# -- what was asked for


def test_words_arguments_and_variables_arrive_as_they_were_given(harness: EngineHarness) -> None:
    execution = harness.run("printf '%s|'", "a b", "$HOME", "", "'", envs={"HOME": "/x"})
    assert harness.output(execution.id).stdout == b"a b|$HOME||'|"
    execution = harness.run("sh -c", 'printf "%s %s" "$ONE" "$TWO"', envs={"ONE": "1=1", "TWO": ""})
    assert harness.output(execution.id).stdout == b"1=1 "


def test_directory_user_and_entrypoint_are_those_of_the_job(harness: EngineHarness) -> None:
    execution = harness.sh("pwd; id -u; id -g", working_dir="/tmp", user="nobody:7", envs={})
    assert harness.output(execution.id).stdout == b"/tmp\n65534\n7\n"
    execution = harness.run("-n x", entrypoint=["echo", "y"])
    assert harness.output(execution.id).stdout == b"y -n x\n"


def test_a_container_gets_no_more_than_was_asked_for(harness: EngineHarness, sdk: docker.DockerClient) -> None:
    limits = Limits(memory_bytes=32 << 20, cpus=0.5, pids=17)
    labels = {"team": "a", "fastlane.instance": "forged"}
    going = harness.go(
        "sleep 60", limits=limits, network="none", read_only_root=True, stop_signal="SIGINT", labels=labels
    )
    going.wait_for(Step.RUNNING)
    (container,) = sdk.containers.list(filters={"label": f"fastlane.execution={going.id}"})
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    execution = harness.execution(going.id)
    assert container.name == container_name(execution.id)
    assert config["Labels"] == {
        "team": "a",
        "fastlane.instance": harness.store.instance,
        "fastlane.host": "local",
        "fastlane.execution": execution.id,
        "fastlane.job": execution.job_id,
        "fastlane.task": "t",
    }
    ours = 1 if harness.capture is CaptureMode.RECORDER else 0
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (
        32 << 20,
        32 << 20,
        500_000_000,
        17 + ours,
    )
    assert (host["NetworkMode"], host["ReadonlyRootfs"], config["StopSignal"]) == ("none", True, "SIGINT")
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host["Privileged"]
    assert not host["CapAdd"]
    assert not host["Binds"]
    assert [(mount["Target"], mount.get("ReadOnly", False)) for mount in host.get("Mounts") or ()] == [
        ("/.fastlane/recorder", True),
        ("/.fastlane/box", False),
    ][: 2 * ours]
    assert (host["LogConfig"]["Type"], host["AutoRemove"], host["Init"]) == ("none", False, False)
    assert (config["Tty"], config["OpenStdin"], config["AttachStdin"]) == (False, False, False)
    harness.stop(going.id, grace=0)
    assert going.result().state is State.STOPPED


def test_defaults_apply_where_nothing_was_asked_for(harness: EngineHarness, sdk: docker.DockerClient) -> None:
    going = harness.go("sleep 60")
    going.wait_for(Step.RUNNING)
    (container,) = sdk.containers.list(filters={"label": f"fastlane.execution={going.id}"})
    host = container.attrs["HostConfig"]
    ours = 1 if harness.capture is CaptureMode.RECORDER else 0
    assert (host["PidsLimit"], host["Memory"], host["NanoCpus"], host["NetworkMode"]) == (256 + ours, 0, 0, "default")
    harness.stop(going.id, grace=0)
    going.result()


# -- bytes


def test_output_without_a_newline_is_kept_as_it_is(harness: EngineHarness) -> None:
    execution = harness.sh("printf 'no newline'")
    assert harness.output(execution.id).stdout == b"no newline"


def test_random_bytes_come_out_equal(harness: EngineHarness) -> None:
    execution = harness.sh("head -c 10000000 /dev/urandom >/tmp/r; cat /tmp/r; sha256sum </tmp/r >&2")
    output = harness.output(execution.id)
    assert len(output.stdout) == 10_000_000
    assert hashlib.sha256(output.stdout).hexdigest() == output.stderr.split()[0].decode()
    assert output.gaps == []


def test_a_line_of_16_mb_comes_out_equal(harness: EngineHarness) -> None:
    execution = harness.sh("tr '\\0' x </dev/zero | head -c 16777216")
    output = harness.output(execution.id)
    assert output.stdout == b"x" * (16 << 20)
    assert output.gaps == []


def test_a_hundred_megabytes_of_lines_come_out_equal(harness: EngineHarness) -> None:
    line = b"0123456789" * 9 + b"012345678\n"
    execution = harness.sh(f"yes {line.decode().strip()} | head -c 100000000")
    (total, _) = execution.logs
    assert (total.bytes, total.missing_bytes, total.crc32) == (100_000_000, 0, zlib.crc32(line * 1_000_000))


# -- commands that cannot run


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"command": "nosuchcommand"}, Reason.COMMAND_NOT_FOUND),
        ({"command": "/bin/nosuch"}, Reason.COMMAND_NOT_FOUND),
        ({"command": "/bin"}, Reason.COMMAND_NOT_EXECUTABLE),
        ({"command": "/etc/passwd"}, Reason.COMMAND_NOT_EXECUTABLE),
        ({"command": "nosuch", "envs": {"PATH": "/nosuch:/etc"}}, Reason.COMMAND_NOT_FOUND),
        ({"command": "true", "user": "nosuch"}, Reason.REFUSED_BY_ENGINE),
        ({"command": "true", "working_dir": "/bin/sh"}, Reason.REFUSED_BY_ENGINE),
        ({"command": "true", "limits": Limits(memory_bytes=4096)}, Reason.REFUSED_BY_ENGINE),
        ({"command": "true", "stop_signal": "SIGNONE"}, Reason.REFUSED_BY_ENGINE),
        ({"command": ""}, Reason.REFUSED_BY_ENGINE),
    ],
)
def test_a_container_that_cannot_start_says_why(
    harness: EngineHarness, more: dict[str, object], reason: Reason
) -> None:
    execution = harness.run(**more)  # type: ignore[arg-type]
    assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (State.FAILED, reason, None)
    assert outcome(execution).detail in harness.system(execution.id)
    assert "OCI runtime" not in outcome(execution).detail
    assert not harness.going[execution.id].mailbox.start_failure, "it is the job's fault"
    assert not harness.engine.containers(harness.store.instance)


@pytest.mark.parametrize("code", [126, 127])
def test_exit_codes_of_a_job_are_told_apart_from_those_of_the_engine(harness: EngineHarness, code: int) -> None:
    execution = harness.sh(f"exit {code}")
    assert (outcome(execution).reason, outcome(execution).exit_code) == (Reason.EXIT_CODE, code)


# -- memory


@by_recorder
@pytest.mark.parametrize("script", ["tail /dev/zero", "exec tail /dev/zero", "sh -c 'tail /dev/zero'; exit 7"])
def test_a_container_killed_for_memory_failed_for_memory(harness: EngineHarness, script: str) -> None:
    execution = harness.sh(script, limits=Limits(memory_bytes=16 << 20))
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.OUT_OF_MEMORY)
    assert outcome(execution).out_of_memory
    assert "16 MiB" in outcome(execution).detail


@by_recorder
def test_a_container_that_survives_the_kill_of_a_child_succeeds(harness: EngineHarness) -> None:
    execution = harness.sh("tail /dev/zero; exit 0", limits=Limits(memory_bytes=16 << 20))
    assert (execution.state, outcome(execution).out_of_memory) == (State.SUCCEEDED, True)


@by_recorder
def test_a_container_that_nobody_killed_for_memory_is_not_said_to_be(harness: EngineHarness) -> None:
    execution = harness.sh("kill -9 $$", limits=Limits(memory_bytes=16 << 20))
    assert (outcome(execution).reason, outcome(execution).exit_code) == (Reason.EXIT_CODE, 137)
    assert not outcome(execution).out_of_memory


@by_attach
@pytest.mark.usefixtures("engine_tells_of_memory")
def test_without_the_recorder_the_engine_tells_of_kills_for_memory(harness: EngineHarness) -> None:
    def is_told(code: int) -> bool:
        execution = harness.sh(f"tail /dev/zero; sleep 0.3; exit {code}", limits=Limits(memory_bytes=16 << 20))
        if not outcome(execution).out_of_memory:
            return False
        reason = Reason.OUT_OF_MEMORY if code else Reason.UNSPECIFIED
        assert (outcome(execution).reason, outcome(execution).exit_code) == (reason, code)
        return True

    # A busy engine misses a kill now and then.
    assert any(is_told(137) for _ in range(5))
    assert any(is_told(0) for _ in range(5))


# -- timeout and stop


def test_a_container_that_catches_the_signal_of_its_timeout_has_timed_out(harness: EngineHarness) -> None:
    execution = harness.sh(
        "trap 'echo caught; exit 0' TERM; echo ready; while :; do sleep 0.1; done", timeout=timedelta(seconds=1)
    )
    assert (execution.state, outcome(execution).exit_code) == (State.TIMED_OUT, 0)
    assert (outcome(execution).stop_signal, outcome(execution).detail) == (
        "SIGTERM",
        "ran longer than its timeout of 1 s; exited with 0",
    )
    assert harness.output(execution.id).stdout == b"ready\ncaught\n"


def test_a_container_that_ignores_the_signal_is_killed_after_its_grace(harness: EngineHarness) -> None:
    execution = harness.sh(
        STUBBORN, timeout=timedelta(seconds=0.5), stop_grace=timedelta(seconds=0.5), stop_signal="SIGUSR1"
    )
    assert (execution.state, outcome(execution).exit_code, outcome(execution).stop_signal) == (
        State.TIMED_OUT,
        137,
        "SIGKILL",
    )
    assert "sent SIGUSR1\nsent SIGKILL\n" in harness.system(execution.id)


def test_a_stop_gives_the_container_its_grace(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "trap 'sleep 0.5; echo cleaned; exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id)
    harness.stop(going.id, note="by the test")
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code, outcome(execution).stop_signal) == (
        State.STOPPED,
        7,
        "SIGTERM",
    )
    assert "by the test" in outcome(execution).detail
    assert harness.output(execution.id).stdout == b"ready\ncleaned\n"


def test_a_stop_without_grace_kills_at_once(harness: EngineHarness) -> None:
    going = harness.go("sleep 60")
    going.wait_for(Step.RUNNING)
    harness.stop(going.id, grace=0)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code, outcome(execution).stop_signal) == (
        State.STOPPED,
        137,
        "SIGKILL",
    )
    assert "SIGTERM" not in harness.system(execution.id)


def test_a_later_stop_shortens_the_grace(harness: EngineHarness) -> None:
    going = harness.go("sh -c", STUBBORN)
    going.wait_for(Step.RUNNING)
    harness.stop(going.id, grace=50)
    harness.stop(going.id, grace=0)
    execution = going.result()
    assert (execution.state, outcome(execution).stop_signal) == (State.STOPPED, "SIGKILL")


def test_the_stop_signal_is_that_of_the_image_if_the_job_has_none(
    harness: EngineHarness, sdk: docker.DockerClient
) -> None:
    image = f"{harness.image}-int"
    sdk.images.build(fileobj=io.BytesIO(f"FROM {harness.image}\nSTOPSIGNAL SIGINT\n".encode()), tag=image, rm=True)
    try:
        going = harness.go("sh -c", "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done", image=image)
        harness.wait_for_output(going.id)
        harness.stop(going.id)
        assert outcome(going.result()) == Outcome(
            Reason.UNSPECIFIED, "told to stop by a caller; exited with 9", 9, False, "SIGINT"
        )
    finally:
        sdk.images.remove(image, force=True)


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.PULLED, Step.CREATED, Step.ATTACHED])
def test_a_stop_before_the_start_starts_nothing(harness: EngineHarness, step: Step) -> None:
    going = harness.go("sh -c", "echo ran", stop_at=step)
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)
    assert Step.STARTED not in going.steps
    assert not harness.engine.containers(harness.store.instance)


@pytest.mark.parametrize("step", [Step.FENCED, Step.STARTED, Step.RUNNING])
def test_a_stop_after_the_fence_stops_what_was_started(harness: EngineHarness, step: Step) -> None:
    execution = harness.go("sh -c", STUBBORN, stop_at=step).result()
    assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, 137)


def test_a_stop_after_the_end_was_seen_is_a_stop_no_more(harness: EngineHarness) -> None:
    execution = harness.go("true", stop_at=Step.DRAINED).result()
    assert (execution.state, outcome(execution).exit_code) == (State.SUCCEEDED, 0)


# -- side by side


def test_two_instances_on_one_engine_do_not_touch_each_others_containers(
    harness: EngineHarness, another: EngineHarness
) -> None:
    ours, theirs = harness.go("sleep 60"), another.go("sleep 60")
    ours.wait_for(Step.RUNNING)
    theirs.wait_for(Step.RUNNING)
    harness.runner.sweep()
    assert list(another.engine.containers(another.store.instance).values()) == [theirs.id]
    assert list(harness.engine.containers(harness.store.instance).values()) == [ours.id]
    harness.stop(ours.id, grace=0)
    assert ours.result().state is State.STOPPED
    assert another.execution(theirs.id).state is State.RUNNING
    another.stop(theirs.id, grace=0)
    assert theirs.result().state is State.STOPPED


def test_eight_at_a_time_each_get_their_own_output(harness: EngineHarness) -> None:
    going = [harness.go("sh -c", f"echo {number}; exit {number}") for number in range(1, 17)]
    for number, each in enumerate(going, 1):
        execution = each.result()
        assert (outcome(execution).exit_code, harness.output(execution.id).stdout) == (number, f"{number}\n".encode())


@by_recorder
@pytest.mark.parametrize("step", [Step.DIED, Step.DRAINED, Step.SEALED])
def test_of_one_that_a_defect_ended_the_sealed_record_says_how_it_ended(harness: EngineHarness, step: Step) -> None:
    def defect(reached: Step, execution_id: str) -> None:
        if reached is step:
            raise ZeroDivisionError

    harness.on_step = defect
    going = harness.go("sh -c", "echo printed; exit 7")
    assert isinstance(going.failure(), ZeroDivisionError)
    remains = harness.runner.abandon(going.id, "a defect")
    assert remains.end is not None
    assert (remains.end.state, remains.end.outcome.reason, remains.end.outcome.exit_code) == (
        State.FAILED,
        Reason.EXIT_CODE,
        7,
    )
    assert remains.log_bytes > 0
    assert (remains.logs[0].source, remains.logs[0].bytes) == (Source.STDOUT, 8)
    assert not harness.engine.containers(harness.store.instance)


@pytest.mark.parametrize("step", [Step.CLAIMED, Step.CREATED, Step.FENCED, Step.RUNNING, Step.DIED, Step.SEALED])
def test_of_one_that_a_defect_ended_the_log_is_sealed_and_says_how_much_it_holds(
    harness: EngineHarness, step: Step
) -> None:
    def defect(reached: Step, execution_id: str) -> None:
        if reached is step:
            if step is Step.RUNNING:
                harness.wait_for_output(execution_id)
            raise ZeroDivisionError

    harness.on_step = defect
    going = harness.go("sh -c", "echo printed; sleep 0.3")
    assert isinstance(going.failure(), ZeroDivisionError)
    remains = harness.runner.abandon(going.id, "a defect")
    assert harness.system(going.id).splitlines()[-1].startswith("a defect")
    *totals, system = remains.logs
    assert (system.source, system.bytes) == (Source.SYSTEM, len(harness.system(going.id)))
    assert remains.log_bytes > 0
    if harness.logs.output_path(going.id).exists():
        output = harness.output(going.id)
        assert output.trailer is not None
        assert list(output.trailer.totals) == totals
        assert output.stdout == (b"printed\n" if step in (Step.RUNNING, Step.DIED, Step.SEALED) else b"")
