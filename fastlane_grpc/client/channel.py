"""The channel to a server, with the options that both clients need."""

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from fastlane_grpc.client import requests
from fastlane_grpc.client.errors import Unauthenticated
from fastlane_grpc.client.retries import Backoff
from fastlane_grpc.client.tls import FilePath

Line = TypeVar("Line")
Metadata: TypeAlias = tuple[tuple[str, str], ...]

_MAX_TOKEN = 4096
_LOOPBACK = ("127.", "localhost:", "[::1]:")


def blocking(address: str, backoff: Backoff, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    target, options = requests.address(address), _options(address, backoff)
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def asynchronous(address: str, backoff: Backoff, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    target, options = requests.address(address), _options(address, backoff)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


class WithMetadata:
    """The calls of a channel, each with the metadata of its time. Generated stubs need no more of a channel."""

    def __init__(self, line: Any, metadata: Callable[[], Metadata]) -> None:
        self._line = line
        self._metadata = metadata

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._with_metadata(self._line.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._with_metadata(self._line.unary_stream(*arguments, **options))

    def _with_metadata(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            return method(*arguments, metadata=self._metadata(), **options)

        return call


def with_metadata(line: Line, *, token: str, token_file: FilePath | None, traceparent: str, tracestate: str) -> Line:
    """Return the channel whose calls have a token and the place in a trace. The token is that of the file, read anew
    for each call, or `token`. Without any of these it is the channel itself. Unauthenticated: the token cannot be read
    or sent."""
    trace = _trace(traceparent, tracestate)
    if token_file is not None:
        # A file that is missing is told at once, not by the first call.
        _token_of(token_file)
        return cast("Line", WithMetadata(line, lambda: (*_shown(_token_of(token_file)), *trace)))
    metadata = (*_shown(_sendable(token, "token")), *trace)
    return cast("Line", WithMetadata(line, lambda: metadata)) if metadata else line


def _shown(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _trace(traceparent: str, tracestate: str) -> Metadata:
    """Return both, as far as they can be sent. The server ignores what is not valid."""
    if not traceparent or not _is_sendable(traceparent):
        return ()
    state = (("tracestate", tracestate),) if tracestate and _is_sendable(tracestate) else ()
    return (("traceparent", traceparent), *state)


def _token_of(file: FilePath) -> str:
    try:
        with Path(file).expanduser().open(encoding="utf-8") as opened:
            return _sendable(opened.read(_MAX_TOKEN).strip(), "token_file")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _unusable(f"cannot read token_file {file}: {reason}") from error


def _sendable(token: str, name: str) -> str:
    if not _is_sendable(token):
        # The message must not repeat it.
        raise _unusable(f"{name}: a token has printable characters of ASCII only")
    return token


def _is_sendable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _unusable(message: str) -> Unauthenticated:
    return Unauthenticated(message, code=grpc.StatusCode.UNAUTHENTICATED)


def proxy(address: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the proxy that gRPC asks for a connection to HOST:PORT, and the variable that names it; None if it
    connects by itself.

    gRPC takes the first of the variables that is set, even if it is empty, and knows proxies of http:// alone.
    """
    variable = next((name for name in ("grpc_proxy", "https_proxy", "http_proxy") if name in environ), "")
    url = environ.get(variable, "")
    if address.startswith(_LOOPBACK) or not url.lower().startswith("http://"):
        return None
    past = environ.get("no_grpc_proxy", environ.get("no_proxy", ""))
    host = address.rpartition(":")[0].strip("[]").lower()
    if any(_goes_past(host, entry.strip().lower()) for entry in past.split(",")):
        return None
    return url, variable


def _goes_past(host: str, entry: str) -> bool:
    """Whether an entry of no_proxy, the end of a name or a range of addresses, is for the host."""
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and host.endswith(entry)


def _options(address: str, backoff: Backoff) -> list[tuple[str, int]]:
    options = [
        # An answer has at most 3 MiB.
        ("grpc.max_receive_message_length", 4 << 20),
        # Finds a peer that is gone below HTTP/2 while a call is open. Servers refuse pings on idle connections.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC's own pauses between connects grow to 2 minutes, through which ours would only see the last failure
        # again.
        ("grpc.initial_reconnect_backoff_ms", int(backoff.first_seconds * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(backoff.longest_seconds * 1000)),
        # How long one connect may take.
        ("grpc.min_reconnect_backoff_ms", 5_000),
    ]
    if address.startswith(_LOOPBACK):
        # `http_proxy` in the environment would otherwise send even this through the proxy.
        options.append(("grpc.enable_http_proxy", 0))
    return options
