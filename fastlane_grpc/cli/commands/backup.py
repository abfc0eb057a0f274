"""`fastlane backup`, `restore` and `verify`: the data directory of a server, on the server's machine."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from fastlane_grpc.cli.commands.config import settings_in_force
from fastlane_grpc.cli.commands.token import of_data_dir
from fastlane_grpc.cli.commands.version import package_version
from fastlane_grpc.cli.display.tables import size
from fastlane_grpc.cli.display.terminal import say
from fastlane_grpc.cli.errors import FAILED, WRONG_USE, Failure
from fastlane_grpc.text.sanitize import printable


@click.command()
@click.argument("target")
@of_data_dir
@click.pass_obj
def backup(environ: Mapping[str, str], /, *, target: str, file: Path | None, data_dir: str | None) -> int:
    """Back up a server's data directory, also while the server runs.

    TARGET is a new directory, a new file that ends in .tar, or - for a tar on standard output. The backup holds the
    environment variables of jobs, in plain text.

    \b
    Examples:
      fastlane backup /mnt/backup/fastlane-monday
      fastlane backup - | ssh backup.example.org 'cat > fastlane.tar'
    """
    directory = settings_in_force({"data_dir": data_dir}, environ, file).settings.data_dir
    with _failing():
        from fastlane_grpc.backup import back_up

        made = back_up(directory, target, output=sys.stdout.buffer, version=package_version(), now=datetime.now(UTC))
    say(f"backed up {directory}: the database and {made.records} records of {size(made.record_bytes)}")
    return 0


@click.command()
@click.argument("source")
@click.option("--yes", is_flag=True, help="Do not ask whether the old server is gone.")
@of_data_dir
@click.pass_obj
def restore(environ: Mapping[str, str], /, *, source: str, yes: bool, file: Path | None, data_dir: str | None) -> int:
    """Restore a backup into an empty data directory. No job starts until you resume the hosts.

    SOURCE is a backup of `fastlane backup`: a directory, a tar, or - for a tar on standard input. The server of which
    the backup was taken must not run any more: both would be the same, and remove each other's containers.

    \b
    Examples:
      fastlane restore /mnt/backup/fastlane-monday --data-dir /srv/fastlane
      ssh backup.example.org 'cat fastlane.tar' | fastlane restore - --data-dir /srv/fastlane --yes
    """
    directory = settings_in_force({"data_dir": data_dir}, environ, file).settings.data_dir
    if not yes:
        _ask(source)
    with _failing():
        from fastlane_grpc.backup import restore as restored_into

        restored = restored_into(source, directory, stream=sys.stdin.buffer, now=datetime.now(UTC))
    taken = restored.manifest.time
    say(f"restored {directory} as it was on {taken:%Y-%m-%d at %H:%M} UTC. Executions that wait: {restored.waiting}.")
    say(
        "start the server. Its hosts are drained: stop the jobs that are not to run again, and then run"
        " `fastlane hosts resume HOST`."
    )
    return 0


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@of_data_dir
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    help="`json`: one object per line, with subject and detail.  [default: table]",
)
@click.pass_obj
def verify(
    environ: Mapping[str, str],
    /,
    *,
    directory: Path | None,
    file: Path | None,
    data_dir: str | None,
    form: str,
) -> int:
    """Verify a server's data directory, or a backup that is a directory. Changes nothing.

    Checks the whole database, and reads every record: its checksums, its size against the database, and whether the
    database knows it. A server may run meanwhile. The exit status is 1 if there is a fault.

    \b
    Examples:
      fastlane verify --data-dir /srv/fastlane
      fastlane verify /mnt/backup/fastlane-monday
    """
    path = directory or settings_in_force({"data_dir": data_dir}, environ, file).settings.data_dir
    with _failing():
        from fastlane_grpc.backup import verify as verified

        found = verified(path)
    for fault in found.faults:
        if form == "json":
            click.echo(json.dumps({"subject": fault.subject, "detail": fault.detail}))
        else:
            click.echo(f"{printable(fault.subject)}: {printable(fault.detail)}")
    say(
        f"{path}: {len(found.faults) or 'no'} fault{'s' * (len(found.faults) != 1)}; read the database and"
        f" {found.records} records with {size(found.output_bytes)} of output"
    )
    return FAILED if found.faults else 0


def _ask(source: str) -> None:
    """Ask whether the old server is gone. Failure: it is not, or nobody can be asked."""
    question = "the server of this backup must not run any more, nor start again. Is that so?"
    if source == "-" or not sys.stdin.isatty():
        raise Failure(f"{question} Confirm it with --yes", WRONG_USE)
    if not click.confirm(f"fastlane: {question}", err=True):
        raise Failure("nothing was restored")


@contextmanager
def _failing() -> Iterator[None]:
    from fastlane_grpc.backup import BackupError

    try:
        yield
    except BackupError as error:
        raise Failure(str(error)) from error
