"""A client of HTTP that sees each byte: one request on a connection, or whatever a test writes."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, cast

SECONDS = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status, its headers by names in small letters, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """That of an error."""
        assert self.headers["content-type"] == "application/problem+json"
        assert self.json["status"] == self.status
        return str(self.json["reason"])


async def ask(port: int, verb: str, path: str, body: object = None, **headers: str) -> Answer:
    """The answer to one request. A body that is not bytes is sent as JSON; `content_type` is a header."""
    async with connected(port) as (reader, writer):
        writer.write(request(verb, path, body, connection="close", **headers))
        async with asyncio.timeout(SECONDS):
            return answer(await reader.read(), verb)


def request(verb: str, path: str, body: object = None, **headers: str) -> bytes:
    """A request as bytes. A header without a value is left out."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": "localhost"}
    if body is not None:
        fields |= {"content-type": "application/json", "content-length": str(len(content))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{verb} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def answer(data: bytes, verb: str = "GET") -> Answer:
    """The response in all that a server sent."""
    response = HTTPResponse(cast("Any", _Bytes(data)), method=verb)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, closed in the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


@dataclass(frozen=True, slots=True)
class _Bytes:
    data: bytes

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)
