"""The runner for executions that an earlier server left on a host that is not configured any more.

The engine of such a host is never asked. Every execution is requeued or ends.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from fastlane_grpc.capture.choice import CaptureChoice
from fastlane_grpc.capture.handoff import CommandStatus
from fastlane_grpc.clock import boottime
from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.execution.final_state import FinalState, ended_by_itself, final_state_of, lost, stopped_before_start
from fastlane_grpc.execution.host import Host
from fastlane_grpc.execution.lifecycle import Lifecycle, RunnerContext, Step, abandon
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Assignment, CaptureMode, Reason, State
from fastlane_grpc.record import Trailer
from fastlane_grpc.runner import AbandonedLog, HostDown, Mailbox
from fastlane_grpc.store import Store


class RemovedHostRunner:
    """Implements Runner for all removed hosts.

    An execution that never ran goes back to the queue. Every other one ends as LOST, unless its record holds its end. A
    recorder that still runs on this machine is killed, so that an execution that is final has no running command.
    """

    def __init__(
        self,
        store: Store,
        logs: Logs,
        data_dir: Path,
        *,
        default_timeout: timedelta,
        default_pids: int,
        step: Callable[[Step, str], None] = lambda step, execution_id: None,
    ) -> None:
        self._store = store
        self._logs = logs
        self._data_dir = data_dir
        self._default_timeout = default_timeout
        self._default_pids = default_pids
        self._step = step

    def run(self, assignment: Assignment, mailbox: Mailbox) -> None:
        lifecycle = Lifecycle(self._context(assignment.execution.host), assignment, mailbox)
        try:
            _resolve(lifecycle)
        except ServerStopping as error:
            raise HostDown("the server stops; the next one takes it up") from error
        finally:
            lifecycle.capture.detach()

    def abandon(self, execution_id: str, why: str) -> AbandonedLog:
        return abandon(
            self._context(self._store.execution(execution_id).result().host), execution_id, why, remove=False
        )

    def _context(self, name: str) -> RunnerContext:
        # A host without a listening thread, as not even the address of its engine is known.
        instance = self._store.instance
        host = Host(
            name,
            "",
            instance=instance,
            captures=CaptureChoice(CaptureMode.ATTACH, self._data_dir, instance=instance, host=name),
        )
        return RunnerContext(
            self._store, self._logs, host, self._default_timeout, self._default_pids, 0.0, 0.0, self._step
        )


def _resolve(lifecycle: Lifecycle) -> None:
    host = lifecycle.context.host.name
    # No container is removed, as the engine is not asked.
    lifecycle.container_id = ""
    trailer = lifecycle.capture.trailer() if lifecycle.fenced else None
    if not lifecycle.fenced or (trailer is None and _revoked(lifecycle)):
        lifecycle.log.warning("back to the queue: its host is not configured any more, and it has not begun")
        _requeue(lifecycle)
    elif trailer is not None:
        lifecycle.log.warning("its host is not configured any more; its record tells how it ended")
        lifecycle.finish_as(_final_state(lifecycle, trailer))
    else:
        lifecycle.log.error("lost: its host is not configured any more")
        lifecycle.capture.resume(None)
        lifecycle.finish_as(
            lost(
                Reason.HOST_GONE,
                f"host {host!r}, which it was started on, is not configured any more: nobody knows how it ended there",
            )
        )


def _revoked(lifecycle: Lifecycle) -> bool:
    """Whether it is certain that the command has not run and never will; then the execution is as before its start."""
    return (
        lifecycle.capture.revoke() is CommandStatus.NEVER_RAN
        and lifecycle.context.store.revoked(lifecycle.execution.id).result() is not None
    )


def _requeue(lifecycle: Lifecycle) -> None:
    execution = lifecycle.requeue()
    if execution.state is State.STOPPING and execution.stop:
        lifecycle.finish_as(stopped_before_start(Stopping.begin(execution.stop, "", boottime())))


def _final_state(lifecycle: Lifecycle, trailer: Trailer) -> FinalState:
    stop = lifecycle.execution.stop
    stopping = Stopping.begin(stop, "", boottime()) if stop else None
    return final_state_of(trailer) or ended_by_itself(
        trailer, None, lifecycle.spec, stopping, timeout=lifecycle.timeout, engine_restarted=False
    )
