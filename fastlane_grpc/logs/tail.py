"""Readers of logs. A reader is a place in a log; it is given what lies after that, cut and serialised once for all who
stand there.

Everything here lives on the loop, but for reads that may be cold, which have threads of their own. A reader that waits
costs nothing."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fastlane_grpc.errors import CursorAhead, StoreFailed, TooManyStreams
from fastlane_grpc.logs.cache import Cache
from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.logs.file_watch import FileWatch, FileWatcher
from fastlane_grpc.logs.files import Logs
from fastlane_grpc.logs.message import TEXT_MESSAGE_BYTES, Encoding, Message, TextDecoder, after, messages
from fastlane_grpc.logs.start_point import StartPoint, cursor_at
from fastlane_grpc.model import Cause, Execution, LogTotals, Source
from fastlane_grpc.record import STRETCH_BYTES, Chunk, Gap, Position, RecordReader, Stretch, unread
from fastlane_grpc.wakeup import Wakeup

Made = TypeVar("Made")

# A stretch of less than this is read anew once there is more: else whoever comes late would get it in the crumbs that
# others waited for.
SHORT_BYTES = 64 * 1024
# How long a reader sleeps between two looks where no inotify watch is to be had.
POLL_SECONDS = 0.2
# Stretches that a thread reads in one step for a late reader. To wake a thread and to be woken by it costs as much as
# to read one.
READ_AHEAD = 4
# What may be cold is read on these.
THREADS = 4
# Logs that are read at a time, where the limit on open files does not say less.
MOST_OPEN = 100_000


class Tails:
    """All logs that somebody reads, and the one cache of what was read."""

    def __init__(
        self, logs: Logs, *, cache_bytes: int, loop: asyncio.AbstractEventLoop, max_open: int = MOST_OPEN
    ) -> None:
        self.cache: Cache[_Encoded] = Cache(cache_bytes)
        self._logs = logs
        self._cache_bytes = cache_bytes
        self._loop = loop
        self._max_open = max_open
        self._news = FileWatcher(loop)
        self._threads = _started(ThreadPoolExecutor(THREADS, "log-reader"), THREADS)
        self._open: dict[str, _Log] = {}
        logs.on_new_record = self._new_record

    @contextmanager
    def watching(self, execution_id: str) -> Iterator["Watch"]:
        """For as long as it lasts, the watch is told of every change of the execution's state and of its log.

        TooManyStreams: no further log can be opened. Those that are open may have any number of readers.
        """
        log = self._open.get(execution_id)
        if log is None:
            if len(self._open) >= self._max_open:
                message = f"{self._max_open} logs are being read, and the server may open no more files for readers; try again later"
                raise TooManyStreams(message, retry_seconds=1)
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

    async def cursor_at(self, watch: "Watch", begin: StartPoint, sources: Iterable[Source]) -> Cursor:
        """The point in the watched log, as it is now, that a reader of these sources means by `begin`. No sources: all
        of them."""
        return await watch.log.cursor_at(begin, frozenset(sources) or frozenset(Source))

    def tail(
        self, watch: "Watch", cursor: Cursor, sources: Iterable[Source], encoding: Encoding, *, text: bool
    ) -> "Tail":
        """A reader of the watched log that begins at `cursor` and gets messages in this encoding. No sources: all of
        them."""
        wanted, decoder = frozenset(sources) or frozenset(Source), TextDecoder() if text else None
        return Tail(watch.log, cursor, wanted, encoding, self.cache, decoder, self._most_ahead)

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

    def _most_ahead(self) -> int:
        """How many stretches a late reader may have read in one step. All together they take at most a quarter of the
        cache."""
        return min(READ_AHEAD, self._cache_bytes // (4 * STRETCH_BYTES * max(len(self._open), 1)))

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
        encoding: Encoding,
        cache: "Cache[_Encoded]",
        decoder: TextDecoder | None,
        most_ahead: Callable[[], int],
    ) -> None:
        self._log = log
        self._begin = self._passed = cursor
        self._sources = sources
        self._encoding = encoding
        self._cache = cache
        self._decoder = decoder
        self._most_ahead = most_ahead
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
        """Whether what was there at the mark has been read. Not told where a file ends in the middle of a frame: then
        `read` says None."""
        reached = [position.file_offset if position else 0 for position in (self._output, self._system)]
        return (
            self._mark is not None
            and not self._lines
            and all(at >= size for at, size in zip(reached, self._mark, strict=True))
        )

    async def read(self) -> Sequence[bytes] | None:
        """The next messages; empty where what came is of sources not asked for; None if there is nothing new."""
        self._log.open()
        line = await self._next_line()
        output = await self._next_output(line.time_ns if line else None)
        if output is not None or line is None:
            return output
        return self._own_messages([self._lines.popleft()])

    def finish(self, totals: Iterable[LogTotals], missing: Cause = Cause.STORE) -> Sequence[bytes]:
        """The last messages of a sealed log that holds so much. What of it was not found is a gap; `missing` says why,
        as it was pruned or is damaged. A cursor must not lie beyond it. As text, a character that was never completed
        is told as it is."""
        end = {source: _offset(self._system if source is Source.SYSTEM else self._output, source) for source in Source}
        end |= {total.source: max(end[total.source], total.bytes) for total in totals}
        passed = self._passed.offsets
        if any(passed[source] > end[source] for source in Source):
            cursor = Cursor.at(self._passed.execution_id, end, self._passed.sequence)
            raise CursorAhead(
                "the log is sealed and ends before the cursor; begin again without one", cursor=str(cursor)
            )
        sequence = self._passed.sequence + 1
        gaps = [
            Gap(source, passed[source], end[source] - passed[source], missing, sequence, 0)
            for source in Source
            if end[source] > passed[source]
        ]
        found = self._own_messages(gaps)
        left = self._decoder.flush() if self._decoder else ()
        return [*found, self._encoding.message(Message(self._passed, left))] if left else found

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
        key = self._key(position, before_ns, self._passed)
        encoded = self._cache.find(key)
        # A short stretch was all there was when it was read. Once there is more, whoever comes late takes more at once.
        if not encoded or (
            encoded.spans < SHORT_BYTES and not (encoded.spans and encoded.next.file_offset >= file.seen)
        ):
            most = 1 if before_ns else max(self._most_ahead(), 1)
            read = self._reading(file, position, before_ns, self._passed, most)
            # A read that began before the last ring may have missed what that told of: it is not for those who look
            # after it.
            encoded = await self._cache.load(key, self._log.rings, read)
        if before_ns is None:
            self._read_ahead(file, encoded)
        return encoded

    def _read_ahead(self, file: "_File", encoded: "_Encoded") -> None:
        """Reads what follows on a thread while `encoded` is sent, unless that is cached, being read, or not there
        yet."""
        most, ahead = self._most_ahead(), 0
        while encoded.spans >= SHORT_BYTES and ahead < (most + 1) // 2:
            key = self._key(encoded.next, None, encoded.cursor)
            following = self._cache.find(key)
            if following is None:
                if encoded.next.file_offset != file.end and not self._cache.loads(key, self._log.rings):
                    self._start_reading(key, file, encoded, most)
                return
            encoded, ahead = following, ahead + 1

    def _start_reading(self, key: Hashable, file: "_File", encoded: "_Encoded", most: int) -> None:
        log = self._log
        # The reader may go away, and its log be closed, before the thread has begun to read.
        log.hold()
        read = self._reading(file, encoded.next, None, encoded.cursor, most)

        def end(reading: "asyncio.Future[_Encoded]") -> None:
            # A failure is not reported here: it meets the reader that comes to this stretch.
            _ = reading.cancelled() or reading.exception()
            log.release()

        self._cache.loading(key, log.rings, read).add_done_callback(end)

    def _reading(
        self, file: "_File", position: Position, before_ns: int | None, cursor: Cursor, most: int
    ) -> Callable[[], Coroutine[object, object, "_Encoded"]]:
        """What reads the stretch after `position`, and caches those that follow it, up to `most` in all, from the same
        step of a thread."""
        sources, encoding = self._sources, self._encoding

        def encode(position: Position, cursor: Cursor, stretch: Stretch) -> _Encoded:
            encoded = [encoding.message(message) for message in messages(cursor, stretch.entries, sources)]
            spans = stretch.next.file_offset - position.file_offset
            return _Encoded(encoded, spans, stretch.next, after(cursor, stretch.entries))

        def encode_all(stretch: Stretch) -> Sequence[_Encoded]:
            made = [encode(position, cursor, stretch)]
            # A failure beyond the first stretch meets the reader that comes there.
            with suppress(OSError):
                while len(made) < most and made[-1].spans >= SHORT_BYTES:
                    last = made[-1]
                    made.append(encode(last.next, last.cursor, file.reader.read(last.next)))
            return made

        async def read() -> _Encoded:
            first, *more = made = await self._log.read(file, position, before_ns, encode_all)
            for last, following in zip(made, more, strict=False):
                if following.spans:
                    self._cache.keep(self._key(last.next, None, last.cursor), following)
                    file.seen = max(file.seen, following.next.file_offset)
            return first

        return read

    def _key(self, position: Position, before_ns: int | None, cursor: Cursor) -> Hashable:
        return (cursor.execution_id, self._encoding.name, position.file_offset, before_ns, self._sources, cursor.system)

    def _own_messages(self, entries: Sequence[Chunk | Gap]) -> Sequence[bytes]:
        """Messages made for this reader alone."""
        if self._decoder:
            cut = messages(self._passed, entries, self._sources, TEXT_MESSAGE_BYTES)
            made = [text for message in cut for text in self._decoder.decode(message)]
        else:
            made = list(messages(self._passed, entries, self._sources))
        encoded = [self._encoding.message(message) for message in made]
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

    def __init__(self, execution_id: str, logs: Logs, news: FileWatcher, threads: ThreadPoolExecutor) -> None:
        self.execution_id = execution_id
        self.watches: set[Watch] = set()
        self.rings = 0
        self.output: _File | None = None
        self.system: _File | None = None
        self._output_path = logs.output_path(execution_id)
        self._system_path = logs.system_path(execution_id)
        self._news = news
        self._threads = threads
        self._holds = 0
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

    async def cursor_at(self, begin: StartPoint, sources: frozenset[Source]) -> Cursor:
        self.open()
        output, system = (file.reader if file else None for file in (self.output, self.system))
        return await self._in_thread(lambda: cursor_at(self.execution_id, output, system, begin, sources))

    async def locate(self, file: "_File", cursor: Cursor) -> Position:
        offsets = {
            source: offset
            for source, offset in cursor.offsets.items()
            if (source is Source.SYSTEM) == (file is self.system)
        }
        sequence = 0 if file is self.system else cursor.sequence
        return await self._in_thread(lambda: file.reader.locate(offsets, sequence))

    async def read(
        self, file: "_File", position: Position, before_ns: int | None, make: Callable[[Stretch], Made]
    ) -> Made:
        """What `make` makes of the stretch after `position`; on a thread, unless it was written just now."""

        def work() -> tuple[Position, Made]:
            stretch = file.reader.read(position, before_ns=before_ns)
            return stretch.next, make(stretch)

        # What lies after the place where there was nothing a moment ago is in memory still: to read it costs less than
        # to ask a thread.
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

    def hold(self) -> None:
        """Keeps the files open until `release`, also after `close`."""
        self._holds += 1

    def release(self) -> None:
        self._holds -= 1
        self._close_if_unused()

    async def _in_thread(self, work: Callable[[], Made]) -> Made:
        self.hold()
        read = asyncio.get_running_loop().run_in_executor(self._threads, work)
        read.add_done_callback(lambda read: self.release())
        try:
            # Shielded: a thread cannot be cancelled, and until it is done the file must not be closed under it.
            return await asyncio.shield(read)
        except OSError as error:
            raise _unreadable(error) from error

    def _close_if_unused(self) -> None:
        if self._closed and not self._holds:
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
    bell: FileWatch
    seen: int = 0
    end: int = -1


def _started(pool: ThreadPoolExecutor, threads: int) -> ThreadPoolExecutor:
    """The pool with all of its threads: one that started them later might find that no further thread is to be had."""
    go_on = threading.Event()
    for _ in range(threads):
        pool.submit(go_on.wait)
    go_on.set()
    return pool


def _unreadable(error: OSError) -> StoreFailed:
    return StoreFailed(f"the log cannot be read now: {error.strerror}; try again", retry_seconds=1)


def _offset(position: Position | None, source: Source) -> int:
    return position.offsets[source] if position else 0
