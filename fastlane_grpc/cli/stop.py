"""`fastlane stop`: stop a job or an execution."""

from datetime import timedelta

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.connection import connected, either_id
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.cli.options import GRACE, answers, talks_to_server
from fastlane_grpc.cli.output import state_name
from fastlane_grpc.cli.tables import as_line
from fastlane_grpc.cli.terminal import write
from fastlane_grpc.v1 import fastlane_pb2 as pb


@click.command()
@click.argument("id", metavar="JOB|EXECUTION")
@click.option(
    "--grace",
    type=GRACE,
    help="Time between the stop signal and SIGKILL, as 5s; 0s: SIGKILL at once.  [default: the job's]",
)
@click.option("--note", default="", help="Reason for the stop, stored with the job.")
@answers
@talks_to_server
def stop(*, id: str, grace: timedelta | None, note: str, form: str, address: str) -> int:  # noqa: A002
    """Stop a job: send its stop signal and, after its grace period, SIGKILL. A queued job is removed from the queue.
    The command does not wait for the end of the job.

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
            raise Failure(f"no job or execution has the id {text!r}") from None
