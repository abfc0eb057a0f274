"""`fastlane wait`: wait for the end of jobs, and exit with their status."""

from collections.abc import Sequence

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import answers, talks_to_server
from fastlane_grpc.cli.connection import connected, job_id
from fastlane_grpc.cli.display.job_note import note_of
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import as_line
from fastlane_grpc.cli.display.terminal import say, write
from fastlane_grpc.cli.errors import NO_EXIT_STATUS, cause
from fastlane_grpc.text.sanitize import printable
from fastlane_grpc.v1 import fastlane_pb2 as pb

_AWAY_SECONDS = 1.0


@click.command()
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@answers
@talks_to_server
def wait(*, ids: Sequence[str], form: str, address: str) -> int:
    """Wait until the jobs have ended: all their retries too. Each job is one line of output when it ends.

    \b
    Examples:
      fastlane wait 01980f3e-8b1c-7d43-9a51-0242ac120002
      fastlane wait $(for part in 1 2 3; do fastlane enqueue builder make "part-$part"; done)

    After an interruption the command resumes by itself, also over a restart of the server. A job with a schedule ends
    when its schedule does. Ctrl-C does not affect the jobs.

    \b
    Exit status: 0 if all jobs succeeded; else that of the first job on the command line that did not, as with
    `fastlane run`. 125 for a job that was pruned.
    """
    with connected(address) as client:
        # Fails where nobody is there: the watch itself would wait.
        jobs = [client.job(job_id(client, text)) for text in ids]
        statuses: dict[str, int | None] = {job.id: None for job in jobs}
        with client.watch(job_ids=list(statuses)) as watch:
            _follow(watch, statuses, form)
    return next((status for status in statuses.values() if status), 0)


def _follow(watch: api.Watch, statuses: dict[str, int | None], form: str) -> None:
    """Fill in the status of each job when it ends; return when all have ended."""
    away = False
    for event in watch:
        match event:
            case api.JobChanged(job) if job.HasField("outcome") and statuses[job.id] is None:
                statuses[job.id] = api.exit_status(job)
                write(1, as_line(job) if form == "json" else _line_of(job))
            case api.JobPruned(gone_id) if statuses[gone_id] is None:
                statuses[gone_id] = NO_EXIT_STATUS
                say(f"job {gone_id} was pruned: nobody can tell how it ended")
            case api.Disconnected() if event.seconds >= _AWAY_SECONDS and not away:
                away = True
                say(f"the server does not respond ({cause(event.error)}); retrying until it does")
            case api.Reconnected() if away:
                away = False
                say(f"the server is back after {event.seconds:.0f} s; resuming the wait")
        if None not in statuses.values():
            return


def _line_of(job: pb.Job) -> bytes:
    note = note_of(job, job.execution)
    return f"{printable(f'{job.id}  {state_name(job.state)}' + (f'  {note}' if note else ''))}\n".encode()
