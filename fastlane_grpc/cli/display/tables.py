"""Answers for people, as aligned columns, and for programs, as one JSON object a line."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, pairwise
from typing import Any

from fastlane_grpc import client as api
from fastlane_grpc.cli.display.terminal import is_colourful, say, terminal_columns, write
from fastlane_grpc.text.sanitize import printable

# Rows that are aligned together; of a longer table the first ones are shown while the rest is still fetched.
_ALIGNED = 200
# A column that is cut may go on for so long.
_LONGEST_NOTE = 60

# How far columns are cut on a narrow terminal. What is left of an id is a prefix that commands take.
_ID_CHARACTERS = 18
_IDS = {"JOB", "EXECUTION"}
_LEAST_CHARACTERS = {"JOB": _ID_CHARACTERS, "EXECUTION": _ID_CHARACTERS, "TASK": 12, "NOTE": 12, "ADDRESS": 12}
# Columns that a terminal without room for them does not show, the first one first. Others go from the right.
_FIRST_DROPPED = ["ADDRESS", "CAPTURE", "RAN", "HOST", "ENQUEUED", "CREATED", "NOTE", "TASK"]
_GAP = "  "

_GREEN, _RED, _YELLOW, _DIM = "32", "31", "33", "2"
COLOURS = {
    "succeeded": _GREEN,
    "failed": _RED,
    "timed out": _RED,
    "lost": _RED,
    "stopped": _YELLOW,
    "stopping": _YELLOW,
    "queued": _DIM,
}
COLOURS |= {"scheduled": _DIM, "expired": _YELLOW}
COLOURS |= {"drained": _YELLOW, "circuit open": _RED}
COLOURS |= {"up": _GREEN, "down": _RED, "ok": _GREEN, "warn": _YELLOW, "FAIL": _RED}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, and a function that returns its text for a row."""

    head: str
    text: Callable[[Any], str]


def show(
    found: Iterable[Any], columns: Sequence[Column], *, form: str, nothing: str, environ: Mapping[str, str]
) -> None:
    """All that was found, as it comes. Of nothing there is a word on stderr and nothing on stdout."""
    empty = True
    for lines in (
        _json_lines(found)
        if form == "json"
        else _table(found, columns, colour=is_colourful(1, environ), room=terminal_columns(1))
    ):
        empty = False
        write(1, lines)
    if empty:
        say(nothing)


def table(found: Iterable[Any], columns: Sequence[Column], *, room: int) -> Sequence[str]:
    """Return the lines of a table without colours, each at most `room` characters long."""
    lines = b"".join(_table(found, columns, colour=False, room=room)).decode()
    return lines.splitlines() or ["  ".join(column.head for column in columns)[:room]]


def show_facts(facts: Iterable[tuple[str, str]], environ: Mapping[str, str]) -> None:
    """Name and value on a line; what is empty is left out."""
    told = [(name, printable(value)) for name, value in facts if value]
    width = max(len(name) for name, _ in told)
    colour = is_colourful(1, environ)
    write(
        1,
        "".join(
            f"{name:{width}}  {painted(value, value.partition(',')[0], colour=colour)}\n" for name, value in told
        ).encode(),
    )


def as_line(message: Any) -> bytes:
    return json.dumps(api.as_json(message)).encode() + b"\n"


def _json_lines(found: Iterable[Any]) -> Iterator[bytes]:
    return map(as_line, found)


def _table(found: Iterable[Any], columns: Sequence[Column], *, colour: bool, room: int | None) -> Iterator[bytes]:
    """Yield the lines of a table, each at most `room` characters long; None: of any length."""
    rest = iter(found)
    heads = [column.head for column in columns]
    widths = [len(head) for head in heads]
    shown: Sequence[int] = ()
    while listed := list(islice(rest, _ALIGNED)):
        rows = [[printable(column.text(each)) for column in columns] for each in listed]
        # Never narrower than those before, so that a long table leaps seldom.
        widths = [max(width, *(len(row[place]) for row in rows)) for place, width in enumerate(widths)]
        fitted = fitted_widths(heads, widths, room)
        # The columns of a table stay as they were chosen: a head is above each.
        lines = rows if shown else [heads, *rows]
        shown = shown or [place for place, width in enumerate(fitted) if width]
        yield "".join(_line(row, shown, fitted, heads, colour=colour) for row in lines).encode()


def fitted_widths(heads: Sequence[str], widths: Sequence[int], room: int | None) -> Sequence[int]:
    """Return the width of each column, so that a line takes at most `room`; 0: the column is not shown."""
    least = [min(width, _LEAST_CHARACTERS.get(head, width)) for head, width in zip(heads, widths, strict=True)]
    shown = list(range(len(heads)))
    dropped = sorted(shown[1:], key=lambda at: (_order(heads[at]), -at))
    while room is not None and dropped and _line_width(least, shown) > room:
        shown.remove(dropped.pop(0))
    spare = sum(widths) if room is None else max(room - _line_width(least, shown), 0)
    fitted = [0] * len(heads)
    # Ids take what is left at the end: a part of one is of no more use than its prefix.
    for at in sorted(shown, key=lambda at: heads[at] in _IDS):
        more = min(widths[at] - least[at], spare)
        if heads[at] in _IDS and more < widths[at] - least[at]:
            more = 0
        fitted[at] = least[at] + more
        spare -= more
    return fitted


def _order(head: str) -> int:
    return _FIRST_DROPPED.index(head) if head in _FIRST_DROPPED else len(_FIRST_DROPPED)


def _line_width(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[at] for at in shown) + len(_GAP) * (len(shown) - 1)


def _line(
    row: Sequence[str], shown: Sequence[int], widths: Sequence[int], heads: Sequence[str], *, colour: bool
) -> str:
    cells = [_cell(row[at], heads[at], widths[at] or len(heads[at]), colour=colour) for at in shown]
    return _GAP.join(cells).rstrip() + "\n"


def _cell(text: str, head: str, width: int, *, colour: bool) -> str:
    if len(text) > width:
        text = text[:width] if head in _IDS else f"{text[: width - 1]}…"
    return painted(f"{text:{width}}", text, colour=colour)


def painted(text: str, word: str, *, colour: bool) -> str:
    return f"\x1b[{COLOURS[word]}m{text}\x1b[m" if colour and word in COLOURS else text


# ---------------------------------------------------------------------------------------------------- values for people


_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def ago(time: datetime, now: datetime) -> str:
    """ "3m ago"; of clocks that differ a little, "now"."""
    seconds = (now - time).total_seconds()
    for name, size in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f}{name} ago"
    return "now"


def until(time: datetime, now: datetime) -> str:
    """ "in 4m"; of what is due, "now"."""
    seconds = (time - now).total_seconds()
    for name, size in _UNITS:
        if seconds >= size:
            return f"in {seconds // size:.0f}{name}"
    return "now"


def span(duration: timedelta) -> str:
    """Two units at most: "4d 3h", "12m 5s", "1.2s"."""
    seconds = max(duration.total_seconds(), 0.0)
    for (name, size), (smaller_name, smaller) in pairwise(_UNITS):
        if seconds >= size:
            rest = int(seconds % size // smaller)
            return f"{seconds // size:.0f}{name}" + (f" {rest}{smaller_name}" if rest else "")
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def moment(time: datetime, now: datetime, zone: tzinfo | None = None) -> str:
    """Return the time in full and its distance from now. `zone` None: the time zone of this machine."""
    return f"{time.astimezone(zone):%Y-%m-%d %H:%M:%S %z} ({until(time, now) if time > now else ago(time, now)})"


def size(count: int) -> str:
    """ "1.2 MB"."""
    number = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
        number /= 1000
    return f"{number:.1f} TB"


def cut(text: str) -> str:
    """Return the text, shortened to the width of a column."""
    return text if len(text) <= _LONGEST_NOTE else f"{text[: _LONGEST_NOTE - 1]}…"


def time_of(message: Any, field: str) -> datetime | None:
    """A time of a message, if it has come."""
    return getattr(message, field).ToDatetime(UTC) if message.HasField(field) else None
