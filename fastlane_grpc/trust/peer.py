"""The other end of a call's connection."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """The address of a client as gRPC writes it, and the common name in its certificate; empty: it has none."""

    address: str = ""
    certificate: str = ""


_UNKNOWN = Peer()
# The client of the call that runs in this task; set by the door before a call that writes.
PEER: ContextVar[Peer] = ContextVar("peer", default=_UNKNOWN)
