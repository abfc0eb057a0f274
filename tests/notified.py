"""A server without an engine that notifies: a store, logs and the notifier, and jobs that end when a test says."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastlane_grpc.model import (
    Delivery,
    DeliveryState,
    Execution,
    Job,
    JobSpec,
    Mail,
    Notification,
    Outcome,
    Reason,
    State,
    Webhook,
    utc_now,
)
from fastlane_grpc.store import DeliveryQuery
from tests.parts import Parts

FAST = timedelta(milliseconds=1)
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Notified(Parts):
    """The parts of a server that notify. Between attempts there is hardly a pause; `skew` moves the clock."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.skew = timedelta()
        pauses = {"notify_backoff": FAST, "notify_max_backoff": FAST}
        super().__init__(directory, now=lambda: utc_now() + self.skew, **{**pauses, **settings})
        self.parts = AsyncExitStack()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "Notified":
        self.open_store(self.parts)
        self.open_logs(self.parts)
        self.open_notifications(self.parts)
        wake = self.store.on_delivery_due
        self.store.on_delivery_due = lambda: (wake(), self._changed.set())[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.supervisor.close()
        await self.parts.aclose()

    async def end(self, *notifications: Notification, state: State = State.FAILED, **spec: Any) -> Execution:
        """Enqueue a job that tells these, and let it end."""
        job = await self.enqueue(*notifications, **spec)
        return await self.end_of(job.execution.id, state)

    async def enqueue(self, *notifications: Notification, **spec: Any) -> Job:
        job, _ = await self.store.enqueue(
            task_id="send-mail",
            spec=JobSpec("busybox", notifications=notifications, **spec),
            request_id="",
            caller_address="",
        )
        return job

    async def end_of(self, execution_id: str, state: State = State.FAILED) -> Execution:
        await self.store.claim_on(["here"])
        failed = state is State.FAILED
        outcome = Outcome(Reason.EXIT_CODE if failed else Reason.UNSPECIFIED, exit_code=int(failed))
        return await self.store.finish(execution_id, state=state, outcome=outcome, logs=(), start_time=self.now())

    async def deliveries(self) -> Sequence[Delivery]:
        """Return all deliveries, the oldest one first."""
        return (await self.store.deliveries(DeliveryQuery(), size=1000)).items[::-1]

    async def over(self, count: int = 1) -> list[Delivery]:
        """Return all deliveries once so many of them are delivered or given up."""
        return await self._once(lambda found: sum(each.state is not DeliveryState.PENDING for each in found) >= count)

    async def attempted(self) -> list[Delivery]:
        """Return all deliveries once an attempt was made."""
        return await self._once(lambda found: any(each.attempts for each in found))

    async def _once(self, is_so: Callable[[Sequence[Delivery]], bool]) -> list[Delivery]:
        while True:
            self._changed.clear()
            found = list(await self.deliveries())
            if is_so(found):
                return found
            await self._changed.wait()


def hook(url: str, **webhook: Any) -> Notification:
    return Notification(Webhook(url, **webhook))


def mail(*to: str, **options: Any) -> Notification:
    return Notification(Mail(to, **options))
