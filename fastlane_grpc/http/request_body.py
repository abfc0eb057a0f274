"""The body of a request, read within limits: its size, the time that its sender takes, and the memory of all bodies."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Receive

from fastlane_grpc.http.problem import HttpError

# The time that a sender has, and the rate at which it gets more.
_SECONDS = 20.0
_BYTES_PER_SECOND = 32 << 10


class BodyBudget:
    """A limit on the bytes of all bodies that are read at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Take this many bytes. HttpError, where so many are not left."""
        if size > self._free_bytes:
            raise HttpError(
                503, "TOO_MANY_REQUESTS_AT_ONCE", "too many large requests are being read; retry", {"Retry-After": "1"}
            )
        self._free_bytes -= size
        try:
            yield
        finally:
            self._free_bytes += size


async def read_body(headers: Headers, receive: Receive, budget: BodyBudget, *, max_bytes: int) -> bytes:
    """Return the body, which has to be JSON unless it is empty. HttpError."""
    declared = _declared_bytes(headers)
    if declared == 0:
        return b""
    if declared is not None and declared > max_bytes:
        raise _too_large(max_bytes)
    with budget.taken(max_bytes if declared is None else declared):
        body = await _within_time(receive, max_bytes)
    if body:
        _check_media_type(headers)
    return body


def _declared_bytes(headers: Headers) -> int | None:
    """Return the number of bytes that the headers announce; None: any number may follow."""
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


async def _within_time(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    begin = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(begin + _SECONDS) as limit:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HttpError(400, "CLIENT_GONE", "the client has gone")
                body += message["body"]
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                if not message["more_body"]:
                    return bytes(body)
                limit.reschedule(begin + _SECONDS + len(body) / _BYTES_PER_SECOND)
    except TimeoutError:
        raise HttpError(
            408, "REQUEST_TOO_SLOW", "the body of the request took too long", {"Connection": "close"}
        ) from None


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, "REQUEST_TOO_LARGE", f"the body is larger than {max_bytes} bytes, which is the limit here")


def _check_media_type(headers: Headers) -> None:
    """Demand JSON by name: a form of another site's page cannot be sent as such."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        told = f"not {media_type[:100]}" if media_type else "and the request names no content type"
        raise HttpError(
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            f"the body must be JSON, {told}; send the header Content-Type: application/json",
        )
