"""The launch of an execution: the image, the container, the capture, the fence, and the one start of the container.

The fence is the commit that says that a start is about to be sent. Each container gets at most one start.
"""

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastlane_grpc.backoff import Retries
from fastlane_grpc.capture.capture import ContainerEnd
from fastlane_grpc.capture.handoff import CommandStatus
from fastlane_grpc.capture.recorder import RecorderCapture
from fastlane_grpc.clock import boottime
from fastlane_grpc.docker.container_body import container_body
from fastlane_grpc.docker.engine import EXECUTION_LABEL, INSTANCE_LABEL, Container, Image
from fastlane_grpc.docker.engine_errors import Refusal, about_host, container_gone, explained, passes, plain, refusal_of
from fastlane_grpc.docker.http import EngineDown, EngineRefuses
from fastlane_grpc.docker.images import CannotRun, Pull, PullFailed
from fastlane_grpc.execution.events import PullEnded
from fastlane_grpc.execution.final_state import expired, failed, lost, not_started, stopped_before_start
from fastlane_grpc.execution.lifecycle import LeftToNextServer, Lifecycle, Step, StopRequested
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.machine.data_directory import free_inodes
from fastlane_grpc.model import PullPolicy, Reason, State, utc_now

# Pause between two checks, during a pull, that the host is up.
HOST_LOOK_SECONDS = 1.0
# The longest pause that a registry may ask for. An execution that waits for a registry takes a slot.
LONGEST_RATE_LIMIT_SECONDS = 300.0


class RanUnexpectedly(Exception):
    """A container of this execution ran, or may have, without a permitted start or against the engine's answer."""


class Expired(Exception):
    """The expire_time of the execution came before its start."""


def launch(lifecycle: Lifecycle) -> None:
    """Bring a claimed execution to its end.

    Raises EngineDown and LeftToNextServer; `lifecycle.fenced` then says whether a start may have been sent.
    """
    backoff = None
    try:
        _prepare(lifecycle)
        while (refusal := _start(lifecycle)) is not None:
            backoff = backoff or Retries(lifecycle.context.retry_seconds)
            if not _retry_start(lifecycle, refusal, backoff):
                return
            _prepare(lifecycle)
    except CannotRun as error:
        note_failure(lifecycle, error.__cause__)
        lifecycle.finish_as(failed(error.reason, error.detail))
    except StopRequested as request:
        lifecycle.finish_as(stopped_before_start(Stopping.begin(request.stop, "", boottime())))
    except Expired:
        lifecycle.finish_as(expired(lifecycle.execution))
    except RanUnexpectedly as unsettled:
        lifecycle.log.error(
            "nobody knows whether a container ran", container_id=lifecycle.container_id, why=str(unsettled)
        )
        lifecycle.finish_as(
            lost(Reason.START_UNKNOWN, str(unsettled)),
            ContainerEnd(None, witnessed=False) if lifecycle.fenced else None,
        )
    else:
        _run_to_end(lifecycle)


def note_failure(lifecycle: Lifecycle, refusal: BaseException | None) -> None:
    """Tell the dispatcher of a start that failed for a reason of the host's. To be called before the end is stored."""
    if isinstance(refusal, EngineRefuses) and about_host(refusal.status, refusal.message):
        lifecycle.mailbox.start_failure = plain(refusal.message)


def _prepare(lifecycle: Lifecycle) -> None:
    """Prepare everything up to the fence. Until then the execution can go back to the queue."""
    if lifecycle.execution.state is State.STOPPING and lifecycle.execution.stop:
        _take_existing_container(lifecycle)
        raise StopRequested(lifecycle.execution.stop)
    image = _image(lifecycle)
    pull_time = utc_now()
    lifecycle.reached(Step.PULLED)
    lifecycle.choose_capture()
    backoff = Retries(lifecycle.context.retry_seconds)
    while True:
        lifecycle.container_id = _create(lifecycle, image)
        container_time = utc_now()
        lifecycle.reached(Step.CREATED)
        try:
            _open_capture(lifecycle)
        except EngineRefuses as refusal:
            gone = container_gone(refusal.message, lifecycle.container_id)
            _wait_to_ask_again(lifecycle, refusal, backoff, "hand over the container's output", cleared=gone)
        else:
            break
    lifecycle.reached(Step.ATTACHED)
    lifecycle.engine_epoch = lifecycle.engine.epoch()
    store = lifecycle.context.store
    fenced = store.starting(
        lifecycle.execution.id,
        container_id=lifecycle.container_id,
        capture=lifecycle.capture.name,
        engine_life=lifecycle.engine_epoch,
        image_digest=image.digest,
        pull_time=pull_time,
        container_time=container_time,
    ).result()
    if fenced is None:
        execution = store.execution(lifecycle.execution.id).result()
        if execution.stop:
            raise StopRequested(execution.stop)
        if execution.state is State.PREPARING and not execution.starting and execution.expire_time:
            raise Expired
        # Another server has recovered the execution.
        raise LeftToNextServer
    lifecycle.fenced = True
    lifecycle.reached(Step.FENCED)


# -- image


def _image(lifecycle: Lifecycle) -> Image:
    """Return the image, pulled to the host if the job's pull policy says so."""
    name, policy = lifecycle.spec.image, lifecycle.spec.pull_policy
    image = None if policy is PullPolicy.ALWAYS else _present(lifecycle)
    if image is None:
        if policy is PullPolicy.NEVER:
            host = lifecycle.context.host.name
            raise CannotRun(
                Reason.IMAGE_NOT_PRESENT,
                f"{name} is not on host {host!r}, and the job's pull policy is NEVER: pull it there first",
            )
        backoff = Retries(lifecycle.context.retry_seconds)
        _pull(lifecycle)
        while (image := _present(lifecycle)) is None:
            # Somebody removes images. An image that no container uses yet is pruned first.
            pause = backoff.pause()
            if pause is None:
                raise CannotRun(
                    Reason.IMAGE_NOT_FOUND,
                    f"{name} was pulled several times, and is not there: somebody removes images",
                )
            lifecycle.pause(pause)
            _pull(lifecycle)
        lifecycle.log_line(f"pulled {name}: {image.digest}")
    return image


def _present(lifecycle: Lifecycle) -> Image | None:
    try:
        return lifecycle.engine.image(lifecycle.spec.image)
    except EngineRefuses as refusal:
        if refusal.status != 400:
            raise
        raise CannotRun(
            Reason.IMAGE_NOT_FOUND, f"the engine does not take {lifecycle.spec.image!r} for an image: {refusal.message}"
        ) from refusal


def _pull(lifecycle: Lifecycle) -> None:
    lifecycle.log_line(f"pulling {lifecycle.spec.image}")
    backoff = Retries(lifecycle.context.retry_seconds)
    while failure := _pull_once(lifecycle):
        if not isinstance(failure, PullFailed):
            raise failure
        tries = " in several tries" if backoff.paused else ""
        pause = backoff.pause() if failure.retry_seconds <= LONGEST_RATE_LIMIT_SECONDS else None
        if pause is None:
            raise CannotRun(
                failure.reason, f"{lifecycle.spec.image} could not be pulled{tries}; the engine says: {failure}"
            )
        pause = max(pause, failure.retry_seconds)
        lifecycle.log.info("pull failed", image=lifecycle.spec.image, error=str(failure), again_seconds=pause)
        lifecycle.log_line(f"the pull failed, and is tried again{_soon(pause)}: {failure}")
        lifecycle.pause(pause)


def _soon(seconds: float) -> str:
    return f" in {seconds:.0f} s" if seconds >= 1 else ""


def _pull_once(lifecycle: Lifecycle) -> Exception | None:
    """Pull the image, and return the failure; None if there was none."""
    mailbox = lifecycle.mailbox
    pull = Pull(
        lifecycle.engine,
        lifecycle.spec.image,
        on_line=lifecycle.log_line,
        on_end=lambda failure: mailbox.put(PullEnded(failure)),
    )
    try:
        while True:
            received = lifecycle.receive_before_start(HOST_LOOK_SECONDS)
            if isinstance(received, PullEnded):
                return received.failure
            # An engine that hangs reports no progress, and neither does one that waits for a slow registry.
            if not lifecycle.context.host.up:
                raise EngineDown("the engine does not answer any more, in the middle of a pull")
    finally:
        pull.cancel()


# -- container


def _create(lifecycle: Lifecycle, image: Image) -> str:
    try:
        body = container_body(
            lifecycle.assignment, instance=lifecycle.context.host.instance, default_pids=lifecycle.context.default_pids
        )
    except ValueError as error:
        raise CannotRun(Reason.REFUSED_BY_ENGINE, f"the command is none: {error}") from error
    backoff = Retries(lifecycle.context.retry_seconds)
    while True:
        # Anew for each try, as the mounted directory of a removed container is of no use to the next one.
        wrapped = _wrapped(lifecycle, body, image)
        try:
            return lifecycle.engine.create(lifecycle.execution.container_name, wrapped)
        except EngineRefuses as refusal:
            _wait_to_ask_again(lifecycle, refusal, backoff, "make this container", cleared=_cleared(lifecycle, refusal))


def _wrapped(lifecycle: Lifecycle, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
    while True:
        try:
            wrapped = lifecycle.capture.wrap(body, image)
        except FileExistsError as error:
            _take_existing_container(lifecycle)
            raise RanUnexpectedly("this execution has output already, though this server did not start it") from error
        except OSError as error:
            _wait_for_room(lifecycle, error)
        else:
            lifecycle.report_room()
            return wrapped


def _cleared(lifecycle: Lifecycle, refusal: EngineRefuses) -> bool:
    """Whether the obstacle to a new container is gone, or may be gone by the next try."""
    if refusal.status == 409:
        try:
            _clear_name(lifecycle)
        except EngineRefuses as error:
            lifecycle.log.warning("container not removed", name=lifecycle.execution.container_name, error=error.message)
        return True
    if refusal.status == 404 and "no such image" in refusal.message.lower():
        # The image was removed since it was looked up.
        _image(lifecycle)
        return True
    return False


def _wait_to_ask_again(
    lifecycle: Lifecycle, refusal: EngineRefuses, backoff: Retries, what: str, *, cleared: bool
) -> None:
    """Wait before the next try. Raises CannotRun if another try cannot help, or if there were enough tries."""
    again = backoff.paused
    pause = backoff.pause() if cleared or passes(refusal.message) else None
    if pause is None:
        tries = " in several tries" if again else ""
        raise CannotRun(
            Reason.REFUSED_BY_ENGINE, f"the engine does not {what}{tries}: {explained(refusal.message)}"
        ) from refusal
    if refusal.status != 409:
        lifecycle.log_line(f"the engine does not {what} for now, and is asked again: {plain(refusal.message)}")
    lifecycle.pause(pause)


def _clear_name(lifecycle: Lifecycle) -> None:
    """Remove the container of an earlier try. That container was not started: the execution is not fenced."""
    container = _existing_container(lifecycle)
    if container is None:
        return
    if (
        container.alive or container.start_time is not None
    ) and lifecycle.capture.revoke() is not CommandStatus.NEVER_RAN:
        lifecycle.container_id = container.id
        raise RanUnexpectedly("a container of this execution has run already, though this server did not start it")
    # Without force the engine does not remove a container that runs after all; the next try meets that container again.
    lifecycle.engine.remove(container.id, force=container.status != "created")


def _take_existing_container(lifecycle: Lifecycle) -> None:
    """Make an existing container this execution's, so that it is removed when the execution ends."""
    container = _existing_container(lifecycle)
    lifecycle.container_id = container.id if container else ""


def _existing_container(lifecycle: Lifecycle) -> Container | None:
    """Return the container that has the execution's name already. Raises CannotRun if another program made it."""
    name = lifecycle.execution.container_name
    container = lifecycle.engine.inspect(name)
    if container is None:
        return None
    its = (container.labels.get(INSTANCE_LABEL), container.labels.get(EXECUTION_LABEL))
    if its != (lifecycle.context.host.instance, lifecycle.execution.id):
        detail = f"the engine has a container called {name} that this server did not make: remove or rename it"
        raise CannotRun(Reason.REFUSED_BY_ENGINE, detail)
    return container


# -- capture and start


def _open_capture(lifecycle: Lifecycle) -> None:
    while True:
        lifecycle.watch()
        try:
            lifecycle.capture.open(lifecycle.container_id)
        except OSError as error:
            _wait_for_room(lifecycle, error)
        else:
            lifecycle.report_room()
            return


def _wait_for_room(lifecycle: Lifecycle, error: OSError) -> None:
    """Wait for room for the record. Without a record no container is started."""
    lifecycle.report_no_room(
        f"the record of its output cannot be made: {_shortage(error, lifecycle.context.logs.directory)}"
    )
    lifecycle.pause(1.0)


def _shortage(error: OSError, logs: Path) -> str:
    """Return what the disk lacks. The system reports a lack of inodes and a lack of room by the same error."""
    if error.errno == errno.ENOSPC:
        with suppress(OSError):
            what = "inodes" if free_inodes(logs) == 0 else "room"
            return f"the disk of {logs} has no {what} left"
    return error.strerror or str(error)


def _start(lifecycle: Lifecycle) -> EngineRefuses | None:
    """Send the one start of this container.

    Return the refusal if the engine refused the start, and the command has not run and never will.
    """
    try:
        # No other code sends a start. If the answer is lost, recovery finds out what became of the start, and does not
        # send it again.
        lifecycle.engine.start(lifecycle.container_id)
    except EngineRefuses as refusal:
        command_status = lifecycle.capture.revoke()
        if command_status is CommandStatus.NEVER_RAN:
            return refusal
        if command_status is CommandStatus.UNKNOWN:
            # Somebody deleted the record. A missing record proves nothing: a new container might run the command twice.
            raise RanUnexpectedly(
                f"its record was deleted while the engine refused its start: {plain(refusal.message)}"
            ) from refusal
        container = lifecycle.engine.inspect(lifecycle.container_id)
        # Somebody else may have started a container that is gone now. A container with output has run.
        printed = command_status is None and lifecycle.capture.first_byte_time is not None
        if command_status is None and not printed and (container is None or container.start_time is None):
            if refusal_of(refusal.message) is Refusal.CUT_OFF:
                detail = (
                    f"the engine lost touch with its runtime while it started the container: {plain(refusal.message)}"
                )
                raise RanUnexpectedly(detail) from refusal
            return refusal
        # The container runs, or ran, whatever the engine says. The engine may then not report its end.
        lifecycle.engine_lost_container = container is None or not container.alive
    return None


def _retry_start(lifecycle: Lifecycle, refusal: EngineRefuses, backoff: Retries) -> bool:
    """Take the execution back before the fence, and wait. False: it has ended, as every start would be refused."""
    message = refusal.message
    again = backoff.paused
    pause = backoff.pause() if passes(message) or container_gone(message, lifecycle.container_id) else None
    if pause is None:
        # The mailbox was not read since the fence.
        if stop := lifecycle.context.store.execution(lifecycle.execution.id).result().stop:
            lifecycle.request_stop(stop)
        note_failure(lifecycle, refusal)
        lifecycle.finish_as(
            not_started(
                message, lifecycle.stopping, by_recorder=lifecycle.capture.name == RecorderCapture.name, again=again
            )
        )
        return False
    if not unfence(lifecycle):
        raise RanUnexpectedly("the start was refused, and is noted as answered")
    lifecycle.log.warning("a start was refused; a new container is made", refusal=message, again_seconds=pause)
    lifecycle.log_line(f"the engine did not start the container, and a new one is made: {plain(message)}")
    lifecycle.pause(pause)
    return True


def unfence(lifecycle: Lifecycle) -> bool:
    """Take back before the fence an execution whose command has not run and never will.

    The container is removed, as a start of it may still be on its way. False: the start was noted as answered already.
    """
    lifecycle.remove()
    execution = lifecycle.context.store.revoked(lifecycle.execution.id).result()
    if execution is None:
        return False
    lifecycle.capture.detach()
    lifecycle.execution, lifecycle.fenced, lifecycle.container_id = execution, False, ""
    return True


def _run_to_end(lifecycle: Lifecycle) -> None:
    """Follow a container that was just started to its end."""
    lifecycle.set_deadline(lifecycle.timeout.total_seconds())
    lifecycle.reached(Step.STARTED)
    container = _look(lifecycle)
    lifecycle.stop_signal = (container and container.stop_signal) or lifecycle.stop_signal
    lifecycle.run_to_end((container and container.start_time) or utc_now())


def _look(lifecycle: Lifecycle) -> Container | None:
    try:
        return lifecycle.engine.inspect(lifecycle.container_id)
    except (EngineDown, EngineRefuses) as error:
        # EngineGone follows if the engine is gone. The execution must survive an engine that hangs or fails.
        lifecycle.log.warning("container not inspected after its start", error=str(error))
        return None
