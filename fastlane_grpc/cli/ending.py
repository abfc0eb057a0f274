"""`fastlane stop` and `fastlane prune`: what ends jobs, and what deletes them."""

import sys
from datetime import timedelta

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.connection import connected, either_id
from fastlane_grpc.cli.failure import WRONG_USE, Failure
from fastlane_grpc.cli.options import AGE, GRACE, answers, talks_to_server
from fastlane_grpc.cli.output import state_name
from fastlane_grpc.cli.tables import as_line, size
from fastlane_grpc.cli.terminal import write
from fastlane_grpc.v1 import fastlane_pb2 as pb

# With a lesser age prune deletes all that is over.
_EVERYTHING = timedelta(minutes=1)


@click.command()
@click.argument("id", metavar="JOB|EXECUTION")
@click.option(
    "--grace", type=GRACE, help="Time from the signal to the kill, as 5s; 0s kills at once.  [default: the job's own]"
)
@click.option("--note", default="", help="Why, for the record.")
@answers
@talks_to_server
def stop(*, id: str, grace: timedelta | None, note: str, form: str, address: str) -> int:  # noqa: A002
    """Stop a job: its signal, then, after its grace, a kill. One that waits is taken out of the queue. Does not wait
    for the end.

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
@click.option(
    "--older-than", type=AGE, required=True, help="What ended longer ago, as 30d or 12h; 0s: all that is over."
)
@click.option("--logs-only", is_flag=True, help="Delete their output; keep the jobs.")
@click.option("--task", default="", metavar="NAME", help="Of this task alone.")
@click.option("--dry-run", is_flag=True, help="Count, and delete nothing.")
@click.option("--all", "everything", is_flag=True, help="Do not ask, whatever would be deleted.")
@answers
@talks_to_server
def prune(
    *, older_than: timedelta, logs_only: bool, task: str, dry_run: bool, everything: bool, form: str, address: str
) -> int:
    """Delete jobs that ended long ago, with their output. What is not over is never deleted.

    All that is over, of all tasks (`--older-than 0s`, or any age below a minute), is deleted only with --all, or if you
    say yes to the question that is asked on a terminal.

    \b
    Examples:
      fastlane prune --older-than 30d --dry-run
      fastlane prune --older-than 7d --logs-only --task send-mail
    """
    with connected(address) as client:
        if older_than < _EVERYTHING and not (task or dry_run or everything):
            _confirm(client.prune(older_than, logs_only=logs_only, validate_only=True))
        pruned = client.prune(older_than, logs_only=logs_only, task_id=task, validate_only=dry_run)
    write(1, as_line(pruned) if form == "json" else f"{_pruned_text(pruned, dry_run=dry_run)}\n".encode())
    return 0


def _confirm(counted: pb.PruneResponse) -> None:
    """Ask on a terminal whether everything is to be deleted. Raises Failure where the answer is not yes, or nobody can
    be asked."""
    what = _counted_text(counted)
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(
            f"this deletes all that is over ({what}); add --all if that is meant, or --task, or a greater age",
            WRONG_USE,
        )
    write(2, f"fastlane: this deletes all that is over: {what}. Delete it? [y/N] ".encode())
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failure("nothing was deleted")


def _pruned_text(pruned: pb.PruneResponse, *, dry_run: bool) -> str:
    return f"{'would delete' if dry_run else 'deleted'} {_counted_text(pruned)}"


def _counted_text(pruned: pb.PruneResponse) -> str:
    what = f"{_counted(pruned.jobs, 'job')} and {_counted(pruned.logs, 'log')}, {size(pruned.bytes)}"
    return f"at least {what}" if pruned.more else what


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
