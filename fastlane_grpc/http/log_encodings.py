"""Encodings of a log stream for HTTP: raw bytes, server-sent events, JSON lines.

The JSON of chunks is written here, as protobuf's own takes ten times as long; tests compare the two."""

import json
from binascii import b2a_base64
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from google.protobuf import json_format

from fastlane_grpc.api import LogEvent, StreamEncoding
from fastlane_grpc.api.log_encoding import event_message, gap_message
from fastlane_grpc.logs import Message, TextChunk
from fastlane_grpc.model import Source
from fastlane_grpc.v1 import fastlane_pb2 as pb

_SOURCE_NAMES = {source: f"SOURCE_{source.name}" for source in Source}


class LogEncoding(StreamEncoding, Protocol):
    """An encoding of one stream over HTTP."""

    # The bytes at the start of a response.
    prelude: bytes

    def problem(self, problem: Mapping[str, object]) -> bytes:
        """Return the last bytes of a stream that an error interrupts."""


class RawLog:
    """The bytes of the chunks alone. `end`: the last event of the stream so far."""

    name = "http-raw"
    prelude = b""

    def __init__(self) -> None:
        self.end: LogEvent | None = None

    def message(self, value: Message) -> bytes:
        """Return the data of the chunks. A gap has none."""
        return b"".join(chunk.text.encode() if isinstance(chunk, TextChunk) else chunk.data for chunk in value.chunks)

    def event(self, value: LogEvent, now: datetime) -> bytes:
        """Return nothing; keep the event for the end of the response."""
        self.end = value
        return b""

    def problem(self, problem: Mapping[str, object]) -> bytes:
        """Return nothing: the client sees that the response is incomplete."""
        return b""


class LogLines:
    """Each message as a line of JSON."""

    name = "http-lines"
    prelude = b""

    def message(self, value: Message) -> bytes:
        """Return the line of chunks or of a gap."""
        return _message_json(value).encode("ascii") + b"\n"

    def event(self, value: LogEvent, now: datetime) -> bytes:
        """Return the line of an event at the time `now`."""
        return _json(event_message(value, now)).encode() + b"\n"

    def problem(self, problem: Mapping[str, object]) -> bytes:
        """Return a line with the problem."""
        return json.dumps({"problem": problem}).encode() + b"\n"


class LogEvents:
    """Each message as a server-sent event, named after the field that it sets; its id is the cursor."""

    name = "http-events"
    # The pause of a browser before it connects again, in milliseconds.
    prelude = b"retry: 1000\n\n"

    def message(self, value: Message) -> bytes:
        """Return the event of chunks or of a gap."""
        name = "chunks" if value.gap is None else "gap"
        return f"event: {name}\nid: {value.cursor}\ndata: {_message_json(value)}\n\n".encode("ascii")

    def event(self, value: LogEvent, now: datetime) -> bytes:
        """Return the event at the time `now`."""
        message = event_message(value, now)
        return f"event: {message.WhichOneof('event')}\nid: {value.cursor}\ndata: {_json(message)}\n\n".encode()

    def problem(self, problem: Mapping[str, object]) -> bytes:
        """Return an event with the problem. It has no id, so that the last one stays in force."""
        return f"event: problem\ndata: {json.dumps(problem)}\n\n".encode()


def _message_json(value: Message) -> str:
    if value.gap is not None:
        return _json(gap_message(value))
    chunks = []
    for chunk in value.chunks:
        offset = f'"offset":"{chunk.offset}",' if chunk.offset else ""
        sequence = f',"sequence":"{chunk.sequence}"' if chunk.sequence else ""
        if isinstance(chunk, TextChunk):
            data = f',"text":{json.dumps(chunk.text)}' if chunk.text else ""
        else:
            data = f',"data":"{b2a_base64(chunk.data, newline=False).decode("ascii")}"' if chunk.data else ""
        chunks.append(
            f'{{"source":"{_SOURCE_NAMES[chunk.source]}",{offset}"time":"{_time(chunk.time_ns)}"{data}{sequence}}}'
        )
    return f'{{"cursor":"{value.cursor}","chunks":[{",".join(chunks)}]}}'


def _time(time_ns: int) -> str:
    """Return the time as protobuf's JSON has it: with as many groups of three digits as needed."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    if nanos == 0:
        return f"{_seconds(seconds)}Z"
    digits = f"{nanos:09}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{_seconds(seconds)}.{digits}Z"


@lru_cache(maxsize=64)
def _seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _json(message: pb.StreamExecutionLogsResponse | pb.StreamJobLogsResponse) -> str:
    value = json_format.MessageToDict(message, preserving_proto_field_name=True)
    if "end" in value:
        # Clients decide by these two, and protobuf leaves out a value that is zero.
        value["end"] = {"sealed": False, **value["end"], "exit_status": message.end.exit_status}
    if "job_end" in value:
        value["job_end"] |= {"exit_status": value["job_end"].get("exit_status", 0)}
    return json.dumps(value, separators=(",", ":"))
