"""The runner for executions that an earlier server left on a host that is not configured any more.

The engine of such a host is never asked. Every execution is requeued or ends.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from fastlane_grpc.capture.capture import Capture
from fastlane_grpc.capture.handoff import CommandStatus
from fastlane_grpc.clock import boottime
from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.execution.closing import Closing, RunnerContext, Step
from fastlane_grpc.execution.final_state import lost, stopped_before_start
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Assignment, Execution, Reason, State
from fastlane_grpc.runner import AbandonedLog, HostDown, Mailbox
from fastlane_grpc.store import Store

# Returns the capture of an execution, given the directory of its record and a function that writes its system lines.
CaptureOf: TypeAlias = Callable[[Path, Execution, Callable[[str], None]], Capture]


class RemovedHostRunner:
    """Implements Runner for all removed hosts.

    An execution that never ran goes back to the queue. Every other one ends as LOST, unless its record holds its end. A
    recorder that still runs on this machine is killed, so that an execution that is final has no running command.
    """

    def __init__(
        self,
        store: Store,
        logs: Logs,
        capture_of: CaptureOf,
        *,
        default_timeout: timedelta,
        step: Callable[[Step, str], None] = lambda step, execution_id: None,
    ) -> None:
        self._store = store
        self._logs = logs
        self._capture_of = capture_of
        self._default_timeout = default_timeout
        self._step = step

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        closing = self._closing(assignment)
        try:
            _resolve(closing)
        except ServerStopping as error:
            raise HostDown("the server stops; the next one takes it up") from error
        finally:
            closing.capture.detach()

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        assignment = self._store.assignment(execution_id).result()
        if assignment.execution.state.final:
            return AbandonedLog()
        return self._closing(assignment).abandon(why)

    def _closing(self, assignment: Assignment) -> Closing:
        execution = assignment.execution
        context = RunnerContext(self._store, self._logs, execution.host, self._default_timeout, self._step)
        capture = self._capture_of(
            self._logs.path(execution.id), execution, lambda line: self._logs.system(execution.id, line)
        )
        return Closing(context, assignment, capture)


def _resolve(closing: Closing) -> None:
    host, fenced = closing.context.host_name, closing.attempt.fenced
    # No container is removed, as the engine is not asked.
    trailer = closing.capture.trailer() if fenced else None
    if not fenced or (trailer is None and _revoked(closing)):
        closing.log.warning("back to the queue: its host is not configured any more, and it has not begun")
        _requeue(closing)
    elif trailer is not None:
        closing.log.warning("its host is not configured any more; its record tells how it ended")
        closing.finish_as(closing.final_state_by_record(trailer))
    else:
        closing.log.error("lost: its host is not configured any more")
        closing.capture.resume(None)
        closing.finish_as(
            lost(
                Reason.HOST_GONE,
                f"host {host!r}, which it was started on, is not configured any more: nobody knows how it ended there",
            )
        )


def _revoked(closing: Closing) -> bool:
    """Whether it is certain that the command has not run and never will; then the execution is as before its start."""
    return (
        closing.capture.revoke() is CommandStatus.NEVER_RAN
        and closing.context.store.revoked(closing.execution.id).result() is not None
    )


def _requeue(closing: Closing) -> None:
    closing.capture.discard_secrets()
    execution = closing.requeue()
    if execution.state is State.STOPPING and execution.stop:
        closing.finish_as(stopped_before_start(Stopping.begin(execution.stop, "", boottime())))
