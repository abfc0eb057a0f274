"""`fastlane task`: limit, pause and resume a task, and say whom to tell about its jobs."""

from datetime import timedelta
from typing import Any

import click

from fastlane_grpc.cli.arguments.options import MAX_RUNNING, RATE, answers, notifies, talks_to_server
from fastlane_grpc.cli.arguments.policies import notifications_of
from fastlane_grpc.cli.commands.lists import limits_text
from fastlane_grpc.cli.connection import connected
from fastlane_grpc.cli.display.tables import as_line
from fastlane_grpc.cli.display.terminal import write
from fastlane_grpc.v1 import fastlane_pb2 as pb


@click.group()
def task() -> None:
    """Limit, pause and resume a task, or say whom to notify of its jobs. `fastlane tasks` lists tasks and limits.

    \b
    Examples:
      fastlane task limit send-mail --max-running 5 --rate 100/1m
      fastlane task pause send-mail
      fastlane task resume send-mail
      fastlane task notify send-mail --notify-mail ops@example.org
    """


@task.command(short_help="Limit running executions and starts of a task.")
@click.argument("name", metavar="TASK")
@click.option(
    "--max-running", type=MAX_RUNNING, metavar="NUMBER|off", help="Maximum number of executions that run at a time."
)
@click.option(
    "--rate",
    type=RATE,
    metavar="NUMBER/DURATION|off",
    help="Maximum number of starts within a time of 1s to 1d, as 100/1m.",
)
@answers
@talks_to_server
def limit(
    *, name: str, max_running: int | None, rate: tuple[int, timedelta | None] | None, form: str, address: str
) -> int:
    """Limit how many executions of a task run at a time, and how many start within a time. What is not given stays as
    it is. Running executions are not stopped. A task without jobs can be limited in advance.

    \b
    Examples:
      fastlane task limit send-mail --max-running 5
      fastlane task limit send-mail --rate 100/1m
      fastlane task limit send-mail --max-running off --rate off
    """
    if max_running is None and rate is None:
        raise click.UsageError("set --max-running, --rate or both")
    starts, window = rate or (None, None)
    with connected(address) as client:
        _show(client.update_task(name, max_running=max_running, max_starts=starts, rate_window=window), form)
    return 0


@task.command()
@click.argument("name", metavar="TASK")
@answers
@talks_to_server
def pause(*, name: str, form: str, address: str) -> int:
    """Start no more executions of a task. Running ones continue, and jobs are still enqueued.

    \b
    Example:
      fastlane task pause send-mail
    """
    with connected(address) as client:
        _show(client.update_task(name, paused=True), form)
    return 0


@task.command()
@click.argument("name", metavar="TASK")
@answers
@talks_to_server
def resume(*, name: str, form: str, address: str) -> int:
    """Start executions of a paused task again.

    \b
    Example:
      fastlane task resume send-mail
    """
    with connected(address) as client:
        _show(client.update_task(name, paused=False), form)
    return 0


@task.command(short_help="Say whom to notify of the ends of its jobs.")
@click.argument("name", metavar="TASK")
@click.option("--off", is_flag=True, help="Tell nobody; the settings of the server apply again.")
@notifies
@answers
@talks_to_server
def notify(*, name: str, off: bool, form: str, address: str, **options: Any) -> int:
    """Say whom to tell about the ends of the task's jobs that do not say so themselves. Replaces what was said before.

    \b
    Examples:
      fastlane task notify send-mail --notify-mail ops@example.org --notify-on failed --notify-on timed-out
      fastlane task notify send-mail --off
    """
    notifications = notifications_of(options)
    if off == bool(notifications):
        raise click.UsageError("set --notify-url, --notify-mail or both, or --off")
    with connected(address) as client:
        _show(client.update_task(name, notifications=notifications), form)
    return 0


def _show(summary: pb.TaskSummary, form: str) -> None:
    # A mistyped name would otherwise go unnoticed: limits may be set before the first job.
    without_jobs = "" if summary.jobs else " (the task has no jobs)"
    line = f"task {summary.id}: {limits_text(summary) or 'no limits'}{without_jobs}\n"
    write(1, as_line(summary) if form == "json" else line.encode())
