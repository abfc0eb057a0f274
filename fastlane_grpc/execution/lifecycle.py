"""The lifecycle of one execution from its start to its end, for new executions and recovered ones alike.

Each step has a name and is reported right after it happened. Whatever is killed at a step, the next server goes on from
what is on disk.
"""

from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from signal import SIGKILL

from fastlane_grpc.backend import BackendDown, BackendRefuses, CannotRun, Container, Handle, Interruption, NotRunning
from fastlane_grpc.capture.capture import Capture, ContainerEnd
from fastlane_grpc.capture.handoff import CommandStatus, Delivery
from fastlane_grpc.capture.recorder import CANNOT_STORE_CODE, RecorderCapture
from fastlane_grpc.clock import boottime
from fastlane_grpc.execution.architecture import architectures, foreign_image, format_error
from fastlane_grpc.execution.closing import Closing, RunnerContext, Step
from fastlane_grpc.execution.events import Died, EngineBack, EngineGone, Started
from fastlane_grpc.execution.final_state import (
    DOUBTFUL_CODES,
    FinalState,
    cut_off,
    ended,
    ended_by_itself,
    not_begun,
    record_deleted,
)
from fastlane_grpc.execution.host import Host
from fastlane_grpc.execution.outputs import collect
from fastlane_grpc.execution.stopping import KILL, Stopping, signal_number
from fastlane_grpc.inputs import InputFiles, archive_of
from fastlane_grpc.model import (
    Assignment,
    Outputs,
    Reason,
    State,
    Stdin,
    Stop,
    StopCause,
    Waiting,
    WaitReason,
    utc_now,
)
from fastlane_grpc.record import Trailer
from fastlane_grpc.runner import Command, Event, LeaveCommand, Mailbox, StopCommand
from fastlane_grpc.secrets import NamedSecrets

# Pause before the container is inspected for an end that the engine should have reported by now.
LOOK_SECONDS = 10.0
MOST_LOOKS = 4
# Pauses between two looks whether the output of an ended container has arrived; after the second time also whether it
# still may.
FIRST_DELIVERY_SECONDS, DELIVERY_LOOK_SECONDS = 0.02, 5.0
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


class LeftToNextServer(Exception):
    """The server stops and leaves the execution to the next server."""


class StopRequested(Exception):
    """A stop command came before there was a container to send a signal to."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.note)
        self.stop = stop


@dataclass(frozen=True, slots=True)
class HostContext(RunnerContext):
    """The values that all executions of a runner on one host share."""

    host: Host
    inputs: InputFiles
    secrets: NamedSecrets
    max_output_bytes: int
    start_answer_seconds: float
    retry_seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """The knowledge about a container that runs or ran, when the lifecycle begins to watch it.

    The container may run until `deadline` on CLOCK_BOOTTIME. `stopping` is the stop that was requested before.
    `backend_lost_container`: the backend says that the container ended, or knows no such container, while its main
    process runs. Then only the capture tells of the end.
    """

    start_time: datetime
    deadline: float
    stop_signal: str
    stopping: Stopping | None = None
    backend_lost_container: bool = False


class Lifecycle(Closing):
    """One execution: its state between claim and end, and the steps from its start on. Lives on one thread."""

    context: HostContext

    def __init__(self, context: HostContext, assignment: Assignment, mailbox: Mailbox) -> None:
        execution = assignment.execution
        self.directory = context.logs.path(execution.id)
        # For a new execution, `use_new_capture` replaces this once the image is known.
        capture = context.host.captures.for_existing(
            self.directory, execution, lambda line: context.logs.system(execution.id, line)
        )
        super().__init__(context, assignment, capture)
        self.assignment = assignment
        self.backend = context.host.backend
        self.mailbox = mailbox
        self._stop_signal = self.spec.stop_signal
        self._stopping: Stopping | None = None
        self._watched_since = 0.0
        self._deferred: deque[Command | Event] = deque()
        self._deadline = float("inf")
        self._look_at = float("inf")
        self._release_at, self._release_pause = 0.0, RELEASE_SECONDS
        self._backend_lost_container = False
        # Set for the end of an execution whose engine fails, so that it is not asked any more.
        self.gives_up_outputs = False

    @property
    def container(self) -> Handle:
        """The container of the attempt, which has one."""
        assert self._attempt.handle is not None
        return self._attempt.handle

    # -- the attempt

    def use_new_capture(self) -> None:
        """Choose the capture of an execution that is new or launched anew. Raises CannotRun."""
        captures = self.context.host.captures
        capture = captures.for_new(self.directory, self.execution.id, self.log_line)
        self._give_files(capture)
        self._attempt = self._attempt.with_capture(capture)

    def give_files_again(self) -> None:
        """Give the present capture what the command gets, after a break before its start. Raises CannotRun."""
        self._give_files(self.capture)

    def _give_files(self, capture: Capture) -> None:
        if self.spec.secret_envs:
            capture.use_secrets(partial(self.context.secrets.read, self.spec.secret_envs, self.execution.task_id))
        if self.spec.stdin:
            capture.use_stdin(self._content_of(self.spec.stdin))
        if self.spec.inputs:
            self._check_inputs()
            capture.files.use_inputs(partial(archive_of, self.spec.inputs, self.context.inputs.open))
        if self.spec.outputs:
            capture.files.use_outputs(self.spec.outputs, self.context.max_output_bytes)

    def _check_inputs(self) -> None:
        """Raise CannotRun if a content of the inputs is not there any more, or not whole."""
        for each in self.spec.inputs:
            try:
                size_bytes = self.context.inputs.path(each.sha256).stat().st_size
            except OSError as error:
                fault = error.strerror or str(error)
            else:
                fault = "" if size_bytes == each.size_bytes else "it is not whole"
            if fault:
                raise CannotRun(
                    Reason.INPUT_UNAVAILABLE,
                    f"the inputs of the job are not complete: the content of {each.path} cannot be read: {fault}",
                )

    def _content_of(self, stdin: Stdin) -> Path:
        try:
            return self.context.inputs.shared(stdin.sha256, stdin.size_bytes)
        except OSError as error:
            raise CannotRun(
                Reason.INPUT_UNAVAILABLE,
                f"the content of the job's standard input cannot be read: {error.strerror}",
            ) from error

    def use_container(self, handle: Handle | None) -> None:
        """Make a container this execution's, so that it is removed when the execution ends."""
        self._attempt = self._attempt.with_container(handle)

    def fence(self, *, image_digest: str, pull_time: datetime, container_time: datetime) -> bool:
        """Commit that a start of the container is about to be sent. False: it must not be sent."""
        handle = self.backend.before_start(self.container)
        fenced = self.context.store.starting(
            self.execution.id,
            container_id=handle.container_id,
            handle=handle.text,
            image_digest=image_digest,
            pull_time=pull_time,
            container_time=container_time,
        ).result()
        if fenced is not None:
            self._attempt = self._attempt.behind_fence(handle)
        return fenced is not None

    def unfence(self) -> bool:
        """Take back before the fence an execution whose command has not run and never will.

        The container is removed, as a start of it may still be on its way. False: the start was noted as answered
        already.
        """
        self.remove()
        execution = self.context.store.revoked(self.execution.id).result()
        if execution is None:
            return False
        self.capture.detach()
        self._attempt = self._attempt.before_fence(execution)
        return True

    def remove(self) -> None:
        """Remove the container, if there is one. A later sweep of the host removes what is left."""
        handle = self._attempt.handle
        if handle is None:
            return
        try:
            self.capture.files.discard_outputs()
        except OSError as error:
            self.log.warning("outputs that are kept are there twice", error=str(error))
        try:
            self.backend.remove(handle, force=True)
        except (BackendDown, BackendRefuses) as error:
            self.log.warning("container not removed", container_id=handle.container_id, error=str(error))

    def collect_outputs(self) -> Outputs | None:
        """Collect the outputs of the job from the container, if that was started. Raises BackendDown."""
        handle, paths = self._attempt.handle, self.spec.outputs
        if not paths or handle is None or not self._attempt.fenced or self.gives_up_outputs:
            return None
        file = self.context.logs.outputs_path(self.execution.id)
        outputs = collect(self.backend, self.capture.files, handle, paths, file, self.context.max_output_bytes)
        for path in outputs.missing:
            self.log_line(f"the container has no {path}, which was to be kept")
        if outputs.fault:
            self.log_line(f"no outputs are kept: {outputs.detail}")
        elif outputs.entries:
            self.log_line(f"kept {outputs.entries} files and directories, {outputs.size_bytes} bytes")
        return outputs

    # -- progress

    def report_no_room(self, detail: str) -> None:
        """Report that the record cannot be created for lack of room: once, however often that is tried again."""
        if self.mailbox.waiting:
            return
        self.log.warning("the record cannot be made; trying again", reason=detail)
        self.report_waiting(Waiting(WaitReason.DISK_FULL, detail, utc_now()))

    def report_room(self) -> None:
        """Report that the record could be created after all."""
        self.report_waiting(None)

    def report_waiting(self, waiting: Waiting | None) -> None:
        """Report what the execution waits for before it starts, None: nothing any more.

        Only the first detail of a wait goes into its log, as a detail may change often.
        """
        before, self.mailbox.waiting = self.mailbox.waiting, waiting
        if before and waiting:
            self.mailbox.waiting = replace(waiting, since_time=before.since_time)
        elif waiting:
            # If there is no room for this line, callers still see `waiting` on the execution.
            self.log_line(f"waiting: {waiting.detail}")
        elif before:
            self.log_line(f"goes on after {(utc_now() - before.since_time).total_seconds():.0f} s: {before.detail}")

    # -- waiting

    def receive(self, seconds: float) -> Command | Event | None:
        """Return the next command or event within the time.

        Raises LeftToNextServer, and BackendDown if the backend went away after `watch`.
        """
        received = self._deferred.popleft() if self._deferred else self.mailbox.get(min(seconds, LONGEST_WAIT_SECONDS))
        if isinstance(received, LeaveCommand):
            raise LeftToNextServer
        if isinstance(received, EngineGone) and received.time > self._watched_since:
            raise BackendDown("the engine went away")
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
        self._watched_since = boottime()

    # -- from its start on

    def run_to_end(self, run: Run) -> None:
        """Commit that the container runs or ran, and bring the execution to its end."""
        self._stop_signal = run.stop_signal
        self._stopping = run.stopping
        self._backend_lost_container = run.backend_lost_container
        self._deadline = run.deadline
        self._look_at = boottime() + self._look_pause_seconds()
        if self.execution.state is State.PREPARING:
            try:
                self.context.store.running(self.execution.id, start_time=run.start_time).result(STORE_SECONDS)
            except TimeoutError:
                # The store writes the start as soon as it can. The container's time runs meanwhile, and it may end.
                self.log.warning("a start is not on disk yet")
            self.log_line(f"started on host {self.context.host_name}, output captured by {self.capture.name}")
            self.log.info("execution runs", container_id=self.container.container_id)
        self.reached(Step.RUNNING)
        died = self._until_end()
        self.reached(Step.DIED)
        self._finish_after_run(died)

    def finish_after_run(self, stopping: Stopping | None) -> None:
        """Finish an execution whose container ran and ended while no server watched."""
        self._stopping = stopping
        self._finish_after_run(None)

    def _request_stop(self, stop: Stop) -> None:
        """Carry out a stop that is on disk, or one that came again with less grace."""
        if self._stopping:
            self._stopping = self._stopping.shortened(stop, boottime())
            return
        self._stopping = self.begin_stop(stop, self._stop_signal)

    def begin_stop(self, stop: Stop, stop_signal: str) -> Stopping:
        """Write into the log that the execution was told to stop, and return the schedule of the stop."""
        stopping = Stopping.begin(stop, stop_signal, boottime())
        self.log_line(f"told to stop {stopping.cause}")
        return stopping

    def resume_capture(self) -> None:
        """Resume the capture after a break.

        The engine does not attach to a paused container. Such a container prints nothing, and its capture is resumed
        when the container goes on.
        """
        self.watch()
        try:
            self.capture.resume(self.container.container_id)
        except BackendRefuses as refusal:
            self.log.info("output is not followed yet", refusal=str(refusal))

    def _until_end(self) -> Died | None:
        """Watch the time and carry out commands until the container ends. None: the engine did not report how."""
        while True:
            self._release_start_resources()
            received = self.receive(self._next_time() - boottime())
            # The event may be of an earlier container, whose start was refused and then carried out after all.
            if isinstance(received, Died) and received.container_id in {"", self.container.container_id}:
                if not self._is_running():
                    return received
                # The engine was killed and came back with a wrong state of the container. Its process and its output go
                # on.
                self.log.warning("the engine says that a container is over whose main process is there")
                self._backend_lost_container = True
            if self._backend_lost_container:
                self._look_at = min(self._look_at, boottime() + STILL_RUNNING_SECONDS)
            if isinstance(received, StopCommand):
                self._request_stop(received.stop)
            elif isinstance(received, Started) and not self.capture.following:
                self.resume_capture()
            elif isinstance(received, EngineBack):
                self._look_at = 0.0
            if boottime() >= self._deadline and not self._stopping:
                if self._only_delivers():
                    # The command ended in time.
                    self._deadline = float("inf")
                else:
                    self._time_out()
            self._send_what_is_due()
            if boottime() >= self._look_at and not self._alive():
                return None

    def _next_time(self) -> float:
        due = self._stopping.next_time if self._stopping else self._deadline
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
            self._request_stop(Stop(StopCause.TIMEOUT, utc_now(), grace))
            return
        # None: a caller requested a stop just now, and the command is on its way to this mailbox.
        if execution and execution.stop:
            self.log.info("execution timed out", grace_seconds=grace.total_seconds())
            self._request_stop(execution.stop)

    def _send_what_is_due(self) -> None:
        name = self._stopping.due(boottime()) if self._stopping else ""
        if not self._stopping or not name:
            return
        if self._only_delivers():
            # A kill would cut off what the job keeps.
            self._stopping = self._stopping.could_not_send(boottime())
            return
        if name == KILL:
            # First, as the engine carries out a kill only when a reader takes the container's output.
            self.capture.abandon_unwritten()
        # The first kill keeps all output. If that kill does not help, the next one is SIGKILL.
        number = self.capture.kill_signal if name == KILL and self._stopping.sent != KILL else name
        # First without the engine, which may hang: the timeout and later commands would wait for its answer.
        kernels_number = signal_number(number)
        delivery = self._signalled(kernels_number) if kernels_number else Delivery.NOT_SENT
        if delivery is Delivery.NOT_SENT:
            self._send_by_engine(name, number)
            return
        self._sent(name)
        if delivery is Delivery.PENDING:
            self._wake(number)

    def _only_delivers(self) -> bool:
        """Whether the command has ended, and what the job keeps is on its way from another machine."""
        return not self.capture.delivered and self.capture.trailer() is not None

    def _send_by_engine(self, name: str, number: str) -> None:
        assert self._stopping is not None
        try:
            self.backend.signal(self.container, number, grace_seconds=self._stopping.grace_seconds(boottime()))
        except BackendDown as error:
            # The engine may only hang. If it is gone, EngineGone follows.
            self.log.warning("a signal was not sent", signal=name, error=str(error))
            self._stopping = self._stopping.could_not_send(boottime())
        except BackendRefuses as refusal:
            self._not_sent(name, refusal)
        else:
            self._sent(name)

    def _wake(self, number: str) -> None:
        """Have the engine let a paused container go on, so that it takes its signal.

        The engine sends the signal a second time for that; the kernel merges both.
        """
        try:
            self.backend.signal(self.container, number, answer_seconds=WAKE_SECONDS)
        except (BackendDown, BackendRefuses) as error:
            self.log.warning("a container does not take its signal", signal=number, error=str(error))

    def _sent(self, name: str) -> None:
        assert self._stopping is not None
        self.log_line(f"sent {name}")
        self.log.info("signal sent", signal=name)
        self._stopping = self._stopping.did_send(name, boottime())
        if name == KILL:
            self._look_at = min(self._look_at, boottime() + LOOK_SECONDS)

    def _not_sent(self, name: str, refusal: BackendRefuses) -> None:
        assert self._stopping is not None
        self.log.info("a signal was refused", signal=name, refusal=str(refusal))
        if isinstance(refusal, NotRunning):
            # The container does not run any more: the event of its end is on its way.
            self._look_at = min(self._look_at, boottime() + LOOK_SECONDS)
            self._stopping = self._stopping.could_not_send(boottime() + LOOK_SECONDS)
        elif name == KILL or refusal.diagnosis.passes:
            # A signal that the engine cannot send for now does not cost the container its grace.
            self._stopping = self._stopping.could_not_send(boottime() + (LOOK_SECONDS if name == KILL else 0.0))
        else:
            self.log_line(f"the engine does not send {name}: {refusal}")
            self._stopping = self._stopping.kill_now(boottime())

    def _signalled(self, number: int) -> Delivery:
        """Send a signal without the engine, and return what became of the signal."""
        try:
            return self.capture.signal(number)
        except OSError as error:
            self.log.warning("a record cannot be looked at", error=str(error))
            return Delivery.NOT_SENT

    def _alive(self) -> bool:
        self._look_at = boottime() + self._look_pause_seconds()
        try:
            if self.capture.is_running:
                return True
            container = self.backend.inspect(self.container)
        except (BackendDown, BackendRefuses, OSError) as error:
            self.log.warning("container not inspected; looking again", error=str(error))
            self._look_at = boottime() + LOOK_SECONDS
            return True
        if self._backend_lost_container:
            return container is not None and container.alive
        # A container that the engine is about to start is not alive yet, and has not ended either.
        return container is not None and not container.ended

    def _look_pause_seconds(self) -> float:
        if self._backend_lost_container:
            return STILL_RUNNING_SECONDS
        return float("inf") if self._stopping is None else LOOK_SECONDS

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
                    self._request_stop(received.stop)
                elif received is not None:
                    kept.append(received)
            self._deferred.extend(kept)

    # -- its end

    def _finish_after_run(self, died: Died | None) -> None:
        """Finish an execution whose container ran: find its final state, and commit it."""
        ends = self.context.host.ends
        with ends.admitted():
            container = self._look(died)
            if self._finished_unrun(container, died):
                return
            if self.capture.delivered:
                self._finish_delivered(container, died)
                return
        # It may take hours, and only waits: it holds up no other end.
        self.wait_for_delivery()
        with ends.admitted():
            self._finish_delivered(container, died)

    def _finished_unrun(self, container: Container | None, died: Died | None) -> bool:
        """Finish an execution whose command did not run, or whose record was deleted. False: it is neither."""
        exit_code = container.exit_code if container and container.ended else None
        command_status = self.capture.revoke()
        if command_status is CommandStatus.NEVER_RAN:
            interruption = _interruption(container, died)
            self.finish_as(not_begun(exit_code, self._stopping, interruption, self.capture.unbegun or ""))
            return True
        if command_status is CommandStatus.UNKNOWN:
            self.finish_as(record_deleted(exit_code))
            return True
        return False

    def _finish_delivered(self, container: Container | None, died: Died | None) -> None:
        """Finish an execution of whose output nothing is on its way any more."""
        interruption = _interruption(container, died)
        witnessed = died is not None and died.heard_since <= self._watched_since
        event_code = died.exit_code if died else None
        # For a container that somebody restarted the engine reports exit code 0.
        exit_code = container.exit_code if container and container.ended else event_code
        if self.capture.unbegun is not None:
            self.finish_as(not_begun(exit_code, self._stopping, interruption, self.capture.unbegun))
            return
        missing = self.capture.drain(ContainerEnd(_end_time(container, died), witnessed, exit_code), self.wait)
        self.reached(Step.DRAINED)
        self._commit_end(self._final_state(container, exit_code, interruption), missing)

    def wait_for_delivery(self) -> None:
        """Wait while anything of the ended container is on its way from its node, if that takes hours.

        Raises BackendDown and LeftToNextServer.
        """
        pause, look_at = FIRST_DELIVERY_SECONDS, boottime() + DELIVERY_LOOK_SECONDS
        waits, kept = False, []
        while not self.capture.delivered:
            if (received := self.receive(pause)) is not None:
                kept.append(received)
            pause = min(2 * pause, 1.0)
            if boottime() < look_at:
                continue
            look_at = boottime() + DELIVERY_LOOK_SECONDS
            if not self._is_delivering():
                break
            if not waits:
                self.log_line("the container has ended; waiting for the rest of its output from its node")
            waits = True
        self._deferred.extend(kept)

    def wait(self, seconds: float) -> None:
        """Wait for the rest of the output, or until anything comes: after its end nothing else changes an execution.

        Raises BackendDown and LeftToNextServer.
        """
        self.receive(seconds)

    def _is_delivering(self) -> bool:
        try:
            container = self.backend.inspect(self.container)
        except (BackendDown, BackendRefuses) as error:
            # EngineGone follows if the backend is gone.
            self.log.warning("container not inspected; looking again", error=str(error))
            return True
        return container is not None and container.delivering

    def _final_state(
        self, container: Container | None, exit_code: int | None, interruption: Interruption | None
    ) -> FinalState:
        witness = self.capture.trailer()
        final_state = self._final_state_at_end(container, exit_code, witness, interruption)
        error = format_error(witness, container, final_state.outcome.exit_code, self.directory / "log")
        if error and final_state.state is State.FAILED:
            # Asked only now, as the kernel may have an emulator for a foreign image.
            digest = self.context.store.execution(self.execution.id).result().image_digest
            return foreign_image(final_state, error, architectures(self.backend, digest))
        return final_state

    def _final_state_at_end(
        self,
        container: Container | None,
        exit_code: int | None,
        witness: Trailer | None,
        interruption: Interruption | None,
    ) -> FinalState:
        if witness is not None:
            # The trailer of PID 1 says how the command ended, and outweighs what the engine saw or made up.
            return ended_by_itself(
                witness,
                container,
                self.spec,
                self._stopping,
                timeout=self.timeout,
                engine_restarted=witness.exit_code in DOUBTFUL_CODES and self._engine_restarted(),
                interruption=interruption,
            )
        no_more_room = self.capture.name == RecorderCapture.name and exit_code == CANNOT_STORE_CODE
        if no_more_room:
            exit_code = 128 + SIGKILL
        final_state = ended(
            exit_code,
            container,
            self.spec,
            self._stopping,
            timeout=self.timeout,
            engine_restarted=exit_code in DOUBTFUL_CODES and self._engine_restarted(),
            interruption=interruption,
        )
        return cut_off(final_state) if no_more_room else final_state

    def _look(self, died: Died | None) -> Container | None:
        """Inspect the ended container, several times if the engine hangs: a recovery would cost the log a gap."""
        for _ in range(MOST_LOOKS - 1):
            try:
                return self.backend.inspect(self.container)
            except (BackendDown, BackendRefuses) as error:
                self.log.warning("container not inspected; asking again", error=str(error))
                self.receive(1.0)
        try:
            return self.backend.inspect(self.container)
        except BackendRefuses:
            if died is None and self.capture.trailer() is None:
                raise
            # The end is known without the engine.
            return None

    def _engine_restarted(self) -> bool:
        """Whether the backend was certainly restarted since the start was sent. Raises BackendDown."""
        return bool(self.backend.restarted(self.container))


def _interruption(container: Container | None, died: Died | None) -> Interruption | None:
    # Of a container that is gone, the event of its end tells.
    told_by = container or died
    return told_by.interruption if told_by else None


def _end_time(container: Container | None, died: Died | None) -> datetime | None:
    if container is not None:
        return container.end_time
    return datetime.fromtimestamp(died.time_ns / 1e9, UTC) if died else None
