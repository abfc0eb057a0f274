"""`fastlane server`: the settings as options, and the house behind them."""

from collections.abc import Mapping
from pathlib import Path

import click

from fastlane_grpc.cli.about import package_version
from fastlane_grpc.cli.failure import Failure
from fastlane_grpc.cli.settings import settings, settings_in_force


@click.command()
@settings
@click.pass_obj
def server(environ: Mapping[str, str], /, file: Path | None, **flags: str | None) -> int:
    """Serve jobs until SIGTERM or Ctrl-C. Running containers are left to the next server.

    A setting comes from its flag, else from FASTLANE_ and its name in the environment, else from the file. A DURATION
    is as 90s, 1h30m or 30d; BYTES are as 1048576, 512k, 64m or 1g.

    \b
    Example:
      fastlane server --data-dir /srv/fastlane --max-running 16
    """
    told = settings_in_force(flags, environ, file).settings
    from fastlane_grpc import app, errors

    def ready(port: int) -> None:
        host = told.listen.rpartition(":")[0]
        try:
            click.echo(f"fastlane {package_version()} listening on {host}:{port}, data in {told.data_dir}")
        except OSError as error:
            raise Failure(
                f"cannot say on standard output that the server is ready: {error.strerror}; give it somewhere to go"
            ) from error

    try:
        app.serve(told, ready, colors=not environ.get("NO_COLOR"))
    except (errors.CannotServe, errors.ServerFailed) as error:
        raise Failure(str(error)) from error
    return 0
