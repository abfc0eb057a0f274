"""The command line, for people, shells and CI steps: output goes where the container sent it, and the exit status is
the job's.

Each command is imported when it is called for, and what only the server needs even later: `fastlane version` takes a
tenth of a second."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import click

from fastlane_grpc.cli.arguments.encoding import check_arguments
from fastlane_grpc.cli.commands.version import show_version
from fastlane_grpc.cli.display.terminal import begin_line
from fastlane_grpc.cli.errors import FAILED, WRONG_USE, Failure
from fastlane_grpc.text.sanitize import printable

# Of each command the module in `commands` and the function in it, and what it does, in short. In the order of the help.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "server": ("server.server", "Serve jobs."),
    "run": ("run.run", "Run a command in an image, show its output, exit with its status."),
    "enqueue": ("run.enqueue", "Enqueue a command, or a file of jobs, and print the ids."),
    "replace": ("run.replace", "Replace all that a job is to do, or create it under an id."),
    "logs": ("logs.logs", "Show the output of a job, live or stored."),
    "watch": ("watch.watch", "Show the jobs that have not ended, and every change."),
    "wait": ("wait.wait", "Wait until jobs have ended, and exit with their status."),
    "jobs": ("lists.jobs", "List jobs, newest first."),
    "job": ("lists.job", "Show one job."),
    "executions": ("lists.executions", "List executions, newest first."),
    "execution": ("lists.execution", "Show one execution."),
    "top": ("top.top", "Show what running executions use."),
    "tasks": ("lists.tasks", "List tasks, with the number of their jobs."),
    "task": ("task.task", "Limit or pause a task, or say whom to notify."),
    "hosts": ("hosts.hosts", "List, drain and resume the container engines."),
    "outputs": ("outputs.outputs", "Unpack the files that were kept of a job."),
    "stop": ("stop.stop", "Stop jobs, by their ids or by a filter."),
    "retry": ("retry.retry", "Run jobs once more that have ended."),
    "deliveries": ("deliveries.deliveries", "List notifications and whether they were delivered."),
    "redeliver": ("deliveries.redeliver", "Deliver notifications once more."),
    "audit": ("audit.audit", "List who changed what, newest first."),
    "schedule": ("schedule.schedule", "Show, pause and resume schedules."),
    "prune": ("prune.prune", "Delete jobs and logs that ended long ago."),
    "token": ("token.token", "Create, list and revoke the tokens of a server."),
    "backup": ("backup.backup", "Back up a server's data directory."),
    "restore": ("backup.restore", "Restore a backup."),
    "verify": ("backup.verify", "Check a data directory or a backup for damage."),
    "context": ("context.context", "Name servers, and choose the one to talk to."),
    "doctor": ("doctor.doctor", "Check the machine of a server and suggest repairs."),
    "health": ("health.health", "Ask a server of this machine whether it serves."),
    "debug": ("debug.debug", "Look inside a running server, for a bug report."),
    "config": ("config.config", "Print the settings that are in force."),
    "version": ("version.version", "Print the version of this program."),
    "completion": ("completion.completion", "Print a completion script for your shell."),
}

# What other programs call these commands.
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(["ps", "ls", "list"], "jobs"),
    **dict.fromkeys(["log", "tail", "attach", "output"], "logs"),
    **dict.fromkeys(["rm", "delete", "clean", "gc"], "prune"),
    **dict.fromkeys(["kill", "cancel", "abort"], "stop"),
    **dict.fromkeys(["exec", "start", "create"], "run"),
    **dict.fromkeys(["submit", "add", "push", "send"], "enqueue"),
    **dict.fromkeys(["show", "status", "inspect", "describe", "get"], "job"),
    **dict.fromkeys(["nodes", "engines"], "hosts"),
    **dict.fromkeys(["serve", "daemon", "serverd"], "server"),
    **dict.fromkeys(["info", "check"], "doctor"),
    **dict.fromkeys(["tokens", "auth", "login"], "token"),
    **dict.fromkeys(["queues", "names"], "tasks"),
    **dict.fromkeys(["snapshot", "dump", "export"], "backup"),
    **dict.fromkeys(["recover", "import"], "restore"),
    **dict.fromkeys(["fsck", "scrub"], "verify"),
    **dict.fromkeys(["settings"], "config"),
    **dict.fromkeys(["notifications", "webhooks", "outbox"], "deliveries"),
    **dict.fromkeys(["resend", "notify"], "redeliver"),
    **dict.fromkeys(["history", "who"], "audit"),
    **dict.fromkeys(["stats", "usage", "htop"], "top"),
    **dict.fromkeys(["artifacts", "download", "cp"], "outputs"),
}


class _Commands(click.Group):
    """Commands by name, imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(".")
        command: click.Command = getattr(import_module(f"fastlane_grpc.cli.commands.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS and not ctx.resilient_parsing:
            near = OTHER_NAMES.get(name) or next(iter(get_close_matches(name, COMMANDS, 1)), "")
            hint = f": the nearest is `fastlane {near}`" if near else ""
            raise click.UsageError(f"No such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, does) for name, (_, does) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="""\b
Exit status:
  0    success; for `run` and `logs`: the job succeeded
  1    failure; one line on stderr says why
  2    usage error
  69   the server cannot be reached
  75   `logs --no-follow`: the job has not ended
`run` and `logs` otherwise exit with the status of the job: its exit code, or
  124  the job timed out
  125  the job never ran, or its end is unknown
  130  the job was stopped
""",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Print the version."
)
def fastlane() -> None:
    """Run commands in containers and show their output live.

    \b
      fastlane server                                  serve jobs, on this machine's Docker engine
      fastlane run busybox -- echo hello               run a job, show its output, exit with its status
      fastlane logs JOB                                show the output again, from any machine

    FASTLANE_ADDRESS is the address of the server; `fastlane context` names several.
    Any unique prefix of an id is accepted.
    """


def main() -> NoReturn:
    """The command `fastlane`."""
    # Ctrl-C ends it as it ends any program, where nothing better is known (`run`): an exception out of the middle of
    # gRPC may leave a lock taken for ever. For the same reason the interpreter is not wound down, with threads of gRPC
    # in it; nothing is buffered here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # gRPC would write lines of its own to stderr, beside ours, which say the same for people. Who looks for a fault in
    # it sets this.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os._exit(exit_status(sys.argv[1:], os.environ))


def exit_status(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Carries out one command line. What failed is said in a line on stderr."""
    try:
        check_arguments(arguments)
        status: int = fastlane.main(list(arguments), prog_name="fastlane", standalone_mode=False, obj=environ) or 0
    except click.exceptions.NoArgsIsHelpError as usage:
        click.echo(usage.message, err=True)
        return WRONG_USE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "fastlane"
        # What may be chosen from comes on lines of its own.
        message = " ".join(error.format_message().split()).rstrip(".")
        return _failed(f"{message}; see `{where} --help`", WRONG_USE)
    except Failure as failure:
        return _failed(failure.message, failure.status)
    except click.ClickException as error:
        return _failed(error.format_message(), FAILED)
    return status


def _failed(message: str, status: int) -> int:
    # A message may have several lines. Where it holds the words of others, whoever raised it made them one.
    lines = "\n".join(map(printable, message.split("\n")))
    with suppress(Failure):
        begin_line()
    click.echo(f"fastlane: {lines}", err=True)
    return status
