"""Tells those who wait for a log that there is more of it: by inotify, whoever writes the file. Lives on the loop."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from inotify_simple import INotify, flags

from fastlane_grpc.supervisor import report


class News:
    """Watches files. A change is told once, then not again until somebody is about to look: of a flood nobody wants to hear every write."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closed = False
        self._inotify = INotify(nonblocking=True)
        self._armed: dict[int, Bell] = {}
        loop.add_reader(self._inotify.fileno(), self._read_or_give_up)

    def bell(self, path: Path, told: Callable[[], None]) -> "Bell":
        """A bell of a file, which is not armed yet. `told` is called on the loop."""
        return Bell(path, told, self._inotify, self._armed)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()

    def _read_or_give_up(self) -> None:
        """Without news every reader looks by itself, now and then: that costs more, and loses nothing."""
        try:
            self._read()
        except Exception as error:
            report("inotify", error)
            bells = list(self._armed.values())
            self.close()
            for bell in bells:
                bell.ring()

    def _read(self) -> None:
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

    def __init__(self, path: Path, told: Callable[[], None], inotify: INotify, armed: "dict[int, Bell]") -> None:
        self._path = path
        self._told = told
        self._inotify = inotify
        self._all_armed = armed
        self._handle: int | None = None

    @property
    def armed(self) -> bool:
        return self._handle is not None

    def arm(self) -> bool:
        """From now on the next change is told; whether it was not before. To be called before looking. Where no watch is to be had it stays
        unarmed: whoever waits then has to look by itself."""
        if self._handle is not None:
            return False
        try:
            self._handle = self._inotify.add_watch(self._path, flags.MODIFY | flags.ONESHOT)
        except (OSError, ValueError):  # the latter of an inotify that was closed
            return False
        self._all_armed[self._handle] = self
        return True

    def ring(self) -> None:
        self._forget()
        self._told()

    def disarm(self) -> None:
        if (handle := self._forget()) is None:
            return
        try:
            self._inotify.rm_watch(handle)
        except (OSError, ValueError):
            return  # The file is gone, or it has just changed, and its watch is gone with that.

    def _forget(self) -> int | None:
        handle, self._handle = self._handle, None
        if handle is not None:
            del self._all_armed[handle]
        return handle
