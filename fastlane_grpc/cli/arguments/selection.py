"""Jobs that a command changes together: the options that select them, and the question before many are changed."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import MOMENT, PAIR, STATES, Function
from fastlane_grpc.cli.display.terminal import write
from fastlane_grpc.cli.errors import WRONG_USE, Failure
from fastlane_grpc.text.sanitize import printable

OPEN_STATES = ("scheduled", "queued", "preparing", "running", "stopping")
FINAL_STATES = ("succeeded", "failed", "timed-out", "stopped", "expired", "lost")


@dataclass(frozen=True, slots=True)
class Selection:
    """The options that select jobs."""

    task_id: str
    states: Sequence[str]
    labels: Sequence[tuple[str, str]]
    since: datetime | None
    until: datetime | None
    dry_run: bool
    yes: bool

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> "Selection":
        """Take the options that `selects_jobs` added out of all options."""
        return cls(**{name: options.pop(name) for name in cls.__dataclass_fields__})

    @property
    def filter(self) -> api.JobSelection:
        return {
            "task_id": self.task_id,
            "states": [STATES[name] for name in self.states],
            "labels": dict(self.labels),
            "since": self.since,
            "until": self.until,
        }

    def check(self, ids: Collection[str], what: str) -> bool:
        """Return whether jobs are selected by the filter, and not by their ids. UsageError: by both, or by neither."""
        filters = {
            "--task": self.task_id,
            "--state": self.states,
            "--label": self.labels,
            "--since": self.since,
            "--until": self.until,
        }
        given = [option for option, value in filters.items() if value]
        if ids and given:
            raise click.UsageError(f"{given[0]} cannot be combined with the id of a {what}")
        if not ids and not given:
            raise click.UsageError(f"give the id of a {what}, or select jobs with {_listed(filters)}")
        if ids and self.dry_run:
            raise click.UsageError("--dry-run has no effect with an id")
        return not ids


def selects_jobs(states: Sequence[str]) -> Callable[[Function], Function]:
    """Add the options that select jobs which are in one of `states`."""
    options = [
        click.option("--task", "task_id", default="", metavar="NAME", help="All jobs of this task."),
        click.option(
            "--state",
            "states",
            type=click.Choice(states),
            multiple=True,
            help="All jobs in this state; repeat for several.",
        ),
        click.option(
            "-l",
            "--label",
            "labels",
            type=PAIR,
            multiple=True,
            help="All jobs with this label; with several, all must match.",
        ),
        click.option(
            "--since",
            type=MOMENT,
            help="All jobs enqueued at or after this age or time, as 1h or 2026-01-31T08:00:00Z.",
        ),
        click.option("--until", type=MOMENT, help="All jobs enqueued before this age or time."),
        click.option("--dry-run", is_flag=True, help="Count the selected jobs, and change nothing."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation."),
    ]

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def confirm(what: str, verb: str) -> None:
    """Ask on a terminal for a confirmation. Raises Failure if the answer is not yes, or there is no terminal."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(f"this {what}; confirm with --yes, or look first with --dry-run", WRONG_USE)
    write(2, f"fastlane: this {printable(what)}. {verb.capitalize()}? [y/N] ".encode())
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failure(f"no job was {_PARTICIPLES[verb]}")


_PARTICIPLES = {"stop": "stopped", "retry": "retried"}


def counted(number: int, *, more: bool = False) -> str:
    return f"{'at least ' if more else ''}{number} job{'' if number == 1 else 's'}"


def _listed(options: Mapping[str, object]) -> str:
    *first, last = options
    return f"{', '.join(first)} or {last}"
