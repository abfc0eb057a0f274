"""The layout of a record, to the byte. Packed values unpack to the same; damage does not unpack.

All numbers are little-endian, all CRCs CRC-32 as in zlib and gzip, all times nanoseconds since 1970
(UTC), all offsets and sequences below 2^62.

**The file** is a row of blocks of 65 536 bytes, the last one shorter. It is only ever appended to.
A block is a header and then frames, which never straddle its end. Where the next frame does not
fit, the block is filled with zeros and the next one begins. A file may end in the middle of
anything: what is not there is not there yet. Whole blocks may be punched out later; they then read
as zeros. A log with a size limit keeps its first blocks and its newest ones in this way.

**Block header**, 168 bytes: all that a reader needs to begin here, which is the state of the record
before the first frame of the block.

      0   4  magic AB 46 4C 52
      4   4  CRC of bytes 8 to 167 of this header
      8   2  version of the format, 1
     10   2  bytes of this header, 168
     12   4  number of the first block that the size limit lets be punched out; 0: none
     16   8  number of this block, from 0
     24   8  time of the last data or gap frame; 0: none yet
     32   8  sequence of the next data or gap frame
     40   8  time of the first data frame; 0: none yet
     48  40  stdout
     88  40  stderr
    128  40  system

and each of the three

      0   8  offset: bytes so far, missing ones of known number included
      8   8  newlines so far, in what was not missing
     16   8  missing bytes so far, as far as their number is known
     24   8  sequence of the last gap of unknown size, if no byte and no other gap of this source came after; else 0
     32   4  running CRC of the bytes that were not missing; 0 before the first
     36   4  flags; bit 0: bytes are missing, so the CRC does not cover every byte

**Frame**, a header of 16 bytes and then the payload.

      0   8  time; never less than in the data or gap frame before
      8   2  bytes of payload
     10   1  kind: 1 stdout, 2 stderr, 3 system, 16 START, 17 GAP, 18 TRAILER
     11   1  zero
     12   4  check: a CRC continued over bytes 0 to 11 of this header; for data from the running CRC of the source
             after this payload, for the others from the CRC of the payload. So one pass over the payload verifies
             the frame and continues the source.

Sixteen zeros in place of a frame header, or fewer than sixteen bytes left: nothing more in this
block. Data and GAP frames have a sequence: 1, 2, 3 … within the record. It is not in the frame: it
is counted from that in the block's header.

* Data: 1 byte or more.
* GAP: source (1 byte), cause (1 byte, a number of the contract), 6 zeros, missing bytes (8 bytes;
  all ones: unknown). A known number moves the source's offset, an unknown one does not.
* START: only as the first frame of the file; one JSON object in ASCII, `{"execution_id": …,
  "capture": …}`. It has no sequence, and its time is no bound for those that follow.
* TRAILER: the last frame of the file, nothing follows; one JSON object in ASCII, `{"exit_code":
  number or null, "totals": [{"source": …, "bytes": …, "missing_bytes": …, "newlines": …, "crc32":
  number or null}, …], "facts": {…}}`. A total for each source that wrote or lost something; its
  crc32 is of all that the writer saw, also of what is not kept, and null where it did not see all.

**Damage** is a bad block header, an impossible frame or a check that fails. What lies from there to
the next good block header is a gap in each source, as long as the offsets of that header say. Where
no good block follows, it may as well be a write that was torn: a reader waits, a writer that
resumes cuts it off.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from fastlane_grpc.model import Cause, LogTotals, Source

BLOCK_BYTES: Final = 65_536
SOURCES: Final = (Source.STDOUT, Source.STDERR, Source.SYSTEM)

PADDING: Final = 0
START: Final = 16
GAP: Final = 17
TRAILER: Final = 18

_MAGIC: Final = b"\xabFLR"
_VERSION: Final = 1
_BYTES_ARE_MISSING: Final = 1
_UNKNOWN: Final = (1 << 64) - 1
_LIMIT: Final = 1 << 62

_BLOCK_HEADER: Final = Struct("<4sIHHIQQQQ" + "QQQQII" * len(SOURCES))
_CHECKED_FROM: Final = 8
_GAP: Final = Struct("<BB6xQ")
_CHECKED_PART: Final = Struct("<QHBB")
_CHECK: Final = Struct("<I")
FRAME_HEADER: Final = Struct("<QHBBI")

BLOCK_HEADER_BYTES: Final = _BLOCK_HEADER.size
FRAME_HEADER_BYTES: Final = FRAME_HEADER.size
FRAME_CHECKED_BYTES: Final = _CHECKED_PART.size
MAX_PAYLOAD_BYTES: Final = BLOCK_BYTES - BLOCK_HEADER_BYTES - FRAME_HEADER_BYTES
NO_FRAME: Final = bytes(FRAME_HEADER_BYTES)


# The four below are named tuples because they are made by the hundred thousand, and a frozen dataclass takes four times
# as long.


class Chunk(NamedTuple):
    """Bytes of one source that were received together; `offset` is the place of the first one within the source."""

    source: Source
    offset: int
    time_ns: int
    data: bytes
    sequence: int


class Gap(NamedTuple):
    """Missing bytes of one source, from `offset` on. None: their number is unknown, and offsets continue as if there
    were none."""

    source: Source
    offset: int
    missing_bytes: int | None
    cause: Cause
    sequence: int
    time_ns: int


class SourceState(NamedTuple):
    """One source, up to some place in the record; the fields are those of the block header."""

    offset: int = 0
    newlines: int = 0
    missing_bytes: int = 0
    gap_sequence: int = 0
    crc32: int = 0
    lossy: bool = False


Sources = tuple[SourceState, SourceState, SourceState]


class RecordState(NamedTuple):
    """A whole record, up to some place in it. `sequence` and `time_ns` are those of the last data or gap frame; 0 is
    none yet.

    `punched_from` is the first block that the size limit lets be punched out; 0 is none.
    """

    sequence: int = 0
    time_ns: int = 0
    first_byte_time_ns: int = 0
    sources: Sources = (SourceState(), SourceState(), SourceState())
    punched_from: int = 0


@dataclass(frozen=True, slots=True)
class Trailer:
    """The end of a record. `totals` has each source that wrote or lost something; `facts` is what else its writer knew,
    as JSON."""

    time_ns: int
    totals: tuple[LogTotals, ...]
    exit_code: int | None
    facts: Mapping[str, object]


def pack_block_header(number: int, state: RecordState) -> bytes:
    fields: list[int] = []
    for source in state.sources:
        flags = _BYTES_ARE_MISSING if source.lossy else 0
        fields += (source.offset, source.newlines, source.missing_bytes, source.gap_sequence, source.crc32, flags)
    times = (state.time_ns, state.sequence + 1, state.first_byte_time_ns)
    raw = _BLOCK_HEADER.pack(_MAGIC, 0, _VERSION, BLOCK_HEADER_BYTES, state.punched_from, number, *times, *fields)
    return _MAGIC + _CHECK.pack(zlib.crc32(raw[_CHECKED_FROM:])) + raw[_CHECKED_FROM:]


def unpack_block_header(raw: bytes, number: int, at: int = 0) -> RecordState | None:
    """The state before block `number`, whose header is at `at`; None if that is not a good one of this block."""
    if len(raw) - at < BLOCK_HEADER_BYTES:
        return None
    magic, check, version, size, *rest = _BLOCK_HEADER.unpack_from(raw, at)
    punched_from, its_number, time_ns, sequence, first_byte_time_ns, *fields = rest
    if (magic, version, size, its_number) != (_MAGIC, _VERSION, BLOCK_HEADER_BYTES, number):
        return None
    if check != zlib.crc32(raw[at + _CHECKED_FROM : at + BLOCK_HEADER_BYTES]):
        return None
    if not 0 < sequence < _LIMIT or max(fields[::6]) >= _LIMIT or max(fields[3::6]) >= sequence:
        return None
    stdout, stderr, system = (_unpack_source(*fields[i : i + 6]) for i in (0, 6, 12))
    return RecordState(sequence - 1, time_ns, first_byte_time_ns, (stdout, stderr, system), punched_from)


def pack_frame_header(kind: int, length: int, time_ns: int, payload_crc32: int) -> bytes:
    """`payload_crc32` is the running CRC of the source after the payload if it is data, else the CRC of the payload."""
    checked = _CHECKED_PART.pack(time_ns, length, kind, 0)
    return checked + _CHECK.pack(zlib.crc32(checked, payload_crc32))


def pack_gap(source: Source, missing_bytes: int | None, cause: Cause) -> bytes:
    return _GAP.pack(source, cause, _UNKNOWN if missing_bytes is None else missing_bytes)


def unpack_gap(payload: bytes) -> tuple[Source, int | None, Cause] | None:
    """Source, missing bytes and cause; None if no gap is written like that."""
    if len(payload) != _GAP.size:
        return None
    source, cause, missing = _GAP.unpack(payload)
    if source not in SOURCES or _LIMIT <= missing < _UNKNOWN:
        return None
    return Source(source), None if missing == _UNKNOWN else missing, _CAUSES.get(cause, Cause.UNSPECIFIED)


def pack_start(execution_id: str, capture: str) -> bytes:
    return _pack_json({"execution_id": execution_id, "capture": capture})


def unpack_start(beginning: bytes) -> str:
    """Return the execution that START names, from the first bytes of a record; empty if START is missing or damaged."""
    payload_at = BLOCK_HEADER_BYTES + FRAME_HEADER_BYTES
    if len(beginning) < payload_at:
        return ""
    _, length, kind, _, check = FRAME_HEADER.unpack_from(beginning, BLOCK_HEADER_BYTES)
    payload = beginning[payload_at : payload_at + length]
    checked = beginning[BLOCK_HEADER_BYTES : BLOCK_HEADER_BYTES + FRAME_CHECKED_BYTES]
    if kind != START or zlib.crc32(checked, zlib.crc32(payload)) != check:
        return ""
    try:
        return str(json.loads(payload.decode("ascii"))["execution_id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def pack_trailer(state: RecordState, exit_code: int | None, facts: Mapping[str, object]) -> bytes:
    totals = [
        {
            "source": total.source,
            "bytes": total.bytes,
            "missing_bytes": total.missing_bytes,
            "newlines": state.sources[total.source - 1].newlines,
            "crc32": total.crc32,
        }
        for total in totals_of(state)
    ]
    return _pack_json({"exit_code": exit_code, "totals": totals, "facts": dict(facts)})


def unpack_trailer(payload: bytes, time_ns: int) -> Trailer | None:
    """The trailer; None if no writer of this format would have written that."""
    try:
        content = json.loads(payload.decode("ascii"))
        totals = tuple(_unpack_total(total) for total in content["totals"])
        exit_code = content["exit_code"]
        return Trailer(
            time_ns,
            totals,
            None if exit_code is None else _integer(exit_code, -(1 << 31), 1 << 31),
            dict(content["facts"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def totals_of(state: RecordState) -> tuple[LogTotals, ...]:
    """One for each source that wrote or lost something; with a checksum where every byte was seen."""
    return tuple(
        LogTotals(source, its.offset, its.missing_bytes, None if its.lossy else its.crc32)
        for source, its in zip(SOURCES, state.sources, strict=True)
        if its.offset or its.lossy
    )


_CAUSES: Final = {int(cause): cause for cause in Cause}


def _unpack_source(
    offset: int, newlines: int, missing_bytes: int, gap_sequence: int, crc32: int, flags: int
) -> SourceState:
    return SourceState(offset, newlines, missing_bytes, gap_sequence, crc32, bool(flags & _BYTES_ARE_MISSING))


def _pack_json(content: Mapping[str, object]) -> bytes:
    payload = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame holds {MAX_PAYLOAD_BYTES} bytes, these facts have {len(payload)}: shorten them")
    return payload


def _unpack_total(total: Mapping[str, object]) -> LogTotals:
    crc32 = total["crc32"]
    return LogTotals(
        source=Source(_integer(total["source"], 1, 4)),
        bytes=_integer(total["bytes"], 0, _LIMIT),
        missing_bytes=_integer(total["missing_bytes"], 0, _LIMIT),
        crc32=None if crc32 is None else _integer(crc32, 0, 1 << 32),
    )


def _integer(value: object, least: int, beyond: int) -> int:
    if type(value) is not int or not least <= value < beyond:
        raise ValueError(value)
    return value
