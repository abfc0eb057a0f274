"""Times and durations between messages of the contract and Python's values."""

from datetime import UTC, datetime, timedelta
from typing import cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from fastlane_grpc.errors import Violation

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The longest duration of protobuf.
_MAX_SECONDS = 315_576_000_000
# Timestamps of protobuf are of the years 1 to 9999.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


def read_optional_time(message: object, name: str, field: str, violations: list[Violation]) -> datetime | None:
    """Return the time in the field `name`, rounded up to a microsecond; None if it is not set."""
    if not cast(Message, message).HasField(name):
        return None
    ns = read_time_ns(getattr(message, name), field, violations)
    return (
        None
        if ns is None
        else _EPOCH + timedelta(microseconds=min(-(-ns // 1_000), _LAST_SECOND * 1_000_000 + 999_999))
    )


def read_time_ns(time: Timestamp, field: str, violations: list[Violation]) -> int | None:
    """Return nanoseconds since 1970."""
    if not _FIRST_SECOND <= time.seconds <= _LAST_SECOND or not 0 <= time.nanos < 1_000_000_000:
        violations.append(Violation(field, f"is not a time: {time.seconds} seconds and {time.nanos} nanoseconds"))
        return None
    return time.seconds * 1_000_000_000 + time.nanos


def read_optional_duration(message: object, name: str, field: str, violations: list[Violation]) -> timedelta | None:
    """Return the duration in the field `name`; None if it is not set."""
    if not cast(Message, message).HasField(name):
        return None
    duration: Duration = getattr(message, name)
    if (
        abs(duration.seconds) > _MAX_SECONDS
        or abs(duration.nanos) >= 1_000_000_000
        or duration.seconds * duration.nanos < 0
    ):
        violations.append(
            Violation(field, f"is not a duration: {duration.seconds} seconds and {duration.nanos} nanoseconds")
        )
        return None
    return duration.ToTimedelta()


def timestamp(value: datetime | None) -> Timestamp | None:
    """Return the message of a time."""
    if value is None:
        return None
    message = Timestamp()
    write_time(message, value)
    return message


def write_time(message: Timestamp, value: datetime) -> None:
    """Write a time in place."""
    # FromDatetime takes five times as long, and a response has up to a dozen times for each job.
    since = value - _EPOCH
    message.seconds = since.days * 86_400 + since.seconds
    message.nanos = since.microseconds * 1_000


def duration(value: timedelta | None) -> Duration | None:
    """Return the message of a duration."""
    if value is None:
        return None
    message = Duration()
    message.FromTimedelta(value)
    return message
