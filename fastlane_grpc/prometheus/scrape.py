"""A scrape: a snapshot of all numbers, written as text on a thread of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, exposition
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from fastlane_grpc.prometheus.families import FAMILIES
from fastlane_grpc.prometheus.snapshot import Snapshot

# The text, and its media type.
Page = tuple[bytes, str]


class Metrics:
    """All metrics of one server. Lives on the loop.

    However many scrape at a time, one scrape at a time is made for each format."""

    def __init__(self, take_snapshot: Callable[[str], Awaitable[Snapshot]]) -> None:
        """`take_snapshot` is called with the version."""
        self._take_snapshot = take_snapshot
        self._version = version("fastlane-grpc")
        self._collector = _Collector()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._thread = ThreadPoolExecutor(1, "metrics")
        # Started now: later the machine may have no further thread.
        self._thread.submit(int)
        self._scrapes: dict[bool, asyncio.Task[Page]] = {}

    async def scrape(self, accept: str) -> Page:
        """Return all metrics as text, in a format that the header Accept allows. StoreFailed, ServerStopping."""
        in_open_metrics = "application/openmetrics-text" in accept
        scrape = self._scrapes.get(in_open_metrics)
        if scrape is None:
            scrape = asyncio.get_running_loop().create_task(self._scrape(in_open_metrics))
            self._scrapes[in_open_metrics] = scrape
            scrape.add_done_callback(lambda _: self._scrapes.pop(in_open_metrics))
        # Shielded: one that leaves must not take the scrape from others.
        return await asyncio.shield(scrape)

    def close(self) -> None:
        for scrape in self._scrapes.values():
            scrape.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _scrape(self, in_open_metrics: bool) -> Page:
        snapshot = await self._take_snapshot(self._version)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._text, snapshot, in_open_metrics)

    def _text(self, snapshot: Snapshot, in_open_metrics: bool) -> Page:
        self._collector.snapshot = snapshot
        if in_open_metrics:
            text: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self._registry), exposition.CONTENT_TYPE_PLAIN_0_0_4


class _Collector(Collector):
    """Makes the metrics of the last snapshot. Read on the thread of scrapes alone."""

    snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        if self.snapshot is not None:
            for family in FAMILIES:
                yield family.metric(self.snapshot)
