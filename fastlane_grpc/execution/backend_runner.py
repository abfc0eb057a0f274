"""The runner of one host: launches or recovers one execution, and brings it to its outcome.

The runner either commits an outcome or raises HostDown, after which the execution is requeued or recovered later.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from fastlane_grpc.backend import BackendDown, BackendRefuses
from fastlane_grpc.capture.capture import ContainerEnd
from fastlane_grpc.clock import boottime
from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.execution.closing import Step
from fastlane_grpc.execution.final_state import failed, lost, stopped_before_start
from fastlane_grpc.execution.host import Host
from fastlane_grpc.execution.launch import launch, note_failure
from fastlane_grpc.execution.lifecycle import HostContext, LeftToNextServer, Lifecycle
from fastlane_grpc.execution.recovery import recover, sweep
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.inputs import InputFiles
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Assignment, Reason, State
from fastlane_grpc.runner import AbandonedLog, HostDown, Mailbox
from fastlane_grpc.secrets import NamedSecrets
from fastlane_grpc.store import Store
from fastlane_grpc.trace_context import TRACEPARENT, TraceContext

# How long a request is repeated that an engine or a registry refuses for now.
RETRY_SECONDS = 60.0
# A start that was sent in the engine's present epoch is answered within this time, or was never sent.
START_ANSWER_SECONDS = 10.0
# Of a server whose operator names none.
NO_SECRETS = NamedSecrets(())


def callers_trace(assignment: Assignment) -> TraceContext | None:
    """Return the trace that a job was enqueued in; None: it has none. A trace does not last as long as a schedule."""
    return TraceContext.from_text(assignment.trace) if assignment.trace and not assignment.spec.cron else None


class BackendRunner:
    """Implements Runner on one host.

    `step` is called with each step of each execution, right after the step, on the execution's thread. `trace_of`
    returns the place in a trace that an execution's command gets; None: it gets none.
    """

    def __init__(
        self,
        store: Store,
        logs: Logs,
        host: Host,
        *,
        default_timeout: timedelta,
        inputs: InputFiles,
        max_output_bytes: int,
        secrets: NamedSecrets = NO_SECRETS,
        start_answer_seconds: float = START_ANSWER_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        step: Callable[[Step, str], None] = lambda step, execution_id: None,
        trace_of: Callable[[Assignment], TraceContext | None] = callers_trace,
    ) -> None:
        self._trace_of = trace_of
        self._context = HostContext(
            *(store, logs, host.name, default_timeout, step, host, inputs, secrets, max_output_bytes),
            start_answer_seconds,
            retry_seconds,
        )

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        lifecycle = Lifecycle(self._context, _traced(assignment, self._trace_of(assignment)), mailbox)
        with self._context.host.watching(assignment.execution.id, mailbox):
            try:
                self._run(lifecycle)
            except (LeftToNextServer, ServerStopping) as error:
                raise HostDown("the server stops; the next one takes it up") from error
            finally:
                if not lifecycle.attempt.fenced:
                    lifecycle.capture.discard_secrets()
                lifecycle.capture.detach()

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        # As it is on disk: the row names the capture, and shows whether the execution ended before.
        assignment = self._context.store.assignment(execution_id).result()
        if assignment.execution.state.final:
            return AbandonedLog()
        return Lifecycle(self._context, assignment, Mailbox()).abandon(why)

    def sweep(self) -> None:
        """Remove the containers of finished executions. To be called when the host is up; raises HostDown."""
        try:
            sweep(self._context.store, self._context.host)
        except (BackendDown, BackendRefuses) as error:
            raise HostDown(str(error)) from error

    def _run(self, lifecycle: Lifecycle) -> None:
        lifecycle.reached(Step.CLAIMED)
        try:
            try:
                if lifecycle.attempt.fenced:
                    recover(lifecycle)
                else:
                    _log_waiting_time(lifecycle)
                    launch(lifecycle)
            except BackendRefuses as refusal:
                self._engine_failed(lifecycle, refusal)
        except BackendDown as error:
            self._host_down(lifecycle, error)

    def _engine_failed(self, lifecycle: Lifecycle, refusal: BackendRefuses) -> None:
        """Finish an execution whose engine refuses what no engine should: endless tries would leave it unfinished."""
        detail = f"the engine fails: {refusal}"
        lifecycle.log.error("the engine failed", error=str(refusal))
        lifecycle.gives_up_outputs = True
        if lifecycle.attempt.fenced:
            lifecycle.finish_as(lost(Reason.CONTAINER_GONE, detail), ContainerEnd(None, witnessed=False))
        else:
            note_failure(lifecycle, refusal)
            lifecycle.finish_as(failed(Reason.REFUSED_BY_ENGINE, detail))

    def _host_down(self, lifecycle: Lifecycle, error: BackendDown) -> None:
        host = self._context.host
        # A requeued execution must not be claimed for this host again. If the host is known to be down, thousands of
        # executions would ask its engine at the same time.
        if host.up:
            host.check_now()
        lifecycle.log.warning("the engine does not answer", error=str(error), fenced=lifecycle.attempt.fenced)
        if not lifecycle.attempt.fenced:
            if not lifecycle.execution.stop:
                # Before the hand-back, which measures the log.
                lifecycle.log_line(f"host {host.name} does not answer: back in the queue")
            execution = lifecycle.requeue()
            if execution.state is State.STOPPING and execution.stop and not execution.starting:
                lifecycle.finish_as(stopped_before_start(Stopping.begin(execution.stop, "", boottime())))
                return
        raise HostDown(f"host {host.name!r}: {error}") from error


def _traced(assignment: Assignment, trace: TraceContext | None) -> Assignment:
    """Return the assignment with the variables that tell the command its trace, unless the job sets them itself."""
    spec = assignment.spec
    if trace is None or TRACEPARENT.upper() in {**spec.envs, **spec.secret_envs}:
        return assignment
    return replace(assignment, spec=replace(spec, envs={**trace.envs, **spec.envs}))


def _log_waiting_time(lifecycle: Lifecycle) -> None:
    """Write into the log how long the execution waited for a slot, if that was longer than a moment."""
    times = lifecycle.execution.times
    waited = times.claim_time - times.due_time if times.claim_time else timedelta()
    if waited >= timedelta(seconds=1):
        lifecycle.log_line(f"got a slot after {waited.total_seconds():.1f} s")
