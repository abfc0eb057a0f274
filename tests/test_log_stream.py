"""StreamExecutionLogs over real gRPC: where a stream begins, and where one goes on that was cut. No engine: the test is
the runner."""

import os
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastlane_grpc.model import Cause, Execution, Source, new_id, utc_now
from fastlane_grpc.record import RecordWriter
from fastlane_grpc.store import PruneQuery
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness, detail, info, reason

OUT, ERR, SYSTEM = Source.STDOUT, Source.STDERR, Source.SYSTEM
SECOND = 1_000_000_000


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


async def running(harness: RpcHarness) -> tuple[Execution, RecordWriter]:
    await harness.enqueue()
    return await harness.begin()


async def read(harness: RpcHarness, execution_id: str, **request: object) -> list[pb.StreamExecutionLogsResponse]:
    """All messages of a stream that ends; the first one is the state."""
    messages = [message async for message in harness.stream(execution_id, **request)]
    assert messages[0].WhichOneof("event") == "state"
    assert messages[-1].WhichOneof("event") == "end"
    return messages


Stream: TypeAlias = "grpc.aio.UnaryStreamCall[object, pb.StreamExecutionLogsResponse]"


async def next_of(stream: Stream) -> pb.StreamExecutionLogsResponse:
    message = await stream.read()
    assert isinstance(message, pb.StreamExecutionLogsResponse)
    return message


async def rest_of(stream: Stream) -> list[pb.StreamExecutionLogsResponse]:
    """Up to its end."""
    messages = [await next_of(stream)]
    while not messages[-1].HasField("end"):
        messages.append(await next_of(stream))
    assert await stream.read() is grpc.aio.EOF
    return messages


def data(messages: Sequence[pb.StreamExecutionLogsResponse], source: Source) -> bytes:
    return b"".join(chunk.data for message in messages for chunk in message.chunks if chunk.source == int(source))


def all_of(messages: Sequence[pb.StreamExecutionLogsResponse]) -> dict[Source, bytes]:
    return {source: data(messages, source) for source in Source}


def events(messages: Sequence[pb.StreamExecutionLogsResponse]) -> list[str]:
    return [message.WhichOneof("event") or "chunks" for message in messages]


def at(time_ns: int) -> Timestamp:
    return Timestamp(seconds=time_ns // SECOND, nanos=time_ns % SECOND)


# -- the last lines


async def test_the_last_lines_of_both_sources_together_and_our_own_from_there_on(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    harness.logs.system(execution.id, "pulled")
    writer.write([(OUT, b"1\n2\n"), (ERR, b"a\n"), (OUT, b"3\n4")], time.time_ns())
    harness.logs.system(execution.id, "between")
    writer.write([(OUT, b"\n"), (ERR, b"b\n"), (OUT, b"5\n6")], time.time_ns())
    harness.logs.system(execution.id, "told to stop")
    # Both with what runs and with what has ended.
    for follow in (False, True):
        messages = await read(harness, execution.id, tail_lines=4, follow=follow)
        # Line 4 began before the line of ours, so that comes after its begin.
        assert all_of(messages) == {OUT: b"4\n5\n6", ERR: b"b\n", SYSTEM: b"between\ntold to stop\n"}
        (first, *_) = [chunk for message in messages for chunk in message.chunks]
        assert (first.data, first.offset) == (b"4", 6)
        messages = await read(harness, execution.id, tail_lines=3, follow=follow)
        assert all_of(messages) == {OUT: b"5\n6", ERR: b"b\n", SYSTEM: b"told to stop\n"}
        messages = await read(harness, execution.id, tail_lines=2, follow=follow)
        assert all_of(messages) == {OUT: b"5\n6", ERR: b"", SYSTEM: b"told to stop\n"}
        messages = await read(harness, execution.id, tail_lines=8, follow=follow)
        assert all_of(messages) == {
            OUT: b"1\n2\n3\n4\n5\n6",
            ERR: b"a\nb\n",
            SYSTEM: b"pulled\nbetween\ntold to stop\n",
        }
        if not follow:
            await harness.finish(execution, writer)


async def test_only_lines_of_the_sources_asked_for_are_counted(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    harness.logs.system(execution.id, "one of ours")
    harness.logs.system(execution.id, "another one")
    for number in range(10):
        writer.write([(OUT, b"%d\n" % number), (ERR, b"e%d\n" % number)], time.time_ns())
    await harness.finish(execution, writer)
    assert all_of(await read(harness, execution.id, tail_lines=2, sources=[1])) == {
        OUT: b"8\n9\n",
        ERR: b"",
        SYSTEM: b"",
    }
    assert all_of(await read(harness, execution.id, tail_lines=2, sources=[2, 3])) == {
        OUT: b"",
        ERR: b"e8\ne9\n",
        SYSTEM: b"",
    }
    assert all_of(await read(harness, execution.id, tail_lines=1, sources=[3])) == {
        OUT: b"",
        ERR: b"",
        SYSTEM: b"another one\n",
    }
    # Who then wants other sources gets them from that place on.
    (state, *_) = await read(harness, execution.id, tail_lines=2, sources=[1])
    assert all_of(await read(harness, execution.id, cursor=state.cursor)) == {
        OUT: b"8\n9\n",
        ERR: b"e8\ne9\n",
        SYSTEM: b"",
    }


async def test_the_first_cursor_is_the_begin_that_was_found(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    for number in range(1000):
        writer.write([(OUT, b"%d\n" % number * 50), (ERR, b"e%d\n" % number)], time.time_ns())
    stream = harness.stream(execution.id, tail_lines=120)
    first = await next_of(stream)
    assert first.WhichOneof("event") == "state"
    stream.cancel()
    # While it was away more was printed; its request still says how many lines it wanted.
    writer.write([(OUT, b"more\n" * 500)], time.time_ns())
    await harness.finish(execution, writer)
    rest = await read(harness, execution.id, tail_lines=120, since_time=at(time.time_ns()), cursor=first.cursor)
    assert data(rest, OUT) == b"997\n" * 17 + b"998\n" * 50 + b"999\n" * 50 + b"more\n" * 500
    assert data(rest, ERR) == b"e997\ne998\ne999\n"


async def test_from_now_on_means_nothing_that_is_there(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    harness.logs.system(execution.id, "before")
    writer.write([(OUT, b"before\nhalf")], time.time_ns())
    assert events(await read(harness, execution.id, tail_lines=0, follow=False)) == ["state", "end"]
    stream = harness.stream(execution.id, tail_lines=0)
    await next_of(stream)
    harness.logs.system(execution.id, "after")
    writer.write([(OUT, b" a line\n")], time.time_ns())
    await harness.finish(execution, writer)
    assert all_of(await rest_of(stream)) == {OUT: b" a line\n", ERR: b"", SYSTEM: b"after\n"}
    assert events(await read(harness, execution.id, tail_lines=0)) == ["state", "end"]


async def test_what_is_queued_has_no_lines_and_all_that_comes_is_given(harness: RpcHarness) -> None:
    await harness.enqueue()
    job = await harness.enqueue()
    for begin in ({"tail_lines": 0}, {"tail_lines": 5}, {"since_time": at(time.time_ns())}):
        assert events(await read(harness, job.execution.id, follow=False, **begin)) == ["state", "end"]
    streams = [harness.stream(job.execution.id, **begin) for begin in ({"tail_lines": 0}, {"tail_lines": 5})]
    for stream in streams:
        await next_of(stream)
    await harness.begin()
    execution, writer = await harness.begin()
    assert execution.id == job.execution.id
    writer.write([(OUT, b"".join(b"%d\n" % number for number in range(9)))], time.time_ns())
    await harness.finish(execution, writer)
    for stream in streams:
        assert data(await rest_of(stream), OUT) == b"0\n1\n2\n3\n4\n5\n6\n7\n8\n"


async def test_a_last_line_that_is_cut_within_a_character_is_text_all_the_same(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, "eins\nzwölf\n".encode()[:8])], time.time_ns())
    stream = harness.stream(execution.id, tail_lines=1, text=True)
    await next_of(stream)
    writer.write([(OUT, "eins\nzwölf\n".encode()[8:])], time.time_ns())
    await harness.finish(execution, writer)
    chunks = [chunk for message in await rest_of(stream) for chunk in message.chunks]
    assert ("".join(chunk.text for chunk in chunks), chunks[0].offset) == ("zwölf\n", 5)


async def test_a_torn_frame_at_the_end_of_a_live_log_is_waited_for(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"1\n2\n")], time.time_ns())
    record = harness.logs.output_path(execution.id)
    whole = record.stat().st_size
    writer.write([(OUT, b"3\n4\n")], time.time_ns())
    written = record.read_bytes()
    os.truncate(record, whole + 17)
    stream = harness.stream(execution.id, tail_lines=1)
    await next_of(stream)
    first = await next_of(stream)
    assert data([first], OUT) == b"2\n"
    with record.open("r+b") as file:
        file.write(written)
    await harness.finish(execution, writer)
    assert data(await rest_of(stream), OUT) == b"3\n4\n"


async def test_a_begin_that_is_none_is_refused_by_name(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    for field, value in (
        ("tail_lines", -1),
        ("tail_lines", 1_000_001),
        ("since_time", Timestamp(seconds=1, nanos=-1)),
        ("since_time", Timestamp(seconds=1 << 40)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await harness.stream(job.execution.id, **{field: value}).read()
        assert reason(refused.value) == "INVALID_FIELD"
        faults = detail(refused.value, error_details_pb2.BadRequest)
        assert faults is not None
        assert [fault.field for fault in faults.field_violations] == [field]
    for begin in (
        {"tail_lines": 1_000_000},
        {"since_time": Timestamp(seconds=-1)},
        {"since_time": Timestamp(seconds=1 << 37)},
    ):
        assert events(await read(harness, job.execution.id, follow=False, **begin)) == ["state", "end"]


# -- since a time


async def test_what_came_since_a_time_and_of_that_the_last_lines(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    now = time.time_ns()
    harness.logs.system(execution.id, "of now")
    for second in range(10):
        writer.write([(OUT, b"%d\n" % second), (ERR, b"e%d\n" % second)], now - (20 - second) * SECOND)
    await harness.finish(execution, writer)
    since = at(now - 15 * SECOND)
    assert all_of(await read(harness, execution.id, since_time=since)) == {
        OUT: b"5\n6\n7\n8\n9\n",
        ERR: b"e5\ne6\ne7\ne8\ne9\n",
        SYSTEM: b"of now\n",
    }
    # Whichever of the two is the later one.
    assert data(await read(harness, execution.id, since_time=since, tail_lines=4), OUT) == b"8\n9\n"
    assert data(await read(harness, execution.id, since_time=since, tail_lines=14), OUT) == b"5\n6\n7\n8\n9\n"
    assert data(await read(harness, execution.id, since_time=since, tail_lines=1000), OUT) == b"5\n6\n7\n8\n9\n"
    assert all_of(await read(harness, execution.id, since_time=at(now + 3600 * SECOND))) == dict.fromkeys(Source, b"")


# -- waiting


async def ahead(harness: RpcHarness, job: pb.Job) -> list[int]:
    """What GetJob, GetExecution and a stream say of how many go before it."""
    by_job = await harness.jobs.GetJob(pb.GetJobRequest(job_id=job.id))
    by_execution = await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=job.execution.id))
    (state, *_) = await read(harness, job.execution.id, follow=False)
    return [each.waiting.ahead for each in (by_job.job.execution, by_execution.execution, state.state)]


async def test_who_waits_is_told_for_what_and_how_many_go_before(harness: RpcHarness) -> None:
    jobs = [await harness.enqueue() for _ in range(3)]
    assert [await ahead(harness, job) for job in jobs] == [[0] * 3, [1] * 3, [2] * 3]
    execution, _ = await harness.begin()
    assert await ahead(harness, jobs[2]) == [1] * 3
    (state, *_) = await read(harness, jobs[2].execution.id, follow=False)
    assert (state.state.waiting.reason, state.state.waiting.detail) == (
        pb.WAIT_REASON_NO_FREE_SLOT,
        "8 of 8 slots in use",
    )
    harness.places.host_error = "host 'local' does not answer"
    (state, *_) = await read(harness, jobs[2].execution.id, follow=False)
    assert (state.state.waiting.reason, state.state.waiting.detail) == (
        pb.WAIT_REASON_HOST_DOWN,
        "host 'local' does not answer",
    )
    (state, *_) = await read(harness, execution.id, follow=False)
    assert not state.state.HasField("waiting")


async def test_a_reader_gets_changes_of_what_it_waits_for_and_else_heartbeats(harness: RpcHarness) -> None:
    await harness.enqueue()
    job = await harness.enqueue()
    stream = harness.stream(job.execution.id, heartbeat_interval=Duration(seconds=1), sources=[1])
    assert (await next_of(stream)).state.waiting.ahead == 1
    assert (await next_of(stream)).HasField("heartbeat")
    await harness.begin()
    change = await next_of(stream)
    assert (change.state.state, change.state.waiting.ahead) == (pb.STATE_QUEUED, 0)
    harness.places.host_error = "it is down"
    assert (await next_of(stream)).state.waiting.reason == pb.WAIT_REASON_HOST_DOWN
    assert (await next_of(stream)).HasField("heartbeat")
    stream.cancel()


async def test_a_reader_of_a_queued_execution_writes_nothing(harness: RpcHarness) -> None:
    jobs = [await harness.enqueue() for _ in range(2)]
    execution_id = jobs[1].execution.id
    stream = harness.stream(execution_id, heartbeat_interval=Duration(seconds=1))
    (first, *others) = [await next_of(stream) for _ in range(4)]
    waiting = first.state.waiting
    assert (waiting.detail, waiting.ahead) == ("8 of 8 slots in use", 1)
    assert [message.WhichOneof("event") for message in others] == ["heartbeat"] * 3
    assert not harness.logs.path(execution_id).exists()
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=jobs[1].id))
    *_, last = await rest_of(stream)
    assert (last.end.sealed, list(last.end.totals)) == (True, [])


async def go_back_to_the_queue(harness: RpcHarness, jobs: Sequence[pb.Job], line: str) -> None:
    """Claim these jobs, the only ones, have a line about each, and requeue their executions as a runner does."""
    await harness.store.claim_on(["local"] * len(jobs))
    for job in jobs:
        harness.logs.system(job.execution.id, line)
        totals, log_bytes = harness.logs.close_system(job.execution.id)
        await harness.store.requeue(job.execution.id, logs=totals, log_bytes=log_bytes)


async def test_a_requeued_execution_that_is_stopped_has_its_lines_in_its_totals(harness: RpcHarness) -> None:
    jobs = [await harness.enqueue() for _ in range(2)]
    line = b"host local does not answer: back in the queue\n"
    await go_back_to_the_queue(harness, jobs, line.decode().strip())
    requeued = await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=jobs[0].execution.id))
    assert list(requeued.execution.logs) == []
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=jobs[0].id))
    await harness.executions.StopExecution(pb.StopExecutionRequest(execution_id=jobs[1].execution.id))
    for job in jobs:
        stopped = await harness.executions.GetExecution(pb.GetExecutionRequest(execution_id=job.execution.id))
        messages = await read(harness, job.execution.id)
        assert data(messages, SYSTEM) == line
        assert list(messages[-1].end.totals) == list(stopped.execution.logs)
        (total,) = stopped.execution.logs
        assert (total.source, total.bytes, total.missing_bytes, total.crc32) == (3, len(line), 0, zlib.crc32(line))


async def test_a_requeued_execution_that_is_stopped_is_known_to_retention(harness: RpcHarness) -> None:
    jobs = [await harness.enqueue() for _ in range(2)]
    await go_back_to_the_queue(harness, jobs, "host local does not answer: back in the queue")
    # One that is queued is not due, whatever its log takes.
    assert (await harness.store.retention_totals()).oldest_log_time is None
    assert await harness.store.oldest(PruneQuery(utc_now(), logs_only=True), limit=10) == []
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=jobs[0].id))
    await harness.executions.StopExecution(pb.StopExecutionRequest(execution_id=jobs[1].execution.id))
    assert open_below(harness.logs.directory) == []
    found = await harness.store.oldest(PruneQuery(utc_now(), logs_only=True), limit=10)
    assert {each.execution_id: each.log_bytes for each in found} == {
        job.execution.id: harness.logs.room(job.execution.id) for job in jobs
    }
    kept = await harness.store.retention_totals()
    assert kept.log_bytes == sum(each.log_bytes for each in found)
    assert kept.oldest_log_time is not None


def open_below(directory: Path) -> list[Path]:
    opened = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [path for path in opened if path.is_relative_to(directory)]


# -- cursors


async def refusal(stream: Stream) -> grpc.aio.AioRpcError:
    """What the stream ends with, whatever came before."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rest_of(stream)
    return refused.value


async def test_a_cursor_that_is_damaged_or_of_another_execution_is_always_refused(
    harness: RpcHarness,
) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"abc")], time.time_ns())
    id, other = execution.id, new_id()
    for cursor in (
        "x",
        f"1.{id}.1.2.3",
        f"1.{id}.01.0.0.1",
        f"1.{id}.-1.0.0.1",
        f"2.{id}.0.0.0.0",
        f"1.{id}.0.0.0.0\n",
        "1." * 5_000,
    ):
        refused = await refusal(harness.stream(id, cursor=cursor, follow=False, tail_lines=1))
        assert (refused.code(), reason(refused)) == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_INVALID")
    refused = await refusal(harness.stream(id, cursor=f"1.{other}.0.0.0.0", text=True, since_time=at(0)))
    assert (refused.code(), reason(refused)) == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_OF_ANOTHER_EXECUTION")
    assert info(refused).metadata["execution_id"] == other


async def test_a_cursor_ahead_of_a_log_that_grows_waits_until_it_is_reached(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"abc"), (ERR, b"x")], time.time_ns())
    ahead = f"1.{execution.id}.5.0.0.9"
    stream = harness.stream(execution.id, cursor=ahead)
    assert (await next_of(stream)).cursor == ahead
    assert data([await next_of(stream)], ERR) == b"x"
    # Who does not follow is not told that it is ahead: it may yet be reached.
    messages = await read(harness, execution.id, cursor=ahead, sources=[1], follow=False)
    assert (events(messages), messages[-1].end.sealed) == (["state", "end"], False)
    assert messages[-1].cursor.startswith(f"1.{execution.id}.5.")
    writer.write([(OUT, b"defg")], time.time_ns())
    await harness.finish(execution, writer)
    (chunk,) = [chunk for message in await rest_of(stream) for chunk in message.chunks]
    assert (chunk.offset, chunk.data) == (5, b"fg")


async def test_a_cursor_that_is_never_reached_is_out_of_range_at_the_seal(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"abc")], time.time_ns())
    streams = [
        harness.stream(execution.id, cursor=f"1.{execution.id}.{place}", text=text)
        for place in AHEAD
        for text in (False, True)
    ]
    for stream in streams:
        assert (await next_of(stream)).HasField("state")
    await harness.finish(execution, writer)
    late = [harness.stream(execution.id, cursor=f"1.{execution.id}.{place}", follow=False) for place in AHEAD]
    for stream in [*streams, *late]:
        refused = await refusal(stream)
        assert (refused.code(), reason(refused)) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
        # The cursor that comes with it is the end of the log.
        rest = await read(harness, execution.id, cursor=info(refused).metadata["cursor"])
        assert events(rest)[-1:] == ["end"]
        assert all_of(rest) == dict.fromkeys(Source, b"")


AHEAD = ["4.0.0.1", "3.1.0.1", "0.0.1.0", "999999999999999999.0.0.0"]


async def test_text_goes_on_in_the_middle_of_a_character(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    whole = "a€b€c".encode()
    writer.write([(OUT, whole[:3])], time.time_ns())
    stream = harness.stream(execution.id, text=True)
    first = [await next_of(stream), await next_of(stream)]
    stream.cancel()
    # The cursor stands before the character of which only a part was there: whoever goes on from it gets the whole.
    assert [chunk.text for message in first for chunk in message.chunks] == ["a"]
    writer.write([(OUT, whole[3:])], time.time_ns())
    await harness.finish(execution, writer)
    rest = await read(harness, execution.id, text=True, cursor=first[-1].cursor)
    chunks = [chunk for message in rest for chunk in message.chunks]
    assert ("".join(chunk.text for chunk in chunks), chunks[0].offset) == ("€b€c", 1)
    assert data(await read(harness, execution.id, cursor=first[-1].cursor), OUT) == whole[1:]
    # One who took bytes may stand within it.
    rest = await read(harness, execution.id, text=True, cursor=f"1.{execution.id}.2.0.0.1")
    chunks = [chunk for message in rest for chunk in message.chunks]
    assert ("".join(chunk.text for chunk in chunks), chunks[0].offset) == ("\ufffd\ufffdb€c", 2)


async def test_who_goes_on_with_other_sources_gets_what_is_after_the_cursor(harness: RpcHarness) -> None:
    execution, writer = await running(harness)
    writer.write([(OUT, b"1"), (ERR, b"a")], time.time_ns())
    harness.logs.system(execution.id, "first")
    writer.write([(OUT, b"2"), (ERR, b"b")], time.time_ns())
    harness.logs.system(execution.id, "second")
    writer.write([(OUT, b"3"), (ERR, b"c")], time.time_ns())
    await harness.finish(execution, writer)
    half = next(message for message in await read(harness, execution.id) if b"2" in data([message], OUT)).cursor
    assert all_of(await read(harness, execution.id, cursor=half, sources=[1, 3])) == {
        OUT: b"3",
        ERR: b"",
        SYSTEM: b"second\n",
    }
    # What was passed over of a source that was not asked for does not come later.
    only = [message for message in await read(harness, execution.id, sources=[1]) if message.chunks]
    assert all_of(await read(harness, execution.id, cursor=only[-1].cursor))[OUT] == b""
    assert data(await read(harness, execution.id, cursor=f"1.{execution.id}.0.2.0.2"), ERR) == b"c"


# -- against a model

PIECES = st.lists(
    st.tuples(
        st.sampled_from([OUT, ERR, SYSTEM, None]),
        st.sampled_from([b"\n", b"ab", b"c\nd", b"line\n", b"\n\n\n", b"wide" * 8_000, b"x" * 65_000 + b"\n"]),
    ),
    max_size=25,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    pieces=PIECES,
    tail_lines=st.one_of(st.none(), st.integers(0, 30)),
    since=st.one_of(st.none(), st.integers(0, 30)),
    wanted=st.sets(st.sampled_from(list(Source))),
    sealed=st.booleans(),
    cut=st.integers(0, 4),
)
@example(
    pieces=[(OUT, b"\n"), (None, b""), (SYSTEM, b"\n"), (OUT, b"\n"), (OUT, b"\n")],
    tail_lines=2,
    since=None,
    wanted=set(),
    sealed=False,
    cut=0,
)
@pytest.mark.slow
async def test_any_begin_of_any_log_is_what_the_model_says(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[Source | None, bytes]],
    tail_lines: int | None,
    since: int | None,
    wanted: set[Source],
    sealed: bool,
    cut: int,
) -> None:
    harness = RpcHarness(tmp_path_factory.mktemp("harness"))
    await harness.server.start()
    execution, writer = await running(harness)
    # Of each byte: when it came, whence and which; no byte is a gap.
    came: list[tuple[int, Source, bytes]] = []
    system = RecordWriter.create(harness.logs.system_path(execution.id), execution_id=execution.id, capture="system")
    for second, (source, piece) in enumerate(pieces):
        if source is None:
            writer.gap(OUT, None, Cause.ENGINE, second * SECOND)
            came.append((second, OUT, b""))
            continue
        (system if source is SYSTEM else writer).write([(source, piece)], second * SECOND)
        came += [(second, source, piece[place : place + 1]) for place in range(len(piece))]
    if sealed:
        await harness.finish(execution, writer)
    request: dict[str, object] = {"follow": sealed, "sources": [int(source) for source in wanted]}
    if tail_lines is not None:
        request["tail_lines"] = tail_lines
    if since is not None:
        request["since_time"] = at(since * SECOND)
    messages = await read(harness, execution.id, **request)
    expected = model(came, tail_lines, since, wanted or set(Source))
    assert all_of(messages) == expected
    # Whoever is cut anywhere goes on from there, whatever else the request says.
    messages = messages[: 1 + cut % len(messages)]
    rest = await read(harness, execution.id, **request, cursor=messages[-1].cursor)
    assert all_of([*messages, *rest]) == expected
    system.close()
    await harness.close()


def model(
    came: Sequence[tuple[int, Source, bytes]], tail_lines: int | None, since: int | None, wanted: set[Source]
) -> dict[Source, bytes]:
    """What is to be sent of bytes in their order: of each source the rest from the later of its two begins on."""
    counted = wanted & {OUT, ERR} or {SYSTEM}
    begins = dict.fromkeys(Source, 0)
    if since is not None:
        begins = {
            source: next((n for n, (second, *_) in enumerate(came) if second >= since), len(came)) for source in Source
        }
    if tail_lines is not None:
        lines = lines_of(came, counted)
        if tail_lines == 0:
            begins = dict.fromkeys(Source, len(came))
        elif len(lines) > tail_lines:
            last = lines[-tail_lines:]
            first = min(begin for _, _, begin in last)
            for source in Source:
                own = min(
                    (begin for _, its, begin in last if its is source),
                    default=len(came) if source in counted else first,
                )
                begins[source] = max(begins[source], own)
    return {
        source: b"".join(byte for n, (_, its, byte) in enumerate(came) if its is source and n >= begins[source])
        if source in wanted
        else b""
        for source in Source
    }


def lines_of(came: Sequence[tuple[int, Source, bytes]], counted: set[Source]) -> list[tuple[int, Source, int]]:
    """Of each line the place of its end, its source, and the place of its first byte, or of a gap before that; by their
    ends."""
    open_lines: dict[Source, tuple[int, int]] = {}
    gaps: dict[Source, int] = {}
    lines = []
    for place, (_, source, byte) in enumerate(came):
        if source not in counted:
            continue
        if not byte:
            gaps.setdefault(source, place)
            continue
        begin, _ = open_lines.get(source, (gaps.get(source, place), place))
        gaps.pop(source, None)
        open_lines[source] = (begin, place)
        if byte == b"\n":
            lines.append((place, source, begin))
            del open_lines[source]
    return sorted([*lines, *((end, source, begin) for source, (begin, end) in open_lines.items())])
