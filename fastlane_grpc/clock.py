"""Time as an execution feels it: a clock that goes on while the machine sleeps, and what is left of a time that began
before us."""

import time
from datetime import datetime, timedelta


def boottime() -> float:
    """Seconds since the machine started, asleep or not; no step of the wall clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def left(span: timedelta, *, since: datetime, now: datetime) -> float:
    """Seconds that are left of `span`; by the wall clock, which may have been set: never more than all of it, never
    less than none."""
    return min(max((span - (now - since)).total_seconds(), 0.0), span.total_seconds())


def engine_time(text: str) -> datetime | None:
    """A time as the engine writes it; None for its zero."""
    if not text or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text)
