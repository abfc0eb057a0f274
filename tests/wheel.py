"""The wheel, built once from the tracked files, for every test that wants what a user installs."""

from pathlib import Path

import pytest

from tests.tools import script


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is. The first build on a machine takes most of a minute: the compiler makes a C library for each
    architecture."""
    directory = tmp_path_factory.mktemp("wheel")
    script("wheel", str(directory))
    [built] = directory.iterdir()
    return built
