"""The table of all metrics: what each is called, what it says, and how it is read. docs/metrics.md explains them."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from fastlane_grpc.counts import CallCounts, Histogram
from fastlane_grpc.machine.data_directory import free_bytes
from fastlane_grpc.model import Source
from fastlane_grpc.prometheus.snapshot import Snapshot
from fastlane_grpc.slots import HostState
from fastlane_grpc.store import CAUSES

# The streams of the contract, by their methods.
STREAMS = {"StreamExecutionLogs": "execution_log", "StreamJobLogs": "job_log", "WatchJobs": "watch"}

# The values of the labels of a sample, in the order of its family's labels, and its own value.
Samples = Iterable[tuple[Sequence[str], float]]
Histograms = Iterable[tuple[Sequence[str], Histogram]]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. The samples of a histogram have a suffix behind its name."""

    name: str
    help: str
    labels: Sequence[str]

    @abstractmethod
    def metric(self, snapshot: Snapshot) -> Metric:
        """Return the metric with all its samples."""


@dataclass(frozen=True, slots=True)
class GaugeFamily(Family):
    """A number that goes up and down."""

    read: Callable[[Snapshot], Samples]

    def metric(self, snapshot: Snapshot) -> Metric:
        metric = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in self.read(snapshot):
            metric.add_metric(labels, value)
        return metric


@dataclass(frozen=True, slots=True)
class CounterFamily(Family):
    """A number that grows from the start of the server on."""

    read: Callable[[Snapshot], Samples]

    def metric(self, snapshot: Snapshot) -> Metric:
        metric = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in self.read(snapshot):
            metric.add_metric(labels, value)
        return metric


@dataclass(frozen=True, slots=True)
class HistogramFamily(Family):
    """Counts of values up to some bounds."""

    read: Callable[[Snapshot], Histograms]

    def metric(self, snapshot: Snapshot) -> Metric:
        metric = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, histogram in self.read(snapshot):
            bounds = [*map(str, histogram.bounds), "+Inf"]
            metric.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum)
        return metric


def _one(read: Callable[[Snapshot], float]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((), read(snapshot))]


def _by(read: Callable[[Snapshot], Mapping[str, float]]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((name,), value) for name, value in read(snapshot).items()]


def _by_source(read: Callable[[Snapshot], Mapping[Source, int]]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((source.name.lower(),), read(snapshot).get(source, 0)) for source in Source]


def _by_host(read: Callable[[HostState], float]) -> Callable[[Snapshot], Samples]:
    return lambda snapshot: [((host.name,), read(host)) for host in snapshot.hosts]


def _free_bytes(snapshot: Snapshot) -> Samples:
    # A disk that cannot be asked must not hide the other metrics.
    with suppress(OSError):
        yield (), free_bytes(snapshot.settings.data_dir)


def _ends(snapshot: Snapshot) -> Samples:
    # Copied: the loop may count one more while this is read.
    for (state, reason), count in sorted(snapshot.executions.ends.copy().items()):
        yield (state.name.lower(), reason.name.lower()), count


def _attempts(snapshot: Snapshot) -> Samples:
    for receiver in ("webhook", "mail"):
        for outcome in ("delivered", "repeated", "given_up"):
            yield (receiver, outcome), snapshot.counts.notifications.attempts[receiver, outcome]


def _spans(snapshot: Snapshot) -> Samples:
    spans = snapshot.counts.spans
    for outcome, tally in (("sent", spans.sent), ("failed", spans.failed), ("dropped", spans.dropped)):
        yield (outcome,), tally.value


def _streams(snapshot: Snapshot) -> Samples:
    doors: Mapping[str, Iterable[CallCounts]] = {
        "grpc": snapshot.counts.grpc.values(),
        "http": list(snapshot.counts.http.values()),
    }
    for door, calls in doors.items():
        for method, stream in STREAMS.items():
            yield (door, stream), sum(each.in_flight for each in calls if each.method == method)


def _grpc_calls(snapshot: Snapshot) -> Samples:
    for method, calls in sorted(snapshot.counts.grpc.items()):
        for code, count in sorted(calls.ended.copy().items()):
            yield (method, code), count


def _grpc_seconds(snapshot: Snapshot) -> Histograms:
    for method, calls in sorted(snapshot.counts.grpc.items()):
        if calls.ended and method not in STREAMS:
            yield (method,), calls.seconds


def _http_requests(snapshot: Snapshot) -> Samples:
    for (verb, path), calls in sorted(snapshot.counts.http.copy().items()):
        for status, count in sorted(calls.ended.copy().items()):
            yield (verb, path, status), count


def _http_seconds(snapshot: Snapshot) -> Histograms:
    for (verb, path), calls in sorted(snapshot.counts.http.copy().items()):
        if calls.ended and calls.method not in STREAMS:
            yield (verb, path), calls.seconds


FAMILIES: Sequence[Family] = (
    GaugeFamily("fastlane_info", "Always 1; the version of the server.", ["version"], lambda s: [((s.version,), 1)]),
    # ---- jobs and executions
    CounterFamily("fastlane_jobs_enqueued_total", "New jobs.", [], _one(lambda s: s.counts.store.new_jobs.value)),
    GaugeFamily(
        "fastlane_executions",
        "Executions that are not final, by state.",
        ["state"],
        _by(lambda s: {state.name.lower(): count for state, count in s.census.states.items()}),
    ),
    GaugeFamily(
        "fastlane_executions_waiting",
        "Executions that wait, by reason; none: they are about to get a slot.",
        ["reason"],
        _by(lambda s: s.waits),
    ),
    GaugeFamily(
        "fastlane_executions_waiting_limit",
        "Executions that may wait before enqueues are rejected.",
        [],
        _one(lambda s: s.settings.max_waiting),
    ),
    CounterFamily(
        "fastlane_executions_claimed_total",
        "Executions that got a slot; one that went back to the queue counts again.",
        [],
        _one(lambda s: s.executions.claims),
    ),
    CounterFamily(
        "fastlane_executions_requeued_total",
        "Claimed executions that went back to the queue before they started.",
        [],
        _one(lambda s: s.executions.requeues),
    ),
    CounterFamily(
        "fastlane_executions_started_total",
        "Executions whose container started, by cause: enqueue, tick or retry.",
        ["cause"],
        _by(lambda s: {cause: s.executions.starts[cause] for cause in CAUSES}),
    ),
    CounterFamily(
        "fastlane_executions_ended_total",
        "Executions that became final, by state and reason.",
        ["state", "reason"],
        _ends,
    ),
    HistogramFamily(
        "fastlane_execution_phase_seconds",
        "Time that executions spent queued, pulling, starting and running.",
        ["phase"],
        lambda s: [((phase,), histogram) for phase, histogram in s.executions.phases.items()],
    ),
    CounterFamily(
        "fastlane_schedule_ticks_skipped_total",
        "Ticks of schedules that did not start a run. Goes on after a restart.",
        [],
        _one(lambda s: s.census.skipped_ticks),
    ),
    # ---- hosts
    GaugeFamily("fastlane_host_up", "Whether the engine of the host responds.", ["host"], _by_host(lambda h: h.up)),
    GaugeFamily("fastlane_host_drained", "Whether the host is drained.", ["host"], _by_host(lambda h: h.drained)),
    GaugeFamily(
        "fastlane_host_circuit_open",
        "Whether the host gets no executions for a while because several starts in a row failed.",
        ["host"],
        _by_host(lambda h: h.circuit_open),
    ),
    GaugeFamily("fastlane_host_slots", "Slots of the host.", ["host"], _by_host(lambda h: h.max_running)),
    GaugeFamily("fastlane_host_slots_used", "Slots of the host in use.", ["host"], _by_host(lambda h: h.running)),
    GaugeFamily("fastlane_slots", "Slots of all hosts together.", [], _one(lambda s: s.settings.max_running)),
    GaugeFamily("fastlane_slots_used", "Slots of all hosts in use.", [], _one(lambda s: s.running)),
    # ---- logs
    CounterFamily(
        "fastlane_log_written_bytes_total",
        "Bytes in the logs of executions that ended, by source.",
        ["source"],
        _by_source(lambda s: s.executions.log_bytes),
    ),
    CounterFamily(
        "fastlane_log_missing_bytes_total",
        "Bytes that are known to be missing in the logs of executions that ended, by source.",
        ["source"],
        _by_source(lambda s: s.executions.missing_log_bytes),
    ),
    CounterFamily(
        "fastlane_log_sent_bytes_total",
        "Bytes of logs that readers were sent, encoded.",
        ["encoding"],
        _by(lambda s: dict(s.log_bytes_sent)),
    ),
    GaugeFamily(
        "fastlane_log_disk_bytes",
        "Bytes on the disk that the logs of ended executions take.",
        [],
        _one(lambda s: s.census.log_bytes),
    ),
    GaugeFamily("fastlane_log_cache_bytes", "Bytes in the cache of log readers.", [], _one(lambda s: s.cache_bytes)),
    CounterFamily(
        "fastlane_log_cache_misses_total",
        "Stretches of logs that were read for readers because they were not cached.",
        [],
        _one(lambda s: s.cache_reads),
    ),
    GaugeFamily("fastlane_logs_open", "Logs that have readers.", [], _one(lambda s: s.open_logs)),
    GaugeFamily(
        "fastlane_disk_free_bytes",
        "Bytes that the server can still write to the disk of its data directory.",
        [],
        _free_bytes,
    ),
    # ---- notifications
    GaugeFamily(
        "fastlane_notifications",
        "Notifications that are not delivered, by state; failed: given up.",
        ["state"],
        _by(lambda s: {state.name.lower(): count for state, count in s.census.notifications.items()}),
    ),
    CounterFamily(
        "fastlane_notification_attempts_total",
        "Attempts to deliver a notification, by the kind of the receiver and by the outcome.",
        ["receiver", "outcome"],
        _attempts,
    ),
    # ---- traces
    CounterFamily(
        "fastlane_spans_total",
        "Spans of traces, by outcome; failed: the collector did not take them; dropped: too many waited for it.",
        ["outcome"],
        _spans,
    ),
    # ---- the store
    HistogramFamily(
        "fastlane_store_commit_seconds",
        "Time of a commit, with its statements and its sync.",
        [],
        lambda s: [((), s.counts.store.seconds)],
    ),
    HistogramFamily(
        "fastlane_store_commit_units",
        "Units of work in a commit.",
        [],
        lambda s: [((), s.counts.store.units)],
    ),
    CounterFamily(
        "fastlane_store_failures_total",
        "Units of work that could not be stored because SQLite or the disk failed; each attempt counts.",
        [],
        _one(lambda s: s.counts.store.failures.value),
    ),
    GaugeFamily("fastlane_store_writable", "Whether the store can write.", [], _one(lambda s: s.can_write)),
    GaugeFamily("fastlane_store_writes_waiting", "Writes that wait.", [], _one(lambda s: s.writes_waiting)),
    GaugeFamily("fastlane_store_reads_waiting", "Reads that wait.", [], _one(lambda s: s.reads_waiting)),
    # ---- the doors
    CounterFamily(
        "fastlane_grpc_calls_total",
        "Calls over gRPC that ended, by method and code.",
        ["method", "code"],
        _grpc_calls,
    ),
    HistogramFamily(
        "fastlane_grpc_call_seconds",
        "Time of a call over gRPC that is no stream.",
        ["method"],
        _grpc_seconds,
    ),
    CounterFamily(
        "fastlane_http_requests_total",
        "HTTP requests that ended, by verb, pattern of the path, and status.",
        ["verb", "path", "status"],
        _http_requests,
    ),
    HistogramFamily(
        "fastlane_http_request_seconds",
        "Time of an HTTP request that is no stream.",
        ["verb", "path"],
        _http_seconds,
    ),
    GaugeFamily("fastlane_streams_open", "Streams in flight, by door and kind.", ["door", "stream"], _streams),
    GaugeFamily(
        "fastlane_streams_limit", "Streams that may be open at a time.", [], _one(lambda s: s.settings.max_streams)
    ),
)
