"""The options of `run` and `enqueue` that make a retry policy, a schedule, a unique key and notifications."""

import re
from typing import Any

import click

from fastlane_grpc import client as api
from fastlane_grpc.cli.arguments.options import STATES

# Without the first option of a group the others would have no effect.
_NEEDS = {
    "backoff": ("retries", "--backoff", "--retries"),
    "backoff_factor": ("retries", "--backoff-factor", "--retries"),
    "max_backoff": ("retries", "--max-backoff", "--retries"),
    "causes": ("retries", "--retry-on", "--retries"),
    "except_codes": ("retries", "--no-retry-on", "--retries"),
    "max_memory_bytes": ("retries", "--max-memory", "--retries"),
    "memory_growth": ("max_memory_bytes", "--memory-growth", "--max-memory"),
    "time_zone": ("expression", "--time-zone", "--cron"),
    "overlap": ("expression", "--overlap", "--cron"),
    "catch_up": ("expression", "--catch-up", "--cron"),
    "max_runs": ("expression", "--max-runs", "--cron"),
    "on_conflict": ("unique_key", "--on-conflict", "--unique"),
}


def with_policies(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a job with `retry`, `cron`, `unique` and `notifications` in place of the options that make
    them."""
    for name, (needed, option, other) in _NEEDS.items():
        if options.get(name) not in {None, (), 0} and not options.get(needed):
            raise click.UsageError(f"{option} has no effect without {other}")
    if options.get("max_memory_bytes") and not options.get("memory_bytes"):
        raise click.UsageError("--max-memory has no effect without --memory")
    if options.get("expression") and (options.get("start_in") is not None or options.get("start_at")):
        raise click.UsageError("--cron cannot be combined with --in or --at")
    made = dict(options)
    retries, backoff, max_backoff = made.pop("retries"), made.pop("backoff"), made.pop("max_backoff")
    factor, causes, except_codes = made.pop("backoff_factor"), made.pop("causes"), made.pop("except_codes")
    max_memory_bytes, growth_factor = made.pop("max_memory_bytes"), made.pop("memory_growth")
    if retries:
        growth = api.MemoryGrowth(growth_factor or 2, max_memory_bytes) if max_memory_bytes else None
        codes = [cause for cause in causes if isinstance(cause, int)]
        names: list[Any] = [cause.replace("-", "_") for cause in causes if isinstance(cause, str)]
        # A code alone is no other end than that.
        names += ["exit_code"] if codes and "exit_code" not in names else []
        made["retry"] = api.Retry(
            max_retries=retries,
            initial_backoff=backoff,
            factor=factor or 0.0,
            max_backoff=max_backoff,
            causes=names,
            exit_codes=codes,
            except_exit_codes=except_codes,
            memory_growth=growth,
        )
    expression, time_zone = made.pop("expression"), made.pop("time_zone")
    overlap, catch_up, max_runs = made.pop("overlap"), made.pop("catch_up"), made.pop("max_runs")
    if expression is not None:
        made["cron"] = api.Cron(
            expression, time_zone or "", overlap and overlap.replace("-", "_"), catch_up, max_runs=max_runs
        )
    key, conflict = made.pop("unique_key"), made.pop("on_conflict")
    if key is not None:
        made["unique"] = api.Unique(key, conflict and conflict.replace("-", "_"))
    if notifications := notifications_of(made):
        made["notifications"] = notifications
    return made


def notifications_of(options: dict[str, Any]) -> list[api.Webhook | api.Mail]:
    """Take the options of notifications out of all options, and return what they make."""
    urls, addresses, secret = options.pop("notify_urls"), options.pop("notify_mails"), options.pop("notify_secret")
    names, event = options.pop("notify_on"), options.pop("notify_event")
    if not urls and not addresses and (names or event):
        given = "--notify-on" if names else "--notify-event"
        raise click.UsageError(f"{given} has no effect without --notify-url or --notify-mail")
    if secret and not urls:
        raise click.UsageError("--notify-secret has no effect without --notify-url")
    states = [STATES[name] for name in names]
    kind = f"{event}_ended" if event else None
    webhooks: list[api.Webhook | api.Mail] = [
        api.Webhook(url, states, kind, secret_name=secret or "")  # type: ignore[arg-type]  # checked by click
        for url in urls
    ]
    return [*webhooks, api.Mail(addresses, states, kind)] if addresses else webhooks  # type: ignore[arg-type]


def read_cause(text: str) -> str | int:
    """Return an end that is retried: its name, or an exit code. ValueError."""
    if text in _CAUSES:
        return text
    return read_exit_code(text, f"must be {', '.join(_CAUSES)} or an exit code from 1 to 255")


def read_exit_code(text: str, what: str = "must be an exit code from 1 to 255") -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 255:
        raise ValueError(what)
    return int(text)


_CAUSES = ("exit-code", "out-of-memory", "timed-out", "image-not-found", "image-denied")
