"""What a user installs: one wheel, with all that a server and a client need and nothing else, that works from any
directory."""

import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from tests.engine import engine_address
from tests.pages import DocPage
from tests.tools import ROOT

# The wheel may have to be built, and what it needs is downloaded.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = {"fastlane_grpc/recorder/bin/recorder-aarch64": 183, "fastlane_grpc/recorder/bin/recorder-x86_64": 62}

IMPORT_ALL = """
import fastlane_grpc, importlib, pkgutil
for each in pkgutil.walk_packages(fastlane_grpc.__path__, "fastlane_grpc."):
    # The second one needs an extra.
    if not each.name.endswith(("__main__", ".otlp")):
        importlib.import_module(each.name)
print(fastlane_grpc.__file__)
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that the README's commands made: the wheel and its requirements, nothing else."""
    home = tmp_path_factory.mktemp("home")
    [commands] = [block.text for block in DocPage(ROOT / "README.md").blocks() if "install" in block.words]
    there = environment(
        HOME=str(home),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        PIP_CONSTRAINT=str(ROOT / ".ci" / "constraints.txt"),
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_QUIET="1",
    )
    subprocess.run(["sh", "-ec", commands], cwd=wheel.parent, env=there, check=True)
    return home / "fastlane" / "bin"


def environment(**more: str) -> dict[str, str]:
    """Nothing of this project is found by it, and no setting of whoever runs the tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FASTLANE_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
    return kept | more


def test_the_wheel_has_the_package_the_contract_and_all_recorders(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        tracked = subprocess.run(
            ["git", "ls-files", "fastlane_grpc"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        sources = {f"fastlane_grpc/recorder/{name}" for name in ("build_recorder.py", "masking.h", "recorder.c")}
        packed = {name for name in tracked.splitlines() if not name.startswith("fastlane_grpc/kubernetes/relay/")}
        assert names == packed - sources | PROGRAMS.keys()
        assert {"fastlane_grpc/py.typed", "fastlane_grpc/v1/fastlane.binpb"} < names
        for name, machine in PROGRAMS.items():
            program = archive.read(name)
            # Of that machine, executable as it is, and linked to nothing: there is no interpreter to be loaded by.
            assert (program[:4], program[18]) == (b"\x7fELF", machine), name
            assert archive.getinfo(name).external_attr >> 16 & 0o111 == 0o111, name
            assert b"/ld-" not in program, name


def test_the_wheel_says_what_the_project_says(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        [entry_points] = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        assert "fastlane = fastlane_grpc.cli:main" in archive.read(entry_points).decode()
    assert (metadata["Name"], metadata["License-Expression"]) == ("fastlane-grpc", "MIT")
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


@pytest.fixture
def address(installed: Path, tmp_path: Path) -> Iterator[str]:
    """Of a server that was started from `/`, by what was installed."""
    command: list[Any] = [
        installed / "fastlane",
        "server",
        "--data-dir",
        tmp_path / "data",
        "--listen",
        "127.0.0.1:0",
        "--http-listen",
        "off",
        "--engine",
        engine_address(),
    ]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--capture", "recorder"],
            cwd="/",
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert server.stdout
        heard = re.fullmatch(r"fastlane \S+ listening on (\S+), data in .+\n", line := server.stdout.readline())
        assert heard, f"{line!r}\n{(tmp_path / 'log').read_text()[-4000:]}"
        yield heard[1]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_what_was_installed_without_an_extra_says_what_tracing_needs(installed: Path, tmp_path: Path) -> None:
    command = [installed / "fastlane", "server", "--data-dir", tmp_path / "data", "--tracing"]
    ended = subprocess.run(command, cwd="/", env=environment(), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "OpenTelemetry is not installed: `pip install 'fastlane-grpc[otel]'`" in ended.stderr


@pytest.mark.engine
def test_what_was_installed_serves_and_runs_from_any_directory(installed: Path, address: str, image: str) -> None:
    command = [installed / "fastlane", "run", image, "--", "sh", "-c", "echo hello; echo oh >&2; exit 3"]
    ran = subprocess.run(command, cwd="/", env=environment(FASTLANE_ADDRESS=address), capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, b"hello\n", b"oh\n")


def test_what_was_installed_is_whole_without_the_tools_of_development(installed: Path) -> None:
    subprocess.run([installed / "pip", "check"], cwd="/", env=environment(), check=True, capture_output=True)
    ran = subprocess.run(
        [installed / "python", "-c", IMPORT_ALL], cwd="/", env=environment(), check=True, capture_output=True, text=True
    )
    assert ran.stdout.startswith(str(installed.parent))
