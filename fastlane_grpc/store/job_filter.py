"""Jobs that match a filter, in the order in which calls change them, a page at a time.

The work for a page is bounded, however many jobs are stored and however few of them match: at most `most` rows of an
index are looked at. What no index decides is checked row by row. A page may be empty and not the last one: continue
after its `rest` until that is None."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TypeAlias

from fastlane_grpc.model import State
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.rows import microseconds_since_epoch

OPEN_STATES = tuple(state for state in State if not state.final)
FINAL_STATES = tuple(state for state in State if state.final)

# Rows that are looked at for one page.
MOST_LOOKED_AT = 10_000

# A place in an order: the time of a job and its `seq`.
Place: TypeAlias = tuple[int, int]

_FIRST, _LAST = -(1 << 63), (1 << 63) - 1


class Order(Enum):
    """The order of a page, oldest first."""

    # By the time of the enqueue. For any states.
    ENQUEUED = "create_time"
    # By the time of the end. For final states alone.
    ENDED = "end_time"


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; an empty field does not filter. The last two are not the caller's: the job ended before this time; a
    caller told it to stop, or none did."""

    task_id: str = ""
    states: Sequence[State] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    since_time: datetime | None = None
    until_time: datetime | None = None
    job_ids: Sequence[str] = ()
    ended_before: datetime | None = None
    told_to_stop: bool | None = None

    @property
    def is_empty(self) -> bool:
        """Whether a caller has set no field."""
        times = (self.since_time, self.until_time)
        return not (self.task_id or self.states or self.labels or self.job_ids) and times == (None, None)


@dataclass(frozen=True, slots=True)
class Matches:
    """The ids of a page, and the place after which the next page begins; None: no page follows."""

    job_ids: Sequence[str]
    rest: Place | None


def matching(
    db: Connection,
    query: JobFilter,
    states: Sequence[State],
    *,
    order: Order = Order.ENQUEUED,
    after: Place | None = None,
    limit: int,
    most: int = MOST_LOOKED_AT,
) -> Matches:
    """Return the first `limit` jobs after `after` that match the filter and are in one of `states`; those of the filter
    are to be among them. One statement, and a few that count which index leads to the fewest rows."""
    states = [state for state in query.states or states if state in states]
    if not states:
        return Matches((), None)
    values = _values(query, after, order)
    ranges = _ranges(db, query, states, values, order, most)
    look = max(most // len(ranges), 1)
    rows = db.execute(
        _sql(ranges, list(_checks(query, states, order)), order), {**values, "look": look, "limit": limit}
    ).fetchall()
    if not rows:
        return Matches((), None)
    looked, last_time, last_seq = rows[0][:3]
    found = [row[3:] for row in rows if row[3] is not None]
    if len(found) == limit:
        time, seq, _ = found[-1]
        rest: Place | None = (time, seq)
    else:
        rest = None if looked < look else (last_time, last_seq)
    return Matches([job_id for _, _, job_id in found], rest)


def _values(query: JobFilter, after: Place | None, order: Order) -> dict[str, object]:
    since, before, ended_before = (
        default if time is None else microseconds_since_epoch(time)
        for time, default in ((query.since_time, _FIRST), (query.until_time, _LAST), (query.ended_before, _LAST))
    )
    # One bound, the nearer of the two: an index is entered by one.
    begin = max(after or (_FIRST, _FIRST), (since, _FIRST) if order is Order.ENQUEUED else (_FIRST, _FIRST))
    return {
        "after_time": begin[0],
        "after_seq": begin[1],
        "before": before if order is Order.ENQUEUED else ended_before,
        "since": since,
        "until": before,
        "ended_before": ended_before,
        "task_id": query.task_id,
        "job_ids": _json(query.job_ids),
        **{f"name_{number}": name for number, name in enumerate(query.labels)},
        **{f"value_{number}": value for number, value in enumerate(query.labels.values())},
    }


def _json(job_ids: Sequence[str]) -> str:
    return json.dumps(list(job_ids))


def _ranges(
    db: Connection,
    query: JobFilter,
    states: Sequence[State],
    values: Mapping[str, object],
    order: Order,
    most: int,
) -> Sequence[str]:
    """Return the parts of an index, each in the order of the page, that hold all matching rows: of the index that leads
    to the fewest rows, counted no further than a page can look."""
    if query.job_ids:
        return ["FROM jobs INDEXED BY idx_jobs_job_id WHERE job_id IN (SELECT value FROM json_each(:job_ids))"]
    if order is Order.ENDED:
        # The label index is in the order of the enqueues.
        if query.task_id:
            return [f"FROM jobs INDEXED BY jobs_ended_of_task WHERE task_id = :task_id AND state >= {State.SUCCEEDED}"]
        return [f"FROM jobs INDEXED BY jobs_ended WHERE state >= {State.SUCCEEDED}"]
    if query.task_id:
        choices = [
            [f"FROM jobs INDEXED BY jobs_task_state WHERE task_id = :task_id AND state = {state}" for state in states]
        ]
    else:
        choices = [[f"FROM jobs INDEXED BY jobs_state WHERE state = {state}" for state in states]]
    choices += [
        [f"FROM job_labels WHERE name = :name_{number} AND value = :value_{number}"]
        for number in range(len(query.labels))
    ]
    if len(choices) == 1:
        return choices[0]
    # The first of equals: jobs leave the index of their state when they are changed, and are not looked at again.
    return min(choices, key=lambda ranges: _count(db, ranges, values, order, most))


def _count(db: Connection, ranges: Sequence[str], values: Mapping[str, object], order: Order, most: int) -> int:
    rows = " UNION ALL ".join(f"SELECT 1 {part} AND {_bounds(order)}" for part in ranges)
    count: int = db.execute(f"SELECT count(*) FROM ({rows} LIMIT :most + 1)", {**values, "most": most}).fetchall()[0][0]
    return count


def _bounds(order: Order) -> str:
    time = order.value
    return f"({time}, seq) > (:after_time, :after_seq) AND {time} < :before"


def _checks(query: JobFilter, states: Sequence[State], order: Order) -> Iterator[str]:
    """Yield a condition for each field. Those that an index has seen to cost little."""
    yield f"jobs.state IN ({', '.join(str(int(state)) for state in states)})"
    if query.task_id:
        yield "jobs.task_id = :task_id"
    for number in range(len(query.labels)):
        yield f"""
            EXISTS (
                SELECT 1 FROM job_labels WHERE name = :name_{number} AND value = :value_{number}
                AND job_labels.create_time = jobs.create_time AND job_labels.seq = jobs.seq
            )
        """
    if query.since_time is not None and order is not Order.ENQUEUED:
        yield "jobs.create_time >= :since"
    if query.until_time is not None and order is not Order.ENQUEUED:
        yield "jobs.create_time < :until"
    if query.ended_before is not None and order is not Order.ENDED:
        yield "jobs.end_time < :ended_before"
    if query.told_to_stop is not None:
        yield f"jobs.stop_time IS {'NOT ' if query.told_to_stop else ''}NULL"


def _sql(ranges: Sequence[str], checks: Sequence[str], order: Order) -> str:
    time = order.value
    each = " UNION ALL ".join(
        f"SELECT * FROM (SELECT {time} AS time, seq {part} AND {_bounds(order)} ORDER BY {time}, seq LIMIT :look)"
        for part in ranges
    )
    # There is a row even where nothing that was looked at matches, which says how far the look went; none if nothing
    # was there.
    return f"""
        WITH looked AS MATERIALIZED (SELECT * FROM ({each}) ORDER BY time, seq LIMIT :look),
        matched AS MATERIALIZED (
            SELECT looked.time, looked.seq, jobs.job_id FROM looked CROSS JOIN jobs ON jobs.seq = looked.seq
            WHERE {" AND ".join(checks)} ORDER BY looked.time, looked.seq LIMIT :limit
        )
        SELECT (SELECT count(*) FROM looked), last.time, last.seq, matched.time, matched.seq, matched.job_id
        FROM (SELECT time, seq FROM looked ORDER BY time DESC, seq DESC LIMIT 1) AS last LEFT JOIN matched
        ORDER BY matched.time, matched.seq
    """
