"""The exporter to a collector by OTLP, with the SDK of OpenTelemetry. Its settings are the variables OTEL_*.

The module is imported only where tracing is on: the SDK is an extra."""

import logging
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.span import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from fastlane_grpc.config import otlp_protocol, otlp_queue_size
from fastlane_grpc.counts import SpanCounts
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.text.redaction import mask_secrets
from fastlane_grpc.trace_context import TraceContext
from fastlane_grpc.tracing.spans import Kind, Span

# The time for the last spans when the server ends. A collector may hang.
CLOSE_SECONDS = 3.0
_ABORT_SECONDS = 0.5
# How often the server's log tells of spans that are not exported.
_TELL_SECONDS = 60.0
_PROTOCOLS = ("grpc", "http/protobuf")
_KINDS = {
    Kind.INTERNAL: trace.SpanKind.INTERNAL,
    Kind.PRODUCER: trace.SpanKind.PRODUCER,
    Kind.CONSUMER: trace.SpanKind.CONSUMER,
}

log = structlog.get_logger(__name__)


class OtlpExporter:
    """Implements Exporter. Spans wait in a queue of limited length; a thread sends them."""

    def __init__(self, instance: str, counts: SpanCounts, *, close_seconds: float = CLOSE_SECONDS) -> None:
        """Raise CannotServe if a variable of OpenTelemetry is not valid. `instance`: the id of the server."""
        self._close_seconds = close_seconds
        _forward_logs()
        self._ids = _ChosenIds()
        own = {"service.name": "fastlane", "service.version": version("fastlane-grpc"), "service.instance.id": instance}
        try:
            resource = Resource.create().merge(Resource(own)).merge(OTELResourceDetector().detect())
            provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
            self._sender = _CountingSender(_span_exporter(), counts)
            self._processor = _CountingQueue(self._sender, counts)
        except (ValueError, OSError) as error:
            raise CannotServe(f"traces cannot be exported: {mask_secrets(str(error))}") from error
        provider.add_span_processor(self._processor)
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer("fastlane")

    def sampled(self, trace_id: str, caller: TraceContext | None) -> bool:
        parent = _context(caller) if caller else None
        return bool(self._sampler.should_sample(parent, int(trace_id, 16), "").decision.is_sampled())  # type: ignore[no-untyped-call]

    def export(self, spans: Sequence[Span]) -> None:
        for span in spans:
            self._ids.choose(span.place)
            started = self._tracer.start_span(
                span.name,
                _context(span.parent) if span.parent else Context(),
                _KINDS[span.kind],
                span.attributes,
                [trace.Link(_span_context(span.link))] if span.link else None,
                int(span.start_time.timestamp() * 1e6) * 1000,
            )
            if span.error is not None:
                started.set_status(trace.Status(trace.StatusCode.ERROR, span.error))
            started.end(int(span.end_time.timestamp() * 1e6) * 1000)

    def close(self) -> None:
        # The SDK waits half a minute for a collector that hangs.
        closing = threading.Thread(target=self._processor.shutdown, name="last traces", daemon=True)
        closing.start()
        closing.join(self._close_seconds)
        if closing.is_alive():
            log.warning("the collector takes no traces: the last ones are dropped")
            # Ends what the thread waits for.
            self._sender.shutdown()
            closing.join(_ABORT_SECONDS)


class _CountingSender(SpanExporter):
    """Counts the spans that an exporter sends, on the thread that sends them. `taken`: all spans that it got."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._counts = counts
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            tally = self._counts.sent if result is SpanExportResult.SUCCESS else self._counts.failed
            tally.value += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _CountingQueue(BatchSpanProcessor):
    """Counts the spans that the queue drops, on the loop. The queue does not tell: those that are neither taken nor
    dropped wait, and a span that comes while the queue is full pushes out another."""

    def __init__(self, sender: _CountingSender, counts: SpanCounts) -> None:
        self._most = otlp_queue_size()
        self._sender = sender
        self._counts = counts
        self._given = 0
        super().__init__(sender, self._most)

    def on_end(self, span: ReadableSpan) -> None:
        if self._given - self._counts.dropped.value - self._sender.taken >= self._most:
            self._counts.dropped.value += 1
        self._given += 1
        super().on_end(span)


class _ChosenIds(IdGenerator):
    """Gives the next span the ids that it is to have."""

    def choose(self, place: TraceContext) -> None:
        self._trace_id, self._span_id = int(place.trace_id, 16), int(place.span_id, 16)

    def generate_trace_id(self) -> int:
        return self._trace_id

    def generate_span_id(self) -> int:
        return self._span_id


class _Forwarded(logging.Handler):
    """The SDK's own log, as lines of the server's log: one a minute at most."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told_seconds = float("-inf")
        self._untold = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._told_seconds < _TELL_SECONDS:
            self._untold += 1
            return
        self._told_seconds, untold, self._untold = now, self._untold, 0
        log.warning("traces are not exported", fault=mask_secrets(record.getMessage()), more_faults=untold)


def _forward_logs() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.handlers = [_Forwarded()]
    logger.propagate = False


def _span_exporter() -> SpanExporter:
    """Return the exporter of the protocol that is asked for. ValueError: there is none."""
    protocol = otlp_protocol()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

        return HttpSpanExporter()
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; must be one of {', '.join(_PROTOCOLS)}")


def _context(place: TraceContext) -> Context:
    return set_span_in_context(NonRecordingSpan(_span_context(place)))


def _span_context(place: TraceContext) -> SpanContext:
    state = TraceState.from_header([place.state]) if place.state else None
    return SpanContext(
        int(place.trace_id, 16),
        int(place.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(place.flags),
        trace_state=state,
    )
