"""The recovery of executions that an earlier server left, or this server when the engine went away.

A start is never sent again. The container, the record and its lock decide how the execution goes on; nothing is
guessed. The module also sweeps containers that are left over.
"""

from datetime import datetime

import structlog

from fastlane_grpc.backend import BackendRefuses, Container, RefusalKind
from fastlane_grpc.capture.handoff import CommandStatus
from fastlane_grpc.clock import boottime, left
from fastlane_grpc.errors import ExecutionNotFound
from fastlane_grpc.execution.final_state import final_state_of, lost, not_started
from fastlane_grpc.execution.host import Host
from fastlane_grpc.execution.launch import launch, launch_again
from fastlane_grpc.execution.lifecycle import Lifecycle, Run
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.model import Reason, State, utc_now
from fastlane_grpc.runner import StopCommand
from fastlane_grpc.store import Store

log = structlog.get_logger(__name__)


def recover(lifecycle: Lifecycle) -> None:
    """Go on with an execution whose start may have been sent. Raises BackendDown and LeftToNextServer."""
    trailer = lifecycle.capture.trailer()
    final_state = final_state_of(trailer) if trailer else None
    if final_state is not None:
        lifecycle.finish_as(final_state)
        return
    container = lifecycle.backend.inspect(lifecycle.container)
    if not lifecycle.backend.starts_at_once and container is not None and _waits_for_start(lifecycle, container):
        launch_again(lifecycle)
        return
    # What the capture knows for certain decides. The capture is not asked about a running container, whose recorder may
    # be about to take the record.
    command_status = None if container is not None and container.alive else lifecycle.capture.revoke()
    if command_status is CommandStatus.NEVER_RAN:
        # A container that began, but for its command, would not do better another time.
        if lifecycle.capture.unbegun or (
            lifecycle.capture.unbegun == "" and lifecycle.execution.state is not State.PREPARING
        ):
            lifecycle.finish_after_run(_stopping(lifecycle, lifecycle.spec.stop_signal))
        else:
            _relaunch(lifecycle)
        return
    if command_status is CommandStatus.UNKNOWN:
        # Somebody deleted the record. A missing record proves nothing: only the engine is left to ask.
        lifecycle.log.warning("the record of an execution was deleted", container_id=lifecycle.container.container_id)
        command_status = None
    if command_status is None and container is not None and _start_is_pending(container):
        container = _wait_for_start(lifecycle, container)
    stop_signal = (container and container.stop_signal) or lifecycle.spec.stop_signal
    stopping = _stopping(lifecycle, stop_signal)
    if container is not None and container.alive:
        _resume(lifecycle, container.start_time, stop_signal, stopping)
    elif command_status is CommandStatus.RUNS:
        lifecycle.log.warning(
            "a container runs that the engine does not know, or takes for over",
            container_id=lifecycle.container.container_id,
        )
        _resume(lifecycle, None, stop_signal, stopping, backend_lost_container=True)
    elif command_status is CommandStatus.ENDED:
        lifecycle.finish_after_run(stopping)
    elif container is None:
        _finish_as_lost(
            lifecycle,
            Reason.CONTAINER_GONE,
            "the engine has no such container any more: nobody knows whether and how it ran",
        )
    elif container.start_time is not None:
        lifecycle.capture.resume(None)
        lifecycle.finish_after_run(stopping)
    elif container.start_failure and container.start_failure.refusal is RefusalKind.PASSING:
        # The backend notes a failure only for a start that it gave up.
        _relaunch(lifecycle)
    elif container.start_failure and container.start_failure.refusal is RefusalKind.FINAL:
        lifecycle.finish_as(not_started(container.start_failure, stopping, by_recorder=False))
    else:
        _finish_as_lost(lifecycle, Reason.START_UNKNOWN, _start_unknown(lifecycle))


def _stopping(lifecycle: Lifecycle, stop_signal: str) -> Stopping | None:
    stop = lifecycle.execution.stop
    return lifecycle.begin_stop(stop, stop_signal) if stop else None


def sweep(store: Store, host: Host) -> None:
    """Remove the containers of this instance whose execution is final, unknown, or on another host by now.

    Containers of the last kind come from an engine that hung and later carried out its requests; they were never
    started. Raises BackendDown.
    """
    for left_container in host.backend.containers():
        container_id, execution_id = left_container.handle.container_id, left_container.execution_id
        if _is_over(store, execution_id) or (left_container.own and _is_elsewhere(store, execution_id, host)):
            log.info(
                "removing a container that was left",
                container_id=container_id,
                execution_id=execution_id,
                host=host.name,
            )
            try:
                host.backend.remove(left_container.handle, force=True)
            except BackendRefuses as refusal:
                log.warning("container not removed", container_id=container_id, error=str(refusal))


def _waits_for_start(lifecycle: Lifecycle, container: Container) -> bool:
    """Whether the container has not begun, or its recorder waits for the grant."""
    return not container.ended and not (container.alive and lifecycle.capture.start_granted)


def _start_is_pending(container: Container) -> bool:
    """Whether the engine may still be starting the container. The engine reports only success or failure."""
    return not container.alive and container.start_time is None and not container.start_failure


def _wait_for_start(lifecycle: Lifecycle, container: Container) -> Container | None:
    """Return the container once the engine has answered its start, or as it is if no answer can be expected.

    The answer itself went to the server that sent the start.
    """
    until, stops = boottime() + lifecycle.context.start_answer_seconds, []
    while _start_is_pending(container) and _not_restarted(lifecycle) and boottime() < until:
        received = lifecycle.receive(until - boottime())
        if isinstance(received, StopCommand):
            stops.append(received)
            continue
        found = lifecycle.backend.inspect(lifecycle.container)
        if found is None:
            return None
        container = found
    for stop in stops:
        lifecycle.defer(stop)
    return container


def _not_restarted(lifecycle: Lifecycle) -> bool:
    """Whether it is certain that the backend which got the start is still there to answer the start."""
    return lifecycle.backend.restarted(lifecycle.container) is False


def _relaunch(lifecycle: Lifecycle) -> None:
    """Launch anew an execution whose command has not run and never will in the present container."""
    if not lifecycle.unfence():
        # The start was answered and noted, and then the machine went down before the recorder ran.
        _finish_as_lost(lifecycle, Reason.START_UNKNOWN, "the machine went down while the container was being started")
        return
    lifecycle.log.info("a container that had not begun is made anew")
    lifecycle.log_line("the container had not begun when the server or the engine went away; a new one is made")
    launch(lifecycle)


def _resume(
    lifecycle: Lifecycle,
    started: datetime | None,
    stop_signal: str,
    stopping: Stopping | None,
    *,
    backend_lost_container: bool = False,
) -> None:
    lifecycle.log.info("execution taken up again", container_id=lifecycle.container.container_id)
    lifecycle.log_line("taken up again after a break")
    lifecycle.resume_capture()
    start_time = lifecycle.execution.times.start_time or started or utc_now()
    deadline = boottime() + left(lifecycle.timeout, since=start_time, now=utc_now())
    lifecycle.run_to_end(Run(start_time, deadline, stop_signal, stopping, backend_lost_container))


def _start_unknown(lifecycle: Lifecycle) -> str:
    lifecycle.log.warning("a process may be orphaned", container_id=lifecycle.container.container_id)
    return (
        "the server or the engine was killed while it started the container, "
        "and the engine does not know what became of that; "
        f"a process of execution {lifecycle.execution.id} may be running on host {lifecycle.context.host_name!r} "
        "without a container"
    )


def _finish_as_lost(lifecycle: Lifecycle, reason: Reason, detail: str) -> None:
    lifecycle.capture.resume(None)
    lifecycle.finish_as(lost(reason, detail))


def _is_elsewhere(store: Store, execution_id: str, host: Host) -> bool:
    try:
        return store.execution(execution_id).result().host not in {"", host.name}
    except ExecutionNotFound:
        return True


def _is_over(store: Store, execution_id: str) -> bool:
    try:
        return store.execution(execution_id).result().state.final
    except ExecutionNotFound:
        return True
