"""A wake-up that is not lost between the waiter's check and its wait."""

import asyncio
from contextlib import suppress


class Wakeup:
    """A wake-up for one waiter, which clears, checks, then waits. Lives on the loop.

    A change after `clear`, during the check, sets the wake-up again: the next `wait` returns at once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Announce a change."""
        self._event.set()

    def clear(self) -> None:
        """Forget earlier changes. Call this before the check."""
        self._event.clear()

    async def wait(self, timeout_seconds: float | None = None) -> None:
        """Return once a change was announced after `clear`, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
