"""The outbox: notifications made of the change log, each kept until a receiver has accepted it or its attempts are used
up.

The position in the change log and the notifications of the changes before it are written in one transaction. So a crash
delays a notification, and never loses or doubles it. Nothing that a notification is made of is deleted before the
position has passed it."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from fastlane_grpc.errors import DeliveryNotFound
from fastlane_grpc.model import (
    Delivery,
    DeliveryState,
    Notification,
    NotificationEvent,
    State,
    Webhook,
)
from fastlane_grpc.store.changes import ChangeKind
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import (
    JOB_WITHOUT_SPEC,
    Row,
    microseconds_or_none,
    microseconds_since_epoch,
    notifications_from,
    notifications_text,
    snapshot_from,
    snapshot_text,
    time_from,
)

# Changes that one transaction reads.
STEP_CHANGES = 1000
# What the ids of deliveries are derived from, beside the execution.
_NAMESPACE = UUID("5f1d7a52-0c58-4c1c-9d0e-7c5f0f0b2a11")

_NAMES = (
    *("delivery_id", "event", "ended_state", "notification", "snapshot", "state", "attempts"),
    *("create_time", "next_time", "last_time", "end_time", "detail"),
)
DELIVERY = ", ".join(f"deliveries.{name}" for name in _NAMES)

# The ends in a part of the log, with the notifications of their jobs. Sequences have no gaps.
_ENDS = f"""
    SELECT changes.kind, changes.job_id, changes.execution_id, changes.state, changes.time,
        iif(
            notifying_jobs.job_id IS NULL,
            (SELECT notifications FROM task_limits WHERE task_limits.task_id = changes.task_id),
            (SELECT json_extract(CAST(spec AS TEXT), '$.notifications') FROM jobs WHERE jobs.job_id = changes.job_id)
        )
    FROM changes LEFT JOIN notifying_jobs USING (job_id)
    WHERE sequence > :after AND sequence <= :last AND changes.state >= {State.SUCCEEDED}
        AND kind IN ({ChangeKind.EXECUTION}, {ChangeKind.ENDED})
    ORDER BY sequence
"""


class Ends(NamedTuple):
    """A part of the log: whether somebody may be told of its changes, and the position after it. `more`: there are
    further changes."""

    notify: bool
    position: int
    more: bool


class Due(NamedTuple):
    """Deliveries that are due, at most so many of each host, and when the next one is; None: no other is planned."""

    deliveries: Sequence[Delivery]
    next_time: datetime | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of an attempt. `state` PENDING: there is another attempt at `next_time`."""

    state: DeliveryState
    detail: str
    next_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """A job or an execution that ended."""

    kind: ChangeKind
    job_id: str
    execution_id: str
    state: State
    time_us: int


def may_notify(db: Connection, defaults: Sequence[Notification]) -> bool:
    """Return whether any job has notifications, of its own or of its task or the server."""
    if defaults:
        return True
    [(found,)] = db.execute(
        """
        SELECT EXISTS (SELECT 1 FROM notifying_jobs)
            OR EXISTS (SELECT 1 FROM task_limits INDEXED BY task_limits_notifying WHERE notifications <> '')
        """
    ).fetchall()
    return bool(found)


def ends_after(db: Connection, after: int, defaults: Sequence[Notification]) -> Ends:
    """Return what `feed` would find after a position. It costs the writer nothing."""
    last, more = _window(db, after)
    found = db.execute(_ENDS, {"after": after, "last": last}).fetchall() if last > after else []
    return Ends(any(row[5] or defaults for row in found), last, more)


def position(db: Connection) -> int:
    """Return the sequence of the last change that was read."""
    [(sequence,)] = db.execute("SELECT sequence FROM outbox").fetchall()
    return int(sequence)


def feed(db: Connection, defaults: Sequence[Notification], now: datetime) -> bool:
    """Read the next changes, insert the deliveries that they ask for, and move the position. Return whether there are
    further changes.

    `defaults`: the notifications of jobs that have none of their own, and whose tasks have none."""
    after = position(db)
    if not may_notify(db, defaults):
        db.execute("UPDATE outbox SET sequence = (SELECT coalesce(max(sequence), 0) FROM changes)")
        return False
    last, more = _window(db, after)
    if last == after:
        return False
    for *end, text in db.execute(_ENDS, {"after": after, "last": last}).fetchall():
        kind, job_id, execution_id, state, time_us = end
        notifications = notifications_from(text) or defaults
        if notifications:
            _insert(db, _End(ChangeKind(kind), job_id, execution_id, State(state), time_us), notifications, now)
    db.execute("UPDATE outbox SET sequence = ?", [last])
    return more


def catch_up(db: Connection, defaults: Sequence[Notification], now: datetime) -> None:
    """Read all changes. To be called before rows are deleted that notifications are made of, and before it changes who
    is told: an end is told to those who were to be told when it happened."""
    while feed(db, defaults, now):
        pass


def has_defaults(db: Connection, defaults: Sequence[Notification]) -> bool:
    """Return whether these are the server's notifications in force."""
    [(text,)] = db.execute("SELECT defaults FROM outbox").fetchall()
    return bool(text == notifications_text(defaults))


def put_defaults_in_force(db: Connection, defaults: Sequence[Notification], now: datetime) -> None:
    """Replace the server's notifications. What has ended before is told by those that were in force."""
    [(text,)] = db.execute("SELECT defaults FROM outbox").fetchall()
    catch_up(db, notifications_from(text), now)
    db.execute("UPDATE outbox SET defaults = ?", [notifications_text(defaults)])


def note_jobs(db: Connection, job_ids: Sequence[str]) -> None:
    """Note that these jobs have notifications of their own."""
    db.executemany("INSERT INTO notifying_jobs VALUES (?) ON CONFLICT DO NOTHING", [[job_id] for job_id in job_ids])


def forget_job(db: Connection, job_id: str) -> None:
    """Note that a job has no notifications of its own any more."""
    db.execute("DELETE FROM notifying_jobs WHERE job_id = ?", [job_id])


def forget_deleted(db: Connection, job_ids: Sequence[str]) -> None:
    """Forget those of the jobs that are deleted."""
    db.execute(
        """
        DELETE FROM notifying_jobs
        WHERE job_id IN (SELECT value FROM json_each(?))
            AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job_id = notifying_jobs.job_id)
        """,
        [json.dumps(job_ids)],
    )


def due(
    db: Connection,
    now: datetime,
    *,
    of_host: int,
    limit: int,
    without: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Due:
    """Return at most `limit` deliveries that are due, in the order of their times, at most `of_host` of each host.

    `only`: of these hosts alone. `without`: none of these hosts."""
    time_us = microseconds_since_epoch(now)
    rows = db.execute(
        f"""
        WITH RECURSIVE hosts(host) AS (
            SELECT (SELECT min(host) FROM deliveries INDEXED BY deliveries_due WHERE next_time IS NOT NULL)
            UNION ALL
            SELECT (
                SELECT min(deliveries.host) FROM deliveries INDEXED BY deliveries_due
                WHERE next_time IS NOT NULL AND deliveries.host > hosts.host
            ) FROM hosts WHERE hosts.host IS NOT NULL
        )
        SELECT {DELIVERY} FROM hosts CROSS JOIN deliveries ON deliveries.seq IN (
            SELECT seq FROM deliveries INDEXED BY deliveries_due
            WHERE deliveries.host = hosts.host AND next_time IS NOT NULL AND next_time <= :now
            ORDER BY next_time, seq LIMIT :of_host + 0
        )
        WHERE hosts.host NOT IN (SELECT value FROM json_each(:without))
            AND (:only IS NULL OR hosts.host IN (SELECT value FROM json_each(:only)))
        ORDER BY next_time, seq LIMIT :limit + 0
        """,
        {
            "now": time_us,
            "of_host": of_host,
            "limit": limit,
            "without": json.dumps(list(without)),
            "only": None if only is None else json.dumps(list(only)),
        },
    ).fetchall()
    following = db.execute(
        "SELECT next_time FROM deliveries INDEXED BY deliveries_next WHERE next_time > ? ORDER BY next_time LIMIT 1",
        [time_us],
    ).fetchall()
    return Due([delivery_from(row) for row in rows], time_from(following[0][0]) if following else None)


def finish_attempt(db: Connection, delivery_id: str, attempt: Attempt, now: datetime) -> None:
    """Write the result of an attempt. The next notification of the job to the receiver is due if this one is over."""
    ended = attempt.state is not DeliveryState.PENDING
    rows = db.execute(
        f"""
        UPDATE deliveries SET state = :state, attempts = attempts + 1, detail = :detail, next_time = :next_time,
            last_time = :now, end_time = iif(:ended, :now, NULL)
        WHERE delivery_id = :delivery_id AND state = {DeliveryState.PENDING}
        RETURNING job_id, receiver
        """,
        {
            "delivery_id": delivery_id,
            "state": attempt.state,
            "detail": attempt.detail,
            "next_time": microseconds_or_none(attempt.next_time),
            "now": microseconds_since_epoch(now),
            "ended": ended,
        },
    ).fetchall()
    for job_id, receiver in rows:
        _release(db, job_id, receiver, now)


def redeliver(db: Connection, delivery_id: str, now: datetime) -> Delivery:
    """Make a delivery pending again, with all its attempts. One that is pending is due now, if it waits for no other.
    DeliveryNotFound."""
    time_us = microseconds_since_epoch(now)
    rows = db.execute(
        f"""
        UPDATE deliveries SET
            attempts = iif(state = {DeliveryState.PENDING}, attempts, 0),
            next_time = iif(state = {DeliveryState.PENDING}, min(next_time, ?), NULL),
            state = {DeliveryState.PENDING}, end_time = NULL
        WHERE delivery_id = ? RETURNING job_id, receiver
        """,
        (time_us, delivery_id),
    ).fetchall()
    if not rows:
        raise DeliveryNotFound(delivery_id)
    job_id, receiver = rows[0]
    _release(db, job_id, receiver, now)
    [row] = db.execute(f"SELECT {DELIVERY} FROM deliveries WHERE delivery_id = ?", [delivery_id]).fetchall()
    return delivery_from(row)


def prune_deliveries(db: Connection, *, before: datetime, limit: int) -> int:
    """Delete deliveries that ended before that time, oldest first, at most `limit`. Return how many these were."""
    return db.execute(
        """
        DELETE FROM deliveries WHERE seq IN (
            SELECT seq FROM deliveries INDEXED BY deliveries_ended
            WHERE end_time IS NOT NULL AND end_time <= ? ORDER BY end_time LIMIT ? + 0
        )
        """,
        (microseconds_since_epoch(before), limit),
    ).rowcount


def delivery_from(row: Row) -> Delivery:
    """Return the delivery of a row with the columns DELIVERY."""
    delivery_id, event, ended_state, notification, snapshot, state, attempts, *times, detail = row
    create_time, next_time, last_time, end_time = (None if time is None else time_from(time) for time in times)
    assert create_time is not None, "the column is NOT NULL"
    job, labels = snapshot_from(snapshot)
    return Delivery(
        delivery_id,
        NotificationEvent(event),
        State(ended_state),
        notifications_from(notification)[0],
        job,
        labels,
        DeliveryState(state),
        attempts,
        create_time,
        next_time,
        last_time,
        end_time,
        detail,
    )


def _window(db: Connection, after: int) -> tuple[int, bool]:
    """Return the sequence of the last change that one step reads, and whether there are further ones."""
    [(newest,)] = db.execute("SELECT coalesce(max(sequence), 0) FROM changes").fetchall()
    last = max(min(newest, after + STEP_CHANGES), after)
    return last, newest > last


def _insert(db: Connection, end: _End, notifications: Sequence[Notification], now: datetime) -> None:
    """Insert the deliveries of the notifications that ask for this end."""
    snapshot = ""
    for number, notification in enumerate(notifications):
        if not _wants(db, end, notification):
            continue
        snapshot = snapshot or _snapshot(db, end)
        if not snapshot:
            # The job is deleted: `catch_up` comes before deletions, so this is no job of this database.
            return
        event = notification.event or NotificationEvent.RUN_ENDED
        for one in _with_one_receiver(notification):
            _insert_delivery(db, end, event, number, one, snapshot, now)


def _wants(db: Connection, end: _End, notification: Notification) -> bool:
    """Return whether a notification asks for this end."""
    if notification.states and end.state not in notification.states:
        return False
    if end.kind is ChangeKind.ENDED:
        return notification.event is NotificationEvent.JOB_ENDED
    if notification.event is NotificationEvent.ATTEMPT_ENDED:
        return True
    return notification.event is not NotificationEvent.JOB_ENDED and not _is_retried(db, end)


def _is_retried(db: Connection, end: _End) -> bool:
    """Return whether another attempt of the same run follows: it was inserted in the transaction of the end."""
    [(found,)] = db.execute(
        """
        SELECT EXISTS (
            SELECT 1 FROM executions AS ended CROSS JOIN executions AS later INDEXED BY idx_executions_job_id
            ON later.job_id = ended.job_id AND later.run = ended.run AND later.attempt > ended.attempt
            WHERE ended.execution_id = ?
        )
        """,
        [end.execution_id],
    ).fetchall()
    return bool(found)


def _snapshot(db: Connection, end: _End) -> str:
    """Return the job with the execution that ended, and its labels; empty if there is no such job.

    The job is as it is now, but for the state, the end and the outcome that a final job has had."""
    rows = db.execute(
        f"""
        SELECT {JOB_WITHOUT_SPEC}, jobs.execution_id, executions.reason, executions.detail, executions.exit_code,
            executions.out_of_memory, executions.stop_signal, json_extract(CAST(jobs.spec AS TEXT), '$.labels')
        FROM jobs CROSS JOIN executions ON executions.execution_id = ? WHERE jobs.job_id = ?
        """,
        (end.execution_id, end.job_id),
    ).fetchall()
    if not rows:
        return ""
    *row, current_id, reason, detail, exit_code, out_of_memory, stop_signal, labels = rows[0]
    changed: dict[str, object] = {}
    if end.kind is ChangeKind.ENDED and current_id != end.execution_id:
        # It was retried meanwhile.
        outcome = {"reason": reason, "detail": detail, "exit_code": exit_code}
        changed = {**outcome, "out_of_memory": out_of_memory, "stop_signal": stop_signal}
        changed |= {"state": end.state, "end_time": end.time_us}
    return snapshot_text(row, json.loads(labels) if labels else {}, **changed)


def _with_one_receiver(notification: Notification) -> Iterator[Notification]:
    """Yield a notification for each receiver: one that fails is repeated alone."""
    target = notification.target
    if isinstance(target, Webhook):
        yield notification
    else:
        yield from (replace(notification, target=replace(target, to=(address,))) for address in target.to)


def _insert_delivery(
    db: Connection,
    end: _End,
    event: NotificationEvent,
    number: int,
    notification: Notification,
    snapshot: str,
    now: datetime,
) -> None:
    target = notification.target
    receiver = target.url if isinstance(target, Webhook) else target.to[0]
    values: dict[str, Any] = {
        # The same for the same end, whatever was restored: a receiver can tell a repetition.
        "delivery_id": str(uuid5(_NAMESPACE, f"{end.execution_id} {event.name} {number} {receiver}")),
        "job_id": end.job_id,
        "event": event,
        "ended_state": end.state,
        "receiver": receiver,
        "host": target.host,
        "notification": notifications_text([notification]),
        "snapshot": snapshot,
        "now": microseconds_since_epoch(now),
    }
    db.execute(
        f"""
        INSERT INTO deliveries
            (delivery_id, job_id, event, ended_state, receiver, host, notification, snapshot, state, create_time,
            next_time)
        VALUES (
            :delivery_id, :job_id, :event, :ended_state, :receiver, :host, :notification, :snapshot,
            {DeliveryState.PENDING}, :now, iif({_ONE_IS_PENDING}, NULL, :now)
        )
        ON CONFLICT (delivery_id) DO NOTHING
        """,
        values,
    )


# Whether a notification of the job to the receiver is pending.
_ONE_IS_PENDING = f"""
    EXISTS (
        SELECT 1 FROM deliveries AS earlier INDEXED BY deliveries_pending
        WHERE earlier.state = {DeliveryState.PENDING} AND earlier.job_id = :job_id AND earlier.receiver = :receiver
    )
"""


def _release(db: Connection, job_id: str, receiver: str, now: datetime) -> None:
    """Make the earliest pending notification of the job to the receiver due, unless one is."""
    db.execute(
        f"""
        UPDATE deliveries SET next_time = :now
        WHERE seq = (
            SELECT seq FROM deliveries INDEXED BY deliveries_pending
            WHERE state = {DeliveryState.PENDING} AND job_id = :job_id AND receiver = :receiver ORDER BY seq LIMIT 1
        ) AND NOT EXISTS (
            SELECT 1 FROM deliveries AS due INDEXED BY deliveries_pending
            WHERE due.state = {DeliveryState.PENDING} AND due.job_id = :job_id AND due.receiver = :receiver
                AND due.next_time IS NOT NULL
        )
        """,
        {"job_id": job_id, "receiver": receiver, "now": microseconds_since_epoch(now)},
    )
