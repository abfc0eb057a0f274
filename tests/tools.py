"""Programs that tests run and that are no Python: `.ci/tools` puts them into .tools/bin."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATH = f"{ROOT / '.tools/bin'}:{os.environ['PATH']}"


def tool(name: str) -> str:
    """Its path. Where it is missing the test is skipped, but in CI it fails."""
    if path := shutil.which(name, path=PATH):
        return path
    missing = f"{name} is not here: make test, or .ci/tools {name}, puts it into .tools/bin"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
