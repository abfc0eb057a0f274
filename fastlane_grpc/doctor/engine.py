"""The Docker engine: whether it is there, and can do what is asked of it."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from fastlane_grpc import recorder
from fastlane_grpc.docker.diagnostics import Checkup, check_up
from fastlane_grpc.doctor.finding import Finding, fail, ok, warn
from fastlane_grpc.runner import HostDown

# Clocks that differ by more put the times of a job in the wrong order.
_CLOCKS_DIFFER = timedelta(seconds=1)


def look(address: str, certificates: Path | None = None) -> Checkup | HostDown:
    """The engine as it is, or why that cannot be known."""
    try:
        return check_up(address, certificates)
    except HostDown as error:
        return error


def about_engine(address: str, checkup: Checkup | HostDown) -> Iterator[Finding]:
    if isinstance(checkup, HostDown):
        advice = "start it, set its address with --engine or DOCKER_HOST, or give this user access (group docker)"
        yield fail("engine", f"does not respond: {checkup}", advice)
        return
    yield ok("engine", f"version {checkup.version} for {checkup.architecture}, storage driver {checkup.storage_driver}")
    yield _cgroups(checkup)
    yield _memory_kills(checkup)
    yield _recorder(checkup, address)
    yield _clock(checkup)


def _cgroups(checkup: Checkup) -> Finding:
    missing = [
        name for name, there in (("memory", checkup.limits_memory), ("processes", checkup.limits_pids)) if not there
    ]
    version = f"version {checkup.cgroup_version or 'unknown'}"
    if missing:
        return fail(
            "cgroups",
            f"{version}; the engine cannot limit {' and '.join(missing)}",
            "enable these controllers in the kernel",
        )
    return ok("cgroups", f"{version}; memory and processes can be limited")


def _memory_kills(checkup: Checkup) -> Finding:
    if not checkup.local:
        return ok("memory kills", "cannot be checked: the engine is on another machine")
    if checkup.cgroup_version == "1" and (missing := _unmounted_controllers(Path("/proc/cgroups"))):
        found = f"the engine does not report them while cgroup controllers are not mounted: {', '.join(missing)}"
        return warn("memory kills", found, "mount every cgroup controller that the kernel has enabled")
    return ok("memory kills", "the engine reports them")


def _unmounted_controllers(table: Path) -> list[str]:
    """Return the kernel's controllers that are enabled and in no hierarchy. A line is name, hierarchy, cgroups,
    enabled."""
    try:
        rows = [line.split() for line in table.read_text().splitlines() if not line.startswith("#")]
    except OSError:
        return []
    return [row[0] for row in rows if len(row) == 4 and row[1] == "0" and row[3] == "1"]


def _recorder(checkup: Checkup, address: str) -> Finding:
    if not checkup.local:
        advice = "run the server on the engine's machine, or accept gaps when the server or the engine is killed"
        return warn(
            "recorder",
            f"cannot be used with an engine on another machine ({address}); output is captured by attach",
            advice,
        )
    if recorder.binary(checkup.architecture) is None:
        advice = "install the wheel for this machine, or build fastlane with a C compiler"
        return warn("recorder", f"was not built for {checkup.architecture}; output is captured by attach", advice)
    return ok("recorder", f"available for {checkup.architecture}")


def _clock(checkup: Checkup) -> Finding:
    ahead = checkup.clock_ahead
    if abs(ahead) > _CLOCKS_DIFFER:
        found = (
            f"the engine's clock is {abs(ahead).total_seconds():.1f} s {'ahead' if ahead > timedelta(0) else 'behind'}"
        )
        return warn("clock", found, "synchronise both clocks")
    return ok("clock", "the engine's clock agrees with this machine's")
