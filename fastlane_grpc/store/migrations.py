"""The schema, as the steps that lead to it. A step that was released is never edited: a database that has it keeps it."""

from uuid import uuid4

from sqlite_utils import Database, Migrations

migrations = Migrations("fastlane")


@migrations()
def tasks_and_jobs(db: Database) -> None:
    """What callers enqueued. Times are microseconds since 1970, durations microseconds."""
    db.table("tasks").create({"task_id": str, "create_time": int}, pk="task_id", not_null={"create_time"}, strict=True)
    db.table("jobs").create(
        {
            "job_id": str,
            "task_id": str,
            "spec": bytes,  # JSON; what has its default is left out
            "create_time": int,
            "request_id": str,  # empty: none was given
            "request_digest": bytes,  # SHA-256 over task and spec: tells the same request from another one
            "caller_address": str,
        },
        pk="job_id",
        not_null={"task_id", "spec", "create_time", "request_id", "request_digest", "caller_address"},
        foreign_keys=[("task_id", "tasks", "task_id")],
        strict=True,
    )
    db.execute("CREATE UNIQUE INDEX jobs_request ON jobs(task_id, request_id) WHERE request_id <> ''")


@migrations()
def executions(db: Database) -> None:
    """One row for each container. `seq` is the order of arrival, which is the order within a task."""
    db.table("executions").create(
        {
            "seq": int,
            "execution_id": str,
            "job_id": str,
            "task_id": str,
            "priority": int,
            "run": int,
            "attempt": int,
            "state": int,  # the contract's number
            "state_time": int,
            "create_time": int,
            "due_time": int,
            "claim_time": int,
            "pull_time": int,
            "container_time": int,
            "start_time": int,
            "first_byte_time": int,
            "exit_time": int,
            "seal_time": int,
            "end_time": int,
            "host": str,
            "container_id": str,
            "image_digest": str,
            "capture": str,
            "engine_life": str,
            "starting": int,  # 1: a start may have been sent
            "stop_cause": str,  # null: not told to stop
            "stop_time": int,
            "stop_grace": int,
            "stop_note": str,
            "reason": int,  # null: not final; the contract's number
            "detail": str,
            "exit_code": int,
            "out_of_memory": int,
            "stop_signal": str,
            "logs": str,  # JSON: [source, bytes, missing bytes, CRC-32 or null] of each source
        },
        pk="seq",
        not_null={
            *("execution_id", "job_id", "task_id", "priority", "run", "attempt", "state", "state_time", "create_time", "due_time"),
            *("host", "container_id", "image_digest", "capture", "engine_life", "starting", "logs"),
        },
        defaults={"host": "", "container_id": "", "image_digest": "", "capture": "", "engine_life": "", "starting": 0, "logs": "[]"},
        foreign_keys=[("job_id", "jobs", "job_id")],
        strict=True,
    )
    db.table("executions").create_index(["execution_id"], unique=True)
    db.table("executions").create_index(["job_id"])
    # What is not final is little, however much is kept. These two make a claim and an adoption independent of a million rows.
    db.execute("CREATE INDEX executions_queued ON executions(priority DESC, task_id, seq) WHERE state = 2")
    db.execute("CREATE INDEX executions_unfinished ON executions(claim_time) WHERE state IN (3, 4, 5)")


@migrations()
def lines_of_the_queue(db: Database) -> None:
    """A row for each task that has queued executions of a priority; the lowest turn is served next, and then gets the highest."""
    db.table("lines").create({"priority": int, "task_id": str, "turn": int}, pk=("priority", "task_id"), not_null={"turn"}, strict=True)
    db.execute("CREATE UNIQUE INDEX lines_turn ON lines(priority DESC, turn)")


@migrations()
def identity_of_the_instance(db: Database) -> None:
    """What containers are labelled with, so that two servers on one engine leave each other's alone."""
    db.table("instance").create({"instance_id": str}, pk="instance_id", strict=True)
    db.execute("INSERT INTO instance VALUES (?)", [str(uuid4())])
