"""The options of `run` and `enqueue` that make a retry policy, a schedule and a unique key."""

from typing import Any

import click

from fastlane_grpc import client as api

# Without the first option of a group the others would have no effect.
_NEEDS = {
    "backoff": ("retries", "--backoff", "--retries"),
    "max_backoff": ("retries", "--max-backoff", "--retries"),
    "causes": ("retries", "--retry-on", "--retries"),
    "max_memory_bytes": ("retries", "--max-memory", "--retries"),
    "time_zone": ("expression", "--time-zone", "--cron"),
    "overlap": ("expression", "--overlap", "--cron"),
    "catch_up": ("expression", "--catch-up", "--cron"),
    "on_conflict": ("unique_key", "--on-conflict", "--unique"),
}


def with_policies(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a job with `retry`, `cron` and `unique` in place of the options that make them."""
    for name, (needed, option, other) in _NEEDS.items():
        if options.get(name) and not options.get(needed):
            raise click.UsageError(f"{option} has no effect without {other}")
    if options.get("max_memory_bytes") and not options.get("memory_bytes"):
        raise click.UsageError("--max-memory has no effect without --memory")
    if options.get("expression") and (options.get("start_in") is not None or options.get("start_at")):
        raise click.UsageError("--cron cannot be combined with --in or --at")
    made = dict(options)
    retries, backoff, max_backoff = made.pop("retries"), made.pop("backoff"), made.pop("max_backoff")
    causes, max_memory_bytes = made.pop("causes"), made.pop("max_memory_bytes")
    if retries:
        growth = api.MemoryGrowth(2, max_memory_bytes) if max_memory_bytes else None
        made["retry"] = api.Retry(
            max_retries=retries,
            initial_backoff=backoff,
            max_backoff=max_backoff,
            causes=[cause.replace("-", "_") for cause in causes],
            memory_growth=growth,
        )
    expression, time_zone = made.pop("expression"), made.pop("time_zone")
    overlap, catch_up = made.pop("overlap"), made.pop("catch_up")
    if expression is not None:
        made["cron"] = api.Cron(expression, time_zone or "", overlap and overlap.replace("-", "_"), catch_up)
    key, conflict = made.pop("unique_key"), made.pop("on_conflict")
    if key is not None:
        made["unique"] = api.Unique(key, conflict and conflict.replace("-", "_"))
    return made
