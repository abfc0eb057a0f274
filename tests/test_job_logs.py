"""StreamJobLogs: the logs of a job's executions one after another, exact at any cut."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlane_grpc.client import AsyncClient, Client, End, Event, ExecutionStart, Gap, JobEnd, Output
from fastlane_grpc.model import Execution, Reason, Source, new_id, utc_now
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.calls import RpcHarness, reason
from tests.cutting_relay import CuttingRelay
from tests.tailing import QUICK

AT_ONCE = pb.Retry(max_retries=9, initial_backoff=duration_pb2.Duration(), jitter=pb.Retry.JITTER_NONE)
LATER = pb.Retry(max_retries=9, initial_backoff=duration_pb2.Duration(seconds=3600), jitter=pb.Retry.JITTER_NONE)
STDOUT, STDERR = Source.STDOUT, Source.STDERR


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RpcHarness]:
    harness = RpcHarness(tmp_path)
    await harness.server.start()
    yield harness
    await harness.close()


async def attempt(harness: RpcHarness, output: Sequence[tuple[Source, bytes]], code: int = 1) -> Execution:
    """Run the next execution: it prints this and exits with this code."""
    execution, writer = await harness.begin()
    for source, data in output:
        writer.write([(source, data)], time.time_ns())
    await harness.finish(execution, writer, code)
    return execution


def stream(harness: RpcHarness, job_id: str, **request: Any) -> Any:
    return harness.jobs.StreamJobLogs(pb.StreamJobLogsRequest(job_id=job_id, **request))


async def read(harness: RpcHarness, job_id: str, **request: Any) -> list[pb.StreamJobLogsResponse]:
    async with asyncio.timeout(20):
        return [message async for message in stream(harness, job_id, **request)]


def shape(messages: Sequence[pb.StreamJobLogsResponse]) -> list[str]:
    return [message.WhichOneof("event") or "chunks" for message in messages]


def outputs(messages: Sequence[pb.StreamJobLogsResponse]) -> list[tuple[int, dict[int, bytes]]]:
    """The attempt of each execution, and what it printed to each source."""
    found: list[tuple[int, dict[int, bytes]]] = []
    for message in messages:
        if message.HasField("execution"):
            found.append((message.execution.execution.attempt, {}))
        for chunk in message.chunks:
            printed = found[-1][1]
            printed[chunk.source] = printed.get(chunk.source, b"") + chunk.data
    return found


async def test_the_attempts_of_a_job_come_one_after_another_up_to_its_end(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE)
    reader = asyncio.create_task(read(harness, job.id))
    for number in (1, 2):
        await attempt(harness, [(STDOUT, b"out %d\n" % number), (STDERR, b"err %d\n" % number)])
    await attempt(harness, [(STDOUT, b"done\n")], code=0)
    messages = await reader
    assert outputs(messages) == [
        (1, {STDOUT: b"out 1\n", STDERR: b"err 1\n"}),
        (2, {STDOUT: b"out 2\n", STDERR: b"err 2\n"}),
        (3, {STDOUT: b"done\n"}),
    ]
    starts = [message.execution for message in messages if message.HasField("execution")]
    assert [start.max_attempts for start in starts] == [10, 10, 10]
    last = messages[-1].job_end
    assert (last.job.state, last.job.executions, last.exit_status) == (pb.STATE_SUCCEEDED, 3, 0)
    assert not last.job.HasField("spec")
    assert outputs(await read(harness, job.id)) == outputs(messages), "a late reader gets the same"


async def test_a_failure_of_a_registry_raises_the_number_of_attempts(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=pb.Retry(max_retries=1, initial_backoff=duration_pb2.Duration()))
    for reason_of_end in (Reason.REGISTRY_UNAVAILABLE, Reason.EXIT_CODE, Reason.EXIT_CODE):
        execution, writer = await harness.begin()
        await harness.finish(execution, writer, 1, reason_of_end)
    starts = [message.execution for message in await read(harness, job.id) if message.HasField("execution")]
    assert [(start.execution.attempt, start.max_attempts) for start in starts] == [(1, 2), (2, 3), (3, 3)]


async def test_between_two_starts_the_messages_are_those_of_the_execution(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE)
    first = await attempt(harness, [(STDOUT, b"a" * 300_000), (STDERR, b"b")])
    second = await attempt(harness, [(STDOUT, b"c")], code=0)
    messages = await read(harness, job.id)
    expected = []
    for execution in (first, second):
        request = pb.StreamExecutionLogsRequest(execution_id=execution.id)
        expected.append([each.SerializeToString() async for each in harness.executions.StreamExecutionLogs(request)])
    got: list[list[bytes]] = []
    for message in messages[:-1]:
        if message.HasField("execution"):
            got.append([])
        else:
            got[-1].append(message.SerializeToString())
    assert got == expected


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    printed=st.lists(
        st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(min_size=1, max_size=70_000)), max_size=5),
        min_size=1,
        max_size=4,
    ),
    sources=st.sampled_from([(), (STDOUT,), (STDOUT, STDERR)]),
    text=st.booleans(),
    tail_lines=st.sampled_from([None, 0, 1, 3]),
    data=st.data(),
)
def test_a_reader_that_resumes_at_any_message_gets_exactly_the_rest(
    tmp_path_factory: pytest.TempPathFactory,
    printed: Sequence[Sequence[tuple[Source, bytes]]],
    sources: Sequence[Source],
    text: bool,
    tail_lines: int | None,
    data: st.DataObject,
) -> None:
    async def check() -> None:
        harness = RpcHarness(tmp_path_factory.mktemp("job"))
        await harness.server.start()
        job = await harness.enqueue(retry=AT_ONCE)
        for number, output in enumerate(printed, 1):
            await attempt(harness, output, code=0 if number == len(printed) else 1)
        how = {"sources": [pb.Source.ValueType(source) for source in sources], "text": text}
        whole = await read(harness, job.id, tail_lines=tail_lines, **how)
        starts = len([each for each in whole if each.HasField("execution")])
        assert starts == (len(printed) if tail_lines is None else 1)
        at = data.draw(st.integers(0, len(whole) - 2))
        rest = await read(harness, job.id, cursor=whole[at].cursor, **how)
        # The end of an execution is told again to a reader that resumes right after it.
        told_again = [whole[at]] if whole[at].HasField("end") else []
        assert _content(rest) == _content([*told_again, *whole[at + 1 :]])
        assert rest[-1] == whole[-1]
        await harness.close()

    asyncio.run(check())


def _content(messages: Sequence[pb.StreamJobLogsResponse]) -> list[tuple[str, str, bytes, str]]:
    """The chunks, and the ends of executions: states and starts are told anew to whoever calls again."""
    content: list[tuple[str, str, bytes, str]] = []
    for message in messages:
        execution_id = message.cursor.split(".")[1]
        for chunk in message.chunks:
            if content and content[-1][:2] == (execution_id, str(chunk.source)):
                *where, data, text = content[-1]
                content[-1] = (where[0], where[1], data + chunk.data, text + chunk.text)
            else:
                content.append((execution_id, str(chunk.source), chunk.data, chunk.text))
        if message.HasField("end"):
            content.append((execution_id, "end", b"", str(message.end.exit_status)))
    return content


async def test_a_reader_is_told_when_the_next_attempt_starts(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=LATER)
    call = stream(harness, job.id)
    await attempt(harness, [(STDOUT, b"x")])
    async with asyncio.timeout(20):
        message = await call.read()
        while message.execution.execution.attempt != 2:
            message = await call.read()
    waiting = message.execution.execution.waiting
    assert waiting.reason == pb.WAIT_REASON_BACKOFF
    assert waiting.due_time.ToNanoseconds() > time.time_ns()
    state = await call.read()
    assert (state.state.state, state.state.waiting) == (pb.STATE_SCHEDULED, waiting)
    call.cancel()


async def test_a_stop_during_the_wait_for_a_retry_ends_the_stream(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=LATER)
    reader = asyncio.create_task(read(harness, job.id))
    await attempt(harness, [(STDOUT, b"x")])
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    messages = await reader
    assert (messages[-1].job_end.job.state, messages[-1].job_end.exit_status) == (pb.STATE_STOPPED, 130)
    assert outputs(messages) == [(1, {STDOUT: b"x"}), (2, {})]


async def test_a_reader_that_does_not_follow_ends_with_what_is_stored(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=LATER)
    await attempt(harness, [(STDOUT, b"x")])
    messages = await read(harness, job.id, follow=False)
    assert outputs(messages) == [(1, {STDOUT: b"x"}), (2, {})]
    assert (messages[-1].job_end.job.state, messages[-1].job_end.exit_status) == (pb.STATE_SCHEDULED, 75)


async def test_a_reader_of_the_last_lines_starts_in_the_newest_execution_that_started(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=LATER)
    first = await attempt(harness, [(STDOUT, b"1\n2\n3\n")])
    messages = await read(harness, job.id, tail_lines=1, follow=False)
    assert outputs(messages) == [(1, {STDOUT: b"3\n"}), (2, {})]
    assert messages[0].execution.execution.id == first.id


async def test_a_reader_since_a_time_starts_in_the_execution_of_that_time(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE)
    await attempt(harness, [(STDOUT, b"old\n")])
    await asyncio.sleep(0.002)
    since = timestamp_pb2.Timestamp()
    since.FromDatetime(utc_now())
    await attempt(harness, [(STDOUT, b"new\n")], code=0)
    assert outputs(await read(harness, job.id, since_time=since)) == [(2, {STDOUT: b"new\n"})]
    since.FromDatetime(utc_now() - timedelta(hours=1))
    assert outputs(await read(harness, job.id, since_time=since)) == [(1, {STDOUT: b"old\n"}), (2, {STDOUT: b"new\n"})]


async def test_a_reader_of_a_schedule_starts_with_the_newest_run_that_started(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    await attempt(harness, [(STDOUT, b"first run")])
    await harness.jobs.RetryJob(pb.RetryJobRequest(job_id=job.id))
    await attempt(harness, [(STDOUT, b"second run")], code=0)
    messages = await read(harness, job.id)
    assert outputs(messages) == [(1, {STDOUT: b"second run"})]
    assert messages[0].execution.execution.run == 2


async def test_runs_that_overlap_come_in_their_order_with_their_retries(tmp_path: Path) -> None:
    now = [utc_now()]
    before_the_first = timestamp_pb2.Timestamp(seconds=int(now[0].timestamp()))
    harness = RpcHarness(tmp_path, now=lambda: now[0])
    await harness.server.start()
    job = await harness.enqueue(retry=AT_ONCE, cron=pb.Cron(expression="* * * * *", overlap=pb.Cron.OVERLAP_ALLOW))
    begun = []
    for _ in range(3):
        now[0] += timedelta(minutes=1)
        await harness.store.promote(100)
        begun.append(await harness.begin())
    reader = asyncio.create_task(read(harness, job.id, since_time=before_the_first))
    # The last one ends first, and the first one has a retry that is newer than all.
    for number, code in ((3, 0), (2, 0), (1, 1)):
        execution, writer = begun[number - 1]
        writer.write([(STDOUT, b"run %d" % number)], time.time_ns())
        await harness.finish(execution, writer, code)
    await attempt(harness, [(STDOUT, b"again")], code=0)
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    messages = await reader
    starts = [message.execution.execution for message in messages if message.HasField("execution")]
    assert [(each.run, each.attempt) for each in starts] == [(1, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
    assert [printed.get(STDOUT) for _, printed in outputs(messages)] == [b"run 1", b"again", b"run 2", b"run 3", None]
    assert messages[-1].job_end.job.state == pb.STATE_STOPPED
    newest = await read(harness, job.id)
    assert [printed.get(STDOUT) for _, printed in outputs(newest)] == [b"run 3", None], "from the newest run on"
    await harness.close()


async def test_a_cursor_of_an_execution_is_good_for_its_job(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE)
    first = await attempt(harness, [(STDOUT, b"1")])
    await attempt(harness, [(STDOUT, b"2")], code=0)
    request = pb.StreamExecutionLogsRequest(execution_id=first.id)
    *_, last = [message async for message in harness.executions.StreamExecutionLogs(request)]
    assert outputs(await read(harness, job.id, cursor=last.cursor)) == [(1, {}), (2, {STDOUT: b"2"})]


async def test_a_reader_of_the_last_lines_resumes_at_its_first_message_with_these_lines(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    await attempt(harness, [(STDOUT, b"1\n2\n3\n")], code=0)
    first, *_ = await read(harness, job.id, tail_lines=1)
    assert outputs(await read(harness, job.id, cursor=first.cursor)) == [(1, {STDOUT: b"3\n"})]


async def test_a_reader_whose_execution_was_dropped_is_told_and_goes_on_with_the_next_one(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE, history=2)
    await attempt(harness, [(STDOUT, b"1\n")])
    [cursor] = [each.cursor for each in await read(harness, job.id, follow=False) if each.chunks]
    for number in (2, 3, 4):
        await attempt(harness, [(STDOUT, b"%d\n" % number)], code=0 if number == 4 else 1)
    await harness.retention.round(utc_now())
    gap, *rest = await read(harness, job.id, cursor=cursor, sources=[pb.SOURCE_STDOUT])
    assert (gap.gap.source, gap.gap.offset, gap.gap.cause) == (pb.SOURCE_STDOUT, 2, pb.LogGap.CAUSE_PRUNED)
    assert not gap.gap.HasField("missing_bytes")
    kept = outputs(rest)
    assert kept == [(number, {STDOUT: b"%d\n" % number}) for number in range(kept[0][0], 5)]
    assert 1 < kept[0][0] < 4
    assert rest[-1].HasField("job_end")
    # A reader that was cut after the gap is told it once.
    assert _content(await read(harness, job.id, cursor=gap.cursor)) == _content(await read(harness, job.id))
    async with AsyncClient(harness.channel) as client:
        events = [event async for event in client.tail_job(job.id, cursor)]
    assert [type(event) for event in events[:4]] == [Gap, Gap, Gap, ExecutionStart]
    assert isinstance(events[-1], JobEnd)


async def test_an_execution_that_is_dropped_when_its_turn_comes_is_passed_over(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE, history=2)
    for number in (1, 2, 3, 4):
        await attempt(harness, [(STDOUT, b"%d\n" % number)], code=0 if number == 4 else 1)
    first_to_read = harness.store.first_to_read

    def dropped_when_found(job_id: str) -> Any:
        async def found() -> Execution:
            execution = await first_to_read(job_id)
            await harness.retention.round(utc_now())
            return execution

        return found()

    # It is there when it is looked for, and gone when its log is opened.
    harness.store.first_to_read = dropped_when_found  # type: ignore[method-assign]
    messages = await read(harness, job.id)
    kept = outputs(messages)
    assert kept == [(number, {STDOUT: b"%d\n" % number}) for number in range(kept[0][0], 5)]
    assert kept[0][0] > 1
    assert messages[-1].job_end.job.state == pb.STATE_SUCCEEDED


async def test_job_tails_of_both_clients_lose_and_repeat_nothing_at_cuts(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE)
    printed = [b"".join(b"%d.%d\n" % (number, line) for line in range(20_000)) for number in (1, 2, 3)]
    for data in printed:
        output = [(STDOUT, data[at : at + 30_000]) for at in range(0, len(data), 30_000)]
        await attempt(harness, [*output, (STDERR, b"oh\n")], code=3)
    await harness.jobs.StopJob(pb.StopJobRequest(job_id=job.id))
    limits = [100, 2_000, 30_000, 70_000, 150_000, 200_000, 3_000]

    def check(events: Sequence[Event]) -> None:
        got: list[tuple[int, bytes, bytes]] = []
        for event in events:
            match event:
                case ExecutionStart():
                    got.append((event.execution.attempt, b"", b""))
                case Output() if event.source == pb.SOURCE_STDOUT:
                    got[-1] = (got[-1][0], got[-1][1] + event.data, got[-1][2])
                case Output() if event.source == pb.SOURCE_STDERR:
                    got[-1] = (got[-1][0], got[-1][1], got[-1][2] + event.data)
        assert got == [*((number, data, b"oh\n") for number, data in enumerate(printed, 1)), (4, b"", b"")]
        ends = [event.exit_status for event in events if isinstance(event, End)]
        assert ends == [3, 3, 3, 130]
        assert isinstance(events[-1], JobEnd)
        assert events[-1].exit_status == 130

    with closing(CuttingRelay(f"127.0.0.1:{harness.port}", limits)) as relay:
        async with AsyncClient(relay.address, backoff=QUICK) as client, asyncio.timeout(60):
            check([event async for event in client.tail_job(job.id)])
        assert not relay.cuts
    with (
        closing(CuttingRelay(f"127.0.0.1:{harness.port}", limits)) as relay,
        Client(relay.address, backoff=QUICK) as one,
    ):
        check(await asyncio.to_thread(lambda: list(one.tail_job(job.id))))
        assert not relay.cuts


async def test_a_hundred_readers_of_a_job_all_get_each_attempt(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=AT_ONCE)
    readers = [asyncio.create_task(read(harness, job.id)) for _ in range(100)]
    data = b"".join(b"%d\n" % number for number in range(30_000))
    for code in (1, 0):
        await attempt(harness, [(STDOUT, data[at : at + 60_000]) for at in range(0, len(data), 60_000)], code)
    for messages in await asyncio.gather(*readers):
        assert outputs(messages) == [(1, {STDOUT: data}), (2, {STDOUT: data})]


async def test_a_reader_of_a_job_takes_what_a_reader_of_the_execution_has_cached(harness: RpcHarness) -> None:
    job = await harness.enqueue()
    execution = await attempt(harness, [(STDOUT, bytes(60_000))] * 70, code=0)
    reads = harness.tails.cache.reads
    request = pb.StreamExecutionLogsRequest(execution_id=execution.id)
    sizes = [len(each.chunks) async for each in harness.executions.StreamExecutionLogs(request)]
    assert sum(size > 0 for size in sizes) > 12
    at_first, reads = harness.tails.cache.reads - reads, harness.tails.cache.reads
    messages = await read(harness, job.id)
    assert outputs(messages) == [(1, {STDOUT: bytes(60_000 * 70)})]
    # The end is looked at again; nothing before it is.
    assert harness.tails.cache.reads - reads <= 2 < at_first


async def refused(harness: RpcHarness, job_id: str, **request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await read(harness, job_id, **request)
    return error.value.code(), reason(error.value)


async def test_a_cursor_that_cannot_be_is_refused(harness: RpcHarness) -> None:
    job, other = await harness.enqueue(), await harness.enqueue()
    assert await refused(harness, job.id, cursor="x") == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_INVALID")
    foreign = f"1.{other.execution.id}.0.0.0.0"
    assert await refused(harness, job.id, cursor=foreign) == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_OF_ANOTHER_JOB")
    unknown = f"1.{new_id()}.0.0.0.0"
    assert await refused(harness, job.id, cursor=unknown) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
    assert await refused(harness, other.execution.id) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    assert await refused(harness, "") == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert await refused(harness, job.id, tail_lines=-1) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_server_that_stops_interrupts_its_readers(harness: RpcHarness) -> None:
    job = await harness.enqueue(retry=LATER)
    call = stream(harness, job.id)
    assert (await call.read()).HasField("execution")
    harness.service.stop_serving()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async with asyncio.timeout(20):
            while True:
                await call.read()
    assert (error.value.code(), reason(error.value)) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
