"""The Docker backend: the engine's API, images and credentials. No other package speaks to an engine."""

from fastlane_grpc.docker.backend import DockerBackend, DockerCaptures
from fastlane_grpc.docker.capture_choice import DEFAULT_MAX_LOG_BYTES, CaptureChoice, capture_without_engine
from fastlane_grpc.docker.engine import Engine

__all__ = [
    "DEFAULT_MAX_LOG_BYTES",
    "CaptureChoice",
    "DockerBackend",
    "DockerCaptures",
    "Engine",
    "capture_without_engine",
]
