"""Counts of what happens to executions: claims, starts, ends, and how long each phase took."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from fastlane_grpc.counts import PHASE_SECONDS, Histogram
from fastlane_grpc.model import Execution, Reason, Source, State
from fastlane_grpc.store.database import Connection

PHASES = ("queued", "pulling", "starting", "running")
CAUSES = ("enqueue", "tick", "retry")


class ExecutionCounts:
    """Counts of committed changes of executions since the store was opened. Lives on the loop."""

    def __init__(self) -> None:
        self.claims = self.requeues = 0
        # By the cause of the execution: one of CAUSES.
        self.starts: Counter[str] = Counter()
        self.ends: Counter[tuple[State, Reason]] = Counter()
        # From due to claimed, to the image being there, to started, to the end of the main process. Each claim has the
        # first one; executions that started have the others.
        self.phases = {phase: Histogram(PHASE_SECONDS) for phase in PHASES}
        # Of executions that ended.
        self.log_bytes: Counter[Source] = Counter()
        self.missing_log_bytes: Counter[Source] = Counter()
        # The executions that are claimed, and whether they have started.
        self._claimed: dict[str, bool] = {}

    def load(self, db: Connection) -> None:
        """Read which executions an earlier server has claimed: these are not counted as claims again."""
        rows = db.execute(
            f"""
            SELECT execution_id, start_time IS NOT NULL FROM executions INDEXED BY executions_state
            WHERE state IN ({State.PREPARING}, {State.RUNNING}, {State.STOPPING})
            """
        ).fetchall()
        self._claimed = {execution_id: bool(started) for execution_id, started in rows}

    def on_commit(self, executions: Iterable[Execution]) -> None:
        """Count changes of executions, in their order. A change that is no event of these counts is announced, too."""
        for execution in executions:
            state = execution.state
            if state <= State.QUEUED:
                if self._claimed.pop(execution.id, None) is not None:
                    self.requeues += 1
            elif not state.final:
                self._under_way(execution)
            elif execution.times.prune_time is None:
                self._ended(execution)

    def _under_way(self, execution: Execution) -> None:
        started = self._claimed.get(execution.id)
        if started is None:
            self.claims += 1
            self._observe("queued", execution.times.due_time, execution.times.claim_time)
        self._claimed[execution.id] = started or self._counted_start(execution)

    def _counted_start(self, execution: Execution) -> bool:
        """Count the start of an execution that was not counted as started. Return whether it has started."""
        times = execution.times
        if times.start_time is None:
            return False
        self.starts["retry" if execution.attempt > 1 else "tick" if execution.tick_time else "enqueue"] += 1
        self._observe("pulling", times.claim_time, times.pull_time)
        self._observe("starting", times.pull_time, times.start_time)
        return True

    def _ended(self, execution: Execution) -> None:
        times, outcome = execution.times, execution.outcome
        if not self._claimed.pop(execution.id, False):
            # One that a server recovers may have ended before its start was stored.
            self._counted_start(execution)
        self.ends[execution.state, outcome.reason if outcome else Reason.UNSPECIFIED] += 1
        if times.start_time:
            self._observe("running", times.start_time, times.exit_time or times.end_time)
        for log in execution.logs:
            self.log_bytes[log.source] += log.bytes
            self.missing_log_bytes[log.source] += log.missing_bytes

    def _observe(self, phase: str, begin: datetime | None, end: datetime | None) -> None:
        if begin and end:
            # The wall clock may have been set back.
            self.phases[phase].observe(max((end - begin).total_seconds(), 0.0))
