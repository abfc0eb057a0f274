"""The runner on Docker: takes one execution from its claim, or from whatever is found of it, to its outcome."""

from collections.abc import Callable
from datetime import timedelta

from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Assignment, Reason, State
from fastlane_grpc.runner.adopt import adopt, sweep
from fastlane_grpc.runner.begin import begin
from fastlane_grpc.runner.capture import End
from fastlane_grpc.runner.clock import boottime
from fastlane_grpc.runner.host import Host
from fastlane_grpc.runner.orders import HostDown, Orders, Remains
from fastlane_grpc.runner.passage import Left, Passage, Step, Surroundings, abandon
from fastlane_grpc.runner.stopping import Stopping
from fastlane_grpc.runner.verdict import failed, lost, stopped_before_start
from fastlane_grpc.runner.wire import EngineDown, EngineRefuses
from fastlane_grpc.store import Store

# What an engine or a registry refuses for now is tried again for so long.
RETRY_SECONDS = 60.0
# A start that was sent to this life of the engine is answered within this time, or was never sent.
START_ANSWER_SECONDS = 10.0


class DockerRunner:
    """Implements Runner on one host. `step` is told of each step of each execution, right after it happened, on the execution's thread."""

    def __init__(
        self,
        store: Store,
        logs: Logs,
        host: Host,
        *,
        default_timeout: timedelta,
        default_pids: int,
        start_answer_seconds: float = START_ANSWER_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        step: Callable[[Step, str], None] = lambda step, execution_id: None,
    ) -> None:
        self._around = Surroundings(store, logs, host, default_timeout, default_pids, start_answer_seconds, retry_seconds, step)

    def run(self, assignment: Assignment, orders: Orders) -> None:
        passage = Passage(self._around, assignment, orders)
        with self._around.host.watching(assignment.execution.id, orders):
            try:
                self._run(passage)
            except (Left, ServerStopping) as error:
                raise HostDown("the server stops; the next one takes it up") from error
            finally:
                passage.capture.leave()

    def abandon(self, execution_id: str, why: str) -> Remains:
        return abandon(self._around, execution_id, why)

    def sweep(self) -> None:
        """Removes the containers of executions that are over. To be called when the host is up; raises HostDown."""
        try:
            sweep(self._around.store, self._around.host)
        except (EngineDown, EngineRefuses) as error:
            raise HostDown(str(error)) from error

    def _run(self, passage: Passage) -> None:
        passage.reached(Step.CLAIMED)
        try:
            if passage.fenced:
                adopt(passage)
            else:
                _say_how_long_it_waited(passage)
                begin(passage)
        except EngineDown as error:
            self._host_down(passage, error)
        except EngineRefuses as refusal:
            self._engine_failed(passage, refusal)

    def _engine_failed(self, passage: Passage, refusal: EngineRefuses) -> None:
        """The engine is there and fails at what no engine fails at. Trying again for ever would leave the execution unfinished."""
        detail = f"the engine fails: {refusal.message}"
        passage.log.error("the engine failed", status=refusal.status, error=refusal.message)
        if passage.fenced:
            passage.conclude(lost(Reason.CONTAINER_GONE, detail), End(None, witnessed=False))
        else:
            passage.conclude(failed(Reason.REFUSED_BY_ENGINE, detail))

    def _host_down(self, passage: Passage, error: EngineDown) -> None:
        host = self._around.host
        # Whoever looks for a place next must not take this host for one that is there.
        host.doubt()
        passage.log.warning("the engine does not answer", error=str(error), fenced=passage.fenced)
        if not passage.fenced:
            execution = self._around.store.requeue(passage.execution.id).result()
            if execution.state is State.STOPPING and execution.stop and not execution.starting:
                passage.conclude(stopped_before_start(Stopping.begin(execution.stop, "", boottime())))
                return
            if execution.state is State.QUEUED:
                passage.say(f"host {host.name} does not answer: back in the queue")
        raise HostDown(f"host {host.name!r}: {error}") from error


def _say_how_long_it_waited(passage: Passage) -> None:
    """If that was longer than a moment: for who reads the log later."""
    times = passage.execution.times
    waited = times.claim_time - times.due_time if times.claim_time else timedelta()
    if waited >= timedelta(seconds=1):
        passage.say(f"got a place after {waited.total_seconds():.1f} s")
