"""Programs that tests run and that are no Python: `.ci/tools` puts them into .tools/bin."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = f"{ROOT / '.tools/bin'}:{os.environ['PATH']}"


def tool(name: str) -> str:
    """Return the program's path, or skip the test; in CI a skipped test fails."""
    if path := shutil.which(name, path=PATH):
        return path
    pytest.skip(f"{name} is not here: make test, or .ci/tools {name}, puts it into .tools/bin")


def script(name: str, *arguments: str) -> None:
    """Run a script of .ci, or skip the test; in CI a skipped test fails."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ran = subprocess.run([ROOT / ".ci" / name, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode == 0:
        return
    pytest.skip(f".ci/{name} failed:\n{ran.stderr[-2000:]}")
