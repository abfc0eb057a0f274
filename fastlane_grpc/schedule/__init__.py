"""The decisions about what a job does next, made from values alone. Nothing here reads a clock or a store: the store
calls these functions within the transaction that they decide about.

`cron` knows the ticks of a schedule, `retry` the retry policy, and `transitions` what follows an enqueue, a tick and
the end of an execution.
"""

from fastlane_grpc.schedule.cron import CronInvalid, Ticks
from fastlane_grpc.schedule.transitions import (
    Due,
    Final,
    Following,
    Next,
    TickAction,
    after,
    due,
    expired_from,
    first,
    resumed,
    settled_by,
    tick,
    waiting_state,
    without_pending,
)

__all__ = [
    "CronInvalid",
    "Due",
    "Final",
    "Following",
    "Next",
    "TickAction",
    "Ticks",
    "after",
    "due",
    "expired_from",
    "first",
    "resumed",
    "settled_by",
    "tick",
    "waiting_state",
    "without_pending",
]
