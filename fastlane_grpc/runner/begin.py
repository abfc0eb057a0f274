"""Beginning an execution: everything up to the one start that is ever sent, and that start."""

from collections.abc import Mapping
from typing import Any

from fastlane_grpc.model import PullPolicy, Reason, State, utc_now
from fastlane_grpc.runner.box import Fate
from fastlane_grpc.runner.clock import boottime
from fastlane_grpc.runner.container import container_body
from fastlane_grpc.runner.engine import EXECUTION_LABEL, INSTANCE_LABEL, PASSING, Container, Image
from fastlane_grpc.runner.image import Pull, Refused, RegistryFails
from fastlane_grpc.runner.orders import PullEnded
from fastlane_grpc.runner.passage import Left, Passage, Step, ToldToStop
from fastlane_grpc.runner.patience import Patience
from fastlane_grpc.runner.stopping import Stopping
from fastlane_grpc.runner.verdict import expired, failed, lost, not_started, stopped_before_start
from fastlane_grpc.runner.wire import EngineDown, EngineRefuses

# While an image is pulled: so often it is looked whether the host is up.
HOST_LOOK_SECONDS = 1.0


class Unsettled(Exception):
    """A container of this execution has run, though nobody was allowed to start it."""


class Expired(Exception):
    """The expire_time of the execution came before its start."""


def begin(passage: Passage) -> None:
    """From the claim to the end. Raises EngineDown and Left; `passage.fenced` tells on which side of the fence that was."""
    try:
        _prepare(passage)
    except Refused as refused:
        passage.conclude(failed(refused.reason, refused.detail))
    except ToldToStop as told:
        passage.conclude(stopped_before_start(Stopping.begin(told.stop, "", boottime())))
    except Expired:
        passage.conclude(expired(passage.execution))
    except Unsettled as unsettled:
        passage.log.error("a container ran that nobody started", container_id=passage.container_id)
        passage.conclude(lost(Reason.START_UNKNOWN, str(unsettled)))
    else:
        _start(passage)


def _prepare(passage: Passage) -> None:
    """Up to the fence: until then the execution can go back to the queue."""
    if passage.execution.state is State.STOPPING and passage.execution.stop:
        _take_left_over(passage)
        raise ToldToStop(passage.execution.stop)
    image = _image(passage)
    pull_time = utc_now()
    passage.reached(Step.PULLED)
    passage.choose_capture(image)
    passage.container_id = _create(passage, image)
    container_time = utc_now()
    passage.reached(Step.CREATED)
    _open_capture(passage)
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
        _pull(passage)
        image = _present(passage)
        if image is None:
            raise Refused(Reason.IMAGE_NOT_FOUND, f"{name} was pulled, and is not there all the same: somebody removes images")
        passage.say(f"pulled {name}: {image.digest}")
    return image


def _present(passage: Passage) -> Image | None:
    try:
        return passage.engine.image(passage.spec.image)
    except EngineRefuses as refusal:
        raise Refused(
            Reason.IMAGE_NOT_FOUND, f"the engine does not take {passage.spec.image!r} for an image: {refusal.message}"
        ) from refusal


def _pull(passage: Passage) -> None:
    passage.say(f"pulling {passage.spec.image}")
    patience = Patience()
    while failure := _pull_once(passage):
        if not isinstance(failure, RegistryFails):
            raise failure
        pause = patience.pause()
        if pause is None:
            detail = f"{passage.spec.image} could not be pulled in several tries; the engine says: {failure}"
            raise Refused(Reason.REGISTRY_UNAVAILABLE, detail)
        passage.log.info("pull failed", image=passage.spec.image, error=str(failure), again_seconds=pause)
        passage.say(f"the pull failed, and is tried again: {failure}")
        passage.pause(pause)


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
    patience = Patience()
    while True:
        # Anew for each try: what a container that is removed was equipped with is of no use to the next one.
        equipped = _equipped(passage, body, image)
        try:
            return passage.engine.create(passage.execution.container_name, equipped)
        except EngineRefuses as refusal:
            _make_way(passage, refusal)
            pause = patience.pause()
            if pause is None:
                raise _refused(refusal) from refusal
            passage.pause(pause)


def _equipped(passage: Passage, body: Mapping[str, Any], image: Image) -> Mapping[str, Any]:
    while True:
        try:
            return passage.capture.equip(body, image)
        except FileExistsError as error:
            _take_left_over(passage)
            raise Unsettled("this execution has output already, though this server did not start it") from error
        except OSError as error:
            _no_room(passage, error)


def _make_way(passage: Passage, refusal: EngineRefuses) -> None:
    """Returns if the next try may do better."""
    if refusal.status == 409:
        _clear_name(passage)
    elif refusal.status == 404:
        # The image went away since we looked.
        _image(passage)
    elif not PASSING.search(refusal.message):
        raise _refused(refusal) from refusal


def _refused(refusal: EngineRefuses) -> Refused:
    return Refused(Reason.REFUSED_BY_ENGINE, f"the engine does not make this container: {refusal.message}")


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
        except EngineRefuses as refusal:
            raise Refused(Reason.REFUSED_BY_ENGINE, f"the engine does not hand over the container's output: {refusal.message}") from refusal
        except OSError as error:
            _no_room(passage, error)
        else:
            return


def _no_room(passage: Passage, error: OSError) -> None:
    """For the record. Without one nothing is started."""
    passage.log.warning("the record cannot be made; trying again", error=str(error))
    passage.pause(1.0)


def _start(passage: Passage) -> None:
    try:
        # The one place where a start is sent. If its answer is lost, what became of it is found out, and it is not sent again.
        passage.engine.start(passage.container_id)
    except EngineRefuses as refusal:
        container, fate = passage.engine.inspect(passage.container_id), passage.capture.revoke()
        if fate is Fate.NEVER_RAN or (fate is None and (container is None or container.start_time is None)):
            passage.conclude(not_started(refusal.message, container.exit_code if container else 0, passage.stopping))
            return
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
