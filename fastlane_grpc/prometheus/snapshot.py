"""The numbers of one scrape."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastlane_grpc.config import Settings
from fastlane_grpc.counts import Counts
from fastlane_grpc.dispatcher import Dispatcher
from fastlane_grpc.logs import Tails
from fastlane_grpc.model import Hold, State, WaitReason, utc_now
from fastlane_grpc.slots import HostState
from fastlane_grpc.store import Census, ExecutionCounts, Store

# The label of executions that wait for nothing: a slot is free, and is about to be assigned.
NO_REASON = "none"

_REASONS_OF_HOLDS = {Hold.SCHEDULE_PAUSED: WaitReason.SCHEDULE_PAUSED, Hold.UNIQUE_KEY: WaitReason.UNIQUE_KEY}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that metrics are made of. The counts are those of the server itself, which go on while they are read."""

    version: str
    settings: Settings
    counts: Counts
    executions: ExecutionCounts
    census: Census
    # Executions by the name of what they wait for.
    waits: Mapping[str, int]
    hosts: Sequence[HostState]
    running: int
    can_write: bool
    writes_waiting: int
    reads_waiting: int
    log_bytes_sent: Mapping[str, int]
    open_logs: int
    cache_bytes: int
    cache_reads: int


async def take_snapshot(
    version: str,
    settings: Settings,
    counts: Counts,
    store: Store,
    tails: Tails,
    dispatcher: Dispatcher,
    can_write: Callable[[], bool],
) -> Snapshot:
    """Read all numbers: those of the store on one of its threads, all others on the loop."""
    census = await store.census()
    return Snapshot(
        version=version,
        settings=settings,
        counts=counts,
        executions=store.execution_counts,
        census=census,
        waits=_waits(census, store, dispatcher),
        hosts=dispatcher.host_states,
        running=dispatcher.running,
        can_write=can_write(),
        writes_waiting=store.writes_waiting,
        reads_waiting=store.reads_waiting,
        log_bytes_sent=tails.bytes_sent,
        open_logs=tails.open_logs,
        cache_bytes=tails.cache.bytes,
        cache_reads=tails.cache.reads,
    )


def _waits(census: Census, store: Store, dispatcher: Dispatcher) -> Mapping[str, int]:
    """Count the executions that wait, by reason: all that are scheduled or queued, and some that are claimed."""
    waits: Counter[WaitReason | None] = Counter(dispatcher.claimed_waits)
    for hold, count in census.held.items():
        waits[_REASONS_OF_HOLDS[hold]] += count
    waits[WaitReason.BACKOFF] += census.backing_off
    waits[WaitReason.NOT_DUE] += census.states[State.SCHEDULED] - census.backing_off - sum(census.held.values())
    now = utc_now()
    for task_id, count in census.blocked.items():
        waits[store.limited_tasks.why_blocked(task_id, now)] += count
    for pool, count in census.ready.items():
        why = dispatcher.why_queued_in(pool)
        waits[why and why[0]] += count
    named = {NO_REASON: waits[None]}
    return named | {reason.name.lower(): waits[reason] for reason in WaitReason}
