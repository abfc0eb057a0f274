"""`fastlane deliveries` and `fastlane redeliver`: notifications, and those that could not be delivered."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import answers, limits, talks_to_server
from fastlane_grpc.cli.connection import connected, job_id
from fastlane_grpc.cli.display.output import state_name
from fastlane_grpc.cli.display.tables import Column, ago, as_line, cut, show, span, time_of
from fastlane_grpc.cli.display.terminal import say, write
from fastlane_grpc.cli.errors import Failure
from fastlane_grpc.v1 import fastlane_pb2 as pb

_STATES = {name.removeprefix("DELIVERY_STATE_").lower(): number for name, number in pb.DeliveryState.items() if number}
# What a server answers in one page at most.
_LARGEST_PAGE = 1000
# The whole id of a delivery; what is shorter may be the beginning of one.
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@click.command()
@click.option("--job", "of_job", default="", metavar="JOB", help="Only about this job.")
@click.option("--state", "states", type=click.Choice(list(_STATES)), multiple=True, help="Only in this state.")
@limits
@answers
@talks_to_server
@click.pass_obj
def deliveries(
    environ: Mapping[str, str],
    /,
    *,
    of_job: str,
    states: Sequence[str],
    limit: int,
    everything: bool,
    form: str,
    address: str,
) -> int:
    """List notifications, newest first, each with its receiver and the state of its delivery.

    \b
    Examples:
      fastlane deliveries --state failed
      fastlane deliveries --job 01980f3e -o json

    A notification that failed is a dead letter: `fastlane redeliver` delivers it once more.
    """
    now = datetime.now(UTC)
    with connected(address) as client:
        found = client.deliveries(
            job_id=job_id(client, of_job) if of_job else "",
            states=[_STATES[name] for name in states],
            page_size=_LARGEST_PAGE if everything else min(limit + 1, _LARGEST_PAGE),
        )
        shown = found if everything else islice(found, limit)
        show(shown, _columns(now), form=form, nothing="no deliveries", environ=environ)
        if next(found, None) is not None:
            say("more deliveries exist: use --limit or --all")
    return 0


@click.command()
@click.argument("ids", metavar="[DELIVERY]...", nargs=-1)
@click.option("--failed", is_flag=True, help="All that failed.")
@click.option("--job", "of_job", default="", metavar="JOB", help="With --failed: only about this job.")
@answers
@talks_to_server
def redeliver(*, ids: Sequence[str], failed: bool, of_job: str, form: str, address: str) -> int:
    """Deliver notifications once more, with all their attempts. Receivers get the same ids, and can drop repetitions.

    \b
    Examples:
      fastlane redeliver 5c0f9f4e-2f0b-5c1e-8a3e-7f1f2b0c9d11
      fastlane redeliver --failed --job 01980f3e
    """
    if bool(ids) == failed:
        raise click.UsageError("give the ids of deliveries, or --failed")
    if of_job and not failed:
        raise click.UsageError("--job has no effect without --failed")
    with connected(address) as client:
        if failed:
            # Oldest first: as they came.
            found = client.deliveries(
                job_id=job_id(client, of_job) if of_job else "",
                states=[pb.DELIVERY_STATE_FAILED],
                page_size=_LARGEST_PAGE,
            )
            chosen = [delivery.id for delivery in found][::-1]
        else:
            chosen = [_delivery_id(client, text) for text in ids]
        for delivery_id in chosen:
            delivery = client.redeliver(delivery_id)
            line = f"delivery {delivery.id}: {_state_name(delivery)}, to {delivery.receiver}\n"
            write(1, as_line(delivery) if form == "json" else line.encode())
        if not chosen:
            say("no deliveries failed")
    return 0


def _delivery_id(client: api.Client, text: str) -> str:
    """Return the id that begins so, of the newest deliveries; a whole one is not looked up."""
    if _ID.fullmatch(text):
        return text
    newest = islice(client.deliveries(page_size=_LARGEST_PAGE), _LARGEST_PAGE)
    found = [delivery.id for delivery in newest if delivery.id.startswith(text)]
    if len(found) != 1:
        number = "several" if found else "none"
        raise Failure(f"the ids of {number} of the newest deliveries begin with {text!r}; give the whole id")
    return found[0]


def _columns(now: datetime) -> Sequence[Column]:
    return [
        Column("DELIVERY", lambda delivery: delivery.id),
        Column("STATE", _state_name),
        Column("EVENT", _event),
        Column("JOB", lambda delivery: delivery.job_id),
        Column("TASK", lambda delivery: delivery.task_id),
        Column("RECEIVER", lambda delivery: cut(delivery.receiver)),
        Column("CREATED", lambda delivery: _ago(delivery, now)),
        Column("ATTEMPTS", lambda delivery: str(delivery.attempts)),
        Column("NOTE", lambda delivery: cut(_note(delivery, now))),
    ]


def _state_name(delivery: pb.Delivery) -> str:
    return pb.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_").lower()


def _event(delivery: pb.Delivery) -> str:
    what = pb.Notification.Event.Name(delivery.event).removeprefix("EVENT_").removesuffix("_ENDED").lower()
    return f"{what} {state_name(delivery.ended_state)}"


def _ago(delivery: pb.Delivery, now: datetime) -> str:
    created = time_of(delivery, "create_time")
    return "-" if created is None else ago(created, now)


def _note(delivery: pb.Delivery, now: datetime) -> str:
    """Return the result of the last attempt, and when the next one is."""
    parts = [delivery.detail]
    following = time_of(delivery, "next_attempt_time")
    if following is not None and following > now:
        parts.append(f"next attempt in {span(following - now)}")
    elif delivery.state == pb.DELIVERY_STATE_PENDING and following is None:
        parts.append("waits for an earlier one")
    return "; ".join(filter(None, parts))
