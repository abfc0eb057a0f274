"""Tells those who wait for a log that there is more of it: by inotify, whoever writes the file. Lives on the loop."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from inotify_simple import INotify, flags


class News:
    """One watch per file, shared by all who wait for it. `told` of a watch is called on the loop, at least once after each change."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inotify = INotify(nonblocking=True)
        self._told: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._inotify.fileno(), self._read)

    def watch(self, path: Path, told: Callable[[], None]) -> int | None:
        """Begins to watch; the handle to end it with, or None where no watch is to be had: whoever waits then has to look by itself."""
        try:
            handle: int = self._inotify.add_watch(path, flags.MODIFY)
        except OSError:
            return None
        self._told[handle] = told
        return handle

    def unwatch(self, handle: int | None) -> None:
        if handle is None or self._told.pop(handle, None) is None:
            return
        try:
            self._inotify.rm_watch(handle)
        except OSError:
            return  # The file is gone, and its watch with it.

    def close(self) -> None:
        self._loop.remove_reader(self._inotify.fileno())
        self._inotify.close()

    def _read(self) -> None:
        events = self._inotify.read(timeout=0)
        if any(event.mask & flags.Q_OVERFLOW for event in events):
            handles = set(self._told)  # The kernel dropped news: everybody looks.
        else:
            handles = {event.wd for event in events}
        for handle in handles:
            if told := self._told.get(handle):
                told()
