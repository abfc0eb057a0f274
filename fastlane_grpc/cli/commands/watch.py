"""`fastlane watch`: jobs as they are now, and every change."""

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from shutil import get_terminal_size
from typing import Any

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import PAIR, answers, talks_to_server
from fastlane_grpc.cli.connection import connected, job_id
from fastlane_grpc.cli.display.job_note import note_of
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import as_line, painted, span, time_of
from fastlane_grpc.cli.display.terminal import Screen, is_colourful, obeys, say, write
from fastlane_grpc.cli.errors import cause
from fastlane_grpc.text.sanitize import printable
from fastlane_grpc.v1 import fastlane_pb2 as pb

_REDRAW_SECONDS = 0.25
_TICK_SECONDS = 1.0
_AWAY_SECONDS = 1.0
# Jobs whose last line is remembered in a pipe.
_LINES_REMEMBERED = 10_000
# Jobs that have ended and are still shown.
_ENDED_SHOWN = 10
# Where there is less room, ids are shortened to the part that tells jobs apart that were not made in the same moment.
_NARROW_COLUMNS = 100
_SHORT_ID = 13
# In the order of the table.
_ORDER = {
    state: place
    for place, state in enumerate(
        [pb.STATE_STOPPING, pb.STATE_RUNNING, pb.STATE_PREPARING, pb.STATE_QUEUED, pb.STATE_SCHEDULED]
    )
}


@click.command()
@click.argument("ids", metavar="[JOB]...", nargs=-1)
@click.option("--task", "task_id", default="", metavar="NAME", help="Only jobs of this task.")
@click.option(
    "-l", "--label", "labels", type=PAIR, multiple=True, help="Only jobs with this label; with several, all must match."
)
@click.option("--cursor", default="", help="Resume after this cursor, which each line of `-o json` has.")
@answers
@talks_to_server
@click.pass_obj
def watch(
    environ: Mapping[str, str],
    /,
    *,
    ids: Sequence[str],
    task_id: str,
    labels: Sequence[tuple[str, str]],
    cursor: str,
    form: str,
    address: str,
) -> int:
    """Show the jobs that have not ended, and every change. With ids, the command ends when all these jobs have ended.

    \b
    Examples:
      fastlane watch --task send-mail
      fastlane watch -o json | jq -r 'select(.job.outcome) | .job.id'
      fastlane watch 01980f3e-8b1c-7d43-9a51-0242ac120002 && echo over

    A terminal shows a table of what is at work, what waits, and what ended last. A pipe gets a line for each change.
    After an interruption the watch resumes by itself, also over a restart of the server. Ctrl-C does not affect jobs.
    """
    with connected(address) as client:
        # Fails where nobody is there: the watch itself would wait.
        job_ids = [client.job(job_id(client, text)).id for text in ids]
        if not ids:
            client.server_info()
        watched = client.watch(task_id, job_ids, dict(labels), cursor)
        awaited = set(job_ids)
        if form == "json":
            _follow(watched, _print_json, awaited)
        elif obeys(1, environ):
            _Table(environ).follow(watched, awaited)
        else:
            _follow(watched, _Lines().show, awaited)
    return 0


# ------------------------------------------------------------------------------------------------------------- pipes


def _follow(watched: api.Watch, show: Callable[[Any, str], None], awaited: set[str]) -> None:
    """Show each event; return when all awaited jobs have ended, if there are any."""
    limited, away = bool(awaited), False
    for event in watched:
        show(event, watched.cursor)
        match event:
            case api.Disconnected() if event.seconds >= _AWAY_SECONDS and not away:
                away = True
                say(f"the server does not respond ({cause(event.error)}); retrying until it does")
            case api.Reconnected() if away:
                away = False
                say(f"the server is back after {event.seconds:.0f} s; resuming the watch")
            case api.ChangesMissed():
                say("some changes may have been missed; all jobs that have not ended follow")
        _note_end(event, awaited)
        if limited and not awaited:
            return


def _note_end(event: Any, awaited: set[str]) -> None:
    match event:
        case api.JobChanged(job) if job.HasField("outcome"):
            awaited.discard(job.id)
        case api.JobPruned(gone_id):
            awaited.discard(gone_id)


def _print_json(event: Any, cursor: str) -> None:
    match event:
        case api.JobChanged(job):
            write(1, as_line(pb.WatchJobsResponse(cursor=cursor, job=job)))
        case api.JobPruned(gone_id):
            write(1, as_line(pb.WatchJobsResponse(cursor=cursor, pruned_job_id=gone_id)))
        case api.CaughtUp():
            write(1, as_line(pb.WatchJobsResponse(cursor=cursor, caught_up=pb.WatchJobsResponse.CaughtUp())))


class _Lines:
    """A line for each change. A change that a line does not show, as that of a container's id, gets none."""

    def __init__(self) -> None:
        # What was shown last of the jobs that were told last.
        self._shown: dict[str, str] = {}

    def show(self, event: Any, _: str) -> None:
        match event:
            case api.JobChanged(job):
                note = note_of(job, job.execution)
                line = f"{job.id}  {job.task_id}  {state_name(job.state)}" + (f"  {note}" if note else "")
                if self._shown.pop(job.id, "") != line:
                    self._write(line)
                self._shown[job.id] = line
                if len(self._shown) > _LINES_REMEMBERED:
                    del self._shown[next(iter(self._shown))]
            case api.JobPruned(gone_id):
                self._shown.pop(gone_id, None)
                self._write(f"{gone_id}  pruned")

    def _write(self, line: str) -> None:
        write(1, f"{datetime.now().astimezone():%H:%M:%S}  {printable(line)}\n".encode())


# ---------------------------------------------------------------------------------------------------------- terminals


class Jobs:
    """The jobs of a watch: those that have not ended, and the last ones that have."""

    def __init__(self) -> None:
        self._open: dict[str, pb.Job] = {}
        self._ended: deque[pb.Job] = deque(maxlen=_ENDED_SHOWN)
        self._ended_count = 0
        # Jobs that a watch which began anew has not told yet; None: it goes on from where it was.
        self._untold: set[str] | None = None
        self._caught_up = False

    def take(self, event: Any) -> None:
        match event:
            case api.JobChanged(job):
                self._take(job)
            case api.JobPruned(gone_id):
                self._open.pop(gone_id, None)
                self._forget_ended(gone_id)
            case api.ChangesMissed():
                self._untold, self._caught_up = set(self._open), False
            case api.CaughtUp():
                # Those ended, or were pruned, while nobody looked.
                for gone_id in self._untold or ():
                    self._open.pop(gone_id, None)
                self._untold, self._caught_up = None, True

    def _take(self, job: pb.Job) -> None:
        if self._untold is not None:
            self._untold.discard(job.id)
        known = self._forget_ended(job.id)
        if not job.HasField("outcome"):
            self._open[job.id] = job
            return
        self._open.pop(job.id, None)
        self._ended_count += self._caught_up and not known
        self._ended.append(job)

    def _forget_ended(self, job_id: str) -> bool:
        found = [job for job in self._ended if job.id == job_id]
        for job in found:
            self._ended.remove(job)
        return bool(found)

    def lines(self, columns: int, rows: int, now: datetime, *, colour: bool) -> list[str]:
        """Return what a screen of this size shows, a line for each of its rows at most."""
        room = max(rows - 2, 1)
        ended = list(self._ended)[-min(len(self._ended), room // 2) :] if room > 1 else []
        shown = nsmallest(room - len(ended), self._open.values(), key=_place)
        hidden = len(self._open) - len(shown)
        if hidden:
            shown.pop()
        table = _aligned([*shown, *ended], columns, now, colour=colour)
        more = [f"and {hidden + 1} more"[: columns - 1]] if hidden else []
        return [self._counts()[: columns - 1], *table[: len(shown) + 1], *more, *table[len(shown) + 1 :]][:rows]

    def _counts(self) -> str:
        counts = Counter(job.state for job in self._open.values())
        parts = [f"{counts[state]} {state_name(state)}" for state in _ORDER if counts[state]]
        return f"{', '.join(parts) or 'no open jobs'}; {self._ended_count} ended"


def _place(job: pb.Job) -> tuple[int, int, str]:
    """The place of an open job in the table: what is at work, then what waits, the sooner the earlier."""
    return _ORDER.get(job.state, len(_ORDER)), job.execution.waiting.due_time.ToNanoseconds(), job.id


def _aligned(jobs: Sequence[pb.Job], columns: int, now: datetime, *, colour: bool) -> list[str]:
    id_size = _SHORT_ID if columns < _NARROW_COLUMNS else None
    cells = [("JOB", "TASK", "STATE", "RAN", "NOTE")]
    for job in jobs:
        note = printable(note_of(job, job.execution))
        cells.append((job.id[:id_size], printable(job.task_id), state_name(job.state), _ran(job, now), note))
    # A long name of a task leaves room for what comes after it.
    widths = [min(max(len(row[place]) for row in cells), columns // 3 if place == 1 else columns) for place in range(4)]
    lines = []
    for row in cells:
        fitted = [f"{cell[:width]:{width}}" for cell, width in zip(row, widths, strict=False)]
        line = "  ".join([*fitted, row[4]])[: max(columns - 1, 1)].rstrip()
        # Painted after it is cut: a colour takes no room.
        before, state = len("  ".join(fitted[:2])) + 2, row[2]
        if line[before : before + len(state)] == state:
            line = line[:before] + painted(state, state, colour=colour) + line[before + len(state) :]
        lines.append(line)
    return lines


def _ran(job: pb.Job, now: datetime) -> str:
    start = time_of(job.execution.times, "start_time")
    if start is None:
        return "-"
    end = time_of(job.execution.times, "exit_time") or time_of(job.execution.times, "end_time") or now
    return span(max(end - start, timedelta(0)))


class _Table:
    """A table on a terminal that is drawn over again and again."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._jobs = Jobs()
        self._colour = is_colourful(1, environ)
        self._events: queue.Queue[Any] = queue.Queue(1000)
        self._screen = Screen()
        self._status = ""

    def follow(self, watched: api.Watch, awaited: set[str]) -> None:
        threading.Thread(target=self._read, args=[watched], name="fastlane-watch", daemon=True).start()
        limited, drawn = bool(awaited), 0.0
        while True:
            for event in self._next_events():
                if isinstance(event, BaseException):
                    raise event
                self._jobs.take(event)
                self._take_connection(event)
                _note_end(event, awaited)
            over = limited and not awaited
            if over or time.monotonic() >= drawn + _REDRAW_SECONDS:
                self._draw()
                drawn = time.monotonic()
            if over:
                return

    def _read(self, watched: api.Watch) -> None:
        try:
            for event in watched:
                self._events.put(event)
        except BaseException as error:
            self._events.put(error)

    def _next_events(self) -> Iterable[Any]:
        """Yield what has come; wait for it no longer than the table stays true."""
        try:
            yield self._events.get(timeout=_TICK_SECONDS)
            deadline = time.monotonic() + _REDRAW_SECONDS
            while (left_seconds := deadline - time.monotonic()) > 0:
                yield self._events.get(timeout=left_seconds)
        except queue.Empty:
            pass

    def _take_connection(self, event: Any) -> None:
        match event:
            case api.Disconnected() if event.seconds >= _AWAY_SECONDS:
                self._status = f"the server does not respond ({cause(event.error)}); retrying"
            case api.Reconnected():
                self._status = ""

    def _draw(self) -> None:
        columns, rows = get_terminal_size()
        # The last row holds the cursor; one more may hold the status.
        lines = self._jobs.lines(columns, max(rows - 2, 3), datetime.now(UTC), colour=self._colour)
        if self._status:
            lines.append(printable(self._status)[: columns - 1])
        self._screen.draw(lines)
