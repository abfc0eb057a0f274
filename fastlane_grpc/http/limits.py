"""Limits of what one client of HTTP takes of the server: connections, memory, time."""

from dataclasses import dataclass

from fastlane_grpc.machine.open_files import MOST_CONNECTIONS


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits beside those of the settings."""

    max_connections: int = MOST_CONNECTIONS
    max_head_bytes: int = 64 << 10
    max_headers: int = 100
    # The memory of all bodies that are read at a time.
    max_body_bytes: int = 64 << 20
    # From the first byte of a request to the end of its headers; a new connection has as long to begin.
    head_seconds: float = 10.0
    # For a body, and the rate at which its sender gets more time.
    body_seconds: float = 20.0
    body_bytes_per_second: int = 32 << 10
    # To the next request on a connection.
    idle_seconds: float = 75.0
    # For the rest of a body whose request was answered before all of it came; that rest is dropped.
    drain_seconds: float = 2.0
    # Without an acknowledgement by the client's TCP of what was sent. A client that does not read acknowledges.
    silent_seconds: float = 60.0
    # For calls in flight when the server stops. Streams end at once.
    stop_seconds: float = 1.0
