"""Lists, newest first, one page at a time. The work for a page is bounded, whatever the number of rows. A page is one
statement; if there is a choice of indexes, a few statements before it count which one leads to the fewest rows.

The index has a range for each state, and a page is a merge of the ends of these ranges: only the rows of the page are
sorted. Filters without an index are checked row by row, on a bounded number of rows. Such a page may be short or empty
without being the last.

A position in a list is the key of a row. So a row that exists the whole time is in one of the pages, whatever comes or
changes between them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeAlias, TypeVar

from fastlane_grpc.model import Delivery, DeliveryState, Execution, Job, State, Task
from fastlane_grpc.store.audit import AUDIT, AuditEntry, entry_from
from fastlane_grpc.store.database import Connection
from fastlane_grpc.store.outbox import DELIVERY, delivery_from
from fastlane_grpc.store.rows import (
    EXECUTION,
    JOB,
    JOB_WITHOUT_SPEC,
    TASK,
    TASKS,
    Row,
    execution_from,
    job_from,
    microseconds_since_epoch,
    rows_at_once,
    task_from,
)

T = TypeVar("T")

# A place in a list: the key that its rows are ordered by. Of jobs (create_time, seq), of executions (seq,), of tasks
# (task_id,).
Position: TypeAlias = tuple[int | str, ...]

# Rows that are looked at for one page.
MOST_LOOKED_AT = 10_000
# Specs of one page, as they are kept; the first one is taken however large it is.
MOST_SPEC_BYTES = 3 << 20

_FIRST, _LAST = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs; what is left empty does not narrow. Without `with_spec` their specs are not read."""

    task_id: str = ""
    states: Sequence[State] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    since_time: datetime | None = None
    until_time: datetime | None = None
    id_prefix: str = ""
    with_spec: bool = False


@dataclass(frozen=True, slots=True)
class ExecutionQuery:
    """Which executions; what is left empty does not narrow."""

    job_id: str = ""
    task_id: str = ""
    states: Sequence[State] = ()
    host: str = ""
    id_prefix: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """Which deliveries; what is left empty does not narrow."""

    job_id: str = ""
    states: Sequence[DeliveryState] = ()


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries of the audit; what is left empty does not narrow."""

    task_id: str = ""
    job_id: str = ""
    caller: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class ListPage(Generic[T]):
    """One page of a list: its items in order, the position of each, and `rest`, the position behind which the next page
    begins; None: this is the last page."""

    items: Sequence[T]
    positions: Sequence[Position]
    rest: Position | None


@dataclass(frozen=True, slots=True)
class SharedPage(Generic[T]):
    """A page that is read once for all who wait for it together: many who look at a list look at the same page.

    Those that are equal read the same page. `find` is one of the functions below."""

    find: Callable[[Connection, Any, Any, int], ListPage[T]]
    query: Any
    after: Position | None
    size: int

    def read(self, db: Connection) -> ListPage[T]:
        """Return the page."""
        return self.find(db, self.query, self.after, self.size)

    def __call__(self, db: Connection, works: Sequence[object]) -> Sequence[ListPage[T]]:
        """Return the page for each of those who wait."""
        return [self.read(db)] * len(works)


def page_of_jobs(
    db: Connection, query: JobQuery, after: tuple[int, int] | None, size: int, *, most: int = MOST_LOOKED_AT
) -> ListPage[Job]:
    """Return at most `size` jobs behind `after`, newest first. At most `most` rows are looked at."""
    # One bound, the nearer of the two: an index is entered by one.
    before = min(
        after or (_LAST, _LAST),
        (_LAST, _LAST) if query.until_time is None else (microseconds_since_epoch(query.until_time), 0),
    )
    values: dict[str, object] = {
        "since": _FIRST if query.since_time is None else microseconds_since_epoch(query.since_time),
        "before_time": before[0],
        "before_seq": before[1],
        "task_id": query.task_id,
        **_id_range(query.id_prefix),
        **{f"name_{number}": name for number, name in enumerate(query.labels)},
        **{f"value_{number}": value for number, value in enumerate(query.labels.values())},
    }
    return _page(db, _JOBS_WITH_SPEC if query.with_spec else _JOBS, list(_job_filters(query)), values, size, most)


def page_of_executions(
    db: Connection, query: ExecutionQuery, after: tuple[int] | None, size: int, *, most: int = MOST_LOOKED_AT
) -> ListPage[Execution]:
    """Return at most `size` executions behind `after`, newest first. At most `most` rows are looked at."""
    values: dict[str, object] = {
        "before_seq": _LAST if after is None else after[0],
        "job_id": query.job_id,
        "task_id": query.task_id,
        "host": query.host,
        **_id_range(query.id_prefix),
    }
    return _page(db, _EXECUTIONS, list(_execution_filters(query)), values, size, most)


def page_of_deliveries(
    db: Connection, query: DeliveryQuery, after: tuple[int] | None, size: int, *, most: int = MOST_LOOKED_AT
) -> ListPage[Delivery]:
    """By arrival, newest first: at most `size` behind `after`, of `most` that are looked at."""
    values: dict[str, object] = {"before_seq": _LAST if after is None else after[0], "job_id": query.job_id}
    return _page(db, _DELIVERIES, list(_delivery_filters(query)), values, size, most)


def page_of_audit_entries(
    db: Connection, query: AuditQuery, after: tuple[int] | None, size: int, *, most: int = MOST_LOOKED_AT
) -> ListPage[AuditEntry]:
    """By arrival, newest first: at most `size` behind `after`, of `most` that are looked at."""
    values = {"before_seq": _LAST if after is None else after[0], **asdict(query)}
    return _page(db, _AUDIT, list(_audit_filters(query)), values, size, most)


def page_of_tasks(db: Connection, after: tuple[str] | None, size: int) -> ListPage[Task]:
    """Return at most `size` tasks behind `after`, by name."""
    rows = db.execute(
        f"SELECT {TASK} FROM {TASKS} WHERE task_id > ? ORDER BY task_id LIMIT ? + 0",
        ["" if after is None else after[0], size + 1],
    ).fetchall()
    tasks = [task_from(row) for row in rows[:size]]
    positions = [(task.id,) for task in tasks]
    return ListPage(tasks, positions, positions[-1] if len(rows) > size else None)


# ---- what narrows a list, and where its rows are found


@dataclass(frozen=True, slots=True)
class _Filter:
    """`check` says of one row whether it is wanted; empty: every row is.

    `ranges`, where there is an index for it: the parts of it that hold the wanted rows, each in the order of the list.
    They see to the filters named in `sees_to`. `few`: they are in another order, so that a page has to read all of
    them, which have to be few."""

    name: str
    check: str
    ranges: Sequence[str] = ()
    sees_to: frozenset[str] = frozenset()
    few: bool = False


@dataclass(frozen=True, slots=True)
class _Noun:
    """A table, the key that orders its lists, and how a row is read. `weight`: bytes of what is large in one."""

    table: str
    key: Sequence[str]
    bounds: str
    columns: str
    read: Callable[[Row], Any]
    join: str = ""
    weight: str = "0"


_CURRENT_EXECUTION = "LEFT JOIN executions ON executions.execution_id = jobs.execution_id"
# SQLite enters an index by the time alone, and passes over jobs of the same microsecond one by one: there are never
# many.
_BY_TIME = "create_time >= :since AND (create_time, seq) < (:before_time, :before_seq)"
_JOBS = _Noun("jobs", ("create_time", "seq"), _BY_TIME, JOB_WITHOUT_SPEC, job_from, _CURRENT_EXECUTION)
_JOBS_WITH_SPEC = _Noun(
    "jobs", ("create_time", "seq"), _BY_TIME, JOB, job_from, _CURRENT_EXECUTION, "length(jobs.spec)"
)
_EXECUTIONS = _Noun("executions", ("seq",), "seq < :before_seq", EXECUTION, execution_from)
_AUDIT = _Noun("audit", ("seq",), "seq < :before_seq", AUDIT, entry_from)
_DELIVERIES = _Noun("deliveries", ("seq",), "seq < :before_seq", DELIVERY, delivery_from)


def _job_filters(query: JobQuery) -> Iterator[_Filter]:
    states = query.states or tuple(State)
    if query.id_prefix:
        yield _of_id("jobs", "job_id")
    for number in range(len(query.labels)):
        labelled = f"FROM job_labels WHERE name = :name_{number} AND value = :value_{number}"
        label = f"label {number}"
        yield _Filter(
            label,
            f"EXISTS (SELECT 1 {labelled} AND job_labels.create_time = jobs.create_time AND job_labels.seq = jobs.seq)",
            [labelled],
            frozenset({label}),
        )
    yield _of_states("jobs", query.states)
    if query.task_id:
        ranges = [
            f"FROM jobs INDEXED BY jobs_task_state WHERE task_id = :task_id AND state = {state}" for state in states
        ]
        yield _Filter("task", "jobs.task_id = :task_id", ranges, frozenset({"task", "states"}))
    else:
        ranges = [f"FROM jobs INDEXED BY jobs_state WHERE state = {state}" for state in states]
        yield _Filter("all", "", ranges, frozenset({"all", "states"}))


def _execution_filters(query: ExecutionQuery) -> Iterator[_Filter]:
    states = query.states or tuple(State)
    if query.id_prefix:
        yield _of_id("executions", "execution_id")
    yield _of_states("executions", query.states)
    if query.job_id:
        ranges = ["FROM executions INDEXED BY idx_executions_job_id WHERE job_id = :job_id"]
        yield _Filter("job", "executions.job_id = :job_id", ranges, frozenset({"job"}))
    if query.task_id:
        ranges = [
            f"FROM executions INDEXED BY executions_task_state WHERE task_id = :task_id AND state = {state}"
            for state in states
        ]
        yield _Filter("task", "executions.task_id = :task_id", ranges, frozenset({"task", "states"}))
    if query.host:
        ranges = [
            f"FROM executions INDEXED BY executions_host_state WHERE host = :host AND host <> '' AND state = {state}"
            for state in states
        ]
        yield _Filter("host", "executions.host = :host", ranges, frozenset({"host", "states"}))
    if not (query.job_id or query.task_id or query.host):
        ranges = [f"FROM executions INDEXED BY executions_state WHERE state = {state}" for state in states]
        yield _Filter("all", "", ranges, frozenset({"all", "states"}))


def _delivery_filters(query: DeliveryQuery) -> Iterator[_Filter]:
    states = query.states or tuple(DeliveryState)
    if query.job_id:
        yield _of_states("deliveries", query.states)
        ranges = ["FROM deliveries INDEXED BY deliveries_of_job WHERE job_id = :job_id"]
        yield _Filter("job", "deliveries.job_id = :job_id", ranges, frozenset({"job"}))
    else:
        ranges = [f"FROM deliveries INDEXED BY deliveries_state WHERE state = {state}" for state in states]
        yield _Filter("all", "", ranges, frozenset({"all", "states"}))


def _audit_filters(query: AuditQuery) -> Iterator[_Filter]:
    if query.job_id:
        ranges = ["FROM audit INDEXED BY audit_of_job WHERE job_id = :job_id AND job_id <> ''"]
        yield _Filter("job", "audit.job_id = :job_id", ranges, frozenset({"job"}))
    else:
        yield _Filter("all", "", ["FROM audit WHERE true"], frozenset({"all"}))
    for name in ("task_id", "caller", "method"):
        if getattr(query, name):
            yield _Filter(name, f"audit.{name} = :{name}")


def _of_id(table: str, column: str) -> _Filter:
    # Ids begin with the time they were made, but nothing relies on that: what begins alike is few, or is met on the way
    # through the rest.
    begins_so = f"FROM {table} INDEXED BY idx_{table}_{column} WHERE {column} >= :id_from AND {column} < :id_before"
    check = f"{table}.{column} >= :id_from AND {table}.{column} < :id_before"
    return _Filter("id", check, [begins_so], frozenset({"id"}), few=True)


def _of_states(table: str, states: Sequence[State | DeliveryState]) -> _Filter:
    return _Filter("states", f"{table}.state IN ({', '.join(str(int(state)) for state in states)})" if states else "")


def _id_range(prefix: str) -> Mapping[str, str]:
    # No character of an id comes after f.
    return {"id_from": prefix, "id_before": f"{prefix}g"}


# ---- one page


def _page(
    db: Connection, noun: _Noun, filters: Sequence[_Filter], values: Mapping[str, object], size: int, most: int
) -> ListPage[Any]:
    source = _source(db, noun, filters, values, most)
    checks = _checks(source, filters)
    if not checks and noun.weight == "0":
        return _unchecked_page(db, noun, source.ranges, values, size)
    # Without checks whatever is looked at is wanted; the one more tells whether there is another page.
    look = max(most // len(source.ranges), 1) if checks else size + 1
    limits = {"look": look, "size": size, "most_spec_bytes": MOST_SPEC_BYTES}
    rows = db.execute(_sql(noun, source.ranges, checks), {**values, **limits}).fetchall()
    return _page_from(rows, noun, look=look, size=size)


def _unchecked_page(
    db: Connection, noun: _Noun, ranges: Sequence[str], values: Mapping[str, object], size: int
) -> ListPage[Any]:
    """Return the page where every row of the ranges is wanted and none is large. Half the work of the general
    statement, which counts rows and weighs them."""
    key = ", ".join(f"looked.{column}" for column in noun.key)
    source = f"FROM looked CROSS JOIN {noun.table} ON {noun.table}.seq = looked.seq {noun.join}"
    # One row more tells whether another page follows.
    rows = rows_at_once(
        db,
        f"{key}, {noun.columns}",
        source,
        {**values, "look": size + 1},
        before=f"WITH looked AS MATERIALIZED ({_looked_at(noun, ranges)})",
    )
    width = len(noun.key)
    found = sorted(((tuple(row[:width]), row) for row in rows), reverse=True, key=_place)
    positions = [position for position, _ in found[:size]]
    items = [noun.read(row[width:]) for _, row in found[:size]]
    return ListPage(items, positions, positions[-1] if len(found) > size else None)


def _source(
    db: Connection, noun: _Noun, filters: Sequence[_Filter], values: Mapping[str, object], most: int
) -> _Filter:
    """One that leaves nothing to check, or else the one with the fewest rows to look at, counted no further than a page
    could look."""
    left = [each for each in filters if each.ranges and (not each.few or _count(db, each.ranges, values, most) <= most)]
    for each in left:
        if len(left) == 1 or not (each.few or _checks(each, filters)):
            return each
    return min(left, key=lambda each: _count(db, [f"{part} AND {noun.bounds}" for part in each.ranges], values, most))


def _checks(source: _Filter, filters: Sequence[_Filter]) -> Sequence[str]:
    return [each.check for each in filters if each.check and each.name not in source.sees_to]


def _count(db: Connection, ranges: Sequence[str], values: Mapping[str, object], most: int) -> int:
    rows = " UNION ALL ".join(f"SELECT 1 {part}" for part in ranges)
    count: int = db.execute(f"SELECT count(*) FROM ({rows} LIMIT :most + 1)", {**values, "most": most}).fetchall()[0][0]
    return count


def _looked_at(noun: _Noun, ranges: Sequence[str]) -> str:
    """Return the statement that reads the keys of the first `:look` rows of the ranges together."""
    key, newest_first = ", ".join(noun.key), ", ".join(f"{column} DESC" for column in noun.key)
    each = " UNION ALL ".join(
        f"SELECT * FROM (SELECT {key} {part} AND {noun.bounds} ORDER BY {newest_first} LIMIT :look + 0)"
        for part in ranges
    )
    return f"SELECT * FROM ({each}) ORDER BY {newest_first} LIMIT :look + 0"


def _sql(noun: _Noun, ranges: Sequence[str], checks: Sequence[str]) -> str:
    key, newest_first = ", ".join(noun.key), ", ".join(f"{column} DESC" for column in noun.key)
    last = ", ".join(f"last.{column}" for column in noun.key)
    taken = ", ".join(f"taken.{column}" for column in noun.key)
    wanted = " AND ".join(checks) or "true"
    # There is a row even where nothing that was looked at is wanted, which says how far the look went; none if nothing
    # was there.
    return f"""
        WITH looked AS MATERIALIZED ({_looked_at(noun, ranges)}),
        matched AS MATERIALIZED (
            SELECT {", ".join(f"looked.{column}" for column in noun.key)}, {noun.weight} AS weight
            FROM looked CROSS JOIN {noun.table} ON {noun.table}.seq = looked.seq
            WHERE {wanted} ORDER BY {", ".join(f"looked.{column} DESC" for column in noun.key)} LIMIT :size + 0
        ),
        taken AS MATERIALIZED (
            SELECT {key} FROM (SELECT {key}, weight, sum(weight) OVER (ORDER BY {newest_first}) AS so_far FROM matched)
            WHERE so_far <= :most_spec_bytes OR so_far = weight
        )
        SELECT (SELECT count(*) FROM looked), (SELECT count(*) FROM matched), {last}, {taken}, {noun.columns}
        FROM (SELECT {key} FROM looked ORDER BY {key} LIMIT 1) AS last
        LEFT JOIN taken LEFT JOIN {noun.table} ON {noun.table}.seq = taken.seq {noun.join}
    """


def _page_from(rows: Sequence[Row], noun: _Noun, *, look: int, size: int) -> ListPage[Any]:
    if not rows:
        return ListPage((), (), None)
    width = len(noun.key)
    looked, matched = rows[0][:2]
    last = tuple(rows[0][2 : 2 + width])
    # Sorted here: a sort in the statement would hold every spec.
    found = sorted(
        ((tuple(row[2 + width : 2 + 2 * width]), row) for row in rows if row[2 + width] is not None),
        reverse=True,
        key=_place,
    )
    positions = [position for position, _ in found]
    rest: Position | None = positions[-1] if matched == size or len(found) < matched else last
    if rest == last and looked < look:
        rest = None
    return ListPage([noun.read(row[2 + 2 * width :]) for _, row in found], positions, rest)


def _place(found: tuple[Position, Row]) -> Position:
    return found[0]
