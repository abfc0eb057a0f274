"""The integrity check of a tail: finds repeated, missing and changed bytes."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from fastlane_grpc.client.errors import LogInconsistent
from fastlane_grpc.client.events import STDERR, STDOUT, SYSTEM, Event, Gap, Output
from fastlane_grpc.v1 import fastlane_pb2


class IntegrityCheck:
    """The offset and checksum of each source that a tail has received. Methods raise LogInconsistent."""

    def __init__(
        self,
        request: fastlane_pb2.StreamExecutionLogsRequest | fastlane_pb2.StreamJobLogsRequest,
        execution_id: str,
    ) -> None:
        self._execution_id = execution_id
        self._text = request.text
        self._asked = set(request.sources) or {STDOUT, STDERR, SYSTEM}
        start_line = request.start_line if isinstance(request, fastlane_pb2.StreamExecutionLogsRequest) else 0
        self._from_first_byte = not (
            request.cursor or request.HasField("tail_lines") or request.HasField("since_time") or start_line > 1
        )
        self._positions: dict[int, _Position] = {}

    def outputs(self, chunks: Iterable[fastlane_pb2.LogChunk], events: list[Event]) -> None:
        # The hot path: of a flood of short lines every one comes through here.
        crc32 = zlib.crc32
        text_mode = self._text
        for chunk in chunks:
            source = chunk.source
            offset = chunk.offset
            data = chunk.data
            received_time = chunk.time
            position = self._positions.get(source) or self._begin(source)
            if offset != position.offset:
                self._expect(position, source, offset)
            position.offset = offset + len(data)
            if position.crc32 is not None:
                position.crc32 = crc32(data, position.crc32)
            time_ns = received_time.seconds * 1_000_000_000 + received_time.nanos
            events.append(Output(source, offset, data, chunk.text if text_mode else "", time_ns, chunk.sequence))

    def gap(self, gap: fastlane_pb2.LogGap, first_line: int) -> Gap:
        position = self._positions.get(gap.source) or self._begin(gap.source)
        self._expect(position, gap.source, gap.offset)
        missing_bytes = gap.missing_bytes if gap.HasField("missing_bytes") else None
        position.offset = gap.offset + (missing_bytes or 0)
        position.crc32 = None
        return Gap(gap.source, gap.offset, missing_bytes, gap.cause, first_line or None)

    def end(self, end: fastlane_pb2.LogEnd) -> None:
        if not end.sealed or self._text:
            return
        totals_of = {totals.source: totals for totals in end.totals}
        for source in self._asked:
            position = self._positions.get(source) or self._begin(source)
            totals = totals_of.get(source, fastlane_pb2.LogTotals())
            if position.offset is not None and position.offset != totals.bytes:
                self._fail(source, f"it ended at byte {position.offset}, but the server has {totals.bytes} bytes")
            if position.crc32 is not None and totals.HasField("crc32") and position.crc32 != totals.crc32:
                self._fail(source, f"its checksum is {position.crc32:08x} here but {totals.crc32:08x} on the server")

    def _begin(self, source: int) -> "_Position":
        """Return the offset of the first byte: 0, unless a cursor, lines or a time select the start. Then it is
        unknown."""
        self._positions[source] = position = _Position(0, 0) if self._from_first_byte else _Position(None, None)
        return position

    def _expect(self, position: "_Position", source: int, offset: int) -> None:
        # How many bytes a text was made from is not known: there, offsets may leap, but never go back.
        expected = position.offset
        if expected is None or offset == expected or (self._text and offset > expected):
            return
        self._fail(source, f"received byte {offset}, expected byte {expected}")

    def _fail(self, source: int, finding: str) -> NoReturn:
        name = fastlane_pb2.Source.Name(source) if source in fastlane_pb2.Source.values() else f"source {source}"  # type: ignore[arg-type]
        where = f"the log of execution {self._execution_id} is inconsistent in {name.removeprefix('SOURCE_').lower()}"
        raise LogInconsistent(f"{where}: {finding}")


@dataclass(slots=True)
class _Position:
    """Offset of the next byte, and the checksum of all before it; None where that cannot be known."""

    offset: int | None
    crc32: int | None
