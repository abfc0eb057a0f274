"""`fastlane debug`: the inside of a running server, for a bug report."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click

from fastlane_grpc.cli.commands.config import settings_file, settings_in_force
from fastlane_grpc.cli.errors import Failure


@click.group()
def debug() -> None:
    """Look inside a running server of this machine.

    \b
      fastlane debug dump      write what a bug report needs into a file
    """


@debug.command(short_help="Write what a bug report needs into a file.")
@click.argument("target", metavar="[FILE]", required=False)
@click.option("--data-dir", metavar="PATH", help="Data directory of the server, as the server has it.")
@settings_file
@click.pass_obj
def dump(environ: Mapping[str, str], /, *, target: str | None, data_dir: str | None, file: Path | None) -> int:
    """Write the stacks, queues, versions, settings and last errors of the server into FILE; `-` is stdout.

    Run it as the server's user. It also works while the server does not respond. Values of secret settings, tokens and
    passwords are left out; task names and ids of jobs may be in it: read it before you send it.

    \b
    Examples:
      fastlane debug dump
      fastlane debug dump --data-dir /srv/fastlane report.json
    """
    directory = settings_in_force({"data_dir": data_dir}, environ, file).settings.data_dir
    from fastlane_grpc.debugging import DumpFailed, requested_dump

    try:
        text = requested_dump(directory)
    except DumpFailed as error:
        raise Failure(str(error)) from error
    if target == "-":
        click.echo(text, nl=False)
        return 0
    path = Path(target or f"fastlane-debug-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", errors="replace") as opened:
            opened.write(text)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from error
    click.echo(path)
    return 0
