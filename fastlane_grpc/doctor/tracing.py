"""The library that an export of traces needs."""

from fastlane_grpc.doctor.finding import Finding, fail, ok
from fastlane_grpc.tracing import ADVICE, is_installed


def about_tracing() -> Finding:
    """Return whether the server can export traces."""
    if is_installed():
        return ok("tracing", "traces are exported as the variables OTEL_* say (setting tracing)")
    return fail("tracing", "tracing is on, and OpenTelemetry is not installed: the server does not start", ADVICE)
