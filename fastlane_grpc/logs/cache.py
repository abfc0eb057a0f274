"""A least-recently-used cache, bounded in bytes. Lives on the loop."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def size(self) -> int:
        """The bytes that the value takes in memory."""


Value = TypeVar("Value", bound=Sized)


class Cache(Generic[Value]):
    """A cache of serialised log segments. `reads` counts the values that had to be loaded."""

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
        """Whether the value is being loaded for this moment (a generation of the log)."""
        return (key, moment) in self._flights

    async def load(self, key: Hashable, moment: int, load: Callable[[], Awaitable[Value]]) -> Value:
        """Load a missing or stale value. Concurrent loads of the same key and moment are one."""
        # Shielded: the first reader may leave, and the others that wait must not lose the load.
        return await asyncio.shield(self.loading(key, moment, load))

    def loading(self, key: Hashable, moment: int, load: Callable[[], Awaitable[Value]]) -> "asyncio.Future[Value]":
        """Return the load of this key and moment, started now or before. Not to be cancelled: others may wait for
        it."""
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
        """Cache the value, in place of an earlier one, and evict the least recently used ones."""
        if old := self._values.pop(key, None):
            self.bytes -= old.size
        self._values[key] = value
        self.bytes += value.size
        while self.bytes > self._max_bytes:
            self.bytes -= self._values.popitem(last=False)[1].size
