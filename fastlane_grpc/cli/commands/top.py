"""`fastlane top`: what running executions use."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from shutil import get_terminal_size

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import DURATION, answers, talks_to_server
from fastlane_grpc.cli.connection import connected
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import Column, as_line, show, size, span, table, time_of
from fastlane_grpc.cli.display.terminal import Screen, obeys, write
from fastlane_grpc.cli.errors import cause
from fastlane_grpc.text.sanitize import printable
from fastlane_grpc.v1 import fastlane_pb2 as pb

# What a server samples of one page.
_MOST = 100
# Between the two samples from which the use of CPUs is known.
_FIRST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Row:
    """A running execution, and the CPUs that it used since the sample before; None: that is not known."""

    execution: pb.Execution
    cpus: float | None

    @property
    def usage(self) -> pb.Usage:
        return self.execution.usage


@click.command()
@click.option("--task", "task_id", default="", metavar="NAME", help="Only executions of this task.")
@click.option("--host", default="", metavar="NAME", help="Only executions on this host.")
@click.option("--interval", type=DURATION, default="2s", show_default=True, help="Time between two looks.")
@answers
@talks_to_server
@click.pass_obj
def top(
    environ: Mapping[str, str],
    /,
    *,
    task_id: str,
    host: str,
    interval: timedelta,
    form: str,
    address: str,
) -> int:
    """Show the running executions with what they use, those that use most of the CPUs first.

    \b
    Examples:
      fastlane top --task build
      fastlane top | head -5
      fastlane top -o json | jq .usage.memory_bytes

    A terminal shows a table until Ctrl-C. A pipe and `-o json` get one look. 100% is one CPU. Memory is without files
    that are cached and not in use. The newest 100 executions are shown. Hosts are asked only while somebody looks.
    """
    with connected(address) as client:

        def look() -> Sequence[pb.Execution]:
            states = [pb.STATE_RUNNING, pb.STATE_STOPPING]
            found = client.executions(task_id=task_id, host=host, states=states, with_usage=True, page_size=_MOST)
            return list(islice(found, _MOST))

        if form == "json":
            for execution in look():
                write(1, as_line(execution))
        elif obeys(1, environ):
            _live(look, interval.total_seconds())
        else:
            before = look()
            if before:
                time.sleep(_FIRST_SECONDS)
            show(_rows(before, look()), _columns(), form=form, nothing="no running executions", environ=environ)
    return 0


def _live(look: Callable[[], Sequence[pb.Execution]], seconds: float) -> None:
    screen, before, rows = Screen(), look(), None
    status, pause = "", min(seconds, _FIRST_SECONDS)
    while True:
        screen.draw(_lines(rows if rows is not None else _rows([], before), status))
        time.sleep(pause)
        try:
            now = look()
        except api.ServerUnavailable as error:
            status = f"the server does not respond ({cause(error)}); retrying"
            continue
        rows, before = _rows(before, now), now
        status, pause = "", seconds


def _lines(rows: Sequence[_Row], status: str) -> Sequence[str]:
    columns, height = get_terminal_size()
    # The last row holds the cursor; one more may hold the status, or the number of rows that are not shown.
    room = max(height - 4, 1)
    lines = [f"{len(rows)} running", *table(rows[:room], _columns(), room=max(columns - 1, 1))]
    if more := status or (f"and {len(rows) - room} more" if len(rows) > room else ""):
        lines.append(printable(more)[: columns - 1])
    return lines


def _rows(before: Sequence[pb.Execution], now: Sequence[pb.Execution]) -> Sequence[_Row]:
    """Return the executions of a look, those first that used most of the CPUs since the look before."""
    usages = {execution.id: execution.usage for execution in before}
    rows = [_Row(execution, _cpus(usages.get(execution.id), execution.usage)) for execution in now]
    return sorted(rows, key=lambda row: (-(row.cpus or 0.0), row.execution.id))


def _cpus(before: pb.Usage | None, now: pb.Usage) -> float | None:
    if before is None or not before.HasField("time") or not now.HasField("time"):
        return None
    passed_ns = now.time.ToNanoseconds() - before.time.ToNanoseconds()
    used_ns = now.cpu_time.ToNanoseconds() - before.cpu_time.ToNanoseconds()
    return max(used_ns / passed_ns, 0.0) if passed_ns > 0 else None


def _columns() -> Sequence[Column]:
    now = datetime.now(UTC)
    return [
        Column("EXECUTION", lambda row: row.execution.id),
        Column("TASK", lambda row: row.execution.task_id),
        Column("CPU", lambda row: "-" if row.cpus is None else f"{row.cpus:.0%}"),
        Column("MEMORY", lambda row: _size(row.usage, "memory_bytes")),
        Column("READ", lambda row: _size(row.usage, "read_bytes")),
        Column("WRITTEN", lambda row: _size(row.usage, "written_bytes")),
        Column("RAN", lambda row: _ran(row.execution, now)),
        Column("HOST", lambda row: row.execution.host),
        Column("STATE", lambda row: state_name(row.execution.state)),
    ]


def _size(usage: pb.Usage, field: str) -> str:
    return size(getattr(usage, field)) if usage.HasField(field) else "-"  # type: ignore[arg-type]


def _ran(execution: pb.Execution, now: datetime) -> str:
    start = time_of(execution.times, "start_time")
    return "-" if start is None else span(max(now - start, timedelta(0)))
