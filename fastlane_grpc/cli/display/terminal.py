"""Bytes on their way out: to files and pipes as they are, to terminals with colour and with a line that is written
over."""

import os
import select
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.text.sanitize import printable

_NAMES = {1: "stdout", 2: "stderr"}
# What the bytes of a finished line end with: plain, dim, or a live line that was taken away.
_LINE_ENDS = (b"\n", b"\n\x1b[22m", b"\r\x1b[K")


class _Cursor:
    """The position of the terminal's cursor. Stdout and stderr of one terminal share it."""

    def __init__(self) -> None:
        self.within_line = False

    def moved(self, fd: int, data: bytes) -> None:
        if data and os.isatty(fd):
            self.within_line = not data.endswith(_LINE_ENDS)


_cursor = _Cursor()


def write(fd: int, data: bytes) -> None:
    """Write all of the data, without Python's buffers. Waits for a pipe whose other end made it non-blocking."""
    _cursor.moved(fd, data)
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except BrokenPipeError:
            _die_of_broken_pipe()
        except OSError as error:
            raise CannotWrite(f"cannot write to {_NAMES[fd]}: {error.strerror}") from error


class CannotWrite(Failure):
    """A disk that is full, say."""


def say(text: str) -> None:
    """A line of our own, on stderr. It may hold the words of an engine, a registry, or another caller."""
    begin_line()
    write(2, f"fastlane: {printable(text)}\n".encode())


def begin_line() -> None:
    """Begin a new line on stderr's terminal, if a job's unfinished line is there."""
    if _cursor.within_line and os.isatty(2):
        write(2, b"\n")


def line_was_begun() -> None:
    """Note that the cursor is in the first column, by bytes that were written past `write`."""
    _cursor.within_line = False


def is_colourful(fd: int, environ: Mapping[str, str]) -> bool:
    return obeys(fd, environ) and not environ.get("NO_COLOR")


def obeys(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether it is a terminal that does what escape sequences say."""
    return os.isatty(fd) and environ.get("TERM") != "dumb"


def terminal_columns(fd: int) -> int | None:
    """Return the width of the terminal; None: it is none, or one of unknown width."""
    try:
        return os.get_terminal_size(fd).columns or None
    except OSError:
        return None


class LiveLine:
    """One line of a terminal, on stderr, that is written over again and again, and gone when it is cleared."""

    def __init__(self) -> None:
        self.shown = False

    def show(self, text: str) -> None:
        # A line that the terminal wraps could not be written over.
        try:
            columns = os.get_terminal_size(2).columns
        except OSError:
            columns = 0
        write(2, f"\r\x1b[K{printable(text)[: (columns or 80) - 1]}".encode())
        self.shown = True

    def clear(self) -> None:
        if self.shown:
            write(2, b"\r\x1b[K")
            self.shown = False


class Screen:
    """Lines of a terminal, on stdout, that are written over again and again."""

    def __init__(self) -> None:
        self._rows = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines in place of those before. None may be longer than the terminal is wide."""
        up = f"\x1b[{self._rows}F" if self._rows else ""
        write(1, "\n".join([f"{up}\x1b[J{lines[0]}", *lines[1:], ""]).encode())
        self._rows = len(lines)


def _die_of_broken_pipe() -> NoReturn:
    """Ends as any Unix tool whose reader went away: of SIGPIPE, without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    raise AssertionError("SIGPIPE ends the process")
