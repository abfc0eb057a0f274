"""Time spans as people write them."""

import re
from datetime import timedelta

_SPAN = re.compile(
    r"(?:([0-9]{1,6})d)?(?:([0-9]{1,8})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,11}(?:\.[0-9]{1,9})?)s)?(?:([0-9]{1,11})ms)?"
)


def span_of(text: str, name: str = "") -> timedelta:
    """Return the time span of a text, as "90s", "1.5s", "1h30m" or "2d". ValueError, which begins with the `name`."""
    match = _SPAN.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{name}{': ' if name else ''}{text!r} is not a duration, as '90s', '1h30m' or '2d'")
    days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds)
