"""Directory trees such as a hostile container leaves: whatever a kernel lets somebody make below a directory."""

import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypothesis import strategies as st

# What an entry is, each with what it takes to make it. Directories hold more of the same.
KINDS = ["file", "empty", "link", "dangling", "long link", "fifo", "socket", "device", "hard link"]
NAMES = ["log", "d", "x", "box-1", "..\n", "\x1b]0;x\x07", " ", "ä" * 127, "n" * 255, "-rf", "log.deleted"]
MODES = [0o000, 0o111, 0o400, 0o500, 0o700, 0o777, 0o1777, 0o4755]
# Somebody that exists on no machine.
STRANGER = 54_321

entries = st.recursive(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(MODES), st.booleans()),
    lambda below: st.tuples(
        st.dictionaries(st.sampled_from(NAMES), below, max_size=5), st.sampled_from(MODES), st.booleans()
    ),
    max_leaves=25,
)
trees = st.dictionaries(st.sampled_from(NAMES), entries, max_size=6)


def make_tree(directory: Path, tree: object) -> None:
    """Make in an empty directory what `trees` describes."""
    assert isinstance(tree, dict)
    for name, (what, mode, foreign) in tree.items():
        path = directory / name
        if isinstance(what, dict):
            path.mkdir()
            make_tree(path, what)
        else:
            _make_entry(path, what)
        if not path.is_symlink():
            path.chmod(mode)
        if foreign and os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


def _make_entry(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_bytes(b"x" * 5000)
        case "link":
            path.symlink_to("/etc")
        case "dangling":
            path.symlink_to(path.name)
        case "long link":
            path.symlink_to("/" + "l" * 4000)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            directory = os.open(path.parent, os.O_PATH)
            try:
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(f"/proc/self/fd/{directory}/s")
                Path(f"/proc/self/fd/{directory}/s").rename(path)
            finally:
                os.close(directory)
        case "device":
            with suppress(PermissionError):
                os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(240, 0))
        case "hard link":
            path.write_bytes(b"")
            with suppress(FileExistsError, OSError):
                path.with_name("second name").hardlink_to(path)
        case _:
            path.touch()
    if not path.is_symlink() and not path.exists():
        path.touch()


def make_deep(directory: Path, levels: int, name: str = "d") -> None:
    """A row of directories in each other, deeper than any path may be long."""
    inner = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=inner)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=inner)
        os.close(inner)
        inner = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
    os.close(inner)


def open_descriptors() -> set[int]:
    """The numbers of what this process has open."""
    # The one that the names are read by is among them, and is closed by now.
    numbers = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {number for number in numbers if Path(f"/proc/self/fd/{number}").is_symlink()}


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """This process may open so many more descriptors."""
    numbers = open_descriptors()
    free = [number for number in range(max(numbers) + spare + 2) if number not in numbers]
    limit = free[spare]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
