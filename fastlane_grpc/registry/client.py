"""The client of a registry of images: reads manifests and small blobs of one repository, as the HTTP API V2 has them.

Credentials are sent only when they are asked for, and only by TLS or on loopback. Every failure is CannotRun or
PullFailed.
"""

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from fastlane_grpc.backend import CannotRun, PullFailed
from fastlane_grpc.model import Reason
from fastlane_grpc.registry.reference import Reference, is_loopback
from fastlane_grpc.secrets import Credential
from fastlane_grpc.text.sanitize import one_line

if TYPE_CHECKING:
    import aiohttp

# The largest manifest or configuration that is read: registries take manifests of this size at most.
MAX_BYTES = 4 << 20
# The largest token, and the largest error.
_MAX_TOKEN_BYTES, _MAX_ERROR_BYTES = 256 << 10, 64 << 10
_MOST_REDIRECTS = 5
# Of the words of a registry, so many are repeated.
_TOLD_CHARACTERS = 300
_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_PARAMETER = re.compile(r'([a-zA-Z]+)="([^"\\]*)"')


class RegistryClient:
    """Reads from the repository of one image. Made by `connected`, and lives on one event loop."""

    def __init__(self, session: "aiohttp.ClientSession", reference: Reference, credential: Credential) -> None:
        self._session = session
        self._reference = reference
        self._credential = credential
        self._authorization = ""
        self._base = f"{'http' if reference.is_on_loopback else 'https'}://{reference.server}"

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, reference: Reference, credential: Credential, *, seconds: float
    ) -> "AsyncIterator[RegistryClient]":
        """Return a client for a look-up, which has to end within so many seconds. Raises PullFailed if it does not."""
        # Not at the top: servers of Docker hosts alone do not need it.
        import aiohttp

        try:
            async with (
                asyncio.timeout(seconds),
                aiohttp.ClientSession(
                    cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(), auto_decompress=False
                ) as session,
            ):
                yield cls(session, reference, credential)
        except TimeoutError as error:
            raise PullFailed(f"{reference.registry} did not answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PullFailed(one_line(f"{reference.registry} cannot be read: {error}", _TOLD_CHARACTERS)) from error

    async def manifest(self, version: str) -> bytes:
        """Return the manifest of a tag or digest."""
        return await self._read(f"manifests/{version}", ", ".join(_MANIFESTS))

    async def blob(self, digest: str) -> bytes:
        """Return a blob of at most MAX_BYTES."""
        return await self._read(f"blobs/{digest}", "*/*")

    async def _read(self, path: str, accept: str) -> bytes:
        url = f"{self._base}/v2/{self._reference.repository}/{path}"
        response = await self._asked(url, accept)
        if response.status == 401:
            challenge = response.headers.get("WWW-Authenticate", "")
            before, self._authorization = self._authorization, await self._answer_to(challenge)
            if self._authorization and self._authorization != before:
                response.close()
                response = await self._asked(url, accept)
        async with response:
            if response.status != 200:
                raise await self._failure(response)
            return await _body(response, MAX_BYTES, f"{self._reference}: what {path} names")

    async def _asked(self, url: str, accept: str) -> "aiohttp.ClientResponse":
        """Return the response to a GET, after redirects. A redirect to another server gets no credentials."""
        origin = urlsplit(url)[:2]
        for _ in range(_MOST_REDIRECTS):
            headers = {"Accept": accept, "Accept-Encoding": "identity", "User-Agent": "fastlane"}
            if self._authorization and urlsplit(url)[:2] == origin:
                headers["Authorization"] = self._authorization
            response = await self._session.get(url, headers=headers, allow_redirects=False, proxy=self._proxy(url))
            if response.status not in {301, 302, 303, 307, 308}:
                return response
            response.close()
            url = self._checked(urljoin(url, response.headers.get("Location", "")), "redirects")
        raise PullFailed(f"{self._reference.registry} redirects more than {_MOST_REDIRECTS} times")

    async def _answer_to(self, challenge: str) -> str:
        """Return the Authorization header that the registry asks for; empty if there is nothing to show."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            return _basic(self._credential)
        if kind.lower() != "bearer":
            return ""
        given = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
        realm = self._checked(given.get("realm", ""), "sends for a token")
        fields = {"scope": given.get("scope") or f"repository:{self._reference.repository}:pull"}
        if service := given.get("service"):
            fields["service"] = service
        async with await self._token_request(realm, fields) as response:
            if response.status != 200:
                raise await self._failure(response)
            answer = _json(await _body(response, _MAX_TOKEN_BYTES, "the token"))
        token = answer.get("token") or answer.get("access_token")
        # What would end the header is no token.
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise PullFailed(f"the token server of {self._reference.registry} sends no token")
        return f"Bearer {token}"

    async def _token_request(self, realm: str, fields: Mapping[str, str]) -> "aiohttp.ClientResponse":
        options: dict[str, Any] = {"allow_redirects": False, "proxy": self._proxy(realm)}
        if self._credential.identity_token:
            exchange = {"grant_type": "refresh_token", "client_id": "fastlane"}
            exchange["refresh_token"] = self._credential.identity_token
            return await self._session.post(realm, data={**fields, **exchange}, **options)
        headers = {"Authorization": _basic(self._credential)} if self._credential.username else {}
        return await self._session.get(realm, params=fields, headers=headers, **options)

    def _proxy(self, url: str) -> str | None:
        """Return the proxy that the environment names for a URL, by HTTPS_PROXY and NO_PROXY."""
        parts = urlsplit(url)
        if self._reference.is_on_loopback or urllib.request.proxy_bypass_environment(parts.netloc):  # type: ignore[attr-defined]
            return None
        return urllib.request.getproxies_environment().get(parts.scheme)

    def _checked(self, url: str, how: str) -> str:
        """Return a URL to which the registry sends, if it is as safe as the registry's own."""
        parts = urlsplit(url)
        is_here = self._reference.is_on_loopback and is_loopback(parts.hostname or "")
        safe = parts.scheme == "https" or (parts.scheme == "http" and is_here)
        if not safe or not parts.hostname or parts.username is not None:
            raise CannotRun(
                Reason.IMAGE_DENIED,
                f"{self._reference.registry} {how} to an address without TLS: {one_line(url, _TOLD_CHARACTERS)!r}",
            )
        return url

    async def _failure(self, response: "aiohttp.ClientResponse") -> CannotRun | PullFailed:
        """Return the exception for a response that is no success."""
        told = _told(await _body(response, _MAX_ERROR_BYTES, "the error"))
        status, name = response.status, str(self._reference)
        words = f"status {status}{f': {told}' if told else ''}"
        if status in {401, 403}:
            return CannotRun(Reason.IMAGE_DENIED, f"the registry of {name} refused; check the name. It says: {words}")
        if status == 404:
            return CannotRun(Reason.IMAGE_NOT_FOUND, f"the registry has no image {name}. It says: {words}")
        seconds = response.headers.get("Retry-After", "")
        return PullFailed(words, retry_seconds=float(seconds) if re.fullmatch("[0-9]{1,6}", seconds) else 0.0)


def _basic(credential: Credential) -> str:
    import aiohttp

    if not credential.username:
        return ""
    return aiohttp.encode_basic_auth(credential.username, credential.password)


async def _body(response: "aiohttp.ClientResponse", max_bytes: int, what: str) -> bytes:
    """Return the body. Raises CannotRun if it is too large."""
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > max_bytes:
            response.close()
            raise CannotRun(Reason.IMAGE_UNUSABLE, f"{what} has more than {max_bytes} bytes")
    return bytes(content)


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    # Nested deeper than the parser goes, it raises RecursionError.
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _told(content: bytes) -> str:
    """Return the words of an error, if they are as registries have them."""
    errors = _json(content).get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    words = (first.get("message") or first.get("code")) if isinstance(first, dict) else None
    return one_line(words, _TOLD_CHARACTERS) if isinstance(words, str) else ""
