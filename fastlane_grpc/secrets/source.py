"""Values of secrets, read from a file, from the environment, or from the output of a command.

An error names the source and the fault, never a part of a value.
"""

import os
import select
import signal
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from fastlane_grpc.text.shell_words import split_command

# The time that a command may take.
COMMAND_SECONDS = 10.0
_CHUNK_BYTES = 65_536


class Unreadable(Exception):
    """A value cannot be read. The message names the source and the fault, and has nothing of the value."""


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file, which may have at most `max_bytes`."""
    try:
        # A named pipe without a writer would hold up the open.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unreadable(f"{path} is not a regular file")
        content = b""
        while len(content) <= max_bytes and (piece := os.read(fd, max_bytes + 1 - len(content))):
            content += piece
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(content) > max_bytes:
        raise Unreadable(f"{path} has more than {max_bytes} bytes")
    return content


def read_variable(name: str, max_bytes: int) -> bytes:
    """Return the value of a variable in the server's environment."""
    value = os.environb.get(name.encode())
    if value is None:
        raise Unreadable(f"the variable {name} is not in the server's environment")
    if len(value) > max_bytes:
        raise Unreadable(f"the variable {name} has more than {max_bytes} bytes")
    return value


def read_output(command: str, max_bytes: int, stdin: bytes = b"", seconds: float = COMMAND_SECONDS) -> bytes:
    """Return what a command prints. The command runs without a shell, in a process group that is killed at the end."""
    words = split_command(command)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What it says there may hold secrets.
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise Unreadable(f"the command {words[0]} cannot be run: {error.strerror}") from error
    except ValueError as error:
        raise Unreadable(f"the command {words[0]} cannot be run: {error}") from error
    with process:
        try:
            output = _output(process, stdin, max_bytes, time.monotonic() + seconds)
        finally:
            # With all that it started and left behind. It was not waited for yet: nothing else has its number.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if output is None:
        raise Unreadable(f"the command {words[0]} did not end within {seconds:g} s")
    if len(output) > max_bytes:
        raise Unreadable(f"the command {words[0]} printed more than {max_bytes} bytes")
    if status:
        how = f"exited with {status}" if status > 0 else f"was killed by signal {-status}"
        raise Unreadable(f"the command {words[0]} {how}")
    return output


def _output(process: "subprocess.Popen[bytes]", stdin: bytes, max_bytes: int, until: float) -> bytes | None:
    """Return the output of a process that has ended, or the first bytes of it, one too many.

    None: the time was over before. The process remains to be waited for.
    """
    assert process.stdin
    assert process.stdout
    # Small enough for the pipe: nobody has to read it.
    with suppress(BrokenPipeError):
        process.stdin.write(stdin)
        process.stdin.flush()
    with suppress(BrokenPipeError):
        process.stdin.close()
    output = b""
    while len(output) <= max_bytes:
        if not _is_readable(process.stdout.fileno(), until):
            return None
        piece = os.read(process.stdout.fileno(), _CHUNK_BYTES)
        if not piece:
            return output if _has_ended(process, until) else None
        output += piece
    return output


def _has_ended(process: "subprocess.Popen[bytes]", until: float) -> bool:
    ended = os.pidfd_open(process.pid)
    try:
        return _is_readable(ended, until)
    finally:
        os.close(ended)


def _is_readable(file: int, until: float) -> bool:
    """Wait for the file until that time of the monotonic clock."""
    # Not `select`, which takes no descriptor from 1024 on.
    poll = select.poll()
    poll.register(file, select.POLLIN)
    left_seconds = until - time.monotonic()
    return left_seconds > 0 and bool(poll.poll(left_seconds * 1000))
