"""A record that the server itself writes, as captures without a recorder do: its file, its seal and its trailer."""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fastlane_grpc.capture.capture import ask_record
from fastlane_grpc.capture.record_retries import retry_until_written
from fastlane_grpc.capture.written_record import trailer_in
from fastlane_grpc.record import NotARecord, RecordReader, RecordSealed, RecordWriter, Trailer


class ServerRecord:
    """The record of one execution at `path`. Used by one thread.

    `writer` is None before `open`, and after `seal` and `close`. `capture` is the name of the way of capture.
    """

    def __init__(self, path: Path, execution_id: str, *, capture: str, max_log_bytes: int) -> None:
        self.writer: RecordWriter | None = None
        self._path = path
        self._execution_id = execution_id
        self._capture = capture
        self._max_log_bytes = max_log_bytes
        self._first_byte_time: datetime | None = None

    @property
    def first_byte_time(self) -> datetime | None:
        nanos = self.writer.first_byte_time_ns if self.writer else None
        return self._first_byte_time if nanos is None else datetime.fromtimestamp(nanos / 1e9, UTC)

    def open(self) -> RecordWriter:
        """Return the writer of the record. An earlier try may have created the file. Raises OSError: no room."""
        self.writer = self.writer or self._opened()
        return self.writer

    def seal(self, exit_code: int | None, facts: Mapping[str, object]) -> Trailer | None:
        """Seal the record as `Capture.seal` does."""
        try:
            if self.writer is None:
                self.writer = retry_until_written(
                    partial(RecordWriter.resume, self._path, max_bytes=self._max_log_bytes)
                )
        except FileNotFoundError:
            return None
        except RecordSealed:
            return self.trailer()
        trailer = retry_until_written(partial(self.writer.seal, exit_code, facts, time.time_ns()))
        self._first_byte_time = self.first_byte_time
        self.writer = None
        return trailer

    def trailer(self) -> Trailer | None:
        return trailer_in(self._path, self._execution_id)

    def close(self) -> None:
        """Release the record as it is; a later capture may resume it."""
        if self.writer:
            with suppress(OSError):
                self.writer.sync()
            self.writer.close()
        self.writer = None

    def _opened(self) -> RecordWriter:
        """Open the record. An earlier try may have created it; before a start, the record is empty."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return RecordWriter.create(
                self._path, execution_id=self._execution_id, capture=self._capture, max_bytes=self._max_log_bytes
            )
        except FileExistsError:
            try:
                return RecordWriter.resume(self._path, max_bytes=self._max_log_bytes)
            except (NotARecord, RecordSealed) as error:
                if isinstance(error, RecordSealed) and ask_record(self._path, self._is_own):
                    raise
                # Retention deletes it with the log. The next try creates the record.
                self._path.rename(self._path.with_name(f"replaced-{secrets.token_hex(4)}"))
                return self._opened()

    def _is_own(self, record: RecordReader) -> bool:
        return record.is_of(self._execution_id)
