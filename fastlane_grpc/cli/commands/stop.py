"""`fastlane stop`: stop jobs and executions, by their ids or by a filter."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import GRACE, answers, talks_to_server
from fastlane_grpc.cli.arguments.selection import OPEN_STATES, Selection, confirm, counted, selects_jobs
from fastlane_grpc.cli.connection import connected, either_id
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import as_line
from fastlane_grpc.cli.display.terminal import write
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.v1 import fastlane_pb2 as pb


@click.command()
@click.argument("ids", metavar="[JOB|EXECUTION]...", nargs=-1)
@click.option(
    "--grace",
    type=GRACE,
    help="Time between the stop signal and SIGKILL, as 5s; 0s: SIGKILL at once.  [default: the job's]",
)
@click.option("--note", default="", help="Reason for the stop, stored with the job.")
@selects_jobs(OPEN_STATES)
@answers
@talks_to_server
def stop(*, ids: Sequence[str], grace: timedelta | None, note: str, form: str, address: str, **options: Any) -> int:
    """Stop jobs: send the stop signal and, after the grace period, SIGKILL. A job that has not started is over at
    once. Retries and the schedule of a job are over, too. The command does not wait for the end of a job.

    With the id of an execution only that execution is stopped: the schedule of its job goes on.

    \b
    Examples:
      fastlane stop --grace 2s --note "wrong mailing list" 01980f3e-8b1c-7d43-9a51-0242ac120002
      fastlane stop --task send-mail --state queued --label customer=4711

    Several options select the jobs that match all of them. The command asks before it stops more than one job; without
    a terminal it needs --yes.
    """
    selection = Selection.taken_from(options)
    by_filter = selection.check(ids, "job or an execution")
    with connected(address) as client:
        if by_filter:
            return _stop_selected(client, selection, note, grace, form)
        for text in ids:
            _tell(_stopped(client, text, note, grace), form)
    return 0


def _stop_selected(client: api.Client, selection: Selection, note: str, grace: timedelta | None, form: str) -> int:
    if selection.dry_run or not selection.yes:
        answer = client.stop_many(validate_only=True, **selection.filter)
        would_stop = counted(answer.stopped, more=answer.more)
        if selection.dry_run:
            write(1, as_line(answer) if form == "json" else f"would stop {would_stop}\n".encode())
            return 0
        if answer.stopped > 1:
            confirm(f"stops {would_stop}", "stop")
    answer = client.stop_many(note, grace, **selection.filter)
    write(1, as_line(answer) if form == "json" else f"stopped {counted(answer.stopped)}\n".encode())
    return 0


def _tell(stopped: pb.Job | pb.Execution, form: str) -> None:
    noun = "job" if isinstance(stopped, pb.Job) else "execution"
    ended = stopped.HasField("outcome") and stopped.state != pb.STATE_STOPPED
    state = f"{state_name(stopped.state)}{', it had already ended' if ended else ''}"
    write(1, as_line(stopped) if form == "json" else f"{noun} {stopped.id}: {state}\n".encode())


def _stopped(client: api.Client, text: str, note: str, grace: timedelta | None) -> pb.Job | pb.Execution:
    """Stop a job or an execution, and return its new state."""
    named = either_id(client, text)
    if named is not None and named.execution_id:
        return client.stop_execution(named.execution_id, note, grace)
    try:
        return client.stop(named.job_id if named else text, note, grace)
    except api.NotFound:
        try:
            return client.stop_execution(text, note, grace)
        except api.NotFound:
            raise Failure(f"no job or execution has the id {text!r}") from None
