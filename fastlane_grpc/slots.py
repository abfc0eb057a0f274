"""The hosts that the dispatcher knows, with their slots: which of them take executions, and why others do not."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from fastlane_grpc.circuit import Circuit
from fastlane_grpc.model import Assignment, Availability, HostReport, WaitReason
from fastlane_grpc.pools import NO_POOL, Pools
from fastlane_grpc.runner import Runner
from fastlane_grpc.store import Drain
from fastlane_grpc.wakeup import Wakeup


class HostView(Protocol):
    """The part of a host that the dispatcher needs."""

    @property
    def name(self) -> str:
        """The name that executions on this host carry."""

    @property
    def up(self) -> bool:
        """Whether the engine responds, and can run executions."""

    @property
    def error(self) -> str:
        """The reason for which the host takes no executions; empty if it takes some."""

    def report(self, *, running: int, max_running: int) -> HostReport:
        """Return the state of the host for callers, with these counts."""


@dataclass(frozen=True, slots=True)
class HostSlots:
    """A host, the runner of its executions, and its number of slots."""

    host: HostView
    runner: Runner
    max_running: int


@dataclass(frozen=True, slots=True)
class HostState:
    """The state of a host as numbers of a metric need it. One that is down may also be drained."""

    name: str
    up: bool
    drained: bool
    circuit_open: bool
    running: int
    max_running: int


class SlotsBackoff:
    """A period in which no execution is started. The dispatcher is woken at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Wakeup) -> None:
        self._loop = loop
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return self._timer is not None

    def start(self, seconds: float) -> None:
        """Start the period, or start it anew."""
        self.stop()
        self._timer = self._loop.call_later(seconds, self.stop)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._wake.set()


class SlotsOfHost:
    """A host with the executions that have a slot on it. `drains` are the drained hosts by name, as they are now."""

    def __init__(
        self,
        slots: HostSlots,
        backoff: SlotsBackoff,
        *,
        pools: Sequence[str] = (NO_POOL,),
        drains: Mapping[str, Drain],
        circuit: Circuit,
    ) -> None:
        self.view = slots.host
        self.runner = slots.runner
        self.max_running = slots.max_running
        self.backoff = backoff
        self.pools = pools
        self.circuit = circuit
        self._drains = drains
        # Executions on a thread; suspended ones, which are resumed when the host is back; and those that were requeued
        # and claimed again for this host while the thread of their first claim, here or elsewhere, has not ended.
        self.on_thread: set[str] = set()
        self.suspended: set[str] = set()
        self.superseded: dict[str, Assignment] = {}
        # Of the suspended executions, those that wait after a failure of the machine, and the last pause of each.
        self.paused: set[str] = set()
        self.pauses: dict[str, float] = {}

    @property
    def running(self) -> int:
        return len(self.on_thread) + len(self.suspended) + len(self.superseded)

    @property
    def drain(self) -> Drain | None:
        """The note and time of a drain; None: the host is not drained."""
        return self._drains.get(self.view.name)

    @property
    def takes_executions(self) -> bool:
        """Whether the host takes executions as soon as it has a free slot."""
        return self.view.up and self.drain is None and self.circuit.closed

    def free(self, now: float) -> int:
        """Return how many executions may be claimed for this host."""
        if not self.view.up or self.drain is not None:
            return 0
        return self.circuit.allowed(max(self.max_running - self.running, 0), now)

    @property
    def error(self) -> str:
        """The reason for which the host takes no executions; empty if it takes some."""
        name = f"host {self.view.name!r}"
        if drain := self.drain:
            return f"{name} is drained" + (f": {drain.note}" if drain.note else "")
        if not self.view.up or self.circuit.closed:
            return self.view.error
        return f"{name} gets no executions for a while: {self._circuit_error}"

    @property
    def state(self) -> HostState:
        return HostState(
            self.view.name,
            up=self.view.up,
            drained=self.drain is not None,
            circuit_open=not self.circuit.closed,
            running=self.running,
            max_running=self.max_running,
        )

    def report(self) -> HostReport:
        """Return the state of the host for callers."""
        report = self.view.report(running=self.running, max_running=self.max_running)
        pools = [pool for pool in self.pools if pool != NO_POOL]
        if self.circuit.error_time and _is_later(self.circuit.error_time, report.last_error_time):
            report = replace(report, last_error=self._circuit_error, last_error_time=self.circuit.error_time)
        if drain := self.drain:
            report = replace(report, availability=Availability.DRAINED, drain_note=drain.note, drain_time=drain.time)
        elif self.view.up and not self.circuit.closed:
            report = replace(report, availability=Availability.CIRCUIT_OPEN)
        return replace(report, pools=pools)

    @property
    def _circuit_error(self) -> str:
        several = "" if self.circuit.closed else "several starts in a row failed; the last one: "
        return f"{several}{self.circuit.error}"


class SlotsOfHosts:
    """All configured hosts, in order of preference. At most `max_running` executions run on all of them together."""

    def __init__(self, hosts: Sequence[SlotsOfHost], pools: Pools, *, max_running: int) -> None:
        self.all = hosts
        self.max_running = max_running
        self._pools = pools
        self._by_name = {host.view.name: host for host in hosts}

    def named(self, name: str) -> SlotsOfHost | None:
        return self._by_name.get(name)

    @property
    def running(self) -> int:
        """Taken slots. More than the limit if an earlier server left more executions than that."""
        return sum(host.running for host in self.all)

    @property
    def serve(self) -> bool:
        """Whether a host takes executions. Drained hosts do not count; if all are drained, whether an engine
        responds: a drain is no failure."""
        if all(host.drain for host in self.all):
            return any(host.view.up for host in self.all)
        return any(host.takes_executions for host in self.all)

    def free_slots(
        self, ready: Callable[[SlotsOfHost], bool], empty: Set[Sequence[str]], now: float
    ) -> Iterator[SlotsOfHost]:
        """Yield the host of each free slot, in the order in which to take them: of hosts that are ready and whose pools
        are not among the `empty` ones.

        The next slot is always one of the host with the largest share of free slots. Among equals, a host with fewer
        pools goes first, so that the others stay free for the pools that it does not have."""
        free = {
            host: count
            for host in self.all
            if ready(host) and host.pools not in empty and (count := host.free(now)) > 0
        }
        for _ in range(self.max_running - self.running):
            if not free:
                return
            host = max(free, key=lambda each: (free[each] / each.max_running, -len(each.pools)))
            yield host
            free[host] -= 1
            if not free[host]:
                del free[host]

    def why_queued(self, task_id: str) -> tuple[WaitReason, str] | None:
        """Return why queued executions of a task wait for a host or a slot; None: a slot is free, and is about to be
        assigned."""
        return self.why_queued_in(self.pool_of_task(task_id))

    def pool_of_task(self, task_id: str) -> str:
        """Return the name of the task's pool; NO_POOL if it has none."""
        return self._pools.of_task(task_id)

    def why_queued_in(self, pool: str) -> tuple[WaitReason, str] | None:
        """Return the same for the tasks of a pool."""
        hosts = [self._by_name[name] for name in self._pools.hosts_of(pool)]
        if not hosts:
            return WaitReason.NO_POOL, "no pool matches the task, and every host belongs to a pool"
        if all(host.drain for host in hosts):
            return WaitReason.HOST_DRAINED, "; ".join(host.error for host in hosts)
        taking = [host for host in hosts if host.takes_executions]
        if not taking:
            return WaitReason.HOST_DOWN, "; ".join(host.error for host in hosts)
        taken, total = sum(host.running for host in taking), sum(host.max_running for host in taking)
        if taken >= total:
            of_pool = f" of pool {pool!r}" if pool else ""
            return WaitReason.NO_FREE_SLOT, f"{taken} of {total} slots{of_pool} in use"
        if self.running >= self.max_running:
            return WaitReason.NO_FREE_SLOT, f"{self.running} of {self.max_running} slots in use"
        return None


def _is_later(time: datetime, other: datetime | None) -> bool:
    return other is None or time > other
