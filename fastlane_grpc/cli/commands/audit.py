"""`fastlane audit`: who changed what."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

import click

from fastlane_grpc.cli.arguments.options import answers, limits, talks_to_server
from fastlane_grpc.cli.connection import connected, job_id
from fastlane_grpc.cli.display.tables import Column, ago, cut, show, time_of
from fastlane_grpc.cli.display.terminal import say
from fastlane_grpc.v1 import fastlane_pb2 as pb

# What a server answers in one page at most.
_LARGEST_PAGE = 1000


@click.command()
@click.option("--task", "task_id", default="", metavar="NAME", help="Only about this task.")
@click.option("--job", "of_job", default="", metavar="JOB", help="Only about this job.")
@click.option("--caller", default="", metavar="NAME", help="Only calls with the token of this name.")
@click.option("--method", default="", metavar="METHOD", help="Only calls of this method, as StopJob.")
@limits
@answers
@talks_to_server
@click.pass_obj
def audit(
    environ: Mapping[str, str],
    /,
    *,
    task_id: str,
    of_job: str,
    caller: str,
    method: str,
    limit: int,
    everything: bool,
    form: str,
    address: str,
) -> int:
    """List who changed what, newest first: a line for each call that changed something.

    \b
    Examples:
      fastlane audit --task send-mail --method StopJob
      fastlane audit --job 01980f3e
      fastlane audit --caller ci --all -o json

    Of a server that requires tokens this needs one with the role operate.
    """
    now = datetime.now(UTC)
    with connected(address) as client:
        found = client.audit_entries(
            task_id=task_id,
            job_id=job_id(client, of_job) if of_job else "",
            caller=caller,
            method=method,
            page_size=_LARGEST_PAGE if everything else min(limit + 1, _LARGEST_PAGE),
        )
        shown = found if everything else islice(found, limit)
        show(shown, _columns(now), form=form, nothing="no entries", environ=environ)
        if next(found, None) is not None:
            say("more entries exist: use --limit or --all")
    return 0


def _columns(now: datetime) -> Sequence[Column]:
    return [
        Column("WHEN", lambda entry: _ago(entry, now)),
        Column("METHOD", lambda entry: entry.method),
        Column("CALLER", lambda entry: entry.caller or entry.certificate or "-"),
        Column("ADDRESS", lambda entry: entry.address or "-"),
        Column("TASK", lambda entry: entry.task_id or "-"),
        Column("JOB", lambda entry: entry.job_id or "-"),
        Column("DETAIL", lambda entry: cut(entry.detail)),
    ]


def _ago(entry: pb.AuditEntry, now: datetime) -> str:
    time = time_of(entry, "time")
    return "-" if time is None else ago(time, now)
