"""A job's output on its way to stdout and stderr: bytes pass as they are, and where some are missing it is said."""

import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter

from fastlane_grpc import client as api
from fastlane_grpc.cli.display.heartbeat import Heartbeat
from fastlane_grpc.cli.display.tables import span, until
from fastlane_grpc.cli.display.terminal import CannotWrite, LiveLine, begin_line, is_colourful, obeys, say, write
from fastlane_grpc.cli.display.waiting_notice import WaitingNotice
from fastlane_grpc.cli.errors import NO_EXIT_STATUS, Failure, cause
from fastlane_grpc.text.sanitize import printable
from fastlane_grpc.v1 import fastlane_pb2

# A shorter absence of the server is not worth a word.
_AWAY_SECONDS = 1.0
_BEFORE_ITS_START = {fastlane_pb2.STATE_SCHEDULED, fastlane_pb2.STATE_QUEUED, fastlane_pb2.STATE_PREPARING}
# How the server's line about the start of a pull begins.
_PULLING = b"pulling "
_NOT_FINAL = _BEFORE_ITS_START | {fastlane_pb2.STATE_RUNNING, fastlane_pb2.STATE_STOPPING}


class Display:
    """The display of a log on stdout and stderr. Nothing is buffered here.

    fastlane's own lines are shown on a terminal, or if `verbose`. On a terminal, the reports before the start of the
    container share one line, which is cleared at the start: it waits, the image is pulled.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        verbose: bool,
        quiet: bool,
        timestamps: bool = False,
        only: Sequence[fastlane_pb2.Source.ValueType] = (),
        waiting_after_seconds: float = 10.0,
        heartbeat: timedelta | None = None,
        reports_pull: bool = False,
    ) -> None:
        """`heartbeat`: say so each time that nothing was printed for that long. `reports_pull`: where fastlane's own
        lines are not shown, report the start of a pull all the same, unless `quiet`: it may take minutes."""
        self.system = (sys.stderr.isatty() or verbose) and not quiet
        self._reports_pull = reports_pull and not (self.system or quiet)
        self._pull_told = False
        own_lines = [api.SYSTEM] if self.system or self._reports_pull else []
        self.sources: Sequence[fastlane_pb2.Source.ValueType] = only or [api.STDOUT, api.STDERR, *own_lines]
        self._quiet = quiet
        self._dim = is_colourful(2, environ)
        self._bytes_of: Callable[[api.Output], bytes] = _Stamps().stamped if timestamps else attrgetter("data")
        self._own_lines = _OwnLines()
        self._live = LiveLine() if self.system and not (verbose or timestamps or only) and obeys(2, environ) else None
        self._began = False
        # Whether the container may have started.
        self._started = False
        self._state: int = fastlane_pb2.STATE_UNSPECIFIED
        self._waiting = None if quiet or self._live else WaitingNotice(waiting_after_seconds)
        # What is followed, as "job 4711".
        self.followed = ""
        self._within_own_line = False
        # How the execution before the one that is followed now ended.
        self._ended: api.End | None = None
        # The last of fastlane's own lines that was written to stay.
        self._last_line = ""
        # Whether a line of ours said how the execution ended: the next attempt is then announced without it.
        self._end_told = False
        self._waiting_text = ""
        self._heartbeat = Heartbeat(heartbeat.total_seconds(), self._sign_of_life) if heartbeat else None

    def output(self, pieces: Iterable[api.Output]) -> None:
        if self._reports_pull:
            pieces = self._without_own_lines(pieces)
        if self._heartbeat:
            self._heartbeat.reset()
        for source, run_of_one in groupby(pieces, lambda piece: piece.source):
            data = b"".join(map(self._bytes_of_line if source == api.SYSTEM else self._bytes_of, run_of_one))
            newest = data.rstrip(b"\n").rpartition(b"\n")[2].decode(errors="replace") if source == api.SYSTEM else ""
            if newest and self._live and not self._began:
                self._live.show(f"fastlane: {newest}")
                continue
            finished = data.endswith(b"\n")
            if source == api.SYSTEM and self._dim:
                data = b"\x1b[2m" + data + b"\x1b[22m"
            self._began = True
            self._started = self._started or source != api.SYSTEM
            self._last_line = newest or self._last_line
            self.clear()
            if source == api.SYSTEM and not self._within_own_line:
                begin_line()
            write(1 if source == api.STDOUT else 2, data)
            self._within_own_line = source == api.SYSTEM and not finished

    def _without_own_lines(self, pieces: Iterable[api.Output]) -> Iterable[api.Output]:
        """Return what the container printed, and report the start of a pull."""
        shown = []
        for piece in pieces:
            if piece.source != api.SYSTEM:
                shown.append(piece)
            elif piece.data.startswith(_PULLING) and self._state in _BEFORE_ITS_START and not self._pull_told:
                self._pull_told = True
                self.say(printable(piece.data.partition(b"\n")[0].decode(errors="replace")))
        return shown

    def gap(self, gap: api.Gap) -> None:
        if gap.source != api.SYSTEM or not self._reports_pull:
            self.say(_gap_text(gap))

    def _bytes_of_line(self, piece: api.Output) -> bytes:
        return self._bytes_of(self._own_lines.printable(piece))

    @property
    def runs_on(self) -> bool:
        """Whether the execution is known not to be over."""
        return self._state in _NOT_FINAL

    def state(self, change: api.StateChange) -> None:
        self._state = change.state
        self._waiting_text = waiting_text(change.waiting) if change.waiting and change.waiting.detail else ""
        self._started = self._started or change.state == fastlane_pb2.STATE_RUNNING
        self._tell_of_waiting(change)
        if change.state not in _BEFORE_ITS_START:
            self._began = True
            self.clear()
        elif self._live and not self._began and change.waiting and change.waiting.detail:
            self._live.show(f"fastlane: waiting: {waiting_text(change.waiting)}")

    def _tell_of_waiting(self, change: api.StateChange) -> None:
        if self._waiting is None:
            return
        if change.waiting is None or not change.waiting.detail:
            self._waiting.cancel()
        else:
            # Not how many are before it: that changes all the time.
            reason = (change.waiting.reason, change.waiting.detail)
            self._waiting.wait(reason, f"{self.followed} waits: {waiting_text(change.waiting)}")

    def begin(self, start: api.ExecutionStart) -> None:
        """Announce a further attempt, or a further run, of the job."""
        execution, ended = start.execution, self._ended
        end_told, self._end_told = self._end_told, False
        self._began, self._state, self._ended, self._last_line = False, execution.state, None, ""
        self._pull_told = False
        if ended is None or self._quiet:
            return
        when = f" {in_time(execution.waiting)}" if execution.HasField("waiting") else ""
        if execution.attempt > 1:
            reason = "" if end_told else f": {_end_text(ended)}"
            self.say(f"attempt {execution.attempt} of {start.max_attempts}{when}{reason}")
        else:
            self.say(f"run {execution.run} of {self.followed}{when}: execution {execution.id}")

    def end(self, end: api.End) -> None:
        """Show why the execution ended, unless the exit code or fastlane's own lines show it already."""
        self.clear()
        self._ended = end
        if end.exit_status == 0 or end.outcome is None or self._tells(end.outcome.detail):
            return
        # Nothing else would tell why there is no output.
        if self._quiet and self._started and end.exit_status != NO_EXIT_STATUS:
            return
        if end.outcome.reason != fastlane_pb2.REASON_EXIT_CODE:
            say(end.outcome.detail or f"the execution ended: {state_name(end.state)}")
            self._end_told = True

    def _tells(self, detail: str) -> bool:
        """Return whether the last of fastlane's own lines has this detail. Executions that ended while queued have no
        such line."""
        return bool(self._last_line) and printable(detail).strip() in self._last_line

    def say(self, text: str) -> None:
        self.clear()
        say(text)

    def close(self) -> None:
        """Let no notice of a wait come any more, nor a heartbeat."""
        if self._waiting:
            self._waiting.cancel()
        if self._heartbeat:
            self._heartbeat.close()

    def _sign_of_life(self, quiet: timedelta) -> str:
        if self._waiting_text:
            return f"{self.followed} waits: {self._waiting_text}"
        silence = f"no output for {span(quiet)}"
        return f"{self.followed} is {state_name(self._state)}; {silence}" if self._state else silence

    def clear(self) -> None:
        """Clear the live line, if there is one."""
        if self._live:
            self._live.clear()


class _OwnLines:
    """Filter that makes fastlane's own lines printable: an earlier server may have written text from callers or
    registries.

    A server writes a line at a time, so that of a piece only the last byte ends a line. A piece may be cut within a
    character.
    """

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def printable(self, piece: api.Output) -> api.Output:
        text = self._decoder.decode(piece.data)
        line, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
        return piece._replace(data=f"{printable(line)}{end}".encode())


class _Stamps:
    """Filter that prefixes each line with the time at which it was received, as RFC 3339 with nanoseconds."""

    def __init__(self) -> None:
        # Sources in the middle of a line, whose next piece goes on with it.
        self._within: set[int] = set()

    def stamped(self, piece: api.Output) -> bytes:
        if not piece.data:
            return b""
        seconds, nanoseconds = divmod(piece.time_ns, 1_000_000_000)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z ".encode()
        first = b"" if piece.source in self._within else stamp
        if piece.data.endswith(b"\n"):
            self._within.discard(piece.source)
        else:
            self._within.add(piece.source)
        return first + piece.data[:-1].replace(b"\n", b"\n" + stamp) + piece.data[-1:]


def follow(tail: api.Tail, display: Display) -> int:
    """Show what comes of an execution or of a job, to its end. Return the exit status that the end tells."""
    try:
        return _follow(tail, display)
    except CannotWrite as error:
        raise Failure(f"{error.message}; the job continues" if display.runs_on else error.message) from error
    except api.Error:
        display.clear()
        raise
    finally:
        display.close()


def _follow(tail: api.Tail, display: Display) -> int:
    # What is to be said when it goes on; empty while it does.
    back = ""
    of_job = False
    with tail:
        for events in tail.batches():
            display.output(event for event in events if isinstance(event, api.Output))
            for event in events:
                match event:
                    case api.Gap():
                        display.gap(event)
                    case api.StateChange():
                        display.state(event)
                    case api.Disconnected(error=api.Exhausted()) if not back:
                        # Nothing that mends itself in a moment, and no fault that a reader would look for.
                        back = "capacity is available"
                        display.say(
                            f"the server is at a limit ({cause(event.error)}); retrying until there is capacity"
                        )
                    case api.Disconnected() if event.seconds >= _AWAY_SECONDS and not back:
                        back = "the server is back"
                        display.say(f"the server does not respond ({cause(event.error)}); retrying until it does")
                    case api.Reconnected() if back:
                        display.say(f"{back} after {event.seconds:.0f} s; resuming where the output was interrupted")
                        back = ""
                    case api.ExecutionStart():
                        display.begin(event)
                        of_job = True
                    case api.End():
                        display.end(event)
                        if not of_job:
                            return event.exit_status
                    case api.JobEnd():
                        return event.exit_status
    raise api.Error("the output ended without an outcome")


def _end_text(end: api.End) -> str:
    """Return how an attempt ended, in short, for the announcement of the next attempt."""
    if end.outcome is not None and end.outcome.reason == fastlane_pb2.REASON_EXIT_CODE:
        return f"exit code {end.outcome.exit_code}"
    return (end.outcome and end.outcome.detail) or state_name(end.state)


def state_name(state: int) -> str:
    for name, number in fastlane_pb2.State.items():
        if number == state:
            return name.removeprefix("STATE_").replace("_", " ").lower()
    return f"state {state}"


def waiting_text(waiting: fastlane_pb2.Waiting) -> str:
    """Return why an execution waits, and how many go first or until when."""
    if waiting.HasField("due_time") and waiting.reason != fastlane_pb2.WAIT_REASON_TASK_RATE:
        due_time = waiting.due_time.ToDatetime(UTC)
        return f"starts {until(due_time, datetime.now(UTC))}, at {due_time.astimezone():%Y-%m-%d %H:%M:%S %z}"
    return f"{waiting.detail}, {waiting.ahead} ahead of it" if waiting.ahead else waiting.detail


def in_time(waiting: fastlane_pb2.Waiting) -> str:
    """Return when an execution starts: "in 8 s"; empty if that is not known."""
    if not waiting.HasField("due_time"):
        return ""
    seconds = (waiting.due_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
    if seconds < 1:
        return "now"
    return f"in {seconds:.0f} s" if seconds < 120 else f"at {waiting.due_time.ToDatetime(UTC).astimezone():%H:%M:%S %z}"


def _gap_text(gap: api.Gap) -> str:
    name = "stderr" if gap.source == api.STDERR else "fastlane's own lines" if gap.source == api.SYSTEM else "stdout"
    what = (
        f"bytes of {name} may be missing here"
        if gap.missing_bytes is None
        else f"{gap.missing_bytes} bytes of {name} are missing here"
    )
    if gap.cause == fastlane_pb2.LogGap.CAUSE_SIZE_LIMIT:
        return f"{what}: the log exceeded its size limit"
    if gap.cause == fastlane_pb2.LogGap.CAUSE_PRUNED:
        return f"{what}: the log was pruned"
    if gap.cause == fastlane_pb2.LogGap.CAUSE_ENGINE:
        return f"{what}: lost before fastlane stored them"
    if gap.cause == fastlane_pb2.LogGap.CAUSE_STORE:
        return f"{what}: the server's disk was full, or is damaged"
    return what
