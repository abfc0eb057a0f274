"""fastlane: a queue whose workers are containers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastlane_grpc.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    # On first use: who wants the words of jobs alone need not wait for gRPC to be loaded.
    if name in __all__:
        from fastlane_grpc import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
