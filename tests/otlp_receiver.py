"""A collector of traces: the service of OTLP over gRPC, which keeps what it gets."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

SECONDS = 20


class OtlpReceiver(pb_grpc.TraceServiceServicer):
    """Keeps spans with their resource and the metadata of their call. While it `hangs`, no call is answered."""

    def __init__(self) -> None:
        self.hangs = False
        self.port = 0
        self.spans: list[Any] = []
        self.resources: list[Mapping[str, str]] = []
        self.metadata: list[Mapping[str, str]] = []
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._changed:
            self._changed.wait_for(lambda: not self.hangs)
            for resource_spans in request.resource_spans:
                self.resources.append(
                    {each.key: each.value.string_value for each in resource_spans.resource.attributes}
                )
                self.spans += [span for scope in resource_spans.scope_spans for span in scope.spans]
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
            self._changed.notify_all()
        return pb.ExportTraceServiceResponse()

    def go_on(self) -> None:
        """Answer the calls that hang."""
        with self._changed:
            self.hangs = False
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[Sequence[Any]], bool]) -> Sequence[Any]:
        """Return all spans once they are as wanted."""
        with self._changed:
            came = self._changed.wait_for(lambda: wanted(self.spans), SECONDS)
            assert came, f"it did not come: {[span.name for span in self.spans]}"
            return list(self.spans)

    def of_trace(self, trace_id: str, count: int) -> Mapping[str, Any]:
        """Return the spans of a trace by their ids, once there are so many."""

        def of(spans: Sequence[Any]) -> list[Any]:
            return [span for span in spans if span.trace_id.hex() == trace_id]

        found = of(self.wait_for(lambda spans: len(of(spans)) >= count))
        assert len(found) == count, [span.name for span in found]
        by_id = {span.span_id.hex(): span for span in found}
        assert len(by_id) == count, "no span twice"
        return by_id


@contextmanager
def receiving() -> Iterator[OtlpReceiver]:
    """A receiver on a free port of loopback."""
    receiver = OtlpReceiver()
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield receiver
    finally:
        receiver.go_on()
        server.stop(None)


def attributes_of(span: Any) -> Mapping[str, str | int]:
    """Return the attributes of a span."""
    return {
        each.key: each.value.int_value if each.value.HasField("int_value") else each.value.string_value
        for each in span.attributes
    }
