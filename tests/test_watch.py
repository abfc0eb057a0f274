"""Watches of jobs over a real store: whatever comes when, what a watcher is told last of a job is how the job is."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastlane_grpc.api.watch import WatchRequest, cursor_text, position_of, watch_stream
from fastlane_grpc.errors import CursorTooOld, StoreFailed
from fastlane_grpc.model import Execution, Job, JobSpec, Outcome, State
from fastlane_grpc.store import FIRST_POSITION, ChangePosition, JobsRead, Pending, Store
from fastlane_grpc.watch import JobUpdate, WatchFilter, WatchHub
from tests.test_logs import eventually

HEARTBEAT = timedelta(milliseconds=10)
GRACE = timedelta(seconds=1)


class Served:
    """A store with its hub, as long as one server runs. The ring and the pages are small, so that watchers leave them
    soon."""

    def __init__(self, directory: Path, *, store_kind: type[Store] = Store, **sizes: Any) -> None:
        def on_commit(executions: Sequence[Execution]) -> None:
            self.watches.changed(executions)

        self.store = store_kind.open(directory, on_commit=on_commit, loop=asyncio.get_running_loop())
        self.watches = WatchHub(self.store, **{"ring_updates": 4, "page_changes": 3, "pace_seconds": 0, **sizes})
        self._hub = asyncio.create_task(self.watches.run())

    async def close(self) -> None:
        self._hub.cancel()
        with suppress(asyncio.CancelledError):
            await self._hub
        await asyncio.to_thread(self.store.close)


class Picture:
    """An encoding whose messages are values, and what a watcher knows by them."""

    name = "values"

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, State] = {}
        self.cursor = ""
        self.begins_anew = 0
        # The jobs that were known when it had caught up.
        self.at_first: dict[str, Job] | None = None

    def update(self, value: JobUpdate) -> Any:
        return cursor_text(self._instance, value.position), value.job or value.job_id

    def found(self, job: Job) -> Any:
        return "", job

    def missing(self, job_id: str) -> Any:
        return "", job_id

    def caught_up(self, cursor: str) -> Any:
        return cursor, Picture

    def heartbeat(self, cursor: str, now: datetime) -> Any:
        return cursor, None

    def take(self, message: Any) -> None:
        cursor, told = message
        if self.cursor:
            assert self.position_of(cursor) >= self.position_of(self.cursor), "a cursor never goes back"
        self.cursor = cursor
        if isinstance(told, Job):
            self.jobs[told.id] = told
            assert told.state >= self.states.get(told.id, 0), "a state never goes back"
            self.states[told.id] = told.state
        elif told is Picture:
            self.at_first = dict(self.jobs)
        elif told is not None:
            self.jobs.pop(told, None)

    def begin_anew(self) -> None:
        self.begins_anew += 1
        self.cursor = ""
        self.jobs.clear()

    def position_of(self, cursor: str) -> ChangePosition:
        return position_of(cursor, self._instance)


@dataclass
class Watcher:
    """A client that resumes, and that reads as many messages as it may. `since`: jobs that changed since it began."""

    wanted: WatchRequest
    picture: Picture
    may_read: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    reads_all: bool = False
    since: set[str] = field(default_factory=set)
    stream: "asyncio.Task[None] | None" = None

    def start(self, watches: WatchHub) -> None:
        self.stream = asyncio.create_task(self._run(watches))

    async def stop(self) -> None:
        if self.stream:
            self.stream.cancel()
            with suppress(asyncio.CancelledError):
                await self.stream

    def has_passed(self, position: ChangePosition) -> bool:
        assert self.stream
        assert not self.stream.done(), self.stream.exception()
        return bool(self.picture.cursor) and self.picture.position_of(self.picture.cursor) >= position

    async def _run(self, watches: WatchHub) -> None:
        while True:
            request = WatchRequest(
                self.wanted.task_id, self.wanted.job_ids, self.wanted.labels, self.picture.cursor, HEARTBEAT
            )
            if not request.cursor:
                self.picture.begin_anew()
            with suppress(CursorTooOld):
                await watch_stream(request, watches, lambda: False, self.picture, self._receive)
            self.picture.begin_anew()
            self.since.clear()

    async def _receive(self, message: Any) -> None:
        if not self.reads_all:
            await self.may_read.acquire()
        self.picture.take(message)


class Round:
    """One round: a server, what is done to its jobs, and its watchers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.served = Served(directory)
        self.watchers: list[Watcher] = []
        self.ids: list[str] = []
        self.labels: dict[str, dict[str, str]] = {}

    # ---- what can happen

    async def enqueue(self, task: int) -> None:
        labels = {"colour": ["red", "blue"][task % 2]}
        with self._changing() as changed:
            job, _ = await self.served.store.enqueue(
                task_id=f"task-{task // 2}", spec=JobSpec("busybox", labels=labels), request_id="", caller_address=""
            )
            changed.append(job.id)
        self.ids.append(job.id)
        self.labels[job.id] = labels

    async def claim(self, count: int) -> None:
        with self._changing() as changed:
            claimed = await self.served.store.claim_on(["local"] * count)
            changed += [assignment.execution.job_id for assignment in claimed]

    async def finish(self, which: int) -> None:
        if unfinished := await self.served.store.unfinished():
            execution = unfinished[which % len(unfinished)].execution
            with self._changing() as changed:
                await self.served.store.finish(execution.id, state=State.FAILED, outcome=Outcome(exit_code=1), logs=())
                changed.append(execution.job_id)

    async def stop(self, which: int) -> None:
        if self.ids:
            job_id = self.ids[which % len(self.ids)]
            final = (await self.served.store.job(job_id)).state.final
            with self._changing() as changed:
                await self.served.store.stop(job_id, grace=GRACE, note="")
                changed += [] if final else [job_id]

    async def delete(self, which: int) -> None:
        if self.ids and await self.served.store.delete_jobs([self.ids[which % len(self.ids)]]):
            self.ids.pop(which % len(self.ids))

    async def prune_log(self, keep: int) -> None:
        await self.served.store.prune_changes(before=datetime.fromisoformat("2020-01-01T00Z"), keep=keep, limit=100)

    async def watch(self, which: int) -> None:
        wanted = [
            WatchRequest(),
            WatchRequest("task-1"),
            WatchRequest(labels={"colour": "red"}),
            WatchRequest("task-0", labels={"colour": "blue"}),
            WatchRequest(job_ids=self.ids[::2]),
            WatchRequest("task-0", self.ids[1::2]),
        ][which % 6]
        picture = Picture(self.served.store.instance)
        self.watchers.append(Watcher(wanted, picture, asyncio.Semaphore(10), reads_all=which % 4 == 0))
        self.watchers[-1].start(self.served.watches)

    async def read(self, which: int) -> None:
        if self.watchers:
            for _ in range(which):
                self.watchers[which % len(self.watchers)].may_read.release()
            await asyncio.sleep(0)

    async def cut(self, which: int) -> None:
        if self.watchers:
            watcher = self.watchers[which % len(self.watchers)]
            await watcher.stop()
            watcher.start(self.served.watches)

    async def restart(self, _: int) -> None:
        for watcher in self.watchers:
            await watcher.stop()
        await self.served.close()
        self.served = Served(self.directory)
        for watcher in self.watchers:
            watcher.start(self.served.watches)

    @contextmanager
    def _changing(self) -> Iterator[list[str]]:
        """Note the jobs that are changed in it for each watcher that has caught up before, and not begun anew since."""
        caught_up = [(each, each.picture.begins_anew) for each in self.watchers if each.picture.cursor]
        changed: list[str] = []
        yield changed
        for watcher, begins_anew in caught_up:
            if watcher.picture.begins_anew == begins_anew:
                watcher.since.update(changed)

    # ---- what has to be true

    async def check(self) -> None:
        newest = await self.served.store.newest_change()
        for watcher in self.watchers:
            watcher.reads_all = True
            watcher.may_read.release()
        for watcher in self.watchers:
            await eventually(lambda watcher=watcher: watcher.has_passed(newest))  # type: ignore[misc]
        jobs = (await self.served.store.read_jobs(self.ids)).jobs
        for watcher in self.watchers:
            wanted = watcher.wanted
            matching = {
                job.id: job
                for job in jobs.values()
                if (not wanted.task_id or wanted.task_id == job.task_id)
                and (not wanted.job_ids or job.id in wanted.job_ids)
                and wanted.labels.items() <= self.labels[job.id].items()
            }
            known = watcher.picture.jobs
            assert known == {job_id: matching[job_id] for job_id in known}
            assert {job.id for job in matching.values() if not job.state.final} <= known.keys()
            assert watcher.since & matching.keys() <= known.keys()

    async def close(self) -> None:
        for watcher in self.watchers:
            await watcher.stop()
        await self.served.close()


CHANGES = ("enqueue", "claim", "finish", "stop", "delete")
READERS = ("watch", "read", "read", "cut", "cut", "restart", "prune_log")
steps = st.lists(
    st.tuples(st.sampled_from([*CHANGES, *CHANGES, *READERS]), st.integers(0, 20)), min_size=30, max_size=80
)


# Not shrunk: each example takes a while.
@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(steps=steps)
def test_the_last_that_a_watcher_is_told_is_how_the_job_is(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        with TemporaryDirectory() as directory:
            each = Round(Path(directory))
            try:
                for name, number in [("watch", 0), ("watch", 5), ("enqueue", 0), ("enqueue", 1), *steps]:
                    await getattr(each, name)(number % 4 if name == "enqueue" else number)
                await each.check()
            finally:
                await each.close()

    asyncio.run(run())


def with_server(directory: Path, test: Callable[[Served], Coroutine[Any, Any, None]], **sizes: Any) -> None:
    async def run() -> None:
        served = Served(directory, **sizes)
        try:
            await test(served)
        finally:
            await served.close()

    asyncio.run(run())


async def enqueue(store: Store, task_id: str = "task") -> str:
    job, _ = await store.enqueue(task_id=task_id, spec=JobSpec("busybox"), request_id="", caller_address="")
    return job.id


class CountingStore(Store):
    """Counts what is read for watchers."""

    reads = 0
    jobs_read = 0
    fails = 0

    def changes(self, after: ChangePosition, limit: int) -> Pending[Any]:
        self.reads += 1
        if self.fails:
            self.fails -= 1
            raise StoreFailed("the disk is gone")
        return super().changes(after, limit)

    def read_jobs(self, job_ids: Sequence[str], *, with_labels: bool = False) -> Pending[JobsRead]:
        self.jobs_read += len(job_ids)
        return super().read_jobs(job_ids, with_labels=with_labels)


def test_a_changed_job_is_read_and_encoded_once_for_all_watchers(tmp_path: Path) -> None:
    class Encoding(Picture):
        encoded = 0

        def update(self, value: JobUpdate) -> Any:
            Encoding.encoded += 1
            return super().update(value)

    async def run(served: Served) -> None:
        store: Any = served.store
        watchers = [Watcher(WatchRequest(), Encoding(store.instance), reads_all=True) for _ in range(50)]
        for watcher in watchers:
            watcher.start(served.watches)
        # The first look of each is its own. After it, each waits for the hub.
        await eventually(lambda: all(watcher.picture.at_first is not None for watcher in watchers))
        await eventually(lambda: served.watches.position is not None)
        await eventually(lambda: all(watch._timer is not None for watch in served.watches._watches))
        store.jobs_read = 0
        ids = [await enqueue(served.store) for _ in range(10)]
        await told(watchers, served.store)
        assert all(watcher.picture.jobs.keys() == set(ids) for watcher in watchers)
        assert store.jobs_read == len(ids)
        assert Encoding.encoded == len(ids)
        for watcher in watchers:
            await watcher.stop()

    with_server(tmp_path, run, store_kind=CountingStore, ring_updates=100)


def test_a_job_that_ends_while_the_snapshot_is_sent_is_told_before_its_end(tmp_path: Path) -> None:
    async def run(served: Served) -> None:
        ids = [await enqueue(served.store) for _ in range(100)]
        watcher = Watcher(WatchRequest(), Picture(served.store.instance), asyncio.Semaphore(1))
        watcher.start(served.watches)
        await eventually(lambda: len(watcher.picture.jobs) == 1)
        # The newest job is told first. The oldest, which are on the second page, end before that is read.
        for assignment in await served.store.claim_on(["local"] * 20):
            outcome = Outcome(exit_code=0)
            await served.store.finish(assignment.execution.id, state=State.SUCCEEDED, outcome=outcome, logs=())
        watcher.reads_all = True
        watcher.may_read.release()
        await told([watcher], served.store)
        assert watcher.picture.at_first is not None
        assert watcher.picture.at_first.keys() == set(ids)
        assert [watcher.picture.at_first[job_id].state.final for job_id in ids] == [True] * 20 + [False] * 80
        await watcher.stop()

    with_server(tmp_path, run)


def test_jobs_that_nobody_watches_are_not_read(tmp_path: Path) -> None:
    async def run(served: Served) -> None:
        store: Any = served.store
        for _ in range(5):
            await enqueue(served.store)
        assert (store.reads, store.jobs_read) == (0, 0), "nobody watches"
        watcher = Watcher(WatchRequest("quiet"), Picture(store.instance), reads_all=True)
        watcher.start(served.watches)
        await told([watcher], served.store)
        for _ in range(5):
            await enqueue(served.store, "busy")
        await told([watcher], served.store)
        assert store.jobs_read == 0
        await watcher.stop()

    with_server(tmp_path, run, store_kind=CountingStore)


def test_a_watcher_that_does_not_read_holds_one_batch_and_no_ring(tmp_path: Path) -> None:
    async def run(served: Served) -> None:
        with served.watches.watching(WatchFilter()) as watch:
            watch.position = await served.store.newest_change()
            assert await watch.take() == []
            for _ in range(20):
                await enqueue(served.store)
            newest = await served.store.newest_change()
            await eventually(lambda: served.watches.position == newest)
            assert sum(1 for _ in served.watches.updates_from(served.watches.first())) == 4
            taken: list[JobUpdate] = []
            while watch.behind:
                batch = await watch.take()
                assert len(batch) <= 4
                taken += batch
            assert [update.position.sequence for update in taken] == list(range(1, 21))

    with_server(tmp_path, run)


class Gate:
    """Holds the next call back until it is opened; later calls pass."""

    def __init__(self, store: Any, name: str) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        method = getattr(store, name)

        async def held(*args: Any, **kwargs: Any) -> Any:
            delattr(store, name)
            self.reached.set()
            await self.opened.wait()
            return await method(*args, **kwargs)

        setattr(store, name, held)


def test_an_update_that_is_older_than_what_was_read_is_not_told(tmp_path: Path) -> None:
    async def run(served: Served) -> None:
        job_id = await enqueue(served.store)
        with served.watches.watching(WatchFilter()) as watch:
            await eventually(lambda: served.watches.position is not None)
            watch.position = FIRST_POSITION
            gate = Gate(served.store, "read_jobs")
            taking = asyncio.create_task(watch.take())
            await gate.reached.wait()
            # The hub reads the job after its claim, and then nothing for a minute; the watcher reads it after its stop.
            await served.store.claim_on(["local"])
            await eventually(lambda: watch.behind)
            await served.store.stop(job_id, grace=GRACE, note="")
            gate.opened.set()
            assert [update.job.state for update in await taking if update.job] == [State.STOPPING]
            assert watch.behind
            assert await watch.take() == [], "PREPARING would be a step back"

    with_server(tmp_path, run, page_changes=500, pace_seconds=60)


def test_a_watcher_that_reads_while_the_hub_begins_misses_nothing(tmp_path: Path) -> None:
    async def run(served: Served) -> None:
        first = await enqueue(served.store)
        hub, watcher = Gate(served.store, "newest_change"), Gate(served.store, "read_jobs")
        with served.watches.watching(WatchFilter()) as watch:
            await hub.reached.wait()
            watch.position = FIRST_POSITION
            taking = asyncio.create_task(watch.take())
            await watcher.reached.wait()
            second = await enqueue(served.store)
            hub.opened.set()
            await eventually(lambda: served.watches.position is not None)
            watcher.opened.set()
            told = [update.job_id for update in await taking]
            while watch.behind:
                told += [update.job_id for update in await watch.take()]
            assert told == [first, second]

    with_server(tmp_path, run, page_changes=500)


def test_a_failing_store_delays_changes_and_loses_none(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fastlane_grpc.watch.RETRY_SECONDS", 0.01)

    async def run(served: Served) -> None:
        store: Any = served.store
        watcher = Watcher(WatchRequest(), Picture(store.instance), reads_all=True)
        watcher.start(served.watches)
        await told([watcher], served.store)
        store.fails = 3
        job_id = await enqueue(served.store)
        await told([watcher], served.store)
        assert store.fails == 0
        assert watcher.picture.jobs.keys() == {job_id}
        await watcher.stop()

    with_server(tmp_path, run, store_kind=CountingStore)


async def told(watchers: Sequence[Watcher], store: Store) -> None:
    """Waits until each watcher has passed all that there is."""
    newest = await store.newest_change()
    for watcher in watchers:
        await eventually(lambda watcher=watcher: watcher.has_passed(newest))  # type: ignore[misc]
