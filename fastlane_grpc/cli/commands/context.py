"""`fastlane context`: servers by name."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from fastlane_grpc.cli.arguments import contexts
from fastlane_grpc.cli.arguments.contexts import DEFAULT, VARIABLE, Context
from fastlane_grpc.cli.arguments.options import ADDRESS, answers
from fastlane_grpc.cli.display.terminal import say
from fastlane_grpc.cli.errors import WRONG_USE, Failure
from fastlane_grpc.text.values import DEFAULT_LISTEN


@click.group()
def context() -> None:
    """Name servers, and choose the one that commands talk to.

    \b
      fastlane context add prod --address fastlane.example.org:7020 --tls-ca system --token-file ~/prod.token
      fastlane context use prod                        talk to it from now on
      fastlane jobs --context staging                  talk to another one once
      fastlane context use default                     talk to this machine's server again

    Commands take, in this order: --address; --context; FASTLANE_ADDRESS; FASTLANE_CONTEXT; the current context; the
    server of this machine. With a context, the other variables that say how to reach a server have no effect.
    """


@context.command(short_help="Name a server.")
@click.argument("name")
@click.option("-a", "--address", type=ADDRESS, required=True, help="Address of the server.")
@click.option("--tls-ca", metavar="PATH|system", help="Authorities of the server's certificate: turns TLS on.")
@click.option("--tls-cert", metavar="PATH", help="Your certificate, for a server that asks for it.")
@click.option("--tls-key", metavar="PATH", help="The key of --tls-cert.")
@click.option("--token-file", metavar="PATH", help="File of your token. It is read by each command.")
@click.pass_obj
def add(
    environ: Mapping[str, str],
    /,
    *,
    name: str,
    address: str,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    token_file: str | None,
) -> int:
    """Name a server, and the files that it takes to reach it.

    \b
    Example:
      fastlane context add prod --address fastlane.example.org:7020 --tls-ca system --token-file ~/prod.token
    """
    ca = tls_ca if tls_ca == "system" else _whole("--tls-ca", tls_ca)
    new = Context(
        address,
        ca,
        _whole("--tls-cert", tls_cert),
        _whole("--tls-key", tls_key),
        _whole("--token-file", token_file),
    )
    contexts.change(environ, lambda found: found.added(name, new))
    click.echo(f"context {name}: {address}; `fastlane context use {name}` makes it the current one")
    return 0


@context.command(short_help="Choose the server that commands talk to.")
@click.argument("name")
@click.pass_obj
def use(environ: Mapping[str, str], /, *, name: str) -> int:
    """Choose the server that commands talk to. `default` is the server of this machine.

    \b
    Example:
      fastlane context use prod
    """
    contexts.change(environ, lambda found: found.using(name))
    click.echo(f"the current context is {name}")
    _tell_of_variables(environ)
    return 0


@context.command(short_help="List the contexts.")
@answers
@click.pass_obj
def ls(environ: Mapping[str, str], /, *, form: str) -> int:
    """List the contexts. A star marks the one that commands use.

    \b
    Example:
      fastlane context ls
    """
    found = contexts.read(environ)
    used = environ.get(VARIABLE) or found.current or DEFAULT
    rows = [(DEFAULT, Context(DEFAULT_LISTEN)), *sorted(found.by_name.items())]
    if form == "json":
        for name, each in rows:
            click.echo(json.dumps({"name": name, "current": name == used, **asdict(each)}))
    else:
        cells = [("", "NAME", "ADDRESS", "TLS", "TOKEN FILE")]
        cells += [
            ("*" if name == used else "", name, each.address, each.tls_ca or "-", each.token_file or "-")
            for name, each in rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    _tell_of_variables(environ)
    return 0


@context.command(short_help="Forget a server.")
@click.argument("name")
@click.pass_obj
def rm(environ: Mapping[str, str], /, *, name: str) -> int:
    """Forget a server. Its files stay.

    \b
    Example:
      fastlane context rm prod
    """
    was_current = contexts.read(environ).current == name
    contexts.change(environ, lambda found: found.removed(name))
    click.echo(f"context {name} is removed" + ("; commands talk to this machine's server" if was_current else ""))
    return 0


def _whole(option: str, path: str | None) -> str | None:
    """Return the path of a file as seen from any directory. Failure: there is no such file."""
    if path is None:
        return None
    whole = Path(path).expanduser().absolute()
    if not whole.is_file():
        raise Failure(f"{option}: there is no file {whole}", WRONG_USE)
    return str(whole)


def _tell_of_variables(environ: Mapping[str, str]) -> None:
    if address := environ.get("FASTLANE_ADDRESS"):
        say(f"FASTLANE_ADDRESS is set: commands talk to {address}, unless they have --context")
    elif name := environ.get(VARIABLE):
        say(f"{VARIABLE} is set: commands use the context {name}")
