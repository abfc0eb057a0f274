"""`fastlane schedule`: jobs with a schedule, their ticks, pause and resume."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import STATES, TIME, answers, talks_to_server
from fastlane_grpc.cli.arguments.selection import OPEN_STATES
from fastlane_grpc.cli.connection import connected, job_id
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import Column, as_line, cut, moment, show, time_of, until
from fastlane_grpc.cli.display.terminal import write
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.text.sanitize import printable
from fastlane_grpc.v1 import fastlane_pb2 as pb

_COUNT = click.option(
    "-n",
    "--limit",
    "count",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    metavar="NUMBER",
    help="Maximum number of ticks.",
)


@click.group()
def schedule() -> None:
    """Show, pause and resume the schedules of jobs.

    \b
      fastlane schedule ls                             list jobs with a schedule
      fastlane schedule next JOB                       show the next ticks of a job
      fastlane schedule preview '0 3 * * mon'          show when a schedule would run
    """


@schedule.command(short_help="List the jobs with a schedule.")
@click.option("--task", "task_id", default="", metavar="NAME", help="Only of this task.")
@answers
@talks_to_server
@click.pass_obj
def ls(environ: Mapping[str, str], /, *, task_id: str, form: str, address: str) -> int:
    """List the jobs with a schedule that is not over.

    \b
    Example:
      fastlane schedule ls --task backup
    """
    now = datetime.now(UTC)
    columns = [
        Column("JOB", lambda job: job.id),
        Column("TASK", lambda job: job.task_id),
        Column("STATE", lambda job: "paused" if job.schedule.paused else state_name(job.state)),
        Column("NEXT", lambda job: _next(job, now)),
        Column("RUNS", lambda job: str(job.schedule.runs)),
        Column("SKIPPED", lambda job: str(job.schedule.skipped_ticks)),
        Column("SCHEDULE", lambda job: cut(_expression(job.spec.cron))),
    ]
    with connected(address) as client:
        states = [STATES[name] for name in OPEN_STATES]
        found = client.jobs(task_id=task_id, states=states, with_spec=True)
        scheduled = (job for job in found if job.HasField("schedule"))
        show(scheduled, columns, form=form, nothing="no jobs with a schedule", environ=environ)
    return 0


@schedule.command(name="next", short_help="Show the next ticks of a job.")
@click.argument("id", metavar="JOB")
@_COUNT
@answers
@talks_to_server
def next_(*, id: str, count: int, form: str, address: str) -> int:  # noqa: A002
    """Show the next ticks of a job's schedule, and the schedule in words. For an expression see `preview`.

    \b
    Example:
      fastlane schedule next 01980f3e-8b1c-7d43-9a51-0242ac120002
    """
    if _is_expression(id):
        raise click.UsageError(f"{id!r} is not the id of a job; for an expression use `fastlane schedule preview`")
    with connected(address) as client:
        cron = _cron_of(client, id)
        _show_preview(client.preview_schedule(cron, count), _zone(cron.time_zone), form)
    return 0


@schedule.command(short_help="Show the ticks of an expression.")
@click.argument("expression")
@click.option("--time-zone", default="", metavar="NAME", help="Its time zone, as Europe/Berlin.  [default: UTC]")
@click.option("--from", "from_time", type=TIME, help="Show ticks after this time.  [default: now]")
@_COUNT
@answers
@talks_to_server
def preview(*, expression: str, time_zone: str, from_time: datetime | None, count: int, form: str, address: str) -> int:
    """Show when a schedule would run, in words and times, without a job. EXPRESSION is five fields or @daily and the
    like.

    \b
    Examples:
      fastlane schedule preview '0 3 * * mon'
      fastlane schedule preview -n 10 --time-zone Europe/Berlin '30 2 * * mon-fri'
    """
    with connected(address) as client:
        found = client.preview_schedule(api.Cron(expression, time_zone), count, from_time)
        _show_preview(found, _zone(time_zone), form)
    return 0


def _show_preview(found: pb.PreviewScheduleResponse, zone: tzinfo | None, form: str) -> None:
    if form == "json":
        write(1, as_line(found))
        return
    now = datetime.now(UTC)
    lines = [printable(found.description), *(moment(_time(time), now, zone) for time in found.times)]
    write(1, "".join(f"{line}\n" for line in lines).encode())


@schedule.command(short_help="Stop the ticks of schedules.")
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@answers
@talks_to_server
def pause(*, ids: Sequence[str], form: str, address: str) -> int:
    """Stop the ticks of schedules, until `fastlane schedule resume`. Running executions continue.

    \b
    Example:
      fastlane schedule pause 01980f3e-8b1c-7d43-9a51-0242ac120002
    """
    with connected(address) as client:
        for text in ids:
            _tell(client.pause_schedule(job_id(client, text)), form)
    return 0


@schedule.command(short_help="Continue paused schedules.")
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@answers
@talks_to_server
def resume(*, ids: Sequence[str], form: str, address: str) -> int:
    """Continue paused schedules with their next tick. Ticks during the pause are not made up for.

    \b
    Example:
      fastlane schedule resume 01980f3e-8b1c-7d43-9a51-0242ac120002
    """
    with connected(address) as client:
        for text in ids:
            _tell(client.resume_schedule(job_id(client, text)), form)
    return 0


def _tell(job: pb.Job, form: str) -> None:
    if form == "json":
        write(1, as_line(job))
        return
    now = datetime.now(UTC)
    state = "paused" if job.schedule.paused else f"next tick {_next(job, now)}"
    write(1, f"job {job.id}: {state}\n".encode())


def _next(job: pb.Job, now: datetime) -> str:
    if job.schedule.paused or not job.schedule.next_times:
        return "-"
    time = _time(job.schedule.next_times[0])
    return f"{until(time, now)} ({time.astimezone(_zone(job.spec.cron.time_zone)):%a %H:%M})"


def _zone(name: str | tzinfo) -> tzinfo | None:
    """Return the time zone of a schedule, in which its ticks are shown. None, for that of this machine, if this machine
    does not know the zone."""
    if isinstance(name, tzinfo):
        return name
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _time(time: Any) -> datetime:
    found: datetime = time.ToDatetime(UTC)
    return found


def _expression(cron: pb.Cron) -> str:
    return f"{cron.expression} {cron.time_zone}".strip()


def _is_expression(text: str) -> bool:
    return " " in text.strip() or text.startswith("@")


def _cron_of(client: api.Client, text: str) -> api.Cron:
    job = client.job(job_id(client, text))
    if not job.spec.HasField("cron"):
        raise Failure(f"job {job.id} has no schedule")
    cron = job.spec.cron
    return api.Cron(
        cron.expression,
        cron.time_zone,
        begin_time=time_of(cron, "begin_time"),
        end_time=time_of(cron, "end_time"),
        max_runs=max(cron.max_runs - job.schedule.runs, 0),
    )
