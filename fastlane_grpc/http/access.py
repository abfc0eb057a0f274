"""Which requests are answered at all: by the Host header and the Origin header that a browser sends.

A page of another site must neither read through this server's address under a name of its own (DNS rebinding) nor
change anything here."""

import re
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers

from fastlane_grpc.http.problem import HttpError

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PORT = re.compile(r"[0-9]{0,5}")
_SAFE_VERBS = frozenset({"GET", "HEAD", "OPTIONS"})


class OriginRules:
    """The rules for one address to listen on."""

    def __init__(self, *, loopback: bool, hosts: Sequence[str], cors_origins: Sequence[str]) -> None:
        """`loopback`: only this machine reaches the address, so that other names in Host are not this server's. That
        holds for any address where `hosts` are given."""
        self._hosts = _LOOPBACK_NAMES | set(hosts) if loopback or hosts else None
        self._cors_origins = frozenset(cors_origins)

    def check(self, verb: str, scheme: str, headers: Headers) -> None:
        """Raise HttpError for a request that is not to be answered."""
        if len(headers.getlist("host")) > 1:
            raise HttpError(400, "HOST_GIVEN_TWICE", "the request has more than one Host header")
        host = headers.get("host", "").lower()
        if self._hosts is not None and _name_of(host) not in self._hosts:
            told = f"this server is not called {_name_of(host)[:100]!r}; the setting http_hosts adds names"
            raise HttpError(421, "HOST_NOT_SERVED", told if host else "the request names no host; send the header Host")
        # Two of them are no origin of ours.
        origin = ", ".join(headers.getlist("origin")).lower()
        if verb in _SAFE_VERBS or not origin or origin in self._cors_origins:
            return
        if origin != f"{scheme_of(scheme, headers)}://{host}":
            raise HttpError(
                403,
                "ORIGIN_REFUSED",
                f"a page of {origin[:200]!r} may not change anything here; the setting http_cors_origins adds origins",
            )

    def cors_headers(self, headers: Headers) -> Mapping[str, str]:
        """Return the headers that let a page of another origin read the response; none unless it is configured."""
        if not self._cors_origins:
            return {}
        origin = headers.get("origin", "")
        if origin.lower() not in self._cors_origins:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "Location, Retry-After",
            "Vary": "Origin",
        }


def scheme_of(scheme: str, headers: Headers) -> str:
    """Return the scheme that the client used: `scheme`, or https where a proxy that ended TLS says so.

    A page of another site cannot send X-Forwarded-Proto: a browser asks this server first, which does not allow it.
    """
    return "https" if headers.get("x-forwarded-proto", "").lower() == "https" else scheme


def _name_of(host: str) -> str:
    """Return the name in a Host header, without the port; all of it where that is no number."""
    name, colon, port = host.rpartition(":")
    return name if colon and _PORT.fullmatch(port) else host
