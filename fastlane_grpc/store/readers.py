"""The reading threads of the store: each has a connection of its own, and ends a read before it reports the result."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.store.database import Connection, is_failure, open_for_reading, refusal
from fastlane_grpc.store.pending import Pending, Settled, tell
from fastlane_grpc.supervisor import ALONE, Supervisor

T = TypeVar("T")

THREADS = 2
# An answer waits so long, at the most, for those to reads that are begun after it.
TOGETHER_SECONDS = 0.0005
# For some time after so many reads were answered together, many callers are at work. Each thread then waits so long for
# reads that come with the first one: to wake a thread and the loop costs more than a read.
SHARED_FROM = 3
SHARED_SECONDS = 0.001
SHARED_FOR_SECONDS = 0.05
# The most reads that one statement answers.
MOST_TOGETHER = 16

# Does many works of one kind by one statement, and returns what each would. Raises where one of them would: then each
# is done alone.
Many: TypeAlias = Callable[[Connection, Sequence[Any]], Sequence[Any]]


class Readers:
    """Threads that read. A read may wait for another read, never for the writer."""

    def __init__(
        self,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        supervisor: Supervisor = ALONE,
        shared_seconds: float = SHARED_SECONDS,
    ) -> None:
        self._path = path
        self._shared_seconds = shared_seconds
        # The monotonic time until which reads are expected to come together.
        self._shared_until = 0.0
        self._loop = loop
        # None ends one thread. The lock keeps a read from slipping in behind them, where nobody would answer.
        self._queue: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        self._entrance = threading.Lock()
        self._closed = False
        connections: list[Connection] = []
        try:
            for _ in range(THREADS):
                connections.append(open_for_reading(path))
        except Exception:
            for db in connections:
                db.close()
            raise
        self._threads = [
            supervisor.thread(f"store-reader-{number}", partial(self._run, db), restart=True)
            for number, db in enumerate(connections, 1)
        ]
        for thread in self._threads:
            thread.start()

    def read(self, work: Callable[[Connection], T], *, many: Many | None = None) -> Pending[T]:
        """Run `work`, one statement that is read to its last row: an open statement would keep SQLite from cutting its
        log. Neighbours in the queue whose `many` are equal are run by one call of it."""
        pending: Pending[T] = Pending(self._loop, "store_read")
        with self._entrance:
            if self._closed:
                raise ServerStopping("the server is going down")
            self._queue.put(_Read(work, pending, many))
        return pending

    @property
    def waiting(self) -> int:
        """The reads that no thread has begun."""
        return self._queue.qsize()

    def close(self, timeout: float | None = None) -> None:
        """Finish the reads that wait and refuse later ones. Blocks until then, for at most `timeout` seconds per
        thread."""
        with self._entrance:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _run(self, db: Connection) -> None:
        first = self._queue.get()
        while first:
            if self._queue.qsize() < MOST_TOGETHER and time.monotonic() < self._shared_until:
                time.sleep(self._shared_seconds)
            settled, until = list[Settled](), time.monotonic() + TOGETHER_SECONDS
            # Callers that come by the dozen are woken together: to wake the loop costs more than to read a row.
            while first:
                reads, first = self._neighbours(first)
                settled += self._settled_together(db, reads)
                if time.monotonic() >= until:
                    break
                first = first or self._waiting()
            tell(self._loop, settled)
            if len(settled) >= SHARED_FROM:
                self._shared_until = time.monotonic() + SHARED_FOR_SECONDS
            first = first or self._queue.get()
        db.close()

    def _neighbours(self, first: "_Read") -> tuple[list["_Read"], "_Read | None"]:
        """Return `first` and the waiting reads that the same statement can answer.

        Also return the next read, if it was taken from the queue."""
        reads = [first]
        while first.many and len(reads) < MOST_TOGETHER and (following := self._waiting()):
            if following.many != first.many:
                return reads, following
            reads.append(following)
        return reads, None

    def _waiting(self) -> "_Read | None":
        """Return the next read, if one waits. The mark that ends a thread stays in the queue."""
        try:
            read = self._queue.get_nowait()
        except queue.Empty:
            return None
        if read is None:
            self._queue.put(None)
        return read

    def _settled_together(self, db: Connection, reads: Sequence["_Read"]) -> Sequence[Settled]:
        many = reads[0].many
        if many and len(reads) > 1:
            # Each statement gives up the interpreter several times, and other threads take it.
            with suppress(Exception):
                answers = many(db, [read.work for read in reads])
                return [Settled(read.pending, answer, None) for read, answer in zip(reads, answers, strict=True)]
        return [self._settled(db, read) for read in reads]

    def _settled(self, db: Connection, read: "_Read") -> Settled:
        try:
            return Settled(read.pending, read.work(db), None)
        except Exception as error:
            return Settled(read.pending, None, refusal(error, self._path) if is_failure(error) else error)


@dataclass(frozen=True, slots=True)
class _Read:
    work: Callable[[Connection], Any]
    pending: Pending[Any]
    many: Many | None
