"""The dump of a running server: stacks, queues, versions, settings and the last errors, in one file.

SIGUSR1 asks for it. A thread waits for that signal, so the dump is also made while the loop hangs. SIGUSR2 asks for the
stacks alone: they are written without the interpreter, which may itself be stuck in a library."""

import asyncio
import faulthandler
import json
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog

from fastlane_grpc.config import Settings, shown_settings
from fastlane_grpc.debugging.recent_lines import RecentLines
from fastlane_grpc.debugging.stacks import stacks_of_tasks, stacks_of_threads
from fastlane_grpc.machine.data_directory import DEBUG_DUMP, DEBUG_STACKS, disk_bytes, free_bytes, free_inodes
from fastlane_grpc.supervisor import Supervisor

DUMP_SIGNAL = signal.SIGUSR1
STACKS_SIGNAL = signal.SIGUSR2

_LOOP_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
_PACKAGES = (
    *("fastlane-grpc", "aiohttp", "aiosmtplib", "cronsim", "docker", "grpcio", "httptools", "prometheus-client"),
    *("protobuf", "pysqlite3-binary", "requests", "sqlite-utils", "starlette", "structlog", "uvicorn", "uvloop"),
)

log = structlog.get_logger(__name__)


def block_signals() -> None:
    """Leave the signal for a dump to the thread that waits for it. Called before any other thread starts.

    Without this, the signal would end a server that is not ready for it."""
    for number in (DUMP_SIGNAL, STACKS_SIGNAL):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {DUMP_SIGNAL})


class DebugDump:
    """Writes a dump into the data directory at each signal, until it is closed."""

    def __init__(
        self,
        settings: Settings,
        parts: Callable[[], Mapping[str, Callable[[], object]]],
        recent: RecentLines,
        *,
        loop: asyncio.AbstractEventLoop,
        supervisor: Supervisor,
    ) -> None:
        """`parts`: of each part of the server by name, what it tells. It is called on a thread."""
        self._settings = settings
        self._parts = parts
        self._recent = recent
        self._loop = loop
        self._closing = False
        self._stacks = (settings.data_dir / DEBUG_STACKS).open("ab", buffering=0)
        faulthandler.register(STACKS_SIGNAL, file=self._stacks, all_threads=True)
        self._thread = supervisor.thread("debug-dump", self._run, restart=True)
        self._thread.start()

    def close(self) -> None:
        """Write no further dump."""
        self._closing = True
        if self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, DUMP_SIGNAL)
        self._thread.join(_CLOSE_SECONDS)
        faulthandler.unregister(STACKS_SIGNAL)
        self._stacks.close()

    def _run(self) -> None:
        while True:
            signal.sigwait({DUMP_SIGNAL})
            if self._closing:
                return
            try:
                self._write()
            except OSError as error:
                log.warning("a debug dump cannot be written", fault=error.strerror)

    def _write(self) -> None:
        path = self._settings.data_dir / DEBUG_DUMP
        new = path.with_suffix(".new")
        # Each text by itself: in the whole, the setting `auth` would be taken for the name of a secret.
        document = _masked(self._document(), self._settings.secret_names.mask)
        new.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", errors="replace")
        new.rename(path)
        log.info("a debug dump was written", file=str(path))

    def _document(self) -> Mapping[str, object]:
        sections: dict[str, Callable[[], object]] = {
            "loop": self._loop_state,
            "versions": _versions,
            "process": _process,
            "disk": self._disk,
            "settings": lambda: shown_settings(self._settings),
            **self._parts(),
            "last_warnings_and_errors": lambda: [
                self._settings.secret_names.shown_all(line) for line in self._recent.lines()
            ],
            "threads": stacks_of_threads,
            "tasks": lambda: stacks_of_tasks(self._loop),
        }
        return {"time": datetime.now(UTC).isoformat()} | {name: _told(tell) for name, tell in sections.items()}

    def _loop_state(self) -> object:
        answered = threading.Event()
        start = time.perf_counter()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(answered.set)
        if answered.wait(_LOOP_SECONDS):
            return {"responds": True, "seconds": round(time.perf_counter() - start, 6)}
        return {
            "responds": False,
            "note": f"the loop has not responded for {_LOOP_SECONDS:g} s: see threads, MainThread",
        }

    def _disk(self) -> object:
        path = self._settings.data_dir
        return {"bytes": disk_bytes(path), "free_bytes": free_bytes(path), "free_inodes": free_inodes(path)}


def _masked(value: object, mask: Callable[[str], str]) -> object:
    """Return the value as JSON has it, without secrets in its texts."""
    if isinstance(value, Mapping):
        return {mask(str(name)): _masked(each, mask) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each, mask) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else mask(str(value))


def _told(tell: Callable[[], object]) -> object:
    """Return what a part tells. A part that is not open yet, or that changes meanwhile, spoils its section alone."""
    try:
        return tell()
    except Exception as error:
        return f"not known: {error!r}"


def _versions() -> object:
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "python": sys.version,
        "kernel": " ".join(platform.uname()[::2]),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "libc": " ".join(platform.libc_ver()),
        "packages": packages,
    }


def _process() -> object:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = resource.getrusage(resource.RUSAGE_SELF)
    age_seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - _start_seconds()
    return {
        "pid": os.getpid(),
        "user_id": os.geteuid(),
        "age_seconds": round(age_seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "memory": {name: status[name].strip() for name in ("VmRSS", "VmHWM", "VmSize", "VmSwap") if name in status},
        "threads": threading.active_count(),
        "open_files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "open_files_limits": [soft, hard],
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }


def _start_seconds() -> float:
    """Return when this process started, in seconds since the machine did."""
    # The name of the program is in parentheses, and may have blanks and parentheses itself.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
