"""`fastlane stop` and `fastlane prune`: what ends jobs, and what deletes them."""

from datetime import timedelta

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.connection import connected, either_id
from fastlane_grpc.cli.failure import Failure
from fastlane_grpc.cli.options import AGE, GRACE, answers, talks_to_server
from fastlane_grpc.cli.output import state_name
from fastlane_grpc.cli.tables import as_line, size
from fastlane_grpc.cli.terminal import write
from fastlane_grpc.v1 import fastlane_pb2 as pb


@click.command()
@click.argument("id", metavar="JOB|EXECUTION")
@click.option("--grace", type=GRACE, help="Time from the signal to the kill, as 5s; 0s kills at once.  [default: the job's own]")
@click.option("--note", default="", help="Why, for the record.")
@answers
@talks_to_server
def stop(*, id: str, grace: timedelta | None, note: str, form: str, address: str) -> int:  # noqa: A002
    """Stop a job: its signal, then, after its grace, a kill. One that waits is taken out of the queue. Does not wait for the end.

    \b
    Example:
      fastlane stop --grace 2s --note "wrong mailing list" 01980f3e-8b1c-7d43-9a51-0242ac120002
    """
    with connected(address) as client:
        stopped = _stopped(client, id, note, grace)
    noun = "job" if isinstance(stopped, pb.Job) else "execution"
    write(1, as_line(stopped) if form == "json" else f"{noun} {stopped.id}: {state_name(stopped.state)}\n".encode())
    return 0


def _stopped(client: api.Client, text: str, note: str, grace: timedelta | None) -> pb.Job | pb.Execution:
    """As it is now."""
    named = either_id(client, text)
    if named is not None and named.execution_id:
        return client.stop_execution(named.execution_id, note, grace)
    try:
        return client.stop(named.job_id if named else text, note, grace)
    except api.NotFound:
        try:
            return client.stop_execution(text, note, grace)
        except api.NotFound:
            raise Failure(f"there is no job and no execution {text!r}") from None


@click.command()
@click.option("--older-than", type=AGE, required=True, help="What ended longer ago, as 30d or 12h; 0s: all that is over.")
@click.option("--logs-only", is_flag=True, help="Delete their output; keep the jobs.")
@click.option("--task", default="", metavar="NAME", help="Of this task alone.")
@click.option("--dry-run", is_flag=True, help="Count, and delete nothing.")
@answers
@talks_to_server
def prune(*, older_than: timedelta, logs_only: bool, task: str, dry_run: bool, form: str, address: str) -> int:
    """Delete jobs that ended long ago, with their output. What is not over is never deleted. Asks nothing.

    \b
    Examples:
      fastlane prune --older-than 30d --dry-run
      fastlane prune --older-than 7d --logs-only --task send-mail
    """
    with connected(address) as client:
        pruned = client.prune(older_than, logs_only=logs_only, task_id=task, validate_only=dry_run)
    write(1, as_line(pruned) if form == "json" else f"{_pruned_text(pruned, dry_run=dry_run)}\n".encode())
    return 0


def _pruned_text(pruned: pb.PruneResponse, *, dry_run: bool) -> str:
    what = f"{_counted(pruned.jobs, 'job')} and {_counted(pruned.logs, 'log')}, {size(pruned.bytes)}"
    if dry_run:
        return f"would delete {'at least ' if pruned.more else ''}{what}"
    return f"deleted {what}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
