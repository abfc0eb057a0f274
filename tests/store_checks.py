"""What has to be true of the tables of a store at any moment, whatever was asked of it."""

from collections.abc import Callable
from typing import Any

Rows = Callable[[str], list[Any]]


def check_lines(rows: Rows) -> None:
    """Exactly the tasks that have queued executions of a priority have a line of it."""
    queued = rows("SELECT DISTINCT priority, task_id FROM executions WHERE state = 2 ORDER BY 1, 2")
    assert rows("SELECT priority, task_id FROM lines ORDER BY 1, 2") == queued
    check_limits(rows)


def check_limits(rows: Rows) -> None:
    """Exactly the lines of tasks that are at a limit or paused are blocked, and each count is what a recount gives."""
    of_limits = "(SELECT count(*) FROM task_limits), (SELECT count(*) FROM task_starts)"
    of_others = "(SELECT count(*) FROM lines WHERE blocked), (SELECT count(*) FROM tasks WHERE jobs = 0)"
    if rows(f"SELECT {of_limits}, {of_others}") == [(0, 0, 0, 0)]:
        return  # one query, as nearly no test limits a task
    blocked = "SELECT task_id FROM task_limits WHERE paused OR next_start_time OR running >= nullif(max_running, 0)"
    should = rows(f"SELECT priority, task_id FROM lines WHERE task_id IN ({blocked}) ORDER BY 1, 2")
    assert rows("SELECT priority, task_id FROM lines WHERE blocked ORDER BY 1, 2") == should
    running = "(SELECT count(*) FROM executions WHERE task_id = task_limits.task_id AND state BETWEEN 3 AND 5)"
    assert rows(f"SELECT task_id, {running} FROM task_limits") == rows("SELECT task_id, running FROM task_limits")
    assert rows("SELECT task_id FROM task_limits EXCEPT SELECT task_id FROM tasks") == []
    assert rows("SELECT task_id FROM tasks WHERE jobs = 0 EXCEPT SELECT task_id FROM task_limits") == []
    rated = "SELECT task_id FROM task_limits WHERE max_starts > 0"
    assert rows(f"SELECT task_id FROM task_starts WHERE task_id NOT IN ({rated})") == []


def check_jobs(rows: Rows) -> None:
    """Each job has the state that its executions give it, and each count is what a recount gives."""
    newest = "(SELECT execution_id FROM executions WHERE executions.job_id = jobs.job_id ORDER BY seq DESC LIMIT 1)"
    count = "(SELECT count(*) FROM executions WHERE executions.job_id = jobs.job_id)"
    current = rows("SELECT job_id, execution_id, executions FROM jobs ORDER BY 1")
    assert rows(f"SELECT job_id, {newest}, {count} FROM jobs ORDER BY 1") == current
    open_executions = rows("SELECT job_id, execution_id, state FROM executions WHERE state < 6 ORDER BY 1, 2")
    open_jobs = rows("SELECT job_id, execution_id, state FROM jobs WHERE state < 6 ORDER BY 1")
    assert open_executions == open_jobs, (
        "a job that is not final has one execution that is not, its current one, and the state of it"
    )
    for table in ("jobs", "executions"):
        final = rows(f"SELECT job_id FROM {table} WHERE state >= 6 ORDER BY 1")
        for settled in (
            "reason IS NOT NULL",
            "end_time IS NOT NULL",
            "detail IS NOT NULL",
            "out_of_memory IS NOT NULL",
        ):
            assert rows(f"SELECT job_id FROM {table} WHERE {settled} ORDER BY 1") == final
    by_task = "SELECT task_id, count(*), count(*) FILTER (WHERE state < 6) FROM jobs GROUP BY task_id ORDER BY 1"
    assert rows("SELECT task_id, jobs, open_jobs FROM tasks WHERE jobs > 0 ORDER BY 1") == rows(by_task)
    assert rows("SELECT waiting FROM kept") == rows("SELECT count(*) FROM executions WHERE state <= 2")
