"""The request for a dump, by another process of the server's machine."""

import os
import time
from pathlib import Path

from fastlane_grpc.debugging.dump import DUMP_SIGNAL, STACKS_SIGNAL
from fastlane_grpc.machine.data_directory import DEBUG_DUMP, DEBUG_STACKS, holder

_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.05


class DumpFailed(Exception):
    """There is no server, or it does not respond; the message says which."""


def requested_dump(data_dir: Path, *, wait_seconds: float = _WAIT_SECONDS) -> str:
    """Return a new dump of the server that uses the data directory. Blocks until it is made. DumpFailed.

    Of a server whose interpreter hangs, only the stacks are returned."""
    process_id = holder(data_dir)
    if process_id is None:
        raise DumpFailed(f"no server uses {data_dir}: set --data-dir as the server has it")
    dump, stacks = data_dir / DEBUG_DUMP, data_dir / DEBUG_STACKS
    try:
        # A dump replaces the file, complete. Stacks are appended to theirs.
        if _asked(process_id, DUMP_SIGNAL, dump, wait_seconds):
            return dump.read_text(errors="replace")
        begin = stacks.stat().st_size if stacks.exists() else 0
        if _asked(process_id, STACKS_SIGNAL, stacks, wait_seconds):
            _wait_until_settled(stacks)
            text = stacks.read_bytes()[begin:].decode(errors="replace")
            return f"the server did not respond for {wait_seconds:g} s; the stacks of its threads:\n\n{text}"
    except OSError as error:
        raise DumpFailed(
            f"process {process_id} cannot be asked: {error.strerror}; run this as the server's user"
        ) from error
    raise DumpFailed(f"process {process_id} does not respond: it is stopped, or waits for a disk that hangs")


def _asked(process_id: int, number: int, path: Path, wait_seconds: float) -> bool:
    """Send the signal, and return whether the process has written to the path in time."""
    before = _stamp(path)
    os.kill(process_id, number)
    end = time.monotonic() + wait_seconds
    while time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        if _stamp(path) != before:
            return True
    return False


def _wait_until_settled(path: Path) -> None:
    """Wait until nothing more is appended: stacks are written in many small pieces."""
    before = None
    while (stamp := _stamp(path)) != before:
        before = stamp
        time.sleep(_POLL_SECONDS)


def _stamp(path: Path) -> object:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
