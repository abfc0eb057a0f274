"""Very many calls at once, meant or meant ill: each is answered, or refused with its reason, and the calls of others
are answered."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.serving import Server, serving
from tests.test_rpc import detail, reason

pytestmark = pytest.mark.timeout(180)

# More than gRPC takes by itself before it refuses some without a reason: 1000.
CALLS = 4000
STREAMS = 1500
BEYOND = 100
HOSTILE_SECONDS = 3
# Where a server is said to be too busy for a while, none of these is in flight for longer.
DEADLINE_SECONDS = 60
MEMORY_BYTES = 700 << 20


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    with serving(tmp_path / "data", engine="unix:///nowhere.sock", max_streams=STREAMS) as server:
        yield server


@asynccontextmanager
async def channels(server: Server, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    async with AsyncExitStack() as stack:
        # Without a pool of its own each channel would use the same connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options=options))
            for _ in range(count)
        ]


async def answers(calls: Iterable[Awaitable[object]]) -> Counter[str]:
    """How many were answered, and how many were refused: for which reason, or with which status without one."""

    async def answer(call: Awaitable[object]) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return reason(error) if rpc_status.from_call(error) else f"{error.code()} {error.details()}"
        return "OK"

    return Counter(await asyncio.gather(*(answer(call) for call in calls)))


def tried_out(channel: grpc.aio.Channel) -> Awaitable[object]:
    """A call that changes nothing and is answered at once."""
    request = pb.EnqueueJobRequest(task_id="t", spec=pb.JobSpec(image="image"), validate_only=True)
    call: Awaitable[object] = pb_grpc.JobServiceStub(channel).EnqueueJob(request, timeout=DEADLINE_SECONDS)
    return call


@pytest.mark.parametrize("connections", [1, 4])
async def test_thousands_of_calls_at_once_are_all_answered(server: Server, connections: int) -> None:
    async with channels(server, connections) as open_channels:
        assert await answers(tried_out(open_channels[number % connections]) for number in range(CALLS)) == {"OK": CALLS}
    assert server.memory_bytes() < MEMORY_BYTES


@pytest.mark.parametrize("connections", [1, 4])
async def test_as_many_streams_as_may_be_are_had_and_one_more_has_its_reason(server: Server, connections: int) -> None:
    async with channels(server, connections) as open_channels:
        job = (
            await pb_grpc.JobServiceStub(open_channels[0]).EnqueueJob(
                pb.EnqueueJobRequest(task_id="t", spec=pb.JobSpec(image="x"))
            )
        ).job
        request = pb.StreamExecutionLogsRequest(execution_id=job.execution.id)
        streams = [
            pb_grpc.ExecutionServiceStub(open_channels[number % connections]).StreamExecutionLogs(request)
            for number in range(STREAMS + BEYOND)
        ]
        assert await answers(stream.read() for stream in streams) == {"OK": STREAMS, "TOO_MANY_STREAMS": BEYOND}
        # Beside all of them there is room for other calls, on the same connection too.
        assert await answers(tried_out(channel) for channel in open_channels) == {"OK": connections}
        refused = next(stream for stream in streams if stream.done())
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await refused.read()
        assert detail(failure.value, error_details_pb2.RetryInfo)
        for stream in streams:
            stream.cancel()
    assert server.memory_bytes() < MEMORY_BYTES


@pytest.mark.parametrize("kind", ["reset", "keep"])
async def test_a_client_that_opens_streams_without_end_fails_no_call_of_another(server: Server, kind: str) -> None:
    hostile = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.hostile_http2", str(server.port), str(HOSTILE_SECONDS), kind),
        stdout=asyncio.subprocess.PIPE,
    )
    told = asyncio.create_task(hostile.communicate())
    got: Counter[str] = Counter()
    async with channels(server, 1) as (channel,):
        while not told.done():
            got += await answers([tried_out(channel)])
        got += await answers([tried_out(channel)])
    output, _ = await told
    assert int(output) > CALLS
    assert set(got) == {"OK"}
    assert server.memory_bytes() < MEMORY_BYTES
