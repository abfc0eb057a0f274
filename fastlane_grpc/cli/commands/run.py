"""`fastlane run`, `fastlane enqueue` and `fastlane replace`: a job from the words of a command line."""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cached_property
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.container import (
    read_device,
    read_extra_host,
    read_gpus,
    read_tmpfs,
    read_ulimit,
    read_volume,
    with_container,
)
from fastlane_grpc.cli.arguments.docker_options import refusal
from fastlane_grpc.cli.arguments.encoding import is_utf8
from fastlane_grpc.cli.arguments.env_file import read_env_file
from fastlane_grpc.cli.arguments.inputs import GivenFiles, read_input, stored_files
from fastlane_grpc.cli.arguments.options import (
    DELAY,
    DURATION,
    GRACE,
    PAIR,
    SECRET_VARIABLE,
    SIZE,
    TIME,
    VARIABLE,
    Function,
    Reads,
    answers,
    notifies,
    shows_output_of_run,
    talks_to_server,
)
from fastlane_grpc.cli.arguments.outputs import WantedOutput, read_kept, read_output
from fastlane_grpc.cli.arguments.policies import read_cause, read_exit_code, with_policies
from fastlane_grpc.cli.arguments.stdin import is_given
from fastlane_grpc.cli.commands.enqueue_file import FileEnqueue, task_of
from fastlane_grpc.cli.commands.outputs import fetch
from fastlane_grpc.cli.connection import (
    client_of,
    connected,
    job_id,
    once_it_responds,
    once_there_is_room,
    proxy_text,
)
from fastlane_grpc.cli.display.output import Display, follow, state_name
from fastlane_grpc.cli.display.tables import as_line
from fastlane_grpc.cli.display.terminal import say, write
from fastlane_grpc.cli.errors import WRONG_USE, Failure
from fastlane_grpc.cli.interrupts import Interrupts
from fastlane_grpc.v1 import fastlane_pb2

_Answer = TypeVar("_Answer")

CAUSE = Reads("end|code", read_cause)
EXIT_CODE = Reads("code", read_exit_code)

# Where Ctrl-C ends the command at any time.
_ANYTIME = nullcontext()

# `docker run -a` takes these; ours takes the address of a server.
_STREAMS = ["stdin"], ["stdout"], ["stderr"]


class _JobCommand(click.Command):
    """`run [OPTIONS] IMAGE [--] [WORD]...`: what follows the image belongs to the command, as with `docker run`, but a
    first `--`."""

    # Arguments before the first word of the command.
    _places: Sequence[str] = ("IMAGE",)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options: list[str] = []
        words = list(args)
        while words and words[0] != "--" and words[0].startswith("-") and len(words[0]) > 1:
            option = words.pop(0)
            if option == "-a" and words[:1] in _STREAMS:
                option = "--attach"
            # A shell that completes a line asks for no verdict on it.
            if (refused := refusal(option, self._valued)) and not ctx.resilient_parsing:
                raise Failure(refused, WRONG_USE)
            options.append(option)
            if self._wants_value(option) and words:
                options.append(words.pop(0))
        # Before the image, or right behind it.
        if words[:1] == ["--"]:
            del words[0]
        elif words[len(self._places) : len(self._places) + 1] == ["--"]:
            del words[len(self._places)]
        if not ctx.resilient_parsing:
            self._check_place(words)
        return super().parse_args(ctx, [*options, "--", *words])

    def _check_place(self, words: Sequence[str]) -> None:
        """Refuse an option that stands where an argument is expected, as in `replace JOB --task T`."""
        for name, word in zip(self._places, words, strict=False):
            if word.startswith("--"):
                raise click.UsageError(f"{word!r} stands in place of {name}: options go before {self._places[0]}")

    @cached_property
    def _valued(self) -> Set[str]:
        """Options that take a value."""
        return {
            name for each in self.params if isinstance(each, click.Option) and not each.is_flag for name in each.opts
        }

    def _wants_value(self, word: str) -> bool:
        """Whether the next word is this option's value: of `--task T`, `-e K=V`, `-de K=V`, and not of `--task=T`,
        `-eK=V`."""
        if word.startswith("--"):
            return word in self._valued
        for place, letter in enumerate(word[1:], 2):
            if f"-{letter}" in self._valued:
                return place == len(word)
        return False


class _ReplaceCommand(_JobCommand):
    """`replace [OPTIONS] JOB IMAGE [--] [WORD]...`"""

    _places = ("JOB", "IMAGE")


# In the order of the help.
_JOB_OPTIONS = [
    click.option("--task", metavar="NAME", help="Task that the job belongs to.  [default: the image's name]"),
    click.option(
        "-e",
        "--env",
        "envs",
        type=VARIABLE,
        multiple=True,
        help="Set an environment variable; NAME alone copies it from this environment, if it is set here.",
    ),
    click.option(
        "--env-file",
        "env_files",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="PATH",
        help="Set the environment variables in this file, one per line.",
    ),
    click.option(
        "--secret-env",
        "secret_envs",
        type=SECRET_VARIABLE,
        multiple=True,
        help="Set an environment variable to a secret of the operator, as PASSWORD=db-password.",
    ),
    click.option("--timeout", type=DURATION, help="Maximum run time, as 90s or 2h.  [default: the server's]"),
    click.option(
        "--pull",
        "pull_policy",
        type=click.Choice(["missing", "always", "never"]),
        help="When to pull the image.  [default: missing]",
    ),
    click.option(
        "--registry-credential",
        default="",
        metavar="NAME",
        help="Pull the image with this credential of the operator.  [default: the one for the registry]",
    ),
    click.option("--memory", "memory_bytes", type=SIZE, default=0, help="Memory limit, as 512m or 1g."),
    click.option("--cpus", type=click.FloatRange(min=0), default=0.0, metavar="NUMBER", help="CPU limit, as 0.5."),
    click.option(
        "--pids", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Limit of processes and threads."
    ),
    click.option(
        "--memory-reservation",
        "memory_reservation_bytes",
        type=SIZE,
        default=0,
        help="Memory that the kernel tries to leave to the job, as 256m.",
    ),
    click.option("--cpuset-cpus", "cpuset", default="", metavar="LIST", help="CPUs to run on, as 0-2,5."),
    click.option("--shm-size", "shm_bytes", type=SIZE, default=0, help="Size of /dev/shm, as 1g."),
    click.option(
        "--tmpfs",
        "tmpfs",
        type=Reads("path", read_tmpfs),
        multiple=True,
        help="Mount memory at this path, as /tmp or /tmp:size=64m,mode=1777,exec.",
    ),
    click.option(
        "--volume",
        "volumes",
        type=Reads("volume", read_volume),
        multiple=True,
        help="Mount a volume that the operator allows, as cache:/cache or cache:/cache:ro.",
    ),
    click.option(
        "--device",
        "devices",
        type=Reads("device", read_device),
        multiple=True,
        help="Use a device of the host that the operator allows, as /dev/fuse or /dev/sdb:/dev/disk:r.",
    ),
    click.option(
        "--gpus",
        "gpus",
        type=Reads("gpus", read_gpus),
        help="Use GPUs of the host, if the operator allows it: a number, all, or device=0,1.",
    ),
    click.option(
        "--input",
        "inputs",
        type=Reads("source:path", read_input),
        multiple=True,
        help="Copy a file or directory of this machine into the container, as src:/src.",
    ),
    click.option(
        "--stdin",
        "stdin",
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="PATH",
        help="Give this file to the command as its standard input.",
    ),
    click.option(
        "-i",
        "--interactive",
        "reads_stdin",
        is_flag=True,
        help="Read the standard input to its end, and give it to the command.",
    ),
    click.option(
        "--ulimit",
        "ulimits",
        type=Reads("limit", read_ulimit),
        multiple=True,
        help="Limit of each process, as nofile=1024 or core=0:-1.",
    ),
    click.option(
        "--cap-drop",
        "cap_drop",
        multiple=True,
        metavar="NAME",
        help="Take this capability away, as NET_RAW, or ALL.",
    ),
    click.option("--network", default="", metavar="NAME", help="`none`: no network; or one that the operator allows."),
    click.option(
        "--add-host",
        "add_hosts",
        type=Reads("host:ip", read_extra_host),
        multiple=True,
        help="Additional host name, as db:192.0.2.7.",
    ),
    click.option("--dns", "dns_servers", multiple=True, metavar="IP", help="Name server, in place of the engine's."),
    click.option("--dns-search", "dns_search", multiple=True, metavar="DOMAIN", help="Domain to search for names."),
    click.option(
        "--dns-option", "dns_options", multiple=True, metavar="OPTION", help="Option of the resolver, as ndots:2."
    ),
    click.option("-u", "--user", default="", help="User or uid, with an optional :group."),
    click.option("-w", "--workdir", "working_dir", default="", metavar="DIR", help="Working directory."),
    click.option("--entrypoint", metavar="PROGRAM", help="Replaces the image's entrypoint; empty: none."),
    click.option("-l", "--label", "labels", type=PAIR, multiple=True, help="Label to filter by; repeat for several."),
    click.option(
        "--priority",
        type=click.IntRange(-100, 100),
        default=0,
        metavar="NUMBER",
        help="Priority in the queue, -100 to 100; higher goes first.",
    ),
    click.option("--read-only", "read_only_root", is_flag=True, help="Mount the root file system read-only."),
    click.option(
        "--stop-signal",
        default="",
        metavar="SIGNAL",
        help="Signal that asks the container to end.  [default: the image's, or SIGTERM]",
    ),
    click.option("--stop-grace", type=GRACE, help="Time between the stop signal and SIGKILL.  [default: 10s]"),
    click.option("--in", "--start-in", "start_in", type=DELAY, help="Delay before the start, as 90s, 2m30s or 1h30m."),
    click.option(
        "--at",
        "--start-at",
        "start_at",
        type=TIME,
        help="Time of the start, as 2026-01-31T08:00:00Z; a time in the past means now.",
    ),
    click.option(
        "--expires", "--expire-time", "expire_time", type=TIME, help="Latest start; after it the job ends as expired."
    ),
    click.option(
        "--retries", type=click.IntRange(0, 100), default=0, metavar="NUMBER", help="Retries after a failed attempt."
    ),
    click.option(
        "--backoff",
        type=DELAY,
        help="Wait before the first retry, at most; the wait is a random part.  [default: 1s]",
    ),
    click.option(
        "--backoff-factor",
        type=click.FloatRange(1, 100),
        metavar="NUMBER",
        help="Each further wait is longer by this factor.  [default: 2]",
    ),
    click.option("--max-backoff", type=DURATION, help="Longest wait before a retry.  [default: 1h]"),
    click.option(
        "--retry-on",
        "causes",
        type=CAUSE,
        multiple=True,
        help="Retry only after this end: exit-code, out-of-memory, timed-out, image-not-found, image-denied, or an "
        "exit code as 75; repeat for several.  [default: exit-code, out-of-memory, timed-out]",
    ),
    click.option(
        "--no-retry-on",
        "except_codes",
        type=EXIT_CODE,
        multiple=True,
        help="Do not retry after this exit code; repeat for several.",
    ),
    click.option(
        "--max-memory",
        "max_memory_bytes",
        type=SIZE,
        help="More memory for the attempt after one that ran out of memory, up to this.",
    ),
    click.option(
        "--memory-growth",
        type=click.FloatRange(1, 16, min_open=True),
        metavar="NUMBER",
        help="With --max-memory: how many times the memory of the attempt before.  [default: 2]",
    ),
    click.option(
        "--cron", "expression", metavar="EXPRESSION", help="Run at every tick of this schedule, as '0 3 * * *'."
    ),
    click.option("--time-zone", metavar="NAME", help="Time zone of --cron, as Europe/Berlin.  [default: UTC]"),
    click.option(
        "--overlap",
        type=click.Choice(["skip", "queue-one", "replace", "allow"]),
        help="What a tick does while a run has not ended.  [default: skip]",
    ),
    click.option(
        "--catch-up",
        type=click.Choice(["latest", "none", "all"]),
        help="Which missed ticks start a run after a downtime.  [default: latest]",
    ),
    click.option(
        "--max-runs",
        type=click.IntRange(0),
        default=0,
        metavar="NUMBER",
        help="Number of runs after which the schedule of --cron is over.  [default: no limit]",
    ),
    click.option(
        "--stop-when-unwatched",
        type=DURATION,
        help="Stop the job when nobody has followed its log or watched it for this time, 5s to 1d.",
    ),
    click.option("--unique", "unique_key", metavar="KEY", help="At most one open job of the task with this key."),
    click.option(
        "--on-conflict",
        type=click.Choice(["refuse", "use-existing", "replace"]),
        help="What happens if another job holds the --unique key.  [default: refuse]",
    ),
]
# Of commands that enqueue one job.
_ENQUEUE_OPTIONS = [
    click.option("--request-id", metavar="ID", help="Run the command once, however often it is sent with this id."),
    click.option("--id-file", type=click.Path(path_type=Path), metavar="PATH", help="Write the job's id to this file."),
    click.option(
        "--wait",
        type=DELAY,
        default="60s",
        show_default=True,
        help="How long to wait for a server that does not respond.",
    ),
]


def _describes_job(function: Function) -> Function:
    """The image, the words and all options of a job."""
    function = notifies(function)
    for option in reversed(_JOB_OPTIONS):
        function = option(function)
    return click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] [WORD]...")(function)


# `enqueue` and `replace` have --output for the form of their answer.
_copies_outputs = click.option(
    "--output",
    "--keep",
    "outputs",
    type=Reads("path[:target]", read_output),
    multiple=True,
    help="Keep a file or directory of the container and copy it here, as /src/dist or /src/dist:dist.",
)
_keeps_outputs = click.option(
    "--keep",
    "outputs",
    type=Reads("path", read_kept),
    multiple=True,
    help="Keep a file or directory of the container, as /src/dist; `fastlane outputs` gets it.",
)


def _enqueues_one(function: Function) -> Function:
    for option in reversed(_ENQUEUE_OPTIONS):
        function = option(function)
    return function


@click.command(cls=_JobCommand)
@click.argument("image")
@_describes_job
@_copies_outputs
@_enqueues_one
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and exit, as `fastlane enqueue`.")
@shows_output_of_run
@talks_to_server
@click.pass_obj
def run(
    environ: Mapping[str, str],
    /,
    *,
    detach: bool,
    verbose: bool,
    quiet: bool,
    heartbeat: timedelta | None,
    no_exit_status: bool,
    address: str,
    outputs: Sequence[WantedOutput],
    **job_options: Any,
) -> int:
    """Run a command in IMAGE: copy its stdout and stderr live, and exit with its status.

    \b
    Examples:
      fastlane run busybox -- sh -c 'echo hello; exit 3'
      fastlane run --task send-mail -e SMTP_SERVER=mail --timeout 2m registry:5000/mail:1.4 python send.py
      JOB=$(fastlane run -d busybox sleep 60)
      fastlane run --input src:/src -w /src --output /src/dist node:22 npm run build
      pg_dump shop | fastlane run -i -e PGHOST=db postgres:17 psql
      fastlane run --retries 3 --backoff 5s busybox sh -c 'exit 1'

    Everything after IMAGE belongs to the command, as with `docker run`. A job gets a standard input by -i or --stdin
    alone, which is read to its end before the job is enqueued, and no terminal. Retries are announced on stderr, and
    the exit status is that of the job.

    If the connection or the server goes down, the command waits and resumes: no byte is repeated, and missing bytes are
    reported. Ctrl-C (or SIGTERM) stops the job and shows its last output; press it again to detach. If the reader of
    stdout closes it (`| head`), the command ends and the job continues.

    \b
    Exit status: that of the job, or
      124  the job timed out                 69  the server does not respond
      130  the job was stopped                2  usage error
      125  the job never ran, expired,        1  another error
           or its end is unknown
    """
    told = quiet or job_options["reads_stdin"] or job_options["stdin"] is not None or _tell_of_stdin()
    if verbose and (proxied := proxy_text(address)):
        say(proxied)
    with connected(address) as client:
        interrupts = None if detach else Interrupts(client_of(address))
        pause = time.sleep if interrupts is None else interrupts.pause
        storing = _ANYTIME if interrupts is None else interrupts.before_a_job()
        job = _enqueued(client, environ, pause, address=address, outputs=outputs, storing=storing, **job_options)
        if interrupts is None:
            click.echo(job.id)
            return 0
        interrupts.job_is_known(job.id)
        display = Display(environ, verbose=verbose, quiet=quiet, heartbeat=heartbeat, reports_pull=True)
        if display.system:
            display.say(f"job {job.id}, execution {job.execution.id}")
        elif not quiet and _is_ci(environ):
            # A reader of the step's log finds the job by its id. Outside of CI systems stderr has only the bytes of the
            # job, as long as nothing fails.
            display.say(f"job {job.id}")
        display.followed = f"job {job.id}"
        status = follow(client.tail_job(job.id, sources=display.sources), display)
        if outputs and not _fetched(client, job.id, outputs):
            status = status or 1
    if not told:
        # Whoever writes to it may have been slow.
        _tell_of_stdin()
    return 0 if no_exit_status else status


@click.command(cls=_JobCommand)
@click.argument("image", required=False)
@_describes_job
@_keeps_outputs
@_enqueues_one
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="PATH",
    help="Enqueue the jobs in this file instead, one JSON object per line; - reads the standard input.",
)
@click.option("--dry-run", is_flag=True, help="Validate without storing; only with --file.")
@answers
@talks_to_server
@click.pass_context
def enqueue(
    ctx: click.Context, /, *, file: Path | None, dry_run: bool, form: str, address: str, **job_options: Any
) -> int:
    """Enqueue a command in IMAGE and print the job's id. The job starts when it is due and a slot is free.

    \b
    Examples:
      JOB=$(fastlane enqueue --task send-mail -e SMTP_SERVER=mail registry:5000/mail:1.4 python send.py)
      fastlane enqueue --request-id invoice-4711 registry:5000/mail:1.4 python invoice.py 4711
      fastlane enqueue --in 10m --expires 2030-01-31T09:00:00Z busybox echo later
      fastlane enqueue --cron '30 2 * * *' --time-zone Europe/Berlin --retries 3 busybox echo nightly
      fastlane enqueue --notify-mail ops@example.org --notify-on failed registry:5000/backup:2 backup

    Everything after IMAGE belongs to the command, as with `docker run`. With a --request-id the call is safe to repeat:
    the same command is one job, and its id is printed each time.

    \b
    A line of --file has the fields of EnqueueJobRequest; those of its spec may stand beside task_id:
      {"task_id": "send-mail", "image": "mail:1.4", "args": ["python", "send.py"], "timeout": "2m", "retry": 3}
      {"image": "busybox", "command": "echo nightly", "cron": "30 2 * * *", "labels": {"team": "billing"}}

    A bad line is reported with its number; nothing of it is stored, and all other lines are. Exit status 0 means that
    every line was stored; -o json prints a result for each line. With --request-id ID, line 7 without a
    request_id of its own gets ID:7. The command is then safe to repeat, also after bad lines were corrected."""
    environ: Mapping[str, str] = ctx.obj
    if file is None:
        if job_options["image"] is None:
            raise click.UsageError("Missing argument 'IMAGE', or the option --file")
        if dry_run:
            raise click.UsageError("--dry-run has no effect without --file")
        with connected(address) as client:
            job = _enqueued(client, environ, time.sleep, address=address, **job_options)
        write(1, as_line(job) if form == "json" else f"{job.id}\n".encode())
        return 0
    _refuse_beside_file(ctx)
    with connected(address) as client:
        return FileEnqueue(
            client,
            environ,
            form=form,
            task_id=job_options["task"] or "",
            request_id=job_options["request_id"] or "",
            dry_run=dry_run,
        ).run(file)


@click.command(cls=_ReplaceCommand)
@click.argument("id", metavar="JOB")
@click.argument("image")
@_describes_job
@_keeps_outputs
@click.option("--etag", default="", help="Replace only if the job has this etag; `fastlane job -o json` shows it.")
@answers
@talks_to_server
@click.pass_obj
def replace(
    environ: Mapping[str, str],
    /,
    *,
    id: str,  # noqa: A002
    etag: str,
    form: str,
    address: str,
    image: str,
    task: str | None,
    **options: Any,
) -> int:
    """Replace all that a job is to do: its command, its schedule, its retries. A job that does not exist is created
    under the id, which has to be a UUID. Options that are not given get their defaults again.

    \b
    Examples:
      fastlane replace --cron '0 4 * * *' 01980f3e-8b1c-7d43-9a51-0242ac120002 busybox echo nightly
      fastlane replace --task backup --cron @daily "$(uuidgen)" backup:2.1

    A running execution continues as it was started; one that has not started is replaced. A job that has ended starts
    anew. The command is safe to repeat: the same job again changes nothing.
    """
    with connected(address) as client:
        found = job_id(client, id)
        if task is None:
            try:
                task = client.job(found).task_id
            except api.NotFound:
                task = task_of(image)
        files = GivenFiles.of(options)
        made = _job_options(environ, **options)
        made |= stored_files(files, lambda: client.server_info().max_input_bytes, client.upload)
        job = client.replace_job(found, task, image, etag=etag, **made)
    write(1, as_line(job) if form == "json" else f"job {job.id}: {state_name(job.state)}\n".encode())
    return 0


# Options of a job that mean something for all lines of a file.
_WITH_FILE = {"file", "task", "request_id", "dry_run", "form", "address"}


def _refuse_beside_file(ctx: click.Context) -> None:
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name not in _WITH_FILE and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            given = parameter.opts[0] if isinstance(parameter, click.Option) else name.upper()
            if ctx.params[name]:
                raise click.UsageError(f"{given} cannot be combined with --file: each line has a job of its own")


def _enqueued(
    client: api.Client,
    environ: Mapping[str, str],
    pause: Callable[[float], None],
    *,
    address: str,
    image: str,
    task: str | None,
    request_id: str | None,
    id_file: Path | None,
    wait: timedelta,
    storing: AbstractContextManager[None] = _ANYTIME,
    **options: Any,
) -> fastlane_pb2.Job:
    # The same one in each try: they make one job.
    request_id = request_id or str(uuid.uuid4())
    files = GivenFiles.of(options)
    made = _job_options(environ, **options)

    def patiently(call: Callable[[], _Answer]) -> _Answer:
        return once_there_is_room(lambda: once_it_responds(call, address, wait, pause), pause)

    def enqueue() -> fastlane_pb2.Job:
        return client.enqueue(task or task_of(image), image, request_id=request_id, **made)

    # Opened before a job is stored: a file that cannot be written must not cost a job whose id nobody knows.
    with _open_id_file(id_file) as file:
        with storing:
            made |= stored_files(
                files,
                lambda: patiently(client.server_info).max_input_bytes,
                lambda content: patiently(lambda: client.upload(content)),
            )
        job = patiently(enqueue)
        try:
            file.write(f"{job.id}\n".encode())
        except OSError as error:
            raise Failure(f"cannot write the id of job {job.id} to {id_file}: {error.strerror}") from error
    return job


def _fetched(client: api.Client, job_id: str, outputs: Sequence[WantedOutput]) -> bool:
    """Copy the outputs of a job that has ended here. Whether that was possible; if not, say why."""
    try:
        fetch(client, client.job(job_id).execution.id, outputs)
    except (Failure, api.Error, api.OutputsDamaged) as error:
        say(f"{error}; `fastlane outputs {job_id}` may still get them")
        return False
    return True


def _open_id_file(path: Path | None) -> RawIOBase | BytesIO:
    try:
        return BytesIO() if path is None else path.open("wb", buffering=0)
    except OSError as error:
        raise Failure(f"cannot write --id-file {path}: {error.strerror}; no job was enqueued", WRONG_USE) from error


def _job_options(
    environ: Mapping[str, str],
    *,
    words: Sequence[str],
    envs: Sequence[tuple[str, str | None]],
    env_files: Sequence[Path],
    secret_envs: Sequence[tuple[str, str]],
    labels: Sequence[tuple[str, str]],
    entrypoint: str | None,
    outputs: Sequence[WantedOutput],
    **options: Any,
) -> dict[str, Any]:
    """Return what both clients take of the options of `_describes_job`, but for the task and the image."""
    return {
        **with_container(with_policies(options)),
        "args": words,
        "envs": _environment(envs, env_files, environ),
        "secret_envs": dict(secret_envs),
        "labels": dict(labels),
        "outputs": [each.path for each in outputs],
        "entrypoint": () if entrypoint is None else (entrypoint,),
    }


def _is_ci(environ: Mapping[str, str]) -> bool:
    """Whether this is a step of a CI system. Most set CI; Jenkins, Azure Pipelines and TeamCity have their own ways."""
    if environ.get("CI", "false").lower() not in {"", "0", "false"}:
        return True
    return any(environ.get(name) for name in ("JENKINS_URL", "TF_BUILD", "TEAMCITY_VERSION"))


def _tell_of_stdin() -> bool:
    """Say that what was piped into the command is not read, if something was. Whether that was said."""
    if given := is_given():
        say("the pipe or file on the standard input of this command is not read: with -i the job gets it")
    return given


def _environment(
    variables: Iterable[tuple[str, str | None]], files: Iterable[Path], environ: Mapping[str, str]
) -> dict[str, str]:
    """A later file goes before an earlier one, and -e before all files."""
    values = {name: value for file in files for name, value in read_env_file(file, environ)}
    for name, value in variables:
        if value is None and name not in environ:
            # As with `docker run`: what is not set here is not set there.
            values.pop(name, None)
            continue
        values[name] = environ[name] if value is None else value
        if not is_utf8(values[name]):
            raise click.BadParameter(f"the value of {name!r} in this environment is not UTF-8", param_hint="'-e'")
    return values
