"""Questions of a capture to a record that another program writes. Each waits while the disk allows no answer."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fastlane_grpc.capture.capture import ask_record, trailer_of
from fastlane_grpc.capture.record_retries import retry_until_written
from fastlane_grpc.record import Chunk, Position, Trailer


def trailer_in(record: Path, execution_id: str) -> Trailer | None:
    """Return the trailer of the record; None if it has none, is another execution's, or is not there."""
    try:
        return retry_until_written(partial(ask_record, record, partial(trailer_of, execution_id=execution_id)))
    except FileNotFoundError:
        return None


def first_byte_time_in(record: Path) -> datetime | None:
    """Return the time of the record's first byte; None if there is none."""
    try:
        beginning = retry_until_written(partial(ask_record, record, lambda reader: reader.read(Position.BEGIN)))
    except FileNotFoundError:
        return None
    first = next(iter(beginning.entries), None)
    return datetime.fromtimestamp(first.time_ns / 1e9, UTC) if isinstance(first, Chunk) else None
