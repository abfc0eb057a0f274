"""What the machine allows a server: files that are watched, files that are open."""

import resource
from pathlib import Path

from fastlane_grpc.config import Settings
from fastlane_grpc.doctor.finding import Finding, ok, warn

# A log that is read has two files, and each is watched.
_FILES_OF_A_LOG = 2
# Connections to callers and to the engine, the database, and what a Python process has open anyway.
_OTHER_FILES = 256


def about_inotify(settings: Settings, limits: Path = Path("/proc/sys/fs/inotify")) -> Finding:
    """Readers of logs are woken by it; where there are no more watches they look again and again."""
    try:
        watches = int((limits / "max_user_watches").read_text())
        instances = int((limits / "max_user_instances").read_text())
    except (OSError, ValueError):
        return warn("inotify", "its limits cannot be read", "check that the kernel has inotify: readers of logs are woken by it")
    needed = _FILES_OF_A_LOG * settings.max_streams
    found = f"{watches} watches and {instances} instances for a user"
    if watches < needed:
        return warn("inotify", f"{found}; {settings.max_streams} streams may need {needed}", f"sysctl fs.inotify.max_user_watches={needed}")
    if instances < 16:
        return warn("inotify", found, "sysctl fs.inotify.max_user_instances=128")
    return ok("inotify", found)


def about_open_files(settings: Settings) -> Finding:
    """A server raises its own limit to the most that it may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = (_FILES_OF_A_LOG + 1) * settings.max_streams + 4 * settings.max_running + _OTHER_FILES
    if most != resource.RLIM_INFINITY and most < needed:
        found = f"a process may have {most}; {settings.max_streams} streams and {settings.max_running} containers may need {needed}"
        return warn("open files", found, f"set LimitNOFILE={needed} in the server's unit, or ulimit -Hn, or lower max_streams")
    return ok("open files", "a process may have as many as it likes" if most == resource.RLIM_INFINITY else f"a process may have {most}")
