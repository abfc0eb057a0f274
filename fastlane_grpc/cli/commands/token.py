"""`fastlane token`: creates, lists and revokes the tokens in a server's data directory."""

import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from fastlane_grpc.cli.arguments.options import DURATION, PATTERN, answers
from fastlane_grpc.cli.commands.config import settings_file, settings_in_force
from fastlane_grpc.cli.display.tables import moment
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.trust import Role, TaskPattern, Token, TokenFile, TokenRefused, TokensUnusable

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group()
def token() -> None:
    """Create, list and revoke the tokens of a server, in its data directory. A running server heeds them at once.

    \b
      fastlane token create ci --role submit --task 'ci-*'   create a token, and print it once
      fastlane token ls                                      list the tokens
      fastlane token revoke ci                               revoke a token, and end its streams
    """


def of_data_dir(function: Function) -> Function:
    """Add the options that say where the data directory is: as for the server."""
    option = click.option("--data-dir", metavar="PATH", help="Data directory of the server, as the server has it.")
    return settings_file(option(function))


@token.command(short_help="Create a token, and print it once.")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.name.lower() for role in Role]),
    required=True,
    help="`view`: read all. `submit`: also enqueue, stop, retry. `operate`: all.",
)
@click.option("--task", "tasks", type=PATTERN, help="Only tasks of these names, as team-*,report-?.")
@click.option("--expires", type=DURATION, help="Time from now after which it is not valid any more, as 90d.")
@click.option("--certificate", default="", metavar="NAME", help="No token: the client certificate of this common name.")
@of_data_dir
@click.pass_obj
def create(
    environ: Mapping[str, str],
    /,
    *,
    name: str,
    role: str,
    tasks: str | None,
    expires: timedelta | None,
    certificate: str,
    file: Path | None,
    data_dir: str | None,
) -> int:
    """Create a token, and print it. It is stored nowhere: only its hash is kept.

    \b
    Examples:
      fastlane token create ci --role submit --task 'ci-*' --expires 90d
      fastlane token create deploy --role submit --certificate deploy.example.org
    """
    with _failing():
        text = _tokens(environ, file, data_dir).create(
            name,
            Role[role.upper()],
            tasks=TaskPattern(tasks) if tasks else None,
            expire_time=datetime.now(UTC) + expires if expires else None,
            certificate=certificate,
        )
    click.echo(text or f"clients with the certificate {certificate} have the role {role}")
    return 0


@token.command(short_help="List the tokens.")
@of_data_dir
@answers
@click.pass_obj
def ls(environ: Mapping[str, str], /, *, file: Path | None, data_dir: str | None, form: str) -> int:
    """List the tokens, without the tokens themselves.

    \b
    Example:
      fastlane token ls
    """
    with _failing():
        found = _tokens(environ, file, data_dir).read()
    if form == "json":
        for each in found:
            click.echo(json.dumps(_as_json(each)))
        return 0
    now = datetime.now(UTC)
    rows: list[tuple[str, ...]] = [("NAME", "ROLE", "TASKS", "CREATED", "EXPIRES", "CERTIFICATE")]
    rows += [_row(each, now) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else ():
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not found:
        click.echo("fastlane: no tokens", err=True)
    return 0


@token.command(short_help="Revoke a token.")
@click.argument("name")
@of_data_dir
@click.pass_obj
def revoke(environ: Mapping[str, str], /, *, name: str, file: Path | None, data_dir: str | None) -> int:
    """Revoke a token. Its open streams end.

    \b
    Example:
      fastlane token revoke ci
    """
    with _failing():
        _tokens(environ, file, data_dir).revoke(name)
    click.echo(f"token {name} is revoked")
    return 0


def _tokens(environ: Mapping[str, str], file: Path | None, data_dir: str | None) -> TokenFile:
    directory = settings_in_force({"data_dir": data_dir}, environ, file).settings.data_dir
    if not directory.is_dir():
        raise Failure(f"there is no directory {directory}: start the server once, or set --data-dir")
    return TokenFile(directory)


@contextmanager
def _failing() -> Any:
    """Make a failure of the command out of what cannot be done."""
    try:
        yield
    except (TokenRefused, TokensUnusable) as error:
        raise Failure(str(error)) from error


def _row(token: Token, now: datetime) -> tuple[str, ...]:
    expires = "never"
    if token.expire_time:
        expires = "expired" if token.is_expired(now) else f"{token.expire_time:%Y-%m-%d %H:%M} UTC"
    tasks = token.tasks.text if token.tasks else "all"
    return (token.name, token.role.name.lower(), tasks, moment(token.create_time, now), expires, token.certificate)


def _as_json(token: Token) -> dict[str, object]:
    return {
        "name": token.name,
        "role": token.role.name.lower(),
        "tasks": token.tasks.text if token.tasks else "",
        "create_time": token.create_time.isoformat(),
        "expire_time": token.expire_time.isoformat() if token.expire_time else "",
        "certificate": token.certificate,
    }
