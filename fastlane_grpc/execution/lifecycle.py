"""The lifecycle of one execution from its start to its end, for new executions and recovered ones alike.

Each step has a name and is reported right after it happened. Whatever is killed at a step, the next server goes on from
what is on disk.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from signal import SIGKILL

import structlog

from fastlane_grpc.capture.capture import Capture, ContainerEnd
from fastlane_grpc.capture.handoff import CommandStatus, Delivery
from fastlane_grpc.capture.recorder import CANNOT_STORE_CODE, RecorderCapture
from fastlane_grpc.clock import boottime
from fastlane_grpc.docker.engine import Container
from fastlane_grpc.docker.engine_errors import passes
from fastlane_grpc.docker.http import EngineDown, EngineRefuses
from fastlane_grpc.errors import ExecutionNotFound, ServerStopping
from fastlane_grpc.execution.architecture import architectures, foreign_image, format_error
from fastlane_grpc.execution.events import Died, EngineBack, EngineGone, Started
from fastlane_grpc.execution.final_state import (
    DOUBTFUL_CODES,
    FinalState,
    cut_off,
    ended,
    ended_by_itself,
    final_state_of,
    not_begun,
    record_deleted,
)
from fastlane_grpc.execution.host import Host
from fastlane_grpc.execution.stopping import KILL, Stopping, signal_number
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Assignment, Execution, Outcome, State, Stop, StopCause, Waiting, WaitReason, utc_now
from fastlane_grpc.record import Trailer
from fastlane_grpc.runner import AbandonedLog, CertainEnd, Command, Event, LeaveCommand, Mailbox, StopCommand
from fastlane_grpc.store import Store

# Pause before the container is inspected for an end that the engine should have reported by now.
LOOK_SECONDS = 10.0
MOST_LOOKS = 4
# Resources that only the start needed are released as soon as possible. The pauses between two tries grow.
RELEASE_SECONDS, LONGEST_RELEASE_SECONDS = 0.1, 5.0
# Pause before a record is read again that could not be read, as a disk or a table of the kernel fails or is full.
UNREADABLE_SECONDS = 0.5
# Pause between two looks at a container whose main process runs, though the engine says that the container ended.
STILL_RUNNING_SECONDS = 0.5
# The longest wait. The clock of a wait stands still while the machine sleeps; boottime(), read after it, does not.
LONGEST_WAIT_SECONDS = 60.0
# An engine that takes longer to let a paused container go on counts as hung.
WAKE_SECONDS = 2.0
# The longest wait for the store. A timeout is carried out even if the store has no room to note it.
STORE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Step(StrEnum):
    """The steps of an execution, in order."""

    CLAIMED = "claimed"
    PULLED = "pulled"
    CREATED = "created"
    ATTACHED = "attached"
    FENCED = "fenced"
    STARTED = "started"
    RUNNING = "running"
    DIED = "died"
    DRAINED = "drained"
    SEALED = "sealed"
    FINISHED = "finished"
    REMOVED = "removed"


class LeftToNextServer(Exception):
    """The server stops and leaves the execution to the next server."""


class StopRequested(Exception):
    """A stop command came before there was a container to send a signal to."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.note)
        self.stop = stop


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """The values that all executions of a runner share."""

    store: Store
    logs: Logs
    host: Host
    default_timeout: timedelta
    default_pids: int
    start_answer_seconds: float
    retry_seconds: float
    step: Callable[[Step, str], None]


class Lifecycle:
    """One execution: its state between claim and end, and the steps from its start on. Lives on one thread."""

    def __init__(self, context: RunnerContext, assignment: Assignment, mailbox: Mailbox) -> None:
        self.context = context
        self.assignment = assignment
        self.execution = assignment.execution
        self.spec = assignment.spec
        self.engine = context.host.engine
        self.timeout = context.default_timeout if assignment.spec.timeout is None else assignment.spec.timeout
        self.directory = context.logs.path(self.execution.id)
        # For a new execution, `choose_capture` replaces this once the image is known.
        self.capture: Capture = context.host.captures.for_existing(
            self.engine, self.directory, self.execution, self.log_line
        )
        self.fenced = self.execution.starting
        self.container_id = self.execution.container_id
        self.engine_epoch = self.execution.engine_life
        self.stop_signal = self.spec.stop_signal
        self.stopping: Stopping | None = None
        self.watched_since = 0.0
        self.mailbox = mailbox
        self._deferred: deque[Command | Event] = deque()
        self._deadline = float("inf")
        self._look_at = float("inf")
        self._release_at, self._release_pause = 0.0, RELEASE_SECONDS
        # The engine says that the container ended, or knows no such container, while its main process runs. Then only
        # the capture tells of the end.
        self.engine_lost_container = False
        self.log = log.bind(execution_id=self.execution.id, job_id=self.execution.job_id, host=context.host.name)

    # -- progress

    def reached(self, step: Step) -> None:
        self.context.step(step, self.execution.id)

    def log_line(self, line: str) -> None:
        """Write one of fastlane's own lines into the log of the execution."""
        self.context.logs.system(self.execution.id, line)

    def report_no_room(self, detail: str) -> None:
        """Report that the record cannot be created for lack of room: once, however often that is tried again."""
        if self.mailbox.waiting:
            return
        self.mailbox.waiting = Waiting(WaitReason.DISK_FULL, detail, utc_now())
        self.log.warning("the record cannot be made; trying again", reason=detail)
        # If there is no room for this line either, callers still see `waiting` on the execution.
        self.log_line(f"waiting: {detail}")

    def report_room(self) -> None:
        """Report that the record could be created after all."""
        waited, self.mailbox.waiting = self.mailbox.waiting, None
        if waited:
            self.log_line(f"goes on after {(utc_now() - waited.since_time).total_seconds():.0f} s: {waited.detail}")

    # -- waiting

    def receive(self, seconds: float) -> Command | Event | None:
        """Return the next command or event within the time.

        Raises LeftToNextServer, and EngineDown if the engine went away after `watch`.
        """
        received = self._deferred.popleft() if self._deferred else self.mailbox.get(min(seconds, LONGEST_WAIT_SECONDS))
        if isinstance(received, LeaveCommand):
            raise LeftToNextServer
        if isinstance(received, EngineGone) and received.time > self.watched_since:
            raise EngineDown("the engine went away")
        return received

    def receive_before_start(self, seconds: float | None) -> Command | Event | None:
        """Return the next command or event while there is no container to send a signal to.

        Raises LeftToNextServer, and StopRequested for a stop command.
        """
        received = self.mailbox.get(seconds)
        if isinstance(received, LeaveCommand):
            raise LeftToNextServer
        if isinstance(received, StopCommand):
            raise StopRequested(received.stop)
        return received

    def pause(self, seconds: float) -> None:
        """Wait before the start; a command in the mailbox ends the wait, as in `receive_before_start`."""
        until = boottime() + seconds
        while (left_seconds := until - boottime()) > 0:
            self.receive_before_start(left_seconds)

    def defer(self, received: Command | Event) -> None:
        """Keep a command or event for the next `receive`."""
        self._deferred.append(received)

    def watch(self) -> None:
        """Note that from now on no event may be missed: without a break since, the engine's epoch is the same."""
        self.watched_since = boottime()

    # -- from its start on

    def set_deadline(self, seconds: float) -> None:
        """Let the container run for so long from now on."""
        self._deadline = boottime() + seconds

    def run_to_end(self, start_time: datetime) -> None:
        """Commit that the container runs or ran, and bring the execution to its end."""
        if self.execution.state is State.PREPARING:
            try:
                self.context.store.running(self.execution.id, start_time=start_time).result(STORE_SECONDS)
            except TimeoutError:
                # The store writes the start as soon as it can. The container's time runs meanwhile, and it may end.
                self.log.warning("a start is not on disk yet")
            self.log_line(f"started on host {self.context.host.name}, output captured by {self.capture.name}")
            self.log.info("execution runs", container_id=self.container_id)
        self.reached(Step.RUNNING)
        died = self.until_end()
        self.reached(Step.DIED)
        self.finish_after_run(died)

    def request_stop(self, stop: Stop) -> None:
        """Carry out a stop that is on disk, or one that came again with less grace."""
        if self.stopping:
            self.stopping = self.stopping.shortened(stop, boottime())
            return
        self.stopping = Stopping.begin(stop, self.stop_signal, boottime())
        self.log_line(f"told to stop {self.stopping.cause}")

    def choose_capture(self) -> None:
        """Choose the capture of an execution that is new or launched anew."""
        self.capture = self.context.host.captures.for_new(self.engine, self.directory, self.execution.id, self.log_line)

    def resume_capture(self) -> None:
        """Resume the capture after a break.

        The engine does not attach to a paused container. Such a container prints nothing, and its capture is resumed
        when the container goes on.
        """
        self.watch()
        try:
            self.capture.resume(self.container_id)
        except EngineRefuses as refusal:
            self.log.info("output is not followed yet", refusal=refusal.message)

    def until_end(self) -> Died | None:
        """Watch the time and carry out commands until the container ends. None: the engine did not report how."""
        while True:
            self._release_start_resources()
            received = self.receive(self._next_time() - boottime())
            # The event may be of an earlier container, whose start was refused and then carried out after all.
            if isinstance(received, Died) and received.container_id in {"", self.container_id}:
                if not self._is_running():
                    return received
                # The engine was killed and came back with a wrong state of the container. Its process and its output go
                # on.
                self.log.warning("the engine says that a container is over whose main process is there")
                self.engine_lost_container = True
            if self.engine_lost_container:
                self._look_at = min(self._look_at, boottime() + STILL_RUNNING_SECONDS)
            if isinstance(received, StopCommand):
                self.request_stop(received.stop)
            elif isinstance(received, Started) and not self.capture.following:
                self.resume_capture()
            elif isinstance(received, EngineBack):
                self._look_at = 0.0
            if boottime() >= self._deadline and not self.stopping:
                self._time_out()
            self._send_what_is_due()
            if boottime() >= self._look_at and not self._alive():
                return None

    def _next_time(self) -> float:
        due = self.stopping.next_time if self.stopping else self._deadline
        return min(due, self._look_at, self._release_at)

    def _release_start_resources(self) -> None:
        if boottime() >= self._release_at:
            self._release_at = (
                float("inf") if self.capture.release_start_resources() else boottime() + self._release_pause
            )
            self._release_pause = min(self._release_pause * 1.2, LONGEST_RELEASE_SECONDS)

    def _time_out(self) -> None:
        self._deadline = float("inf")
        grace = self.spec.grace
        try:
            execution = self.context.store.time_out(self.execution.id, grace=grace).result(STORE_SECONDS)
        except TimeoutError:
            # The store writes the timeout as soon as it can. A full disk must not give the container more time.
            self.log.warning("a timeout is carried out before it is on disk")
            self.request_stop(Stop(StopCause.TIMEOUT, utc_now(), grace))
            return
        # None: a caller requested a stop just now, and the command is on its way to this mailbox.
        if execution and execution.stop:
            self.log.info("execution timed out", grace_seconds=grace.total_seconds())
            self.request_stop(execution.stop)

    def _send_what_is_due(self) -> None:
        name = self.stopping.due(boottime()) if self.stopping else ""
        if not self.stopping or not name:
            return
        if name == KILL:
            # First, as the engine carries out a kill only when a reader takes the container's output.
            self.capture.abandon_unwritten()
        # The first kill keeps all output. If that kill does not help, the next one is SIGKILL.
        number = self.capture.kill_signal if name == KILL and self.stopping.sent != KILL else name
        # First without the engine, which may hang: the timeout and later commands would wait for its answer.
        kernels_number = signal_number(number)
        delivery = self._signalled(kernels_number) if kernels_number else Delivery.NOT_SENT
        if delivery is Delivery.NOT_SENT:
            self._send_by_engine(name, number)
            return
        self._sent(name)
        if delivery is Delivery.PENDING:
            self._wake(number)

    def _send_by_engine(self, name: str, number: str) -> None:
        assert self.stopping is not None
        try:
            self.engine.kill(self.container_id, number)
        except EngineDown as error:
            # The engine may only hang. If it is gone, EngineGone follows.
            self.log.warning("a signal was not sent", signal=name, error=str(error))
            self.stopping = self.stopping.could_not_send(boottime())
        except EngineRefuses as refusal:
            self._not_sent(name, refusal)
        else:
            self._sent(name)

    def _wake(self, number: str) -> None:
        """Have the engine let a paused container go on, so that it takes its signal.

        The engine sends the signal a second time for that; the kernel merges both.
        """
        try:
            self.engine.kill(self.container_id, number, answer_seconds=WAKE_SECONDS)
        except (EngineDown, EngineRefuses) as error:
            self.log.warning("a container does not take its signal", signal=number, error=str(error))

    def _sent(self, name: str) -> None:
        assert self.stopping is not None
        self.log_line(f"sent {name}")
        self.log.info("signal sent", signal=name)
        self.stopping = self.stopping.did_send(name, boottime())
        if name == KILL:
            self._look_at = min(self._look_at, boottime() + LOOK_SECONDS)

    def _not_sent(self, name: str, refusal: EngineRefuses) -> None:
        assert self.stopping is not None
        self.log.info("a signal was refused", signal=name, refusal=refusal.message)
        if refusal.status in {404, 409}:
            # The container does not run any more: the event of its end is on its way.
            self._look_at = min(self._look_at, boottime() + LOOK_SECONDS)
            self.stopping = self.stopping.could_not_send(boottime() + LOOK_SECONDS)
        elif name == KILL or passes(refusal.message):
            # A signal that the engine cannot send for now does not cost the container its grace.
            self.stopping = self.stopping.could_not_send(boottime() + (LOOK_SECONDS if name == KILL else 0.0))
        else:
            self.log_line(f"the engine does not send {name}: {refusal.message}")
            self.stopping = self.stopping.kill_now(boottime())

    def _signalled(self, number: int) -> Delivery:
        """Send a signal without the engine, and return what became of the signal."""
        try:
            return self.capture.signal(number)
        except OSError as error:
            self.log.warning("a record cannot be looked at", error=str(error))
            return Delivery.NOT_SENT

    def _alive(self) -> bool:
        self._look_at = float("inf") if self.stopping is None else boottime() + LOOK_SECONDS
        try:
            if self.capture.is_running:
                return True
            container = self.engine.inspect(self.container_id)
        except (EngineDown, EngineRefuses, OSError) as error:
            self.log.warning("container not inspected; looking again", error=str(error))
            self._look_at = boottime() + LOOK_SECONDS
            return True
        if self.engine_lost_container:
            return container is not None and container.alive
        # A container that the engine is about to start is not alive yet, and has not ended either.
        return container is not None and not container.ended

    def _is_running(self) -> bool:
        """Whether the main process runs although the engine says that the container ended. Asks until it is known."""
        while True:
            try:
                return self.capture.is_running
            except OSError as error:
                self.log.warning("a record cannot be looked at; trying again", error=str(error))
            # A stop command is carried out before the next look; everything else keeps its turn.
            kept = []
            until = boottime() + UNREADABLE_SECONDS
            while (left_seconds := until - boottime()) > 0:
                received = self.receive(left_seconds)
                if isinstance(received, StopCommand):
                    self.request_stop(received.stop)
                elif received is not None:
                    kept.append(received)
            self._deferred.extend(kept)

    # -- its end

    def finish_after_run(self, died: Died | None) -> None:
        """Finish an execution whose container ran: find its final state, and commit it."""
        container = self._look(died)
        command_status, exit_code = (
            self.capture.revoke(),
            container.exit_code if container and container.ended else None,
        )
        if command_status is CommandStatus.NEVER_RAN:
            self.finish_as(not_begun(container.exit_code if container else None, self.stopping))
            return
        if command_status is CommandStatus.UNKNOWN:
            self.finish_as(record_deleted(exit_code))
            return
        witnessed = died is not None and died.heard_since <= self.watched_since
        event_code = died.exit_code if died else None
        # For a container that somebody restarted the engine reports exit code 0.
        exit_code = container.exit_code if container and container.ended else event_code
        missing = self.capture.drain(ContainerEnd(_end_time(container, died), witnessed, exit_code))
        self.reached(Step.DRAINED)
        self._commit_end(self._final_state(container, exit_code), missing)

    def _final_state(self, container: Container | None, exit_code: int | None) -> FinalState:
        witness = self.capture.trailer()
        final_state = self._final_state_at_end(container, exit_code, witness)
        error = format_error(witness, container, final_state.outcome.exit_code, self.directory / "log")
        if error and final_state.state is State.FAILED:
            # Asked only now, as the kernel may have an emulator for a foreign image.
            digest = self.context.store.execution(self.execution.id).result().image_digest
            return foreign_image(final_state, error, architectures(self.engine, digest))
        return final_state

    def _final_state_at_end(
        self, container: Container | None, exit_code: int | None, witness: Trailer | None
    ) -> FinalState:
        if witness is not None:
            # The trailer of PID 1 says how the command ended, and outweighs what the engine saw or made up.
            return ended_by_itself(
                witness,
                container,
                self.spec,
                self.stopping,
                timeout=self.timeout,
                engine_restarted=witness.exit_code in DOUBTFUL_CODES and self._engine_restarted(),
            )
        no_more_room = self.capture.name == RecorderCapture.name and exit_code == CANNOT_STORE_CODE
        if no_more_room:
            exit_code = 128 + SIGKILL
        final_state = ended(
            exit_code,
            container,
            self.spec,
            self.stopping,
            timeout=self.timeout,
            engine_restarted=exit_code in DOUBTFUL_CODES and self._engine_restarted(),
        )
        return cut_off(final_state) if no_more_room else final_state

    def _look(self, died: Died | None) -> Container | None:
        """Inspect the ended container, several times if the engine hangs: a recovery would cost the log a gap."""
        for _ in range(MOST_LOOKS - 1):
            try:
                return self.engine.inspect(self.container_id)
            except (EngineDown, EngineRefuses) as error:
                self.log.warning("container not inspected; asking again", error=str(error))
                self.receive(1.0)
        try:
            return self.engine.inspect(self.container_id)
        except EngineRefuses:
            if died is None and self.capture.trailer() is None:
                raise
            # The end is known without the engine.
            return None

    def finish_as(self, final_state: FinalState, end: ContainerEnd | None = None) -> None:
        """Finish with a known final state an execution that did not run, or whose end nobody saw."""
        missing = self.capture.drain(end)
        self.reached(Step.DRAINED)
        self._commit_end(final_state, missing if end else "")

    def _commit_end(self, final_state: FinalState, missing: str) -> None:
        """Seal the record, write fastlane's last lines, commit the outcome and remove the container, in this order."""
        trailer = self.capture.seal(final_state.outcome.exit_code, final_state.facts())
        self.context.logs.set_aside(self.execution.id)
        self.reached(Step.SEALED)
        if missing:
            self.log_line(missing)
        self.log_line(_end_line(final_state.state, final_state.outcome))
        totals = (*(trailer.totals if trailer else ()), *self.context.logs.seal_system(self.execution.id))
        self.context.store.finish(
            self.execution.id,
            state=final_state.state,
            outcome=final_state.outcome,
            logs=totals,
            log_bytes=self.context.logs.room(self.execution.id),
            start_time=final_state.start_time,
            exit_time=final_state.exit_time,
            first_byte_time=self.capture.first_byte_time,
            seal_time=datetime.fromtimestamp(trailer.time_ns / 1e9, UTC) if trailer else utc_now(),
        ).result()
        self.reached(Step.FINISHED)
        outcome = final_state.outcome
        self.log.info(
            "execution ended",
            state=final_state.state.name,
            reason=outcome.reason.name,
            exit_code=outcome.exit_code,
            complete=not missing,
        )
        self.remove()
        self.reached(Step.REMOVED)

    def requeue(self) -> Execution:
        """Requeue the execution, with the size of its log so far. Return the requeued execution."""
        logs, log_bytes = self.context.logs.close_system(self.execution.id)
        return self.context.store.requeue(self.execution.id, logs=logs, log_bytes=log_bytes).result()

    def abandon_log(self, why: str) -> AbandonedLog:
        """End the log of an execution that could not be finished, with a gap of unknown size for lost output.

        If the record was sealed before, by the recorder or by a server, the end in the record stands.
        """
        trailer = self.capture.trailer()
        end = self._certain_end(trailer) if trailer else None
        if self.fenced and trailer is None:
            self.capture.resume(None)
            self.capture.drain(ContainerEnd(None, witnessed=False))
        trailer = self.capture.seal(None, {})
        self.context.logs.set_aside(self.execution.id)
        self.log_line(f"{why}; {_end_line(end.state, end.outcome)}" if end else why)
        totals = (*(trailer.totals if trailer else ()), *self.context.logs.seal_system(self.execution.id))
        return AbandonedLog(totals, self.context.logs.room(self.execution.id), end)

    def _certain_end(self, trailer: Trailer) -> CertainEnd:
        stop = self.execution.stop
        stopping = Stopping.begin(stop, "", boottime()) if stop else None
        final_state = final_state_of(trailer) or ended_by_itself(
            trailer, None, self.spec, stopping, timeout=self.timeout, engine_restarted=False
        )
        start_time = self.execution.times.start_time or final_state.start_time
        return CertainEnd(
            final_state.state, final_state.outcome, start_time, final_state.exit_time, self.capture.first_byte_time
        )

    def remove(self) -> None:
        """Remove the container, if there is one. A later sweep of the host removes what is left."""
        if not self.container_id:
            return
        try:
            self.engine.remove(self.container_id, force=True)
        except (EngineDown, EngineRefuses) as error:
            self.log.warning("container not removed", container_id=self.container_id, error=str(error))

    def _engine_restarted(self) -> bool:
        """Whether the engine has another epoch than the one that the start was sent to. Raises EngineDown."""
        epoch = self.engine.epoch()
        return bool(epoch and self.engine_epoch) and epoch != self.engine_epoch


def abandon(context: RunnerContext, execution_id: str, why: str, *, remove: bool = True) -> AbandonedLog:
    """End the log of an execution that is given up, and remove its container; see Runner."""
    # As it is on disk: the row names the capture, and shows whether the execution ended before.
    assignment = context.store.assignment(execution_id).result()
    if assignment.execution.state.final:
        return AbandonedLog()
    lifecycle = Lifecycle(context, assignment, Mailbox())
    if not remove:
        lifecycle.container_id = ""
    try:
        abandoned = lifecycle.abandon_log(why)
        lifecycle.remove()
        return abandoned
    except (ServerStopping, ExecutionNotFound):
        raise
    except Exception as error:
        # The defect may be in the code that ends a log, too. The known totals are returned, so that the log is pruned
        # in its time.
        lifecycle.log.error("the log of an execution is not ended", exc_info=error)
        logs = context.logs
        return AbandonedLog(logs.system_totals(execution_id), logs.room(execution_id))
    finally:
        lifecycle.capture.detach()


def _end_line(state: State, outcome: Outcome) -> str:
    return f"{state.name.lower().replace('_', ' ')}: {outcome.detail or 'exited with 0'}"


def _end_time(container: Container | None, died: Died | None) -> datetime | None:
    if container is not None:
        return container.end_time
    return datetime.fromtimestamp(died.time_ns / 1e9, UTC) if died else None
