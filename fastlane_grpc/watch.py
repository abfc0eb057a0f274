"""Watches of jobs: a hub that reads the change log once for all watchers, and the position of each watcher.

The hub keeps the newest updates in a ring of bounded size. A watcher takes its updates from the ring. A watcher that is
slower than the ring reads the store at its own pace, and keeps nothing but its position."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import structlog

from fastlane_grpc.errors import CursorTooOld, ServerStopping, StoreFailed
from fastlane_grpc.model import Execution, Job
from fastlane_grpc.store import Change, ChangeKind, ChangePosition, JobsRead, Store
from fastlane_grpc.trust import TaskPattern
from fastlane_grpc.wakeup import Wakeup

# Updates that the hub keeps. Each takes a few kilobytes.
RING_UPDATES = 2048
# Updates that a watcher takes at a time: all that a watcher holds whose client does not read.
BATCH_UPDATES = 64
# Changes that are read at a time.
PAGE_CHANGES = 500
# The shortest time between two reads of the hub. The first change is told at once; those that follow are told together.
PACE_SECONDS = 0.01
# The longest time between two reads of the hub while there are watchers.
POLL_SECONDS = 10.0
RETRY_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WatchFilter:
    """The jobs that a watcher is told of; an empty field does not filter."""

    task_id: str = ""
    job_ids: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    # The tasks that the watcher's token allows; None: all.
    tasks: TaskPattern | None = None

    def wants(self, job_id: str, task_id: str) -> bool:
        """Return whether the job may match, as far as its ids say."""
        if self.tasks is not None and not self.tasks.matches(task_id):
            return False
        return (not self.task_id or self.task_id == task_id) and (not self.job_ids or job_id in self.job_ids)

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        """Return whether a job with these labels matches, as far as its labels say."""
        return self.labels.items() <= labels.items()


class UpdateEncoding(Protocol):
    """The encoding of updates by one transport. Encodings with the same name make the same of an update."""

    @property
    def name(self) -> str: ...

    def update(self, value: "JobUpdate") -> bytes:
        """Return the update, encoded."""


@dataclass(slots=True)
class JobUpdate:
    """A changed job, as it was after the change or later; None: it was pruned. `position`: after the change that is
    told. `superseded`: a later update of the same job is in the ring."""

    position: ChangePosition
    job_id: str
    task_id: str
    job: Job | None
    labels: Mapping[str, str]
    superseded: bool = False
    _encoded: dict[str, bytes] = field(default_factory=dict)

    def encoded(self, encoding: UpdateEncoding) -> bytes:
        """Return the update, encoded once for all watchers."""
        found = self._encoded.get(encoding.name)
        if found is None:
            found = self._encoded[encoding.name] = encoding.update(self)
        return found


class WatchHub:
    """The hub. Lives on the loop; `run` is its one task. Without watchers it reads nothing."""

    def __init__(
        self,
        store: Store,
        *,
        ring_updates: int = RING_UPDATES,
        page_changes: int = PAGE_CHANGES,
        pace_seconds: float = PACE_SECONDS,
    ) -> None:
        self.store = store
        self.page_changes = page_changes
        # The position up to which the watchers of each change were notified; None: the hub has not begun.
        self.position: ChangePosition | None = None
        self._pace_seconds = pace_seconds
        self._ring_updates = ring_updates
        self._ring: deque[JobUpdate] = deque()
        # The number of the oldest update in the ring.
        self._first = 0
        # The newest update of each job in the ring.
        self._newest: dict[str, JobUpdate] = {}
        self._watches: set[HubWatch] = set()
        # Each watch is in one of these: by its job ids, else by its task, else in the last.
        self._of_job: dict[str, set[HubWatch]] = {}
        self._of_task: dict[str, set[HubWatch]] = {}
        self._of_all: set[HubWatch] = set()
        self._wakeup = Wakeup()

    @contextmanager
    def watching(self, wanted: WatchFilter) -> Iterator["HubWatch"]:
        """Return a watch of these jobs, within the context. It begins nowhere: set its `position`."""
        watch = HubWatch(self, wanted)
        self._watches.add(watch)
        for group in self._groups(wanted):
            group.add(watch)
        self._wakeup.set()
        try:
            yield watch
        finally:
            watch.close()
            self._watches.discard(watch)
            for group in self._groups(wanted):
                group.discard(watch)
            self._drop_empty_groups(wanted)

    def changed(self, executions: Sequence[Execution] = ()) -> None:
        """Note that something was committed."""
        if self._watches:
            self._wakeup.set()

    def notify_all(self) -> None:
        """Wake every watcher, so that it finds that the server is stopping."""
        for watch in self._watches:
            watch.notify()

    async def run(self) -> None:
        """Read what changes and notify the watchers, until cancelled or until the store is closed."""
        with suppress(ServerStopping):
            while True:
                self._wakeup.clear()
                if not self._watches:
                    self._forget()
                    await self._wakeup.wait()
                    continue
                try:
                    found = await self._read_changes()
                except StoreFailed as error:
                    log.warning("watches wait for the store", error=str(error), retry_seconds=RETRY_SECONDS)
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if found:
                    await asyncio.sleep(self._pace_seconds)
                # Without an announcement, too: a change that nobody announced is told late, not never.
                await self._wakeup.wait(POLL_SECONDS)

    # ---- what watches ask for

    def first(self) -> int:
        """Return the number of the oldest update in the ring."""
        return self._first

    def updates_from(self, number: int) -> Iterator[JobUpdate]:
        """Return the updates of the ring from this number on."""
        return islice(self._ring, number - self._first, None)

    # ---- the ring

    async def _read_changes(self) -> bool:
        """Read all changes after the position. Return whether there were any."""
        found = False
        if self.position is None:
            newest = await self.store.newest_change()
            self._restart(newest)
        while self._watches and self.position is not None:
            try:
                changes = await self.store.changes(self.position, self.page_changes)
            except CursorTooOld:
                # The hub could not read for so long that changes were pruned. Each watcher finds out for itself.
                self._restart(await self.store.newest_change())
                break
            if not changes:
                break
            found = True
            # Looked at after the changes were read: a watch that is added later begins after these changes.
            wanted = _last_of_each_job(change for change in changes if any(self._watches_of(change)))
            read = await _read(self.store, wanted, with_labels=any(watch.wanted.labels for watch in self._watches))
            for change in wanted:
                if update := _update(change, read):
                    self._add(update)
            self.position = changes[-1].position
            if len(changes) < self.page_changes:
                break
        return found

    def _add(self, update: JobUpdate) -> None:
        if former := self._newest.get(update.job_id):
            former.superseded = True
        self._newest[update.job_id] = update
        self._ring.append(update)
        number = self._first + len(self._ring) - 1
        while len(self._ring) > self._ring_updates:
            oldest = self._ring.popleft()
            self._first += 1
            if self._newest.get(oldest.job_id) is oldest:
                del self._newest[oldest.job_id]
        for watch in self._watches_of(update):
            if watch.wanted.has_labels(update.labels):
                watch.note_update(number)

    def _restart(self, position: ChangePosition) -> None:
        """Begin at this position. Watchers read from the store what came before."""
        self._forget()
        self.position = position
        for watch in self._watches:
            watch.note_loss()

    def _forget(self) -> None:
        self.position = None
        self._first += len(self._ring)
        self._ring.clear()
        self._newest.clear()

    # ---- who is told of what

    def _watches_of(self, change: Change | JobUpdate) -> Iterator["HubWatch"]:
        """Return the watches that may match, as far as ids say."""
        yield from self._of_all
        yield from self._of_task.get(change.task_id, ())
        for watch in self._of_job.get(change.job_id, ()):
            if watch.wanted.wants(change.job_id, change.task_id):
                yield watch

    def _groups(self, wanted: WatchFilter) -> Iterator[set["HubWatch"]]:
        if wanted.job_ids:
            yield from (self._of_job.setdefault(job_id, set()) for job_id in wanted.job_ids)
        elif wanted.task_id:
            yield self._of_task.setdefault(wanted.task_id, set())
        else:
            yield self._of_all

    def _drop_empty_groups(self, wanted: WatchFilter) -> None:
        for job_id in wanted.job_ids:
            if not self._of_job.get(job_id, True):
                del self._of_job[job_id]
        if not self._of_task.get(wanted.task_id, True):
            del self._of_task[wanted.task_id]


class HubWatch:
    """One watcher: its filter, and the position after all that it has taken."""

    def __init__(self, hub: WatchHub, wanted: WatchFilter) -> None:
        self.wanted = wanted
        self._hub = hub
        self._position = ChangePosition(0, 0)
        # Whether changes between the position and the ring are to be read from the store.
        self._behind = True
        # The number of the first update that was not taken; None: there is none.
        self._pending: int | None = None
        # Jobs that were read from the store, up to which change: an update of the ring may be older.
        self._read: Mapping[str, int] = {}
        self._read_at = 0
        self._news = asyncio.Event()
        # Wakes a watch that waits. Set once for many waits: a time-out of each would cost as much as a message.
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0

    @property
    def position(self) -> ChangePosition:
        """The position after all that was taken. Where nothing is left to take, that is the newest one that the hub
        knows."""
        hub_position = self._hub.position
        if not self._behind and self._pending is None and hub_position and hub_position > self._position:
            self._position = hub_position
        return self._position

    @position.setter
    def position(self, position: ChangePosition) -> None:
        self._position = position
        self._behind = True

    @property
    def behind(self) -> bool:
        """Whether there may be more to take now."""
        return self._behind or self._pending is not None

    def clear(self) -> None:
        """Forget earlier notifications. To be called before a look."""
        self._news.clear()

    def notify(self) -> None:
        self._news.set()

    async def wait(self, until: float) -> None:
        """Wait until there may be more to take, at most until this time of the loop, which is never earlier than the
        time before."""
        self._until = until
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(until, self._end_wait)
        await self._news.wait()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end_wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if loop.time() < self._until:
            self._timer = loop.call_at(self._until, self._end_wait)
        else:
            self._news.set()

    async def take(self) -> Sequence[JobUpdate]:
        """Return the next updates, some at a time; none if there is nothing new, or not yet (`behind`).

        CursorTooOld: changes after the position were pruned."""
        if self._pending is not None and self._pending < self._hub.first():
            # The ring has passed this watcher. Cleared before the read: an update that comes after it is pending again.
            self.note_loss()
        return await self._take_from_store() if self._behind else self._take_from_ring()

    # ---- what the hub tells

    def note_update(self, number: int) -> None:
        """Note that the update with this number matches."""
        if self._pending is None:
            self._pending = number
            self._news.set()

    def note_loss(self) -> None:
        """Note that the ring does not have all updates after the position."""
        self._pending, self._behind = None, True
        self._news.set()

    # ---- the two ways to updates

    async def _take_from_store(self) -> Sequence[JobUpdate]:
        # Cleared before the read: a loss that is noted during the read is read again.
        self._behind = False
        limit = min(self._hub.page_changes, BATCH_UPDATES)
        try:
            changes = await self._hub.store.changes(self._position, limit)
            wanted = _last_of_each_job(change for change in changes if self.wanted.wants(change.job_id, change.task_id))
            read = await _read(self._hub.store, wanted, with_labels=bool(self.wanted.labels))
        except BaseException:
            self._behind = True
            raise
        self._behind = self._behind or len(changes) == limit
        if changes:
            self._position = changes[-1].position
        self._read, self._read_at = dict.fromkeys(read.jobs, read.sequence), read.sequence
        updates = [_update(change, read) for change in wanted]
        return [update for update in updates if update and self.wanted.has_labels(update.labels)]

    def _take_from_ring(self) -> Sequence[JobUpdate]:
        taken: list[JobUpdate] = []
        number = self._pending
        if number is None:
            return taken
        for update in self._hub.updates_from(number):
            if len(taken) == BATCH_UPDATES:
                break
            number += 1
            if update.position > self._position and self._is_new(update):
                taken.append(update)
        else:
            # Nothing waits between this look and the next update: the hub is on the same loop.
            number = None
        self._pending = number
        if taken:
            self._position = taken[-1].position
        if self._position.sequence >= self._read_at:
            self._read = {}
        return taken

    def _is_new(self, update: JobUpdate) -> bool:
        # The job that was read from the store is as new as this change, or newer.
        was_read = update.position.sequence <= self._read.get(update.job_id, 0)
        matches = self.wanted.wants(update.job_id, update.task_id) and self.wanted.has_labels(update.labels)
        return matches and not was_read and not update.superseded


def _last_of_each_job(changes: Iterator[Change]) -> Sequence[Change]:
    """Return the last change of each job, in their order."""
    last: dict[str, Change] = {}
    for change in changes:
        last.pop(change.job_id, None)
        last[change.job_id] = change
    return list(last.values())


async def _read(store: Store, changes: Sequence[Change], *, with_labels: bool) -> JobsRead:
    """Return the jobs of these changes as they are now."""
    job_ids = [change.job_id for change in changes if change.kind is not ChangeKind.PRUNED]
    return await store.read_jobs(job_ids, with_labels=with_labels) if job_ids else JobsRead(0, {}, {})


def _update(change: Change, read: JobsRead) -> JobUpdate | None:
    """Return the update of a change; None if its job was pruned since, which is a change of its own."""
    if change.kind is ChangeKind.PRUNED:
        return JobUpdate(change.position, change.job_id, change.task_id, None, change.labels)
    job = read.jobs.get(change.job_id)
    if job is None:
        return None
    return JobUpdate(change.position, job.id, job.task_id, job, read.labels.get(job.id, Change.NO_LABELS))
