"""What the doctor found, as values."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. With a WARN jobs run; with a FAIL they do not, or what is promised of them does not hold."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one check: what is so, and, unless that is well, what to do."""

    check: str
    level: Level
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Level.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Level.FAIL, found, advice)
