"""The metrics of a server in the formats of Prometheus: all that knows its client library."""

from fastlane_grpc.prometheus.scrape import Metrics
from fastlane_grpc.prometheus.snapshot import take_snapshot

__all__ = ["Metrics", "take_snapshot"]
