"""The wait between the start of a container and its beginning, on a backend that first has to find a node for it.

A container that runs may still wait for the grant of its start, which its relay gets from the server. While it waits, a
stop or the expire_time of the execution revokes the start: through the backend if the container has no node yet, else
through its capture, until that has granted the start.
"""

from dataclasses import replace

from fastlane_grpc.backend import BackendRefuses, Container, Diagnosis, RefusalKind, StartWait
from fastlane_grpc.capture.handoff import CommandStatus
from fastlane_grpc.clock import boottime
from fastlane_grpc.execution.events import Died
from fastlane_grpc.execution.lifecycle import Lifecycle, StopRequested
from fastlane_grpc.model import Stop, Waiting, WaitReason, utc_now
from fastlane_grpc.runner import StopCommand

# Pause between two looks without an event. Events tell of every change; one may be missed.
LOOK_SECONDS = 30.0
# Pause between two looks at a container that runs and waits for its grant. No event tells of a grant.
GRANT_LOOK_SECONDS = 0.5


class Expired(Exception):
    """The expire_time of the execution came before its start."""


def wait_until_begun(lifecycle: Lifecycle) -> Container:
    """Wait until a container runs or has ended, and return its state.

    A stop that cannot be revoked any more ends the wait, too: it is the next command of the lifecycle. Raises
    BackendRefuses if the start was given up, StopRequested or Expired if it was revoked, BackendDown, LeftToNextServer.
    """
    try:
        return _wait(lifecycle)
    finally:
        lifecycle.report_waiting(None)


def revoke_for(lifecycle: Lifecycle, stop: Stop) -> None:
    """Revoke the start of a container. If that is not possible, the stop is the next command of the lifecycle.

    Raises StopRequested if it was revoked.
    """
    if _revoked(lifecycle):
        raise StopRequested(stop)
    lifecycle.defer(StopCommand(stop))


def _revoked(lifecycle: Lifecycle) -> bool:
    """Revoke the start, if that is possible. True: the command has not run and never will."""
    # A node may pull the image for a long time, or not reach the server, and the recorder has not begun.
    return lifecycle.backend.revoke(lifecycle.container) or lifecycle.capture.revoke() is CommandStatus.NEVER_RAN


def _wait(lifecycle: Lifecycle) -> Container:
    give_up = expiry = float("inf")
    if lifecycle.execution.expire_time:
        expiry = boottime() + (lifecycle.execution.expire_time - utc_now()).total_seconds()
    wait, is_long, quiet_since, late = None, False, boottime(), False
    while True:
        container = _look(lifecycle)
        if container.ended:
            return _begun(lifecycle, container)
        if container.alive and lifecycle.capture.start_granted:
            return replace(container, start_time=utc_now()) if late else container
        late = container.alive
        if container.start_failure:
            give_up = min(give_up, boottime() + lifecycle.context.retry_seconds)
            _check(container.start_failure, is_late=boottime() >= give_up)
        wait = _report(lifecycle, _told(container.start_wait, is_long=is_long), wait)
        if boottime() >= expiry:
            if _revoked(lifecycle):
                raise Expired
            # It begins: as on any other host, it was started in time.
            expiry = float("inf")
        look_seconds = GRANT_LOOK_SECONDS if container.alive else LOOK_SECONDS
        received = lifecycle.receive(min(look_seconds, give_up - boottime(), expiry - boottime()))
        quiet_since = boottime() if received else quiet_since
        is_long = is_long or boottime() >= quiet_since + LOOK_SECONDS
        if isinstance(received, StopCommand):
            revoke_for(lifecycle, received.stop)
            return _look(lifecycle)
        if isinstance(received, Died) and received.container_id in {"", lifecycle.container.container_id}:
            # First: if the container is gone, the event alone tells of its end.
            lifecycle.defer(received)
            container = _look(lifecycle)
            return _begun(lifecycle, container) if container.ended else container


def _look(lifecycle: Lifecycle) -> Container:
    container = lifecycle.backend.inspect(lifecycle.container)
    if container is None:
        text = "somebody removed the container while it waited for its start"
        raise BackendRefuses(Diagnosis(text, text, text, RefusalKind.CUT_OFF))
    return container


def _begun(lifecycle: Lifecycle, container: Container) -> Container:
    """Return a container that has ended, if its command may have run. Raises BackendRefuses otherwise."""
    if container.start_time is None or not lifecycle.capture.start_granted:
        raise _interrupted(container)
    return container


def _interrupted(container: Container) -> BackendRefuses:
    """Return the refusal of a container that the backend ended before it began, as far as the backend knows."""
    why = container.interruption.text if container.interruption else "the cluster does not say why"
    text = f"the cluster ended it before it began: {why}"
    return BackendRefuses(Diagnosis(text, text, text, RefusalKind.CUT_OFF), about_host=True)


def _check(failure: Diagnosis, *, is_late: bool) -> None:
    """Raise BackendRefuses if the container is not started for good, or was not started for too long."""
    if failure.refusal is RefusalKind.CUT_OFF:
        raise BackendRefuses(failure)
    if failure.refusal is RefusalKind.FINAL or is_late:
        raise BackendRefuses(replace(failure, refusal=RefusalKind.FINAL))


def _told(wait: StartWait | None, *, is_long: bool) -> StartWait | None:
    """Return the wait with what is told of it by now."""
    return replace(wait, text=wait.if_long) if wait and is_long and not wait.text else wait


def _report(lifecycle: Lifecycle, wait: StartWait | None, before: StartWait | None) -> StartWait | None:
    """Report what the container waits for, if that has changed. Return it."""
    if wait is None or wait == before:
        return before
    if wait.node and wait.text:
        lifecycle.log_line(f"node {wait.node} does not start it for now, and tries again: {wait.text}")
    needs_node = wait.text and not wait.node
    detail = f"the cluster has no node for it: {wait.text}"
    lifecycle.report_waiting(Waiting(WaitReason.UNSCHEDULABLE, detail, utc_now()) if needs_node else None)
    return wait
