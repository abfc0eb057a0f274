"""Images: when they are pulled, from where, and what becomes of an execution whose image cannot be had."""

import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import docker
import pytest

from fastlane_grpc.backend import CannotRun, PullFailed
from fastlane_grpc.docker.engine import Engine
from fastlane_grpc.docker.engine_errors import EngineDown
from fastlane_grpc.docker.images import DockerPull, PullProgress, image_parts, pull_failure
from fastlane_grpc.execution import Step
from fastlane_grpc.model import MAX_TOLD_CHARACTERS, Execution, Outcome, PullPolicy, Reason, State
from tests.engine import EngineHarness, by_recorder
from tests.registry import Registry, digest, registry_for

on_engine = [pytest.mark.engine, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def registry(sdk: docker.DockerClient) -> Iterator[Registry]:
    with registry_for(sdk) as registry:
        yield registry


def outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None
    return execution.outcome


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("busybox", ("busybox", "latest")),
        ("busybox:1.36", ("busybox", "1.36")),
        ("registry:5000/image", ("registry:5000/image", "latest")),
        ("registry:5000/image:tag", ("registry:5000/image", "tag")),
        ("registry:5000/a/b@sha256:0123", ("registry:5000/a/b", "sha256:0123")),
        ("a/b:tag@sha256:0123", ("a/b:tag", "sha256:0123")),
    ],
)
def test_a_name_is_taken_apart_as_the_engine_does(name: str, parts: tuple[str, str]) -> None:
    assert image_parts(name) == parts


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("manifest for a:b not found: manifest unknown: manifest unknown", Reason.IMAGE_NOT_FOUND),
        ("repository a not found: name unknown", Reason.IMAGE_NOT_FOUND),
        ("invalid reference format: repository name must be lowercase", Reason.IMAGE_NOT_FOUND),
        (
            "pull access denied for a, repository does not exist or may require 'docker login': denied",
            Reason.IMAGE_DENIED,
        ),
        ("unauthorized: authentication required", Reason.IMAGE_DENIED),
        ("no basic auth credentials", Reason.IMAGE_DENIED),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", Reason.IMAGE_UNUSABLE),
        ("failed to register layer: Error processing tar file(exit status 1): unexpected EOF", Reason.IMAGE_UNUSABLE),
        ('Get "http://r/v2/": dial tcp 127.0.0.1:1: connect: connection refused', None),
        ('Get "https://r/v2/": dial tcp: lookup r: no such host', None),
        ('Get "https://r/v2/": net/http: TLS handshake timeout', None),
        ("received unexpected HTTP status: 503 Service Unavailable", None),
        ("toomanyrequests: You have reached your pull rate limit", None),
        ("something nobody has seen yet", None),
    ],
)
def test_what_engines_say_of_a_pull_is_understood(message: str, reason: Reason | None) -> None:
    failure = pull_failure("a", message)
    if reason is None:
        assert isinstance(failure, PullFailed)
    else:
        assert isinstance(failure, CannotRun)
        assert failure.reason is reason


@pytest.mark.parametrize(
    ("message", "reason", "seconds"),
    [
        ("write /var/lib/docker/tmp/x: no space left on device", Reason.REFUSED_BY_ENGINE, 0),
        ("failed to register layer: write /x: no space left on device", Reason.REFUSED_BY_ENGINE, 0),
        (
            "failed to register layer: error creating overlay mount to /x: device or resource busy",
            Reason.REFUSED_BY_ENGINE,
            0,
        ),
        ("received unexpected HTTP status: 503 Service Temporarily Unavailable", Reason.REGISTRY_UNAVAILABLE, 0),
        ("toomanyrequests: retry-after: 461.286µs, allowed: 44000/minute", Reason.REGISTRY_UNAVAILABLE, 461.286e-6),
        ("toomanyrequests: retry-after: 1m1.5s, allowed: 10/hour", Reason.REGISTRY_UNAVAILABLE, 61.5),
        ("toomanyrequests: retry-after: 1.2.3s", Reason.REGISTRY_UNAVAILABLE, 0),
        ("toomanyrequests: You have reached your pull rate limit", Reason.REGISTRY_UNAVAILABLE, 0),
    ],
)
def test_a_pull_that_is_tried_again_says_whose_fault_it_was_and_waits_as_told(
    message: str, reason: Reason, seconds: float
) -> None:
    failure = pull_failure("r/a", message)
    assert isinstance(failure, PullFailed)
    assert (failure.reason, failure.retry_seconds) == (reason, pytest.approx(seconds))


def test_the_name_of_an_image_says_nothing_of_why_it_could_not_be_pulled() -> None:
    name = "r:5000/team/access-denied"
    failure = pull_failure(
        name, f"manifest for {name}:1 not found: manifest unknown: https://r:5000/v2/team/access-denied/manifests/1"
    )
    assert isinstance(failure, CannotRun)
    assert failure.reason is Reason.IMAGE_NOT_FOUND


def end_of_pull(name: str, address: str) -> Exception | None:
    ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    DockerPull(Engine(address), name, on_line=lambda line: None, on_end=ends.put)
    return ends.get(timeout=30)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"{not json\n", PullFailed),
        (b"[]\n", PullFailed),
        (b'{"status": "Downloading", "id": "a", "progressDetail": {"total": "much"}}\n', EngineDown),
    ],
)
def test_a_pull_ends_whatever_the_engine_says(answer: bytes, failure: type[Exception], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/engine")
        listener.listen()
        serving = threading.Thread(
            target=answer_all, args=(listener, b"HTTP/1.0 200 OK\r\nApi-Version: 1.41\r\n\r\n" + answer)
        )
        serving.start()
        end = end_of_pull("image:tag", f"unix://{tmp_path}/engine")
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()
    assert isinstance(end, failure)


def test_progress_is_told_by_layers_and_bytes_in_one_line_now_and_then() -> None:
    progress = PullProgress(report_time=0.0)

    def hear(layer: str, status: str, current: int = 0, total: int = 0) -> str:
        progress.report_time = 0.0
        return progress.report(
            {"id": layer, "status": status, "progressDetail": {"current": current, "total": total} if total else {}}
        )

    assert hear("latest", "Pulling from library/image") == ""
    assert hear("a", "Pulling fs layer") == "0 of 1 layers"
    assert hear("b", "Already exists") == "1 of 2 layers"
    hear("c", "Waiting")
    assert hear("a", "Downloading", 12_000_000, 80_500_000) == "1 of 3 layers, 12.0 of 80.5 MB"
    assert hear("a", "Download complete") == "1 of 3 layers, 80.5 of 80.5 MB"
    # Unpacking has a count of its own, which is none of bytes loaded.
    assert hear("a", "Extracting", 1, 500) == "1 of 3 layers, 80.5 of 80.5 MB"
    assert hear("a", "Pull complete") == "2 of 3 layers, 80.5 of 80.5 MB"
    assert progress.report({"id": "c", "status": "Pull complete"}) == "", "something was said just now"


def answer_all(listener: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(65_536)
            connection.sendall(answer)


class TestOnAnEngine:
    pytestmark: ClassVar = [*on_engine, by_recorder]

    def test_a_missing_image_is_pulled_from_a_registry_with_a_port(
        self, harness: EngineHarness, registry: Registry
    ) -> None:
        image = f"{registry.name}/one/image:first"
        execution = harness.sh("echo pulled", image=image)
        assert execution.state is State.SUCCEEDED
        assert harness.output(execution.id).stdout == b"pulled\n"
        assert f"pulling {image}" in harness.system(execution.id)
        asked = len(registry.pulls)
        assert harness.sh("echo there", image=image).state is State.SUCCEEDED
        assert len(registry.pulls) == asked

    def test_always_pulls_each_time_and_no_tag_is_latest(self, harness: EngineHarness, registry: Registry) -> None:
        image = f"{registry.name}/two/image"
        for _ in range(2):
            asked = len(registry.pulls)
            assert harness.sh("true", image=image, pull_policy=PullPolicy.ALWAYS).state is State.SUCCEEDED
            assert "latest" in registry.pulls[asked:]

    def test_an_image_is_pulled_by_digest(self, harness: EngineHarness, registry: Registry) -> None:
        image = f"{registry.name}/three/image@{digest(registry.manifest)}"
        assert harness.sh("true", image=image).state is State.SUCCEEDED
        execution = harness.sh("true", image=f"{registry.name}/three/image@sha256:{'0' * 64}")
        assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.IMAGE_NOT_FOUND)

    def test_never_means_never(self, harness: EngineHarness, registry: Registry) -> None:
        execution = harness.sh("true", image=f"{registry.name}/four/image:first", pull_policy=PullPolicy.NEVER)
        assert (execution.state, outcome(execution).reason) == (State.FAILED, Reason.IMAGE_NOT_PRESENT)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("no/image:first", Reason.IMAGE_NOT_FOUND),
            ("one/image:nosuchtag", Reason.IMAGE_NOT_FOUND),
            ("denied/image:first", Reason.IMAGE_DENIED),
            ("damaged/image:first", Reason.IMAGE_UNUSABLE),
            ("foreign/image:first", Reason.IMAGE_UNUSABLE),
        ],
    )
    def test_an_image_that_cannot_be_had_says_why(
        self, harness: EngineHarness, registry: Registry, name: str, reason: Reason
    ) -> None:
        execution = harness.sh("true", image=f"{registry.name}/{name}")
        assert (execution.state, outcome(execution).reason, outcome(execution).exit_code) == (
            State.FAILED,
            reason,
            None,
        )
        assert name in outcome(execution).detail
        assert not harness.logs.output_path(execution.id).exists()

    def test_a_registry_cannot_forge_lines_nor_reach_a_terminal(
        self, harness: EngineHarness, registry: Registry
    ) -> None:
        execution = harness.sh("true", image=f"{registry.name}/hostile/image:first")
        detail, lines = outcome(execution).detail, harness.system(execution.id).removesuffix("\n").split("\n")
        assert "PWNED" in detail, "the engine passes it on"
        assert all(text.isprintable() and len(text) <= MAX_TOLD_CHARACTERS for text in (detail, *lines))
        assert not [line for line in lines if line.startswith("succeeded")]

    def test_a_name_that_is_none_is_not_found(self, harness: EngineHarness) -> None:
        assert outcome(harness.sh("true", image="No:Image")).reason is Reason.IMAGE_NOT_FOUND

    def test_a_registry_that_fails_for_a_while_is_asked_again(self, harness: EngineHarness, registry: Registry) -> None:
        registry.failures = 3
        try:
            execution = harness.sh("true", image=f"{registry.name}/failing/for/a/while:first")
        finally:
            registry.failures = 10**9
        assert execution.state is State.SUCCEEDED
        assert "tried again" in harness.system(execution.id)

    def test_a_registry_that_says_how_long_to_wait_is_asked_again_after_that_time(
        self, harness: EngineHarness, registry: Registry
    ) -> None:
        began = time.monotonic()
        execution = harness.sh("true", image=f"{registry.name}/limited/image:first")
        assert execution.state is State.SUCCEEDED
        assert "tried again in 2 s: toomanyrequests" in harness.system(execution.id)
        assert time.monotonic() - began > 1.5

    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            (
                '{"credsStore": "nosuch"}',
                "docker-credential-nosuch, which {file} names, is not installed, or not in the server's PATH",
            ),
            ("{not json", "{file} is not JSON: "),
        ],
        ids=["helper", "json"],
    )
    def test_a_pull_without_the_credentials_there_may_be_says_so(
        self,
        harness: EngineHarness,
        registry: Registry,
        config: str,
        problem: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        file = tmp_path / "config.json"
        file.write_text(config)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        problem = problem.format(file=file)
        execution = harness.sh("true", image=f"{registry.name}/public/image:first", pull_policy=PullPolicy.ALWAYS)
        assert execution.state is State.SUCCEEDED
        assert f"without credentials: {problem}" in harness.system(execution.id)
        execution = harness.sh("true", image=f"{registry.name}/denied/image:first")
        assert outcome(execution).reason is Reason.IMAGE_DENIED
        assert f"It was pulled without credentials: {problem}" in outcome(execution).detail

    def test_a_stop_ends_the_tries_at_once(self, harness: EngineHarness, registry: Registry) -> None:
        going = harness.go("true", image=f"{registry.name}/failing/for/ever:first")
        harness.wait_for_system(going.id, "tried again")
        harness.stop(going.id)
        execution = going.result()
        assert (execution.state, outcome(execution).exit_code) == (State.STOPPED, None)

    def test_a_stop_ends_a_pull_that_hangs(self, harness: EngineHarness, registry: Registry) -> None:
        going = harness.go("true", image=f"{registry.name}/hanging/image:first")
        assert registry.asked.wait(30)
        harness.stop(going.id)
        assert going.result().state is State.STOPPED
        assert Step.PULLED not in going.steps

    def test_the_time_of_a_pull_is_not_the_container_s(self, harness: EngineHarness, registry: Registry) -> None:
        execution = harness.sh("true", image=f"{registry.name}/five/image:first")
        times = execution.times
        assert None not in (times.claim_time, times.pull_time)
        assert times.claim_time < times.pull_time < times.container_time < times.start_time  # type: ignore[operator]
