"""fastlane: a queue whose workers are containers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastlane_grpc.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    # On first use: who wants the words of jobs alone need not wait for gRPC to be loaded.
    if name == "Client":
        from fastlane_grpc.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
