"""The pod of a captured job: what the relay and the recorder add to it, and what its job must say."""

import os
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fastlane_grpc.backend import CannotRun, Image
from fastlane_grpc.capture.capture import ContainerEnd
from fastlane_grpc.capture.relay_tokens import KEY_FILE, RelayTokens
from fastlane_grpc.capture.relayed import ACCOUNT, DELIVERY_SECONDS, NO_NEEDS, JobNeeds, RelayedCapture, RelayKit
from fastlane_grpc.capture.relayed_record import Permission, RelayedRecord, decide, new_pod
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.kubernetes.pod_body import PodSettings, pod_body
from fastlane_grpc.model import Source, Tmpfs, Ulimit
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.registry.reference import HUB
from tests.pods import NO_IMAGE, assignment
from tests.sparse_disk import sparse_disk

KIT = RelayKit("kit:1", "server:7780", RelayTokens(b"key"), 1 << 20)


def wrapped(needs: JobNeeds = NO_NEEDS, **spec: Any) -> Any:
    image = spec.pop("image", NO_IMAGE)
    body = pod_body(assignment("busybox", **spec), image, instance="i", host="k8s", settings=PodSettings())
    return KIT.wrap(body, image, "e", "1", needs)["spec"]


def test_the_command_of_a_job_runs_under_the_recorder() -> None:
    (job,) = wrapped(entrypoint=["/bin/x"], args=["a b", "--"], tmpfs=[Tmpfs("/tmp")])["containers"]
    recorder = ["/.fastlane/bin/recorder", "--execution", "e", "--limit", "1048576"]
    waits = ["--await-relay", str(DELIVERY_SECONDS), "--node-grace", "10"]
    assert job["command"] == [*recorder, *waits, "/.fastlane/box", "--", "/bin/x", "a b", "--"]
    assert "args" not in job
    assert [mount["mountPath"] for mount in job["volumeMounts"]] == ["/tmp", "/.fastlane/bin", "/.fastlane/box"]


def test_a_job_has_no_token_and_does_not_see_the_record() -> None:
    spec = wrapped(entrypoint=["/bin/x"])
    (job,) = spec["containers"]
    token = KIT.tokens.token("e", "1")
    assert token not in str(job)
    assert {mount.get("subPath") for mount in job["volumeMounts"]} == {"bin", "box"}
    (relay,) = spec["initContainers"]
    assert {each["name"]: each["value"] for each in relay["env"]} == {
        "FASTLANE_RELAY_TOKEN": token,
        "FASTLANE_RELAY_PUNCHES": "1",
    }


def command_of(**spec: Any) -> Any:
    words = wrapped(**spec)["containers"][0]["command"]
    return words[words.index("--") + 1 :]


def test_what_a_job_does_not_say_is_of_its_image_word_by_word() -> None:
    image = Image(f"sha256:{'1' * 64}", "amd64", ("/bin/x", "$(A)"), ("b", "$$"))
    assert command_of(image=image) == ["/bin/x", "$$(A)", "b", "$$$$"]
    assert command_of(image=image, args=["$c"]) == ["/bin/x", "$$(A)", "$$c"]
    assert command_of(image=image, entrypoint=["y"]) == ["y"]
    assert wrapped(image=image)["containers"][0]["image"] == f"{HUB}/library/busybox@{image.digest}"


def test_the_account_of_a_pod_is_for_its_relay_alone_where_a_job_gets_something() -> None:
    kit = replace(KIT, pod_of_account=lambda token: "fastlane-e" if token == "t" else "")
    image = Image("", "", ("x",), ())
    body = pod_body(assignment("busybox"), image, instance="i", host="k8s", settings=PodSettings())
    assert "serviceAccountToken" not in str(kit.wrap(body, image, "e", "1"))
    assert "serviceAccountToken" in str(kit.wrap(body, image, "e", "1", JobNeeds(stdin=True)))
    assert "serviceAccountToken" in str(kit.wrap(body, image, "e", "1", JobNeeds(inputs=True)))
    spec = kit.wrap(body, image, "e", "1", JobNeeds(variables=1))["spec"]
    assert "serviceAccountToken" in str(spec["volumes"])
    containers = (*spec["initContainers"], *spec["containers"])
    assert [ACCOUNT in str(each["volumeMounts"]) for each in containers] == [True, False]
    assert [kit.is_of_pod("fastlane-e", account) for account in ("t", "u", "")] == [True, False, False]


def test_a_server_that_leaves_waits_for_no_relay(tmp_path: Path) -> None:
    class Leaving(Exception):
        pass

    def leave(seconds: float) -> None:
        raise Leaving

    new_pod(tmp_path)
    decide(tmp_path, Permission.GRANTED)
    with pytest.raises(Leaving):
        RelayedCapture(tmp_path, "e", KIT).drain(ContainerEnd(None, witnessed=True), leave)


def test_the_recorder_sets_the_limits_of_the_command() -> None:
    (job,) = wrapped(entrypoint=["x"], ulimits=[Ulimit("nofile", 64)])["containers"]
    assert job["command"][job["command"].index("--ulimit") + 1] == "nofile=64:64"
    assert "ulimits" not in job


@pytest.mark.parametrize(
    ("user", "dropped", "by_recorder", "capabilities"),
    [
        ("", ["CHOWN"], [], {"drop": ["CHOWN"]}),
        ("", ["CHOWN", "KILL"], ["KILL"], {"drop": ["CHOWN"]}),
        ("0", ["KILL"], ["KILL"], {}),
        ("", ["ALL"], ["KILL", "SETPCAP"], {"drop": ["ALL"], "add": ["KILL", "SETPCAP"]}),
        ("1000", ["ALL"], [], {"drop": ["ALL"]}),
    ],
)
def test_the_recorder_keeps_the_capabilities_that_it_needs_alone(
    user: str, dropped: list[str], by_recorder: list[str], capabilities: dict[str, list[str]]
) -> None:
    (job,) = wrapped(entrypoint=["x"], user=user, cap_drop=dropped)["containers"]
    words = job["command"]
    assert [words[place + 1] for place, word in enumerate(words) if word == "--cap-drop"] == by_recorder
    assert job["securityContext"]["capabilities"] == capabilities


@pytest.mark.parametrize(
    ("user", "of_image", "dropped", "options", "by_recorder", "capabilities"),
    [
        ("", "", [], [], [], {}),
        ("", "0:0", ["NET_RAW"], [], [], {"drop": ["NET_RAW"]}),
        ("0:7", "app", [], ["--user", "0:7"], [], {}),
        ("1000", "app", [], ["--user", "1000"], [], {}),
        ("", "app:users", [], ["--user", "app:users"], [], {}),
        ("", "", ["CHOWN", "NET_RAW"], ["--cap-drop=CHOWN"], [], {"drop": ["NET_RAW"]}),
        ("", "", ["KILL"], [], ["KILL"], {}),
        ("7", "", ["KILL"], ["--user", "7"], [], {"drop": ["KILL"]}),
    ],
)
def test_root_writes_the_inputs_and_becomes_the_user_of_the_job(
    user: str, of_image: str, dropped: list[str], options: list[str], by_recorder: list[str], capabilities: Any
) -> None:
    image = Image(f"sha256:{'1' * 64}", "amd64", ("x",), (), of_image)
    (job,) = wrapped(JobNeeds(inputs=True), image=image, user=user, cap_drop=dropped)["containers"]
    words, security = job["command"], job["securityContext"]
    box = words.index("/.fastlane/box")
    assert words[:box] == ["/.fastlane/bin/relay", "enter", *options]
    assert words[box + 1 : box + 3] == ["/.fastlane/bin/recorder", "--execution"]
    assert [words[place + 1] for place, word in enumerate(words) if word == "--cap-drop"] == by_recorder
    assert (security["runAsUser"], security["runAsGroup"]) == (0, 0)
    assert security.get("capabilities", {}) == capabilities


def test_root_keeps_what_the_inputs_need_alone_where_a_job_drops_everything() -> None:
    needs = JobNeeds(inputs=True)
    (root,) = wrapped(needs, entrypoint=["x"], user="0", cap_drop=["ALL"])["containers"]
    (other,) = wrapped(needs, entrypoint=["x"], user="1", cap_drop=["ALL"])["containers"]
    kept = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SETPCAP"]
    assert root["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": [*kept, "KILL"]}
    assert other["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": kept}
    # A recorder that is root needs SETPCAP as well, and takes it from the command by itself.
    taken = [[word for word in job["command"] if word.startswith("--cap-drop=")] for job in (root, other)]
    assert taken == [[f"--cap-drop={name}" for name in names] for names in (kept[:-1], kept)]


def test_a_job_that_keeps_files_has_the_program_for_it_with_its_paths() -> None:
    needs = JobNeeds(outputs=["/a b", "/$(x)"], max_output_bytes=1 << 20)
    spec = wrapped(needs, entrypoint=["x"])
    (job,), (relay,) = spec["containers"], spec["initContainers"]
    words = job["command"]
    kept = [words[place + 1] for place, word in enumerate(words) if word == "--keep"]
    assert kept == ["/.fastlane/bin/relay", "pack", str(2 << 20), "/a b", "/$$(x)"]
    assert {"--files", "--outputs"} < set(relay["command"])
    assert not {"--files", "--outputs"} & set(wrapped(entrypoint=["x"])["initContainers"][0]["command"])


def test_a_job_without_any_command_is_refused() -> None:
    with pytest.raises(CannotRun, match="neither the job nor its image says what to run"):
        wrapped()


def test_a_relay_gets_the_authorities_of_the_server() -> None:
    kit = RelayKit("kit:1", "server:7780", RelayTokens(b"key"), 0, lambda: "-----BEGIN CERTIFICATE-----")
    body = pod_body(assignment("x", entrypoint=["x"]), NO_IMAGE, instance="i", host="k8s", settings=PodSettings())
    spec = kit.wrap(body, NO_IMAGE, "e", "1")["spec"]
    (job,), (relay,) = spec["containers"], spec["initContainers"]
    assert {"name": "FASTLANE_RELAY_CA", "value": "-----BEGIN CERTIFICATE-----"} in relay["env"]
    assert "FASTLANE_RELAY_CA" not in str(job)


def test_the_key_of_tokens_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    first = RelayTokens.kept_in(tmp_path).token("e", "1")
    assert RelayTokens.kept_in(tmp_path).token("e", "1") == first
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    (tmp_path / KEY_FILE).unlink()
    assert RelayTokens.kept_in(tmp_path).token("e", "1") != first


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_key_of_tokens_is_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(CannotServe, match=f"is damaged: it has {len(content)} bytes and not 32"):
        RelayTokens.kept_in(tmp_path)


def test_a_link_in_place_of_the_key_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(32))
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotServe, match="cannot use"):
        RelayTokens.kept_in(tmp_path)


def test_a_token_is_of_one_pod() -> None:
    tokens = KIT.tokens
    assert tokens.admits("e", "1", tokens.token("e", "1"))
    assert len({tokens.token("e", "1"), tokens.token("e", "2"), tokens.token("f", "1")}) == 3
    assert not any(tokens.admits("e", "1", token) for token in ("", "ü", tokens.token("e", "2")))
    assert not RelayTokens(b"another").admits("e", "1", tokens.token("e", "1"))


def test_an_execution_ends_when_the_disk_has_taken_its_whole_log(tmp_path: Path) -> None:
    writer = RecordWriter.create(tmp_path / "whole", execution_id="e", capture="recorder")
    for _ in range(500):
        writer.write([(Source.STDOUT, os.urandom(60_000))], 1)
    writer.seal(0, {}, 1)
    content = (tmp_path / "whole").read_bytes()
    with sparse_disk(tmp_path) as disk:
        directory = disk.path / "execution"
        new_pod(directory)
        record, again = RelayedRecord(directory, 0), RelayedRecord(directory, 0)
        record.open()
        record.store(0, content)
        waited: list[float] = []

        def send_again(seconds: float) -> None:
            """As the relay does, whose call gets the error, too."""
            waited.append(seconds)
            with pytest.raises(OSError, match="No space left"):
                record.finish(len(content))
            record.close()
            disk.make_room()
            again.open()
            again.store(again.position, content[again.position :])
            again.finish(len(content))

        capture = RelayedCapture(directory, "e", None)
        assert capture.drain(ContainerEnd(datetime.now(UTC), witnessed=True), send_again) == ""
        again.close()
        assert len(waited) == 1
        with (directory / "log").open("rb") as log:
            os.posix_fadvise(log.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert log.read() == content
