"""The one cache of what was read from logs and serialised: bounded in bytes, the least recently used goes first. Lives
on the loop."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def size(self) -> int:
        """Bytes it takes in memory."""


Value = TypeVar("Value", bound=Sized)


class Cache(Generic[Value]):
    """`reads` counts what was not found here: what a crowd of readers costs the disk."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self.reads = 0
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._flights: dict[Hashable, asyncio.Future[Value]] = {}

    def find(self, key: Hashable) -> Value | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def loads(self, key: Hashable, moment: int) -> bool:
        """Whether the value is being loaded for this moment."""
        return (key, moment) in self._flights

    async def load(self, key: Hashable, moment: int, load: Callable[[], Awaitable[Value]]) -> Value:
        """Reads what is not here, or not as it should be; once for a key and moment, for all who wait for it."""
        # Shielded: the reader that came first may go away, those who wait beside it may not lose the read.
        return await asyncio.shield(self.loading(key, moment, load))

    def loading(self, key: Hashable, moment: int, load: Callable[[], Awaitable[Value]]) -> "asyncio.Future[Value]":
        """The load of this key and moment, which begins now unless it has begun before. Not to be cancelled: others may
        wait for it."""
        flight = self._flights.get((key, moment))
        if flight is None:
            flight = self._flights[key, moment] = asyncio.ensure_future(self._load(key, moment, load))
        return flight

    async def _load(self, key: Hashable, moment: int, load: Callable[[], Awaitable[Value]]) -> Value:
        try:
            self.reads += 1
            value = await load()
        finally:
            del self._flights[key, moment]
        self.keep(key, value)
        return value

    def keep(self, key: Hashable, value: Value) -> None:
        """Caches the value, in place of the one that was here, and evicts what has not been used for longest."""
        if old := self._values.pop(key, None):
            self.bytes -= old.size
        self._values[key] = value
        self.bytes += value.size
        while self.bytes > self._max_bytes:
            self.bytes -= self._values.popitem(last=False)[1].size
