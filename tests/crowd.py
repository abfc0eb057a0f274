"""A crowd that follows one execution, in a process of its own: `python -m tests.crowd ADDRESS EXECUTION COUNT`.

Says `ready` when all have heard from the server, and at the end, as JSON, what each of them got: how many got the same.
"""

import asyncio
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable

import grpc

from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc

CONNECTIONS = 4


async def follow(
    stub: "fastlane_pb2_grpc.ExecutionServiceAsyncStub", execution_id: str, heard: Callable[[], None]
) -> str:
    """What one got: bytes and CRC-32 of stdout, whether its log had no hole, and the exit status."""
    size = crc32 = 0
    whole, exit_status = True, None
    # Started before it is awaited for the first message, so that all of them are on their way at once.
    call = stub.StreamExecutionLogs(
        pb.StreamExecutionLogsRequest(execution_id=execution_id, sources=[pb.SOURCE_STDOUT])
    )
    async for message in call:
        if message.WhichOneof("event") == "state" and message.state.state == pb.STATE_QUEUED:
            heard()
        for chunk in message.chunks:
            whole &= chunk.offset == size
            size += len(chunk.data)
            crc32 = zlib.crc32(chunk.data, crc32)
        if message.WhichOneof("event") == "end":
            exit_status = message.end.exit_status
    return json.dumps([size, crc32, whole, exit_status])


async def main(address: str, execution_id: str, count: int) -> None:
    left = count

    def heard() -> None:
        nonlocal left
        left -= 1
        if not left:
            say("ready")

    # Without a pool of its own each channel would use the same connection.
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(CONNECTIONS)
    ]
    stubs = [fastlane_pb2_grpc.ExecutionServiceStub(channel) for channel in channels]
    got = await asyncio.gather(*(follow(stubs[number % CONNECTIONS], execution_id, heard) for number in range(count)))
    say(json.dumps(Counter(got)))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
