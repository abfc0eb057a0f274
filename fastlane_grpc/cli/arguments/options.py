"""Kinds of values, and the options that several commands have."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fastlane_grpc.cli.arguments import contexts
from fastlane_grpc.cli.arguments.encoding import escaped, is_utf8
from fastlane_grpc.pools import read_pattern
from fastlane_grpc.text import values
from fastlane_grpc.v1 import fastlane_pb2

Function = TypeVar("Function", bound=Callable[..., Any])


# ------------------------------------------------------------------------------------------------------ kinds of values


class Reads(click.ParamType[object]):
    """Text that a function of `values` reads, by the same strict rules as the settings, or one of ours."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        # Arguments were looked at before; this one comes from the environment.
        if isinstance(value, str) and not is_utf8(value):
            self.fail(f"'{escaped(value)}' is not UTF-8", param, ctx)
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{escaped(value)!r} {error}", param, ctx)


def _read_grace(text: str) -> timedelta:
    """Unlike other durations it may be none at all."""
    if text == "0s":
        return timedelta(0)
    try:
        return values.read_duration(text)
    except values.TooLong:
        raise
    except ValueError:
        raise ValueError("must be a duration, as 10s or 1m30s; 0s: SIGKILL at once") from None


def _read_age(text: str) -> timedelta:
    """Unlike other durations it may be none at all, which is any age."""
    if text == "0s":
        return timedelta(0)
    try:
        return values.read_duration(text)
    except values.TooLong:
        raise
    except ValueError:
        raise ValueError("must be an age, as 30d, 12h or 1d12h; 0s: any age") from None


def _read_delay(text: str) -> timedelta:
    """Unlike other durations it may be none at all, which is now."""
    if text == "0s":
        return timedelta(0)
    return values.read_duration(text)


def _read_time(text: str) -> datetime:
    """One without a zone is this machine's."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            "must be a time, as 2026-01-31T08:00:00Z, or 2026-01-31T08:00 in this machine's time zone"
        ) from None


def _read_moment(text: str) -> datetime:
    """So long ago, or a time; one without a zone is this machine's."""
    try:
        return datetime.now(UTC) - _read_age(text)
    except values.TooLong:
        raise
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be an age, as 10m or 2d, or a time, as 2026-01-31T08:00:00Z") from None


def _read_server(text: str) -> str:
    """Read the address of a server to connect to, which needs a port. (A server may listen on port 0.)"""
    try:
        if int(values.read_address(text).rpartition(":")[2]):
            return text
    except ValueError:
        if "://" in text:
            raise
    raise ValueError(f"must be HOST:PORT, as {values.DEFAULT_LISTEN}")


def _read_pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError("must be NAME=VALUE")
    return name, value


def _read_secret_variable(text: str) -> tuple[str, str]:
    """The value is a name: a secret itself is not to be written on a command line."""
    try:
        return _read_pair(text)
    except ValueError:
        raise ValueError("must be NAME=SECRET, as PASSWORD=db-password: a variable, and the name of a secret") from None


def _read_variable(text: str) -> tuple[str, str | None]:
    """A name alone stands for the variable of that name here."""
    if "=" in text:
        return _read_pair(text)
    if not text:
        raise ValueError("must be NAME=VALUE or NAME")
    return text, None


def _read_max_running(text: str) -> int:
    try:
        return 0 if text == values.OFF else values.read_count(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {values.OFF}: no limit") from None


def _read_rate(text: str) -> tuple[int, timedelta | None]:
    """Read a number of starts and the length of their window."""
    if text == values.OFF:
        return 0, None
    starts, slash, window = text.partition("/")
    try:
        if slash:
            return values.read_count(starts), values.read_duration(window)
    except ValueError:
        pass
    raise ValueError(f"must be NUMBER/DURATION, as 100/1m; or {values.OFF}: no limit")


DURATION = Reads("duration", values.read_duration)
GRACE = Reads("duration", _read_grace)
PATTERN = Reads("names", read_pattern)
AGE = Reads("age", _read_age)
DELAY = Reads("duration", _read_delay)
TIME = Reads("time", _read_time)
MOMENT = Reads("age|time", _read_moment)
SIZE = Reads("bytes", values.read_bytes)
ADDRESS = Reads("host:port", _read_server)
PAIR = Reads("name=value", _read_pair)
SECRET_VARIABLE = Reads("name=secret", _read_secret_variable)
MAX_RUNNING = Reads("number|off", _read_max_running)
RATE = Reads("number/duration|off", _read_rate)
URL = Reads("url", values.read_webhook_url)
MAIL_ADDRESS = Reads("address", values.read_mail_address)
VARIABLE = Reads("name[=value]", _read_variable)

# As they are written on a command line: "timed-out".
STATES = {
    name.removeprefix("STATE_").replace("_", "-").lower(): number
    for name, number in fastlane_pb2.State.items()
    if number
}


FINAL_STATES = [name for name, number in STATES.items() if number >= fastlane_pb2.STATE_SUCCEEDED]


# ------------------------------------------------------------------------------------------------------- shared options


# Under these names of the running command's context, after "fastlane.": how to reach the server, beside its address.
TLS_OPTIONS = ("tls_ca", "tls_cert", "tls_key")
# The context that the address is from, or None; and the name that --context has.
CONTEXT = "fastlane.context"
_CONTEXT_NAME = "fastlane.context_name"


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """Keep an option for `connection`: no command has to pass it on. With a context, what the command line does not say
    comes from there."""
    assert param.name is not None, "options have names"
    chosen = ctx.meta[CONTEXT]
    if chosen is not None and ctx.get_parameter_source(param.name) is not ParameterSource.COMMANDLINE:
        value = getattr(chosen, param.name)
    ctx.meta[f"fastlane.{param.name}"] = value


def _keep_context(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    ctx.meta[_CONTEXT_NAME] = value
    _check_one_server(ctx, value)


def _address(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the address of the server, and keep the context that it is from."""
    source, name = ctx.get_parameter_source("address"), ctx.meta.get(_CONTEXT_NAME)
    ctx.meta[CONTEXT] = None
    if source is ParameterSource.COMMANDLINE:
        _check_one_server(ctx, name)
        return value
    if name is None and source is ParameterSource.ENVIRONMENT:
        return value
    chosen = contexts.in_force(ctx.obj or {}, name)
    ctx.meta[CONTEXT] = chosen
    if chosen is not None:
        return chosen.address
    return values.DEFAULT_LISTEN


def _check_one_server(ctx: click.Context, name: str | None) -> None:
    if name is not None and ctx.get_parameter_source("address") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--address and --context both name a server: use one of them", ctx)


def talks_to_server(function: Function) -> Function:
    """Add the address of the server, and how to reach it; see `connection.connected`."""
    for option in reversed(_CONNECTION_OPTIONS):
        function = option(function)
    # Both before the options that depend on the context.
    function = click.option(
        "--context",
        metavar="NAME",
        is_eager=True,
        expose_value=False,
        callback=_keep_context,
        help="Server of this name, see `fastlane context`.  [env var: FASTLANE_CONTEXT]",
    )(function)
    return click.option(
        "-a",
        "--address",
        type=ADDRESS,
        envvar="FASTLANE_ADDRESS",
        default=values.DEFAULT_LISTEN,
        show_default=True,
        show_envvar=True,
        is_eager=True,
        callback=_address,
        help="Address of the server.",
    )(function)


_CONNECTION_OPTIONS = [
    click.option(
        f"--{name.replace('_', '-')}",
        envvar=variable,
        show_envvar=True,
        expose_value=False,
        callback=_keep,
        metavar=metavar,
        help=meaning,
    )
    for name, variable, metavar, meaning in (
        ("tls_ca", "FASTLANE_TLS_CA", "PATH|system", "Authorities of the server's certificate: turns TLS on."),
        ("tls_cert", "FASTLANE_CLIENT_TLS_CERT", "PATH", "This client's certificate, for a server that asks for it."),
        ("tls_key", "FASTLANE_CLIENT_TLS_KEY", "PATH", "The key of --tls-cert."),
        ("token_file", "FASTLANE_TOKEN_FILE", "PATH", "File of a token; FASTLANE_TOKEN is the token itself."),
    )
]


def shows_output(function: Function) -> Function:
    return _verbose(function, "-v", "--verbose")


def shows_output_of_run(function: Function) -> Function:
    """Add the options of `shows_output` without -v, which means a volume in `docker run`."""
    return _verbose(function, "--verbose")


def _verbose(function: Function, *names: str) -> Function:
    function = click.option(
        *names, is_flag=True, help="Also show fastlane's own lines, on stderr (default on a terminal)."
    )(function)
    function = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        help="Show the container's output, and else only missing bytes and why a job did not run.",
    )(function)
    function = click.option(
        "--heartbeat", type=DURATION, help="Say on stderr each time that nothing was printed for so long, as 60s."
    )(function)
    return click.option("--no-exit-status", is_flag=True, help="Exit with 0, however the job ended.")(function)


def notifies(function: Function) -> Function:
    """For commands that say whom to tell about the ends of jobs."""
    for option in reversed(_NOTIFY_OPTIONS):
        function = option(function)
    return function


_NOTIFY_OPTIONS = [
    click.option(
        "--notify-url",
        "notify_urls",
        type=URL,
        multiple=True,
        help="Webhook that is told of the end; repeat for several.",
    ),
    click.option(
        "--notify-mail",
        "notify_mails",
        type=MAIL_ADDRESS,
        multiple=True,
        help="Mail address that is told of the end; repeat for several.",
    ),
    click.option(
        "--notify-on",
        type=click.Choice(FINAL_STATES),
        multiple=True,
        help="Tell only of this final state; repeat for several.",
    ),
    click.option(
        "--notify-event",
        type=click.Choice(["run", "job", "attempt"]),
        help="Tell of the end of each run, of the job, or of each attempt.  [default: run]",
    ),
    click.option("--notify-secret", metavar="NAME", help="Name of the server's key that signs the webhooks."),
]


def answers(function: Function) -> Function:
    """Add the option for the format of the output."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(["table", "json"]),
        default="table",
        help="`json`: one object per line, with the field names of the contract.  [default: table]",
    )(function)


def states_option(function: Function) -> Function:
    return click.option(
        "--state",
        "states",
        type=click.Choice(list(STATES)),
        multiple=True,
        help="Only in this state; repeat for several.",
    )(function)


def limits(function: Function) -> Function:
    function = click.option("--all", "everything", is_flag=True, help="List all.")(function)
    return click.option(
        "-n",
        "--limit",
        type=click.IntRange(1),
        default=50,
        show_default=True,
        metavar="NUMBER",
        help="Maximum number of rows.",
    )(function)
