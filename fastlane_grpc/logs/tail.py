"""Readers of logs. A reader is a position in a log. It gets what follows, cut and serialised once for all readers at
the same position.

Everything here lives on the loop, except reads that may have to wait for the disk, which have threads of their own."""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fastlane_grpc.errors import CursorAhead, StoreFailed, TooManyStreams
from fastlane_grpc.logs.cache import Cache
from fastlane_grpc.logs.cursor import Cursor
from fastlane_grpc.logs.file_watch import FileWatch, FileWatcher
from fastlane_grpc.logs.files import Logs
from fastlane_grpc.logs.message import TEXT_MESSAGE_BYTES, Encoding, Message, TextDecoder, after, before, messages
from fastlane_grpc.logs.start_point import StartPoint, counted, cursor_at
from fastlane_grpc.model import Cause, Execution, LogTotals, Source
from fastlane_grpc.record import SEGMENT_BYTES, Chunk, Gap, Position, RecordReader, Segment, unread
from fastlane_grpc.wakeup import Wakeup

Made = TypeVar("Made")

# A segment below this size is read again once there is more. Else a late reader would get the small pieces that earlier
# readers have waited for.
SHORT_BYTES = 64 * 1024
# The pause between two looks of a reader whose file nothing watches.
POLL_SECONDS = 0.2
# Segmentes that a thread reads in one step for a late reader: a hand-over to a thread and back costs as much as a read
# of one segment.
READ_AHEAD = 4
# Threads for reads that may have to wait for the disk.
THREADS = 4
# The most logs that are open for readers, unless the limit on open files is lower.
MOST_OPEN = 100_000


class Tails:
    """All logs that have readers, and their one cache."""

    def __init__(
        self, logs: Logs, *, cache_bytes: int, loop: asyncio.AbstractEventLoop, max_open: int = MOST_OPEN
    ) -> None:
        self.cache: Cache[_Encoded] = Cache(cache_bytes)
        self._logs = logs
        self._cache_bytes = cache_bytes
        self._loop = loop
        self._max_open = max_open
        self._file_watcher = FileWatcher(loop)
        self._threads = _started(ThreadPoolExecutor(THREADS, "log-reader"), THREADS)
        self._open: dict[str, _Log] = {}
        # What readers were sent, encoded, by the name of the encoding.
        self.bytes_sent: Counter[str] = Counter()
        logs.on_new_record = self._new_record

    @property
    def open_logs(self) -> int:
        """The logs that have readers."""
        return len(self._open)

    @contextmanager
    def watching(self, execution_id: str) -> Iterator["LogWatch"]:
        """Watch the state and the log of an execution within the context.

        TooManyStreams: no further log can be opened. A log that is open may have any number of readers.
        """
        log = self._open.get(execution_id)
        if log is None:
            if len(self._open) >= self._max_open:
                raise TooManyStreams(
                    f"{self._max_open} logs are being read, and the server may open no more files for readers;"
                    " try again later",
                    retry_seconds=1,
                )
            log = self._open[execution_id] = _Log(execution_id, self._logs, self._file_watcher, self._threads)
        log.look_again()
        watch = LogWatch(log)
        log.watches.add(watch)
        try:
            yield watch
        finally:
            log.watches.discard(watch)
            if not log.watches:
                del self._open[execution_id]
                log.close()

    async def cursor_at(
        self, watch: "LogWatch", begin: StartPoint, sources: Iterable[Source], end: Cursor | None = None
    ) -> Cursor:
        """Return the cursor at which a reader of these sources starts in the watched log, as the log is now. No
        sources: all of them. `end`: where the reader ends."""
        return await watch.log.cursor_at(begin, frozenset(sources) or frozenset(Source), end)

    async def line_at(self, watch: "LogWatch", cursor: Cursor, sources: Iterable[Source]) -> int:
        """Return the number of the first line of these sources that ends after the cursor."""
        return await watch.log.line_at(cursor, frozenset(sources) or frozenset(Source))

    def tail(
        self,
        watch: "LogWatch",
        cursor: Cursor,
        sources: Iterable[Source],
        encoding: Encoding,
        *,
        text: bool,
        end: Cursor | None = None,
        numbered: bool = False,
    ) -> "LogTail":
        """Return a reader of the watched log that starts at `cursor` and gets messages in this encoding. No sources:
        all of them. `end`: it gets nothing after this cursor. `numbered`: it is told the number of a line after each
        gap."""
        wanted, decoder = frozenset(sources) or frozenset(Source), TextDecoder() if text else None
        return LogTail(watch.log, cursor, wanted, encoding, self.cache, decoder, self._most_ahead, end, numbered)

    def changed(self, executions: Sequence[Execution]) -> None:
        """Tell the readers of these executions their new state."""
        for execution in executions:
            if log := self._open.get(execution.id):
                log.changed(execution)

    def notify_all(self) -> None:
        """Wake every reader, so that it finds that the server is stopping."""
        for log in self._open.values():
            log.notify()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._file_watcher.close()

    def _most_ahead(self) -> int:
        """Return how many segments a late reader may have read in one step: those of all readers take at most a
        quarter of the cache."""
        return min(READ_AHEAD, self._cache_bytes // (4 * SEGMENT_BYTES * max(len(self._open), 1)))

    def _new_record(self, execution_id: str) -> None:
        """Wake the readers of a log that has a new record. Called from the thread that made the record."""
        try:
            self._loop.call_soon_threadsafe(self._notify, execution_id)
        except RuntimeError:
            return  # The loop is closed: nobody reads any more.

    def _notify(self, execution_id: str) -> None:
        if log := self._open.get(execution_id):
            log.notify()


class LogWatch:
    """A reader's watch of an execution. `execution` is its newest state; None before the first change."""

    def __init__(self, log: "_Log") -> None:
        self.log = log
        self.execution: Execution | None = None
        self._wakeup = Wakeup()

    def clear(self) -> None:
        """Forget earlier notifications. To be called before a look."""
        self._wakeup.clear()

    def notify(self) -> None:
        self._wakeup.set()

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until something may have changed, at most for so long."""
        await self._wakeup.wait(min(timeout_seconds, POLL_SECONDS) if self.log.unwatched else timeout_seconds)


class LogTail:
    """One reader of one log: its position, and the sources that it wants."""

    def __init__(
        self,
        log: "_Log",
        cursor: Cursor,
        sources: frozenset[Source],
        encoding: Encoding,
        cache: "Cache[_Encoded]",
        decoder: TextDecoder | None,
        most_ahead: Callable[[], int],
        end: Cursor | None,
        numbered: bool,
    ) -> None:
        self._log = log
        self._begin = self._passed = cursor
        self._sources = sources
        self._encoding = encoding
        self._cache = cache
        self._decoder = decoder
        self._most_ahead = most_ahead
        self._end = end
        self._numbered = numbered
        self._output: Position | None = None
        self._system: Position | None = None
        self._lines: deque[Chunk | Gap] = deque()
        self._mark: Sequence[int] | None = None

    @property
    def cursor(self) -> Cursor:
        """The cursor to resume from."""
        return self._decoder.held_back(self._passed) if self._decoder else self._passed

    def mark(self) -> None:
        """Note the end of the log as it is now, for a reader that does not follow."""
        self._log.look_again()
        self._mark = self._log.sizes()

    @property
    def marked(self) -> bool:
        """Whether the reader has reached the mark. False where a file ends in the middle of a frame: then `read`
        returns None."""
        reached = [position.file_offset if position else 0 for position in (self._output, self._system)]
        return (
            self._mark is not None
            and not self._lines
            and all(at >= size for at, size in zip(reached, self._mark, strict=True))
        )

    @property
    def ended(self) -> bool:
        """Whether the reader has come to the cursor at which it ends."""
        if self._end is None:
            return False
        passed, end = self._passed.offsets, self._end.offsets
        # Of the output, the sequence says whether a gap of unknown size before the end is passed, too.
        at_sequence = self._sources == {Source.SYSTEM} or (
            max(self._passed.sequence, self._output.sequence if self._output else 0) >= self._end.sequence
        )
        return at_sequence and all(passed[source] >= end[source] for source in self._sources)

    async def read(self) -> Sequence[bytes] | None:
        """Return the next messages; none of them if all output was of other sources; None if there is nothing new."""
        self._log.open()
        line = await self._next_line()
        output = await self._next_output(line.time_ns if line else None)
        if output is not None or line is None:
            return output
        return await self._own_messages([self._lines.popleft()])

    def finish(self, totals: Iterable[LogTotals], missing: Cause = Cause.STORE) -> Sequence[bytes]:
        """Return the last messages of a sealed log with these totals. CursorAhead: the cursor is beyond its end.

        Bytes that were not found are a gap with the cause `missing`. A reader that ends at a cursor gets what is before
        that. As text, an incomplete character at the end is sent as a replacement character."""
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
        # No line follows, so no number is needed.
        return [*map(self._encoding.message, self._made(gaps)), *self.flush()]

    def flush(self) -> Sequence[bytes]:
        """Return what is held back of an incomplete character, at the end of the stream."""
        left = self._decoder.flush() if self._decoder else ()
        return [self._encoding.message(Message(self._passed, left))] if left else ()

    async def _next_line(self) -> Chunk | Gap | None:
        """Return the first of fastlane's lines that this reader has not had."""
        file = self._log.system
        if file is None:
            return None
        if self._system is None:
            self._system = await self._log.locate(file, self._passed)
        while not self._lines:
            segment = await self._log.read(file, self._system, None, lambda segment: segment)
            if segment.next == self._system:
                return None
            self._system = segment.next
            self._lines.extend(self._unread(segment.entries))
        return self._lines[0]

    async def _next_output(self, before_ns: int | None) -> Sequence[bytes] | None:
        file = self._log.output
        if file is None:
            return None
        if self._output is None:
            self._output = await self._log.locate(file, self._passed)
        position = self._output
        if self._decoder or self._end or self._stands_within(position):
            segment = await self._log.read(file, position, before_ns, lambda segment: segment)
            if segment.next == position:
                return None
            self._output = segment.next
            return await self._own_messages(self._unread(segment.entries))
        encoded = await self._shared(file, position, before_ns)
        if encoded.next == position:
            return None
        self._output, self._passed = encoded.next, encoded.cursor
        return encoded.messages

    def _stands_within(self, position: Position) -> bool:
        """Whether the cursor is beyond the start of what comes next, which is then trimmed for this reader alone."""
        passed, reached = self._passed.offsets, position.offsets
        beyond = any(passed[source] > reached[source] for source in (Source.STDOUT, Source.STDERR))
        return beyond or position.sequence < self._begin.sequence

    async def _shared(self, file: "_File", position: Position, before_ns: int | None) -> "_Encoded":
        """Return the segment after `position`, read and serialised once for all readers at that position."""
        key = self._key(position, before_ns, self._passed)
        encoded = self._cache.find(key)
        # A short segment was all there was when it was read. Once there is more, a late reader takes more at once.
        if not encoded or (
            encoded.spans < SHORT_BYTES and not (encoded.spans and encoded.next.file_offset >= file.seen)
        ):
            most = 1 if before_ns else max(self._most_ahead(), 1)
            read = self._reading(file, position, before_ns, self._passed, most)
            # A read that began before the last notification may have missed the change: it is not shared with readers
            # that look after the notification.
            encoded = await self._cache.load(key, self._log.generation, read)
        if before_ns is None:
            self._read_ahead(file, encoded)
        return encoded

    def _read_ahead(self, file: "_File", encoded: "_Encoded") -> None:
        """Read what follows `encoded` on a thread while it is sent, unless that is cached, being read, or not there
        yet."""
        most, ahead = self._most_ahead(), 0
        while encoded.spans >= SHORT_BYTES and ahead < (most + 1) // 2:
            key = self._key(encoded.next, None, encoded.cursor)
            following = self._cache.find(key)
            if following is None:
                if encoded.next.file_offset != file.end and not self._cache.loads(key, self._log.generation):
                    self._start_reading(key, file, encoded, most)
                return
            encoded, ahead = following, ahead + 1

    def _start_reading(self, key: Hashable, file: "_File", encoded: "_Encoded", most: int) -> None:
        log = self._log
        # The reader may leave, and its log be closed, before the thread reads.
        log.hold()
        read = self._reading(file, encoded.next, None, encoded.cursor, most)

        def end(reading: "asyncio.Future[_Encoded]") -> None:
            # A failure is not reported here: the reader that comes to this segment gets it.
            _ = reading.cancelled() or reading.exception()
            log.release()

        self._cache.loading(key, log.generation, read).add_done_callback(end)

    def _reading(
        self, file: "_File", position: Position, before_ns: int | None, cursor: Cursor, most: int
    ) -> Callable[[], Coroutine[object, object, "_Encoded"]]:
        """Return a coroutine function that reads the segment after `position` in one step of a thread, and caches the
        segments that follow: `most` segments in all."""
        sources, encoding, numbered = self._sources, self._encoding, self._numbered

        def encode(position: Position, cursor: Cursor, segment: Segment) -> _Encoded:
            made: Iterable[Message] = messages(cursor, segment.entries, sources)
            if numbered:
                made = [_with_line(message, file.reader, sources) for message in made]
            encoded = [encoding.message(message) for message in made]
            spans = segment.next.file_offset - position.file_offset
            return _Encoded(encoded, spans, segment.next, after(cursor, segment.entries))

        def encode_all(segment: Segment) -> Sequence[_Encoded]:
            made = [encode(position, cursor, segment)]
            # A failure beyond the first segment is for the reader that comes there.
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
        reader = (self._encoding.name, self._sources, self._numbered)
        return (cursor.execution_id, position.file_offset, before_ns, cursor.system, *reader)

    async def _own_messages(self, entries: Sequence[Chunk | Gap]) -> Sequence[bytes]:
        """Return messages made for this reader alone."""
        made = self._made(entries)
        if self._numbered:
            made = [await self._log.with_line(message, self._sources) for message in made]
        return [self._encoding.message(message) for message in made]

    def _made(self, entries: Sequence[Chunk | Gap]) -> Sequence[Message]:
        """Make messages of these entries, as far as they are before the end, and pass them."""
        if self._end:
            entries = before(entries, self._end)
        if self._decoder:
            cut = messages(self._passed, entries, self._sources, TEXT_MESSAGE_BYTES)
            made = [text for message in cut for text in self._decoder.decode(message)]
        else:
            made = list(messages(self._passed, entries, self._sources))
        self._passed = after(self._passed, entries)
        return made

    def _unread(self, entries: Iterable[Chunk | Gap]) -> Sequence[Chunk | Gap]:
        """Return the entries that the reader has not had. An entry around its cursor is cut."""
        return unread(entries, self._passed.offsets, self._begin.sequence)


# What a cached segment takes in memory beside its messages, with its key, positions and numbers; and each message.
_ENCODED_BYTES, _MESSAGE_BYTES = 1000, 48


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A serialised segment: the same bytes for every reader at its start that wants the same sources."""

    messages: Sequence[bytes]
    spans: int  # bytes of the record
    next: Position
    cursor: Cursor

    @property
    def size(self) -> int:
        return _ENCODED_BYTES + sum(_MESSAGE_BYTES + len(message) for message in self.messages)


class _Log:
    """The records of one execution, open while they have readers, and the watches of these readers."""

    def __init__(self, execution_id: str, logs: Logs, file_watcher: FileWatcher, threads: ThreadPoolExecutor) -> None:
        self.execution_id = execution_id
        self.watches: set[LogWatch] = set()
        self.generation = 0
        self.output: _File | None = None
        self.system: _File | None = None
        self._output_path = logs.output_path(execution_id)
        self._system_path = logs.system_path(execution_id)
        self._file_watcher = file_watcher
        self._threads = threads
        self._holds = 0
        self._closed = False
        # A missing record is looked for once in each generation, and after a pause: not by each of a thousand readers.
        self._looked_in = -1
        self._next_look_time = 0.0

    @property
    def unwatched(self) -> bool:
        """Whether a file is open that nothing watches."""
        return any(file is not None and not file.watch.active for file in (self.output, self.system))

    def sizes(self) -> Sequence[int]:
        """Return the bytes of the two records, headers included."""
        return [path.stat().st_size if path.exists() else 0 for path in (self._output_path, self._system_path)]

    def open(self) -> None:
        """Open the records that exist by now, and watch them. To be called before a look."""
        now = asyncio.get_running_loop().time()
        look = self._looked_in != self.generation or now >= self._next_look_time
        if look:
            self.output = self.output or self._file(self._output_path)
            self.system = self.system or self._file(self._system_path)
        for file in (self.output, self.system):
            if file is not None and file.watch.start_watching():
                # A read without a watch may have missed a change, as one before a notification may.
                self.generation += 1
        if look:
            self._looked_in, self._next_look_time = self.generation, now + POLL_SECONDS

    def look_again(self) -> None:
        """Have the next look search for missing records: its reader may know of a new one."""
        self._looked_in = -1

    def changed(self, execution: Execution) -> None:
        for watch in self.watches:
            watch.execution = execution
        self.notify()

    def notify(self) -> None:
        self.generation += 1
        for watch in self.watches:
            watch.notify()

    async def cursor_at(self, begin: StartPoint, sources: frozenset[Source], end: Cursor | None) -> Cursor:
        self.open()
        output, system = (file.reader if file else None for file in (self.output, self.system))
        return await self._in_thread(lambda: cursor_at(self.execution_id, output, system, begin, sources, end))

    async def line_at(self, cursor: Cursor, sources: frozenset[Source]) -> int:
        self.open()
        file = self.system if counted(sources) == {Source.SYSTEM} else self.output
        return 1 if file is None else await self._in_thread(lambda: _line_at(cursor, file.reader, sources))

    async def with_line(self, message: Message, sources: frozenset[Source]) -> Message:
        """Return the message with the number of the line after its gap, if it is one that may hide lines."""
        if not _hides_lines(message, sources):
            return message
        return replace(message, first_line=await self.line_at(message.cursor, sources))

    async def locate(self, file: "_File", cursor: Cursor) -> Position:
        offsets = {
            source: offset
            for source, offset in cursor.offsets.items()
            if (source is Source.SYSTEM) == (file is self.system)
        }
        sequence = 0 if file is self.system else cursor.sequence
        return await self._in_thread(lambda: file.reader.locate(offsets, sequence))

    async def read(
        self, file: "_File", position: Position, before_ns: int | None, make: Callable[[Segment], Made]
    ) -> Made:
        """Read the segment after `position` and return what `make` makes of it; on a thread, unless it was written just
        now."""

        def work() -> tuple[Position, Made]:
            segment = file.reader.read(position, before_ns=before_ns)
            return segment.next, make(segment)

        # What follows the end of a moment ago is still in memory: to read it costs less than a hand-over to a thread.
        next_position, made = work() if position.file_offset == file.end else await self._in_thread(work)
        file.seen = max(file.seen, next_position.file_offset)
        if next_position == position and before_ns is None:
            file.end = position.file_offset
        return made

    def close(self) -> None:
        for file in (self.output, self.system):
            if file is not None:
                file.watch.stop_watching()
        self._closed = True
        self._close_if_unused()

    def hold(self) -> None:
        """Keep the files open until `release`, also after `close`."""
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
            return _File(RecordReader(path), self._file_watcher.watch(path, self.notify))
        except FileNotFoundError:
            return None
        except OSError as error:
            # Too many files are open, or the disk fails: the log exists, and must not be taken for lost.
            raise _unreadable(error) from error


@dataclass(slots=True)
class _File:
    """An open record. `seen`: the furthest offset of any reader; `end`: where a reader last found nothing more."""

    reader: RecordReader
    watch: FileWatch
    seen: int = 0
    end: int = -1


def _line_at(cursor: Cursor, record: RecordReader, sources: frozenset[Source]) -> int:
    return 1 + record.newlines_before({source: cursor.offsets[source] for source in counted(sources)})


def _with_line(message: Message, record: RecordReader, sources: frozenset[Source]) -> Message:
    return (
        replace(message, first_line=_line_at(message.cursor, record, sources))
        if _hides_lines(message, sources)
        else message
    )


def _hides_lines(message: Message, sources: frozenset[Source]) -> bool:
    """Whether headers of blocks may have counted newlines that are missing: not where a writer knew of the gap."""
    gap = message.gap
    return gap is not None and gap.source in counted(sources) and gap.cause in {Cause.SIZE_LIMIT, Cause.STORE}


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
