"""`fastlane prune`: delete jobs and logs that ended long ago."""

import sys
from datetime import timedelta

import click

from fastlane_grpc.cli.arguments.options import AGE, answers, talks_to_server
from fastlane_grpc.cli.connection import connected
from fastlane_grpc.cli.display.tables import as_line, size
from fastlane_grpc.cli.display.terminal import write
from fastlane_grpc.cli.errors import WRONG_USE, Failure
from fastlane_grpc.v1 import fastlane_pb2 as pb

# With a shorter age, prune deletes everything that is final.
_EVERYTHING = timedelta(minutes=1)


@click.command()
@click.option(
    "--older-than",
    type=AGE,
    required=True,
    help="Minimum time since the end, as 30d or 12h; 0s: everything that has ended.",
)
@click.option("--logs-only", is_flag=True, help="Delete only logs; keep the jobs.")
@click.option("--task", default="", metavar="NAME", help="Only jobs of this task.")
@click.option("--dry-run", is_flag=True, help="Count without deleting.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@answers
@talks_to_server
def prune(
    *, older_than: timedelta, logs_only: bool, task: str, dry_run: bool, yes: bool, form: str, address: str
) -> int:
    """Delete jobs that ended long ago, with their logs. Jobs that have not ended are never deleted.

    Deleting everything that has ended, of all tasks (--older-than below one minute), asks for confirmation on a
    terminal; elsewhere it needs --yes.

    \b
    Examples:
      fastlane prune --older-than 30d --dry-run
      fastlane prune --older-than 7d --logs-only --task send-mail
      fastlane prune --older-than 0s --yes
    """
    with connected(address) as client:
        if older_than < _EVERYTHING and not (task or dry_run or yes):
            _confirm(client.prune(older_than, logs_only=logs_only, validate_only=True))
        pruned = client.prune(older_than, logs_only=logs_only, task_id=task, validate_only=dry_run)
    write(1, as_line(pruned) if form == "json" else f"{_pruned_text(pruned, dry_run=dry_run)}\n".encode())
    return 0


def _confirm(counted: pb.PruneResponse) -> None:
    """Ask on a terminal whether to delete everything. Failure: the answer is not yes, or there is no terminal."""
    what = _counted_text(counted)
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(
            f"this deletes every job that has ended ({what}); "
            "confirm with --yes, or add --task or a longer --older-than",
            WRONG_USE,
        )
    write(2, f"fastlane: this deletes every job that has ended: {what}. Delete? [y/N] ".encode())
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failure("nothing was deleted")


def _pruned_text(pruned: pb.PruneResponse, *, dry_run: bool) -> str:
    return f"{'would delete' if dry_run else 'deleted'} {_counted_text(pruned)}"


def _counted_text(pruned: pb.PruneResponse) -> str:
    what = f"{_counted(pruned.jobs, 'job')} and {_counted(pruned.logs, 'log')}, {size(pruned.bytes)}"
    return f"at least {what}" if pruned.more else what


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
