"""Parts of a log over real gRPC: from a line by its number, up to a cursor, and backwards page by page."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlane_grpc.client import AsyncClient, Client, Output, StateChange
from fastlane_grpc.model import Cause, Execution, Source
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.record.format import BLOCK_BYTES
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness, reason
from tests.record_model import punch

OUT, ERR, SYSTEM = Source.STDOUT, Source.STDERR, Source.SYSTEM
SECOND = 1_000_000_000

PIECES = st.lists(
    st.tuples(
        st.sampled_from([OUT, OUT, ERR, SYSTEM, None]),
        st.sampled_from([b"\n", b"ab", b"c\nd", b"line\n", b"\n\n\n", b"wide" * 8_000, b"x" * 65_000 + b"\n"]),
    ),
    max_size=25,
)
Messages = Sequence[pb.StreamExecutionLogsResponse]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


async def running(harness: RpcHarness) -> tuple[Execution, RecordWriter]:
    await harness.enqueue()
    return await harness.begin()


async def read(harness: RpcHarness, execution_id: str, **request: object) -> Messages:
    messages = [message async for message in harness.stream(execution_id, **request)]
    assert messages[-1].WhichOneof("event") == "end"
    return messages


def all_of(messages: Messages) -> dict[Source, bytes]:
    return {
        source: b"".join(chunk.data for message in messages for chunk in message.chunks if chunk.source == int(source))
        for source in Source
    }


def gaps_of(messages: Messages) -> list[tuple[int, int]]:
    return [(message.gap.source, message.gap.offset) for message in messages if message.HasField("gap")]


def joined(first: dict[Source, bytes], second: dict[Source, bytes]) -> dict[Source, bytes]:
    return {source: first[source] + second[source] for source in Source}


def newlines_of(messages: Messages, wanted: set[Source]) -> int:
    counted = wanted & {OUT, ERR} or {SYSTEM}
    return sum(chunk.data.count(b"\n") for message in messages for chunk in message.chunks if chunk.source in counted)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    pieces=PIECES,
    wanted=st.sets(st.sampled_from(list(Source))),
    others=st.sets(st.sampled_from(list(Source))),
    sealed=st.booleans(),
    page=st.integers(1, 6),
    seed=st.integers(0, 1 << 32),
)
@pytest.mark.slow
async def test_what_is_before_a_cursor_and_what_is_after_it_is_the_log(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[Source | None, bytes]],
    wanted: set[Source],
    others: set[Source],
    sealed: bool,
    page: int,
    seed: int,
) -> None:
    choose = random.Random(seed)
    harness = RpcHarness(tmp_path_factory.mktemp("harness"))
    await harness.server.start()
    execution, writer = await running(harness)
    system = RecordWriter.create(harness.logs.system_path(execution.id), execution_id=execution.id, capture="system")
    for second, (source, piece) in enumerate(pieces):
        if source is None:
            writer.gap(OUT, None, Cause.ENGINE, second * SECOND)
        else:
            (system if source is SYSTEM else writer).write([(source, piece)], second * SECOND)
    if sealed:
        await harness.finish(execution, writer)
    base: dict[str, object] = {"follow": False, "sources": [int(each) for each in wanted]}
    whole = await read(harness, execution.id, **base)
    expected = all_of(whole)
    # Cursors from any message of readers of any sources, from any start.
    elsewhere: dict[str, object] = {"follow": False, "sources": [int(each) for each in others]}
    other = await read(harness, execution.id, **elsewhere, tail_lines=choose.randrange(8))
    cursors = [message.cursor for message in [*whole, *other]]
    for cursor in {choose.choice(cursors), choose.choice(cursors)}:
        before = await read(harness, execution.id, **base, before_cursor=cursor)
        after = await read(harness, execution.id, **base, cursor=cursor)
        assert joined(all_of(before), all_of(after)) == expected
        assert gaps_of(before) + gaps_of(after) == gaps_of(whole)
        # Backwards, page by page; each page has its number of lines, but the first one.
        end, text = cursor, dict.fromkeys(Source, b"")
        while True:
            messages = await read(harness, execution.id, **base, before_cursor=end, tail_lines=page, number_lines=True)
            assert not messages[-1].end.sealed
            assert messages[-1].end.exit_status == 75
            text = joined(all_of(messages), text)
            first = messages[0].first_line
            lines = newlines_of(messages, wanted or set(Source))
            assert lines == page or (lines < page and first == 1)
            end = messages[0].cursor
            if first == 1:
                break
        rest = await read(harness, execution.id, **base, before_cursor=end)
        assert joined(joined(all_of(rest), text), all_of(after)) == expected
    # From any line on: its number is that of the newlines before it.
    count = newlines_of(whole, wanted or set(Source))
    for number in {1, choose.randrange(1, count + 2), count + 1, count + 5}:
        from_line = await read(harness, execution.id, **base, start_line=number, number_lines=True)
        assert from_line[0].first_line == min(number, count + 1)
        assert newlines_of(from_line, wanted or set(Source)) == max(count - number + 1, 0)
        before = await read(harness, execution.id, **base, before_cursor=from_line[0].cursor)
        assert joined(all_of(before), all_of(from_line)) == expected
    system.close()
    await harness.close()


async def test_a_line_after_a_hole_has_the_number_it_always_had(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    for number in range(60_000):
        writer.write([(OUT, b"line %6d\n" % number)], number)
    path = harness.logs.output_path(execution.id)
    punch(path, 3 * BLOCK_BYTES, 10 * BLOCK_BYTES)
    messages = await read(harness, execution.id, follow=False, number_lines=True)
    line = messages[0].first_line
    gaps = 0
    for message in messages:
        if message.HasField("gap"):
            assert message.first_line > line
            line, gaps = message.first_line, gaps + 1
        for chunk in message.chunks:
            for text in chunk.data.splitlines():
                # Frames hold whole lines here.
                assert text == b"line %6d" % (line - 1)
                line += 1
    assert (gaps, line) == (1, 60_001)


async def test_both_clients_read_a_log_backwards_by_numbered_lines(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    for number in range(1, 11):
        writer.write([(OUT if number % 2 else ERR, b"line %d\n" % number)], number)

    def backwards() -> list[tuple[int | None, list[int]]]:
        pages, cursor = [], ""
        with Client(f"127.0.0.1:{harness.port}") as client:
            while not pages or pages[-1][0] != 1:
                start = {"before_cursor": cursor, "tail_lines": 2} if cursor else {"start_line": 8}
                tail = client.tail(execution.id, follow=False, number_lines=True, **start)  # type: ignore[arg-type]
                first = next(tail)
                assert isinstance(first, StateChange)
                cursor = tail.cursor
                data = b"".join(event.data for event in tail if isinstance(event, Output))
                pages.append((first.first_line, [int(line.split()[1]) for line in data.splitlines()]))
        return pages

    async def backwards_too() -> list[tuple[int | None, list[int]]]:
        pages, cursor = [], ""
        async with AsyncClient(f"127.0.0.1:{harness.port}") as client:
            while not pages or pages[-1][0] != 1:
                start = {"before_cursor": cursor, "tail_lines": 2} if cursor else {"start_line": 8}
                tail = client.tail(execution.id, follow=False, number_lines=True, **start)  # type: ignore[arg-type]
                first = await anext(tail)
                assert isinstance(first, StateChange)
                cursor = tail.cursor
                data = b"".join([event.data async for event in tail if isinstance(event, Output)])
                pages.append((first.first_line, [int(line.split()[1]) for line in data.splitlines()]))
        return pages

    expected = [(8, [8, 9, 10]), (6, [6, 7]), (4, [4, 5]), (2, [2, 3]), (1, [1])]
    assert await asyncio.to_thread(backwards) == expected
    assert await backwards_too() == expected


async def test_a_range_ends_when_its_cursor_is_reached_while_the_job_runs(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"one\n")], 1)
    stored = await read(harness, execution.id, follow=False)
    writer.write([(OUT, b"two\n"), (ERR, b"x")], 2)
    messages = await read(harness, execution.id, before_cursor=stored[-1].cursor)
    assert all_of(messages)[OUT] == b"one\n"
    assert messages[-1].cursor == stored[-1].cursor
    assert messages[-1].end.state == pb.STATE_RUNNING


async def test_text_of_a_range_has_the_cut_character_at_its_end(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"a\xc3")], 1)
    stored = await read(harness, execution.id, follow=False)
    writer.write([(OUT, b"\xa9b")], 2)
    messages = await read(harness, execution.id, before_cursor=stored[-1].cursor, text=True)
    assert "".join(chunk.text for message in messages for chunk in message.chunks) == "a\ufffd"


async def test_a_range_that_makes_no_sense_is_refused_by_name(harness: RpcHarness) -> None:
    execution, _ = await running(harness)
    other = f"1.{'0' * 8}-0000-7000-8000-{'0' * 12}.0.0.0.0"
    cases: list[tuple[dict[str, object], str, str]] = [
        ({"start_line": -1}, "INVALID_FIELD", "start_line"),
        ({"before_cursor": other, "tail_lines": 0}, "INVALID_FIELD", "tail_lines"),
        ({"before_cursor": other}, "CURSOR_OF_ANOTHER_EXECUTION", "before_cursor"),
        ({"before_cursor": "x"}, "CURSOR_INVALID", "before_cursor"),
    ]
    for request, expected, field in cases:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(harness, execution.id, **request)
        assert reason(caught.value) == expected
        assert field in (caught.value.details() or "")
