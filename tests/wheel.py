"""The wheel, built once from the tracked files, for every test that wants what a user installs."""

import subprocess
from pathlib import Path

import pytest

from tests.tools import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is. The first build on a machine takes most of a minute: the compiler makes a C library for each
    architecture."""
    directory = tmp_path_factory.mktemp("wheel")
    script("wheel", str(directory))
    [built] = directory.iterdir()
    return built


def script(name: str, *arguments: str) -> None:
    """Run a script of .ci, or skip the test; in CI a skipped test fails."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ran = subprocess.run([ROOT / ".ci" / name, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode == 0:
        return
    pytest.skip(f".ci/{name} failed:\n{ran.stderr[-2000:]}")
