"""What a job can do to the recorder that is PID 1 of its own container, as root and as a user; docs/security.md tells
it line by line."""

import io
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from fastlane_grpc.docker.engine import container_name
from fastlane_grpc.execution import Step
from fastlane_grpc.model import CaptureMode, Cause, Execution, Limits, Outcome, Reason, Source, State
from tests.engine import EngineHarness, busybox_tar, opened
from tests.tools import PATH

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

SOURCE = Path(__file__).with_name("hostile.c")
UNKNOWN = [(Source.STDOUT, None, Cause.ENGINE), (Source.STDERR, None, Cause.ENGINE)]


@pytest.fixture(scope="module")
def hostile_image(sdk: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The usual one, and `hostile`."""
    compiler = shutil.which("cc", path=PATH)
    if compiler is None:
        pytest.skip("a C compiler is not here: make test, or .ci/tools cc, looks for one")
    program = tmp_path_factory.mktemp("hostile") / "hostile"
    command = [compiler, "-std=gnu11", "-O1", "-w", "-static", "-no-pie", "-o", program, SOURCE]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    content = io.BytesIO(busybox_tar())
    with tarfile.open(fileobj=content, mode="a") as tar:
        tar.add(program, "bin/hostile")
    name = f"{image}-hostile"
    sdk.api.import_image_from_data(content.getvalue(), repository=name.partition(":")[0], tag=name.partition(":")[2])
    yield name
    sdk.images.remove(name, force=True)


@pytest.fixture(scope="module")
def harness(hostile_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHarness]:
    with opened(tmp_path_factory.mktemp("hostile"), hostile_image, capture=CaptureMode.RECORDER) as harness:
        yield harness


@pytest.fixture(params=["", "nobody"], ids=["root", "user"])
def user(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


def gaps(harness: EngineHarness, execution: Execution) -> list[tuple[Source, int | None, Cause]]:
    return [(gap.source, gap.missing_bytes, gap.cause) for gap in harness.output(execution.id).gaps]


def test_no_limit_of_the_recorder_can_be_set(harness: EngineHarness, user: str) -> None:
    execution = harness.sh("hostile limit; echo stored; exit 7", user=user)
    assert (outcome(execution).exit_code, harness.output(execution.id).stdout, gaps(harness, execution)) == (
        7,
        b"tried\nstored\n",
        [],
    )


def test_the_command_has_the_user_and_the_groups_that_it_would_have(harness: EngineHarness, user: str) -> None:
    execution = harness.sh("grep -E '^(Uid|Gid)' /proc/self/status", user=user)
    number = "65534" if user else "0"
    assert harness.output(execution.id).stdout.decode().split() == ["Uid:", *[number] * 4, "Gid:", *[number] * 4]


def test_a_hard_stop_cannot_be_forged_and_one_of_the_server_is_believed(harness: EngineHarness, user: str) -> None:
    # No room is left to say who sent a signal: the kernel says of every one that it came from outside.
    going = harness.go("sh -c", "trap 'echo told' 44; hostile forge & while :; do sleep 0.1; done", user=user)
    harness.wait_for_output(going.id, b"told\n")
    harness.wait_for_output(going.id, b"forged after many signals\n")
    assert harness.execution(going.id).state is State.RUNNING
    begin = time.monotonic()
    harness.stop(going.id, grace=0)
    execution = going.result()
    assert time.monotonic() - begin < 9, "it was killed, as it did not hear"
    assert (execution.state, outcome(execution).exit_code, gaps(harness, execution)) == (State.STOPPED, 137, [])
    trailer = harness.output(execution.id).trailer
    assert trailer is not None
    assert trailer.facts["hard_stop"] is True


def test_a_user_cannot_make_the_kernel_kill_the_recorder_for_memory(harness: EngineHarness) -> None:
    script = "echo 1000 >/proc/1/oom_score_adj; hostile eat; echo stored; exit 7"
    execution = harness.sh(script, user="nobody", limits=Limits(memory_bytes=24 << 20))
    assert (outcome(execution).exit_code, harness.output(execution.id).stdout, gaps(harness, execution)) == (
        7,
        b"stored\n",
        [],
    )


def test_root_can_have_its_own_recorder_killed_for_memory_which_is_said(harness: EngineHarness) -> None:
    """A hole that is left. Nothing but the end of its own output is lost."""
    script = "echo before; echo 1000 >/proc/1/oom_score_adj; hostile eat & hostile eat & wait; echo after; sleep 60"
    execution = harness.sh(script, limits=Limits(memory_bytes=24 << 20))
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 137)
    assert (harness.output(execution.id).stdout, gaps(harness, execution)) == (b"before\n", UNKNOWN)
    assert "the recorder was killed" in harness.system(execution.id)


def test_a_job_may_slow_down_its_own_recorder_and_loses_nothing(harness: EngineHarness, user: str) -> None:
    execution = harness.sh("renice -n 19 -p 1; seq 200000; exit 7", user=user)
    assert (outcome(execution).exit_code, gaps(harness, execution)) == (7, [])
    assert harness.output(execution.id).stdout.endswith(b"\n200000\n")


def limit_files_of(harness: EngineHarness, execution_id: str, limit: int) -> None:
    """As an administrator may, who is on the machine; or as a job could where an engine's own filter of system calls
    forbids ours."""
    with closing(docker.DockerClient(harness.address)) as sdk:
        recorder = sdk.containers.get(container_name(execution_id)).attrs["State"]["Pid"]
    command = ["prlimit", f"--pid={recorder}", f"--fsize={limit}:{limit}"]
    subprocess.run(command, check=True, user=65534, group=65534, extra_groups=[])


def test_a_recorder_that_may_not_write_any_more_ends_its_command_at_once(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "echo stored; while [ ! -e /tmp/go ]; do sleep 0.1; echo more; done", user="nobody")
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"more\n")
    limit_files_of(harness, going.id, 0)
    execution = going.result()
    assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (
        State.FAILED,
        Reason.EXIT_CODE,
        137,
    )
    assert "RLIMIT_FSIZE" in outcome(execution).detail
    output = harness.output(execution.id)
    assert output.stdout.startswith(b"stored\nmore\n")
    assert gaps(harness, execution) == [(Source.STDOUT, None, Cause.STORE), (Source.STDERR, None, Cause.STORE)]
    assert "some output is missing: the recorder was not allowed" in harness.system(execution.id)


def test_a_recorder_that_may_still_write_a_little_says_how_much_is_missing(harness: EngineHarness) -> None:
    going = harness.go("sh -c", "echo ready; while [ ! -e /tmp/go ]; do sleep 0.1; done; cat /dev/zero", user="nobody")
    going.wait_for(Step.RUNNING)
    harness.wait_for_output(going.id, b"ready\n")
    limit_files_of(harness, going.id, 150_000)
    with closing(docker.DockerClient(harness.address)) as sdk:
        sdk.containers.get(container_name(going.id)).exec_run("touch /tmp/go")
    execution = going.result()
    assert (execution.state, outcome(execution).exit_code) == (State.FAILED, 137)
    assert "RLIMIT_FSIZE" in outcome(execution).detail
    [(source, missing, cause)] = gaps(harness, execution)
    assert (source, cause) == (Source.STDOUT, Cause.STORE)
    assert missing
    trailer = harness.output(execution.id).trailer
    assert trailer is not None
    assert trailer.totals[0].bytes == len(harness.output(execution.id).stdout) + missing
