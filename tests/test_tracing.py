"""Traces of jobs, as a collector gets them: one span for each attempt and each of its steps, whatever is killed."""

import asyncio
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import docker
import grpc
import pytest
from google.protobuf import duration_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from fastlane_grpc.client import Backoff, Client
from fastlane_grpc.counts import SpanCounts
from fastlane_grpc.doctor import Level
from fastlane_grpc.doctor.tracing import about_tracing
from fastlane_grpc.errors import CannotServe
from fastlane_grpc.model import Assignment, Cron, Execution, JobSpec, Outcome, Reason, State, Times, new_id
from fastlane_grpc.trace_context import TraceContext
from fastlane_grpc.tracing import JobTrace, Span, Tracing, spans_of
from fastlane_grpc.tracing.otlp import OtlpExporter
from fastlane_grpc.v1 import fastlane_pb2 as pb
from fastlane_grpc.v1 import fastlane_pb2_grpc as pb_grpc
from tests.commands import fastlane
from tests.moved_store import RunsStore
from tests.otlp_receiver import OtlpReceiver, attributes_of, receiving
from tests.parts import Parts
from tests.reading import Reader
from tests.serving import Server, clear, serving_on

CALLER = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1, "rojo=1")
UNSAMPLED = TraceContext("1af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
SOON = duration_pb2.Duration(nanos=50_000_000)
TIME = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, receiver: OtlpReceiver) -> None:
    for name, value in {
        "ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "HEADERS": "x-team=mail",
        "PROTOCOL": "grpc",
    }.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")


# ---- from outside, on an engine


@pytest.mark.engine
def test_a_trace_goes_on_over_a_server_that_is_killed(
    tmp_path: Path, sdk: docker.DockerClient, image: str, receiver: OtlpReceiver, variables: None
) -> None:
    server = Server(tmp_path / "data", tracing="true")
    spec = pb.JobSpec(
        image=image,
        args=["sh", "-c", "echo $TRACEPARENT $TRACESTATE; sleep 0.3; exit 3"],
        envs={"SMTP_PASSWORD": "hunter2", "GREETING": "salve"},
        retry=pb.Retry(max_retries=1, initial_backoff=SOON, jitter=pb.Retry.JITTER_NONE),
    )
    printing = pb.EnqueueJobRequest(task_id="mail", spec=pb.JobSpec(image=image, args=["env"]))
    with grpc.insecure_channel(server.address) as channel:
        jobs = pb_grpc.JobServiceStub(channel)
        quiet = jobs.EnqueueJob(printing, metadata=[("traceparent", UNSAMPLED.parent)]).job
        metadata = [("traceparent", CALLER.parent), ("tracestate", CALLER.state)]
        job = jobs.EnqueueJob(pb.EnqueueJobRequest(task_id="mail", spec=spec), metadata=metadata).job
    try:
        with Client(server.address, backoff=Backoff(0.05, 0.5)) as client:
            silent = Reader(client, quiet.execution.id)
            silent.end()
            readers = [Reader(client, job.execution.id)]
            readers[0].wait_for_output(b"\n")
            server.kill()
            server = Server(tmp_path / "data", tracing="true", listen=server.address)
            readers[0].end()
            readers.append(Reader(client, client.job(job.id).execution.id))
            readers[1].end()
    finally:
        assert server.stop() == 0
        clear(sdk, tmp_path / "data")
    spans = receiver.of_trace(CALLER.trace_id, 13)
    [enqueue] = [span for span in spans.values() if span.name == "enqueue mail"]
    assert enqueue.parent_span_id.hex() == CALLER.span_id
    executes = sorted(
        (span for span in spans.values() if span.name == "execute mail"), key=lambda span: span.start_time_unix_nano
    )
    for attempt, (execute, reader) in enumerate(zip(executes, readers, strict=True), 1):
        assert execute.parent_span_id == enqueue.span_id
        steps = [span for span in spans.values() if span.parent_span_id == execute.span_id]
        steps.sort(key=lambda span: span.start_time_unix_nano)
        assert [step.name for step in steps] == ["wait", "pull", "start", "run", "end"]
        assert [step.end_time_unix_nano for step in steps[:-1]] == [step.start_time_unix_nano for step in steps[1:]]
        assert reader.stdout.decode() == f"{CALLER.at(steps[3].span_id.hex()).parent} rojo=1\n"
        its = attributes_of(execute)
        assert (its["fastlane.job.id"], its["fastlane.execution.id"]) == (job.id, reader.execution_id)
        assert (its["fastlane.execution.attempt"], its["process.exit.code"]) == (attempt, 3)
        assert (its["error.type"], its["container.image.name"], its["fastlane.host"]) == ("exit_code", image, "local")
        assert (execute.status.code, execute.status.message) == (2, "exited with 3")
        assert (steps[3].status.code, steps[4].status.code) == (2, 0)
    assert not [span for span in receiver.spans if span.trace_id.hex() == UNSAMPLED.trace_id]
    assert f"TRACEPARENT=00-{UNSAMPLED.trace_id}-" in silent.stdout.decode()
    assert not any(secret in str(span) for span in receiver.spans for secret in ("hunter2", "salve"))
    assert receiver.resources[0]["deployment.environment.name"] == "test"
    assert receiver.resources[0]["service.name"] == "fastlane"
    assert receiver.metadata[0]["x-team"] == "mail"


@pytest.mark.engine
def test_a_command_passes_the_trace_of_its_environment_on(
    tmp_path: Path, sdk: docker.DockerClient, image: str, receiver: OtlpReceiver, variables: None
) -> None:
    caller = TraceContext("2af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1, "rojo=1")
    envs = {"TRACEPARENT": caller.parent, "TRACESTATE": caller.state}
    with serving_on(sdk, tmp_path / "data", tracing="true", http_listen="127.0.0.1:0") as server:
        run = ["run", "--task", "traced", image, "sh", "-c", "echo $TRACEPARENT $TRACESTATE"]
        ran = fastlane(None, *run, FASTLANE_ADDRESS=server.address, **envs)
        spans = receiver.of_trace(caller.trace_id, 7)
        not_valid = fastlane(None, *run, FASTLANE_ADDRESS=server.address, TRACEPARENT="\N{SNOWMAN}")
        metrics = urlopen(f"http://127.0.0.1:{server.http_port}/metrics").read().decode()
    [enqueue] = [span for span in spans.values() if span.name == "enqueue traced"]
    assert enqueue.parent_span_id.hex() == caller.span_id
    [run_span] = [id_ for id_, span in spans.items() if span.name == "run"]
    assert ran.stdout.decode() == f"{caller.at(run_span).parent} rojo=1\n"
    assert not_valid.returncode == 0
    assert caller.trace_id not in not_valid.stdout.decode()
    sent = re.search(r'^fastlane_spans_total\{outcome="sent"\} ([0-9.]+)$', metrics, re.MULTILINE)
    assert sent is not None
    assert float(sent[1]) >= 7


# ---- the executions that have ended


class KeepingExporter:
    """Keeps all spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def sampled(self, trace_id: str, caller: TraceContext | None) -> bool:
        return True

    def export(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def close(self) -> None:
        pass


@pytest.mark.parametrize("turns", range(4))
async def test_a_server_that_ends_exports_all_that_has_ended(tmp_path: Path, turns: int) -> None:
    harness, exporter = RunsStore(tmp_path, asyncio.get_running_loop()), KeepingExporter()
    tracing = Tracing(harness.store, exporter)
    jobs = [await harness.job() for _ in range(40)]
    for job in jobs:
        await harness.store.stop(job.id, grace=None, note="")
    for commit in harness.commits:
        tracing.on_commit(commit)
    exporting = asyncio.create_task(tracing.run())
    # So the export is somewhere between two reads, and most often in one.
    for _ in range(turns):
        await asyncio.sleep(0)
    exporting.cancel()
    await asyncio.wait([exporting])
    await tracing.close()
    harness.close()
    ended = [span.attributes["fastlane.job.id"] for span in exporter.spans if span.name == "execute task"]
    assert ended == [job.id for job in jobs]


# ---- the exporter


def some_span(number: int = 1) -> Span:
    spans = ended_spans(trace=f"00-{number:032x}-{number:016x}-01")
    return spans[0]


def test_a_collector_that_hangs_costs_neither_time_nor_memory(
    receiver: OtlpReceiver, variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    receiver.hangs = True
    counts = SpanCounts()
    exporter, before = OtlpExporter("instance", counts, close_seconds=0.1), len(receiver.spans)
    start = time.monotonic()
    exporter.export([some_span(number) for number in range(1, 1000)])
    exporter.close()
    assert time.monotonic() - start < 2
    receiver.go_on()
    receiver.wait_for(lambda spans: len(spans) > before)
    assert len(receiver.spans) - before <= 20, "what did not fit in is dropped"
    # One batch was taken by the sender, which hung, and the queue was full.
    assert 999 - counts.dropped.value in range(10, 20)


def test_a_collector_that_is_not_there_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    counts = SpanCounts()
    exporter = OtlpExporter("instance", counts, close_seconds=0.3)
    exporter.export([some_span()])
    exporter.close()
    assert (counts.sent.value, counts.failed.value, counts.dropped.value) == (0, 1, 0)
    told = capsys.readouterr()
    assert (told.out + told.err).count("traces are not exported") == 1


def test_traces_are_exported_by_http_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        counts = SpanCounts()
        exporter = OtlpExporter("instance", counts)
        exporter.export([some_span()])
        exporter.close()
        collector.shutdown()
    assert (counts.sent.value, counts.failed.value, counts.dropped.value) == (1, 0, 0)
    [request] = map(trace_service_pb2.ExportTraceServiceRequest.FromString, bodies)
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "enqueue mail"


def test_a_sampler_is_that_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    exporter = OtlpExporter("instance", SpanCounts())
    assert not exporter.sampled(UNSAMPLED.trace_id, None)
    assert exporter.sampled(CALLER.trace_id, CALLER)
    exporter.close()


def test_a_protocol_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(CannotServe, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; must be one of grpc"):
        OtlpExporter("instance", SpanCounts())


@pytest.mark.parametrize("size", ["0", "many"])
def test_a_queue_for_spans_needs_a_size(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", size)
    with pytest.raises(CannotServe, match=f"OTEL_BSP_MAX_QUEUE_SIZE is '{size}'; must be a number above 0"):
        OtlpExporter("instance", SpanCounts())


# ---- the extra


async def test_a_server_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert about_tracing().level is Level.OK
    monkeypatch.delitem(sys.modules, "fastlane_grpc.tracing.otlp", raising=False)
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(CannotServe, match=r"OpenTelemetry is not installed: `pip install 'fastlane-grpc\[otel\]'`"):
        Parts(tmp_path, tracing=True).open_tracing(AsyncExitStack())
    finding = about_tracing()
    assert (finding.level, finding.check) == (Level.FAIL, "tracing")
    assert "fastlane-grpc[otel]" in finding.advice


# ---- the spans of an execution


def always(trace_id: str, caller: TraceContext | None) -> bool:
    return True


def ended_spans(
    *, trace: str = "", spec: JobSpec | None = None, run: int = 1, attempt: int = 1, **times: Any
) -> Sequence[Span]:
    execution = Execution(
        new_id(),
        "job",
        "mail",
        State.FAILED,
        Times(**{"create_time": TIME, "due_time": TIME, "end_time": TIME + timedelta(seconds=9), **times}),
        TIME,
        run=run,
        attempt=attempt,
        outcome=Outcome(Reason.IMAGE_NOT_FOUND, "no such image"),
    )
    assignment = Assignment(execution, spec or JobSpec("https://ada:hunter2@example.org/busybox"), trace)
    return spans_of(assignment, JobTrace.of(assignment, always))


def test_a_job_without_a_caller_s_trace_begins_one() -> None:
    enqueue, execute, *_ = ended_spans()
    assert (enqueue.parent, execute.parent) == (None, enqueue.place)
    assert enqueue.place.trace_id == execute.place.trace_id
    assert "hunter2" not in str(execute.attributes)


def test_each_run_of_a_schedule_is_a_trace_with_a_link_to_the_enqueue() -> None:
    spec = JobSpec("busybox", cron=Cron("@daily"))
    enqueue, first, *_ = ended_spans(trace=CALLER.text, spec=spec)
    retry, *_ = ended_spans(trace=CALLER.text, spec=spec, attempt=2)
    second, *_ = ended_spans(trace=CALLER.text, spec=spec, run=2)
    assert enqueue.place.trace_id == CALLER.trace_id
    assert (first.parent, second.parent) == (None, None)
    assert len({span.place.trace_id for span in (enqueue, first, second)}) == 3
    assert (retry.place.trace_id, retry.parent) == (first.place.trace_id, first.place)
    assert first.link == retry.link == second.link == enqueue.place


@pytest.mark.parametrize(
    ("times", "steps", "failed"),
    [
        ({}, {"wait": (0, 9)}, "wait"),
        ({"claim_time": 2}, {"wait": (0, 2), "pull": (2, 9)}, "pull"),
        ({"claim_time": 2, "pull_time": 3}, {"wait": (0, 2), "pull": (2, 3), "start": (3, 9)}, "start"),
        # The engine's clock is ahead, or behind.
        ({"claim_time": 2, "start_time": 99}, {"wait": (0, 2), "pull": (2, 9), "run": (9, 9)}, "run"),
        ({"claim_time": 2, "start_time": -9}, {"wait": (0, 2), "pull": (2, 2), "run": (2, 9)}, "run"),
        # It ended before it was due.
        ({"due_time": 20}, {"wait": (9, 9)}, "wait"),
    ],
)
def test_steps_follow_one_another(times: Mapping[str, int], steps: Mapping[str, tuple[int, int]], failed: str) -> None:
    _, execute, *spans = ended_spans(**{name: TIME + timedelta(seconds=each) for name, each in times.items()})
    told = {span.name: tuple((time - TIME).seconds for time in (span.start_time, span.end_time)) for span in spans}
    assert told == steps
    assert [span.name for span in spans if span.error] == [failed]
    assert all(span.parent == execute.place for span in spans)
