"""What must be true of the tables of a store at any moment, whatever was asked of it."""

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
    of_job = "FROM executions WHERE executions.job_id = jobs.job_id"
    newest_open = f"(SELECT execution_id {of_job} AND executions.state < 6 ORDER BY seq DESC LIMIT 1)"
    assert rows(f"SELECT job_id, {newest_open} FROM jobs WHERE state < 6 ORDER BY 1") == rows(
        "SELECT job_id, execution_id FROM jobs WHERE state < 6 ORDER BY 1"
    ), "the current execution of a job is the newest one that is not final"
    shared = "jobs.state, jobs.reason, jobs.detail, jobs.exit_code"
    of_current = shared.replace("jobs.", "executions.")
    assert rows(f"SELECT job_id, {shared} FROM jobs ORDER BY 1") == rows(
        f"SELECT jobs.job_id, {of_current} FROM jobs JOIN executions USING (execution_id) ORDER BY 1"
    ), "a job has the state of its current execution, and ends as the one that decided it"
    assert (
        rows(f"SELECT job_id FROM jobs WHERE state >= 6 AND EXISTS (SELECT 1 {of_job} AND executions.state < 6)") == []
    )
    assert rows(f"SELECT job_id FROM jobs WHERE executions < (SELECT count(*) {of_job})") == []
    assert rows(f"SELECT job_id FROM jobs WHERE runs < (SELECT max(run) {of_job})") == []
    check_schedules(rows)
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
    assert rows("SELECT waiting, scheduled FROM kept") == rows(
        "SELECT count(*) FILTER (WHERE state <= 2), count(*) FILTER (WHERE state = 1) FROM executions"
    )


def check_schedules(rows: Rows) -> None:
    """A job with a schedule that is not over has either one execution that is scheduled for a tick, or open executions
    of a run and a tick to handle."""
    waiting = (
        "(SELECT count(*) FROM executions WHERE executions.job_id = jobs.job_id AND executions.state = 1"
        " AND executions.attempt = 1 AND executions.tick_time IS NOT NULL)"
    )
    others = (
        "(SELECT count(*) FROM executions WHERE executions.job_id = jobs.job_id AND executions.state < 6"
        " AND NOT (executions.state = 1 AND executions.attempt = 1 AND executions.tick_time IS NOT NULL))"
    )
    for job_id, ticks, runs, tick_time in rows(
        f"SELECT job_id, {waiting}, {others}, tick_time FROM jobs WHERE schedule IS NOT NULL AND state < 6"
    ):
        assert (ticks, runs > 0) in {(1, False), (0, True)}, job_id
        assert tick_time is None or runs, job_id
    assert rows("SELECT job_id FROM jobs WHERE tick_time IS NOT NULL AND (schedule IS NULL OR state >= 6)") == []
    assert rows("SELECT execution_id FROM executions WHERE held <> 0 AND state <> 1") == []
