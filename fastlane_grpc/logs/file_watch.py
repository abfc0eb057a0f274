"""Notifies readers that a file has grown, whichever process writes it: by inotify, else by polling its size.

Everything here lives on the loop."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from inotify_simple import INotify, flags

from fastlane_grpc.supervisor import report

# The pause between two attempts to get an inotify instance.
RETRY_SECONDS = 10.0
# The pause between two looks at the sizes of the files that inotify does not watch.
POLL_SECONDS = 0.1

log = structlog.get_logger(__name__)


class FileWatcher:
    """Watches files by inotify. Each watch notifies once and has to be started again: a flood of writes does not become
    a flood of notifications.

    The kernel limits instances and watches of inotify per user, and a container of the same user may hold them all.
    Then the watcher polls the sizes of files, once for all readers of a file."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._loop = loop
        self._retry_seconds = retry_seconds
        self._inotify: INotify | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._watches: dict[int, FileWatch] = {}
        # Files that are not watched, and how large each was when it was last looked at.
        self._polled: dict[FileWatch, int] = {}
        self._next_poll: asyncio.TimerHandle | None = None
        # Whether the log says already that there are too few instances, or watches.
        self._short = False
        self._open()

    def watch(self, path: Path, on_change: Callable[[], None]) -> "FileWatch":
        """Return a watch of the file that is not started yet. `on_change` is called on the loop."""
        return FileWatch(path, on_change, self)

    def add_inotify_watch(self, watch: "FileWatch") -> int | None:
        """Have the kernel notify the watch of the next change. Return None if there is no inotify watch to be had."""
        if self._inotify is None:
            return None
        try:
            handle: int = self._inotify.add_watch(watch.path, flags.MODIFY | flags.ONESHOT)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell_shortage("max_user_watches", error)
            return None
        self._short = False
        self._watches[handle] = watch
        return handle

    def forget(self, handle: int) -> None:
        """Drop a watch that has notified: the kernel has removed it."""
        self._watches.pop(handle, None)

    def remove_inotify_watch(self, handle: int) -> None:
        self.forget(handle)
        try:
            if self._inotify is not None:
                self._inotify.rm_watch(handle)
        except OSError:
            return  # The file is gone, or it has just changed, and its watch is gone with that.

    def start_polling(self, watch: "FileWatch") -> None:
        """Notify the watch some time after its file has grown."""
        self._polled[watch] = _size(watch.path)
        self._poll_later()

    def stop_polling(self, watch: "FileWatch") -> None:
        """Stop looking at the size of the file of this watch."""
        self._polled.pop(watch, None)

    def close(self) -> None:
        if self._next_poll is not None:
            self._next_poll.cancel()
        self._polled.clear()
        if self._retry is not None:
            self._retry.cancel()
        self._close_inotify()

    def _close_inotify(self) -> None:
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
        self._watches.clear()

    def _poll_later(self) -> None:
        if self._next_poll is None:
            self._next_poll = self._loop.call_later(POLL_SECONDS, self._poll)

    def _poll(self) -> None:
        self._next_poll = None
        for watch in [watch for watch, size in self._polled.items() if _size(watch.path) != size]:
            watch.notify()
        if self._polled:
            self._poll_later()

    def _open(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            self._tell_shortage("max_user_instances", error)
            self._retry = self._loop.call_later(self._retry_seconds, self._open)
            return
        if self._short:
            log.info("files are watched again")
        self._short = False
        self._loop.add_reader(self._inotify.fileno(), self._read_or_give_up)

    def _tell_shortage(self, limit: str, error: OSError) -> None:
        if not self._short:
            log.warning(
                "files cannot be watched: readers of logs poll",
                error=error.strerror,
                advice=f"raise fs.inotify.{limit}",
            )
        self._short = True

    def _read_or_give_up(self) -> None:
        """Read what inotify reports. If that fails, poll every file, which costs more and loses nothing, and ask for a
        new instance later."""
        try:
            self._read()
        except Exception as error:
            report("inotify", error)
            watches = list(self._watches.values())
            self._close_inotify()
            self._retry = self._loop.call_later(self._retry_seconds, self._open)
            for watch in watches:
                watch.notify()

    def _read(self) -> None:
        assert self._inotify is not None, "a reader is there as long as it is"
        events = self._inotify.read(timeout=0)
        if any(event.mask & flags.Q_OVERFLOW for event in events):
            watches = list(self._watches.values())  # The kernel dropped events: every reader looks.
        else:
            # The end of an inotify watch is an event, too: that handle is not in the table any more.
            watches = [watch for event in events if (watch := self._watches.get(event.wd))]
        for watch in watches:
            watch.notify()


class FileWatch:
    """A watch of one file, shared by all its readers."""

    def __init__(self, path: Path, on_change: Callable[[], None], watcher: FileWatcher) -> None:
        self.path = path
        self._on_change = on_change
        self._watcher = watcher
        self._handle: int | None = None
        self._polled = False

    @property
    def active(self) -> bool:
        return self.watched or self._polled

    @property
    def watched(self) -> bool:
        """Whether inotify watches the file, so that the next change is notified at once."""
        return self._handle is not None

    def start_watching(self) -> bool:
        """Have the next change notified. Return whether it was not before. To be called before a look at the file."""
        if self._handle is not None:
            return False
        self._handle = self._watcher.add_inotify_watch(self)
        if self._handle is None and self._polled:
            return False
        self._watcher.stop_polling(self)
        self._polled = self._handle is None
        if self._polled:
            self._watcher.start_polling(self)
        return True

    def notify(self) -> None:
        handle = self._forget()
        if handle is not None:
            self._watcher.forget(handle)
        self._on_change()

    def stop_watching(self) -> None:
        handle = self._forget()
        if handle is not None:
            self._watcher.remove_inotify_watch(handle)

    def _forget(self) -> int | None:
        self._watcher.stop_polling(self)
        self._polled = False
        handle, self._handle = self._handle, None
        return handle


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
