"""Retry policies, schedules, unique keys and notifications as values, and their messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from google.protobuf import duration_pb2, timestamp_pb2

from fastlane_grpc.text.time_span import span_of
from fastlane_grpc.v1 import fastlane_pb2 as pb

Duration: TypeAlias = timedelta | float | str
"""A time span; a bare number is seconds, a string as "90s", "1h30m" or "2d"."""

RetryCause: TypeAlias = Literal["exit_code", "out_of_memory", "timed_out", "image_not_found", "image_denied"]


@dataclass(frozen=True, slots=True)
class MemoryGrowth:
    """More memory for an attempt after one that ran out of memory: `factor` times as much, at most `max_bytes`."""

    factor: float
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Attempts after a failed one, counted for each run; see `Retry` in the contract for the defaults."""

    max_retries: int
    initial_backoff: Duration | None = None
    """Wait before the first retry (1 s)."""
    factor: float = 0.0
    """Each further wait is longer by this factor (2)."""
    max_backoff: Duration | None = None
    """No wait is longer (1 h)."""
    jitter: bool = True
    """Wait a random part of the backoff, so that jobs that failed together do not come back together."""
    causes: Sequence[RetryCause] = ()
    """What is retried; by default exit codes, ends out of memory and timeouts."""
    exit_codes: Sequence[int] = ()
    """Only these exit codes are retried."""
    except_exit_codes: Sequence[int] = ()
    """These exit codes are not retried."""
    memory_growth: MemoryGrowth | None = None

    def message(self) -> pb.Retry:
        message = pb.Retry(
            max_retries=self.max_retries,
            initial_backoff=duration(self.initial_backoff, "initial_backoff"),
            factor=self.factor,
            max_backoff=duration(self.max_backoff, "max_backoff"),
            jitter=pb.Retry.JITTER_UNSPECIFIED if self.jitter else pb.Retry.JITTER_NONE,
            causes=[_value(_CAUSES, cause, "a cause of retries") for cause in self.causes],
            exit_codes=self.exit_codes,
            except_exit_codes=self.except_exit_codes,
        )
        if growth := self.memory_growth:
            message.memory_growth.factor, message.memory_growth.max_bytes = growth.factor, growth.max_bytes
        return message


@dataclass(frozen=True, slots=True)
class Cron:
    """A repeating schedule; see `Cron` in the contract for the rules."""

    expression: str
    """Five fields as in Debian's cron, or `@hourly` and the like."""
    time_zone: str | ZoneInfo = ""
    """Name in the IANA time zone database, as "Europe/Berlin", or its ZoneInfo; by default UTC."""
    overlap: Literal["skip", "queue_one", "replace", "allow"] | None = None
    """What a tick does while a run has not ended ("skip")."""
    catch_up: Literal["latest", "none", "all"] | None = None
    """What happens to ticks that were missed while the server was down ("latest")."""
    catch_up_window: Duration | None = None
    """Missed ticks older than this are not made up for (one day)."""
    jitter: Duration | None = None
    """Each run starts up to this much after its tick."""
    begin_time: datetime | None = None
    end_time: datetime | None = None
    max_runs: int = 0
    """Number of runs after which the schedule is over; 0: no limit."""
    paused: bool = False

    def message(self) -> pb.Cron:
        return pb.Cron(
            expression=self.expression,
            time_zone=_zone_name(self.time_zone),
            overlap=_value(_OVERLAPS, self.overlap, "a rule for overlaps"),
            catch_up=_value(_CATCH_UPS, self.catch_up, "a rule for missed ticks"),
            catch_up_window=duration(self.catch_up_window, "catch_up_window"),
            jitter=duration(self.jitter, "jitter"),
            begin_time=timestamp(self.begin_time),
            end_time=timestamp(self.end_time),
            max_runs=self.max_runs,
            paused=self.paused,
        )


@dataclass(frozen=True, slots=True)
class Unique:
    """A key that one open job of a task may hold."""

    key: str
    conflict: Literal["refuse", "use_existing", "replace"] | None = None
    """What happens to this job if another one holds the key ("refuse")."""

    def message(self) -> pb.Unique:
        return pb.Unique(key=self.key, conflict=_value(_CONFLICTS, self.conflict, "a rule for conflicts"))


NotificationEvent: TypeAlias = Literal["run_ended", "job_ended", "attempt_ended"]


@dataclass(frozen=True, slots=True)
class Webhook:
    """A notification by a signed POST; see `Notification` in the contract."""

    url: str
    states: Iterable[pb.State.ValueType] = ()
    """Only these final states; by default all."""
    event: NotificationEvent | None = None
    """What has to end: a run ("run_ended"), the job, or each attempt."""
    secret_name: str = ""
    """Name of the signing key in the server's file of keys."""
    secret: str = field(default="", repr=False)
    """The signing key itself, as `whsec_...`; prefer `secret_name`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_retries: int = 0
    """Attempts after the first one; 0: the server's default."""
    timeout: Duration | None = None
    """Maximum time of one attempt; by default the server's."""

    def message(self) -> pb.Notification:
        webhook = pb.Notification.Webhook(
            url=self.url,
            headers=self.headers,
            max_retries=self.max_retries,
            secret=self.secret,
            secret_name=self.secret_name,
            timeout=duration(self.timeout, "timeout"),
        )
        return pb.Notification(webhook=webhook, states=self.states, event=_value(_EVENTS, self.event, "an event"))


@dataclass(frozen=True, slots=True)
class Mail:
    """A notification by mail; see `Notification` in the contract."""

    to: str | Sequence[str]
    """An address, or several."""
    states: Iterable[pb.State.ValueType] = ()
    """Only these final states; by default all."""
    event: NotificationEvent | None = None
    """What has to end: a run ("run_ended"), the job, or each attempt."""
    subject: str = ""
    """By default one that names the task and the state."""

    def message(self) -> pb.Notification:
        mail = pb.Notification.Mail(to=[self.to] if isinstance(self.to, str) else self.to, subject=self.subject)
        return pb.Notification(mail=mail, states=self.states, event=_value(_EVENTS, self.event, "an event"))


_EVENTS = {name.removeprefix("EVENT_").lower(): value for name, value in pb.Notification.Event.items() if value}
_CAUSES = {name.removeprefix("RETRY_CAUSE_").lower(): value for name, value in pb.Retry.RetryCause.items() if value}
_OVERLAPS = {name.removeprefix("OVERLAP_").lower(): value for name, value in pb.Cron.Overlap.items() if value}
_CATCH_UPS = {name.removeprefix("CATCH_UP_").lower(): value for name, value in pb.Cron.CatchUp.items() if value}
_CONFLICTS = {name.removeprefix("CONFLICT_").lower(): value for name, value in pb.Unique.Conflict.items() if value}


def retry_message(retry: Retry | int | None) -> pb.Retry | None:
    """Return the message of a policy; a number is that of its retries, 0: none."""
    if isinstance(retry, int):
        retry = Retry(max_retries=retry) if retry else None
    return None if retry is None else retry.message()


def cron_message(cron: Cron | str | None) -> pb.Cron | None:
    """Return the message of a schedule; a string is its expression."""
    cron = Cron(cron) if isinstance(cron, str) else cron
    return None if cron is None else cron.message()


def unique_message(unique: Unique | str | None) -> pb.Unique | None:
    """Return the message of a unique key; a string is the key."""
    unique = Unique(unique) if isinstance(unique, str) else unique
    return None if unique is None else unique.message()


def notification_messages(notifications: Sequence[Webhook | Mail]) -> list[pb.Notification]:
    """Return the messages of notifications."""
    return [each.message() for each in notifications]


def duration(value: Duration | None, name: str = "") -> duration_pb2.Duration | None:
    """Return the message of a time span. ValueError, which begins with the `name`."""
    if value is None:
        return None
    message = duration_pb2.Duration()
    value = span_of(value, name) if isinstance(value, str) else value
    if isinstance(value, timedelta):
        message.FromTimedelta(value)
    else:
        message.FromNanoseconds(round(value * 1_000_000_000))
    return message


def _zone_name(time_zone: str | ZoneInfo) -> str:
    if isinstance(time_zone, str):
        return time_zone
    if not time_zone.key:
        raise ValueError("the time zone has no name: use ZoneInfo(NAME), as ZoneInfo('Europe/Berlin')")
    return time_zone.key


def timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone: use an aware datetime, as datetime.now(UTC)")
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(time)
    return message


def _value(values: Mapping[str, int], name: str | None, what: str) -> Any:
    if name is None:
        return 0
    if name not in values:
        raise ValueError(f"{name!r} is not {what}; use {', '.join(values)}")
    return values[name]
