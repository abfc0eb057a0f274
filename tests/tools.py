"""Programs that tests run and that are no Python: `.ci/tools` puts them into .tools/bin."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = f"{ROOT / '.tools/bin'}:{os.environ['PATH']}"


def tool(name: str) -> str:
    """Return the program's path, or skip the test; in CI a skipped test fails."""
    if path := shutil.which(name, path=PATH):
        return path
    pytest.skip(f"{name} is not here: make test, or .ci/tools {name}, puts it into .tools/bin")
