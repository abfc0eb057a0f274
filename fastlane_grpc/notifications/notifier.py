"""The notifier: moves the ends of jobs from the change log into the outbox, and delivers what is due.

Nothing is delivered from memory alone. An attempt whose result is not on disk when the server is killed is made once
more. Receivers that are slow hold up no others: a host has a bounded number of attempts at a time, and one while it is
not known to be quick. Half of all attempts are left to quick hosts."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from fastlane_grpc.backoff import Backoff
from fastlane_grpc.counts import NotificationCounts
from fastlane_grpc.errors import DiskFull, ServerStopping, StoreFailed
from fastlane_grpc.model import Delivery, DeliveryState, Execution, Webhook, utc_now
from fastlane_grpc.notifications.reply import Reply
from fastlane_grpc.store import Attempt, Store
from fastlane_grpc.supervisor import one_task
from fastlane_grpc.text.redaction import mask_secrets
from fastlane_grpc.wakeup import Wakeup

# Attempts at a time: to one host, and in all.
OF_HOST = 4
IN_ALL = 128
# A host is quick if its last attempt ended within this time.
QUICK_SECONDS = 2.0
# Hosts that are known to be quick: those that were so last.
_KNOWN_HOSTS = 1_000
# The shortest time between two looks at the change log: the first end is told at once, those that follow together.
PACE_SECONDS = 0.01
# The longest time between two looks: the clock may jump.
POLL_SECONDS = 30.0
RETRY_SECONDS = 5.0
# What the outcome of an attempt is called in the metrics: the notification is delivered, tried again, or given up.
_OUTCOMES = {
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.PENDING: "repeated",
    DeliveryState.FAILED: "given_up",
}

log = structlog.get_logger(__name__)


class Sender(Protocol):
    """A way to deliver."""

    async def send(self, delivery: Delivery, attempt: int) -> Reply:
        """Make one attempt, which ends within a limited time."""


class Notifier:
    """The notifier. Lives on the loop; `run` is its one task."""

    def __init__(
        self,
        store: Store,
        *,
        webhooks: Sender,
        mails: Sender,
        max_retries: int,
        backoff: Backoff,
        counts: NotificationCounts,
        now: Callable[[], datetime] = utc_now,
        of_host: int = OF_HOST,
        in_all: int = IN_ALL,
    ) -> None:
        """`max_retries`: of notifications that do not say how many."""
        self._store = store
        self._webhooks = webhooks
        self._mails = mails
        self._max_retries = max_retries
        self._backoff = backoff
        self._counts = counts
        self._now = now
        self._of_host = of_host
        self._in_all = in_all
        self._wakeup = Wakeup()
        # Whether something has ended since the last look at the change log.
        self._ends = True
        # Up to here nobody is to be told anything that is not in the outbox; None: not known yet.
        self._position: int | None = None
        # By the ids of their deliveries.
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()
        # The quick hosts, the last one last.
        self._quick: dict[str, None] = {}
        store.on_delivery_due = self._wakeup.set

    def on_change(self, executions: Sequence[Execution]) -> None:
        """Note what the store announces."""
        if self._store.may_notify and any(each.state.final for each in executions):
            self._ends = True
            self._wakeup.set()

    async def run(self) -> None:
        """Deliver what is due and wait for more, until cancelled or until the store is closed."""
        # What an earlier run has missed: it ended with a defect.
        self._ends = True
        try:
            with suppress(ServerStopping):
                while True:
                    self._wakeup.clear()
                    await self._wakeup.wait(await self._round())
                    await asyncio.sleep(PACE_SECONDS)
        finally:
            await self._end_attempts()

    async def _round(self) -> float:
        """Do what is to be done now. Return how long there is nothing to do, if nothing changes."""
        try:
            if self._ends:
                self._ends = False
                await self._feed()
            return await self._deliver_due()
        except (DiskFull, StoreFailed) as error:
            self._ends = True
            log.warning("notifications wait for the store", error=str(error), retry_seconds=RETRY_SECONDS)
            return RETRY_SECONDS

    async def _feed(self) -> None:
        """Write the ends since the last look into the outbox. Nothing is written where no notification is asked for."""
        if not self._store.may_notify:
            return
        if self._position is None:
            self._position = await self._store.outbox_position()
        more = True
        while more:
            ends = await self._store.ends_after(self._position)
            more, self._position = ends.more, ends.position
            if ends.notify:
                await self._write_outbox(ends.position)

    async def _write_outbox(self, position: int) -> None:
        """Write the outbox up to this position, at least."""
        reached, more = 0, True
        while more and reached < position:
            more, reached = await self._store.feed_outbox()
        self._position = max(position, reached)

    async def _deliver_due(self) -> float:
        """Begin the attempts that are due, as far as there is room. Return how long there is nothing else to begin."""
        limit = 2 * self._in_all
        while True:
            due = await self._store.due_deliveries(
                of_host=2 * self._of_host,
                limit=limit,
                without=[host for host in self._hosts if not self._has_room(host)],
                only=None if self._has_room_for_others() else list(self._quick),
            )
            begun = sum(self._begin(delivery) for delivery in due.deliveries)
            # The deliveries of hosts that had room may be beyond the limit.
            if not begun or len(due.deliveries) < limit:
                break
        if due.next_time is None:
            return POLL_SECONDS
        return min(max((due.next_time - self._now()).total_seconds(), 0.0), POLL_SECONDS)

    def _begin(self, delivery: Delivery) -> bool:
        """Begin an attempt if there is room for it. Return whether it has begun."""
        host = delivery.notification.target.host
        if delivery.id in self._attempts or not self._has_room(host):
            return False
        self._hosts[host] += 1
        # Ended by `_end_attempts`.
        attempt = one_task(f"notification {delivery.id}", self._attempt(delivery, host))
        self._attempts[delivery.id] = attempt
        return True

    def _has_room(self, host: str) -> bool:
        if len(self._attempts) >= self._in_all:
            return False
        if host in self._quick:
            return self._hosts[host] < self._of_host
        return not self._hosts[host] and self._has_room_for_others()

    def _has_room_for_others(self) -> bool:
        """Return whether there is room for an attempt to a host that is not known to be quick."""
        others = sum(attempts for host, attempts in self._hosts.items() if host not in self._quick)
        return others < self._in_all // 2

    def _note_time(self, host: str, seconds: float) -> None:
        """Note how long an attempt has taken."""
        self._quick.pop(host, None)
        if seconds <= QUICK_SECONDS:
            self._quick[host] = None
        if len(self._quick) > _KNOWN_HOSTS:
            del self._quick[next(iter(self._quick))]

    async def _attempt(self, delivery: Delivery, host: str) -> None:
        """Make one attempt, and write its result."""
        try:
            number, began = delivery.attempts + 1, time.monotonic()
            sender = self._webhooks if isinstance(delivery.notification.target, Webhook) else self._mails
            try:
                reply = await sender.send(delivery, number)
            except Exception as error:
                # Of this notification alone: others are delivered.
                log.error("a defect of fastlane: a notification failed", delivery_id=delivery.id, exc_info=error)
                reply = Reply(False, f"a defect of fastlane: {type(error).__name__}")
            seconds = time.monotonic() - began
            self._note_time(host, seconds)
            attempt = self._result(delivery, number, reply)
            _log_attempt(delivery, number, attempt, seconds, self._now())
            await self._store.finish_attempt(delivery.id, attempt)
            kind = "webhook" if isinstance(delivery.notification.target, Webhook) else "mail"
            self._counts.attempts[kind, _OUTCOMES[attempt.state]] += 1
        except ServerStopping:
            # The next server makes the attempt once more.
            pass
        finally:
            self._attempts.pop(delivery.id, None)
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
            self._wakeup.set()

    def _result(self, delivery: Delivery, number: int, reply: Reply) -> Attempt:
        if reply.accepted:
            return Attempt(DeliveryState.DELIVERED, reply.detail)
        target = delivery.notification.target
        max_retries = (target.max_retries if isinstance(target, Webhook) else 0) or self._max_retries
        if reply.rejected or number > max_retries:
            return Attempt(DeliveryState.FAILED, reply.detail)
        # What a receiver asks for is bounded: it may ask for years.
        asked_seconds = min(reply.retry_seconds or 0.0, self._backoff.longest_seconds)
        pause_seconds = max(self._backoff.pause_seconds(number - 1), asked_seconds)
        return Attempt(DeliveryState.PENDING, reply.detail, self._now() + timedelta(seconds=pause_seconds))

    async def _end_attempts(self) -> None:
        """Cancel the attempts under way. Their results are not known: they are made once more."""
        attempts = list(self._attempts.values())
        for attempt in attempts:
            attempt.cancel()
        if attempts:
            await asyncio.wait(attempts)


def _origin(url: str) -> str:
    """Return scheme, host and port of a URL; its path may be a secret."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.split('/')[0].split('?')[0].rpartition('@')[2]}".lower()


def _log_attempt(delivery: Delivery, number: int, attempt: Attempt, seconds: float, now: datetime) -> None:
    """Log one line without secrets. Failures that come once more are no warning yet."""
    target = delivery.notification.target
    level = log.warning if attempt.state is DeliveryState.FAILED else log.info
    words = {
        DeliveryState.DELIVERED: "notification delivered",
        DeliveryState.PENDING: "notification not delivered; trying again",
        DeliveryState.FAILED: "notification given up",
    }
    again = {} if attempt.next_time is None else {"again_seconds": round((attempt.next_time - now).total_seconds(), 1)}
    level(
        words[attempt.state],
        delivery_id=delivery.id,
        job_id=delivery.job.id,
        receiver=_origin(target.url) if isinstance(target, Webhook) else mask_secrets(target.to[0]),
        attempt=number,
        detail=attempt.detail,
        seconds=round(seconds, 3),
        **again,
    )
