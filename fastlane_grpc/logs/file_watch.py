"""Tells those who wait for a log that there is more of it: by inotify, whoever writes the file. Lives on the loop."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from inotify_simple import INotify, flags

from fastlane_grpc.supervisor import report

# Where the kernel has no inotify instance for this user: how often one is asked for again.
RETRY_SECONDS = 10.0
# How often it is looked at the sizes of files that are not watched.
POLL_SECONDS = 0.1

log = structlog.get_logger(__name__)


class FileWatcher:
    """Watches files. A change is told once, then not again until somebody is about to look: of a flood nobody wants to
    hear every write.

    Instances and watches of inotify are counted per user, and any container of the same user may have them all. Then it
    is looked at the sizes of files: once for all readers of one, however many."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._loop = loop
        self._retry_seconds = retry_seconds
        self._inotify: INotify | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._armed: dict[int, FileWatch] = {}
        # Files that are not watched, and how large each was when it was last looked at.
        self._polled: dict[FileWatch, int] = {}
        self._next_poll: asyncio.TimerHandle | None = None
        # Whether the log says already that there are too few instances, or watches.
        self._short = False
        self._open()

    def bell(self, path: Path, told: Callable[[], None]) -> "FileWatch":
        """A bell of a file, which is not armed yet. `told` is called on the loop."""
        return FileWatch(path, told, self)

    def watch(self, bell: "FileWatch", path: Path) -> int | None:
        """Have the bell rung at the next change of the file. None: no watch is to be had."""
        if self._inotify is None:
            return None
        try:
            handle: int = self._inotify.add_watch(path, flags.MODIFY | flags.ONESHOT)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell_shortage("max_user_watches", error)
            return None
        self._short = False
        self._armed[handle] = bell
        return handle

    def forget(self, handle: int) -> None:
        """The watch has told, and is gone with that."""
        self._armed.pop(handle, None)

    def unwatch(self, handle: int) -> None:
        self.forget(handle)
        try:
            if self._inotify is not None:
                self._inotify.rm_watch(handle)
        except OSError:
            return  # The file is gone, or it has just changed, and its watch is gone with that.

    def poll(self, bell: "FileWatch") -> None:
        """Have the bell rung some time after the file has grown."""
        self._polled[bell] = _size(bell.path)
        self._poll_later()

    def leave(self, bell: "FileWatch") -> None:
        """The bell is not to be rung for its file's size any more."""
        self._polled.pop(bell, None)

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
        self._armed.clear()

    def _poll_later(self) -> None:
        if self._next_poll is None:
            self._next_poll = self._loop.call_later(POLL_SECONDS, self._poll)

    def _poll(self) -> None:
        self._next_poll = None
        for bell in [bell for bell, size in self._polled.items() if _size(bell.path) != size]:
            bell.ring()
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
        """Without inotify every file is polled: that costs more, and loses nothing. An instance is asked for again
        later."""
        try:
            self._read()
        except Exception as error:
            report("inotify", error)
            bells = list(self._armed.values())
            self._close_inotify()
            self._retry = self._loop.call_later(self._retry_seconds, self._open)
            for bell in bells:
                bell.ring()

    def _read(self) -> None:
        assert self._inotify is not None, "a reader is there as long as it is"
        events = self._inotify.read(timeout=0)
        if any(event.mask & flags.Q_OVERFLOW for event in events):
            bells = list(self._armed.values())  # The kernel dropped news: everybody looks.
        else:
            # That a watch has ended is an event, too: its bell is not among the armed any more.
            bells = [bell for event in events if (bell := self._armed.get(event.wd))]
        for bell in bells:
            bell.ring()


class FileWatch:
    """The bell of one file, shared by all who wait for it."""

    def __init__(self, path: Path, told: Callable[[], None], news: FileWatcher) -> None:
        self.path = path
        self._told = told
        self._news = news
        self._handle: int | None = None
        self._polled = False

    @property
    def armed(self) -> bool:
        return self.watched or self._polled

    @property
    def watched(self) -> bool:
        """Whether the kernel tells of the next change, at once."""
        return self._handle is not None

    def arm(self) -> bool:
        """From now on the next change is told; whether it was not before. To be called before looking."""
        if self._handle is not None:
            return False
        self._handle = self._news.watch(self, self.path)
        if self._handle is None and self._polled:
            return False
        self._news.leave(self)
        self._polled = self._handle is None
        if self._polled:
            self._news.poll(self)
        return True

    def ring(self) -> None:
        handle = self._forget()
        if handle is not None:
            self._news.forget(handle)
        self._told()

    def disarm(self) -> None:
        handle = self._forget()
        if handle is not None:
            self._news.unwatch(handle)

    def _forget(self) -> int | None:
        self._news.leave(self)
        self._polled = False
        handle, self._handle = self._handle, None
        return handle


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
