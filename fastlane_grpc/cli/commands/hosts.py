"""`fastlane hosts`: list the hosts, drain one, resume it."""

from collections.abc import Mapping

import click
from click.core import ParameterSource

from fastlane_grpc.cli.arguments.options import answers, talks_to_server
from fastlane_grpc.cli.commands.lists import show_hosts
from fastlane_grpc.cli.connection import connected
from fastlane_grpc.cli.display.tables import as_line
from fastlane_grpc.cli.display.terminal import write
from fastlane_grpc.v1 import fastlane_pb2 as pb


@click.group(invoke_without_command=True)
@answers
@talks_to_server
@click.pass_context
def hosts(ctx: click.Context, /, *, form: str, address: str) -> int:
    """List the container engines: whether they respond, how many slots are in use, how output is captured.

    \b
    Examples:
      fastlane hosts
      fastlane hosts drain big --note "new disk"
      fastlane hosts resume big
    """
    environ: Mapping[str, str] = ctx.obj
    if ctx.invoked_subcommand is None:
        return show_hosts(environ, form=form, address=address)
    for name, flag in (("form", "--output"), ("address", "--address"), ("context", "--context")):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag} goes after {ctx.invoked_subcommand}", ctx)
    return 0


@hosts.command()
@click.argument("host", metavar="HOST")
@click.option("--note", default="", help="Who drains the host and why.")
@answers
@talks_to_server
def drain(*, host: str, note: str, form: str, address: str) -> int:
    """Assign no further executions to a host. Running ones continue. The host stays drained over restarts of the
    server.

    \b
    Example:
      fastlane hosts drain big --note "ada: new disk"
    """
    with connected(address) as client:
        _show(client.drain_host(host, note), form)
    return 0


@hosts.command()
@click.argument("host", metavar="HOST")
@answers
@talks_to_server
def resume(*, host: str, form: str, address: str) -> int:
    """Assign executions to a drained host again. Also after failed starts, without a wait.

    \b
    Example:
      fastlane hosts resume big
    """
    with connected(address) as client:
        _show(client.resume_host(host), form)
    return 0


def _show(host: pb.EngineHost, form: str) -> None:
    state = pb.EngineHost.Availability.Name(host.availability).removeprefix("AVAILABILITY_").lower().replace("_", " ")
    note = f" ({host.drain_note})" if host.drain_note else ""
    line = f"host {host.name}: {state}{note}, {host.running} of {host.max_running} slots in use\n"
    write(1, as_line(host) if form == "json" else line.encode())
