"""Health of the store: whether it can write. After a failure the store is probed by writes until one succeeds; without
a failure there are no probes."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from fastlane_grpc.errors import DiskFull, StoreFailed
from fastlane_grpc.store.store import Store
from fastlane_grpc.wakeup import Wakeup

# A failure that is over before that is nobody's business: callers were told to try again.
PATIENCE_SECONDS = 5.0
PROBE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class StoreHealth:
    """Probes the store after a failure. Lives on the loop."""

    def __init__(self, *, patience_seconds: float = PATIENCE_SECONDS, probe_seconds: float = PROBE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._probe_seconds = probe_seconds
        self._failed = Wakeup()

    def failed(self) -> None:
        """Note that the store could not write. To be called by the store."""
        self._failed.set()

    async def watch(self, store: Store, tell: Callable[[bool], Awaitable[None]]) -> None:
        """Watch the store until cancelled. Report False when the store has not been able to write for some seconds, and
        True when it can again."""
        while True:
            await self._failed.wait()
            self._failed.clear()
            await self._until_it_can_write(store, tell)

    async def _until_it_can_write(self, store: Store, tell: Callable[[bool], Awaitable[None]]) -> None:
        now = asyncio.get_running_loop().time
        told, since = False, now()
        while fault := await self._fault(store):
            if not told and now() - since >= self._patience_seconds:
                log.error("the store cannot write", fault=fault)
                await tell(False)
                told = True
            await asyncio.sleep(self._probe_seconds)
        if told:
            log.info("the store can write again", seconds=round(now() - since))
            await tell(True)

    async def _fault(self, store: Store) -> str:
        """Return why the store cannot write; empty: it can."""
        try:
            # A disk that hangs cannot be written either.
            async with asyncio.timeout(self._patience_seconds):
                await store.probe()
        except TimeoutError:
            return "the disk does not answer"
        except (DiskFull, StoreFailed) as error:
            return str(error) or "it failed"
        return ""
