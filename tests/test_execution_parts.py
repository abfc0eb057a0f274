"""What a runner decides by itself: when to send which signal, what an end means, how much time is left."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from fastlane_grpc.backend import Container, Handle, Interruption, InterruptionCause
from fastlane_grpc.clock import engine_time, left
from fastlane_grpc.docker.capture_choice import CaptureChoice
from fastlane_grpc.docker.engine_errors import EngineDown, diagnosis
from fastlane_grpc.execution.final_state import FinalState, ended, ended_by_itself, final_state_of, not_started
from fastlane_grpc.execution.stopping import Stopping, signal_name, signal_number
from fastlane_grpc.model import CaptureMode, JobSpec, Limits, Outcome, Reason, State, Stop, StopCause, utc_now
from fastlane_grpc.record import Trailer
from tests.hostile_tree import few_descriptors

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
END = START + timedelta(seconds=5)


def container(exit_code: int = 0, *, out_of_memory: bool = False) -> Container:
    return Container(Handle("c", ""), False, True, exit_code, None, out_of_memory, "", START, END)


def stopping(cause: StopCause = StopCause.CALLER, sent: str = "SIGTERM", note: str = "") -> Stopping:
    return Stopping(Stop(cause, START, timedelta(seconds=10), note), "SIGTERM", 100.0, sent=sent)


def judged(
    exit_code: int | None = 0, told: Stopping | None = None, *, out_of_memory: bool = False, restarted: bool = False
) -> FinalState:
    found = None if exit_code is None else container(exit_code, out_of_memory=out_of_memory)
    spec = JobSpec("image", limits=Limits(memory_bytes=64 << 20))
    return ended(exit_code, found, spec, told, timeout=timedelta(seconds=1.5), engine_restarted=restarted)


# -- what an end means


@pytest.mark.parametrize(
    ("final_state", "state", "outcome"),
    [
        (judged(0), State.SUCCEEDED, Outcome(exit_code=0)),
        (judged(3), State.FAILED, Outcome(Reason.EXIT_CODE, "exited with 3", 3)),
        (judged(255), State.FAILED, Outcome(Reason.EXIT_CODE, "exited with 255", 255)),
        (judged(137), State.FAILED, Outcome(Reason.EXIT_CODE, "exited with 137, by convention 128 + SIGKILL", 137)),
        (judged(0, out_of_memory=True), State.SUCCEEDED, Outcome(exit_code=0, out_of_memory=True)),
        (
            judged(137, out_of_memory=True),
            State.FAILED,
            Outcome(
                Reason.OUT_OF_MEMORY,
                "killed for memory: it may use 64 MiB; raise limits.memory_bytes; "
                "exited with 137, by convention 128 + SIGKILL",
                137,
                out_of_memory=True,
            ),
        ),
        (
            judged(0, stopping(StopCause.TIMEOUT)),
            State.TIMED_OUT,
            Outcome(
                Reason.UNSPECIFIED, "ran longer than its timeout of 1.5 s; exited with 0", 0, stop_signal="SIGTERM"
            ),
        ),
        (
            judged(0, stopping(note="enough")),
            State.STOPPED,
            Outcome(Reason.UNSPECIFIED, "told to stop by a caller (enough); exited with 0", 0, stop_signal="SIGTERM"),
        ),
        (judged(1, restarted=True), State.FAILED, Outcome(Reason.EXIT_CODE, "exited with 1", 1)),
    ],
)
def test_an_end_has_one_meaning(final_state: FinalState, state: State, outcome: Outcome) -> None:
    assert (final_state.state, final_state.outcome) == (state, outcome)


def interrupted(
    cause: InterruptionCause, exit_code: int | None, told: Stopping | None = None, *, out_of_memory: bool = False
) -> FinalState:
    found = None if exit_code is None else container(exit_code, out_of_memory=out_of_memory)
    why = Interruption(cause, "words")
    return ended(
        exit_code, found, JobSpec("i"), told, timeout=timedelta(minutes=1), engine_restarted=False, interruption=why
    )


EVICTED, NODE_LOST, DEADLINE = InterruptionCause.EVICTED, InterruptionCause.NODE_LOST, InterruptionCause.DEADLINE


@pytest.mark.parametrize(
    ("final_state", "state", "reason"),
    [
        (interrupted(EVICTED, 143), State.LOST, Reason.EVICTED),
        (interrupted(EVICTED, None), State.LOST, Reason.EVICTED),
        # It was told to end, and may have had more to do.
        (interrupted(EVICTED, 0), State.LOST, Reason.EVICTED),
        (interrupted(EVICTED, 137, out_of_memory=True), State.FAILED, Reason.OUT_OF_MEMORY),
        (interrupted(EVICTED, 143, stopping()), State.STOPPED, Reason.UNSPECIFIED),
        (interrupted(NODE_LOST, None), State.LOST, Reason.NODE_LOST),
        # The node came back, and ended it.
        (interrupted(NODE_LOST, 143), State.LOST, Reason.EVICTED),
        (interrupted(DEADLINE, 143), State.TIMED_OUT, Reason.UNSPECIFIED),
        (interrupted(DEADLINE, None), State.TIMED_OUT, Reason.UNSPECIFIED),
        (interrupted(DEADLINE, 143, stopping()), State.STOPPED, Reason.UNSPECIFIED),
    ],
)
def test_an_end_that_a_cluster_puts_to_a_container_is_not_the_jobs(
    final_state: FinalState, state: State, reason: Reason
) -> None:
    assert (final_state.state, final_state.outcome.reason) == (state, reason)


@pytest.mark.parametrize(("told", "reason"), [(0, Reason.EXIT_CODE), (15, Reason.EVICTED)])
def test_a_command_that_was_not_told_to_end_has_ended_by_itself(told: int, reason: Reason) -> None:
    trailer = Trailer(5, (), 3, {"told": told})
    why = Interruption(EVICTED, "words")
    final_state = ended_by_itself(
        *(trailer, container(3), JobSpec("i"), None),
        timeout=timedelta(minutes=1),
        engine_restarted=False,
        interruption=why,
    )
    assert final_state.outcome.reason is reason


def test_no_container_ended_before_it_was_started() -> None:
    late = replace(container(), start_time=END + timedelta(milliseconds=2))
    final_state = ended(0, late, JobSpec("image"), None, timeout=timedelta(seconds=1), engine_restarted=False)
    assert (final_state.start_time, final_state.exit_time) == (END, END)


@pytest.mark.parametrize("exit_code", [255, 137, 143])
def test_a_doubtful_code_after_a_restart_of_the_engine_is_lost_unless_we_stopped_it(exit_code: int) -> None:
    final_state = judged(exit_code, restarted=True)
    assert (final_state.state, final_state.outcome.reason) == (State.LOST, Reason.CONTAINER_GONE)
    assert judged(exit_code, stopping(), restarted=True).state is State.STOPPED


def test_a_container_that_was_removed_by_another_is_lost() -> None:
    final_state = judged(None)
    assert (final_state.state, final_state.outcome.reason, final_state.outcome.exit_code) == (
        State.LOST,
        Reason.CONTAINER_GONE,
        None,
    )


def test_a_start_that_was_refused_is_told_without_the_engine_s_inner_parts() -> None:
    error = (
        "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
        'exec: "nosuch": executable file not found in $PATH: unknown'
    )
    final_state = not_started(diagnosis(error), None, by_recorder=False)
    assert final_state.outcome.reason is Reason.COMMAND_NOT_FOUND
    assert (
        final_state.outcome.detail
        == 'the image has no such command: exec: "nosuch": executable file not found in $PATH'
    )
    assert not_started(diagnosis(error), stopping(), by_recorder=False).state is State.STOPPED


def test_under_the_recorder_a_refused_start_says_nothing_of_the_command() -> None:
    error = 'unable to start container process: exec: "/.fastlane/recorder": permission denied: unknown'
    final_state = not_started(diagnosis(error), None, by_recorder=True, again=True)
    assert final_state.outcome.reason is Reason.REFUSED_BY_ENGINE
    assert "in several tries: the engine cannot execute the recorder" in final_state.outcome.detail


def test_a_verdict_comes_back_out_of_a_trailer() -> None:
    final_state = judged(3, stopping())
    assert final_state_of(Trailer(0, (), final_state.outcome.exit_code, final_state.facts())) == final_state
    assert len(str(judged(3, stopping(note="n" * 5000)).facts())) < 2000


# -- signals


def test_first_the_signal_then_the_kill_then_the_kill_again() -> None:
    order = Stopping.begin(Stop(StopCause.CALLER, utc_now(), timedelta(seconds=10)), "SIGINT", now=50.0)
    assert order.due(50.0) == "SIGINT"
    order = order.did_send("SIGINT", 50.0)
    assert order.due(51.0) == ""
    assert 59.9 < order.next_time <= 60.0
    assert order.due(60.0) == "SIGKILL"
    order = order.did_send("SIGKILL", 60.0)
    assert order.due(61.0) == ""
    assert order.due(order.next_time) == "SIGKILL"


def test_no_grace_is_a_kill_at_once() -> None:
    order = Stopping.begin(Stop(StopCause.CALLER, utc_now(), timedelta(0)), "", now=50.0)
    assert order.due(50.0) == "SIGKILL"


def test_grace_counts_from_the_order_and_can_only_become_shorter() -> None:
    order = Stopping.begin(
        Stop(StopCause.CALLER, utc_now() - timedelta(seconds=8), timedelta(seconds=10)), "", now=50.0
    )
    assert 51.5 < order.kill_at <= 52.0
    assert order.shortened(Stop(StopCause.CALLER, utc_now(), timedelta(seconds=60)), 50.0).kill_at == order.kill_at
    assert order.shortened(Stop(StopCause.CALLER, utc_now(), timedelta(0)), 50.0).kill_at == 50.0


def test_a_signal_that_was_not_sent_is_sent_again_soon() -> None:
    order = Stopping.begin(Stop(StopCause.CALLER, utc_now(), timedelta(seconds=10)), "", now=50.0).could_not_send(50.0)
    assert order.due(50.5) == ""
    assert order.due(order.next_time) == "SIGTERM"
    assert order.kill_now(50.0).due(51.0) == "SIGKILL"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "SIGTERM"),
        ("15", "SIGTERM"),
        ("int", "SIGINT"),
        ("SIGUSR1", "SIGUSR1"),
        ("44", "44"),
        ("RTMIN+3", "SIGRTMIN+3"),
    ],
)
def test_a_stop_signal_is_told_by_its_name(text: str, name: str) -> None:
    assert signal_name(text) == name


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 15),
        ("9", 9),
        ("usr1", 10),
        ("SIGRTMIN", 34),
        ("RTMIN+3", 37),
        ("SIGRTMAX-1", 63),
        ("44", 44),
        ("RTMAX+1", None),
        ("0", None),
        ("65", None),
        ("SIGNONE", None),
    ],
)
def test_a_signal_has_the_number_that_an_engine_would_send(text: str, number: int | None) -> None:
    assert signal_number(text) == number


# -- time


def test_what_is_left_of_a_time_is_never_more_than_all_nor_less_than_none() -> None:
    span = timedelta(seconds=10)
    assert left(span, since=START, now=START + timedelta(seconds=4)) == 6
    assert left(span, since=START, now=START + timedelta(days=1)) == 0
    assert left(span, since=START, now=START - timedelta(days=1)) == 10


def test_the_engine_s_zero_is_no_time() -> None:
    assert engine_time("0001-01-01T00:00:00Z") is None
    assert engine_time("") is None
    assert engine_time("2026-01-01T12:00:05.123456789Z") == END + timedelta(microseconds=123456)


class AnsweringEngine:
    """An engine that says what it is, without a descriptor of this process, and goes away when it is asked for more."""

    local = True
    address = "fake://"

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)

    def info(self) -> SimpleNamespace:
        self.asked.release()
        return SimpleNamespace(id="id", version="version", architecture="amd64")

    def __getattr__(self, name: str) -> object:
        raise EngineDown("it went away")


def test_a_server_without_descriptors_does_not_settle_for_attach(tmp_path: Path) -> None:
    captures, engine = CaptureChoice(CaptureMode.AUTO, tmp_path, instance="i"), AnsweringEngine()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(int).result()
        with few_descriptors(0):
            settling = threads.submit(captures.determine, engine)  # type: ignore[arg-type]
            # Asked once more: it has met the shortage, and waits for its end.
            assert all(engine.asked.acquire(timeout=30) for _ in range(3))
            assert not settling.done()
            assert captures.in_use == ""
        with pytest.raises(EngineDown, match="it went away"):
            settling.result(30)
    assert (captures.in_use, captures.reason) == ("", "")


def test_a_host_that_settles_for_attach_warns(tmp_path: Path) -> None:
    captures, engine = CaptureChoice(CaptureMode.AUTO, tmp_path, instance="i"), AnsweringEngine()
    engine.local = False
    with capture_logs() as logs:
        captures.determine(engine)  # type: ignore[arg-type]
    assert [(each["event"], each["log_level"], each["in_use"]) for each in logs] == [("capture", "warning", "attach")]
