"""`fastlane retry`: run a job once more."""

from collections.abc import Sequence

import click

from fastlane_grpc.cli.connection import connected, job_id
from fastlane_grpc.cli.options import answers, talks_to_server
from fastlane_grpc.cli.output import state_name
from fastlane_grpc.cli.tables import as_line
from fastlane_grpc.cli.terminal import write


@click.command()
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@answers
@talks_to_server
def retry(*, ids: Sequence[str], form: str, address: str) -> int:
    """Start one more run of jobs that have ended, now. Their retries are counted anew; a schedule stays over.

    \b
    Example:
      fastlane retry 01980f3e-8b1c-7d43-9a51-0242ac120002
    """
    with connected(address) as client:
        for text in ids:
            job = client.retry_job(job_id(client, text))
            line = f"job {job.id}: {state_name(job.state)}, run {job.execution.run}\n"
            write(1, as_line(job) if form == "json" else line.encode())
    return 0
