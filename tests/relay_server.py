"""A server for relays as a process of its own, which a test may kill: relay_server ADDRESS DIRECTORY MAX_LOG_BYTES."""

import asyncio
import sys
from pathlib import Path

from fastlane_grpc.rpc.relay import RelayServer
from tests.relay_pair import TOKENS


async def _serve(address: str, directory: Path, max_log_bytes: int) -> None:
    async def directory_of(execution_id: str) -> Path:
        return directory

    server = RelayServer(TOKENS, directory_of, max_log_bytes=max_log_bytes)
    await server.start(address)
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
