"""Outputs of executions: parts of their archives."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from fastlane_grpc.errors import OutputsNotFound, StoreFailed
from fastlane_grpc.logs import Logs
from fastlane_grpc.record import open_record

MAX_PART_BYTES = 1 << 20


class OutputReader:
    """Reads archives for the calls. Lives on the loop; the disk is read by a thread of its own."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._thread = ThreadPoolExecutor(1, "outputs")

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def part(self, execution_id: str, offset: int, size: int) -> bytes:
        """Return a part of the archive; empty at its end. OutputsNotFound, StoreFailed."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._part, execution_id, offset, size)

    def _part(self, execution_id: str, offset: int, size: int) -> bytes:
        try:
            file = open_record(self._logs.outputs_path(execution_id), os.O_RDONLY)
            try:
                return os.pread(file, size, offset)
            finally:
                os.close(file)
        except FileNotFoundError:
            raise OutputsNotFound(execution_id, "they were pruned") from None
        except OSError as error:
            raise StoreFailed(f"the outputs cannot be read: {error.strerror}") from error
