"""The README's first command, as a newcomer gives it: in a fresh clone, with nothing of this environment, and nothing
left behind."""

import os
import re
import subprocess
import time
from pathlib import Path

import docker
import pytest

from tests.engine import engine_address
from tests.tools import ROOT

# It makes an environment of its own, which is downloaded.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]


def newcomer(home: Path) -> dict[str, str]:
    """The variables of somebody who has just logged in, and of whom only the engine is known to be there."""
    # What this machine needs to reach the world is kept; what points to this checkout or its environment is not.
    ours = ("FASTLANE_", "STAGE_", "PYTEST", "PYTHON", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    places = [place for place in kept["PATH"].split(":") if not Path(place).is_relative_to(ROOT)]
    return kept | {"PATH": ":".join(places), "HOME": str(home), "DOCKER_HOST": engine_address()}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "fastlane"], check=True)
    return tmp_path / "fastlane"


def test_the_demo_shows_a_job_s_lines_while_they_are_printed_and_leaves_nothing(
    clone: Path, tmp_path: Path, sdk: docker.DockerClient
) -> None:
    assert "make demo" in (clone / "README.md").read_text()
    (tmp_path / "home").mkdir()
    demo = subprocess.Popen(
        ["make", "demo"],
        cwd=clone,
        env=newcomer(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert demo.stdout is not None
    lines = [(time.monotonic(), line.decode()) for line in demo.stdout]
    _, words = demo.communicate()
    said = words.decode()
    assert demo.returncode == 0, said
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for _, line in lines] == [
        f"line {number} of 5\n" for number in range(1, 6)
    ]
    # Printed half a second apart: had they come at the end they would have come together.
    assert lines[-1][0] - lines[0][0] > 1.0
    assert "and this on stderr\n" in said
    assert "$ echo $?\n3\n" in said
    assert [tag for image in sdk.images.list() for tag in image.tags if tag.startswith("fastlane-stage:demo-")] == []
    assert subprocess.run(["git", "status", "--short"], cwd=clone, check=True, capture_output=True).stdout == b""
