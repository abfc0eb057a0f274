"""Taking up executions that another server left, or this one when its engine went away: what is found decides, nothing is guessed."""

from datetime import datetime

import structlog

from fastlane_grpc.errors import ExecutionNotFound
from fastlane_grpc.model import Reason, utc_now
from fastlane_grpc.runner.begin import begin, unfence
from fastlane_grpc.runner.box import Fate
from fastlane_grpc.runner.clock import boottime, left
from fastlane_grpc.runner.engine import Container
from fastlane_grpc.runner.engine_errors import Refusal, refusal_of
from fastlane_grpc.runner.host import Host
from fastlane_grpc.runner.orders import StopOrder
from fastlane_grpc.runner.passage import Passage
from fastlane_grpc.runner.verdict import lost, not_started, verdict_of
from fastlane_grpc.runner.wire import EngineRefuses
from fastlane_grpc.store import Store

log = structlog.get_logger(__name__)


def adopt(passage: Passage) -> None:
    """Goes on with an execution whose start may have been sent. It is never sent again. Raises EngineDown and Left."""
    trailer = passage.capture.trailer()
    verdict = verdict_of(trailer) if trailer else None
    if verdict is not None:
        passage.conclude(verdict)
        return
    container = passage.engine.inspect(passage.container_id)
    # What the capture knows for certain decides. Of a container that runs it is not asked: it may be about to take its record.
    fate = None if container is not None and container.alive else passage.capture.revoke()
    if fate is Fate.NEVER_RAN:
        _begin_anew(passage)
        return
    if fate is Fate.UNKNOWN:
        # Somebody deleted the record. What is not there proves nothing: only the engine is left to ask.
        passage.log.warning("the record of an execution was deleted", container_id=passage.container_id)
        fate = None
    if fate is None and container is not None and _at_work(container):
        container = _answered(passage, container)
    passage.stop_signal = (container and container.stop_signal) or passage.stop_signal
    if passage.execution.stop:
        passage.told(passage.execution.stop)
    if container is not None and container.alive:
        _go_on(passage, container.start_time)
    elif fate is Fate.RUNS:
        passage.log.warning("a container runs that the engine does not know, or takes for over", container_id=passage.container_id)
        passage.engine_lost_it = True
        _go_on(passage, None)
    elif fate is Fate.ENDED:
        passage.end(None)
    elif container is None:
        _lose(passage, Reason.CONTAINER_GONE, "the engine has no such container any more: nobody knows whether and how it ran")
    elif container.start_time is not None:
        passage.capture.resume(None)
        passage.end(None)
    elif container.error and refusal_of(container.error) is Refusal.PASSING:
        # The engine notes an error only of a start that it gave up.
        _begin_anew(passage)
    elif container.error and refusal_of(container.error) is Refusal.FINAL:
        passage.conclude(not_started(container.error, passage.stopping, by_recorder=False))
    else:
        _lose(passage, Reason.START_UNKNOWN, _start_unknown(passage))


def sweep(store: Store, host: Host) -> None:
    """Removes the containers of this instance whose execution is final, not known any more, or on another host by now. Raises EngineDown.

    The last were made by an engine that hung and, back at work, carried out what it had been asked for; they were never started.
    """
    # By the name of the host, too: where two hosts are one engine, the other one's containers are its own affair.
    ours = host.engine.containers(host.instance, host.name)
    for container_id, execution_id in host.engine.containers(host.instance).items():
        if _is_over(store, execution_id) or (container_id in ours and _is_elsewhere(store, execution_id, host)):
            log.info("removing a container that was left", container_id=container_id, execution_id=execution_id, host=host.name)
            try:
                host.engine.remove(container_id, force=True)
            except EngineRefuses as refusal:
                log.warning("container not removed", container_id=container_id, error=refusal.message)


def _at_work(container: Container) -> bool:
    """Whether the engine may be starting it still. Until that succeeds or fails, it does not tell."""
    return not container.alive and container.start_time is None and not container.error


def _answered(passage: Passage, container: Container) -> Container | None:
    """The container after the answer to its start, which is another's to hear; or as it is if there is none to be expected."""
    until, stops = boottime() + passage.around.start_answer_seconds, []
    while _at_work(container) and _same_life(passage) and boottime() < until:
        order = passage.next_order(until - boottime())
        if isinstance(order, StopOrder):
            stops.append(order)
            continue
        found = passage.engine.inspect(passage.container_id)
        if found is None:
            return None
        container = found
    for stop in stops:
        passage.put_off(stop)
    return container


def _same_life(passage: Passage) -> bool:
    return passage.execution.engine_life != "" and passage.engine.life() == passage.execution.engine_life


def _begin_anew(passage: Passage) -> None:
    """Its command has not run, and now cannot: as if it had not been tried."""
    if not unfence(passage):
        # Its start was answered and noted, and then the machine went down before the recorder had begun.
        _lose(passage, Reason.START_UNKNOWN, "the machine went down while the container was being started")
        return
    passage.log.info("a container that had not begun is made anew")
    passage.say("the container had not begun when the server or the engine went away; a new one is made")
    begin(passage)


def _go_on(passage: Passage, started: datetime | None) -> None:
    passage.log.info("execution taken up again", container_id=passage.container_id)
    passage.say("taken up again after a break")
    passage.follow_again()
    start_time = passage.execution.times.start_time or started or utc_now()
    passage.time_runs(left(passage.timeout, since=start_time, now=utc_now()))
    passage.began(start_time)


def _start_unknown(passage: Passage) -> str:
    passage.log.warning("a process may be orphaned", container_id=passage.container_id)
    return (
        "the server or the engine was killed while it started the container, and the engine does not know what became of that; "
        f"a process of {passage.execution.container_name} may be running on host {passage.around.host.name!r} without a container"
    )


def _lose(passage: Passage, reason: Reason, detail: str) -> None:
    passage.capture.resume(None)
    passage.conclude(lost(reason, detail))


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
