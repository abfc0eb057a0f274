"""Requests as JSON for people, as `fastlane enqueue --file` reads them; see `request_json`."""

from fastlane_grpc.request_json import parse_json, read_message
from fastlane_grpc.v1 import fastlane_pb2 as pb

# No server takes a larger request by default.
_LONGEST_BYTES = 4 << 20


def request_from_json(line: bytes) -> pb.EnqueueJobRequest | None:
    """Return the request of one JSON object; None: the line is blank. ValueError, which names the field."""
    if len(line) > _LONGEST_BYTES:
        raise ValueError(f"is longer than {_LONGEST_BYTES} bytes")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start + 1}") from None
    if not text.strip():
        return None
    request = pb.EnqueueJobRequest()
    read_message(parse_json(text), request)
    return request
