"""The Docker backend: the engine's API, images and credentials. No other package speaks to an engine."""

from fastlane_grpc.docker.backend import DockerBackend, DockerCaptures
from fastlane_grpc.docker.capture_choice import CaptureChoice, capture_without_engine
from fastlane_grpc.docker.engine import Engine

__all__ = ["CaptureChoice", "DockerBackend", "DockerCaptures", "Engine", "capture_without_engine"]
