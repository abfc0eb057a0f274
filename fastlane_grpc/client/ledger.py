"""The ledger of a tail: finds bytes that come twice, are missing, or are not those that were written."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from fastlane_grpc.client.errors import LogInconsistent
from fastlane_grpc.client.events import STDERR, STDOUT, SYSTEM, Event, Gap, Output
from fastlane_grpc.v1 import fastlane_pb2


class Ledger:
    """What a tail received of each source. Its methods raise LogInconsistent."""

    def __init__(self, request: fastlane_pb2.StreamExecutionLogsRequest) -> None:
        self._execution_id = request.execution_id
        self._text = request.text
        self._asked = set(request.sources) or {STDOUT, STDERR, SYSTEM}
        self._from_first_byte = not (request.cursor or request.HasField("tail_lines") or request.HasField("since_time"))
        self._places: dict[int, _Place] = {}

    def outputs(self, chunks: Iterable[fastlane_pb2.LogChunk], events: list[Event]) -> None:
        # The hot path: of a flood of short lines every one comes through here.
        crc32 = zlib.crc32
        text_mode = self._text
        for chunk in chunks:
            source = chunk.source
            offset = chunk.offset
            data = chunk.data
            received_time = chunk.time
            place = self._places.get(source) or self._begin(source)
            if offset != place.offset:
                self._expect(place, source, offset)
            place.offset = offset + len(data)
            if place.crc32 is not None:
                place.crc32 = crc32(data, place.crc32)
            time_ns = received_time.seconds * 1_000_000_000 + received_time.nanos
            events.append(Output(source, offset, data, chunk.text if text_mode else "", time_ns, chunk.sequence))

    def gap(self, gap: fastlane_pb2.LogGap) -> Gap:
        place = self._places.get(gap.source) or self._begin(gap.source)
        self._expect(place, gap.source, gap.offset)
        missing_bytes = gap.missing_bytes if gap.HasField("missing_bytes") else None
        place.offset = gap.offset + (missing_bytes or 0)
        place.crc32 = None
        return Gap(gap.source, gap.offset, missing_bytes, gap.cause)

    def end(self, end: fastlane_pb2.LogEnd) -> None:
        if not end.sealed or self._text:
            return
        totals_of = {totals.source: totals for totals in end.totals}
        for source in self._asked:
            place = self._places.get(source) or self._begin(source)
            totals = totals_of.get(source, fastlane_pb2.LogTotals())
            if place.offset is not None and place.offset != totals.bytes:
                self._fail(source, f"it ended at byte {place.offset}, and the server says that it has {totals.bytes}")
            if place.crc32 is not None and totals.HasField("crc32") and place.crc32 != totals.crc32:
                self._fail(source, f"its checksum is {place.crc32:08x} here and {totals.crc32:08x} at the server")

    def _begin(self, source: int) -> "_Place":
        """It begins at byte 0 unless a cursor, lines or a time say where the reader begins: none of these tells a
        client the byte."""
        self._places[source] = place = _Place(0, 0) if self._from_first_byte else _Place(None, None)
        return place

    def _expect(self, place: "_Place", source: int, offset: int) -> None:
        # How many bytes a text was made from is not known: there, offsets may leap, but never go back.
        expected = place.offset
        if expected is None or offset == expected or (self._text and offset > expected):
            return
        self._fail(source, f"byte {offset} came where byte {expected} was due")

    def _fail(self, source: int, finding: str) -> NoReturn:
        name = fastlane_pb2.Source.Name(source) if source in fastlane_pb2.Source.values() else f"source {source}"  # type: ignore[arg-type]
        raise LogInconsistent(
            f"the log of execution {self._execution_id} cannot be right, {name.removeprefix('SOURCE_').lower()}: {finding}"
        )


@dataclass(slots=True)
class _Place:
    """Offset of the next byte, and the checksum of all before it; None where that cannot be known."""

    offset: int | None
    crc32: int | None
