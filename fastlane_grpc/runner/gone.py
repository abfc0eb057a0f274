"""What an earlier server left on a host that is not configured any more: its operator gave it up, and its engine is not asked."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from fastlane_grpc.errors import ServerStopping
from fastlane_grpc.logs import Logs
from fastlane_grpc.model import Assignment, CaptureMode, Reason, State
from fastlane_grpc.record import Trailer
from fastlane_grpc.runner.box import Fate
from fastlane_grpc.runner.captures import Captures
from fastlane_grpc.runner.clock import boottime
from fastlane_grpc.runner.host import Host
from fastlane_grpc.runner.orders import HostDown, Orders, Remains
from fastlane_grpc.runner.passage import Passage, Step, Surroundings, abandon
from fastlane_grpc.runner.stopping import Stopping
from fastlane_grpc.runner.verdict import Verdict, ended_by_itself, lost, stopped_before_start, verdict_of
from fastlane_grpc.store import Store


class GoneRunner:
    """Implements Runner for all hosts that are not there: what never ran goes back to the queue, all else ends.

    As LOST, unless its record holds its end already; one whose recorder is at work on this machine is killed, so that what is told to be
    over is over.
    """

    def __init__(
        self,
        store: Store,
        logs: Logs,
        data_dir: Path,
        *,
        default_timeout: timedelta,
        default_pids: int,
        step: Callable[[Step, str], None] = lambda step, execution_id: None,
    ) -> None:
        self._store = store
        self._logs = logs
        self._data_dir = data_dir
        self._default_timeout = default_timeout
        self._default_pids = default_pids
        self._step = step

    def run(self, assignment: Assignment, orders: Orders) -> None:
        passage = Passage(self._around(assignment.execution.host), assignment, orders)
        try:
            _give_up(passage)
        except ServerStopping as error:
            raise HostDown("the server stops; the next one takes it up") from error
        finally:
            passage.capture.leave()

    def abandon(self, execution_id: str, why: str) -> Remains:
        return abandon(self._around(self._store.execution(execution_id).result().host), execution_id, why, remove=False)

    def _around(self, name: str) -> Surroundings:
        # A host that nobody listens to: of its engine not even the address is known.
        instance = self._store.instance
        host = Host(name, "", instance=instance, captures=Captures(CaptureMode.ATTACH, self._data_dir, instance=instance, host=name))
        return Surroundings(self._store, self._logs, host, self._default_timeout, self._default_pids, 0.0, 0.0, self._step)


def _give_up(passage: Passage) -> None:
    host = passage.around.host.name
    # Nothing is asked of its engine, a removal neither.
    passage.container_id = ""
    trailer = passage.capture.trailer() if passage.fenced else None
    if not passage.fenced or (trailer is None and _revoked(passage)):
        passage.log.warning("back to the queue: its host is not configured any more, and it has not begun")
        _requeue(passage)
    elif trailer is not None:
        passage.log.warning("its host is not configured any more; its record tells how it ended")
        passage.conclude(_verdict(passage, trailer))
    else:
        passage.log.error("lost: its host is not configured any more")
        passage.capture.resume(None)
        passage.conclude(
            lost(Reason.HOST_GONE, f"host {host!r}, which it was started on, is not configured any more: nobody knows how it ended there")
        )


def _revoked(passage: Passage) -> bool:
    """Whether it is certain that its command has not run, and never will, so that it is as before its start."""
    return passage.capture.revoke() is Fate.NEVER_RAN and passage.around.store.revoked(passage.execution.id).result() is not None


def _requeue(passage: Passage) -> None:
    execution = passage.around.store.requeue(passage.execution.id).result()
    if execution.state is State.STOPPING and execution.stop:
        passage.conclude(stopped_before_start(Stopping.begin(execution.stop, "", boottime())))


def _verdict(passage: Passage, trailer: Trailer) -> Verdict:
    stop = passage.execution.stop
    stopping = Stopping.begin(stop, "", boottime()) if stop else None
    return verdict_of(trailer) or ended_by_itself(trailer, None, passage.spec, stopping, timeout=passage.timeout, engine_restarted=False)
