"""`fastlane health`: whether a server of this machine serves."""

from collections.abc import Mapping
from pathlib import Path

import click

from fastlane_grpc.cli.commands.config import settings_file, settings_in_force
from fastlane_grpc.cli.errors import FAILED, Failure

_SECONDS = 5.0


@click.command()
@click.option(
    "--service",
    type=click.Choice(["live", "server", "engine"]),
    default="live",
    show_default=True,
    help="`live`: the process responds. `server`: it can also write. `engine`: an engine is up.",
)
@click.option("--data-dir", metavar="PATH", help="Data directory of the server, as the server has it.")
@settings_file
@click.pass_obj
def health(environ: Mapping[str, str], /, *, service: str, data_dir: str | None, file: Path | None) -> int:
    """Ask a server of this machine whether it serves. The exit status is 0 if it does, else 1.

    The server is asked at a socket of its machine: no certificate and no token is needed. Let a supervisor
    restart the server only because of `live`. The health checks of containers can be this command.

    \b
    Examples:
      fastlane health
      fastlane health --service server --data-dir /srv/fastlane
    """
    directory = settings_in_force({"data_dir": data_dir}, environ, file).settings.data_dir
    from fastlane_grpc.health_socket import NoHealth, health_of

    try:
        serves = health_of(directory, timeout_seconds=_SECONDS)
    except NoHealth as error:
        raise Failure(str(error)) from error
    for name, serving in serves.items():
        click.echo(f"{name:6}  {'SERVING' if serving else 'NOT_SERVING'}")
    return 0 if serves[service] else FAILED
