"""Tells those who wait for a log that there is more of it: by inotify, whoever writes the file. Lives on the loop."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from inotify_simple import INotify, flags

# Where the kernel has no inotify instance for this user: how often one is asked for again.
RETRY_SECONDS = 10.0

log = structlog.get_logger(__name__)


class News:
    """Watches files. A change is told once, then not again until somebody is about to look: of a flood nobody wants to hear every write.

    Instances and watches of inotify are counted per user, and any container of the same user may have them all. Then bells stay unarmed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._loop = loop
        self._retry_seconds = retry_seconds
        self._inotify: INotify | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._armed: dict[int, Bell] = {}
        # Whether the log says already that there are too few instances, or watches.
        self._short = False
        self._open()

    def bell(self, path: Path, told: Callable[[], None]) -> "Bell":
        """A bell of a file, which is not armed yet. `told` is called on the loop."""
        return Bell(path, told, self)

    def watch(self, bell: "Bell", path: Path) -> int | None:
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

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

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
        self._loop.add_reader(self._inotify.fileno(), self._read)

    def _tell_shortage(self, limit: str, error: OSError) -> None:
        if not self._short:
            log.warning("files cannot be watched: readers of logs poll", error=error.strerror, advice=f"raise fs.inotify.{limit}")
        self._short = True

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


class Bell:
    """The bell of one file, shared by all who wait for it."""

    def __init__(self, path: Path, told: Callable[[], None], news: News) -> None:
        self._path = path
        self._told = told
        self._news = news
        self._handle: int | None = None

    @property
    def armed(self) -> bool:
        return self._handle is not None

    def arm(self) -> bool:
        """From now on the next change is told; whether it was not before. To be called before looking. Where no watch is to be had it stays
        unarmed: whoever waits then has to look by itself."""
        if self._handle is not None:
            return False
        self._handle = self._news.watch(self, self._path)
        return self._handle is not None

    def ring(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._news.forget(handle)
        self._told()

    def disarm(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._news.unwatch(handle)
