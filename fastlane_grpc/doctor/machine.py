"""Limits of the machine that affect a server: watched files and open files."""

import resource
from pathlib import Path

from inotify_simple import INotify, flags

from fastlane_grpc.config import Settings
from fastlane_grpc.doctor.finding import Finding, ok, warn
from fastlane_grpc.machine.open_files import FILES_OF_A_LOG, OpenFiles, needed


def about_inotify(settings: Settings, limits: Path = Path("/proc/sys/fs/inotify")) -> Finding:
    """Readers of logs are woken by inotify; where the user of the server has no instance or watch left, they poll."""
    try:
        watches = int((limits / "max_user_watches").read_text())
        instances = int((limits / "max_user_instances").read_text())
    except (OSError, ValueError):
        return warn(
            "inotify", "its limits cannot be read", "check that the kernel has inotify: it wakes readers of logs"
        )
    found = f"{watches} watches and {instances} instances per user"
    if missing := _exhausted():
        more = 2 * (watches if missing == "watches" else instances)
        advice = f"sysctl fs.inotify.max_user_{missing}={more}; until then readers of logs poll"
        return warn(
            "inotify",
            f"{found}, and this user has no {missing} left: containers of the same user count",
            advice,
        )
    wanted = FILES_OF_A_LOG * settings.max_streams
    if watches < wanted:
        return warn(
            "inotify",
            f"{found}; {settings.max_streams} streams may need {wanted}",
            f"sysctl fs.inotify.max_user_watches={wanted}",
        )
    if instances < 16:
        return warn("inotify", found, "sysctl fs.inotify.max_user_instances=128")
    return ok("inotify", found)


def _exhausted() -> str:
    """Return which resource of inotify this user has used up: `instances` or `watches`; empty if neither."""
    try:
        inotify = INotify()
    except OSError:
        return "instances"
    with inotify:
        try:
            inotify.add_watch("/", flags.MODIFY)
        except OSError:
            return "watches"
    return ""


def about_file_size() -> Finding:
    """A file that may not grow is to a server as a disk that is full, and no room that is made helps."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY:
        advice = "set LimitFSIZE=infinity in the server's unit, or ulimit -Hf unlimited"
        return warn(
            "file size",
            f"limited to {most} bytes for this user: the database and the logs may need more",
            advice,
        )
    return ok("file size", "unlimited")


def about_open_files(settings: Settings) -> Finding:
    """A server raises its own limit to the most that it may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return ok("open files", "unlimited")
    least = needed(max_running=settings.max_running, max_streams=settings.max_streams)
    if most < least:
        files = OpenFiles.of(most, max_running=settings.max_running)
        found = (
            f"a process may have {most}: enough for {files.max_connections} connections and {files.max_open_logs} open "
            f"logs; {settings.max_streams} streams may need {least}"
        )
        return warn(
            "open files", found, f"set LimitNOFILE={least} in the server's unit, or ulimit -Hn, or lower max_streams"
        )
    return ok("open files", f"a process may have {most}")
