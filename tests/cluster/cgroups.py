"""The cgroups of nodes, of version 1 or 2: the one trace of a cluster that the kernel does not remove by itself."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "fastlane-cluster"
_SECONDS = 20


def name(node: str) -> str:
    """Return the name of the cgroups of a node of this process."""
    return f"{_PREFIX}-{os.getpid()}-{_birth(os.getpid())}-{node}"


def make(group: str) -> None:
    """Make the cgroup in each hierarchy, ready for a kubelet."""
    for hierarchy in _hierarchies():
        if _is_empty(hierarchy):
            continue
        path = hierarchy / group
        path.mkdir(exist_ok=True)
        if (hierarchy / "cgroup.controllers").exists():
            _delegate(hierarchy)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / file).exists():
                (path / file).write_text((hierarchy / file).read_text())


def remove(group: str) -> None:
    """Remove the cgroup with all below it; its processes are being killed."""
    until = time.monotonic() + _SECONDS
    while any(not _remove(hierarchy / group) for hierarchy in _hierarchies()) and time.monotonic() < until:
        time.sleep(0.05)


def remove_left() -> None:
    """Remove the cgroups of clusters whose process is gone: it was killed."""
    for hierarchy in _hierarchies():
        for path in hierarchy.glob(f"{_PREFIX}-*"):
            process, birth = path.name.removeprefix(f"{_PREFIX}-").split("-")[:2]
            if _birth(int(process)) != birth:
                _remove(path)


def _hierarchies() -> Iterator[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        yield _ROOT
        return
    yield from sorted(path for path in _ROOT.iterdir() if path.is_dir() and not path.is_symlink())


def _is_empty(hierarchy: Path) -> bool:
    """Whether this is the hierarchy of version 2 beside those of version 1, without controllers.

    containerd makes cgroups in it nevertheless."""
    controllers = hierarchy / "cgroup.controllers"
    return controllers.exists() and not controllers.read_text().strip()


def _delegate(hierarchy: Path) -> None:
    controllers = (hierarchy / "cgroup.controllers").read_text().split()
    wanted = [each for each in ("cpu", "cpuset", "io", "memory", "pids", "hugetlb") if each in controllers]
    (hierarchy / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in wanted))


def _remove(path: Path) -> bool:
    if not path.exists():
        return True
    for directory, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            Path(directory).rmdir()
    return not path.exists()


def _birth(process: int) -> str:
    """Return when the process began, since ids are used again; empty if it is no more."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
