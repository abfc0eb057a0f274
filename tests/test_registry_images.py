"""Images that are looked up in their registries: what they run, of real registries and of hostile ones."""

import base64
import http.client
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pytest

from fastlane_grpc.backend import CannotRun, Image, PullFailed
from fastlane_grpc.config import RegistrySettings
from fastlane_grpc.kubernetes import images as looked_up
from fastlane_grpc.kubernetes.images import RegistryImages
from fastlane_grpc.model import Assignment, Input, PullPolicy, Reason
from fastlane_grpc.registry import Reference
from fastlane_grpc.registry.client import MAX_BYTES
from fastlane_grpc.registry.reference import HUB
from fastlane_grpc.secrets import RegistryCredentials
from tests.docker_registry import DockerRegistry, docker_registry
from tests.pods import assignment
from tests.registry import MANIFEST_TYPE, Registry, digest
from tests.token_server import TokenServer

USER, PASSWORD, IDENTITY = "robot", "right-pass word", "identity-token-of-the-robot"
# bcrypt, as a registry wants it.
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuloEx9IHFyvwNxyaMbepZAlRUtHb5kqK\n"
LOGIN = {"username": USER, "password": PASSWORD}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
SECONDS = 60


@pytest.fixture(autouse=True)
def no_login(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the configuration of docker login, where nobody has logged in."""
    directory = tmp_path_factory.mktemp("login")
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))
    return directory


def failure_of(images: RegistryImages, job: Assignment) -> Exception | None:
    """Look the image up, and return the failure."""
    ends: queue.Queue[Exception | None] = queue.Queue()
    images.look_up(job, on_line=lambda line: None, on_end=ends.put)
    return ends.get(timeout=SECONDS)


def found(images: RegistryImages, name: str, **spec: Any) -> Image:
    job = assignment(name, **spec)
    failure = failure_of(images, job)
    assert failure is None, failure
    image = images.known(job)
    assert image
    return image


def images_with(*credentials: RegistrySettings, architecture: str = "") -> RegistryImages:
    return RegistryImages(RegistryCredentials(credentials), architecture)


# -- names


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("busybox", f"{HUB}/library/busybox:latest"),
        (f"index.{HUB}/a/b:1", f"{HUB}/a/b:1"),
        ("team/app:v1", f"{HUB}/team/app:v1"),
        ("registry:5000/app", "registry:5000/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("Host/app", "Host/app:latest"),
        ("[::1]:5000/a/b_c", "[::1]:5000/a/b_c:latest"),
        (f"r.io/a:tag@sha256:{'0' * 64}", f"r.io/a@sha256:{'0' * 64}"),
    ],
)
def test_a_name_is_read_as_engines_do(name: str, whole: str) -> None:
    assert str(Reference.parse(name)) == whole


@pytest.mark.parametrize(
    "name",
    ["", "A", "a:", "a/", "/a", "a//b", "r.io/a?x", "r.io/../b", "u@r.io/a", "a@sha256:1", "r.io:x/a", "a b", "a\n"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(CannotRun, match="is not the name of an image") as refused:
        Reference.parse(name)
    assert refused.value.reason is Reason.IMAGE_NOT_FOUND


@pytest.mark.parametrize(
    ("registry", "is_here"),
    [
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("[::1]:5000", True),
        ("127.0.0.1.example", False),
        ("r.io", False),
    ],
)
def test_only_a_registry_on_this_machine_is_asked_without_tls(registry: str, is_here: bool) -> None:
    assert Reference.parse(f"{registry}/a").is_on_loopback is is_here


# -- what a job says itself


def test_a_job_with_an_entrypoint_needs_no_look_up() -> None:
    images = images_with()
    job = assignment("127.0.0.1:1/nothing", entrypoint=["/bin/x"])
    assert images.known(job) == Image("", "", (), ())
    assert failure_of(images, job) is None


def test_a_job_that_must_not_pull_has_to_say_its_entrypoint() -> None:
    with pytest.raises(CannotRun, match="set `entrypoint`"):
        images_with().known(assignment("busybox", pull_policy=PullPolicy.NEVER))


def test_the_user_of_an_image_is_looked_up_for_inputs_alone() -> None:
    images, inputs = images_with(), [Input("/x", "0" * 64, 1)]
    assert images.known(assignment("busybox", entrypoint=["x"])) == Image("", "", (), ())
    assert images.known(assignment("busybox", entrypoint=["x"], inputs=inputs, user="0")) == Image("", "", (), ())
    assert images.known(assignment("busybox", entrypoint=["x"], inputs=inputs)) is None
    with pytest.raises(CannotRun, match=r"do not tell the user of an image.*set `user` in the job"):
        images.known(assignment("busybox", entrypoint=["x"], inputs=inputs, pull_policy=PullPolicy.NEVER))


# -- real registries


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, sdk: docker.DockerClient, image: str
) -> Iterator[DockerRegistry]:
    """One with a file of passwords."""
    directory = tmp_path_factory.mktemp("registry")
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    with docker_registry(directory, sdk, image, auth=auth, login=LOGIN) as registry:
        yield registry


@pytest.mark.engine
def test_an_image_is_found_by_its_tag_with_the_operators_credential(registry: DockerRegistry, tmp_path: Path) -> None:
    pushed = registry.push_with_files("found/one:v1", {}, 'ENTRYPOINT ["a", "$b"]\nCMD ["c d", ""]\n')
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    images = images_with(RegistrySettings("ci", registry.address, username=USER, password_file=password))
    name = f"{registry.address}/found/one"
    image = found(images, f"{name}:v1")
    assert (image.digest, image.entrypoint, image.command) == (pushed, ("a", "$b"), ("c d", ""))
    assert image.architecture in {"amd64", "arm64"}
    assert images.architecture(pushed) == image.architecture
    # By the digest it is known now, whatever becomes of the password.
    password.write_text("wrong")
    assert images.known(assignment(f"{name}@{pushed}")) == image
    refused = failure_of(images, assignment(f"{name}:v1"))
    assert isinstance(refused, CannotRun)
    assert refused.reason is Reason.IMAGE_DENIED
    assert refused.detail.endswith("It was looked up with the registry credential 'ci'")


@pytest.mark.engine
def test_a_login_on_the_servers_machine_is_used(registry: DockerRegistry, no_login: Path) -> None:
    registry.push("found/two:v1", "mine")
    job = assignment(f"{registry.address}/found/two:v1")
    anonymous = failure_of(images_with(), job)
    assert isinstance(anonymous, CannotRun)
    assert anonymous.reason is Reason.IMAGE_DENIED
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (no_login / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
    assert found(images_with(), job.spec.image).command == ("mine",)
    missing = failure_of(images_with(), assignment(f"{registry.address}/found/two:v2"))
    assert isinstance(missing, CannotRun)
    assert (missing.reason, "has no image" in missing.detail) == (Reason.IMAGE_NOT_FOUND, True)


@pytest.mark.engine
def test_a_registry_that_wants_tokens_gets_them(tmp_path: Path, sdk: docker.DockerClient, image: str) -> None:
    tokens = TokenServer(tmp_path, user=USER, password=PASSWORD, identity_token=IDENTITY)
    (tmp_path / "identity").write_text(IDENTITY)
    (tmp_path / "password").write_text(PASSWORD)
    with tokens.serving() as auth, docker_registry(tmp_path, sdk, image, auth=auth, login=LOGIN) as registry:
        registry.push("private/two:v1", "of a token")
        identity = RegistrySettings("i", registry.address, identity_token_file=tmp_path / "identity")
        login = RegistrySettings("l", registry.address, username=USER, password_file=tmp_path / "password")
        name = f"{registry.address}/private/two:v1"
        for credential in (identity, login):
            assert found(images_with(credential), name).command == ("of a token",)
        refused = failure_of(images_with(), assignment(name))
        assert isinstance(refused, CannotRun)
        assert refused.reason is Reason.IMAGE_DENIED


@contextmanager
def open_registry(directory: Path, sdk: docker.DockerClient, image: str) -> Iterator[DockerRegistry]:
    with docker_registry(directory, sdk, image) as registry:
        yield registry


@pytest.mark.engine
def test_an_image_for_several_architectures_is_one_if_it_runs_one_command(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    with open_registry(tmp_path, sdk, image) as registry:
        same = [registry.push(f"many:{name}", "same") for name in ("a", "b")]
        other = registry.push("many:c", "other")
        put_index(registry, "many", "same", {"amd64": same[0], "arm64": same[1], "riscv64": other})
        name = f"{registry.address}/many"
        image_ = found(images_with(), f"{name}:same")
        assert (image_.architecture, image_.command) == ("", ("same",))
        assert image_.digest not in same
        put_index(registry, "many", "differing", {"amd64": same[0], "arm64": other})
        refused = failure_of(images_with(), assignment(f"{name}:differing"))
        assert isinstance(refused, CannotRun)
        assert "another command or user on each of" in refused.detail
        assert found(images_with(architecture="arm64"), f"{name}:differing").command == ("other",)
        put_index(registry, "many", "foreign", {"riscv64": other})
        unusable = failure_of(images_with(), assignment(f"{name}:foreign"))
        assert isinstance(unusable, CannotRun)
        assert (unusable.reason, "only for linux/riscv64" in unusable.detail) == (Reason.IMAGE_UNUSABLE, True)


@pytest.mark.engine
def test_a_tag_is_asked_again_after_some_time(
    tmp_path: Path, sdk: docker.DockerClient, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_registry(tmp_path, sdk, image) as registry:
        registry.push("moving:v1", "before")
        images, job = images_with(), assignment(f"{registry.address}/moving:v1")
        assert found(images, job.spec.image).command == ("before",)
        registry.push("moving:v1", "after")
        known = images.known(job)
        assert known
        assert known.command == ("before",)
        monkeypatch.setattr(looked_up, "FRESH_SECONDS", 0.0)
        assert images.known(job) is None


def put_index(registry: DockerRegistry, repository: str, tag: str, digests: Mapping[str, str]) -> None:
    """Make a tag of an image for several architectures."""
    with closing(http.client.HTTPConnection(registry.address, timeout=SECONDS)) as connection:
        entries = []
        for architecture, each in digests.items():
            connection.request("GET", f"/v2/{repository}/manifests/{each}", headers={"Accept": MANIFEST_TYPE})
            size = len(connection.getresponse().read())
            platform = {"os": "linux", "architecture": architecture}
            entries.append({"mediaType": MANIFEST_TYPE, "digest": each, "size": size, "platform": platform})
        # As builders add it: what was built, and how.
        attestation = {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}}
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*entries, attestation]}
        headers = {"Content-Type": INDEX_TYPE}
        connection.request("PUT", f"/v2/{repository}/manifests/{tag}", json.dumps(index), headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()


# -- registries that fail, and hostile ones


def test_a_registry_that_fails_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody has to be reached over a proxy here, and none is.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Registry(b"").serving() as registry:
        assert found(images_with(), f"{registry.name}/any:first").command == ("sh",)
        failing = failure_of(images_with(), assignment(f"{registry.name}/failing/x:first"))
        assert isinstance(failing, PullFailed)
        assert (failing.reason, str(failing)) == (Reason.REGISTRY_UNAVAILABLE, "status 503: come back later")
        limited = failure_of(images_with(), assignment(f"{registry.name}/limited/x:first"))
        assert isinstance(limited, PullFailed)
        foreign = failure_of(images_with(), assignment(f"{registry.name}/foreign/x:first"))
        assert isinstance(foreign, CannotRun)
        assert (foreign.reason, "not for Linux, but for windows" in foreign.detail) == (Reason.IMAGE_UNUSABLE, True)
        hostile = failure_of(images_with(), assignment(f"{registry.name}/hostile/x:first"))
        assert isinstance(hostile, CannotRun)
        assert hostile.reason is Reason.IMAGE_NOT_FOUND
        assert hostile.detail.isprintable()
        assert len(hostile.detail) < 600
    away = failure_of(images_with(), assignment(f"{registry.name}/any:first"))
    assert isinstance(away, PullFailed)


def test_a_look_up_that_hangs_ends_when_it_is_cancelled_or_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry(b"").serving() as registry:
        ends: queue.Queue[Exception | None] = queue.Queue()
        job = assignment(f"{registry.name}/hanging/x:first")
        look_up = images_with().look_up(job, on_line=lambda line: None, on_end=ends.put)
        assert registry.asked.wait(SECONDS)
        look_up.cancel()
        assert isinstance(ends.get(timeout=SECONDS), PullFailed)
        monkeypatch.setattr(looked_up, "LOOK_UP_SECONDS", 0.5)
        late = failure_of(images_with(), job)
        assert isinstance(late, PullFailed)
        assert "did not answer within 0.5 s" in str(late)


Answer = tuple[int, Mapping[str, str], bytes]


@contextmanager
def lying(answers: Mapping[str, Answer]) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """Serve these answers by the ends of paths. Yield the address, and the headers of all requests."""
    asked: list[Mapping[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            status, headers, body = next((a for end, a in answers.items() if self.path.endswith(end)), (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                return

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


CONFIG = json.dumps({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["x"]}}).encode()


def manifest(config: bytes = CONFIG) -> bytes:
    return json.dumps({"config": {"digest": digest(config)}}).encode()


def config_with(**settings: Any) -> bytes:
    return json.dumps({"os": "linux", "config": settings}).encode()


@pytest.mark.parametrize(
    ("answers", "reason", "words"),
    [
        ({"/latest": (200, {}, b"x" * (MAX_BYTES + 1))}, Reason.IMAGE_UNUSABLE, "more than 4194304 bytes"),
        ({"/latest": (200, {}, b"<html>")}, Reason.IMAGE_UNUSABLE, "no JSON object"),
        ({"/latest": (200, {}, b"[" * 100_000)}, Reason.IMAGE_UNUSABLE, "no JSON object"),
        ({"/latest": (200, {}, b'{"config": 5}')}, Reason.IMAGE_UNUSABLE, "is not one of Docker or OCI"),
        ({"/latest": (200, {}, b'{"manifests": {}}')}, Reason.IMAGE_UNUSABLE, "not as images have it"),
        ({"/latest": (200, {}, b'{"manifests": [5, {}]}')}, Reason.IMAGE_UNUSABLE, "it is not for linux/"),
        (
            {"/latest": (200, {}, manifest()), digest(CONFIG): (200, {}, CONFIG + b" ")},
            Reason.IMAGE_UNUSABLE,
            "the registry sends something else than sha256:",
        ),
        *(
            (
                {"/latest": (200, {}, manifest(config)), digest(config): (200, {}, config)},
                Reason.IMAGE_UNUSABLE,
                words,
            )
            for config, words in (
                (config_with(Cmd="sh"), "not as images have it"),
                (config_with(Cmd=["a", 5]), "not a list of words"),
                (config_with(Cmd=["a\0"]), "not a list of words"),
                (config_with(Entrypoint=["a" * (300 << 10)]), "more than 262144 characters"),
                (b'{"os": "linux", "config": 5}', "not as images have it"),
            )
        ),
        ({"/latest": (302, {"Location": "http://192.0.2.1/"}, b"")}, Reason.IMAGE_DENIED, "an address without TLS"),
        ({"/latest": (302, {"Location": "file:///etc/passwd"}, b"")}, Reason.IMAGE_DENIED, "an address without TLS"),
        (
            {"/latest": (401, {"WWW-Authenticate": 'Bearer realm="ftp://x/"'}, b"")},
            Reason.IMAGE_DENIED,
            "sends for a token to an address without TLS",
        ),
    ],
)
def test_an_image_that_is_no_image_is_refused(answers: Mapping[str, Answer], reason: Reason, words: str) -> None:
    with lying(answers) as (address, _):
        refused = failure_of(images_with(), assignment(f"{address}/x"))
    assert isinstance(refused, CannotRun), refused
    assert refused.reason is reason
    assert words in refused.detail


def test_a_redirect_to_another_server_takes_no_credentials_along(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    elsewhere: dict[str, Answer] = {digest(CONFIG): (200, {}, CONFIG)}
    with lying(elsewhere) as (storage, asked_there):
        answers: dict[str, Answer] = {
            "/first": (401, {"WWW-Authenticate": "Basic realm=x"}, b""),
            digest(CONFIG): (307, {"Location": f"http://{storage}/{digest(CONFIG)}"}, b""),
        }
        with lying(answers) as (address, asked):
            credential = RegistrySettings("l", address, username=USER, password_file=tmp_path / "password")
            images = images_with(credential)
            refused = failure_of(images, assignment(f"{address}/x:first"))
            assert isinstance(refused, CannotRun)
            # Not before the registry asked for them.
            assert ["Authorization" in headers for headers in asked] == [False, True]
            answers["/first"] = (200, {}, manifest())
            assert found(images, f"{address}/x:first").command == ("x",)
    assert ["Authorization" in headers for headers in asked_there] == [False]


def test_a_registry_that_redirects_for_ever_is_given_up() -> None:
    with lying({"/latest": (302, {"Location": "latest"}, b"")}) as (address, asked):
        failure = failure_of(images_with(), assignment(f"{address}/x"))
    assert isinstance(failure, PullFailed)
    assert len(asked) <= 6


def test_a_wait_that_a_registry_asks_for_is_kept() -> None:
    with lying({"/latest": (429, {"Retry-After": "7"}, b"")}) as (address, _):
        failure = failure_of(images_with(), assignment(f"{address}/x"))
    assert isinstance(failure, PullFailed)
    assert failure.retry_seconds == 7
