"""The body of a request, read within limits: its size, the time that its sender takes, and the memory of all bodies."""

import asyncio
from collections.abc import AsyncGenerator

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
        declared = declared_bytes(headers)
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

    async def parts(self, headers: Headers, receive: Receive, *, part_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the body in parts of this size, the last one of what is left. HttpError.

        The time that the caller takes for a part is not that of the sender.
        """
        _check_encoding(headers)
        loop, part, received, more = asyncio.get_running_loop(), bytearray(), 0, True
        end = loop.time() + self._limits.body_seconds
        try:
            while more:
                piece, more = await self._piece(receive, end + received / self._limits.body_bytes_per_second)
                part += piece
                received += len(piece)
                while len(part) >= part_bytes or (part and not more):
                    begin = loop.time()
                    yield bytes(part[:part_bytes])
                    end += loop.time() - begin
                    self._free_bytes += len(part[:part_bytes])
                    del part[:part_bytes]
        finally:
            self._free_bytes += len(part)

    async def _receive(self, receive: Receive, body: bytearray, max_bytes: int) -> None:
        end, more = asyncio.get_running_loop().time() + self._limits.body_seconds, True
        while more:
            piece, more = await self._piece(receive, end + len(body) / self._limits.body_bytes_per_second)
            body += piece
            if len(body) > max_bytes:
                raise _too_large(max_bytes)

    async def _piece(self, receive: Receive, until: float) -> tuple[bytes, bool]:
        """Return a piece, which was taken from the free bytes, and whether more follows."""
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise HttpError(
                408, "REQUEST_TOO_SLOW", "the body of the request took too long", {"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            raise HttpError(400, "CLIENT_GONE", "the client has gone")
        piece: bytes = message["body"]
        # Counted as it arrives: who only announces a large body takes nothing from others.
        if len(piece) > self._free_bytes:
            raise HttpError(
                503, "TOO_MANY_REQUESTS", "too many large requests are being read; retry", {"Retry-After": "1"}
            )
        self._free_bytes -= len(piece)
        return piece, message["more_body"]


def declared_bytes(headers: Headers) -> int | None:
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
    _check_encoding(headers)


def _check_encoding(headers: Headers) -> None:
    for name in ("Content-Encoding", "Transfer-Encoding"):
        encoding = ", ".join(headers.getlist(name)).strip().lower()
        if encoding not in {"", "identity", "chunked"}:
            raise HttpError(
                415, "UNSUPPORTED_MEDIA_TYPE", f"the body is encoded as {encoding[:100]}, by {name}; send it as it is"
            )
