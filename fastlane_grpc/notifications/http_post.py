"""One POST over HTTP to an address that the settings allow.

The address is checked after the name was resolved, and the connection is made to that very address: a name that has
another address a moment later reaches nothing else. Redirects are not followed. A receiver may take a limited time, and
of its answer little is read."""

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from fastlane_grpc.networks import Networks
from fastlane_grpc.notifications.reply import Reply

# What is read of an answer: enough for the first words of an error.
_MAX_ANSWER_BYTES = 4096
_TOLD_CHARACTERS = 120
# What a connection takes in all. Before its status a receiver may send interim answers, which the library reads for
# ever.
_MAX_RECEIVED_BYTES = 256 << 10
# Threads that resolve names: a name server that hangs holds up as many names.
_RESOLVING_THREADS = 16


class AddressRefused(OSError):
    """The settings do not allow the address of a receiver."""


class HttpPost:
    """An HTTP client that can POST. Made on any thread, as it reads the certificates of the system; lives on the loop
    from then on. `close` releases its connections and threads."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._tls = ssl.create_default_context()
        self._resolver = _Resolver(networks)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float) -> Reply:
        """Return what came of it. It ends within the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._post(url, body, headers)
        except TimeoutError:
            return Reply(False, f"timed out after {timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _failure(error)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        session = self._session = self._session or self._new_session()
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            status = response.status
            if 200 <= status < 300:
                response.close()
                return Reply(True, f"HTTP {status}")
            answer = await _first_bytes(response)
            # The rest is not read, and the connection not used again.
            response.close()
            return _refusal(status, response.headers.get("Retry-After", ""), answer)

    def _new_session(self) -> aiohttp.ClientSession:
        connector = _Connector(
            ssl=self._tls,
            resolver=self._resolver,
            use_dns_cache=False,
            force_close=True,
            # How many attempts are made at a time is for the notifier to say.
            limit=0,
            socket_factory=self._socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(),
        )

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return the socket that is connected to this address next. AddressRefused."""
        family, kind, protocol, _, where = address
        # An address in a URL was resolved by nobody.
        if refusal := self._networks.refusal(str(where[0])):
            raise AddressRefused(refusal)
        return socket.socket(family, kind, protocol)


class _Connector(aiohttp.TCPConnector):
    """A connector whose connections take a limited number of bytes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_BoundedAnswer, loop=asyncio.get_running_loop())  # type: ignore[assignment]


class _BoundedAnswer(ResponseHandler):
    """The protocol of one connection. An answer that goes on for ever costs the loop a bounded time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._left_bytes = _MAX_RECEIVED_BYTES

    def data_received(self, data: bytes) -> None:
        taken = data[: self._left_bytes]
        self._left_bytes -= len(taken)
        if taken or not data:
            super().data_received(taken)
        if not self._left_bytes and self.transport is not None:
            self.set_exception(aiohttp.ClientPayloadError("the answer has no end"))
            self.transport.abort()


class _Resolver(AbstractResolver):
    """Resolves names by the system, on threads of its own: a name server that hangs holds up no other part. Addresses
    that are not allowed are left out."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._threads = ThreadPoolExecutor(_RESOLVING_THREADS, "webhook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        refusals = [self._networks.refusal(str(address[0])) for *_, address in found]
        if found and all(refusals):
            raise AddressRefused(refusals[0])
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for (kind, _, protocol, _, address), refusal in zip(found, refusals, strict=True)
            if not refusal
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _first_bytes(response: aiohttp.ClientResponse) -> bytes:
    """Return what an answer begins with. The body may be endless."""
    answer = b""
    with suppress(aiohttp.ClientError):
        while len(answer) < _MAX_ANSWER_BYTES and (piece := await response.content.read(_MAX_ANSWER_BYTES)):
            answer += piece
    return answer[:_MAX_ANSWER_BYTES]


def _refusal(status: int, retry_after: str, answer: bytes) -> Reply:
    words = answer.decode("utf-8", "replace").strip()[:_TOLD_CHARACTERS]
    detail = f"HTTP {status}{': ' if words else ''}{words}"
    if 300 <= status < 400:
        detail = f"HTTP {status}: redirects are not followed"
    # The receiver wants no more of these. Everything else may be mended.
    return Reply(False, detail, rejected=status == HTTPStatus.GONE, retry_seconds=_retry_seconds(retry_after))


def _retry_seconds(text: str) -> float | None:
    """Return what a Retry-After asks for: seconds, or a time."""
    if text.isascii() and text.isdigit():
        return float(text[:6])
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _failure(error: Exception) -> Reply:
    refused = _refused(error)
    if refused is not None:
        return Reply(False, str(refused), rejected=True)
    if isinstance(error, aiohttp.InvalidURL):
        return Reply(False, f"the URL cannot be used: {error}", rejected=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return Reply(False, f"TLS: {error}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Reply(False, "the name of the receiver cannot be resolved")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Reply(False, f"cannot connect: {os.strerror(error.errno) if error.errno else error.os_error}")
    if isinstance(error, aiohttp.ClientResponseError):
        # The text of the error itself has the URL, whose path may be a secret.
        return Reply(False, f"the answer is not HTTP: {error.message}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Reply(False, f"the answer cannot be read: {error}")
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return Reply(False, "the receiver closed the connection without an answer")
    return Reply(False, f"{type(error).__name__}: {error}")


def _refused(error: BaseException | None) -> AddressRefused | None:
    """Return the refusal of an address that led to this error, if one did."""
    while error is not None:
        if isinstance(error, AddressRefused):
            return error
        if isinstance(error, BaseExceptionGroup):
            return next(filter(None, map(_refused, error.exceptions)), None)
        inner = getattr(error, "os_error", None)
        error = inner if inner is not None and inner is not error else error.__cause__ or error.__context__
    return None
