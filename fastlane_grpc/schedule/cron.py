"""The ticks of a schedule: times at which a run starts, by the rules of Debian's cron, in a time zone."""

import difflib
import hashlib
import re
import zoneinfo
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cronsim import CronSim, CronSimError

from fastlane_grpc.model import Cron

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_RANGES = ("0 to 59", "0 to 23", "1 to 31", "1 to 12 or jan to dec", "0 to 7 or sun to sat")
# The library has more than Debian's cron: L, LW and #. They are rejected, as is whatever else is not in the contract.
_NAMES = ("", "", "", "|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec", "|sun|mon|tue|wed|thu|fri|sat")
_TERMS = [
    re.compile(rf"(\*|(?:[0-9]{{1,2}}{names})(-(?:[0-9]{{1,2}}{names}))?)(/[0-9]{{1,3}})?", re.IGNORECASE | re.ASCII)
    for names in _NAMES
]
_MAX_EXPRESSION = 256
_MOMENT = timedelta(microseconds=1)
# Ticks before 1970 or beyond this year are not looked for: dates begin with the year 1 and end with 9999, and the
# search must not run into either end.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_YEAR = 9900


class CronInvalid(ValueError):
    """A schedule that cannot be. `field` is the field of Cron at fault, the message says why."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


class Ticks:
    """The ticks of one schedule, within its begin and end. CronInvalid if the expression or the time zone is invalid.

    All times are aware, and returned in UTC."""

    def __init__(self, cron: Cron, *, expire_time: datetime | None = None) -> None:
        self._expression = plain_expression(cron.expression)
        self._zone = time_zone(cron.time_zone)
        self._zone_name = cron.time_zone or "UTC"
        self._begin = cron.begin_time
        ends = [end for end in (cron.end_time, expire_time) if end is not None]
        # What cannot start any more has no tick.
        self._end = min(ends, default=None)

    def after(self, time: datetime) -> datetime | None:
        """Return the first tick after `time`; None if there is none."""
        return next(self.all_after(time), None)

    def all_after(self, time: datetime) -> Iterator[datetime]:
        """Yield the ticks after `time`, in their order."""
        time = max(time, _EPOCH)
        if self._begin is not None and self._begin > time:
            time = self._begin - _MOMENT
        last = time
        if time.year > _LAST_YEAR:
            return
        for local in CronSim(self._expression, time.astimezone(self._zone)):
            tick = local.astimezone(UTC)
            if tick.year > _LAST_YEAR or (self._end is not None and tick > self._end):
                return
            # Where clocks go back, the library may return to the first of two equal local times.
            if tick > last:
                last = tick
                yield tick

    def latest(self, after: datetime, until: datetime, most: int = 1) -> list[datetime]:
        """Return the latest ticks after `after` and not after `until`, in their order, at most `most`."""
        found: deque[datetime] = deque(maxlen=most)
        reach = timedelta(minutes=2 * most)
        while True:
            begin = max(after, until - reach)
            found.clear()
            for tick in self.all_after(begin):
                if tick > until:
                    break
                found.append(tick)
            if len(found) == most or begin == after:
                return list(found)
            reach *= 4

    def count(self, after: datetime, before: datetime, most: int) -> int:
        """Count the ticks after `after` and before `before`, up to `most`."""
        count = 0
        for tick in self.all_after(after):
            if tick >= before or count == most:
                break
            count += 1
        return count

    @property
    def description(self) -> str:
        """The schedule in words, for a person."""
        words = CronSim(self._expression, datetime(2000, 1, 1, tzinfo=UTC)).explain()
        return f"{words[:1].lower()}{words[1:]}, {self._zone_name}"


@lru_cache(1024)
def plain_expression(expression: str) -> str:
    """Return the five fields of an expression, which may be an alias. CronInvalid."""
    if not expression.strip():
        raise CronInvalid("expression", "is required")
    if len(expression) > _MAX_EXPRESSION:
        raise CronInvalid("expression", f"has {len(expression)} characters; at most {_MAX_EXPRESSION} are allowed")
    if expression.startswith("@"):
        if plain := ALIASES.get(expression.lower()):
            return plain
        raise CronInvalid("expression", f"{expression!r} is not one of {', '.join(ALIASES)}")
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        found = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
        raise CronInvalid(
            "expression", f"has {found}; it must have five: minute, hour, day of month, month, day of week"
        )
    for name, allowed, field, term in zip(_FIELDS, _RANGES, fields, _TERMS, strict=True):
        if not all(map(term.fullmatch, field.split(","))):
            raise CronInvalid(
                "expression", f"the {name} {field!r} must be *, {allowed}, or lists, ranges and steps of it"
            )
    plain = " ".join(fields)
    _check(plain, fields)
    return plain


def _check(expression: str, fields: list[str]) -> None:
    """Raise CronInvalid if the expression has an invalid value, or no tick at all."""
    start = datetime(2000, 1, 1, tzinfo=UTC)
    for number, (name, allowed, field) in enumerate(zip(_FIELDS, _RANGES, fields, strict=True)):
        alone = ["*"] * len(_FIELDS)
        alone[number] = field
        try:
            CronSim(" ".join(alone), start)
        except CronSimError as error:
            if number == 2 and not _is_bad_number(field):
                continue  # a day that some months have not: the whole expression says whether it ever comes
            raise CronInvalid(
                "expression", f"the {name} {field!r} must be *, {allowed}, or lists, ranges and steps of it"
            ) from error
    try:
        next(CronSim(expression, start))
    except (CronSimError, StopIteration) as error:
        raise CronInvalid("expression", f"{expression!r} never happens: no such day exists") from error


def _is_bad_number(days: str) -> bool:
    return any(not 1 <= int(number) <= 31 for number in re.findall(r"(?<!/)\b[0-9]+", days))


def time_zone(name: str) -> zoneinfo.ZoneInfo | type(UTC):  # type: ignore[valid-type]
    """Return the time zone of that name; empty means UTC. CronInvalid."""
    if not name or name == "UTC":
        return UTC
    # What the machine has beside the database differs from machine to machine: localtime, posix/, and right/ with its
    # leap seconds.
    if _zone_names().get(name.lower()) == name:
        return zoneinfo.ZoneInfo(name)
    raise CronInvalid("time_zone", f"{name[:100]!r} is not a time zone{_nearest(name)}")


def _nearest(name: str) -> str:
    zones = _zone_names()
    wanted = name[:100].lower().replace(" ", "_")
    # People remember the city.
    cities = [zone for folded, zone in zones.items() if folded.rpartition("/")[2] == wanted.rpartition("/")[2]]
    found = cities[:1] or [zones[each] for each in difflib.get_close_matches(wanted, zones, n=1)]
    return f"; did you mean {found[0]}?" if found else "; use a name as Europe/Berlin, or leave it empty for UTC"


@lru_cache(1)
def _zone_names() -> dict[str, str]:
    return {zone.lower(): zone for zone in sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})}


def jittered(job_id: str, tick: datetime, jitter: timedelta | None) -> datetime:
    """Return when the run of a tick is due: the same time whenever it is asked for."""
    return tick + (jitter or timedelta()) * fraction(f"{job_id} {tick.timestamp():.0f}")


def fraction(text: str) -> float:
    """Return a number from 0 up to 1 that is random in `text`, and the same for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / (1 << 48)
