"""`fastlane retry`: run jobs once more that have ended, by their ids or by a filter."""

from collections.abc import Sequence
from typing import Any

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import answers, talks_to_server
from fastlane_grpc.cli.arguments.selection import FINAL_STATES, Selection, confirm, counted, selects_jobs
from fastlane_grpc.cli.connection import connected, job_id
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import as_line
from fastlane_grpc.cli.display.terminal import write
from fastlane_grpc.v1 import fastlane_pb2 as pb


@click.command()
@click.argument("ids", metavar="[JOB]...", nargs=-1)
@selects_jobs(FINAL_STATES)
@answers
@talks_to_server
def retry(*, ids: Sequence[str], form: str, address: str, **options: Any) -> int:
    """Start one more run of jobs that have ended, now. Their retries are counted anew; a schedule stays over.

    \b
    Examples:
      fastlane retry 01980f3e-8b1c-7d43-9a51-0242ac120002
      fastlane retry --task send-mail --since 1h
      fastlane retry --task send-mail --state timed-out --label customer=4711

    Several options select the jobs that match all of them; without --state, those that failed, timed out or were lost.
    The command asks before it starts more than one job; without a terminal it needs --yes.
    """
    selection = Selection.taken_from(options)
    by_filter = selection.check(ids, "job")
    with connected(address) as client:
        if by_filter:
            return _retry_selected(client, selection, form)
        for text in ids:
            job = client.retry_job(job_id(client, text))
            line = f"job {job.id}: {state_name(job.state)}, run {job.execution.run}\n"
            write(1, as_line(job) if form == "json" else line.encode())
    return 0


def _retry_selected(client: api.Client, selection: Selection, form: str) -> int:
    if selection.dry_run or not selection.yes:
        answer = client.retry_many(validate_only=True, **selection.filter)
        if selection.dry_run:
            write(1, as_line(answer) if form == "json" else f"would retry {_retried(answer)}\n".encode())
            return 0
        if answer.retried > 1:
            confirm(f"retries {_retried(answer)}", "retry")
    answer = client.retry_many(**selection.filter)
    write(1, as_line(answer) if form == "json" else f"retried {_retried(answer)}\n".encode())
    return 0


def _retried(answer: pb.BatchRetryJobsResponse) -> str:
    skipped = f"; {answer.skipped} skipped: expired, or the unique key is taken" if answer.skipped else ""
    return f"{counted(answer.retried, more=answer.more)}{skipped}"
