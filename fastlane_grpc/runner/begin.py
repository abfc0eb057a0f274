"""Beginning an execution: everything up to the one start that is ever sent, and that start."""

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastlane_grpc.directory import free_inodes
from fastlane_grpc.model import PullPolicy, Reason, State, utc_now
from fastlane_grpc.runner.box import Fate
from fastlane_grpc.runner.capture import End
from fastlane_grpc.runner.clock import boottime
from fastlane_grpc.runner.container import container_body
from fastlane_grpc.runner.engine import EXECUTION_LABEL, INSTANCE_LABEL, Container, Image
from fastlane_grpc.runner.engine_errors import Refusal, container_gone, explained, passes, plain, refusal_of
from fastlane_grpc.runner.image import Pull, PullFails, Refused
from fastlane_grpc.runner.orders import PullEnded
from fastlane_grpc.runner.passage import Left, Passage, Step, ToldToStop
from fastlane_grpc.runner.patience import Patience
from fastlane_grpc.runner.recorder import RecorderCapture
from fastlane_grpc.runner.stopping import Stopping
from fastlane_grpc.runner.verdict import expired, failed, lost, not_started, stopped_before_start
from fastlane_grpc.runner.wire import EngineDown, EngineRefuses

# While an image is pulled: so often it is looked whether the host is up.
HOST_LOOK_SECONDS = 1.0
# A registry that is asked too often may say how long to wait; an execution that waits takes up a place.
LONGEST_RATE_LIMIT_SECONDS = 300.0


class Unsettled(Exception):
    """A container of this execution has run, or may have, though nobody was allowed to start it or the engine says that it did not."""


class Expired(Exception):
    """The expire_time of the execution came before its start."""


def begin(passage: Passage) -> None:
    """From the claim to the end. Raises EngineDown and Left; `passage.fenced` tells on which side of the fence that was."""
    backoff = None
    try:
        _prepare(passage)
        while (refusal := _start(passage)) is not None:
            backoff = backoff or Patience(passage.around.retry_seconds)
            if not _start_over(passage, refusal, backoff):
                return
            _prepare(passage)
    except Refused as refused:
        passage.conclude(failed(refused.reason, refused.detail))
    except ToldToStop as told:
        passage.conclude(stopped_before_start(Stopping.begin(told.stop, "", boottime())))
    except Expired:
        passage.conclude(expired(passage.execution))
    except Unsettled as unsettled:
        passage.log.error("nobody knows whether a container ran", container_id=passage.container_id, why=str(unsettled))
        passage.conclude(lost(Reason.START_UNKNOWN, str(unsettled)), End(None, witnessed=False) if passage.fenced else None)
    else:
        _go_with(passage)


def _prepare(passage: Passage) -> None:
    """Up to the fence: until then the execution can go back to the queue."""
    if passage.execution.state is State.STOPPING and passage.execution.stop:
        _take_left_over(passage)
        raise ToldToStop(passage.execution.stop)
    image = _image(passage)
    pull_time = utc_now()
    passage.reached(Step.PULLED)
    passage.choose_capture()
    backoff = Patience(passage.around.retry_seconds)
    while True:
        passage.container_id = _create(passage, image)
        container_time = utc_now()
        passage.reached(Step.CREATED)
        try:
            _open_capture(passage)
        except EngineRefuses as refusal:
            gone = container_gone(refusal.message, passage.container_id)
            _wait_to_ask_again(passage, refusal, backoff, "hand over the container's output", cleared=gone)
        else:
            break
    passage.reached(Step.ATTACHED)
    passage.engine_life = passage.engine.life()
    store = passage.around.store
    fenced = store.starting(
        passage.execution.id,
        container_id=passage.container_id,
        capture=passage.capture.name,
        engine_life=passage.engine_life,
        image_digest=image.digest,
        pull_time=pull_time,
        container_time=container_time,
    ).result()
    if fenced is None:
        execution = store.execution(passage.execution.id).result()
        if execution.stop:
            raise ToldToStop(execution.stop)
        if execution.state is State.PREPARING and not execution.starting and execution.expire_time:
            raise Expired
        # Somebody else has taken it up, whose it is then.
        raise Left
    passage.fenced = True
    passage.reached(Step.FENCED)


# -- image


def _image(passage: Passage) -> Image:
    """The image, which is on the host when this returns, by the job's pull policy."""
    name, policy = passage.spec.image, passage.spec.pull_policy
    image = None if policy is PullPolicy.ALWAYS else _present(passage)
    if image is None:
        if policy is PullPolicy.NEVER:
            host = passage.around.host.name
            raise Refused(
                Reason.IMAGE_NOT_PRESENT, f"{name} is not on host {host!r}, and the job's pull policy is NEVER: pull it there first"
            )
        backoff = Patience(passage.around.retry_seconds)
        _pull(passage)
        while (image := _present(passage)) is None:
            # Somebody removes images: without a tag that is in use they are what is pruned first.
            pause = backoff.pause()
            if pause is None:
                raise Refused(Reason.IMAGE_NOT_FOUND, f"{name} was pulled several times, and is not there: somebody removes images")
            passage.pause(pause)
            _pull(passage)
        passage.say(f"pulled {name}: {image.digest}")
    return image


def _present(passage: Passage) -> Image | None:
    try:
        return passage.engine.image(passage.spec.image)
    except EngineRefuses as refusal:
        if refusal.status != 400:
            raise
        raise Refused(
            Reason.IMAGE_NOT_FOUND, f"the engine does not take {passage.spec.image!r} for an image: {refusal.message}"
        ) from refusal


def _pull(passage: Passage) -> None:
    passage.say(f"pulling {passage.spec.image}")
    backoff = Patience(passage.around.retry_seconds)
    while failure := _pull_once(passage):
        if not isinstance(failure, PullFails):
            raise failure
        tries = " in several tries" if backoff.paused else ""
        pause = backoff.pause() if failure.retry_seconds <= LONGEST_RATE_LIMIT_SECONDS else None
        if pause is None:
            raise Refused(failure.reason, f"{passage.spec.image} could not be pulled{tries}; the engine says: {failure}")
        pause = max(pause, failure.retry_seconds)
        passage.log.info("pull failed", image=passage.spec.image, error=str(failure), again_seconds=pause)
        passage.say(f"the pull failed, and is tried again{_soon(pause)}: {failure}")
        passage.pause(pause)


def _soon(seconds: float) -> str:
    return f" in {seconds:.0f} s" if seconds >= 1 else ""


def _pull_once(passage: Passage) -> Exception | None:
    """Why it failed; None if it did not."""
    orders = passage.orders
    pull = Pull(passage.engine, passage.spec.image, on_line=passage.say, on_end=lambda failure: orders.put(PullEnded(failure)))
    try:
        while True:
            order = passage.wait(HOST_LOOK_SECONDS)
            if isinstance(order, PullEnded):
                return order.failure
            # An engine that hangs says nothing of the pull, as one does that waits for a slow registry.
            if not passage.around.host.up:
                raise EngineDown("the engine does not answer any more, in the middle of a pull")
    finally:
        pull.give_up()


# -- container


def _create(passage: Passage, image: Image) -> str:
    try:
        body = container_body(passage.assignment, instance=passage.around.host.instance, default_pids=passage.around.default_pids)
    except ValueError as error:
        raise Refused(Reason.REFUSED_BY_ENGINE, f"the command is none: {error}") from error
    backoff = Patience(passage.around.retry_seconds)
    while True:
        # Anew for each try: what a container that is removed was equipped with is of no use to the next one.
        equipped = _equipped(passage, body, image)
        try:
            return passage.engine.create(passage.execution.container_name, equipped)
        except EngineRefuses as refusal:
            _wait_to_ask_again(passage, refusal, backoff, "make this container", cleared=_cleared(passage, refusal))


def _equipped(passage: Passage, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
    while True:
        try:
            equipped = passage.capture.equip(body, image)
        except FileExistsError as error:
            _take_left_over(passage)
            raise Unsettled("this execution has output already, though this server did not start it") from error
        except OSError as error:
            _no_room(passage, error)
        else:
            passage.has_room()
            return equipped


def _cleared(passage: Passage, refusal: EngineRefuses) -> bool:
    """Whether what was in the way of a new container is gone, or may be by the next try."""
    if refusal.status == 409:
        try:
            _clear_name(passage)
        except EngineRefuses as error:
            passage.log.warning("container not removed", name=passage.execution.container_name, error=error.message)
        return True
    if refusal.status == 404 and "no such image" in refusal.message.lower():
        # The image went away since we looked.
        _image(passage)
        return True
    return False


def _wait_to_ask_again(passage: Passage, refusal: EngineRefuses, backoff: Patience, what: str, *, cleared: bool) -> None:
    """Waits, if the next try may do better. Raises Refused if it cannot, or if there were enough tries."""
    again = backoff.paused
    pause = backoff.pause() if cleared or passes(refusal.message) else None
    if pause is None:
        tries = " in several tries" if again else ""
        raise Refused(Reason.REFUSED_BY_ENGINE, f"the engine does not {what}{tries}: {explained(refusal.message)}") from refusal
    if refusal.status != 409:
        passage.say(f"the engine does not {what} for now, and is asked again: {plain(refusal.message)}")
    passage.pause(pause)


def _clear_name(passage: Passage) -> None:
    """Removes what an earlier try made. It was not started: the execution has not passed the fence."""
    container = _left_over(passage)
    if container is None:
        return
    if (container.alive or container.start_time is not None) and passage.capture.revoke() is not Fate.NEVER_RAN:
        passage.container_id = container.id
        raise Unsettled("a container of this execution has run already, though this server did not start it")
    # One that runs after all is not removed without force, and is met again.
    passage.engine.remove(container.id, force=container.status != "created")


def _take_left_over(passage: Passage) -> None:
    """What there is goes when the execution ends."""
    container = _left_over(passage)
    passage.container_id = container.id if container else ""


def _left_over(passage: Passage) -> Container | None:
    """The container that has the execution's name already."""
    name = passage.execution.container_name
    container = passage.engine.inspect(name)
    if container is None:
        return None
    its = (container.labels.get(INSTANCE_LABEL), container.labels.get(EXECUTION_LABEL))
    if its != (passage.around.host.instance, passage.execution.id):
        detail = f"the engine has a container called {name} that this server did not make: remove or rename it"
        raise Refused(Reason.REFUSED_BY_ENGINE, detail)
    return container


# -- capture and start


def _open_capture(passage: Passage) -> None:
    while True:
        passage.watch()
        try:
            passage.capture.open(passage.container_id)
        except OSError as error:
            _no_room(passage, error)
        else:
            passage.has_room()
            return


def _no_room(passage: Passage, error: OSError) -> None:
    """For the record. Without one nothing is started."""
    passage.waits_for_room(f"the record of its output cannot be made: {_lacking(error, passage.around.logs.directory)}")
    passage.pause(1.0)


def _lacking(error: OSError, logs: Path) -> str:
    """What there is too little of. For a disk without inodes the system has the same words as for one without room."""
    if error.errno == errno.ENOSPC:
        with suppress(OSError):
            what = "inodes" if free_inodes(logs) == 0 else "room"
            return f"the disk of {logs} has no {what} left"
    return error.strerror or str(error)


def _start(passage: Passage) -> EngineRefuses | None:
    """Sends the one start of this container. What is returned: the engine refused it, and the command has not run and never will."""
    try:
        # The one place where a start is sent. If its answer is lost, what became of it is found out, and it is not sent again.
        passage.engine.start(passage.container_id)
    except EngineRefuses as refusal:
        fate = passage.capture.revoke()
        if fate is Fate.NEVER_RAN:
            return refusal
        if fate is Fate.UNKNOWN:
            # Somebody deleted the record. What is not there proves nothing: a new container might run the command a second time.
            raise Unsettled(f"its record was deleted while the engine refused its start: {plain(refusal.message)}") from refusal
        container = passage.engine.inspect(passage.container_id)
        # Of a container that is gone: somebody else may have started it before. One that printed has run.
        printed = fate is None and passage.capture.first_byte_time is not None
        if fate is None and not printed and (container is None or container.start_time is None):
            if refusal_of(refusal.message) is Refusal.CUT_OFF:
                detail = f"the engine lost touch with its runtime while it started the container: {plain(refusal.message)}"
                raise Unsettled(detail) from refusal
            return refusal
        # It runs, or ran, whatever the engine says, which may not tell of its end then.
        passage.engine_lost_it = container is None or not container.alive
    return None


def _start_over(passage: Passage, refusal: EngineRefuses, backoff: Patience) -> bool:
    """Takes the execution back before the fence, and waits. False: it has ended, as the next start would be refused as well."""
    message = refusal.message
    again = backoff.paused
    pause = backoff.pause() if passes(message) or container_gone(message, passage.container_id) else None
    if pause is None:
        # Nobody has looked for orders since the fence.
        if stop := passage.around.store.execution(passage.execution.id).result().stop:
            passage.told(stop)
        passage.conclude(not_started(message, passage.stopping, by_recorder=passage.capture.name == RecorderCapture.name, again=again))
        return False
    if not unfence(passage):
        raise Unsettled("the start was refused, and is noted as answered")
    passage.log.warning("a start was refused; a new container is made", refusal=message, again_seconds=pause)
    passage.say(f"the engine did not start the container, and a new one is made: {plain(message)}")
    passage.pause(pause)
    return True


def unfence(passage: Passage) -> bool:
    """Of one whose command has not run and never will: as before the fence. False: its start was noted as answered already.

    In another container, as a start of this one may still be on its way.
    """
    passage.remove()
    execution = passage.around.store.revoked(passage.execution.id).result()
    if execution is None:
        return False
    passage.capture.leave()
    passage.execution, passage.fenced, passage.container_id = execution, False, ""
    return True


def _go_with(passage: Passage) -> None:
    """From its start to its end."""
    passage.time_runs(passage.timeout.total_seconds())
    passage.reached(Step.STARTED)
    container = _look(passage)
    passage.stop_signal = (container and container.stop_signal) or passage.stop_signal
    passage.began((container and container.start_time) or utc_now())


def _look(passage: Passage) -> Container | None:
    try:
        return passage.engine.inspect(passage.container_id)
    except (EngineDown, EngineRefuses) as error:
        # An engine that is gone tells of itself; to one that hangs or fails for a while the execution must not be lost.
        passage.log.warning("container not inspected after its start", error=str(error))
        return None
