"""A wake-up that is not lost: between the look that finds nothing and the wait, a change is kept."""

import asyncio
from contextlib import suppress


class Wakeup:
    """For one waiter, which clears, looks, then waits. Lives on the loop.

    A change that comes after `clear`, while the waiter looks, sets the wake-up again: the next `wait` returns at once.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Announce a change."""
        self._event.set()

    def clear(self) -> None:
        """Forget earlier changes. To be called before the waiter looks at what they may have changed."""
        self._event.clear()

    async def wait(self, timeout_seconds: float | None = None) -> None:
        """Return when a change was announced since `clear`, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
