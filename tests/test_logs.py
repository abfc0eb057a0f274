"""Readers of logs over real records: whoever comes when, and however often it is cut off, gets the same bytes, each
once."""

import asyncio
import errno
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fastlane_grpc.api.log_encoding import ProtobufEncoding
from fastlane_grpc.errors import CursorAhead, CursorInvalid, CursorOfAnotherExecution, StoreFailed
from fastlane_grpc.logs import Cursor, Logs, Tails
from fastlane_grpc.model import MAX_TOLD_CHARACTERS, Cause, LogTotals, Source, new_id, told_line
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.parts import Parts

Response: TypeAlias = pb.StreamExecutionLogsResponse
OUT, ERR, SYSTEM = Source.STDOUT, Source.STDERR, Source.SYSTEM


class LogHarness(Parts):
    """Logs in a folder, and those who read them."""

    def __init__(self, path: Path, cache_bytes: int = 64 << 20) -> None:
        super().__init__(path, cache_bytes=cache_bytes)
        self.open_logs(self.parts)
        self.open_tails(self.parts)

    def writer(self, execution_id: str) -> RecordWriter:
        self.logs.path(execution_id).mkdir(parents=True, exist_ok=True)
        return RecordWriter.create(self.logs.output_path(execution_id), execution_id=execution_id, capture="test")

    async def rest(
        self,
        execution_id: str,
        cursor: str = "",
        sources: Sequence[Source] = (),
        *,
        text: bool = False,
        totals: Sequence[LogTotals] = (),
    ) -> list[Response]:
        """Everything after the cursor that is there now, and then the end of a log that holds `totals`."""
        with self.tails.watching(execution_id) as watch:
            tail = self.tails.tail(watch, Cursor.parse(cursor, execution_id), sources, ProtobufEncoding(), text=text)
            found: list[Response] = []
            while (messages := await tail.read()) is not None:
                found += map(Response.FromString, messages)
            found += map(Response.FromString, tail.finish(totals))
            return found


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[LogHarness]:
    harness = LogHarness(tmp_path)
    yield harness
    harness.close_parts()


def data(messages: Sequence[Response], source: Source) -> bytes:
    """The bytes of a source; each chunk has to begin where the one before ended."""
    found = b""
    for message in messages:
        if message.HasField("gap") and message.gap.source == int(source) and message.gap.HasField("missing_bytes"):
            found += b"?" * message.gap.missing_bytes
        for chunk in message.chunks:
            if chunk.source == int(source):
                assert chunk.offset == len(found)
                found += chunk.data
    return found


def times_open(path: Path) -> int:
    """How many descriptors of this process are of the file."""
    return sum(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir())


def all_closed(log: Any) -> bool:
    return log.output is None


async def eventually(true: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it becomes true within the time."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - nothing tells when a file is closed
            await asyncio.sleep(0.001)
    return True


def text(messages: Sequence[Response], source: Source) -> str:
    return "".join(chunk.text for message in messages for chunk in message.chunks if chunk.source == int(source))


async def test_a_log_that_is_not_there_yet_has_nothing(harness: LogHarness) -> None:
    assert await harness.rest(new_id()) == []


async def test_both_sources_arrive_once_in_order(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    for number in range(100):
        writer.write([(OUT, b"out %d\n" % number), (ERR, b"err %d\n" % number)], time.time_ns())
    messages = await harness.rest(id)
    assert data(messages, OUT) == b"".join(b"out %d\n" % number for number in range(100))
    assert data(messages, ERR) == b"".join(b"err %d\n" % number for number in range(100))
    sequences = [chunk.sequence for message in messages for chunk in message.chunks]
    assert sequences == list(range(1, 201))
    assert messages[-1].cursor == f"1.{id}.690.690.0.200"


async def test_readers_look_by_themselves_once_inotify_fails(harness: LogHarness, tmp_path: Path) -> None:
    id = new_id()
    writer = harness.writer(id)
    with harness.tails.watching(id) as watch, capture_logs() as logged:
        tail = harness.tails.tail(watch, Cursor.parse("", id), (), ProtobufEncoding(), text=False)
        assert await tail.read() is None
        news = harness.tails._file_watcher
        # Whatever it is that is read there: it is no news.
        directory = os.open(tmp_path, os.O_RDONLY)
        os.dup2(directory, news._inotify.fileno())
        os.close(directory)
        news._read_or_give_up()
        async with asyncio.timeout(10):
            await watch.wait(60)
            watch.clear()
            assert await tail.read() is None
            writer.write([(OUT, b"one")], time.time_ns())
            while not (messages := await tail.read()):
                watch.clear()
                await watch.wait(60)
    assert data([Response.FromString(message) for message in messages], OUT) == b"one"
    assert [each["work"] for each in logged] == ["inotify"]


async def test_only_the_sources_that_were_asked_for(harness: LogHarness) -> None:
    id = new_id()
    harness.writer(id).write([(OUT, b"1"), (ERR, b"2"), (OUT, b"3")], time.time_ns())
    harness.logs.system(id, "hello")
    messages = await harness.rest(id, sources=[ERR])
    assert [(chunk.source, chunk.data) for message in messages for chunk in message.chunks] == [
        (pb.SOURCE_STDERR, b"2")
    ]
    both = await harness.rest(id, sources=[ERR, SYSTEM])
    assert (data(both, ERR), data(both, SYSTEM)) == (b"2", b"hello\n")


async def test_system_lines_stand_where_they_were_written(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    harness.logs.system(id, "begin")
    writer.write([(OUT, b"one")], time.time_ns())
    harness.logs.system(id, "between")
    writer.write([(OUT, b"two")], time.time_ns())
    harness.logs.system(id, "end")
    messages = await harness.rest(id)
    assert [chunk.data for message in messages for chunk in message.chunks] == [
        b"begin\n",
        b"one",
        b"between\n",
        b"two",
        b"end\n",
    ]
    cursors = [message.cursor for message in messages]
    for place, cursor in enumerate(cursors):
        assert await harness.rest(id, cursor) == messages[place + 1 :]


async def test_a_late_reader_gets_large_messages_of_a_log_of_small_frames(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    for number in range(20_000):
        writer.write([(OUT, b"%5d\n" % number)], number)
    messages = await harness.rest(id)
    assert len(data(messages, OUT)) == 120_000
    assert len(messages) < 15
    assert max(message.ByteSize() for message in messages) < 512 << 10


async def test_one_byte_frames_stay_below_the_limit_of_a_message(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    pieces: list[tuple[Source, bytes | memoryview]] = [(OUT, b"o"), (ERR, b"e")] * 20_000
    writer.write(pieces, time.time_ns())
    messages = await harness.rest(id)
    assert data(messages, OUT) == b"o" * 20_000
    assert max(message.ByteSize() for message in messages) < 512 << 10


async def test_a_hundred_readers_cost_one_read(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    for _ in range(100):
        writer.write([(OUT, bytes(60_000))], time.time_ns())
    everything = await asyncio.gather(*(harness.rest(id) for _ in range(100)))
    assert all(messages == everything[0] for messages in everything)
    assert len(data(everything[0], OUT)) == 6_000_000
    # 6 MB in segments of 256 KiB, and a last look of each reader at the end.
    assert harness.tails.cache.reads < 30 + 100


async def test_the_cache_stays_within_its_bytes(tmp_path: Path) -> None:
    harness = LogHarness(tmp_path, cache_bytes=1 << 20)
    id = new_id()
    writer = harness.writer(id)
    for _ in range(100):
        writer.write([(OUT, bytes(60_000))], time.time_ns())
    assert len(data(await harness.rest(id), OUT)) == 6_000_000
    assert harness.tails.cache.bytes <= 1 << 20
    harness.close_parts()


async def test_a_late_reader_is_read_ahead_of_in_few_steps(tmp_path: Path) -> None:
    harness = LogHarness(tmp_path)
    id = new_id()
    writer = harness.writer(id)
    for number in range(100):
        writer.write([(OUT, b"%02d" % number * 30_000)], time.time_ns())
    assert data(await harness.rest(id), OUT) == b"".join(b"%02d" % number * 30_000 for number in range(100))
    # 6 MB are 23 segments; a thread was asked for four at a time, and once more where nothing followed.
    assert harness.tails.cache.reads <= 8
    # A second reader finds all of it.
    before = harness.tails.cache.reads
    assert len(data(await harness.rest(id), OUT)) == 6_000_000
    assert harness.tails.cache.reads <= before + 1
    harness.close_parts()


@contextmanager
def opens_of(path: Path) -> Iterator[list[str]]:
    """Lists each attempt of this process to open the file within the context."""
    opened: list[str] = []
    listening = True

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open" and str(arguments[0]) == str(path):
            opened.append(event)

    sys.addaudithook(note)  # Cannot be removed.
    try:
        yield opened
    finally:
        listening = False


async def test_readers_look_for_a_missing_record_once_for_each_change(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    with ExitStack() as watching, opens_of(harness.logs.system_path(id)) as opened:
        watches = [watching.enter_context(harness.tails.watching(id)) for _ in range(100)]
        tails = [harness.tails.tail(watch, Cursor(id), (), ProtobufEncoding(), text=False) for watch in watches]
        for _ in range(10):
            writer.write([(OUT, b"x" * 100_000)], time.time_ns())
            watches[0].log.notify()
            for tail in tails:
                assert await tail.read()
        # A look after a change, and one after the file of the output is watched again; a few more on a slow machine.
        assert len(opened) < 100
        # Nothing waits for that: a record that is new is found by the next look.
        harness.logs.system(id, "hello")
        await asyncio.sleep(0)
        assert data([Response.FromString(each) for each in await tails[0].read() or ()], SYSTEM) == b"hello\n"


async def test_a_reader_that_joins_finds_a_record_that_nobody_announced(harness: LogHarness) -> None:
    id = new_id()
    with harness.tails.watching(id) as watch:
        first = harness.tails.tail(watch, Cursor(id), (), ProtobufEncoding(), text=False)
        assert await first.read() is None
        harness.writer(id).write([(OUT, b"x")], time.time_ns())
        assert data(await harness.rest(id), OUT) == b"x"


async def test_files_stay_open_until_what_is_read_ahead_is_read(tmp_path: Path) -> None:
    harness = LogHarness(tmp_path)
    id = new_id()
    writer = harness.writer(id)
    for _ in range(100):
        writer.write([(OUT, bytes(60_000))], time.time_ns())
    for _ in range(20):
        with harness.tails.watching(id) as watch:
            assert await harness.tails.tail(watch, Cursor(id), (), ProtobufEncoding(), text=False).read()
            log = watch.log
        # The reader is gone, and what follows is being read.
        assert await eventually(partial(all_closed, log))
        harness.tails.close()
        harness.open_tails(harness.parts)
    assert times_open(harness.logs.output_path(id)) == 1, "by the writer"
    harness.close_parts()


async def test_a_read_ahead_that_fails_meets_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = LogHarness(tmp_path)
    id = new_id()
    writer = harness.writer(id)
    for _ in range(20):
        writer.write([(OUT, bytes(60_000))], time.time_ns())
    pread = os.pread

    def fails(fd: int, size: int, offset: int) -> bytes:
        # Segmentes from the second one on, but no header of a block, by which a place is found.
        if size > 168 and offset >= 4 * 65_536:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, offset)

    with harness.tails.watching(id) as watch:
        tail = harness.tails.tail(watch, Cursor(id), (), ProtobufEncoding(), text=False)
        monkeypatch.setattr(os, "pread", fails)
        assert await tail.read()
        with pytest.raises(StoreFailed):
            await tail.read()
        monkeypatch.undo()
        assert await tail.read()
    harness.close_parts()


async def test_a_reader_that_waits_is_woken_by_a_write_of_whoever(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    with harness.tails.watching(id) as watch:
        tail = harness.tails.tail(watch, Cursor(id), (), ProtobufEncoding(), text=False)
        for number in range(20):
            watch.clear()
            assert await tail.read() is None
            waiting = asyncio.create_task(watch.wait(30))
            await asyncio.sleep(0)
            await asyncio.to_thread(writer.write, [(OUT, b"%d" % number)], time.time_ns())
            await asyncio.wait_for(waiting, 5)
            messages = await tail.read()
            assert messages is not None
            assert [chunk.data for chunk in Response.FromString(messages[0]).chunks] == [b"%d" % number]


async def test_a_reader_is_woken_when_the_system_record_begins(harness: LogHarness) -> None:
    id = new_id()
    with harness.tails.watching(id) as watch:
        tail = harness.tails.tail(watch, Cursor(id), (), ProtobufEncoding(), text=False)
        assert await tail.read() is None
        waiting = asyncio.create_task(watch.wait(30))
        await asyncio.to_thread(harness.logs.system, id, "first")
        await asyncio.wait_for(waiting, 5)
        assert await tail.read() is not None


async def test_gaps_are_told_once_also_those_of_unknown_size(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    now = time.time_ns()
    writer.write([(OUT, b"abc")], now)
    writer.gap(OUT, 7, Cause.STORE, now)
    writer.write([(OUT, b"def")], now)
    writer.gap(OUT, None, Cause.ENGINE, now)
    writer.gap(ERR, None, Cause.ENGINE, now)
    writer.write([(OUT, b"ghi")], now)
    messages = await harness.rest(id)
    kinds = [message.WhichOneof("event") or "chunks" for message in messages]
    assert kinds == ["chunks", "gap", "chunks", "gap", "gap", "chunks"]
    assert data(messages, OUT) == b"abc???????defghi"
    assert (messages[1].gap.offset, messages[1].gap.missing_bytes, messages[1].gap.cause) == (
        3,
        7,
        pb.LogGap.CAUSE_STORE,
    )
    assert not messages[3].gap.HasField("missing_bytes")
    for place, message in enumerate(messages):
        assert await harness.rest(id, message.cursor) == messages[place + 1 :]


async def test_text_holds_back_a_cut_character_and_its_cursor(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    for byte in "a€b".encode():
        writer.write([(OUT, bytes([byte]))], time.time_ns())
    messages = await harness.rest(id, text=True)
    assert text(messages, OUT) == "a€b"
    with harness.tails.watching(id) as watch:
        tail = harness.tails.tail(watch, Cursor(id, stdout=2), (), ProtobufEncoding(), text=True)
        assert tail.cursor.stdout == 2
    # In the middle of the character there is nothing to give out, and the cursor stands before it.
    half = new_id()
    harness.writer(half).write([(OUT, "a€".encode()[:3])], time.time_ns())
    with harness.tails.watching(half) as watch:
        tail = harness.tails.tail(watch, Cursor(half), (), ProtobufEncoding(), text=True)
        assert await tail.read() is not None
        assert tail.cursor == Cursor(half, stdout=1, sequence=1)
        assert [chunk.text for raw in tail.finish(()) for chunk in Response.FromString(raw).chunks] == [
            "\N{REPLACEMENT CHARACTER}"
        ]


async def test_cursors_of_others_and_nonsense_are_refused(harness: LogHarness) -> None:
    id, other = new_id(), new_id()
    with pytest.raises(CursorInvalid):
        Cursor.parse("nonsense", id)
    with pytest.raises(CursorInvalid):
        Cursor.parse(f"1.{id}.1.2.3", id)
    with pytest.raises(CursorInvalid):
        Cursor.parse(f"1.{id}.1.2.3.{'9' * 30}", id)
    with pytest.raises(CursorOfAnotherExecution):
        Cursor.parse(str(Cursor(other)), id)


async def test_a_cursor_beyond_a_sealed_log_is_told_where_the_log_ends(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    writer.write([(OUT, b"abc")], time.time_ns())
    writer.seal(0, {}, time.time_ns())
    with harness.tails.watching(id) as watch:
        tail = harness.tails.tail(watch, Cursor(id, stdout=4, sequence=9), (), ProtobufEncoding(), text=False)
        while await tail.read() is not None:
            pass
        with pytest.raises(CursorAhead) as refused:
            tail.finish(())
    assert Cursor.parse(refused.value.metadata["cursor"], id).stdout == 3


async def test_a_cursor_ahead_of_a_log_that_still_grows_waits_for_it(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    writer.write([(OUT, b"abc")], time.time_ns())
    with harness.tails.watching(id) as watch:
        tail = harness.tails.tail(watch, replace(Cursor(id), stdout=5), (), ProtobufEncoding(), text=False)
        assert list(await tail.read() or ()) == []
        writer.write([(OUT, b"defg")], time.time_ns())
        messages = [Response.FromString(raw) for raw in await tail.read() or ()]
        assert [(chunk.offset, chunk.data) for message in messages for chunk in message.chunks] == [(5, b"fg")]


async def test_text_of_bytes_that_are_none_stays_below_the_limit_of_a_message(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    for _ in range(5):
        writer.write([(OUT, b"\xff" * 60_000)], time.time_ns())
    messages = await harness.rest(id, text=True)
    assert text(messages, OUT) == "\N{REPLACEMENT CHARACTER}" * 300_000
    assert max(message.ByteSize() for message in messages) < 512 << 10


async def test_the_totals_of_our_lines_are_the_same_however_often_they_are_sealed(
    harness: LogHarness, tmp_path: Path
) -> None:
    id = new_id()
    assert harness.logs.seal_system(id) == ()
    harness.logs.system(id, "hello")
    totals = harness.logs.seal_system(id)
    assert [(total.source, total.bytes) for total in totals] == [(SYSTEM, 6)]
    assert harness.logs.seal_system(id) == totals
    next_server = Logs(harness.logs.directory)
    next_server.system(id, "too late")
    assert next_server.seal_system(id) == totals


async def test_lines_that_were_closed_are_measured_and_go_on(harness: LogHarness) -> None:
    id, files = new_id(), open_files()
    assert harness.logs.close_system(id) == ((), 0)
    harness.logs.system(id, "first")
    totals, log_bytes = harness.logs.close_system(id)
    assert ([(total.source, total.bytes) for total in totals], log_bytes) == ([(SYSTEM, 6)], harness.logs.room(id))
    assert open_files() == files
    harness.logs.system(id, "later")
    assert data(await harness.rest(id), SYSTEM) == b"first\nlater\n"
    assert harness.logs.system_totals(id) == harness.logs.seal_system(id)
    assert harness.logs.system_totals(new_id()) == ()


async def test_who_came_before_a_record_was_begun_anew_gets_all_of_it(harness: LogHarness, tmp_path: Path) -> None:
    """As when it was opened on one host, which went away, and begins on another one that captures in another way."""
    id = new_id()
    harness.writer(id).close()
    other = RecordWriter.create(tmp_path / "other", execution_id=id, capture="something else")
    with harness.tails.watching(id) as watch:
        tail = harness.tails.tail(watch, Cursor.parse("", id), (), ProtobufEncoding(), text=False)
        assert await tail.read() is None
        other.write([(OUT, b"hello\n")], time.time_ns())
        # The same file, emptied and written again.
        harness.logs.output_path(id).write_bytes((tmp_path / "other").read_bytes())
        assert data([Response.FromString(message) for message in await tail.read() or ()], OUT) == b"hello\n"


async def test_a_look_after_a_notification_does_not_share_an_earlier_read(
    harness: LogHarness,
) -> None:
    id = new_id()
    harness.logs.system(id, "hello")
    writer = harness.writer(id)
    with harness.tails.watching(id) as first_watch, harness.tails.watching(id) as second_watch:
        first = harness.tails.tail(first_watch, Cursor.parse("", id), (), ProtobufEncoding(), text=False)
        writer.write([(OUT, b"one\n")], time.time_ns())
        found: list[Response] = []
        while data(found, OUT) != b"one\n":
            found += map(Response.FromString, await first.read() or ())
        second = harness.tails.tail(second_watch, first.cursor, (), ProtobufEncoding(), text=False)
        reads = harness.tails.cache.reads
        reading = asyncio.ensure_future(second.read())
        await asyncio.sleep(0)
        # It has looked whether the file is watched, and goes on to the output. Only now comes the notification of what
        # it knows already.
        assert second_watch.log.output is not None
        second_watch.log.output.watch.notify()
        while harness.tails.cache.reads == reads:  # noqa: ASYNC110  pass by pass: the read that begins is not to be answered yet
            await asyncio.sleep(0)
        all_threads_are_free(harness.tails)
        writer.write([(OUT, b"two\n")], time.time_ns())
        assert data([*found, *map(Response.FromString, await first.read() or ())], OUT) == b"one\ntwo\n"
        await reading


def all_threads_are_free(tails: Tails) -> None:
    """Holds the loop until what they read is read."""
    together = threading.Barrier(4)
    for each in [tails._threads.submit(together.wait) for _ in range(4)]:
        each.result()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_damage_at_the_very_end_is_a_gap_and_not_silence(harness: LogHarness) -> None:
    id = new_id()
    writer = harness.writer(id)
    writer.write([(OUT, b"first")], time.time_ns())
    whole = harness.logs.output_path(id).stat().st_size
    writer.write([(OUT, b"second"), (ERR, b"third")], time.time_ns())
    trailer = writer.seal(0, {}, time.time_ns())
    with harness.logs.output_path(id).open("r+b") as file:
        file.seek(whole + 20)
        file.write(b"\0\0")
    messages = await harness.rest(id, totals=trailer.totals)
    assert [(gap.source, gap.offset, gap.missing_bytes) for gap in (m.gap for m in messages if m.HasField("gap"))] == [
        (1, 5, 6),
        (2, 0, 5),
    ]
    assert data(messages, OUT) == b"first??????"
    assert await harness.rest(id, messages[-1].cursor, totals=trailer.totals) == []


PIECES = st.lists(
    st.tuples(
        st.sampled_from([OUT, ERR, SYSTEM, None]),
        st.sampled_from(["x", "ß", "€uro\n", "long" * 7_000, "", "\N{GRINNING FACE}"]),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(pieces=PIECES, cuts=st.lists(st.integers(0, 10_000), max_size=8), as_text=st.booleans(), split=st.integers(1, 5))
async def test_a_reader_that_is_cut_off_at_random_points_gets_each_byte_once(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[Source | None, str]],
    cuts: list[int],
    as_text: bool,
    split: int,
) -> None:
    harness = LogHarness(tmp_path_factory.mktemp("logs"))
    id = new_id()
    writer = harness.writer(id)
    wanted = {OUT: "", ERR: "", SYSTEM: ""}
    for source, piece in pieces:
        if source is None:
            writer.gap(OUT, None, Cause.ENGINE, time.time_ns())
        elif source is SYSTEM:
            harness.logs.system(id, piece)
            wanted[SYSTEM] += told_line(piece) + "\n"
        else:
            raw = piece.encode()
            wanted[source] += piece
            for part in (raw[:split], raw[split:]):
                writer.write([(source, part)], time.time_ns())
    gaps = sum(source is None for source, _ in pieces)
    # Once without a cut, then from cuts: after each, the reader goes on from the last cursor it got.
    whole = await harness.rest(id, text=as_text)
    cursor, received = "", list[pb.StreamExecutionLogsResponse]()
    for cut in cuts:
        read = (await harness.rest(id, cursor, text=as_text))[: cut % 5]
        received += read
        cursor = read[-1].cursor if read else cursor
    received += await harness.rest(id, cursor, text=as_text)
    for source, expected in wanted.items():
        if as_text and not (
            source is OUT and gaps
        ):  # A gap may stand within a character: both halves are replaced then.
            assert text(received, source) == text(whole, source) == expected
        elif not as_text:
            assert data(received, source) == data(whole, source) == expected.encode()
    assert sum(message.HasField("gap") for message in received) == gaps
    harness.close_parts()


async def test_a_system_line_is_one_printable_line_whatever_is_in_it(harness: LogHarness) -> None:
    id = new_id()
    harness.logs.system(
        id, "told to stop by a caller (x)\nsucceeded: exited with 0\n\x1b]52;c;aGVsbG8=\x07\u202e\x9b31m \udc9b"
    )
    harness.logs.system(id, "the registry says: " + "y\r\n" * 100_000)
    first, second = data(await harness.rest(id), SYSTEM).decode().removesuffix("\n").split("\n")
    assert first == "told to stop by a caller (x) succeeded: exited with 0  ]52;c;aGVsbG8=   31m  "
    assert (len(second), second.isprintable(), second[-1]) == (MAX_TOLD_CHARACTERS, True, "…")


async def test_a_system_line_shows_no_password_of_a_url(harness: LogHarness) -> None:
    id = new_id()
    harness.logs.system(id, "pulling: proxyconnect http://user:hunter2@proxy:3128: refused")
    assert data(await harness.rest(id), SYSTEM) == b"pulling: proxyconnect http://user:***@proxy:3128: refused\n"


async def test_fastlane_s_own_lines_are_bounded_and_say_what_they_dropped(harness: LogHarness) -> None:
    id = new_id()
    for number in range(1000):
        harness.logs.system(id, f"{number} " + "x" * 1900)
    totals = harness.logs.seal_system(id)
    assert harness.logs.system_path(id).stat().st_blocks * 512 <= (1 << 20) + (64 << 10)
    messages = await harness.rest(id, totals=totals)
    lines = data(messages, SYSTEM)
    assert lines.startswith(b"0 xxx")
    assert lines.endswith(b"x\n")
    [gap] = [message.gap for message in messages if message.HasField("gap")]
    assert (gap.cause, gap.missing_bytes) == (pb.LogGap.CAUSE_SIZE_LIMIT, totals[0].missing_bytes)
    assert len(lines) == totals[0].bytes
