"""The command line, for people, shells and CI steps: output goes where the container sent it, and the exit status is the job's.

What only the server needs is imported where it is needed: the other commands begin in a tenth of a second.
"""

import os
import queue
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from fastlane_grpc import client as api
from fastlane_grpc import config
from fastlane_grpc.v1 import fastlane_pb2

# Exit statuses of our own. Those of a job are told by the end of its log.
FAILED = 1
WRONG_USE = 2
UNAVAILABLE = 69
INTERRUPTED = 130

# How long the commands wait for a server that does not answer, which may just be restarting; and how long a stop does, which is worth more.
_RETRY_FOR = timedelta(seconds=3)
_STOP_FOR = timedelta(minutes=2)
# A shorter absence of the server is not worth a word.
_AWAY_SECONDS = 1.0

_Function = TypeVar("_Function", bound=Callable[..., Any])


def main() -> NoReturn:
    """The command `fastlane`."""
    # Ctrl-C ends it as it ends any program, where nothing better is known (`run`): an exception out of the middle of gRPC may leave a lock
    # taken for ever. For the same reason the interpreter is not wound down, with threads of gRPC in it; nothing is buffered here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os._exit(_run(sys.argv[1:], os.environ))


def _run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    try:
        status: int = fastlane.main(list(arguments), prog_name="fastlane", standalone_mode=False, obj=environ) or 0
    except click.exceptions.NoArgsIsHelpError as usage:
        click.echo(usage.message, err=True)
        return WRONG_USE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "fastlane"
        return _failed(f"{error.format_message().rstrip('.')}; see `{where} --help`", WRONG_USE)
    except config.ConfigError as error:
        return _failed(str(error), WRONG_USE)
    except api.ServerUnavailable as error:
        return _failed(str(error), UNAVAILABLE)
    except (api.Error, click.ClickException) as error:
        return _failed(str(error), FAILED)
    return status


# ---------------------------------------------------------------------------------------------------------------- kinds of values


class _Reads(click.ParamType[object]):
    """Text that a function of `config` reads, by the same strict rules as the settings."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


def _read_grace(text: str) -> timedelta:
    """Unlike other durations it may be none at all."""
    if text == "0s":
        return timedelta(0)
    try:
        return config.read_duration(text)
    except ValueError:
        raise ValueError("has to be a duration from 0s on, as 10s or 1m30s; 0s kills at once") from None


def _read_server(text: str) -> str:
    """Where a server is. Unlike where one is to serve, that is a certain port."""
    try:
        if int(config.read_address(text).rpartition(":")[2]):
            return text
    except ValueError:
        pass
    raise ValueError(f"has to be HOST:PORT, as {config.DEFAULT_LISTEN}")


def _read_pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError("has to be NAME=VALUE")
    return name, value


def _read_variable(text: str) -> tuple[str, str | None]:
    """A name alone stands for the variable of that name here."""
    if "=" in text:
        return _read_pair(text)
    if not text:
        raise ValueError("has to be NAME=VALUE or NAME")
    return text, None


DURATION = _Reads("duration", config.read_duration)
GRACE = _Reads("duration", _read_grace)
SIZE = _Reads("bytes", config.read_bytes)
ADDRESS = _Reads("host:port", _read_server)
PAIR = _Reads("name=value", _read_pair)
VARIABLE = _Reads("name[=value]", _read_variable)


# ---------------------------------------------------------------------------------------------------------------- commands


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def fastlane() -> None:
    """Run commands in containers and see their output live.

    \b
      fastlane server                                  serve jobs, on this machine's Docker engine
      fastlane run busybox -- echo hello               run one, see its output, exit as it does
      fastlane logs JOB                                see it again, or from another place
    """


def _talks_to_server(function: _Function) -> _Function:
    return click.option(
        "-a",
        "--address",
        type=ADDRESS,
        envvar="FASTLANE_ADDRESS",
        default=config.DEFAULT_LISTEN,
        show_default=True,
        show_envvar=True,
        help="The server.",
    )(function)


def _shows_output(function: _Function) -> _Function:
    function = click.option("-v", "--verbose", is_flag=True, help="Show fastlane's own lines too (as on a terminal), on stderr.")(function)
    return click.option("-q", "--quiet", is_flag=True, help="Show the container's output, and where some is missing; nothing else.")(
        function
    )


class _Setting(click.Option):
    """Shows the default in the help, and makes it only there: it may depend on the environment, which no other command minds."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        try:
            default = config.default_text(self.name or "")
            return record and (record[0], f"{record[1]}  [default: {default}]" if default else record[1])
        except config.ConfigError:
            return record


def _settings(function: _Function) -> _Function:
    """One option for each setting; which value counts is decided, and checked, where the settings are."""
    for setting in reversed(config.SETTINGS):
        flag, kind, meaning = f"--{setting.name.replace('_', '-')}", setting.metadata["kind"], setting.metadata["meaning"]
        function = click.option(flag, cls=_Setting, metavar=kind, help=f"{meaning[0].upper()}{meaning[1:]}.")(function)
    return function


@fastlane.command(short_help="Serve jobs.")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), envvar="FASTLANE_CONFIG", show_envvar=True, help="TOML file of settings."
)
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
    settings = config.load(flags, environ, file)
    from fastlane_grpc import app, errors

    def ready(port: int) -> None:
        host = settings.listen.rpartition(":")[0]
        click.echo(f"fastlane {_version()} listening on {host}:{port}, data in {settings.data_dir}")

    try:
        app.serve(settings, ready, colors=not environ.get("NO_COLOR"))
    except errors.CannotServe as error:
        raise click.ClickException(str(error)) from error
    return 0


class _RunCommand(click.Command):
    """`run [OPTIONS] IMAGE [OPTIONS] [--] [WORD]...`: options may stand on both sides of the image, and the words of the command are
    taken as they are, from the first that is no option, or from `--` on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options: list[str] = []
        words = list(args)
        image: list[str] = []
        while words:
            word = words.pop(0)
            if word == "--":
                break
            if word.startswith("-") and len(word) > 1:
                options.append(word)
                if self._wants_value(word) and words:
                    options.append(words.pop(0))
            elif not image:
                image = [word]
            else:
                words.insert(0, word)
                break
        return super().parse_args(ctx, [*options, "--", *image, *words])

    def _wants_value(self, word: str) -> bool:
        """Whether the next word is this option's value: of `--task T`, `-e K=V`, `-de K=V`, and not of `--task=T`, `-eK=V`."""
        valued = {name for each in self.params if isinstance(each, click.Option) and not each.is_flag for name in each.opts}
        if word.startswith("--"):
            return word in valued
        for place, letter in enumerate(word[1:], 2):
            if f"-{letter}" in valued:
                return place == len(word)
        return False


@fastlane.command(cls=_RunCommand, short_help="Run a command in an image, show its output, exit as it does.")
@click.argument("image")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] [WORD]...")
@click.option("--task", metavar="NAME", help="What to group the job under.  [default: the image's name]")
@click.option("-e", "--env", "envs", type=VARIABLE, multiple=True, help="Set a variable; by its name alone, as it is set here.")
@click.option("--timeout", type=DURATION, help="Longest time it may run, as 90s or 2h.  [default: the server's]")
@click.option(
    "--pull", "pull_policy", type=click.Choice(["missing", "always", "never"]), help="When to pull the image.  [default: missing]"
)
@click.option("--memory", "memory_bytes", type=SIZE, default=0, help="How far it may grow, as 512m or 1g.")
@click.option("--cpus", type=click.FloatRange(min=0), default=0.0, metavar="NUMBER", help="CPUs it may use, as 0.5.")
@click.option("--pids", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Processes and threads it may have.")
@click.option("--network", default="", metavar="NAME", help="`none`: no network.")
@click.option("-u", "--user", default="", help="User or uid, and :group, to run as.")
@click.option("-w", "--workdir", "working_dir", default="", metavar="DIR", help="Directory to start in.")
@click.option("--entrypoint", metavar="PROGRAM", help="In place of the image's entrypoint; empty: none.")
@click.option("-l", "--label", "labels", type=PAIR, multiple=True, help="To find the job by.")
@click.option("--priority", type=click.IntRange(-100, 100), default=0, metavar="NUMBER", help="Higher goes first.")
@click.option("--read-only", "read_only_root", is_flag=True, help="The root file system cannot be written.")
@click.option("--stop-signal", default="", metavar="SIGNAL", help="What asks it to end.  [default: the image's, or SIGTERM]")
@click.option("--stop-grace", type=GRACE, help="Time from that signal to the kill.  [default: 10s]")
@click.option("--request-id", metavar="ID", help="With the same one, the same command runs once, however often it is sent.")
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and do not wait.")
@_shows_output
@_talks_to_server
@click.pass_obj
def run(
    environ: Mapping[str, str],
    /,
    *,
    image: str,
    words: Sequence[str],
    task: str | None,
    envs: Sequence[tuple[str, str | None]],
    labels: Sequence[tuple[str, str]],
    entrypoint: str | None,
    detach: bool,
    verbose: bool,
    quiet: bool,
    address: str,
    **spec: Any,
) -> int:
    """Run a command in IMAGE: its output comes live, on stdout and stderr; the exit status is the job's.

    \b
    Examples:
      fastlane run busybox -- sh -c 'echo hello; exit 3'
      fastlane run --task send-mail -e SMTP_SERVER=mail --timeout 2m registry:5000/mail:1.4 python send.py
      JOB=$(fastlane run -d busybox sleep 60)

    If the connection or the server drops, it waits and goes on by itself: no byte twice, and where some are missing it says so. Ctrl-C
    (or SIGTERM) stops the job and shows what it still prints; a second one leaves it alone. If the reader of stdout goes away (`| head`),
    so does this command; the job runs on.

    \b
    Exit status: that of the job, or
      124  it ran into its timeout           69  the server does not answer
      130  it was stopped                     2  wrong use
      125  it never ran, or nobody knows      1  another error
           how it ended
    """
    with _client(address) as client:
        interrupts = None if detach else _Interrupts(address)
        job = client.enqueue(
            task or _task_of(image),
            image,
            args=words,
            envs=_environment(envs, environ),
            labels=dict(labels),
            entrypoint=() if entrypoint is None else (entrypoint,),
            **spec,
        )
        if interrupts is None:
            click.echo(job.id)
            return 0
        interrupts.job_is_known(job.id)
        display = _Display.chosen(environ, verbose=verbose, quiet=quiet)
        if display.system:
            display.say(f"job {job.id}, execution {job.execution.id}")
        return _follow(client.tail(job.execution.id, sources=display.sources), display)


@fastlane.command(short_help="Show the output of a job, live or later.")
@click.argument("id", metavar="JOB|EXECUTION")
@click.option("--no-follow", is_flag=True, help="Show what is there, and do not wait for more.")
@click.option("--source", "names", type=click.Choice(["stdout", "stderr", "system"]), multiple=True, help="Show these alone.")
@click.option("--cursor", default="", help="Begin after this point of the log.")
@_shows_output
@_talks_to_server
@click.pass_obj
def logs(
    environ: Mapping[str, str],
    /,
    *,
    id: str,  # noqa: A002
    no_follow: bool,
    names: Sequence[str],
    cursor: str,
    verbose: bool,
    quiet: bool,
    address: str,
) -> int:
    """Show the output of a job's newest execution, or of one execution: what there is, then what comes, to its end.

    \b
    Examples:
      fastlane logs 01980f3e-8b1c-7d43-9a51-0242ac120002
      fastlane logs --no-follow --source stderr 01980f3e-8b1c-7d43-9a51-0242ac120002 | tail

    Exit status: that of the job, as with `fastlane run`; 75 where --no-follow met one that is not over. Ctrl-C leaves the job alone.
    """
    display = _Display.chosen(environ, verbose=verbose, quiet=quiet)
    if names:
        display = replace(display, sources=[fastlane_pb2.Source.Value(f"SOURCE_{name.upper()}") for name in names])
    with _client(address) as client:
        execution_id = _execution_id(client, id)
        return _follow(client.tail(execution_id, cursor, display.sources, follow=not no_follow), display)


@fastlane.command(short_help="Stop a job.")
@click.argument("job_id", metavar="JOB")
@click.option("--grace", type=GRACE, help="Time from the signal to the kill, as 5s; 0s kills at once.  [default: the job's own]")
@click.option("--note", default="", help="Why, for the record.")
@_talks_to_server
def stop(*, job_id: str, grace: timedelta | None, note: str, address: str) -> int:
    """Stop a job: its signal, then, after its grace, a kill. One that waits is taken out of the queue. Does not wait for the end.

    \b
    Example:
      fastlane stop --grace 2s --note "wrong mailing list" 01980f3e-8b1c-7d43-9a51-0242ac120002
    """
    with _client(address) as client:
        job = client.stop(job_id, note, grace)
    click.echo(f"job {job.id}: {_state_name(job.state)}")
    return 0


@fastlane.command()
def version() -> int:
    """Print the version of this program.

    \b
    Example:
      fastlane version
    """
    click.echo(f"fastlane {_version()}")
    return 0


@fastlane.command("config", short_help="Print the settings a server would have.")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), envvar="FASTLANE_CONFIG", show_envvar=True, help="TOML file of settings."
)
@click.option("-o", "--output", type=click.Choice(["toml", "json"]), default="toml", show_default=True, help="How to print them.")
@_settings
@click.pass_obj
def config_command(environ: Mapping[str, str], /, file: Path | None, output: str, **flags: str | None) -> int:
    """Print the settings that `fastlane server` would have, with the same flags, here and now, and where each comes from.

    What is printed is a file for --config that has the same settings in force.

    \b
    Example:
      fastlane config --config /etc/fastlane.toml
    """
    in_force = config.in_force(flags, environ, file)
    click.echo(config.toml(in_force) if output == "toml" else config.as_json(in_force), nl=output == "json")
    return 0


# ---------------------------------------------------------------------------------------------------------------- output


@dataclass(frozen=True, slots=True)
class _Display:
    """Where output goes, and how much of it. Nothing is buffered here: what has come is on its way."""

    sources: Sequence[fastlane_pb2.Source.ValueType]
    dim: bool
    quiet: bool

    @classmethod
    def chosen(cls, environ: Mapping[str, str], *, verbose: bool, quiet: bool) -> "_Display":
        terminal = sys.stderr.isatty()
        colour = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        system = [api.SYSTEM] if (terminal or verbose) and not quiet else []
        return cls(sources=[api.STDOUT, api.STDERR, *system], dim=colour, quiet=quiet)

    @property
    def system(self) -> bool:
        """Whether fastlane's own lines are shown."""
        return api.SYSTEM in self.sources

    def output(self, pieces: Iterable[api.Output]) -> None:
        for source, run_of_one in groupby(pieces, lambda piece: piece.source):
            data = b"".join(piece.data for piece in run_of_one)
            if source == api.SYSTEM and self.dim:
                data = b"\x1b[2m" + data + b"\x1b[22m"
            _write(1 if source == api.STDOUT else 2, data)

    def end(self, end: api.End) -> None:
        """Why it ended, where the container's own exit does not say it and fastlane's own lines, which do, are not shown."""
        if end.exit_status == 0 or end.outcome is None or self.system or self.quiet:
            return
        if end.outcome.reason != fastlane_pb2.REASON_EXIT_CODE:
            self.say(end.outcome.detail or f"it ended as {_state_name(end.state)}")

    def say(self, text: str) -> None:
        _write(2, f"fastlane: {text}\n".encode())


def _follow(tail: api.Tail, display: _Display) -> int:
    """Shows what comes, to the end; the exit status that it tells."""
    told_away = False
    with tail:
        for events in tail.batches():
            display.output(event for event in events if isinstance(event, api.Output))
            for event in events:
                match event:
                    case api.Gap():
                        display.say(_gap_text(event))
                    case api.Disconnected() if event.seconds >= _AWAY_SECONDS and not told_away:
                        told_away = True
                        display.say(f"the server does not answer ({_cause(event.error)}); trying again until it does")
                    case api.Reconnected() if told_away:
                        told_away = False
                        display.say(f"the server is back after {event.seconds:.0f} s; going on where it was cut")
                    case api.End():
                        display.end(event)
                        return event.exit_status
    raise api.Error("the output ended without saying how")


def _state_name(state: int) -> str:
    for name, number in fastlane_pb2.State.items():
        if number == state:
            return name.removeprefix("STATE_").replace("_", " ").lower()
    return f"state {state}"


def _gap_text(gap: api.Gap) -> str:
    name = "stderr" if gap.source == api.STDERR else "fastlane's own lines" if gap.source == api.SYSTEM else "stdout"
    what = f"bytes of {name} may be missing here" if gap.missing_bytes is None else f"{gap.missing_bytes} bytes of {name} are missing here"
    if gap.cause == fastlane_pb2.LogGap.CAUSE_SIZE_LIMIT:
        return f"{what}: the log grew beyond its limit"
    if gap.cause == fastlane_pb2.LogGap.CAUSE_PRUNED:
        return f"{what}: the log was pruned"
    if gap.cause == fastlane_pb2.LogGap.CAUSE_ENGINE:
        return f"{what}: lost before fastlane had stored them"
    if gap.cause == fastlane_pb2.LogGap.CAUSE_STORE:
        return f"{what}: the server's disk had no room, or is damaged"
    return what


def _write(fd: int, data: bytes) -> None:
    """All of it, at once, past Python's buffers. A pipe may be set not to wait, by whoever is at its other end: then this waits for it."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except BrokenPipeError:
            _die_of_broken_pipe()
        except OSError as error:
            raise api.Error(f"cannot write to {'stdout' if fd == 1 else 'stderr'}: {error.strerror}; the job runs on") from error


def _die_of_broken_pipe() -> NoReturn:
    """Ends as any Unix tool whose reader went away: of SIGPIPE, without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    raise AssertionError("SIGPIPE ends the process")


def _failed(message: str, status: int) -> int:
    click.echo(f"fastlane: {message}", err=True)
    return status


# ---------------------------------------------------------------------------------------------------------------- interrupts


class _Interrupts:
    """Takes SIGINT and SIGTERM in place of Python: the first stops the job, the second leaves at once and the job to its stopping.

    A handler may run anywhere in the main thread, in the middle of gRPC too. So it only posts an order; a thread carries it out.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._count = 0
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._job_id = ""
        self._stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def job_is_known(self, job_id: str) -> None:
        self._job_id = job_id
        threading.Thread(target=self._carry_out, name="fastlane-stop", daemon=True).start()

    def _handle(self, number: int, _: object) -> None:
        self._count += 1
        if self._count == 1:
            self._orders.put(signal.Signals(number).name)
            return
        if not self._job_id:
            text = "left before the server answered; the job may have been kept"
        elif self._stopped:
            text = f"left; the job is stopping. See it with: fastlane logs {self._job_id}"
        else:
            text = f"left; the job may run on. See it with: fastlane logs {self._job_id}; end it with: fastlane stop {self._job_id}"
        # Now, whatever waits for whatever: nothing of ours is buffered.
        os.write(2, f"\nfastlane: {text}\n".encode())
        os._exit(INTERRUPTED)

    def _carry_out(self) -> None:
        name = self._orders.get()
        os.write(2, f"\nfastlane: stopping job {self._job_id}; once more leaves it alone\n".encode())
        try:
            with api.Client(self._address, timeout=_STOP_FOR) as client:
                client.stop(self._job_id, f"{name} in fastlane run")
            self._stopped = True
        except api.Error as error:
            os.write(2, f"fastlane: cannot stop job {self._job_id}: {error}\n".encode())


# ---------------------------------------------------------------------------------------------------------------- small decisions


def _task_of(image: str) -> str:
    """The image's last name, without registry, tag and digest: "mail" of "registry:5000/team/mail:1.4"."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0] or "run"


def _environment(variables: Iterable[tuple[str, str | None]], environ: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for name, value in variables:
        if value is None and name not in environ:
            raise click.BadParameter(f"{name!r} is not set here; give it a value, as {name}=VALUE", param_hint="'-e'")
        values[name] = environ[name] if value is None else value
    return values


def _execution_id(client: api.Client, either_id: str) -> str:
    """The id itself if it is of an execution; of a job, its newest execution's."""
    try:
        return client.execution(either_id).id
    except api.NotFound:
        try:
            return client.job(either_id).execution.id
        except api.NotFound as error:
            raise api.NotFound(f"there is no job and no execution {either_id!r}", code=error.code) from error


@contextmanager
def _client(address: str) -> Iterator[api.Client]:
    with api.Client(address, retry_for=_RETRY_FOR) as client:
        try:
            yield client
        except api.ServerUnavailable as error:
            if error.reason:
                raise
            message = f"no server answers at {address} ({_cause(error)}); start one with `fastlane server`, or name another with --address"
            raise api.ServerUnavailable(message) from error


def _cause(error: api.Error) -> str:
    """In short. Where nobody answers gRPC tells at length which addresses it tried and, last, what the system said."""
    return error.message if error.reason else error.message.rpartition(": ")[2]


def _version() -> str:
    from importlib.metadata import version

    return version("fastlane-grpc")


if __name__ == "__main__":
    main()
