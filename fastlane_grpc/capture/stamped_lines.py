"""The lines of a log that a kubelet hands out. Each line begins with the time at which the node got it. Pure."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

# The form that kubelets write: nine digits of a second, and the node's distance from UTC.
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})(Z|[+-]\d\d:\d\d) ")
# A longer line is handed on in parts, so that no line needs more memory.
PART_BYTES = 1 << 20


class NotStamped(OSError):
    """A line without a time: it is a message of the kubelet about the log, and no output."""


class StampedLine(NamedTuple):
    """A line with its newline, if it has one, or a part of a long line. `begins`: it is the first part."""

    time_ns: int
    begins: bool
    content: bytes


def stamped_lines(answer: Iterable[bytes]) -> Iterator[StampedLine]:
    """Yield the lines of an answer. Raises NotStamped, and what the iteration of `answer` raises.

    What came of a last line before an error is yielded, too.
    """
    rest, time_ns = b"", None
    try:
        for piece in answer:
            *ended, rest = (rest + piece).split(b"\n")
            parts = [line + b"\n" for line in ended]
            if len(rest) > PART_BYTES:
                parts.append(rest)
                rest = b""
            for part in parts:
                line = _line(part, time_ns)
                yield line
                time_ns = None if part.endswith(b"\n") else line.time_ns
    except NotStamped:
        raise
    except OSError:
        if rest and (time_ns is not None or _STAMP.match(rest)):
            yield _line(rest, time_ns)
        raise
    if rest:
        yield _line(rest, time_ns)


def _line(part: bytes, time_ns: int | None) -> StampedLine:
    """Return a line, or a part of one. `time_ns` is that of the line whose first part was returned before."""
    return StampedLine(*_parted(part)) if time_ns is None else StampedLine(time_ns, False, part)


def _parted(line: bytes) -> tuple[int, bool, bytes]:
    """Return the time of a line in nanoseconds, that it begins, and its content."""
    match = _STAMP.match(line)
    if match is None:
        raise NotStamped(f"the node says of the log: {line[:200].decode(errors='replace')}")
    seconds = _seconds(match[1] + match[3])
    return seconds * 1_000_000_000 + int(match[2]), True, line[match.end() :]


# A flood has many lines of one second.
@lru_cache(16)
def _seconds(text: bytes) -> int:
    return int(datetime.fromisoformat(text.decode()).timestamp())
