"""Readers of logs. A reader is a place in a log; it is given what lies after that, cut and serialised once for all who stand there.

Everything here lives on the loop, but for reads that may be cold, which have threads of their own. A reader that waits costs nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from fastlane_grpc.errors import CursorAhead, StoreFailed
from fastlane_grpc.logs.begin import BeginAt, cursor_at
from fastlane_grpc.logs.cache import Cache
from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.logs.files import Logs
from fastlane_grpc.logs.message import TEXT_MESSAGE_BYTES, Message, TextDecoder, after, messages
from fastlane_grpc.logs.news import Bell, News
from fastlane_grpc.model import Cause, Execution, LogTotals, Source
from fastlane_grpc.record import Chunk, Gap, Position, RecordReader, Stretch, unread
from fastlane_grpc.wakeup import Wakeup

# Turns a message into what goes over the wire.
Encode: TypeAlias = Callable[[Message], bytes]
Made = TypeVar("Made")

# A stretch of less than this is read anew once there is more: else whoever comes late would get it in the crumbs that others waited for.
SHORT_BYTES = 64 * 1024
# How long a reader sleeps between two looks where no inotify watch is to be had.
POLL_SECONDS = 0.2


class Tails:
    """All logs that somebody reads, and the one cache of what was read."""

    def __init__(self, logs: Logs, encode: Encode, *, cache_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self.cache: Cache[_Encoded] = Cache(cache_bytes)
        self._logs = logs
        self._encode = encode
        self._loop = loop
        self._news = News(loop)
        self._threads = ThreadPoolExecutor(4, "log-reader")
        self._open: dict[str, _Log] = {}
        logs.on_new_record = self._new_record

    @contextmanager
    def watching(self, execution_id: str) -> Iterator["Watch"]:
        """For as long as it lasts, the watch is told of every change of the execution's state and of its log."""
        log = self._open.get(execution_id)
        if log is None:
            log = self._open[execution_id] = _Log(execution_id, self._logs, self._news, self._threads)
        watch = Watch(log)
        log.watches.add(watch)
        try:
            yield watch
        finally:
            log.watches.discard(watch)
            if not log.watches:
                del self._open[execution_id]
                log.close()

    async def cursor_at(self, watch: "Watch", begin: BeginAt, sources: Iterable[Source]) -> Cursor:
        """The point in the watched log, as it is now, that a reader of these sources means by `begin`. No sources: all of them."""
        return await watch.log.cursor_at(begin, frozenset(sources) or frozenset(Source))

    async def system_if_first(self, execution_id: str, line: str) -> None:
        """Adds one of fastlane's own lines to the log if it has none yet."""
        await self._loop.run_in_executor(self._threads, self._logs.system_if_first, execution_id, line)

    async def waiting_lines(self, execution_id: str) -> tuple[Sequence[LogTotals], int]:
        """See Logs."""
        return await self._loop.run_in_executor(self._threads, self._logs.waiting_lines, execution_id)

    def tail(self, watch: "Watch", cursor: Cursor, sources: Iterable[Source], *, text: bool) -> "Tail":
        """A reader of the watched log that begins at `cursor`. No sources: all of them."""
        return Tail(watch.log, cursor, frozenset(sources) or frozenset(Source), self._encode, self.cache, TextDecoder() if text else None)

    def changed(self, executions: Sequence[Execution]) -> None:
        """The store's news: these are as they are now."""
        for execution in executions:
            if log := self._open.get(execution.id):
                log.changed(execution)

    def ring_all(self) -> None:
        """Wakes every reader, so that it finds that the server is stopping."""
        for log in self._open.values():
            log.ring()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._news.close()

    def _new_record(self, execution_id: str) -> None:
        """Called from the thread that made it."""
        try:
            self._loop.call_soon_threadsafe(self._ring, execution_id)
        except RuntimeError:
            return  # The loop is closed: nobody reads any more.

    def _ring(self, execution_id: str) -> None:
        if log := self._open.get(execution_id):
            log.ring()


class Watch:
    """One reader's bell. `execution` is the newest state that was told of, if any was since the watch began."""

    def __init__(self, log: "_Log") -> None:
        self.log = log
        self.execution: Execution | None = None
        self._rung = Wakeup()

    def clear(self) -> None:
        """To be called before looking."""
        self._rung.clear()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, timeout_seconds: float) -> None:
        """Until there may be news, or for so long."""
        await self._rung.wait(min(timeout_seconds, POLL_SECONDS) if self.log.unwatched else timeout_seconds)


class Tail:
    """One reader of one log: where it stands, and which sources it wants."""

    def __init__(
        self,
        log: "_Log",
        cursor: Cursor,
        sources: frozenset[Source],
        encode: Encode,
        cache: "Cache[_Encoded]",
        decoder: TextDecoder | None,
    ) -> None:
        self._log = log
        self._begin = self._passed = cursor
        self._sources = sources
        self._encode = encode
        self._cache = cache
        self._decoder = decoder
        self._output: Position | None = None
        self._system: Position | None = None
        self._lines: deque[Chunk | Gap] = deque()
        self._mark: Sequence[int] | None = None

    @property
    def cursor(self) -> Cursor:
        """The point to go on from."""
        return self._decoder.held_back(self._passed) if self._decoder else self._passed

    def mark(self) -> None:
        """Notes how far the log goes now, for a reader that does not want what comes later."""
        self._mark = self._log.sizes()

    @property
    def marked(self) -> bool:
        """Whether what was there at the mark has been read. Not told where a file ends in the middle of a frame: then `read` says None."""
        reached = [position.file_offset if position else 0 for position in (self._output, self._system)]
        return self._mark is not None and not self._lines and all(at >= size for at, size in zip(reached, self._mark, strict=True))

    async def read(self) -> Sequence[bytes] | None:
        """The next messages; empty where what came is of sources not asked for; None if there is nothing new."""
        self._log.open()
        line = await self._next_line()
        output = await self._next_output(line.time_ns if line else None)
        if output is not None or line is None:
            return output
        return self._own_messages([self._lines.popleft()])

    def finish(self, totals: Iterable[LogTotals], missing: Cause = Cause.STORE) -> Sequence[bytes]:
        """The last messages of a sealed log that holds so much. What of it was not found is a gap; `missing` says why, as it was pruned or
        is damaged. A cursor must not lie beyond it. As text, a character that was never completed is told as it is."""
        end = {source: _offset(self._system if source is Source.SYSTEM else self._output, source) for source in Source}
        end |= {total.source: max(end[total.source], total.bytes) for total in totals}
        passed = self._passed.offsets
        if any(passed[source] > end[source] for source in Source):
            cursor = Cursor.at(self._passed.execution_id, end, self._passed.sequence)
            raise CursorAhead("the log is sealed and ends before the cursor; begin again without one", cursor=str(cursor))
        sequence = self._passed.sequence + 1
        gaps = [
            Gap(source, passed[source], end[source] - passed[source], missing, sequence, 0)
            for source in Source
            if end[source] > passed[source]
        ]
        found = self._own_messages(gaps)
        left = self._decoder.flush() if self._decoder else ()
        return [*found, self._encode(Message(self._passed, left))] if left else found

    def totals(self, totals: Sequence[LogTotals]) -> Sequence[LogTotals]:
        """The same, and what was found beyond them: fastlane's lines about one that went back to the queue, and ended there."""
        known = {total.source: total.bytes for total in totals}
        reached = {source: _offset(self._system if source is Source.SYSTEM else self._output, source) for source in Source}
        beyond = [LogTotals(source, reached[source]) for source in Source if reached[source] > known.get(source, 0)]
        return [*(total for total in totals if total.bytes >= reached[total.source]), *beyond]

    async def _next_line(self) -> Chunk | Gap | None:
        """The first of fastlane's lines that this reader has not had."""
        file = self._log.system
        if file is None:
            return None
        if self._system is None:
            self._system = await self._log.locate(file, self._passed)
        while not self._lines:
            stretch = await self._log.read(file, self._system, None, lambda stretch: stretch)
            if stretch.next == self._system:
                return None
            self._system = stretch.next
            self._lines.extend(self._unread(stretch.entries))
        return self._lines[0]

    async def _next_output(self, before_ns: int | None) -> Sequence[bytes] | None:
        file = self._log.output
        if file is None:
            return None
        if self._output is None:
            self._output = await self._log.locate(file, self._passed)
        position = self._output
        if self._decoder or self._stands_within(position):
            stretch = await self._log.read(file, position, before_ns, lambda stretch: stretch)
            if stretch.next == position:
                return None
            self._output = stretch.next
            return self._own_messages(self._unread(stretch.entries))
        encoded = await self._shared(file, position, before_ns)
        if encoded.next == position:
            return None
        self._output, self._passed = encoded.next, encoded.cursor
        return encoded.messages

    def _stands_within(self, position: Position) -> bool:
        """Whether the cursor is beyond what comes: then that has to be trimmed, for this reader alone."""
        passed, reached = self._passed.offsets, position.offsets
        beyond = any(passed[source] > reached[source] for source in (Source.STDOUT, Source.STDERR))
        return beyond or position.sequence < self._begin.sequence

    async def _shared(self, file: "_File", position: Position, before_ns: int | None) -> "_Encoded":
        """The stretch after `position` as it is sent to all who stand there: read and serialised once."""
        cursor, sources = self._passed, self._sources

        def encode(stretch: Stretch) -> _Encoded:
            encoded = [self._encode(message) for message in messages(cursor, stretch.entries, sources)]
            spans = stretch.next.file_offset - position.file_offset
            return _Encoded(encoded, spans, stretch.next, after(cursor, stretch.entries))

        key: Hashable = (cursor.execution_id, position.file_offset, before_ns, sources, cursor.system)
        found = self._cache.find(key)
        # A short stretch was all there was when it was read. Once there is more, whoever comes late takes more at once.
        if found and (found.spans >= SHORT_BYTES or (found.spans and found.next.file_offset >= file.seen)):
            return found
        # A read that began before the last ring may have missed what that told of: it is not for those who look after it.
        return await self._cache.load(key, self._log.rings, lambda: self._log.read(file, position, before_ns, encode))

    def _own_messages(self, entries: Sequence[Chunk | Gap]) -> Sequence[bytes]:
        """Messages made for this reader alone."""
        if self._decoder:
            cut = messages(self._passed, entries, self._sources, TEXT_MESSAGE_BYTES)
            made = [text for message in cut for text in self._decoder.decode(message)]
        else:
            made = list(messages(self._passed, entries, self._sources))
        encoded = [self._encode(message) for message in made]
        self._passed = after(self._passed, entries)
        return encoded

    def _unread(self, entries: Iterable[Chunk | Gap]) -> Sequence[Chunk | Gap]:
        """What of these the reader has not had: an entry that its cursor stands within is cut."""
        return unread(entries, self._passed.offsets, self._begin.sequence)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A stretch as it is sent: the same bytes for every reader who stands before it and wants the same sources."""

    messages: Sequence[bytes]
    spans: int  # bytes of the record
    next: Position
    cursor: Cursor

    @property
    def size(self) -> int:
        return 500 + sum(map(len, self.messages))


class _Log:
    """The records of one execution, open while somebody reads them, and the bells of those who do."""

    def __init__(self, execution_id: str, logs: Logs, news: News, threads: ThreadPoolExecutor) -> None:
        self.execution_id = execution_id
        self.watches: set[Watch] = set()
        self.rings = 0
        self.output: _File | None = None
        self.system: _File | None = None
        self._output_path = logs.output_path(execution_id)
        self._system_path = logs.system_path(execution_id)
        self._news = news
        self._threads = threads
        self._reads = 0
        self._closed = False

    @property
    def unwatched(self) -> bool:
        """Whether a file is open that nobody tells us of."""
        return any(file is not None and not file.bell.armed for file in (self.output, self.system))

    def sizes(self) -> Sequence[int]:
        """The bytes of the two records, their headers included."""
        return [path.stat().st_size if path.exists() else 0 for path in (self._output_path, self._system_path)]

    def open(self) -> None:
        """Before a look: opens what is there by now, and has what comes from now on told."""
        self.output = self.output or self._file(self._output_path)
        self.system = self.system or self._file(self._system_path)
        for file in (self.output, self.system):
            if file is not None and file.bell.arm():
                # What was read while nothing was told may have missed something, as what was read before a ring.
                self.rings += 1

    def changed(self, execution: Execution) -> None:
        for watch in self.watches:
            watch.execution = execution
        self.ring()

    def ring(self) -> None:
        self.rings += 1
        for watch in self.watches:
            watch.ring()

    async def cursor_at(self, begin: BeginAt, sources: frozenset[Source]) -> Cursor:
        self.open()
        output, system = (file.reader if file else None for file in (self.output, self.system))
        return await self._in_thread(lambda: cursor_at(self.execution_id, output, system, begin, sources))

    async def locate(self, file: "_File", cursor: Cursor) -> Position:
        offsets = {source: offset for source, offset in cursor.offsets.items() if (source is Source.SYSTEM) == (file is self.system)}
        sequence = 0 if file is self.system else cursor.sequence
        return await self._in_thread(lambda: file.reader.locate(offsets, sequence))

    async def read(self, file: "_File", position: Position, before_ns: int | None, make: Callable[[Stretch], Made]) -> Made:
        """What `make` makes of the stretch after `position`; on a thread, unless it was written just now."""

        def work() -> tuple[Position, Made]:
            stretch = file.reader.read(position, before_ns=before_ns)
            return stretch.next, make(stretch)

        # What lies after the place where there was nothing a moment ago is in memory still: to read it costs less than to ask a thread.
        next_position, made = work() if position.file_offset == file.end else await self._in_thread(work)
        file.seen = max(file.seen, next_position.file_offset)
        if next_position == position and before_ns is None:
            file.end = position.file_offset
        return made

    def close(self) -> None:
        for file in (self.output, self.system):
            if file is not None:
                file.bell.disarm()
        self._closed = True
        self._close_if_unused()

    async def _in_thread(self, work: Callable[[], Made]) -> Made:
        self._reads += 1
        read = asyncio.get_running_loop().run_in_executor(self._threads, work)
        read.add_done_callback(self._read_ended)
        try:
            # Shielded: a thread cannot be cancelled, and until it is done the file must not be closed under it.
            return await asyncio.shield(read)
        except OSError as error:
            raise _unreadable(error) from error

    def _read_ended(self, read: "asyncio.Future[Made]") -> None:
        self._reads -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closed and not self._reads:
            for file in (self.output, self.system):
                if file is not None:
                    file.reader.close()
            self.output = self.system = None

    def _file(self, path: Path) -> "_File | None":
        try:
            return _File(RecordReader(path), self._news.bell(path, self.ring))
        except FileNotFoundError:
            return None
        except OSError as error:
            # Too many files are open, or the disk fails: the log is there, and must not be taken for lost.
            raise _unreadable(error) from error


@dataclass(slots=True)
class _File:
    """An open record. `seen`: how far any reader came; `end`: where one last found that there was no more."""

    reader: RecordReader
    bell: Bell
    seen: int = 0
    end: int = -1


def _unreadable(error: OSError) -> StoreFailed:
    return StoreFailed(f"the log cannot be read now: {error.strerror}; try again", retry_seconds=1)


def _offset(position: Position | None, source: Source) -> int:
    return position.offsets[source] if position else 0
