"""The settings as options, and `fastlane config`, which shows those that are in force."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fastlane_grpc.cli.arguments.encoding import escaped, is_utf8
from fastlane_grpc.cli.arguments.options import Function
from fastlane_grpc.cli.errors import WRONG_USE, Failure
from fastlane_grpc.config import SETTINGS, SWITCH, ConfigError, InForce, as_json, default_text, in_force, toml


class _Setting(click.Option):
    """Shows the default in the help, and makes it only there: it may depend on the environment, which no other command
    minds."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        try:
            default = default_text(self.name or "")
            return record and (record[0], f"{record[1]}  [default: {default}]" if default else record[1])
        except ConfigError:
            return record


def settings_file(function: Function) -> Function:
    """The option --config, as `file`."""
    path = click.Path(path_type=Path)
    return click.option(
        "--config", "file", type=path, envvar="FASTLANE_CONFIG", show_envvar=True, help="TOML file of settings."
    )(function)


def settings(function: Function) -> Function:
    """The file, and one option for each setting; which value counts is decided, and checked, where the settings are."""
    for setting in reversed(SETTINGS):
        flag, kind, meaning = (
            f"--{setting.name.replace('_', '-')}",
            setting.metadata["kind"],
            setting.metadata["meaning"],
        )
        form: dict[str, Any] = {"is_flag": True, "default": None} if kind == SWITCH else {"metavar": kind}
        function = click.option(flag, cls=_Setting, help=f"{meaning[0].upper()}{meaning[1:]}.", **form)(function)
    return settings_file(function)


def settings_in_force(flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path | None) -> InForce:
    if file is not None and not is_utf8(str(file)):
        raise Failure(f"the path of the settings file is not UTF-8: '{escaped(str(file))}'", WRONG_USE)
    try:
        found = in_force(flags, environ, file)
    except ConfigError as error:
        raise Failure(str(error), WRONG_USE) from error
    for warning in found.warnings:
        click.echo(f"fastlane: {warning}", err=True)
    return found


@click.command()
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["toml", "json"]),
    default="toml",
    show_default=True,
    help="Output format.",
)
@settings
@click.pass_obj
def config(environ: Mapping[str, str], /, file: Path | None, form: str, **flags: str | None) -> int:
    """Print the settings that are in force for `fastlane server` with the same flags, and the origin of each.

    The output is a file for --config with the same settings.

    \b
    Example:
      fastlane config --config /etc/fastlane.toml
    """
    found = settings_in_force(flags, environ, file)
    click.echo(toml(found) if form == "toml" else as_json(found), nl=form == "json")
    return 0
