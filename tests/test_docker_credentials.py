"""Credentials for a registry: those of `docker login` are found, and what is wrong with them is told, for this registry
alone."""

import base64
import json
import os
from pathlib import Path

import docker.auth
import pytest

from fastlane_grpc.registry import credentials_for

REGISTRY = "127.0.0.1:5999"
LOGIN = {"auth": base64.b64encode(b"me:secret").decode()}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "config.json"


def helper(directory: Path, script: str) -> None:
    program = directory / "docker-credential-mine"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def user_shown(registry: str) -> str:
    """Whom the engine is to show a registry."""
    credentials = credentials_for(registry)
    assert not credentials.problem
    shown = json.loads(base64.urlsafe_b64decode(credentials.header)) if credentials.header else {}
    return str(shown.get("username", "") or shown.get("Username", ""))


@pytest.mark.parametrize(
    "config",
    [
        {"auths": {REGISTRY: LOGIN}},
        {"auths": {f"https://{REGISTRY}/v1/": LOGIN}},
        {REGISTRY: LOGIN},
        # What is wrong with others does not matter.
        {"auths": {"broken": {"auth": "abcde"}, "number": 5, REGISTRY: LOGIN}},
        {"auths": {REGISTRY: LOGIN}, "credHelpers": {"other": "nosuch"}},
        # A login from before the helper was named.
        {"auths": {REGISTRY: LOGIN}, "credsStore": "nosuch"},
    ],
)
def test_a_login_is_found(file: Path, config: object) -> None:
    file.write_text(json.dumps(config))
    assert user_shown(REGISTRY) == "me"


def test_a_login_at_the_hub_is_found_under_its_old_address(file: Path) -> None:
    file.write_text(json.dumps({"auths": {docker.auth.INDEX_URL: LOGIN}}))
    assert user_shown("docker.io") == "me"


@pytest.mark.parametrize(
    "config", [{}, {"auths": {}}, {"auths": {"other": LOGIN}}, {"auths": {REGISTRY: {}}}, {"HttpHeaders": {"a": "b"}}]
)
def test_nothing_is_shown_where_nobody_logged_in(file: Path, config: object) -> None:
    file.write_text(json.dumps(config))
    assert user_shown(REGISTRY) == ""


def test_without_a_file_nothing_is_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    assert user_shown(REGISTRY) == ""


def test_a_helper_is_asked(file: Path) -> None:
    helper(file.parent, """read registry; printf '{"Username": "of %s", "Secret": "s"}' "$registry" """)
    file.write_text(json.dumps({"credHelpers": {REGISTRY: "mine"}}))
    assert user_shown(REGISTRY) == f"of {REGISTRY}"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{not json", "{file} is not JSON: "),
        (b"\xff\xfe", "{file} is not JSON: "),
        ("[]", "{file} is not a JSON object"),
        ('{"auths": 5}', "'auths' in {file} is not a JSON object"),
        ('{"credsStore": 5}', "the name of a credential helper in {file} is not a text"),
        (
            '{"credsStore": "nosuch"}',
            "docker-credential-nosuch, which {file} names, is not installed, or not in the server's PATH",
        ),
        ('{"credsStore": "mine"}', "docker-credential-mine, which {file} names, fails: "),
        *(
            (
                json.dumps({"auths": {REGISTRY: entry}}),
                f"the entry of {REGISTRY} in {{file}} is not as docker login writes it: ",
            )
            for entry in ({"auth": "abcde"}, {"auth": "bm9jb2xvbg=="}, {"auth": "\u00e4"}, {"auth": 5}, 5)
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_its_file(file: Path, config: str | bytes, problem: str) -> None:
    helper(file.parent, "echo broken")
    file.write_bytes(config.encode() if isinstance(config, str) else config)
    credentials = credentials_for(REGISTRY)
    assert credentials.header == ""
    assert credentials.problem.startswith(problem.format(file=file))


def test_a_file_that_cannot_be_opened_is_told(file: Path) -> None:
    file.mkdir()
    assert credentials_for(REGISTRY).problem == f"{file} cannot be read: Is a directory"
