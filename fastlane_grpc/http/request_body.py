"""The body of a request, read within limits: its size, the time that its sender takes, and the memory of all bodies."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import Receive

from fastlane_grpc.http.limits import HttpLimits
from fastlane_grpc.http.problem import HttpError


class BodyReader:
    """A reader of bodies, which limits the bytes of all that are read at a time."""

    def __init__(self, limits: HttpLimits, *, max_request_bytes: int) -> None:
        self._limits = limits
        self._free_bytes = max(limits.max_body_bytes, max_request_bytes)

    async def read(self, headers: Headers, receive: Receive, *, max_bytes: int) -> bytes:
        """Return the body, which has to be JSON unless it is empty. HttpError."""
        declared = _declared_bytes(headers)
        if declared == 0:
            return b""
        if declared is not None and declared > max_bytes:
            raise _too_large(max_bytes)
        body = bytearray()
        try:
            await self._receive(receive, body, max_bytes)
        finally:
            self._free_bytes += len(body)
        if body:
            _check_media_type(headers)
        return bytes(body)

    async def _receive(self, receive: Receive, body: bytearray, max_bytes: int) -> None:
        end = asyncio.get_running_loop().time() + self._limits.body_seconds
        try:
            async with asyncio.timeout_at(end) as limit:
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HttpError(400, "CLIENT_GONE", "the client has gone")
                    body += message["body"]
                    self._free_bytes -= len(message["body"])
                    more = message["more_body"]
                    if len(body) > max_bytes:
                        raise _too_large(max_bytes)
                    # Counted as it arrives: who only announces a large body takes nothing from others.
                    if self._free_bytes < 0:
                        raise HttpError(
                            503,
                            "TOO_MANY_REQUESTS",
                            "too many large requests are being read; retry",
                            {"Retry-After": "1"},
                        )
                    limit.reschedule(end + len(body) / self._limits.body_bytes_per_second)
        except TimeoutError:
            raise HttpError(
                408, "REQUEST_TOO_SLOW", "the body of the request took too long", {"Connection": "close"}
            ) from None


def _declared_bytes(headers: Headers) -> int | None:
    """Return the number of bytes that the headers announce; None: any number may follow."""
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


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
    for name in ("Content-Encoding", "Transfer-Encoding"):
        encoding = ", ".join(headers.getlist(name)).strip().lower()
        if encoding not in {"", "identity", "chunked"}:
            raise HttpError(
                415, "UNSUPPORTED_MEDIA_TYPE", f"the body is encoded as {encoding[:100]}, by {name}; send it as it is"
            )
