"""Logs of executions on a real cluster, through the recorder and the relay: exact, whatever ends or goes away."""

import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from fastlane_grpc.config import RegistrySettings, SecretSettings
from fastlane_grpc.execution import Step
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.model import Reason, State, Stdin, Ulimit
from fastlane_grpc.rpc.relay import SERVICE
from fastlane_grpc.runner import LeaveCommand
from fastlane_grpc.secrets import NamedSecrets
from tests.cluster.control_plane import ADDRESS
from tests.cluster.loopback import on_nodes
from tests.cluster.processes import wait_until
from tests.cluster.relayed import FLOOD, LINE_BYTES, SH, RelayedHarness, lines, outcome
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


def test_a_pod_needs_little_room_on_its_node_for_a_large_log(harness: RelayedHarness) -> None:
    going = harness.go_script(FLOOD.format(lines=1_000_000) + "; exec sleep 1000")
    path = harness.logs.output_path(going.id)
    wait_until(lambda: path.exists() and path.stat().st_size > 1_000_000 * LINE_BYTES, "the output arrives")
    wait_until(lambda: harness.volume_bytes(going) < 4 << 20, "what is copied is punched out")
    # Still so while it runs, and nothing of the log is gone with it.
    assert not harness.has_ended_on_node(going)
    harness.stop(going.id, grace=0)
    assert going.result().state is State.STOPPED
    output = harness.output(going.id)
    assert (output.gaps, output.stdout == lines(1_000_000)) == ([], True)


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


def test_a_private_image_is_pulled_by_the_secret_of_its_credential(harness: RelayedHarness, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("open sesame")
    with Registry(busybox_tar(), login="robot:open sesame").serving() as registry, on_nodes(registry, harness.cluster):
        logins = {registry.name: {"username": "robot", "password": "open sesame"}}
        secret = {"type": "kubernetes.io/dockerconfigjson", "metadata": {"name": "robot"}}
        content = {"stringData": {".dockerconfigjson": json.dumps({"auths": logins})}}
        harness.cluster.api().create_namespaced_secret(harness.namespace, secret | content)

        def registry_of(name: str, tasks: str, pull_secret: str = "") -> RegistrySettings:
            return RegistrySettings(
                name, registry.name, tasks, username="robot", password_file=password, pull_secret=pull_secret
            )

        harness.registries = [registry_of("of-others", "other", "robot"), registry_of("bare", "*")]
        harness.reopen()
        image = f"{registry.name}/private/x:first"
        # Of a credential that the task may not use, the nodes do not hear.
        denied = harness.run("true", image=image)
        assert (denied.state, outcome(denied).reason) == (State.FAILED, Reason.IMAGE_DENIED)
        refused = harness.run("true", image=image, registry_credential="bare")
        assert outcome(refused).reason is Reason.REFUSED_BY_ENGINE
        assert "'bare': it has no `pull_secret`" in outcome(refused).detail
        harness.registries = [*harness.registries, registry_of("named", "t", "robot")]
        harness.reopen()
        # By the server, which reads what the image runs, and by a node.
        execution = harness.run("echo", "mine", image=image, entrypoint=(), registry_credential="named")
        assert execution.state is State.SUCCEEDED, execution.outcome
        harness.registries = [registry_of("first", "t", "robot")]
        harness.reopen()
        assert harness.run("true", image=f"{registry.name}/private/y:first").state is State.SUCCEEDED
    assert harness.pods_are_gone()


def test_what_a_command_printed_before_its_end_is_kept_however_it_is_ended(harness: RelayedHarness) -> None:
    # At the same time, as each pod mostly waits.
    polite = harness.go("", "trap 'echo bye; exit 7' TERM; echo first; while :; do sleep 0.1; done", entrypoint=SH)
    deaf = harness.go("", "trap '' TERM; echo first; while :; do sleep 0.1; done", entrypoint=SH)
    deleted = harness.go("", "echo first; exec sleep 1000", entrypoint=SH)
    by_int = "trap 'echo by INT; exit 5' INT; echo first; while :; do sleep 0.1; done"
    other = harness.go("", by_int, entrypoint=SH, stop_signal="SIGINT")
    for each in (polite, deaf, deleted, other):
        harness.wait_for_output(each.id, b"first")
    harness.stop(polite.id, grace=60)
    harness.stop(deaf.id, grace=0)
    harness.stop(other.id, grace=60)
    harness.cluster.api().delete_namespaced_pod(f"fastlane-{deleted.id}", harness.namespace)

    going = (polite, deaf, deleted, other)
    ends = [each.result() for each in going]
    codes = [(each.state, outcome(each).exit_code) for each in ends]
    assert codes == [(State.STOPPED, 7), (State.STOPPED, 137), (State.LOST, 143), (State.STOPPED, 5)]
    printed = [harness.output(each.id) for each in going]
    assert [output.stdout for output in printed] == [b"first\nbye\n", b"first\n", b"first\n", b"first\nby INT\n"]
    assert [output.gaps for output in printed] == [[]] * 4
    assert "sent SIGINT" in harness.system(other.id)
    assert harness.pods_are_gone()


def test_a_command_has_its_limits_and_no_capability_that_was_dropped(harness: RelayedHarness) -> None:
    limits = {"ulimits": [Ulimit("nofile", 64)], "cap_drop": ["ALL"]}
    execution = harness.script("ulimit -n; grep -E 'Cap(Eff|Bnd)' /proc/self/status", **limits)
    assert execution.state is State.SUCCEEDED, execution.outcome
    assert harness.output(execution.id).stdout == b"64\nCapEff:\t%016x\nCapBnd:\t%016x\n" % (0, 0)
    assert execution.usage
    assert execution.usage.cpu_time
    assert execution.usage.peak_memory_bytes


SECRET = secrets.token_hex(16)
CONTENT = os.urandom(3 << 20)


@pytest.fixture
def with_secret(harness: RelayedHarness, tmp_path: Path) -> dict[str, Any]:
    """What a job has to say to get the secret, and a standard input."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    harness.secrets = NamedSecrets([SecretSettings("s", "*", file=file)])
    harness.reopen()
    digest = InputFiles(harness.directory / "inputs").keep(CONTENT)
    return {"entrypoint": SH, "secret_envs": {"S": "s"}, "stdin": Stdin(digest, len(CONTENT))}


def test_a_secret_is_in_the_command_and_nowhere_else(harness: RelayedHarness, with_secret: dict[str, Any]) -> None:
    going = harness.go("", 'sha256sum; echo "<$S> ${#S}"; echo ready; exec sleep 1000', **with_secret)
    harness.wait_for_output(going.id, b"ready")
    assert harness.output(going.id).stdout == sum_of(CONTENT) + b"<***> 32\nready\n"
    # While the command runs, which has it in its environment.
    pods = str(harness.cluster.api().list_namespaced_pod(harness.namespace))
    assert going.id in pods
    assert SECRET not in pods
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert SECRET.encode() not in process.read_bytes()
    # etcd, the files and the logs of the nodes; the record, the log and the store of the server.
    directories = (Path(os.environ["CLUSTER_DIRECTORY"]), harness.directory)
    found = subprocess.run(["grep", "-rlF", SECRET, *directories], capture_output=True, text=True).stdout.split()
    assert found == [str(harness.directory / "secret")]
    harness.stop(going.id, grace=10)
    assert going.result().state is State.STOPPED
    assert harness.pods_are_gone()


def test_no_command_runs_without_its_secret_whatever_is_killed(
    harness: RelayedHarness, with_secret: dict[str, Any]
) -> None:
    steps = (Step.CREATED, Step.FENCED, Step.STARTED, Step.RUNNING)
    killed = [harness.go("", 'sha256sum; echo "${#S}"', kill_at=step, **with_secret) for step in steps]
    assert all(isinstance(going.failure(), Killed) for going in killed)
    harness.reopen()
    for step, going in zip(steps, [harness.adopt(going.id) for going in killed], strict=True):
        execution = going.result()
        assert execution.state is State.SUCCEEDED, (step, execution.outcome)
        assert harness.output(execution.id).stdout == sum_of(CONTENT) + b"32\n", step
    assert harness.pods_are_gone()


def test_a_reader_of_the_description_of_a_pod_gets_no_secret(
    harness: RelayedHarness, with_secret: dict[str, Any]
) -> None:
    harness.want_node()
    going = harness.go("", 'sha256sum; echo "${#S}"', **with_secret)
    wait_until(lambda: going.mailbox.waiting is not None, "it waits for a node")
    (token,) = [each.value for each in harness.pod(going).spec.init_containers[0].env if each.name.endswith("TOKEN")]
    request = harness.cluster.api().create_namespaced_service_account_token("default", harness.namespace, {"spec": {}})
    for account, wants in (("", "secrets"), ("", "stdin"), ("made up", "secrets"), (request.status.token, "secrets")):
        metadata = {"execution": going.id, "token": token, "wants": wants, "account": account}
        with grpc.insecure_channel(f"{ADDRESS}:{harness.port}") as channel:
            call = channel.stream_stream(f"/{SERVICE}/Copy")(
                iter(()), metadata=[(f"fastlane-{name}", value) for name, value in metadata.items()], timeout=60
            )
            with pytest.raises(grpc.RpcError):
                next(call)
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED, account
    harness.give_node()
    assert going.result().state is State.SUCCEEDED
    assert harness.output(going.id).stdout == sum_of(CONTENT) + b"32\n"


def test_a_secret_that_cannot_be_read_ends_a_job_before_its_pod(
    harness: RelayedHarness, with_secret: dict[str, Any]
) -> None:
    (harness.directory / "secret").unlink()
    harness.retry_seconds = 0.5
    harness.reopen()
    execution = harness.script("true", **{name: with_secret[name] for name in ("secret_envs",)})
    assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.SECRET_UNAVAILABLE)
    assert harness.pod_names() == []


def sum_of(content: bytes) -> bytes:
    """Return what sha256sum prints of its standard input."""
    return hashlib.sha256(content).hexdigest().encode() + b"  -\n"
