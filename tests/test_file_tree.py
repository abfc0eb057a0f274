"""The deletion of trees that a container made: whatever is in them, in bounded memory and steps, and never what links
lead to."""

import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings

from fastlane_grpc.machine import file_tree
from fastlane_grpc.machine.file_tree import Deletion, disk_bytes
from tests.hostile_tree import few_descriptors, make_deep, make_tree, open_descriptors, trees

# What one step may delete, and the size of the large trees. `make chaos` has 100 000 levels and a million files.
STEP_ENTRIES = 100
LEVELS = int(os.environ.get("HOSTILE_LEVELS", "2000"))
FILES = int(os.environ.get("HOSTILE_FILES", "5000"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users: needs root")


def delete(path: Path) -> int:
    """Delete a tree in small steps; how many there were."""
    deletion, steps = Deletion(path), 1
    while not deletion.step(entries=STEP_ENTRIES, seconds=1.0):
        steps += 1
    return steps


@settings(max_examples=60)
@given(trees)
def test_a_tree_is_deleted_whatever_is_in_it(tree: object) -> None:
    with TemporaryDirectory() as directory:
        outside, top = Path(directory, "outside"), Path(directory, "top")
        outside.mkdir()
        (outside / "kept").write_bytes(b"kept")
        top.mkdir()
        make_tree(top, tree)
        (top / "way out").symlink_to(outside)
        before = open_descriptors()
        assert disk_bytes(top) >= 0
        delete(top)
        assert not top.exists()
        assert (outside / "kept").read_bytes() == b"kept"
        # Descriptors that other tests left may be closed meanwhile.
        assert open_descriptors() <= before


def test_a_deep_tree_is_deleted_with_few_descriptors_and_little_memory(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    make_deep(top, LEVELS)
    # Directories take no room of their own in memory.
    (top / "file").write_bytes(bytes(4096))
    assert disk_bytes(top) > 0
    tracemalloc.start()
    try:
        with few_descriptors(5):
            delete(top)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not top.exists()
    assert most < 1 << 20


def test_many_files_are_deleted_step_by_step(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for directory in range(10):
        (top / str(directory)).mkdir(parents=True)
        for number in range(FILES // 10):
            os.close(os.open(top / str(directory) / str(number), os.O_CREAT | os.O_WRONLY))
    steps = delete(top)
    assert not top.exists()
    assert steps >= FILES // STEP_ENTRIES


def test_a_wide_tree_of_directories_is_deleted(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for number in range(300):
        (top / "wide" / str(number) / "a" / "b").mkdir(parents=True)
    delete(top)
    assert not top.exists()


def test_one_step_does_no_more_than_it_is_allowed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for number in range(1_000):
        (top / str(number)).touch()
    deletion = Deletion(top)
    assert not deletion.step(entries=10, seconds=60)
    assert len(list(top.iterdir())) == 990
    assert not deletion.step(entries=1_000_000, seconds=0)
    assert len(list(top.iterdir())) == 989
    deletion.close()
    assert delete(top) > 1


def test_a_tree_that_is_not_there_is_deleted(tmp_path: Path) -> None:
    assert Deletion(tmp_path / "none").step(entries=1, seconds=0)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_top_that_is_no_directory_is_refused(tmp_path: Path, kind: str) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.mkdir()
    (outside / "kept").touch()
    if kind == "file":
        top.touch()
    else:
        top.symlink_to(outside)
    with pytest.raises(OSError, match="directory"):
        delete(top)
    assert (outside / "kept").exists()


def test_a_tree_that_grows_while_it_is_deleted_does_not_hold_up_a_step(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    code = "import os, sys\ni = 0\nwhile True:\n    i += 1\n    os.mkdir(f'{sys.argv[1]}/{i}')\n"
    grower = subprocess.Popen([sys.executable, "-c", code, str(top)], stderr=subprocess.DEVNULL)
    try:
        while not any(top.iterdir()):
            time.sleep(0.01)
        deletion = Deletion(top)
        for _ in range(20):
            began = time.monotonic()
            deletion.step(entries=1_000, seconds=0.02)
            assert time.monotonic() - began < 2
        deletion.close()
    finally:
        grower.kill()
        grower.wait()
    if top.exists():
        delete(top)
    assert not top.exists()


# The module knows nothing of the others: an ordinary user may execute a copy of it.
AS_A_USER = """
import os, sys
from pathlib import Path
from file_tree import Deletion
top = Path(sys.argv[1])
try:
    while not Deletion(top).step(entries=1000, seconds=60):
        pass
except OSError as error:
    print(type(error).__name__)
print(sorted(os.listdir(top)) if top.exists() else "gone")
"""


@needs_root
@pytest.mark.parametrize(("owner", "said"), [(4242, "gone"), (0, "PermissionError\n['bad']")])
def test_a_user_deletes_own_directories_of_any_mode_and_is_told_of_those_of_root(owner: int, said: str) -> None:
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        shutil.copy(file_tree.__file__, directory)
        (Path(directory) / "try.py").write_text(AS_A_USER)
        top = Path(directory) / "top"
        (top / "bad" / "inner" / "innermost").mkdir(parents=True)
        (top / "good").mkdir()
        (top / "good" / "file").touch()
        for path in (top / "bad" / "inner" / "innermost", top / "bad" / "inner", top / "bad"):
            os.chown(path, owner, owner)
            path.chmod(0)
        for path in (Path(directory), top, top / "good", top / "good" / "file"):
            os.chown(path, 4242, 4242)
        ran = subprocess.run(
            [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "try.py", top],
            cwd=directory, user=4242, group=4242, extra_groups=[], capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ran.stdout.strip() == said
