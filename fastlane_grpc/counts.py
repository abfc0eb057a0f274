"""Counts of what a server does, in memory: values that are passed to the parts that count.

Each count is written by one thread. Any thread may read it, and finds a value that is a moment old at most."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

# Of calls and commits: from a fraction of a millisecond to a disk that hangs.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# Of the phases of an execution: from an image that is there to a training of days.
PHASE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
UNITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        # The values within each bound and above the one before; the last count is of those above all bounds.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class CallCounts:
    """Calls of one kind: those in flight, those that ended, by their codes, and how long these took.

    `method`: the method of the contract that they call; empty: none."""

    __slots__ = ("ended", "in_flight", "method", "seconds")

    def __init__(self, method: str) -> None:
        self.method = method
        self.in_flight = 0
        self.ended: Counter[str] = Counter()
        self.seconds = Histogram(CALL_SECONDS)

    def start(self) -> float:
        """Count a call that starts. Return the time for `end`."""
        self.in_flight += 1
        return perf_counter()

    def end(self, start: float, code: str) -> None:
        """Count the end of a call that started then."""
        self.in_flight -= 1
        self.ended[code] += 1
        self.seconds.observe(perf_counter() - start)


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """Counts of the thread that writes to the store.

    `seconds`: how long each commit took, with its statements and its sync; `units`: how many units of work it had.
    `new_jobs`: the jobs that were stored. `failures`: units that were not stored, as SQLite or the disk failed; each
    attempt counts."""

    seconds: Histogram = field(default_factory=lambda: Histogram(CALL_SECONDS))
    units: Histogram = field(default_factory=lambda: Histogram(UNITS))
    new_jobs: Tally = field(default_factory=Tally)
    failures: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class NotificationCounts:
    """Counts of the attempts to deliver notifications whose result is stored.

    `attempts`: by the kind of the receiver and by the outcome."""

    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """Counts of the spans of traces that were recorded.

    `sent`: the collector took them. `failed`: it did not. `dropped`: too many waited for it."""

    sent: Tally = field(default_factory=Tally)
    failed: Tally = field(default_factory=Tally)
    dropped: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class Counts:
    """All counts of one server: of its store, its notifications, its traces, of gRPC and of HTTP."""

    store: StoreCounts = field(default_factory=StoreCounts)
    notifications: NotificationCounts = field(default_factory=NotificationCounts)
    spans: SpanCounts = field(default_factory=SpanCounts)
    grpc: dict[str, CallCounts] = field(default_factory=dict)
    # By verb and by the pattern of the path.
    http: dict[tuple[str, str], CallCounts] = field(default_factory=dict)

    def of_grpc(self, method: str) -> CallCounts:
        return self.grpc.setdefault(method, CallCounts(method))

    def of_http(self, verb: str, path: str, method: str = "") -> CallCounts:
        """`method`: the method of the contract that is called there; empty: none."""
        return self.http.setdefault((verb, path), CallCounts(method))
