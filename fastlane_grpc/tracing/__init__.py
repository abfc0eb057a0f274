"""Traces of executions: the spans of each one that ends, and its place in a trace for its command.

The ids of all spans follow from the ids of the job. So nothing about spans is stored, and a server that continues an
execution of an earlier one continues its trace."""

from importlib.util import find_spec

from fastlane_grpc.tracing.job_trace import JobTrace
from fastlane_grpc.tracing.spans import Kind, Span, spans_of
from fastlane_grpc.tracing.tracing import Exporter, Tracing

__all__ = ["ADVICE", "Exporter", "JobTrace", "Kind", "Span", "Tracing", "is_installed", "spans_of"]

ADVICE = "`pip install 'fastlane-grpc[otel]'` where the server is installed, or turn tracing off"


def is_installed() -> bool:
    """Return whether the extra is there that an export needs."""
    try:
        return all(map(find_spec, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")))
    except ModuleNotFoundError:
        return False
