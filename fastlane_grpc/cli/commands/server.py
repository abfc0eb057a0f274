"""`fastlane server`: the settings as options, and the server behind them."""

from collections.abc import Mapping
from pathlib import Path

import click

from fastlane_grpc.cli.commands.config import settings, settings_in_force
from fastlane_grpc.cli.commands.version import package_version
from fastlane_grpc.cli.errors import Failure


@click.command()
@settings
@click.pass_obj
def server(environ: Mapping[str, str], /, file: Path | None, **flags: str | None) -> int:
    """Serve jobs until SIGTERM or Ctrl-C. Running containers continue, and the next server takes them over.

    Each setting is read from its flag, else from the environment variable FASTLANE_NAME, else from the file. DURATION:
    90s, 1h30m, 30d. BYTES: 1048576, 512k, 64m, 1g.

    \b
    Example:
      fastlane server --data-dir /srv/fastlane --max-running 16
    """
    told = settings_in_force(flags, environ, file).settings
    from fastlane_grpc import app, errors

    def ready(ports: app.Ports) -> None:
        listening = f"{told.listen.rpartition(':')[0]}:{ports.rpc}"
        if ports.http:
            scheme = "https" if told.tls_cert else "http"
            listening += f", HTTP on {scheme}://{told.http_listen.rpartition(':')[0]}:{ports.http}"
        try:
            click.echo(f"fastlane {package_version()} listening on {listening}, data in {told.data_dir}")
        except OSError as error:
            raise Failure(
                f"cannot write the ready message to stdout: {error.strerror}; redirect stdout to a writable file"
            ) from error

    try:
        app.serve(told, ready, colors=not environ.get("NO_COLOR"))
    except (errors.CannotServe, errors.ServerFailed) as error:
        raise Failure(str(error)) from error
    return 0
