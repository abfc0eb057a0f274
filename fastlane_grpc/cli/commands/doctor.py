"""`fastlane doctor`: what is wrong with a server's machine, and what to do."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from fastlane_grpc.cli.commands.config import settings_file, settings_in_force
from fastlane_grpc.cli.display.tables import painted
from fastlane_grpc.cli.display.terminal import is_colourful, write
from fastlane_grpc.cli.errors import FAILED
from fastlane_grpc.text.sanitize import printable


@click.command()
@settings_file
@click.option("--data-dir", metavar="PATH", help="The server's data directory.")
@click.option("--engine", metavar="ADDRESS", help="The server's Docker engine.")
@click.option("--engine-cert-dir", metavar="PATH", help="The certificates for an engine at tcp://.")
@click.option("--listen", metavar="HOST:PORT", help="The address that the server listens on.")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    help="`json`: one object per line, with check, level, found and advice.  [default: table]",
)
@click.pass_obj
def doctor(environ: Mapping[str, str], /, *, file: Path | None, form: str, **flags: str | None) -> int:
    """Check everything that a server needs on this machine, and suggest repairs. Changes nothing.

    Run it as the server's user, with the server's settings; the server may be running or not. Each check prints one
    line: ok, warn (jobs run, with a limitation) or FAIL. The exit status is 1 if any check fails.

    \b
    Examples:
      fastlane doctor --data-dir /srv/fastlane
      fastlane doctor -o json | jq 'select(.level != "ok")'
    """
    settings = settings_in_force(flags, environ, file).settings
    from fastlane_grpc.doctor import Finding, Level, examine

    def text(finding: Finding) -> str:
        advice = f"\n{'':22}→ {printable(finding.advice)}" if finding.advice else ""
        level = painted(f"{finding.level:4}", finding.level, colour=colour)
        return f"{level}  {finding.check:14}  {printable(finding.found)}{advice}\n"

    colour, failed = is_colourful(1, environ), False
    for finding in examine(settings):
        failed = failed or finding.level is Level.FAIL
        write(1, (json.dumps(asdict(finding)) + "\n" if form == "json" else text(finding)).encode())
    return FAILED if failed else 0
