"""What docs/deploy holds: an image of the server, what runs it under compose, and a unit for systemd."""

import configparser
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import docker
import pytest
import requests
import yaml
from docker.models.containers import Container

from fastlane_grpc import config
from fastlane_grpc.client import Client
from fastlane_grpc.text.values import DEFAULT_LISTEN
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.certificates import Authority
from tests.engine import engine_address
from tests.pages import DocPage
from tests.reading import Reader
from tests.server_image import server_image
from tests.serving import clear
from tests.tools import ROOT

DEPLOY = ROOT / "docs" / "deploy"
PORT, HTTP_PORT = "7020/tcp", "10000/tcp"
FASTLANE = Path(sys.executable).with_name("fastlane")

TICKS = "echo begin; until [ -e /tmp/go ]; do sleep 0.02; done; seq 1 5000; echo oh >&2; exit 7"
NUMBERS = b"".join(b"%d\n" % number for number in range(1, 5001))


# ------------------------------------------------------------------------------------------------------------ the image


@pytest.fixture(scope="module")
def image_of_server(
    python_image: str, wheel: Path, sdk: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    wheels = tmp_path_factory.mktemp("wheels")
    # In place of what `.ci/tail wheels/cli` makes.
    (wheels / "cli").mkdir()
    (wheels / "cli" / "fastlane-tail-linux-amd64").write_bytes(b"a program")
    (wheels / "cli" / "SHA256SUMS").write_text(
        f"{hashlib.sha256(b'a program').hexdigest()}  fastlane-tail-linux-amd64\n"
    )
    name = f"fastlane-server-test:{os.getpid()}"
    with server_image(sdk, name, wheels, base=python_image, wheel=wheel):
        yield name


class Deployment:
    """The service of the compose file, with another port and another data directory, as often as it is brought up."""

    def __init__(self, sdk: docker.DockerClient, image: str, data_dir: Path) -> None:
        self._sdk = sdk
        self._image = image
        self._data_dir = data_dir
        self._service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["fastlane"]

    def trusting_nobody(self) -> Mapping[str, str]:
        """Return the environment of a server with TLS, certificates of clients and tokens."""
        authority = Authority(self._data_dir)
        pair = authority.sign("server")
        files = {"FASTLANE_TLS_CERT": pair.cert, "FASTLANE_TLS_KEY": pair.key, "FASTLANE_TLS_CLIENT_CA": authority.cert}
        inside = {name: f"/var/lib/fastlane/{path.relative_to(self._data_dir)}" for name, path in files.items()}
        return {**inside, "FASTLANE_AUTH": "tokens", "FASTLANE_PUBLIC": "off", "FASTLANE_INSECURE": "false"}

    @contextmanager
    def up(self, port: int = 0, **environment: str) -> Iterator[Container]:
        published = {f"{inside}/tcp": address for address, _, inside in (p.split(":") for p in self._service["ports"])}
        volumes = dict(volume.rsplit(":", 1) for volume in self._service["volumes"])
        socket, data_dir = volumes
        here = {engine_address().removeprefix("unix://"): volumes[socket], str(self._data_dir): volumes[data_dir]}
        container = self._sdk.containers.run(
            self._image,
            detach=True,
            ports={
                inside: (address, port or None if inside == PORT else None) for inside, address in published.items()
            },
            volumes=[f"{outside}:{place}" for outside, place in here.items()],
            environment=self._service["environment"] | environment,
        )
        try:
            listening(container)
            health = self._sdk.images.get(self._image).attrs["Config"]["Healthcheck"]["Test"]
            code, said = container.exec_run(health[1:])
            assert code == 0, said
            yield container
        finally:
            container.remove(force=True)


def listening(container: Container) -> None:
    for line in container.logs(stream=True, follow=True):
        if b" listening on 0.0.0.0:7020" in line:
            return
    raise AssertionError(f"the server ended: {container.logs().decode()}")


def published(container: Container, inside: str = PORT) -> int:
    container.reload()
    [binding] = container.ports[inside]
    assert binding["HostIp"] == "127.0.0.1"
    return int(binding["HostPort"])


@pytest.fixture
def deployment(sdk: docker.DockerClient, image_of_server: str, tmp_path: Path) -> Iterator[Deployment]:
    yield Deployment(sdk, image_of_server, tmp_path / "data")
    if (tmp_path / "data").exists():
        clear(sdk, tmp_path / "data")


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_server_in_a_container_runs_jobs_beside_it_and_hands_them_over(
    deployment: Deployment, sdk: docker.DockerClient, image: str
) -> None:
    # What the recorder writes is the host's directory, whatever it is called in here: the server finds that out.
    with deployment.up(FASTLANE_CAPTURE="recorder") as first:
        port = published(first)
        program = requests.get(f"http://localhost:{published(first, HTTP_PORT)}/cli/linux-amd64", timeout=30)
        assert program.content == b"a program"
        answered = requests.get(f"http://localhost:{published(first, HTTP_PORT)}/readyz", timeout=30)
        assert answered.json()["ok"] is True
        with Client(f"127.0.0.1:{port}") as client:
            execution_id = client.enqueue("deployed", image, args=["sh", "-c", TICKS]).execution.id
            log = Reader(client, execution_id)
            log.wait_for_output(b"begin\n")
            container_id = client.execution(execution_id).container_id
            first.stop(timeout=30)
            first.reload()
            assert first.attrs["State"]["ExitCode"] == 0
            sdk.containers.get(container_id).exec_run("touch /tmp/go")
            # Nobody is trusted any more but those with a certificate and a token: the health check still works.
            with deployment.up(port, FASTLANE_CAPTURE="recorder", **deployment.trusting_nobody()) as second:
                with pytest.raises(requests.exceptions.SSLError):
                    requests.get(f"https://localhost:{published(second, HTTP_PORT)}/readyz", timeout=30)
            with deployment.up(port, FASTLANE_CAPTURE="recorder"):
                assert (log.end().state, log.end().exit_status) == (pb.STATE_FAILED, 7)
    assert (log.data[pb.SOURCE_STDOUT], log.data[pb.SOURCE_STDERR], log.gaps) == (b"begin\n" + NUMBERS, b"oh\n", [])


def test_the_readme_starts_the_image_as_the_compose_file_does() -> None:
    [commands] = [block.text for block in DocPage(ROOT / "README.md").blocks() if "image" in block.words]
    *_, build, run = [shlex.split(line) for line in commands.replace("\\\n", " ").splitlines()]
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["fastlane"]
    assert build[build.index("--file") + 1] == str((DEPLOY / "Dockerfile").relative_to(ROOT))
    assert build[build.index("--tag") + 1] == run[-1] == service["image"]
    options = [*pairwise(run)]
    assert [value for option, value in options if option == "--publish"] == service["ports"]
    assert [value for option, value in options if option == "--volume"] == service["volumes"]


# ------------------------------------------------------------------------------------------------------------- the unit


@pytest.fixture
def unit() -> Mapping[str, Mapping[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "fastlane.service")
    return parser


def test_the_unit_starts_a_server_with_flags_that_it_has(unit: Mapping[str, Mapping[str, str]]) -> None:
    program, command, *words = shlex.split(unit["Service"]["ExecStart"])
    assert (program, command) == ("/opt/fastlane/bin/fastlane", "server")
    helped = subprocess.run([FASTLANE, "server", "--help"], check=True, capture_output=True, text=True).stdout
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert all(re.search(rf"^ *{flag} ", helped, re.MULTILINE) for flag in flags), flags
    # What systemd makes is where the server looks for it.
    assert flags["--data-dir"] == f"/var/lib/{unit['Service']['StateDirectory']}"
    assert flags["--config"] == f"/etc/{unit['Service']['ConfigurationDirectory']}/fastlane.toml"


def test_the_settings_beside_the_unit_are_settings() -> None:
    settings = config.load({}, {}, DEPLOY / "fastlane.toml")
    assert settings.listen == DEFAULT_LISTEN
    assert settings.max_timeout > settings.default_timeout


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze here")
    # A unit whose program is not there is called wrong for that.
    there = tmp_path / "fastlane.service"
    there.write_text((DEPLOY / "fastlane.service").read_text().replace("/opt/fastlane/bin/fastlane", str(FASTLANE)))
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", there], capture_output=True, text=True)
    assert (verified.returncode, [line for line in verified.stderr.splitlines() if "fastlane.service" in line]) == (
        0,
        [],
    )
