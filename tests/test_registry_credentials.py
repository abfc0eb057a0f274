"""Credentials of registries that the operator names: which one a pull uses, where it is read, and what becomes of
a pull that a real registry refuses."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import docker
import pytest

from fastlane_grpc import config
from fastlane_grpc.backend import CannotRun, PullFailed
from fastlane_grpc.client import Client, NotFound
from fastlane_grpc.config import ConfigError, RegistrySettings
from fastlane_grpc.errors import RegistryCredentialNotFound
from fastlane_grpc.model import Reason
from fastlane_grpc.registry import credentials_of_job
from fastlane_grpc.secrets import Credential, RegistryCredentials, Unreadable, read_credential
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.docker_registry import DockerRegistry, docker_registry
from tests.own_engine import OwnEngine
from tests.reading import Reader, outcome, run
from tests.serving import Server, serving, serving_on
from tests.token_server import TokenServer

USER, PASSWORD, IDENTITY = "robot", "right-pass word", "identity-token-of-the-robot"
HUB = "docker.io"
# bcrypt, as a registry wants it.
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuloEx9IHFyvwNxyaMbepZAlRUtHb5kqK\n"
LOGIN = {"username": USER, "password": PASSWORD}


# -- which one


def settings(file: Path, text: str) -> config.Settings:
    file.write_text(text)
    return config.load({}, {}, file)


def table(name: str, *lines: str, server: str = "registry:5000") -> str:
    return "\n".join(["[[registries]]", f'name = "{name}"', f'server = "{server}"', *lines, ""])


def test_the_first_credential_for_the_registry_that_the_task_may_use_is_taken(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("secret\n")
    login = f'username = "u"\npassword_file = "{tmp_path}/p"'
    tables = table("mail", login, 'tasks = "mail-*"') + table("other", login, server="registry") + table("all", login)
    named = RegistryCredentials(settings(tmp_path / "s.toml", tables).registries)
    found = [named.of_server("registry:5000", task) for task in ("mail-1", "x")]
    assert [each and each.name for each in found] == ["mail", "all"]
    assert named.of_server("docker.io", "x") is None
    assert named.named("other", "x").server == "registry"
    refusals = []
    for name, task in (("mail", "x"), ("nosuch", "x")):
        with pytest.raises(RegistryCredentialNotFound) as refused:
            named.named(name, task)
        refusals.append(str(refused.value).replace(name, "NAME"))
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (table("a"), "must have one of password_file, identity_token_file and command"),
        (table("a", 'password_file = "/p"'), "has a password_file and no username"),
        (table("a", 'username = "u"', 'identity_token_file = "/p"'), "takes no username"),
        (table("a", 'command = "x"', 'identity_token_file = "/p"'), "must have one of"),
        (table("a", 'command = "x \'y"'), "single quote"),
        (table("a", 'command = "x"', server="https://r"), "must be the name of a registry"),
        (table("a/b", 'command = "x"'), "must be 1 to 64 of"),
        (table("a", 'command = "x"') * 2, "have the name 'a'"),
        (table("a", 'comand = "x"'), "did you mean 'command'?"),
        ("[[registries]]\nname = 'a'\ncommand = 'x'\n", "has no server"),
        ("registries = 5\n", "must be tables"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=r"registries|registry") as refused:
        settings(tmp_path / "s.toml", text)
    assert fault in str(refused.value)


def test_the_settings_in_force_tell_of_credentials_without_their_values(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(table("a", 'username = "u"', f'password_file = "{file}"') + table("b", 'command = "get --x y"'))
    told = config.toml(config.in_force({}, {}, file))
    assert f'name = "a"  # file {file}' in told
    again = settings(tmp_path / "again.toml", told)
    assert again.registries == config.load({}, {}, file).registries
    assert [each["name"] for each in json.loads(config.as_json(config.in_force({}, {}, file)))["registries"]] == [
        "a",
        "b",
    ]


# -- where it is read


def registry_with(**how: object) -> RegistrySettings:
    return RegistrySettings("ci", "registry:5000", **how)  # type: ignore[arg-type]


def program(directory: Path, script: str) -> str:
    file = directory / "get"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def test_a_password_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\r\n")
    registry = registry_with(username="u", password_file=file)
    assert read_credential(registry) == Credential("u", "first")
    file.write_text(" second")
    assert read_credential(registry) == Credential("u", " second")
    assert "second" not in repr(read_credential(registry))


@pytest.mark.parametrize(
    ("username", "script", "credential"),
    [
        ("u", "echo secret", Credential("u", "secret")),
        ("", 'read r; printf \'{"Username": "of %s", "Secret": "s"}\' "$r"', Credential("of registry:5000", "s")),
        ("", 'echo \'{"Username": "<token>", "Secret": "s"}\'', Credential(identity_token="s")),
    ],
)
def test_a_command_prints_the_password_or_what_a_helper_prints(
    tmp_path: Path, username: str, script: str, credential: Credential
) -> None:
    assert read_credential(registry_with(username=username, command=program(tmp_path, script))) == credential


@pytest.mark.parametrize(
    ("username", "script", "fault"),
    [
        ("u", "echo SECRET; exit 3", "exited with 3"),
        ("u", "echo SECRET >&2; kill -9 $$", "was killed by signal 9"),
        ("u", "yes SECRET", "printed more than 65536 bytes"),
        ("u", "printf '\\377SECRET'", "is not UTF-8"),
        ("u", "true", "is empty"),
        ("", "echo SECRET", "did not print JSON with Username and Secret"),
        ("", 'echo \'{"Username": 5, "Secret": "SECRET"}\'', "did not print JSON with Username and Secret"),
    ],
)
def test_a_command_that_fails_is_told_without_its_output(
    tmp_path: Path, username: str, script: str, fault: str
) -> None:
    with pytest.raises(Unreadable) as failed:
        read_credential(registry_with(username=username, command=program(tmp_path, script)))
    assert fault in str(failed.value)
    assert "SECRET" not in str(failed.value)
    assert failed.value.__cause__ is None or "SECRET" not in str(failed.value.__cause__)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 65_537)
    for name, fault in (("none", "No such file"), ("", "not a regular file"), ("large", "more than 65536 bytes")):
        with pytest.raises(Unreadable, match=fault):
            read_credential(registry_with(identity_token_file=tmp_path / name))


def shown(header: str) -> object:
    return json.loads(base64.urlsafe_b64decode(header))


@pytest.mark.parametrize(("registry", "address"), [("r:5000", "r:5000"), ("docker.io", docker.auth.INDEX_URL)])
def test_the_engine_is_told_whose_credential_it_is(tmp_path: Path, registry: str, address: str) -> None:
    (tmp_path / "p").write_text("secret\n")
    by_name = RegistrySettings("ci", registry, username="u", password_file=tmp_path / "p")
    token = RegistrySettings("token", registry, identity_token_file=tmp_path / "p")
    named = RegistryCredentials([by_name, token])
    login = {"serveraddress": address, "username": "u", "password": "secret"}
    assert shown(credentials_of_job(named, "", "t", registry).header) == login
    found = credentials_of_job(named, "token", "t", registry)
    assert shown(found.header) == {"serveraddress": address, "identitytoken": "secret"}
    assert "secret" not in repr(found)


def test_a_credential_that_cannot_be_used_ends_the_pull(tmp_path: Path) -> None:
    named = RegistryCredentials([registry_with(identity_token_file=tmp_path / "none")])
    with pytest.raises(CannotRun, match=r"'ci' is for registry:5000, and the image is in docker\.io") as refused:
        credentials_of_job(named, "ci", "t", "docker.io")
    assert refused.value.reason is Reason.IMAGE_DENIED
    with pytest.raises(CannotRun, match="there is no registry credential 'gone'"):
        credentials_of_job(named, "gone", "t", "docker.io")
    # It may be there a moment later: the pull is tried again.
    with pytest.raises(PullFailed, match="'ci' cannot be read; the server's log says why") as failed:
        credentials_of_job(named, "", "t", "registry:5000")
    assert failed.value.reason is Reason.IMAGE_DENIED


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


def serving_with(sdk: docker.DockerClient, directory: Path, tables: str) -> AbstractContextManager[Server]:
    file = directory / "settings.toml"
    file.write_text(tables)
    return serving_on(sdk, directory / "data", config=str(file))


@pytest.mark.engine
def test_images_of_a_registry_with_passwords_are_pulled_by_the_named_credential(
    tmp_path: Path, sdk: docker.DockerClient, registry: DockerRegistry
) -> None:
    digest = registry.push("private/one:v1", "mine")
    password = tmp_path / "password"
    password.write_text("wrong-password\n")
    login = (f'username = "{USER}"', f'password_file = "{password}"')
    tables = table("ci", *login, 'tasks = "run"', server=registry.address)
    tables += table("elsewhere", *login, server="registry:5000")
    name = f"{registry.address}/private/one"
    with serving_with(sdk, tmp_path, tables) as server, Client(server.address) as client:
        for credential in ("nosuch", "ci"):
            with pytest.raises(NotFound, match=f"there is no registry credential '{credential}' for this task"):
                client.enqueue("other", f"{name}:v1", registry_credential=credential)
        refused = run(client, f"{name}:v1")
        assert (refused.end().exit_status, outcome(refused).reason) == (125, pb.REASON_IMAGE_DENIED)
        assert "It was pulled with the registry credential 'ci'" in outcome(refused).detail
        password.write_text(f"{PASSWORD}\n")
        assert run(client, f"{name}:v1", registry_credential="ci").stdout == b"mine\n"
        registry.forget()
        assert run(client, f"{name}@{digest}").stdout == b"mine\n"
        registry.forget()
        mismatched = outcome(run(client, f"{name}:v1", registry_credential="elsewhere"))
        assert (mismatched.reason, "is for registry:5000" in mismatched.detail) == (pb.REASON_IMAGE_DENIED, True)
        other = client.enqueue("other", f"{name}:v1")
        for _ in client.tail_job(other.id):
            pass
        assert client.job(other.id).outcome.reason == pb.REASON_IMAGE_DENIED
    assert not [each for each in (PASSWORD, "wrong-password") if _holds(tmp_path, each.encode(), password)]


@pytest.mark.engine
def test_images_of_a_registry_with_tokens_are_pulled_until_a_token_expires(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    (tmp_path / "identity").write_text(IDENTITY)
    tokens = TokenServer(tmp_path, user=USER, password=PASSWORD, identity_token=IDENTITY)
    command = program(tmp_path, f"printf '{PASSWORD}'")
    with (
        tokens.serving() as auth,
        docker_registry(tmp_path, sdk, image, auth=auth, login=LOGIN) as registry,
        serving_with(
            sdk,
            tmp_path,
            table("token", f'identity_token_file = "{tmp_path}/identity"', server=registry.address)
            + table("login", f'username = "{USER}"', f'command = "{command}"', server=registry.address),
        ) as server,
        Client(server.address) as client,
    ):
        registry.push("private/two:v1", "of a token")
        name = f"{registry.address}/private/two:v1"
        for credential in ("", "login"):
            assert run(client, name, registry_credential=credential).stdout == b"of a token\n"
            registry.forget()
        tokens.identity_token = "another"
        expired = run(client, name)
        assert (outcome(expired).reason, expired.stdout) == (pb.REASON_IMAGE_DENIED, b"")
        assert "with the registry credential 'token'" in outcome(expired).detail


@contextmanager
def closing_engine(*options: str, network: str) -> Iterator[OwnEngine]:
    """An engine of the test's own in that network."""
    engine = OwnEngine(*options, network=network)
    try:
        yield engine
    finally:
        engine.remove()


@contextmanager
def own_network() -> Iterator[str]:
    """A network with nothing but loopback; its path, as in /proc."""
    ready = "ip link set lo up && echo up && exec sleep infinity"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", ready], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield f"/proc/{process.pid}/ns/net"
        finally:
            process.kill()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="starts an engine of its own: needs root")
def test_a_mirror_of_the_hub_is_shown_the_credential_for_the_hub(
    tmp_path: Path, sdk: docker.DockerClient, image: str
) -> None:
    with docker_registry(tmp_path, sdk, image) as registry:
        digest = registry.push("library/mirrored:v1", "of the mirror")
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    password, settings_file = tmp_path / "password", tmp_path / "settings.toml"
    password.write_text("wrong-password\n")
    login = (f'username = "{USER}"', f'password_file = "{password}"', 'tasks = "run"')
    settings_file.write_text(table("hub", *login, server=HUB))
    with (
        own_network() as network,
        docker_registry(tmp_path, sdk, image, auth=auth, enter=("nsenter", f"--net={network}")) as mirror,
        closing_engine("--bridge=none", f"--registry-mirror=http://{mirror.address}", network=network) as engine,
        serving(tmp_path / "data", config=str(settings_file), engine=engine.address) as server,
        Client(server.address) as client,
    ):
        refused, without = (
            Reader(client, client.enqueue(task, "mirrored:v1", network="none").execution.id)
            for task in ("run", "other")
        )
        # An engine that is refused by the mirror asks the Hub, and tells of the Hub alone.
        for reader in (refused, without):
            reader.wait_for(lambda reader=reader: "https://registry-1." in reader.system)  # type: ignore[misc]
        client.stop(without.execution().job_id, grace=0)
        assert without.end().state == pb.STATE_STOPPED
        password.write_text(f"{PASSWORD}\n")
        assert (refused.end().exit_status, refused.stdout) == (0, b"of the mirror\n")
        # By its digest, and with the name of the Hub.
        for name in (f"{HUB}/library/mirrored@{digest}", f"mirrored@{digest}"):
            with closing(docker.DockerClient(engine.address)) as own:
                for each in own.images.list("mirrored"):
                    own.images.remove(each.id, force=True)
            assert run(client, name, network="none").stdout == b"of the mirror\n"


def _holds(directory: Path, content: bytes, *but: Path) -> list[Path]:
    """The files that have this content."""
    return [
        path for path in directory.rglob("*") if path.is_file() and path not in but and content in path.read_bytes()
    ]
