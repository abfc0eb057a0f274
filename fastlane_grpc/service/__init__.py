"""Every use case, once: what may be asked, what is done, what is answered. Knows nothing of gRPC."""

from fastlane_grpc.service.log_stream import Beat, LogEvent, LogRequest, Sealed, StateChanged, Unsealed
from fastlane_grpc.service.service import EnqueueRequest, PruneRequest, Service
from fastlane_grpc.service.validation import REDACTED, looks_secret

__all__ = [
    "REDACTED",
    "Beat",
    "EnqueueRequest",
    "LogEvent",
    "LogRequest",
    "PruneRequest",
    "Sealed",
    "Service",
    "StateChanged",
    "Unsealed",
    "looks_secret",
]
