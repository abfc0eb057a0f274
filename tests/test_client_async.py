"""The asyncio client over real gRPC. What it shares with the blocking one is tested there: here is what waits and what
is cancelled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from hypothesis import given, settings

from fastlane_grpc import client as api
from fastlane_grpc.client import AsyncClient, Backoff, Disconnected, End, Event, Output, Reconnected, StateChange
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.cutting_relay import CuttingRelay
from tests.scripted_server import Cut, Log, Piece, ScriptedServer
from tests.tailing import (
    HELLO,
    NOT_TEXT,
    QUICK,
    assert_notices_alternate,
    cuts,
    data_of,
    endless,
    forget,
    gaps_of,
    pieces,
    unused_address,
)

SECONDS = 30


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def server(running_server: ScriptedServer) -> ScriptedServer:
    forget(running_server)
    return running_server


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, backoff=QUICK) as client:
        yield client


async def happened(server: ScriptedServer, name: str) -> None:
    assert await asyncio.to_thread(server.event(name).wait, SECONDS), name


async def gathered(tail: api.AsyncTail) -> list[Event]:
    return [event async for event in tail]


# ---------------------------------------------------------------------------------------------------------------- calls


async def test_calls_answer_what_the_server_has(server: ScriptedServer, client: AsyncClient) -> None:
    server.logs["e"] = HELLO
    server.tasks.append(pb.TaskSummary(id="t"))
    server.hosts.append(pb.EngineHost(name="here"))
    server.prunings.extend([pb.PruneResponse(jobs=2, more=True), pb.PruneResponse(jobs=1)])
    assert (await client.enqueue("t", "busybox", args=["true"], request_id="r")).id == "job-1"
    assert (await client.job("job-1")).execution.id == "execution-1"
    assert (await client.stop("job-1", "enough", 1)).id == "job-1"
    assert (await client.execution("e")).job_id == "job-1"
    assert (await client.stop_execution("e")).id == "e"
    assert (await client.task("t")).id == "t"
    assert [host.name for host in await client.hosts()] == ["here"]
    assert (await client.server_info()).version == "9.9.9"
    assert (await client.prune(timedelta(days=1))).jobs == 3
    assert server.received(pb.EnqueueJobRequest)[0].request_id == "r"


async def test_lists_have_what_all_their_pages_have(server: ScriptedServer, client: AsyncClient) -> None:
    server.empty_pages = True
    server.jobs.extend(pb.Job(id=f"job {number}") for number in range(5))
    server.executions.extend(pb.Execution(id=f"execution {number}") for number in range(3))
    server.tasks.extend(pb.TaskSummary(id=f"task {number}") for number in range(4))
    assert [job.id async for job in client.jobs(page_size=2)] == [f"job {number}" for number in range(5)]
    assert len([each async for each in client.executions(page_size=1)]) == 3
    assert len([each async for each in client.tasks(page_size=3)]) == 4


async def test_an_enqueue_is_sent_again_with_the_same_request_id_while_the_server_is_away(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.refusals.extend([(grpc.StatusCode.UNAVAILABLE, "", {})] * 2)
    await client.enqueue("t", "busybox")
    assert len({request.request_id for request in server.received(pb.EnqueueJobRequest)}) == 1
    assert len(server.requests) == 3


async def test_errors_are_typed_and_not_asked_for_again(server: ScriptedServer, client: AsyncClient) -> None:
    with pytest.raises(api.NotFound) as refused:
        await client.job("nothing")
    assert (refused.value.reason, refused.value.metadata) == ("JOB_NOT_FOUND", {"job_id": "nothing"})
    assert len(server.requests) == 1


async def test_a_server_that_is_not_there_is_an_error_after_retry_for() -> None:
    async with AsyncClient(unused_address(), retry_for=0.05, backoff=QUICK) as client:
        with pytest.raises(api.ServerUnavailable):
            await client.job("j")


async def test_a_channel_of_ones_own_stays_ones_own(server: ScriptedServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        async with AsyncClient(channel) as client:
            await client.job("job-1")
        async with AsyncClient(channel) as client:
            await client.job("job-1")


# ------------------------------------------------------------------------------------------------------------- the tail


async def test_a_tail_yields_states_output_and_the_end(server: ScriptedServer, client: AsyncClient) -> None:
    server.logs["e"] = Log(HELLO.pieces, state=pb.STATE_FAILED, exit_status=3)
    events = await gathered(client.tail("e"))
    assert [type(event) for event in events] == [StateChange, Output, Output, Output, Output, StateChange, End]
    assert data_of(events, 1) == b"hello\nworld\n"


def test_bytes_arrive_once_and_in_order_however_the_stream_is_cut(running_server: ScriptedServer) -> None:
    @settings(max_examples=40)
    @given(pieces=pieces, cuts=cuts)
    def however(pieces: list[Piece], cuts: list[Cut]) -> None:
        forget(running_server)
        log = Log(pieces, chunk_bytes=17, cut_anew=True)
        running_server.logs["e"] = log
        running_server.cuts.extend(cuts)
        events = asyncio.run(all_of(running_server.address))
        assert [data_of(events, source) for source in (1, 2, 3)] == [log.data(source) for source in (1, 2, 3)]
        assert [gap.missing_bytes or -1 for gap in gaps_of(events)] == [
            piece.missing for piece in pieces if piece.missing
        ]
        assert_notices_alternate(events)

    however()


async def all_of(address: str) -> list[Event]:
    async with AsyncClient(address, backoff=QUICK) as client:
        return await gathered(client.tail("e"))


async def test_bytes_arrive_once_when_connections_break_in_the_middle_of_messages(server: ScriptedServer) -> None:
    log = Log([Piece(1 + number % 2, bytes([number % 251]) * 700) for number in range(600)], chunk_bytes=300)
    server.logs["e"] = log
    with contextlib.closing(CuttingRelay(server.address, [1, 9, 100, 5_000, 17_003, 70_007])) as relay:
        events = await all_of(relay.address)
    assert [data_of(events, source) for source in (1, 2)] == [log.data(source) for source in (1, 2)]


async def test_a_program_that_kept_the_cursor_of_a_batch_goes_on_from_there(
    server: ScriptedServer, client: AsyncClient
) -> None:
    log = Log([Piece(1, bytes([number])) for number in range(20)], chunks_per_message=3)
    server.logs["e"] = log
    kept: list[Event] = []
    cursor = ""
    while not any(isinstance(event, End) for event in kept):
        async with client.tail("e", cursor) as tail:
            async for events in tail.batches():
                kept.extend(events)
                cursor = tail.cursor
                if any(isinstance(event, Output) for event in events):
                    break
    assert data_of(kept, 1) == log.data(1)


async def test_a_peer_that_falls_silent_is_left_after_three_heartbeats(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.logs["e"] = HELLO
    server.cuts.append(Cut(2, "silence"))
    events = await gathered(client.tail("e", heartbeat=0.1))
    assert data_of(events, 1) == b"hello\nworld\n"
    [notice] = [event for event in events if isinstance(event, Disconnected)]
    assert "not even a heartbeat" in str(notice.error)
    assert any(isinstance(event, Reconnected) for event in events)


async def test_a_log_that_is_not_what_was_written_is_an_error_and_ends_the_tail(
    server: ScriptedServer, client: AsyncClient
) -> None:
    server.logs["e"] = Log(HELLO.pieces, served=[Piece(1, b"hellO\n"), *HELLO.pieces[1:]])
    tail = client.tail("e")
    with pytest.raises(api.LogInconsistent, match="stdout: its checksum"):
        await gathered(tail)
    assert await gathered(tail) == []


async def test_a_tail_gives_up_when_it_was_told_when() -> None:
    async with AsyncClient(unused_address(), backoff=QUICK) as client:
        tail = client.tail("e", give_up_after=0.05)
        with pytest.raises(api.ServerUnavailable):
            await gathered(tail)
        assert await gathered(tail) == []


# -------------------------------------------------------------------------------------------------------------- leaving


async def test_a_task_that_is_cancelled_in_a_tail_ends_the_call_and_another_goes_on(
    server: ScriptedServer, client: AsyncClient
) -> None:
    endless(server)
    seen: list[Event] = []

    async def read() -> None:
        async for event in tail:
            seen.append(event)

    tail = client.tail("e")
    reader = asyncio.create_task(read())
    await happened(server, "heartbeat 3")
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await happened(server, "stream over")
    server.event("stopped").set()
    await read()
    assert (data_of(seen, 1), data_of(seen, 3)) == (b"hello\nworld\n", b"it ended\n")
    assert isinstance(seen[-1], End)
    assert not any(isinstance(event, Disconnected) for event in seen)


async def test_a_timeout_around_a_tail_is_a_timeout(server: ScriptedServer, client: AsyncClient) -> None:
    endless(server)
    tail = client.tail("e")
    assert isinstance(await anext(tail), StateChange)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await gathered(tail)
    await happened(server, "stream over")


async def test_close_from_another_task_ends_the_tail_and_the_call(server: ScriptedServer, client: AsyncClient) -> None:
    endless(server)
    tail = client.tail("e")
    reader = asyncio.create_task(gathered(tail))
    await happened(server, "heartbeat 1")
    await tail.close()
    async with asyncio.timeout(SECONDS):
        events = await reader
    assert not any(isinstance(event, End | Disconnected) for event in events)
    await happened(server, "stream over")


async def test_close_ends_a_pause() -> None:
    async with AsyncClient(unused_address(), backoff=Backoff(3600, 3600)) as client:
        tail = client.tail("e")
        assert isinstance(await anext(tail), Disconnected)
        rest = asyncio.create_task(gathered(tail))
        await asyncio.sleep(0)
        await tail.close()
        async with asyncio.timeout(SECONDS):
            assert await rest == []


async def test_leaving_a_with_block_cancels_the_call(server: ScriptedServer, client: AsyncClient) -> None:
    endless(server)
    async with client.tail("e") as tail:
        await anext(tail)
    await happened(server, "stream over")


async def test_closing_the_client_ends_its_tails(server: ScriptedServer) -> None:
    endless(server)
    async with AsyncClient(server.address, backoff=QUICK) as client:
        reader = asyncio.create_task(gathered(client.tail("e")))
        await happened(server, "heartbeat 1")
    async with asyncio.timeout(SECONDS):
        assert not any(isinstance(event, End) for event in await reader)


async def test_many_tails_run_side_by_side_on_one_loop(server: ScriptedServer, client: AsyncClient) -> None:
    server.logs["e"] = HELLO
    for events in await asyncio.gather(*(gathered(client.tail("e")) for _ in range(8))):
        assert data_of(events, 1) == b"hello\nworld\n"


async def test_dropping_a_tail_cancels_the_call(server: ScriptedServer, client: AsyncClient) -> None:
    endless(server)
    async for event in client.tail("e"):
        if isinstance(event, Output):
            break
    await happened(server, "stream over")


# ---------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(("field", "method", "positional", "named"), NOT_TEXT)
async def test_a_text_that_is_not_utf_8_is_refused_by_the_name_of_its_field(
    server: ScriptedServer,
    client: AsyncClient,
    field: str,
    method: str,
    positional: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    with pytest.raises(api.InvalidText) as refused:
        answered = getattr(client, method)(*positional, **named)
        _ = [each async for each in answered] if hasattr(answered, "__aiter__") else await answered
    assert [each for each, _ in refused.value.violations] == [field]
    assert server.requests == []


async def test_an_address_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(api.InvalidText, match="address: is not valid UTF-8"):
        AsyncClient("caf\udce9:7020")
