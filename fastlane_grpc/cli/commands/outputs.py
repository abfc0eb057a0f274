"""`fastlane outputs`: what was kept of an execution."""

import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import talks_to_server
from fastlane_grpc.cli.arguments.outputs import WantedOutput
from fastlane_grpc.cli.connection import connected, either_id
from fastlane_grpc.cli.display.terminal import say, write
from fastlane_grpc.cli.errors import WRONG_USE, Failure
from fastlane_grpc.text.sanitize import one_line
from fastlane_grpc.v1 import fastlane_pb2 as pb

_MOST_NAME = 4096


@click.command()
@click.argument("id", metavar="EXECUTION|JOB")
@click.option(
    "-C", "--directory", type=click.Path(path_type=Path), metavar="DIR", help="Unpack below this.  [default: .]"
)
@click.option("--tar", "to_tar", is_flag=True, help="Write the archive to stdout, as it is.")
@click.option("--list", "lists", is_flag=True, help="List permissions, sizes and names; unpack nothing.")
@talks_to_server
def outputs(*, id: str, directory: Path | None, to_tar: bool, lists: bool, address: str) -> int:  # noqa: A002
    """Unpack what was kept of an execution, or of the newest execution of a job: files and directories that the job
    names by --output.

    \b
    Examples:
      fastlane outputs 01980f3e-8b1c-7d43-9a51-0242ac120002 -C artifacts
      fastlane outputs --list $JOB
      fastlane outputs --tar $JOB | tar -tv

    The names are the paths in the container: /src/dist/app becomes artifacts/src/dist/app. Files replace files of the
    same name; nothing is written outside of the directory.
    """
    if to_tar + lists + (directory is not None) > 1:
        raise click.UsageError("-C, --tar and --list cannot be combined")
    with connected(address) as client:
        execution_id = _execution_of(client, id)
        if to_tar:
            if sys.stdout.isatty():
                raise Failure("the archive is not written to a terminal; redirect it to a file or a pipe", WRONG_USE)
            client.read_outputs(execution_id, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return 0
        if lists:
            for entry in client.outputs(execution_id):
                write(1, _line(entry).encode())
            return 0
        with _received(client, execution_id) as archive:
            _unpack(archive, directory or Path(), "")
    return 0


def fetch(client: api.Client, execution_id: str, wanted: Sequence[WantedOutput]) -> None:
    """Unpack outputs of an execution to where they are wanted, and say what is missing. Failure."""
    found = client.execution(execution_id).outputs
    for path in found.missing:
        say(f"the container has no {path}, which was to be kept")
    if found.fault:
        raise Failure(f"no outputs were kept: {found.detail}")
    if not found.size_bytes:
        return
    with _received(client, execution_id) as archive:
        for each in wanted:
            if each.path not in found.missing:
                archive.seek(0)
                _unpack(archive, each.target, each.path)


def _execution_of(client: api.Client, text: str) -> str:
    """Return the execution of this id, or the newest one of the job of this id."""
    named = either_id(client, text)
    if named is not None:
        return named.execution_id or client.job(named.job_id).execution.id
    try:
        return client.execution(text).id
    except api.NotFound:
        return client.job(text).execution.id


@contextmanager
def _received(client: api.Client, execution_id: str) -> Iterator[BinaryIO]:
    with TemporaryFile(prefix="fastlane-outputs-") as file:
        client.read_outputs(execution_id, file)
        file.seek(0)
        yield file


def _unpack(archive: BinaryIO, target: Path, path: str) -> None:
    try:
        api.unpack_outputs(archive, target, path)
    except api.CannotUnpack as error:
        raise Failure(f"cannot unpack the outputs: {error}") from error
    except OSError as error:
        raise Failure(f"cannot unpack the outputs to {error.filename or target}: {error.strerror}") from error


_TYPES = {pb.OutputEntry.KIND_DIRECTORY: stat.S_IFDIR, pb.OutputEntry.KIND_SYMBOLIC_LINK: stat.S_IFLNK}


def _line(entry: pb.OutputEntry) -> str:
    mode = stat.filemode(entry.mode | _TYPES.get(entry.kind, stat.S_IFREG))
    target = f" -> {one_line(entry.target, _MOST_NAME)}" if entry.target else ""
    return f"{mode} {entry.size_bytes:>12} {one_line(entry.path.lstrip('/'), _MOST_NAME)}{target}\n"
