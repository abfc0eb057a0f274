"""The circuit breaker of a host: after several failed starts in a row the host gets no executions for a while, and then
one as a trial."""

from datetime import datetime

FAILURES = 5
OPEN_SECONDS = 60.0


class Circuit:
    """Counts failed starts in a row. `now` is a monotonic time in seconds.

    Open: no execution may start. Half-open: one may start, as a trial. A start that succeeds closes the circuit; a
    start that fails opens a half-open one again."""

    def __init__(self, *, failures: int = FAILURES, open_seconds: float = OPEN_SECONDS) -> None:
        self.open_seconds = open_seconds
        # Why the last start failed, and when; kept when the circuit is closed.
        self.error = ""
        self.error_time: datetime | None = None
        self._most_failures = failures
        self._failures = 0
        # When the circuit becomes half-open; None: it is closed.
        self._trial_time: float | None = None
        # The execution that is tried.
        self._trial = ""

    @property
    def closed(self) -> bool:
        return self._trial_time is None

    def allowed(self, free_slots: int, now: float) -> int:
        """Return how many executions may start, of as many as there are slots for."""
        if self._trial_time is None:
            return free_slots
        return min(free_slots, 1) if now >= self._trial_time and not self._trial else 0

    def starting(self, execution_id: str) -> None:
        """Note that an execution was claimed: the trial of a half-open circuit."""
        if self._trial_time is not None and not self._trial:
            self._trial = execution_id

    def failed(self, why: str, time: datetime, now: float) -> bool:
        """Note a start that failed at `time`. Return whether that opened the circuit."""
        self._failures += 1
        self.error, self.error_time = why, time
        half_open = self._trial_time is not None and now >= self._trial_time
        if half_open or (self._trial_time is None and self._failures >= self._most_failures):
            self._trial_time, self._trial = now + self.open_seconds, ""
            return True
        return False

    def ended(self, execution_id: str) -> None:
        """Note the end of an execution. A trial that neither started nor failed to proves nothing: another follows."""
        if execution_id == self._trial:
            self._trial = ""

    def close(self) -> bool:
        """Close the circuit, as a start succeeded or a caller says so. Return whether it was open."""
        was_open = self._trial_time is not None
        self._failures, self._trial_time, self._trial = 0, None, ""
        return was_open
