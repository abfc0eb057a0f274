"""The watcher of hand-offs: removes a mounted directory as soon as the recorder of the container has taken the record.

The command of a container waits for the removal, so the removal must come at once, before the engine answers the start.
One thread serves all containers that are being started. The kernel reports each change of a record's names by inotify.
Without inotify, and for a record that cannot be watched, the thread polls in short intervals.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inotify_simple import INotify, flags

from fastlane_grpc.capture.handoff import is_claimed
from fastlane_grpc.supervisor import thread

# Seconds between two looks at the records: with inotify, and without.
WATCHED_SECONDS, POLL_SECONDS = 0.1, 0.004


class HandoffWatcher:
    """The mounted directories that wait for their hand-off. May be used from any thread."""

    def __init__(self, *, use_inotify: bool = True) -> None:
        self._use_inotify = use_inotify
        self._changed = threading.Condition()
        self._mounts: dict[Path, _Watched] = {}
        self._inotify: INotify | None = None
        self._thread: threading.Thread | None = None

    def add(self, mount: Path, record: Path) -> None:
        """Remove the directory `mount` as soon as `record` has no name in it any more."""
        with self._changed:
            self._mounts[mount] = _Watched(record, self._watch(record))
            if self._thread is None or not self._thread.is_alive():
                self._thread = thread("hand-off", self._run, on_failure=lambda error: self._end())
                try:
                    self._thread.start()
                except RuntimeError:
                    # No thread can be started now. The execution's own thread removes the directory a moment later.
                    self._thread = None
            self._changed.notify()

    def discard(self, mount: Path) -> None:
        """Wait for this directory no longer."""
        with self._changed:
            watched = self._mounts.pop(mount, None)
            if watched is not None and watched.handle is not None and self._inotify is not None:
                with suppress(OSError):
                    self._inotify.rm_watch(watched.handle)

    @contextmanager
    def of(self, mount: Path, record: Path) -> Iterator[None]:
        """Wait for the hand-off of one directory within the context."""
        self.add(mount, record)
        try:
            yield
        finally:
            self.discard(mount)

    def _end(self) -> None:
        """Forget the failed thread. The next hand-off starts another one.

        Until then the threads of executions remove the directories.
        """
        with self._changed:
            self._thread = None

    def _watch(self, record: Path) -> int | None:
        """Return the handle of a new watch; None if the kernel has none left."""
        if not self._use_inotify:
            return None
        try:
            if self._inotify is None:
                self._inotify = INotify(nonblocking=True)
            return int(self._inotify.add_watch(record, flags.ATTRIB))
        except OSError:
            return None

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._mounts:
                    self._changed.wait()
                mounts, inotify = dict(self._mounts), self._inotify
            for mount, watched in mounts.items():
                with suppress(OSError):
                    if is_claimed(watched.record):
                        self.discard(mount)
                        # Empty, unless the command runs already. The thread of the execution deletes what is left.
                        mount.rmdir()
            self._wait(inotify, all(watched.handle is not None for watched in mounts.values()))

    def _wait(self, inotify: INotify | None, all_are_watched: bool) -> None:
        seconds = WATCHED_SECONDS if inotify is not None and all_are_watched else POLL_SECONDS
        with suppress(OSError):
            if inotify is None:
                time.sleep(seconds)
            else:
                inotify.read(timeout=int(seconds * 1_000))


class _Watched:
    def __init__(self, record: Path, handle: int | None) -> None:
        self.record = record
        self.handle = handle


handoff_watcher = HandoffWatcher()
