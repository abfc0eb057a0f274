"""The launch of an execution: the image, the container, the capture, the fence, and the one start of the container.

The fence is the commit that says that a start is about to be sent. Each container gets at most one start.
"""

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastlane_grpc.backend import (
    BackendDown,
    BackendRefuses,
    CannotRun,
    Container,
    ContainerGone,
    Handle,
    Image,
    ImageGone,
    NameTaken,
    NoCapacity,
    PullFailed,
    RefusalKind,
)
from fastlane_grpc.backoff import Retries
from fastlane_grpc.capture.capture import ContainerEnd
from fastlane_grpc.capture.handoff import CommandStatus
from fastlane_grpc.capture.recorder import RecorderCapture
from fastlane_grpc.clock import boottime
from fastlane_grpc.errors import SecretNotFound
from fastlane_grpc.execution.closing import Step
from fastlane_grpc.execution.events import PullEnded
from fastlane_grpc.execution.final_state import expired, failed, lost, not_started, stopped_before_start
from fastlane_grpc.execution.lifecycle import LeftToNextServer, Lifecycle, Run, StopRequested
from fastlane_grpc.execution.start_wait import Expired, revoke_for, wait_until_begun
from fastlane_grpc.execution.stopping import Stopping
from fastlane_grpc.inputs import ArchiveInvalid
from fastlane_grpc.machine.data_directory import free_inodes
from fastlane_grpc.model import PullPolicy, Reason, State, Waiting, WaitReason, utc_now
from fastlane_grpc.secrets import SecretUnusable, Unreadable

# Pause between two checks, during a pull, that the host is up.
HOST_LOOK_SECONDS = 1.0
# The longest pause that a registry may ask for. An execution that waits for a registry takes a slot.
LONGEST_RATE_LIMIT_SECONDS = 300.0
# Pause between two requests for a container that the backend has no place for.
CAPACITY_SECONDS = 5.0


class RanUnexpectedly(Exception):
    """A container of this execution ran, or may have, without a permitted start or against the engine's answer."""


def launch(lifecycle: Lifecycle) -> None:
    """Bring a claimed execution to its end.

    Raises BackendDown and LeftToNextServer; `lifecycle.attempt` then says whether a start may have been sent.
    """
    _bring_to_end(lifecycle, _prepare)


def launch_again(lifecycle: Lifecycle) -> None:
    """Bring an execution to its end whose container waits for its start, or has not got it.

    The start is sent again, on a backend where that changes nothing.
    """
    lifecycle.log_line("taken up again after a break")
    _bring_to_end(lifecycle, _resume)


def _bring_to_end(lifecycle: Lifecycle, prepare: Callable[[Lifecycle], None]) -> None:
    backoff = None
    try:
        prepare(lifecycle)
        while isinstance(started := _start(lifecycle), BackendRefuses):
            backoff = backoff or Retries(lifecycle.context.retry_seconds)
            if not _retry_start(lifecycle, started, backoff):
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
            "nobody knows whether a container ran", container_id=_container_id(lifecycle), why=str(unsettled)
        )
        lifecycle.finish_as(
            lost(Reason.START_UNKNOWN, str(unsettled)),
            ContainerEnd(None, witnessed=False) if lifecycle.attempt.fenced else None,
        )
    else:
        _run_to_end(lifecycle, started)


def _container_id(lifecycle: Lifecycle) -> str:
    handle = lifecycle.attempt.handle
    return handle.container_id if handle else ""


def note_failure(lifecycle: Lifecycle, refusal: BaseException | None) -> None:
    """Tell the dispatcher of a start that failed for a reason of the host's. To be called before the end is stored."""
    if isinstance(refusal, BackendRefuses) and refusal.about_host:
        lifecycle.mailbox.start_failure = refusal.diagnosis.text


def _prepare(lifecycle: Lifecycle) -> None:
    """Prepare everything up to the fence. Until then the execution can go back to the queue."""
    if lifecycle.execution.state is State.STOPPING and lifecycle.execution.stop:
        _take_existing_container(lifecycle)
        raise StopRequested(lifecycle.execution.stop)
    image = _image(lifecycle)
    pull_time = utc_now()
    lifecycle.reached(Step.PULLED)
    lifecycle.use_new_capture()
    backoff = Retries(lifecycle.context.retry_seconds)
    while True:
        lifecycle.use_container(_create(lifecycle, image))
        container_time = utc_now()
        lifecycle.reached(Step.CREATED)
        asked = "take the inputs of the job"
        try:
            _write_inputs(lifecycle)
            asked = "hand over the container's output"
            _open_capture(lifecycle)
        except BackendRefuses as refusal:
            gone = isinstance(refusal, ContainerGone)
            _wait_to_ask_again(lifecycle, refusal, backoff, asked, cleared=gone)
        else:
            break
    lifecycle.reached(Step.ATTACHED)
    if not lifecycle.fence(image_digest=image.digest, pull_time=pull_time, container_time=container_time):
        execution = lifecycle.context.store.execution(lifecycle.execution.id).result()
        if execution.stop:
            raise StopRequested(execution.stop)
        if execution.state is State.PREPARING and not execution.starting and execution.expire_time:
            raise Expired
        # Another server has recovered the execution.
        raise LeftToNextServer
    lifecycle.reached(Step.FENCED)


def _resume(lifecycle: Lifecycle) -> None:
    """Resume the capture of a container that waits for its start."""
    lifecycle.give_files_again()
    lifecycle.resume_capture()
    if lifecycle.execution.stop:
        revoke_for(lifecycle, lifecycle.execution.stop)


# -- image


def _image(lifecycle: Lifecycle) -> Image:
    """Return the image, pulled to the host if the job's pull policy says so."""
    name, policy = lifecycle.spec.image, lifecycle.spec.pull_policy
    image = None if policy is PullPolicy.ALWAYS else lifecycle.backend.image(lifecycle.assignment)
    if image is None:
        if policy is PullPolicy.NEVER:
            host = lifecycle.context.host_name
            raise CannotRun(
                Reason.IMAGE_NOT_PRESENT,
                f"{name} is not on host {host!r}, and the job's pull policy is NEVER: pull it there first",
            )
        backoff = Retries(lifecycle.context.retry_seconds)
        _pull(lifecycle)
        while (image := lifecycle.backend.image(lifecycle.assignment)) is None:
            # Somebody removes images. An image that no container uses yet is pruned first.
            pause = backoff.pause()
            if pause is None:
                raise CannotRun(
                    Reason.IMAGE_NOT_FOUND,
                    f"{name} was pulled several times, and is not there: somebody removes images",
                )
            lifecycle.pause(pause)
            _pull(lifecycle)
        if image.digest:
            lifecycle.log_line(f"{'pulled' if lifecycle.backend.keeps_images else 'found'} {name}: {image.digest}")
    return image


def _pull(lifecycle: Lifecycle) -> None:
    name = lifecycle.spec.image
    if lifecycle.backend.keeps_images:
        lifecycle.log_line(f"pulling {name} on host {lifecycle.context.host_name}")
    backoff = Retries(lifecycle.context.retry_seconds)
    while failure := _pull_once(lifecycle):
        if not isinstance(failure, PullFailed):
            raise failure
        tries = " in several tries" if backoff.paused else ""
        pause = backoff.pause() if failure.retry_seconds <= LONGEST_RATE_LIMIT_SECONDS else None
        if pause is None:
            keeps_images = lifecycle.backend.keeps_images
            failed = f"pulled{tries}; the engine says" if keeps_images else f"looked up in its registry{tries}"
            advice = "" if keeps_images else "; a job that sets its entrypoint needs no look-up"
            raise CannotRun(failure.reason, f"{name} could not be {failed}: {failure}{advice}")
        pause = max(pause, failure.retry_seconds)
        lifecycle.log.info("pull failed", image=name, error=str(failure), again_seconds=pause)
        what = "pull" if lifecycle.backend.keeps_images else f"look-up of {name} in its registry"
        lifecycle.log_line(f"the {what} failed, and is tried again{_soon(pause)}: {failure}")
        lifecycle.pause(pause)


def _soon(seconds: float) -> str:
    return f" in {seconds:.0f} s" if seconds >= 1 else ""


def _pull_once(lifecycle: Lifecycle) -> Exception | None:
    """Pull the image, and return the failure; None if there was none."""
    mailbox = lifecycle.mailbox
    pull = lifecycle.backend.pull(
        lifecycle.assignment,
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
                raise BackendDown("the engine does not answer any more, in the middle of a pull")
    finally:
        pull.cancel()


# -- container


def _create(lifecycle: Lifecycle, image: Image) -> Handle:
    backoff = Retries(lifecycle.context.retry_seconds)
    while True:
        try:
            # Wrapped anew for each try, as the mounted directory of a removed container is of no use to the next one.
            handle = lifecycle.backend.create(lifecycle.assignment, image, lifecycle.capture)
        except FileExistsError as error:
            _take_existing_container(lifecycle)
            raise RanUnexpectedly("this execution has output already, though this server did not start it") from error
        except Unreadable as error:
            _wait_for_secrets(lifecycle, error, backoff)
        except (SecretNotFound, SecretUnusable) as error:
            raise CannotRun(Reason.SECRET_UNAVAILABLE, str(error)) from error
        except OSError as error:
            _wait_for_room(lifecycle, error)
        except NoCapacity as refusal:
            _wait_for_capacity(lifecycle, refusal)
        except BackendRefuses as refusal:
            lifecycle.report_room()
            _wait_to_ask_again(lifecycle, refusal, backoff, "make this container", cleared=_cleared(lifecycle, refusal))
        else:
            lifecycle.report_room()
            return handle


def _wait_for_capacity(lifecycle: Lifecycle, refusal: NoCapacity) -> None:
    """Wait before the container is asked for again. Raises Expired if the execution must not start any more."""
    lifecycle.report_waiting(Waiting(WaitReason.UNSCHEDULABLE, refusal.diagnosis.advice, utc_now()))
    pause = CAPACITY_SECONDS
    if expire_time := lifecycle.execution.expire_time:
        pause = min(pause, (expire_time - utc_now()).total_seconds())
    if pause <= 0:
        raise Expired
    lifecycle.pause(pause)


def _wait_for_secrets(lifecycle: Lifecycle, error: Unreadable, backoff: Retries) -> None:
    """Wait before the secrets of the job are read again. Raises CannotRun if there were enough tries.

    The error may name files of the operator: only the server's log has it.
    """
    lifecycle.log.warning("a secret cannot be read", error=str(error))
    pause = backoff.pause()
    if pause is None:
        raise CannotRun(
            Reason.SECRET_UNAVAILABLE, "a secret of the job cannot be read; the server's log says which one, and why"
        ) from error
    lifecycle.pause(pause)


def _cleared(lifecycle: Lifecycle, refusal: BackendRefuses) -> bool:
    """Whether the obstacle to a new container is gone, or may be gone by the next try."""
    if isinstance(refusal, NameTaken):
        try:
            _clear_name(lifecycle)
        except BackendRefuses as error:
            lifecycle.log.warning("container not removed", error=str(error))
        return True
    if isinstance(refusal, ImageGone):
        # The image was removed since it was looked up.
        _image(lifecycle)
        return True
    return False


def _wait_to_ask_again(
    lifecycle: Lifecycle, refusal: BackendRefuses, backoff: Retries, what: str, *, cleared: bool
) -> None:
    """Wait before the next try. Raises CannotRun if another try cannot help, or if there were enough tries."""
    again = backoff.paused
    pause = backoff.pause() if cleared or refusal.diagnosis.passes else None
    if pause is None:
        tries = " in several tries" if again else ""
        raise CannotRun(
            Reason.REFUSED_BY_ENGINE, f"the engine does not {what}{tries}: {refusal.diagnosis.advice}"
        ) from refusal
    if not isinstance(refusal, NameTaken):
        lifecycle.log_line(f"the engine does not {what} for now, and is asked again: {refusal.diagnosis.text}")
    lifecycle.pause(pause)


def _clear_name(lifecycle: Lifecycle) -> None:
    """Remove the container of an earlier try. That container was not started: the execution is not fenced."""
    container = lifecycle.backend.find(lifecycle.execution)
    if container is None:
        return
    if (
        container.alive or container.start_time is not None
    ) and lifecycle.capture.revoke() is not CommandStatus.NEVER_RAN:
        lifecycle.use_container(container.handle)
        raise RanUnexpectedly("a container of this execution has run already, though this server did not start it")
    # Without force no container is removed that runs after all; the next try meets that container again.
    lifecycle.backend.remove(container.handle, force=container.alive)


def _take_existing_container(lifecycle: Lifecycle) -> None:
    """Make an existing container this execution's, so that it is removed when the execution ends."""
    container = lifecycle.backend.find(lifecycle.execution)
    lifecycle.use_container(container.handle if container else None)


def _write_inputs(lifecycle: Lifecycle) -> None:
    """Write the inputs of the job into the container, unless its start brings them. Raises CannotRun."""
    inputs = lifecycle.spec.inputs
    try:
        written = lifecycle.capture.files.write_inputs(lifecycle.container)
    except ArchiveInvalid as error:
        raise CannotRun(Reason.INPUT_UNAVAILABLE, f"the inputs of the job are not complete: {error}") from error
    if written:
        lifecycle.log_line(f"wrote {len(inputs)} inputs of {sum(each.size_bytes for each in inputs)} bytes")


# -- capture and start


def _open_capture(lifecycle: Lifecycle) -> None:
    while True:
        lifecycle.watch()
        try:
            lifecycle.capture.open(lifecycle.container.container_id)
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


@dataclass(frozen=True, slots=True)
class _Started:
    """A start that was carried out. `backend_lost_container`: though the backend says that it was not.

    `container`: as it began, if the start waited for that.
    """

    backend_lost_container: bool = False
    container: Container | None = None


def _start(lifecycle: Lifecycle) -> _Started | BackendRefuses:
    """Send the one start of this container.

    Return the refusal if the backend refused the start, and the command has not run and never will.
    """
    try:
        # No other code sends a start. If the answer is lost, recovery finds out what became of the start, and does not
        # send it again.
        lifecycle.backend.start(lifecycle.container)
        container = None if lifecycle.backend.starts_at_once else wait_until_begun(lifecycle)
    except BackendRefuses as refusal:
        said = refusal.diagnosis.text
        command_status = lifecycle.capture.revoke()
        if command_status is None and refusal.diagnosis.refusal is RefusalKind.CUT_OFF:
            # The relay of a pod that was ended may be about to tell that no command ran.
            lifecycle.wait_for_delivery()
            command_status = lifecycle.capture.revoke()
        if command_status is CommandStatus.NEVER_RAN:
            return refusal
        if command_status is CommandStatus.UNKNOWN:
            # Somebody deleted the record. A missing record proves nothing: a new container might run the command twice.
            raise RanUnexpectedly(f"its record was deleted while the engine refused its start: {said}") from refusal
        container = lifecycle.backend.inspect(lifecycle.container)
        # Somebody else may have started a container that is gone now. A container with output has run.
        printed = command_status is None and lifecycle.capture.first_byte_time is not None
        if command_status is None and not printed and (container is None or container.start_time is None):
            if refusal.diagnosis.refusal is RefusalKind.CUT_OFF:
                detail = f"it is not known what became of the start of the container: {said}"
                raise RanUnexpectedly(detail) from refusal
            return refusal
        # The container runs, or ran, whatever the backend says. The backend may then not report its end.
        return _Started(backend_lost_container=container is None or not container.alive)
    return _Started(container=container)


def _retry_start(lifecycle: Lifecycle, refusal: BackendRefuses, backoff: Retries) -> bool:
    """Take the execution back before the fence, and wait. False: it has ended, as every start would be refused."""
    again = backoff.paused
    pause = backoff.pause() if refusal.diagnosis.passes or isinstance(refusal, ContainerGone) else None
    if pause is None:
        # The mailbox was not read since the fence.
        stop = lifecycle.context.store.execution(lifecycle.execution.id).result().stop
        stopping = lifecycle.begin_stop(stop, lifecycle.spec.stop_signal) if stop else None
        by_recorder = lifecycle.capture.name == RecorderCapture.name
        note_failure(lifecycle, refusal)
        lifecycle.finish_as(not_started(refusal.diagnosis, stopping, by_recorder=by_recorder, again=again))
        return False
    if not lifecycle.unfence():
        raise RanUnexpectedly("the start was refused, and is noted as answered")
    lifecycle.log.warning("a start was refused; a new container is made", refusal=str(refusal), again_seconds=pause)
    lifecycle.log_line(f"the engine did not start the container, and a new one is made: {refusal.diagnosis.text}")
    lifecycle.pause(pause)
    return True


def _run_to_end(lifecycle: Lifecycle, started: _Started) -> None:
    """Follow a container that was just started to its end."""
    deadline = boottime() + lifecycle.timeout.total_seconds()
    lifecycle.reached(Step.STARTED)
    container = started.container or _look(lifecycle)
    lifecycle.run_to_end(
        Run(
            (container and container.start_time) or utc_now(),
            deadline,
            (container and container.stop_signal) or lifecycle.spec.stop_signal,
            backend_lost_container=started.backend_lost_container,
        )
    )


def _look(lifecycle: Lifecycle) -> Container | None:
    try:
        return lifecycle.backend.inspect(lifecycle.container)
    except (BackendDown, BackendRefuses) as error:
        # EngineGone follows if the engine is gone. The execution must survive an engine that hangs or fails.
        lifecycle.log.warning("container not inspected after its start", error=str(error))
        return None
