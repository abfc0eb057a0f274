"""`fastlane logs`: the output of a job, live or stored."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import MOMENT, PAIR, shows_output, talks_to_server
from fastlane_grpc.cli.connection import connected, either_id, proxy_text
from fastlane_grpc.cli.display.output import Display, follow
from fastlane_grpc.cli.display.terminal import say
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.v1 import fastlane_pb2

# What the contract allows.
_MOST_LINES = 1_000_000


@click.command()
@click.argument("id", metavar="[JOB|EXECUTION]", required=False)
@click.option("--last", is_flag=True, help="The newest job, in place of an id.")
@click.option("--task", "task_id", default="", metavar="NAME", help="The newest job of this task, in place of an id.")
@click.option(
    "-l",
    "--label",
    "labels",
    type=PAIR,
    multiple=True,
    help="The newest job with this label, in place of an id; with several, all must match.",
)
@click.option(
    "-f",
    "--follow/--no-follow",
    "follows",
    default=True,
    help="Wait for further output, until the end.  [default: --follow]",
)
@click.option(
    "--since",
    type=MOMENT,
    help="Output at or after this age or time, as 10m, 2d or 2026-01-31T08:00:00Z.",
)
@click.option(
    "--tail",
    "lines",
    type=click.IntRange(0, _MOST_LINES),
    metavar="NUMBER",
    help="Start with the last NUMBER lines.",
)
@click.option(
    "--line",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="Start with the line of this NUMBER, from 1; of one execution only.",
)
@click.option(
    "--source",
    "names",
    type=click.Choice(["stdout", "stderr", "system"]),
    multiple=True,
    help="Show only this source; repeat for several.",
)
@click.option("-t", "--timestamps", is_flag=True, help="Prefix each line with the time when it was received.")
@click.option("--cursor", default="", help="Resume after this cursor; overrides --since, --tail and --line.")
@shows_output
@talks_to_server
@click.pass_obj
def logs(
    environ: Mapping[str, str],
    /,
    *,
    id: str | None,  # noqa: A002
    last: bool,
    task_id: str,
    labels: Sequence[tuple[str, str]],
    follows: bool,
    since: datetime | None,
    lines: int | None,
    line: int | None,
    names: Sequence[str],
    timestamps: bool,
    cursor: str,
    verbose: bool,
    quiet: bool,
    heartbeat: timedelta | None,
    no_exit_status: bool,
    address: str,
) -> int:
    """Show the output of a job, or of one execution: first the stored part, then new output, until the end. Of a job
    the newest run is shown with all its attempts, and what follows it.

    \b
    Examples:
      fastlane logs 01980f3e-8b1c-7d43-9a51-0242ac120002
      fastlane logs -t --since 10m --tail 100 01980f3e
      fastlane logs --no-follow --source stderr 01980f3e | tail
      fastlane logs --task send-mail --label customer=4711

    Ctrl-C does not affect the job.

    \b
    Exit status: that of the job or execution, as with `fastlane run`, or
      75  --no-follow: the job has not ended      69  the server does not respond
       2  usage error                              1  another error
    """
    only = [fastlane_pb2.Source.Value(f"SOURCE_{name.upper()}") for name in names]
    display = Display(environ, verbose=verbose, quiet=quiet, timestamps=timestamps, only=only, heartbeat=heartbeat)
    selected = bool(last or task_id or labels)
    if selected == (id is not None):
        raise click.UsageError("give the id of a job or an execution, or one of --last, --task and --label")
    if verbose and (proxied := proxy_text(address)):
        say(proxied)
    with connected(address) as client:
        found = _newest(client, task_id, dict(labels)) if id is None else _found(client, id)
        if isinstance(found, fastlane_pb2.Job):
            if line is not None:
                raise Failure(
                    f"--line counts the lines of one execution; of this job, the newest is {found.execution.id}"
                )
            display.followed = f"job {found.id}"
            tail = client.tail_job(found.id, cursor, display.sources, follow=follows, since=since, tail_lines=lines)
        else:
            display.followed = f"execution {found}"
            tail = client.tail(
                found, cursor, display.sources, follow=follows, since=since, tail_lines=lines, start_line=line
            )
        status = follow(tail, display)
    return 0 if no_exit_status else status


def _newest(client: api.Client, task_id: str, labels: Mapping[str, str]) -> fastlane_pb2.Job:
    for job in client.jobs(task_id=task_id, labels=labels, page_size=1):
        return job
    of_task = f" of task {task_id!r}" if task_id else ""
    with_labels = "".join(f" with label {name}={value}" for name, value in labels.items())
    raise Failure(f"there is no job{of_task}{with_labels}")


def _found(client: api.Client, text: str) -> fastlane_pb2.Job | str:
    """The job of this id, or the id of an execution."""
    named = either_id(client, text)
    if named is not None:
        return named.execution_id or client.job(named.job_id)
    try:
        return client.job(text)
    except api.NotFound:
        try:
            return client.execution(text).id
        except api.NotFound:
            raise Failure(f"no job or execution has the id {text!r}") from None
