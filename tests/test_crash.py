"""The server killed with -9: each acknowledged job comes to one final state, no container is started twice, no byte
comes twice.

Readers stay attached all the while and go on by themselves, over however many servers it takes.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

from fastlane_grpc.client import End
from fastlane_grpc.model import CaptureMode
from fastlane_grpc.v1 import fastlane_pb2 as pb
from tests.engine import by_attach, by_recorder
from tests.reading import Reader
from tests.serving import within
from tests.succession import Succession
from tests.tally import tally

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

# Prints numbers, slowly enough for a crash to come in between, and exits with a code that nobody else uses.
COUNT = "i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo $i; echo e$i >&2; sleep 0.02; done; exit 7"
OUT = b"".join(b"%d\n" % number for number in range(1, 31))
ERR = b"".join(b"e%d\n" % number for number in range(1, 31))

# Killed here, the next server begins anew, in a new container.
BEFORE_THE_FENCE = ["claimed", "pulled", "created", "attached"]
# Killed here, it goes on with the container it finds; what was printed meanwhile may be a gap.
AFTER_THE_START = ["started", "running", "died", "drained"]
# Killed here, everything is in the record.
AFTER_THE_SEAL = ["sealed", "finished", "removed"]

# Rounds of random kills: `make chaos` asks for many.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "2"))
SEED = int(os.environ.get("CHAOS_SEED", "20261124"))


class Starts:
    """Each start of a container for an execution, as the engine tells of it, with its time in nanoseconds."""

    _FILTERS: Mapping[str, str] = {"event": "start", "label": "fastlane.execution"}

    def __init__(self, sdk: docker.DockerClient) -> None:
        self._sdk = sdk
        self._since = time.time() - 1
        self._heard: set[tuple[int, str]] = set()
        self._stream = sdk.api.events(since=self._since, filters=self._FILTERS, decode=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def heard(self) -> set[tuple[int, str]]:
        """The engine remembers its last 256 events, of all kinds: the rest was heard long before."""
        # Up to now: the engine ends this at once, and has told of each start before it answered who asked for one.
        until = f"{time.time():.9f}"
        events = self._sdk.api.events(since=self._since, until=until, filters=self._FILTERS, decode=True)
        return self._heard.union(map(self._start, events))

    def close(self) -> None:
        self._stream.close()

    def _listen(self) -> None:
        for event in self._stream:
            self._heard.add(self._start(event))

    @staticmethod
    def _start(event: Mapping[str, Any]) -> tuple[int, str]:
        return event["timeNano"], event["Actor"]["Attributes"]["fastlane.execution"]


class CrashHarness(Succession):
    """Servers that are killed one after another, and what the engine says of their containers."""

    def __init__(self, data_dir: Path, sdk: docker.DockerClient, image: str, capture: CaptureMode) -> None:
        super().__init__(data_dir, sdk, image, capture=capture, max_running=4)
        self.capture = capture
        self._starts = Starts(sdk)
        self.executions: list[str] = []

    def close(self) -> None:
        self._starts.close()
        self.client.close()

    def enqueue(self, script: str = COUNT, **more: object) -> str:
        job = self.client.enqueue("crash", self.image, args=["sh", "-c", script], **more)  # type: ignore[arg-type]
        self.executions.append(job.execution.id)
        return job.execution.id

    def reader(self, execution_id: str) -> Reader:
        return Reader(self.client, execution_id)

    def starts(self) -> Counter[str]:
        """How often the engine started a container of each execution: it is asked, not we."""
        return Counter(execution for _, execution in self._starts.heard() if execution in self.executions)

    def until_cleared(self) -> None:
        """Waits until none has a container any more: what a dead server left is swept by the next one, beside its
        work."""
        with (
            within(60),
            closing(self.sdk.api.events(filters={"event": "destroy", "label": "fastlane.execution"})) as destroyed,
        ):
            while self.left():
                next(destroyed)

    def left(self) -> Sequence[str]:
        """Executions that have a container still."""
        found = self.sdk.api.containers(all=True, filters={"label": "fastlane.execution"})
        return [
            each["Labels"]["fastlane.execution"]
            for each in found
            if each["Labels"]["fastlane.execution"] in self.executions
        ]


@pytest.fixture
def crash(tmp_path: Path, sdk: docker.DockerClient, image: str, capture: CaptureMode) -> Iterator[CrashHarness]:
    harness = CrashHarness(tmp_path / "data", sdk, image, capture)
    yield harness
    harness.close()


def killed_once(harness: CrashHarness, step: str) -> tuple[Reader, End]:
    """One job over two servers, the first of which dies at `step`."""
    first = harness.server(kill_at=step)
    reader = harness.reader(harness.enqueue())
    assert first.wait() == -9
    second = harness.server()
    end = reader.end()
    assert end.sealed
    harness.until_cleared()
    assert second.stop() == 0
    assert set(harness.starts().values()) <= {1}
    return reader, end


@pytest.mark.parametrize("step", BEFORE_THE_FENCE)
def test_killed_before_the_start_the_job_runs_as_if_nothing_had_been(crash: CrashHarness, step: str) -> None:
    reader, end = killed_once(crash, step)
    assert (end.state, end.exit_status) == (pb.STATE_FAILED, 7)
    assert (reader.data[pb.SOURCE_STDOUT], reader.data[pb.SOURCE_STDERR], reader.gaps) == (OUT, ERR, [])


@by_recorder
def test_killed_between_the_fence_and_the_start_the_job_runs_in_a_new_container(crash: CrashHarness) -> None:
    reader, end = killed_once(crash, "fenced")
    assert (end.state, end.exit_status) == (pb.STATE_FAILED, 7)
    assert (reader.stdout, reader.stderr, reader.gaps) == (OUT, ERR, [])


@by_attach
def test_killed_between_the_fence_and_the_start_the_job_is_lost_and_never_started(crash: CrashHarness) -> None:
    reader, end = killed_once(crash, "fenced")
    assert (end.state, end.exit_status, end.outcome and end.outcome.reason) == (
        pb.STATE_LOST,
        125,
        pb.REASON_START_UNKNOWN,
    )
    assert reader.data[pb.SOURCE_STDOUT] == b""
    assert crash.starts() == {}


@by_recorder
@pytest.mark.parametrize("step", [*AFTER_THE_START, *AFTER_THE_SEAL])
def test_killed_after_the_start_nothing_is_missing(crash: CrashHarness, step: str) -> None:
    reader, end = killed_once(crash, step)
    assert (end.state, end.exit_status) == (pb.STATE_FAILED, 7)
    assert (reader.stdout, reader.stderr, reader.gaps) == (OUT, ERR, [])


@by_attach
@pytest.mark.parametrize("step", AFTER_THE_START)
def test_killed_while_it_runs_the_job_goes_on_with_a_gap_that_says_so(crash: CrashHarness, step: str) -> None:
    reader, end = killed_once(crash, step)
    assert (end.state, end.exit_status) == (pb.STATE_FAILED, 7)
    # Whatever is missing, is missing in the place that the gap names.
    assert {gap.source for gap in reader.gaps} == {pb.SOURCE_STDOUT, pb.SOURCE_STDERR}
    assert all(gap.cause == pb.LogGap.CAUSE_ENGINE and gap.missing_bytes is None for gap in reader.gaps)
    for source, written in ((pb.SOURCE_STDOUT, OUT), (pb.SOURCE_STDERR, ERR)):
        places = sorted({gap.offset for gap in reader.gaps if gap.source == source})
        pieces = [reader.data[source][begin:until] for begin, until in zip([0, *places], [*places, None], strict=True)]
        assert_pieces_in_order(pieces, written)


@by_attach
@pytest.mark.parametrize("step", AFTER_THE_SEAL)
def test_killed_after_the_seal_nothing_is_missing(crash: CrashHarness, step: str) -> None:
    reader, end = killed_once(crash, step)
    assert (end.state, end.exit_status) == (pb.STATE_FAILED, 7)
    assert (reader.data[pb.SOURCE_STDOUT], reader.data[pb.SOURCE_STDERR], reader.gaps) == (OUT, ERR, [])


def test_killed_at_random_with_jobs_in_every_state(crash: CrashHarness) -> None:
    chance = random.Random(SEED)
    readers: list[Reader] = []
    acknowledged = 0
    for _ in range(ROUNDS):
        server = crash.server()
        for number in range(8):
            execution = crash.enqueue(timeout=20)
            readers.append(crash.reader(execution))
            acknowledged += 1
            if number == 3:
                crash.client.stop(crash.client.execution(execution).job_id, note="chaos", grace=0)
        # Four run at a time and take 0.6 s and a start each: some are queued, some prepared, some running, some over.
        threading.Event().wait(chance.uniform(0.0, 2.5))
        server.kill()
        tally()
    last = crash.server()
    ends = [reader.end() for reader in readers]
    assert len(ends) == acknowledged
    assert all(end.sealed and end.outcome is not None for end in ends)
    states = Counter(end.state for end in ends)
    assert set(states) <= {pb.STATE_FAILED, pb.STATE_STOPPED, pb.STATE_LOST}, states
    for reader, end in zip(readers, ends, strict=True):
        if end.state == pb.STATE_FAILED:
            assert end.exit_status == 7
            if crash.capture == CaptureMode.RECORDER:
                assert not reader.gaps
            if not reader.gaps:
                assert (reader.data[pb.SOURCE_STDOUT], reader.data[pb.SOURCE_STDERR]) == (OUT, ERR)
    assert last.stop() == 0
    assert set(crash.starts().values()) <= {1}
    assert crash.left() == []


def assert_pieces_in_order(pieces: Sequence[bytes], whole: bytes) -> None:
    """The pieces are of `whole`, in order, without an overlap: between them anything may be missing."""
    at = 0
    for number, piece in enumerate(pieces):
        found = whole.find(piece, at)
        assert found >= 0, f"piece {number} {piece[:60]!r} does not follow"
        assert number or found == 0 or not piece, "the first piece begins at the begin"
        at = found + len(piece)
