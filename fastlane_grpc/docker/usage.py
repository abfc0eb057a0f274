"""The usage of a running container, read from the statistics of a Docker engine."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fastlane_grpc.clock import engine_time
from fastlane_grpc.model import Usage


def usage_of(stats: Mapping[str, Any]) -> Usage | None:
    """Return the usage of one answer; None: the container does not run. A count that is not there is unknown."""
    time = engine_time(stats.get("read") or "")
    cpu_ns = _number(stats, "cpu_stats", "cpu_usage", "total_usage")
    # An engine tells zeros of a container that has ended.
    if time is None or not cpu_ns:
        return None
    used = _number(stats, "memory_stats", "usage")
    # Of version 1 of the kernel's control groups, or of version 2.
    is_v1 = _number(stats, "memory_stats", "stats", "total_inactive_file") is not None
    idle = _number(stats, "memory_stats", "stats", "total_inactive_file" if is_v1 else "inactive_file")
    return Usage(
        cpu_time=timedelta(microseconds=cpu_ns // 1000),
        memory_bytes=None if used is None else max(used - (idle or 0), 0),
        read_bytes=_bytes(stats, "read", is_v1=is_v1),
        written_bytes=_bytes(stats, "write", is_v1=is_v1),
        time=time,
    )


def _bytes(stats: Mapping[str, Any], operation: str, *, is_v1: bool) -> int | None:
    """Return the bytes of all disks. None: version 1 counts none where it does not see who wrote."""
    entries = _part(stats, "blkio_stats", "io_service_bytes_recursive") or ()
    counted = sum(each["value"] for each in entries if str(each.get("op")).lower() == operation)
    return None if is_v1 and not counted else counted


def _number(stats: Mapping[str, Any], *path: str) -> int | None:
    found = _part(stats, *path)
    return found if isinstance(found, int) else None


def _part(stats: Mapping[str, Any], *path: str) -> Any:
    found: Any = stats
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
