"""The final state of an execution: state and outcome, from the container, the record's trailer and the stop. Pure."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from signal import Signals
from typing import Any, Final

from fastlane_grpc.backend import Container, Diagnosis, Interruption, InterruptionCause
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.model import Execution, JobSpec, Outcome, Reason, State, StopCause, Usage
from fastlane_grpc.record import Trailer

# Exit codes that an engine reports for containers whose end it did not see, or that it killed as it went down.
DOUBTFUL_CODES: Final = frozenset({255, 137, 143})
MAX_DETAIL_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True)
class FinalState:
    """A final state with its outcome. The times are the engine's."""

    state: State
    outcome: Outcome
    start_time: datetime | None = None
    exit_time: datetime | None = None

    def facts(self) -> Mapping[str, object]:
        """Return everything but the exit code, for the trailer of a record.

        A trailer also has the exit code, so a sealed record is enough to finish its execution.
        """
        return {
            "state": int(self.state),
            "reason": int(self.outcome.reason),
            "detail": self.outcome.detail,
            "out_of_memory": self.outcome.out_of_memory,
            "stop_signal": self.outcome.stop_signal,
            "start_time": self.start_time and self.start_time.isoformat(),
            "exit_time": self.exit_time and self.exit_time.isoformat(),
        }


def final_state_of(trailer: Trailer) -> FinalState | None:
    """Return the final state in a trailer; None if the recorder of the container sealed the record, not a server."""
    facts: Mapping[str, Any] = trailer.facts
    if "state" not in facts:
        return None
    outcome = Outcome(
        reason=Reason(facts["reason"]),
        detail=facts["detail"],
        exit_code=trailer.exit_code,
        out_of_memory=facts["out_of_memory"],
        stop_signal=facts["stop_signal"],
    )
    return FinalState(State(facts["state"]), outcome, _time(facts["start_time"]), _time(facts["exit_time"]))


def usage_of(trailer: Trailer) -> Usage | None:
    """Return what the recorder told of the container; None: another one wrote the trailer, or an older recorder."""
    facts: Any = trailer.facts.get("usage")
    if not isinstance(facts, Mapping):
        return None
    cpu_us, peak_memory, read, written = (_count(facts.get(name)) for name in _COUNTS)
    return Usage(None if cpu_us is None else timedelta(microseconds=cpu_us), peak_memory, read, written)


_COUNTS = ("cpu_us", "peak_memory_bytes", "read_bytes", "written_bytes")


def _count(number: object) -> int | None:
    """Return the number if the kernel told it. Beyond this limit it is none of microseconds or bytes."""
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return number if 0 <= number <= 1 << 60 else None


def ended(
    exit_code: int | None,
    container: Container | None,
    spec: JobSpec,
    stopping: Stopping | None,
    *,
    timeout: timedelta,
    engine_restarted: bool,
    kills_for_memory: int = 0,
    interruption: Interruption | None = None,
) -> FinalState:
    """Return the final state of a container that ran and ended.

    `container` is None if the container was removed before it could be inspected. `kills_for_memory`: how many the
    recorder knows of. The engine misses some. `interruption`: why the backend ended the container, if it did.
    """
    start_time, exit_time = (container.start_time, container.end_time) if container else (None, None)
    if start_time and exit_time:
        # A busy engine notes the start of a quick container after its end.
        start_time = min(start_time, exit_time)
    out_of_memory = kills_for_memory > 0 or (container is not None and container.out_of_memory)
    state, reason, detail = _judged(
        exit_code,
        out_of_memory,
        spec,
        stopping,
        timeout=timeout,
        engine_restarted=engine_restarted,
        interruption=interruption,
    )
    outcome = Outcome(reason, _short(detail), exit_code, out_of_memory, stopping.sent if stopping else "")
    return FinalState(state, outcome, start_time, exit_time)


def ended_by_itself(
    trailer: Trailer,
    container: Container | None,
    spec: JobSpec,
    stopping: Stopping | None,
    *,
    timeout: timedelta,
    engine_restarted: bool,
    interruption: Interruption | None = None,
) -> FinalState:
    """Return the final state of a container whose recorder wrote the end into the trailer.

    `container` is None if the container was removed before it could be inspected.
    """
    facts: Mapping[str, Any] = trailer.facts
    if error := facts.get("exec_error"):
        return not_executed(error, container.program if container else None, stopping)
    # "told": the recorder was sent a signal to end. If no server did that, the engine ended the container.
    engine_ended_it = engine_restarted and bool(facts.get("told"))
    final_state = ended(
        trailer.exit_code,
        container,
        spec,
        stopping,
        timeout=timeout,
        engine_restarted=engine_ended_it,
        # A record of an older recorder does not tell.
        kills_for_memory=facts.get("kills_for_memory", 0),
        # A command that ended before the backend told it to end has ended by itself.
        interruption=interruption if facts.get("told") else None,
    )
    # An engine that was killed has lost the times, or replaced them by the time of its own return.
    exit_time = _nanos(facts.get("end_time_ns")) or final_state.exit_time
    start_time = final_state.start_time or _nanos(facts.get("start_time_ns"))
    if facts.get("cut_off"):
        final_state = cut_off(final_state)
    return replace(
        final_state,
        exit_time=exit_time,
        start_time=min(start_time, exit_time) if start_time and exit_time else start_time,
    )


def cut_off(final_state: FinalState) -> FinalState:
    """Return the final state of a command that the recorder killed, as its output could not be stored any more."""
    if final_state.state not in {State.FAILED, State.LOST}:
        return final_state
    detail = (
        "killed by its recorder, which may not make the file of its output larger: "
        "the limit RLIMIT_FSIZE of the container's main process, or the largest file of this file system; "
        f"{_exit_text(final_state.outcome.exit_code)}"
    )
    return replace(
        final_state, state=State.FAILED, outcome=replace(final_state.outcome, reason=Reason.EXIT_CODE, detail=detail)
    )


def not_executed(error: int, program: str | None, stopping: Stopping | None) -> FinalState:
    """Return the final state of a command that the kernel did not execute, with the error number `error`.

    `program` is the first word of the command.
    """
    name = '"" (an empty word)' if program == "" else program
    text = ": ".join(filter(None, (name, os.strerror(error))))
    if stopping:
        return _final_state(
            State.STOPPED,
            Reason.UNSPECIFIED,
            f"told to stop {stopping.cause}; its command could not be executed: {text}",
        )
    if error in {errno.ENOENT, errno.ENOTDIR}:
        return failed(Reason.COMMAND_NOT_FOUND, f"the image has no such command: {text}")
    if error == errno.ENOEXEC:
        text += (
            " (a program for another architecture, "
            "or a script whose first line does not name an interpreter, as #!/bin/sh)"
        )
    return failed(Reason.COMMAND_NOT_EXECUTABLE, f"the command cannot be executed: {text}")


def not_begun(
    exit_code: int | None, stopping: Stopping | None, interruption: Interruption | None, reason: str = ""
) -> FinalState:
    """Return the final state of a started container whose recorder ended before it ran the command.

    `reason`: why the inputs of the job are not in the container; empty: they are, or nobody knows.
    """
    if stopping:
        return stopped_before_start(stopping)
    if interruption:
        return lost(Reason.EVICTED, f"the cluster ended it before its command ran: {interruption.text}")
    if reason:
        detail = f"the inputs of the job are not in its container, so its command was not run: {reason}"
        return failed(Reason.INPUT_UNAVAILABLE, detail)
    text = "" if exit_code is None else f" (it exited with {exit_code})"
    return failed(
        Reason.REFUSED_BY_ENGINE,
        f"the container was started, and could not begin to record, so its command was not run{text}",
    )


def record_deleted(exit_code: int | None) -> FinalState:
    """Return the final state of an execution whose record somebody deleted or replaced.

    A missing record proves nothing, not even that the command did not run.
    """
    text = "" if exit_code is None else f" (its container exited with {exit_code})"
    return lost(
        Reason.CONTAINER_GONE,
        "somebody deleted its record from the data directory, or put something else in its place: "
        f"nobody knows whether its command ran, or what it printed{text}",
    )


def not_started(error: Diagnosis, stopping: Stopping | None, *, by_recorder: bool, again: bool = False) -> FinalState:
    """Return the final state of a container whose start the engine refused; `again`: several times.

    Under the recorder the engine does not look for the command, so the engine's words about a program are not about
    the job's command.
    """
    if stopping:
        return _final_state(
            State.STOPPED,
            Reason.UNSPECIFIED,
            f"told to stop {stopping.cause}; it would not have started: {error.text}",
        )
    if error.image_reason is not None:
        return failed(error.image_reason, f"the image cannot be used: {error.text}")
    reason = None if by_recorder else error.command_reason
    if reason is Reason.COMMAND_NOT_FOUND:
        return failed(reason, f"the image has no such command: {error.text}")
    if reason is Reason.COMMAND_NOT_EXECUTABLE:
        return failed(reason, f"the command cannot be executed: {error.text}")
    tries = " in several tries" if again else ""
    return failed(Reason.REFUSED_BY_ENGINE, f"the engine did not start the container{tries}: {error.advice}")


def failed(reason: Reason, detail: str) -> FinalState:
    return _final_state(State.FAILED, reason, detail)


def lost(reason: Reason, detail: str) -> FinalState:
    return _final_state(State.LOST, reason, detail)


def expired(execution: Execution) -> FinalState:
    """Return the final state of an execution that was claimed before its expire_time, and not started before it."""
    return _final_state(
        State.EXPIRED,
        Reason.UNSPECIFIED,
        f"it had not started by its expire_time, {execution.expire_time:%Y-%m-%dT%H:%M:%SZ}",
    )


def stopped_before_start(stopping: Stopping) -> FinalState:
    return _final_state(State.STOPPED, Reason.UNSPECIFIED, f"told to stop {stopping.cause} before it was started")


def _judged(
    exit_code: int | None,
    out_of_memory: bool,
    spec: JobSpec,
    stopping: Stopping | None,
    *,
    timeout: timedelta,
    engine_restarted: bool,
    interruption: Interruption | None,
) -> tuple[State, Reason, str]:
    text = _exit_text(exit_code)
    cause = interruption and interruption.cause
    if cause is InterruptionCause.DEADLINE if stopping is None else stopping.stop.cause is StopCause.TIMEOUT:
        return (
            State.TIMED_OUT,
            Reason.UNSPECIFIED,
            f"ran longer than its timeout of {timeout.total_seconds():g} s; {text}",
        )
    if stopping:
        return State.STOPPED, Reason.UNSPECIFIED, f"told to stop {stopping.cause}; {text}"
    if interruption and cause is InterruptionCause.NODE_LOST and exit_code is None:
        return State.LOST, Reason.NODE_LOST, f"its node is gone, and nobody knows how it ended: {interruption.text}"
    if interruption and not (out_of_memory and exit_code):
        # Also if the command then exited with 0: it was told to end, and most programs do not tell that from success.
        return State.LOST, Reason.EVICTED, f"the cluster ended it: {interruption.text}; {text}"
    if exit_code is None:
        return (
            State.LOST,
            Reason.CONTAINER_GONE,
            "the container was removed by somebody else; nobody knows how it ended",
        )
    if engine_restarted and exit_code in DOUBTFUL_CODES:
        return (
            State.LOST,
            Reason.CONTAINER_GONE,
            f"the engine was restarted while it ran, and may have ended it: its exit code ({exit_code}) means nothing",
        )
    if exit_code == 0:
        return State.SUCCEEDED, Reason.UNSPECIFIED, ""
    if out_of_memory:
        return State.FAILED, Reason.OUT_OF_MEMORY, f"killed for memory: {_memory(spec)}; {text}"
    return State.FAILED, Reason.EXIT_CODE, text


def _exit_text(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended with an unknown exit code"
    by_convention = exit_code - 128
    if by_convention in set(Signals):
        return f"exited with {exit_code}, by convention 128 + {Signals(by_convention).name}"
    return f"exited with {exit_code}"


def _memory(spec: JobSpec) -> str:
    limit = spec.limits.memory_bytes
    return f"it may use {limit / (1 << 20):g} MiB; raise limits.memory_bytes" if limit else "the machine has no more"


def _final_state(state: State, reason: Reason, detail: str) -> FinalState:
    return FinalState(state, Outcome(reason, _short(detail)))


def _short(detail: str) -> str:
    return detail if len(detail) <= MAX_DETAIL_CHARACTERS else f"{detail[:MAX_DETAIL_CHARACTERS]}…"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _nanos(nanoseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC) if nanoseconds else None
