"""Protobuf encoding of a log stream: serialised messages of StreamExecutionLogs.

Chunks are most of the bytes that a server sends. This module writes their message in protobuf's wire format itself:
protobuf's own serialisation copies each byte twice more, and took half of the processor time of a late reader. Tests
compare both to the byte."""

from dataclasses import replace
from datetime import datetime
from functools import lru_cache

from fastlane_grpc.api import converters
from fastlane_grpc.api.log_stream import (
    ExecutionBegins,
    Heartbeat,
    JobLogEnded,
    LogEnded,
    LogEvent,
    LogSuspended,
    StateChanged,
)
from fastlane_grpc.logs import Message, TextChunk
from fastlane_grpc.model import exit_status
from fastlane_grpc.text.redaction import SecretNames
from fastlane_grpc.v1 import fastlane_pb2 as pb

# Tags of the wire format, each a field number and the type of its value: StreamExecutionLogsResponse …
_CURSOR, _CHUNKS = b"\x0a", b"\x12"
# … LogChunk …
_SOURCE, _OFFSET, _TIME, _DATA, _TEXT, _SEQUENCE = b"\x08", b"\x10", b"\x1a", b"\x22", b"\x2a", b"\x30"
# … and Timestamp.
_SECONDS, _NANOS = b"\x08", b"\x10"

_ONE_BYTE = [bytes([number]) for number in range(128)]


class ProtobufEncoding:
    """A StreamEncoding whose messages and events are serialised StreamExecutionLogsResponses."""

    name = "protobuf"

    def message(self, value: Message) -> bytes:
        """Return the message of chunks or of a gap, serialised."""
        if value.gap is not None:
            return gap_message(value).SerializeToString()
        cursor = str(value.cursor).encode()
        parts = [_CURSOR, _varint(len(cursor)), cursor]
        for chunk in value.chunks:
            tag, data = (_TEXT, chunk.text.encode()) if isinstance(chunk, TextChunk) else (_DATA, chunk.data)
            seconds, nanos = divmod(chunk.time_ns, 1_000_000_000)
            time = _seconds(seconds) + (_NANOS + _varint(nanos) if nanos else b"")
            head = _SOURCE + _ONE_BYTE[chunk.source] + (_OFFSET + _varint(chunk.offset) if chunk.offset else b"")
            head += _TIME + _ONE_BYTE[len(time)] + time + (tag + _varint(len(data)) if data else b"")
            sequence = _SEQUENCE + _varint(chunk.sequence) if chunk.sequence else b""
            parts += (_CHUNKS, _varint(len(head) + len(data) + len(sequence)), head, data, sequence)
        return b"".join(parts)

    def event(self, value: LogEvent, now: datetime) -> bytes:
        """Return the message of an event at the time `now`, serialised."""
        return event_message(value, now).SerializeToString()


def gap_message(value: Message) -> pb.StreamExecutionLogsResponse:
    """Return the message of a gap."""
    assert value.gap is not None, "of a gap"
    return pb.StreamExecutionLogsResponse(
        cursor=str(value.cursor), gap=converters.gap(value.gap), first_line=value.first_line or 0
    )


def event_message(value: LogEvent, now: datetime) -> pb.StreamExecutionLogsResponse | pb.StreamJobLogsResponse:
    """Return the message of an event at the time `now`."""
    if isinstance(value, ExecutionBegins | JobLogEnded):
        return _job_event(value)
    message = pb.StreamExecutionLogsResponse(cursor=str(value.cursor))
    match value:
        case Heartbeat():
            message.heartbeat.time.FromDatetime(now)
        case StateChanged():
            message.state.CopyFrom(converters.log_state(value))
            message.first_line = value.first_line or 0
        case LogEnded() | LogSuspended():
            message.end.CopyFrom(converters.log_end(value))
    return message


def _job_event(value: ExecutionBegins | JobLogEnded) -> pb.StreamJobLogsResponse:
    message = pb.StreamJobLogsResponse(cursor=str(value.cursor))
    if isinstance(value, ExecutionBegins):
        message.execution.execution.CopyFrom(converters.execution(value.execution, value.waiting))
        message.execution.max_attempts = value.max_attempts
    else:
        # Without its spec there is nothing in it that may not be shown.
        job = replace(value.job, spec=None)
        message.job_end.job.CopyFrom(converters.job(job, lambda execution: None, SecretNames()))
        message.job_end.exit_status = exit_status(job.state, job.outcome)
    return message


def _varint(number: int) -> bytes:
    """Return a number as protobuf's varint: seven bits in each byte, the lowest first. The eighth bit marks that
    another byte follows."""
    if number < 1 << 7:
        return _ONE_BYTE[number]
    if number < 1 << 14:
        return bytes((number & 127 | 128, number >> 7))
    if number < 1 << 21:
        return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))
    if number < 1 << 28:
        return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128, number >> 21))
    return bytes(
        (number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128, number >> 21 & 127 | 128)
    ) + _varint(number >> 28)


@lru_cache(maxsize=64)
def _seconds(seconds: int) -> bytes:
    return _SECONDS + _varint(seconds) if seconds else b""
