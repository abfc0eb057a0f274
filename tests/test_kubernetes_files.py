"""Files for jobs in pods and of jobs in pods, on a real cluster: as on Docker, whatever is killed."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastlane_grpc.execution import Step
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.model import Execution, Input, Limits, OutputsFault, Reason, State
from fastlane_grpc.runner import LeaveCommand
from tests.cluster.loopback import on_nodes
from tests.cluster.relayed import SH, RelayedHarness, outcome
from tests.engine import Killed, busybox_tar
from tests.registry import Registry

if TYPE_CHECKING:
    from tests.cluster.running import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

BIG = os.urandom(30 << 20)
CONFIG = b"key = 1\n"


@pytest.fixture
def harness(tmp_path: Path, own_cluster: "Cluster", namespace: str) -> Iterator[RelayedHarness]:
    harness = RelayedHarness(tmp_path, own_cluster, namespace)
    yield harness
    harness.close()


def file(harness: RelayedHarness, path: str, content: bytes, **more: Any) -> Input:
    digest = InputFiles(harness.directory / "inputs").keep(content)
    return Input(path, digest, len(content), **more)


def tree() -> bytes:
    """Return an archive with a large file, links, a setuid program and a directory that only its owner enters."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, kind, mode, content, target in (
            ("bin", tarfile.DIRTYPE, 0o750, b"", ""),
            ("bin/tool", tarfile.REGTYPE, 0o4755, b"#!/bin/sh\necho tool\n", ""),
            ("big", tarfile.REGTYPE, 0o640, BIG, ""),
            ("link", tarfile.SYMTYPE, 0o777, b"", "bin/tool"),
            ("hard", tarfile.LNKTYPE, 0o644, b"", "big"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.linkname, entry.size, entry.mtime = kind, mode, target, len(content), 1e9
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def inputs(harness: RelayedHarness) -> list[Input]:
    return [
        file(harness, "/src", tree(), unpack=True),
        file(harness, "/etc/app/config.toml", CONFIG, mode=0o600, uid=7, gid=8),
        file(harness, "/tmp/plain", b"plain"),
    ]


# Prints what a job sees of its inputs.
LOOK = (
    "cd /src; sha256sum <big; stat -c '%n %a %u:%g %Y %F' bin bin/tool big /etc/app/config.toml /tmp/plain;"
    "readlink link; test hard -ef big && echo same; bin/tool; cat /etc/app/config.toml"
)
SEEN = (
    hashlib.sha256(BIG).hexdigest().encode()
    + b"  -\n"
    + b"""bin 750 0:0 1000000000 directory
bin/tool 4755 0:0 1000000000 regular file
big 640 0:0 1000000000 regular file
/etc/app/config.toml 600 7:8 0 regular file
/tmp/plain 644 0:0 0 regular file
bin/tool
same
tool
key = 1
"""
)


def kept(harness: RelayedHarness, execution: Execution) -> dict[str, tarfile.TarInfo]:
    """Return the entries of the archive of an execution, whose checksum is that of its file."""
    assert execution.outputs
    content = harness.logs.outputs_path(execution.id).read_bytes()
    assert hashlib.sha256(content).hexdigest() == execution.outputs.sha256
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {each.name: each for each in archive}


def test_inputs_are_in_a_pod_as_they_are_on_docker(harness: RelayedHarness) -> None:
    execution = harness.script(LOOK, inputs=inputs(harness), user="0", cap_drop=["NET_RAW"])
    assert execution.state is State.SUCCEEDED, execution.outcome
    assert harness.output(execution.id).stdout == SEEN
    assert harness.pods_are_gone()


def test_a_job_with_a_user_of_its_own_gets_its_inputs(harness: RelayedHarness) -> None:
    script = "id -u; id -g; echo $HOME; cat /tmp/plain; cat /etc/app/config.toml; touch /src/new; cat /proc/self/status"
    execution = harness.script(script, inputs=inputs(harness), user="65534", cap_drop=["ALL"])
    assert execution.state is State.SUCCEEDED, execution.outcome
    output = harness.output(execution.id)
    first = b"65534\n65534\n/\nplain"
    assert output.stdout.startswith(first)
    assert output.stderr.count(b"denied") == 2
    assert b"CapEff:\t0000000000000000" in output.stdout
    assert b"CapBnd:\t0000000000000000" in output.stdout
    assert re.search(rb"\nGroups:\s*\n", output.stdout), "none of those that root has"


def test_a_root_job_without_capabilities_gets_its_inputs(harness: RelayedHarness) -> None:
    execution = harness.script(
        f"{LOOK}; grep Cap /proc/self/status >&2", inputs=inputs(harness), user="0", cap_drop=["ALL"]
    )
    output = harness.output(execution.id)
    assert b"CapEff:\t0000000000000000" in output.stderr
    assert b"CapBnd:\t0000000000000000" in output.stderr


def test_the_user_of_an_image_gets_the_inputs_of_a_job(harness: RelayedHarness) -> None:
    with Registry(busybox_tar(), user="nobody").serving() as registry, on_nodes(registry, harness.cluster):
        execution = harness.script("id -u; cat /tmp/plain", image=f"{registry.name}/any:first", inputs=inputs(harness))
        assert execution.state is State.SUCCEEDED, execution.outcome
        assert harness.output(execution.id).stdout == b"65534\nplain"


def test_inputs_are_there_whatever_server_was_killed(harness: RelayedHarness) -> None:
    steps = (Step.CREATED, Step.FENCED, Step.STARTED, Step.RUNNING)
    more = {"inputs": inputs(harness), "user": "0", "entrypoint": SH, "outputs": ["/src/big"]}
    killed = [harness.go("", LOOK, kill_at=step, **more) for step in steps]
    assert all(isinstance(going.failure(), Killed) for going in killed)
    harness.reopen()
    for step, going in zip(steps, [harness.adopt(going.id) for going in killed], strict=True):
        execution = going.result()
        assert execution.state is State.SUCCEEDED, (step, execution.outcome)
        assert harness.output(execution.id).stdout == SEEN, step
        assert kept(harness, execution)["src/big"].size == len(BIG), step
    assert harness.pods_are_gone()


def test_inputs_that_cannot_be_written_end_a_job_before_its_command(harness: RelayedHarness) -> None:
    # A file takes no place of a directory, and the kernel has none of its own here.
    on_directory = harness.go_script("echo ran", inputs=[file(harness, "/tmp", b"x")], user="0")
    in_file = harness.go_script("echo ran", inputs=[file(harness, "/etc/passwd/x", b"x")], user="0")
    for going, path in ((on_directory, "/tmp"), (in_file, "/etc/passwd/x")):
        execution = going.result()
        assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.INPUT_UNAVAILABLE)
        assert f"{path} cannot be written" in outcome(execution).detail
        assert harness.output(execution.id).stdout == b""
    assert harness.pods_are_gone()


def test_a_content_that_is_gone_ends_a_job_before_its_pod(harness: RelayedHarness) -> None:
    gone = file(harness, "/x", b"gone")
    (harness.directory / "inputs" / gone.sha256).unlink()
    execution = harness.script("true", inputs=[gone], user="0")
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.INPUT_UNAVAILABLE)
    assert "the content of /x cannot be read" in outcome(execution).detail
    assert harness.pod_names() == []


# Leaves a tree with all that one may have.
LEAVE = (
    "umask 022; mkdir -p /out/deep; echo one >/out/deep/one; chmod 4751 /out/deep/one; ln -s deep/one /out/link;"
    "ln /out/deep/one /out/hard; mkfifo /out/pipe; head -c 20000000 /dev/urandom >/out/big; sha256sum </out/big;"
    "echo report >/report.txt;"
)
PATHS = ("/out", "/report.txt", "/nowhere")


def check_kept(harness: RelayedHarness, execution: Execution) -> None:
    assert execution.outputs
    assert (execution.outputs.fault, list(execution.outputs.missing)) == (OutputsFault.NONE, ["/nowhere"])
    entries = kept(harness, execution)
    names = ("", "/deep", "/deep/one", "/link", "/hard", "/big")
    assert entries.keys() == {"report.txt", *(f"out{name}" for name in names)}
    assert entries["out/deep/one"].mode == 0o4751
    with tarfile.open(harness.logs.outputs_path(execution.id)) as archive:
        big = archive.extractfile("out/big")
        assert big
        printed = harness.output(execution.id).stdout.split()[0].decode()
        assert hashlib.sha256(big.read()).hexdigest() == printed
    left = {path.name for path in harness.logs.path(execution.id).iterdir()}
    assert not {"relay-outputs.part", "relay-outputs.whole"} & left


def test_what_a_job_keeps_comes_back_however_it_ended(harness: RelayedHarness) -> None:
    failed = harness.go_script(f"{LEAVE} exit 3", outputs=PATHS)
    of_user = LEAVE.replace("/out", "/tmp/out").replace("/report", "/tmp/report")
    by_user = harness.go_script(of_user, outputs=("/tmp/out",), user="1000")
    stopped = harness.go_script(f"{LEAVE} echo ready; exec sleep 1000", outputs=PATHS)
    deaf = harness.go_script(f"trap '' TERM; {LEAVE} echo ready; while :; do sleep 1; done", outputs=PATHS)
    timed_out = harness.go_script(f"{LEAVE} exec sleep 1000", outputs=PATHS, timeout=timedelta(seconds=20))
    for each in (stopped, deaf):
        harness.wait_for_output(each.id, b"ready")
    harness.stop(stopped.id, grace=60)
    harness.stop(deaf.id, grace=0)
    states = {going: going.result() for going in (failed, stopped, deaf, timed_out)}
    assert [each.state for each in states.values()] == [
        State.FAILED,
        State.STOPPED,
        State.STOPPED,
        State.TIMED_OUT,
    ]
    for execution in states.values():
        check_kept(harness, execution)
    execution = by_user.result()
    assert execution.state is State.SUCCEEDED, execution.outcome
    assert kept(harness, execution)["tmp/out/big"].uid == 1000
    assert harness.pods_are_gone()


def test_what_a_job_keeps_comes_back_though_servers_went_away_meanwhile(harness: RelayedHarness) -> None:
    going = harness.go_script(f"{LEAVE} head -c 200000000 /dev/urandom >/out/huge; echo ready", outputs=("/out",))
    harness.wait_for_output(going.id, b"ready")
    going.mailbox.put(LeaveCommand())
    assert going.failure()
    harness.close_floors()
    harness.open()
    going = harness.adopt(going.id)
    execution = going.result()
    assert execution.state is State.SUCCEEDED, execution.outcome
    assert kept(harness, execution)["out/huge"].size == 200_000_000
    killed = [
        harness.go("", f"{LEAVE} exit 3", entrypoint=SH, outputs=PATHS, kill_at=step)
        for step in (Step.DIED, Step.DRAINED, Step.SEALED)
    ]
    assert all(isinstance(each.failure(), Killed) for each in killed)
    harness.reopen()
    for each in [harness.adopt(each.id) for each in killed]:
        check_kept(harness, each.result())
    assert harness.pods_are_gone()


def test_more_than_may_be_kept_does_not_change_how_a_job_ended(harness: RelayedHarness) -> None:
    large = harness.go_script("truncate -s 5G /big; echo done", outputs=("/big",))
    small = harness.go_script("head -c 3000000 /dev/zero >/f", outputs=("/f",), limits=Limits(memory_bytes=32 << 20))
    execution = large.result()
    assert execution.state is State.SUCCEEDED
    assert execution.outputs
    assert execution.outputs.fault is OutputsFault.TOO_LARGE
    execution = small.result()
    assert execution.state is State.SUCCEEDED
    assert kept(harness, execution)["f"].size == 3_000_000
