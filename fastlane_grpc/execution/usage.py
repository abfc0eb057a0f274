"""Samples of what running executions have used so far: asked of their hosts while somebody looks, within bounds."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastlane_grpc.backend import BackendDown, BackendRefuses, Handle
from fastlane_grpc.execution.host import Host
from fastlane_grpc.model import Execution, State, Usage

# How long one caller waits at most, and for how long a sample is shared by all callers.
ANSWER_SECONDS = 3.0
SHARED_SECONDS = 1.0
# Requests to one engine at a time.
_THREADS = 4

_RUNNING = frozenset((State.RUNNING, State.STOPPING))


class UsageSampler:
    """Samples the containers of some hosts. Lives on the loop; engines are asked by threads of each host.

    An execution has at most one request under way, however many callers wait for it. An engine that hangs holds up
    neither a caller nor the samples of other hosts.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._threads = {host.name: ThreadPoolExecutor(_THREADS, f"usage-{host.name}") for host in hosts}
        # By execution: when its sample was asked for, and the sample.
        self._samples: dict[str, tuple[float, asyncio.Future[Usage | None]]] = {}

    def close(self) -> None:
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    async def of(self, executions: Sequence[Execution]) -> Mapping[str, Usage]:
        """Return the usage of running executions by id, as far as their hosts answer in time."""
        self._forget_old()
        asked = {each.id: self._sample(each) for each in executions if self._can_be_asked(each)}
        if asked:
            await asyncio.wait(asked.values(), timeout=ANSWER_SECONDS)
        found = {name: sample.result() for name, sample in asked.items() if sample.done() and not sample.cancelled()}
        return {name: usage for name, usage in found.items() if usage is not None}

    def _can_be_asked(self, execution: Execution) -> bool:
        host = self._hosts.get(execution.host)
        return execution.state in _RUNNING and bool(execution.handle) and host is not None and host.up

    def _sample(self, execution: Execution) -> "asyncio.Future[Usage | None]":
        if execution.id not in self._samples:
            sample = asyncio.get_running_loop().run_in_executor(
                self._threads[execution.host], _ask, self._hosts[execution.host], execution
            )
            self._samples[execution.id] = (time.monotonic(), sample)
        return self._samples[execution.id][1]

    def _forget_old(self) -> None:
        old = time.monotonic() - SHARED_SECONDS
        self._samples = {
            name: (asked, sample) for name, (asked, sample) in self._samples.items() if asked > old or not sample.done()
        }


def _ask(host: Host, execution: Execution) -> Usage | None:
    try:
        return host.backend.usage(Handle(execution.container_id, execution.handle))
    except (BackendDown, BackendRefuses):
        return None
