"""The channel to a server, with the options that both clients need."""

import grpc

from fastlane_grpc.client import requests
from fastlane_grpc.client.tries import Backoff

_LOOPBACK = ("127.", "localhost:", "[::1]:")


def blocking(address: str, backoff: Backoff) -> grpc.Channel:
    return grpc.insecure_channel(requests.address(address), options=_options(address, backoff))


def asynchronous(address: str, backoff: Backoff) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(requests.address(address), options=_options(address, backoff))


def _options(address: str, backoff: Backoff) -> list[tuple[str, int]]:
    options = [
        # An answer has at most 3 MiB.
        ("grpc.max_receive_message_length", 4 << 20),
        # Finds a peer that is gone below HTTP/2 while a call is open. Servers refuse pings on idle connections.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC's own pauses between connects grow to 2 minutes, through which ours would only see the last failure again.
        ("grpc.initial_reconnect_backoff_ms", int(backoff.first_seconds * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(backoff.longest_seconds * 1000)),
        # How long one connect may take.
        ("grpc.min_reconnect_backoff_ms", 5_000),
    ]
    if address.startswith(_LOOPBACK):
        # `http_proxy` in the environment would otherwise send even this through the proxy.
        options.append(("grpc.enable_http_proxy", 0))
    return options
