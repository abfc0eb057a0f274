"""The end of an execution: its record sealed, its outcome committed, its container removed, in this order.

The module needs no backend: also an execution whose host is not configured any more comes to its end here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import structlog

from fastlane_grpc.backend import Handle
from fastlane_grpc.capture.capture import Capture, ContainerEnd
from fastlane_grpc.clock import boottime
from fastlane_grpc.errors import ExecutionNotFound, ServerStopping
from fastlane_grpc.execution.final_state import FinalState, ended_by_itself, final_state_of, usage_of
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Assignment, Execution, Outcome, Outputs, State, utc_now
from fastlane_grpc.record import Trailer
from fastlane_grpc.runner import AbandonedLog, CertainEnd
from fastlane_grpc.store import Store

log = structlog.get_logger(__name__)


class Step(StrEnum):
    """The steps of an execution, in order."""

    CLAIMED = "claimed"
    PULLED = "pulled"
    CREATED = "created"
    ATTACHED = "attached"
    FENCED = "fenced"
    STARTED = "started"
    RUNNING = "running"
    DIED = "died"
    DRAINED = "drained"
    SEALED = "sealed"
    FINISHED = "finished"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """The values that all executions of a runner share."""

    store: Store
    logs: Logs
    host_name: str
    default_timeout: timedelta
    step: Callable[[Step, str], None]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to run an execution: the execution's row, the capture, and the container, if there is one.

    `fenced`: it is on disk that a start of the container is about to be sent. A start is never sent without that.
    """

    execution: Execution
    capture: Capture
    handle: Handle | None = None
    fenced: bool = False

    @classmethod
    def of(cls, execution: Execution, capture: Capture) -> "Attempt":
        """Return the attempt that the store remembers."""
        handle = Handle(execution.container_id, execution.handle) if execution.handle else None
        return cls(execution, capture, handle, execution.starting)

    def with_capture(self, capture: Capture) -> "Attempt":
        return replace(self, capture=capture)

    def with_container(self, handle: Handle | None) -> "Attempt":
        return replace(self, handle=handle)

    def behind_fence(self, handle: Handle) -> "Attempt":
        return replace(self, handle=handle, fenced=True)

    def before_fence(self, execution: Execution) -> "Attempt":
        """Return the attempt after its start was revoked: its container is removed."""
        return replace(self, execution=execution, handle=None, fenced=False)


class Closing:
    """An execution that can be brought to its end. `attempt` is replaced by the methods of the class alone."""

    def __init__(self, context: RunnerContext, assignment: Assignment, capture: Capture) -> None:
        self.context = context
        self.spec = assignment.spec
        self.timeout = context.default_timeout if assignment.spec.timeout is None else assignment.spec.timeout
        execution = assignment.execution
        self._attempt = Attempt.of(execution, capture)
        self.log = log.bind(execution_id=execution.id, job_id=execution.job_id, host=context.host_name)

    @property
    def attempt(self) -> Attempt:
        return self._attempt

    @property
    def execution(self) -> Execution:
        return self._attempt.execution

    @property
    def capture(self) -> Capture:
        return self._attempt.capture

    def reached(self, step: Step) -> None:
        self.context.step(step, self.execution.id)

    def log_line(self, line: str) -> None:
        """Write one of fastlane's own lines into the log of the execution."""
        self.context.logs.system(self.execution.id, line)

    def wait(self, seconds: float) -> None:
        """Wait for the rest of the output of a container that has ended."""
        time.sleep(seconds)

    def finish_as(self, final_state: FinalState, end: ContainerEnd | None = None) -> None:
        """Finish an execution with a known final state: it did not run, or its end was not observed."""
        missing = self.capture.drain(end, self.wait)
        self.reached(Step.DRAINED)
        self._commit_end(final_state, missing if end else "")

    def _commit_end(self, final_state: FinalState, missing: str) -> None:
        """Seal the record, write fastlane's last lines, commit the outcome and remove the container, in this order."""
        trailer = self.capture.seal(final_state.outcome.exit_code, final_state.facts())
        self.context.logs.set_aside(self.execution.id)
        self.reached(Step.SEALED)
        outputs = self.collect_outputs()
        if missing:
            self.log_line(missing)
        self.log_line(_end_line(final_state.state, final_state.outcome))
        totals = (*(trailer.totals if trailer else ()), *self.context.logs.seal_system(self.execution.id))
        self.context.store.finish(
            self.execution.id,
            state=final_state.state,
            outcome=final_state.outcome,
            logs=totals,
            log_bytes=self.context.logs.room(self.execution.id),
            usage=usage_of(trailer) if trailer else None,
            outputs=outputs,
            start_time=final_state.start_time,
            exit_time=final_state.exit_time,
            first_byte_time=self.capture.first_byte_time,
            seal_time=datetime.fromtimestamp(trailer.time_ns / 1e9, UTC) if trailer else utc_now(),
        ).result()
        self.reached(Step.FINISHED)
        outcome = final_state.outcome
        self.log.info(
            "execution ended",
            state=final_state.state.name,
            reason=outcome.reason.name,
            exit_code=outcome.exit_code,
            complete=not missing,
        )
        self.remove()
        self.reached(Step.REMOVED)

    def collect_outputs(self) -> Outputs | None:
        """Collect what the job asks to keep of its container, if there is a backend to ask."""
        return None

    def remove(self) -> None:
        """Remove the container, if there is one and a backend to ask."""

    def requeue(self) -> Execution:
        """Requeue the execution, with the size of its log so far. Return the requeued execution."""
        logs, log_bytes = self.context.logs.close_system(self.execution.id)
        return self.context.store.requeue(self.execution.id, logs=logs, log_bytes=log_bytes).result()

    def abandon(self, why: str) -> AbandonedLog:
        """End the log of the execution, which is given up, and remove its container; see Runner."""
        try:
            abandoned = self._abandon_log(why)
            self.remove()
            return abandoned
        except (ServerStopping, ExecutionNotFound):
            raise
        except Exception as error:
            # The defect may be in the code that ends a log, too. The known totals are returned, so that the log is
            # pruned in its time.
            self.log.error("the log of an execution is not ended", exc_info=error)
            logs = self.context.logs
            return AbandonedLog(logs.system_totals(self.execution.id), logs.room(self.execution.id))
        finally:
            self.capture.detach()

    def _abandon_log(self, why: str) -> AbandonedLog:
        """End the log of an execution that could not be finished, with a gap of unknown size for lost output.

        If the record was sealed before, by the recorder or by a server, the end in the record stands.
        """
        trailer = self.capture.trailer()
        end = self._certain_end(trailer) if trailer else None
        if self.attempt.fenced and trailer is None:
            self.capture.resume(None)
            self.capture.drain(ContainerEnd(None, witnessed=False), self.wait)
        trailer = self.capture.seal(None, {})
        self.context.logs.set_aside(self.execution.id)
        self.log_line(f"{why}; {_end_line(end.state, end.outcome)}" if end else why)
        totals = (*(trailer.totals if trailer else ()), *self.context.logs.seal_system(self.execution.id))
        return AbandonedLog(totals, self.context.logs.room(self.execution.id), end)

    def _certain_end(self, trailer: Trailer) -> CertainEnd:
        final_state = self.final_state_by_record(trailer)
        start_time = self.execution.times.start_time or final_state.start_time
        return CertainEnd(
            final_state.state, final_state.outcome, start_time, final_state.exit_time, self.capture.first_byte_time
        )

    def final_state_by_record(self, trailer: Trailer) -> FinalState:
        """Return the final state by the sealed record alone."""
        stop = self.execution.stop
        stopping = Stopping.begin(stop, "", boottime()) if stop else None
        return final_state_of(trailer) or ended_by_itself(
            trailer, None, self.spec, stopping, timeout=self.timeout, engine_restarted=False
        )


def _end_line(state: State, outcome: Outcome) -> str:
    return f"{state.name.lower().replace('_', ' ')}: {outcome.detail or 'exited with 0'}"
