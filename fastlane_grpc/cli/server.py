"""`fastlane server`: the settings as options, and the house behind them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import click

from fastlane_grpc import config
from fastlane_grpc.cli.about import package_version
from fastlane_grpc.cli.failure import WRONG_USE, Failure
from fastlane_grpc.cli.options import Function


def settings_file(function: Function) -> Function:
    """The option --config, as `file`."""
    path = click.Path(path_type=Path)
    return click.option("--config", "file", type=path, envvar="FASTLANE_CONFIG", show_envvar=True, help="TOML file of settings.")(function)


@contextmanager
def readable_settings() -> Iterator[None]:
    """Settings that cannot be as they are, are wrong use."""
    try:
        yield
    except config.ConfigError as error:
        raise Failure(str(error), WRONG_USE) from error


class _Setting(click.Option):
    """Shows the default in the help, and makes it only there: it may depend on the environment, which no other command minds."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        try:
            default = config.default_text(self.name or "")
            return record and (record[0], f"{record[1]}  [default: {default}]" if default else record[1])
        except config.ConfigError:
            return record


def _settings(function: Function) -> Function:
    """One option for each setting; which value counts is decided, and checked, where the settings are."""
    for setting in reversed(fields(config.Settings)):
        flag, kind, meaning = f"--{setting.name.replace('_', '-')}", setting.metadata["kind"], setting.metadata["meaning"]
        function = click.option(flag, cls=_Setting, metavar=kind, help=f"{meaning[0].upper()}{meaning[1:]}.")(function)
    return function


@click.command()
@settings_file
@_settings
@click.pass_obj
def server(environ: Mapping[str, str], /, file: Path | None, **flags: str | None) -> int:
    """Serve jobs until SIGTERM or Ctrl-C. Running containers are left to the next server.

    A setting comes from its flag, else from FASTLANE_ and its name in the environment, else from the file. A DURATION is as 90s, 30m or
    1h30m; BYTES are as 1048576, 512k, 64m or 1g.

    \b
    Example:
      fastlane server --data-dir /srv/fastlane --max-running 16
    """
    with readable_settings():
        settings = config.load(flags, environ, file)
    from fastlane_grpc import app, errors

    def ready(port: int) -> None:
        host = settings.listen.rpartition(":")[0]
        click.echo(f"fastlane {package_version()} listening on {host}:{port}, data in {settings.data_dir}")

    try:
        app.serve(settings, ready, colors=not environ.get("NO_COLOR"))
    except errors.CannotServe as error:
        raise Failure(str(error)) from error
    return 0
