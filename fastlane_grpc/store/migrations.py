"""The schema, as the steps that lead to it. A step that was released is never edited: a database that has it keeps it.

What follows from other rows (a task's counts, the lines of the queue) is kept by triggers: no statement can forget it,
and it costs none."""

from uuid import uuid4

from sqlite_utils import Database, Migrations

migrations = Migrations("fastlane")

_ROWS_AT_ONCE = 10_000


@migrations()
def tasks_and_jobs(db: Database) -> None:
    """The tables of tasks and jobs. Times are microseconds since 1970, durations microseconds."""
    db.table("tasks").create(
        {
            "task_id": str,
            "create_time": int,
            "last_enqueue_time": int,
            "jobs": int,  # that are kept
            "open_jobs": int,  # of these, that are not final
        },
        pk="task_id",
        not_null={"create_time", "last_enqueue_time", "jobs", "open_jobs"},
        strict=True,
    )
    db.table("jobs").create(
        {
            "seq": int,  # the order of arrival
            "job_id": str,
            "task_id": str,
            "state": int,  # of its newest execution
            "spec": bytes,  # JSON; what has its default is left out
            "create_time": int,
            "request_id": str,  # empty: none was given
            "request_digest": bytes,  # SHA-256 over task and spec: tells the same request from another one
            "caller_address": str,
        },
        pk="seq",
        not_null={
            "job_id",
            "task_id",
            "state",
            "spec",
            "create_time",
            "request_id",
            "request_digest",
            "caller_address",
        },
        foreign_keys=[("task_id", "tasks", "task_id")],
        strict=True,
    )
    db.table("jobs").create_index(["job_id"], unique=True)
    db.execute("CREATE UNIQUE INDEX jobs_request ON jobs(task_id, request_id) WHERE request_id <> ''")
    # Lists, newest first: of all, or of one task, in any of some states. A page is read off the ends of these.
    db.execute("CREATE INDEX jobs_state ON jobs(state, create_time)")
    db.execute("CREATE INDEX jobs_task_state ON jobs(task_id, state, create_time)")
    db.execute(
        """
        CREATE TRIGGER job_came AFTER INSERT ON jobs BEGIN
            INSERT INTO tasks VALUES (new.task_id, new.create_time, new.create_time, 1, new.state < 6)
            ON CONFLICT DO UPDATE SET last_enqueue_time = new.create_time, jobs = jobs + 1, open_jobs = open_jobs + (new.state < 6);
        END
        """  # noqa: E501  the text of a step stays as it is
    )
    db.execute(
        """
        CREATE TRIGGER job_closed_or_opened AFTER UPDATE OF state ON jobs WHEN (old.state < 6) <> (new.state < 6) BEGIN
            UPDATE tasks SET open_jobs = open_jobs + (new.state < 6) - (old.state < 6) WHERE task_id = new.task_id;
        END
        """
    )


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
            *(
                "execution_id",
                "job_id",
                "task_id",
                "priority",
                "run",
                "attempt",
                "state",
                "state_time",
                "create_time",
                "due_time",
            ),
            *("host", "container_id", "image_digest", "capture", "engine_life", "starting", "logs"),
        },
        defaults={
            "host": "",
            "container_id": "",
            "image_digest": "",
            "capture": "",
            "engine_life": "",
            "starting": 0,
            "logs": "[]",
        },
        foreign_keys=[("job_id", "jobs", "job_id")],
        strict=True,
    )
    db.table("executions").create_index(["execution_id"], unique=True)
    db.table("executions").create_index(["job_id"])
    # Lists, as those of jobs; and what a new server takes up.
    db.execute("CREATE INDEX executions_state ON executions(state)")
    db.execute("CREATE INDEX executions_task_state ON executions(task_id, state)")
    db.execute("CREATE INDEX executions_host_state ON executions(host, state) WHERE host <> ''")
    db.execute(
        """
        CREATE TRIGGER job_has_the_state_of_its_newest_execution AFTER UPDATE OF state ON executions WHEN old.state <> new.state BEGIN
            UPDATE jobs SET state = new.state
            WHERE job_id = new.job_id AND NOT EXISTS (
                SELECT 1 FROM executions AS newer WHERE newer.job_id = new.job_id AND newer.seq > new.seq
            );
        END
        """  # noqa: E501  the text of a step stays as it is
    )


@migrations()
def lines_of_the_queue(db: Database) -> None:
    """A row for each task that has queued executions of a priority, and for no other; the lowest turn is served next,
    and then gets the highest. So a claim is two steps down two indexes, however many wait."""
    db.table("lines").create(
        {"priority": int, "task_id": str, "turn": int}, pk=("priority", "task_id"), not_null={"turn"}, strict=True
    )
    db.execute("CREATE UNIQUE INDEX lines_turn ON lines(priority DESC, turn)")
    db.execute("CREATE INDEX executions_queued ON executions(priority DESC, task_id, seq) WHERE state = 2")
    line_up = """
        INSERT INTO lines (priority, task_id, turn)
        VALUES (new.priority, new.task_id, (SELECT coalesce(max(turn), 0) + 1 FROM lines WHERE priority = new.priority))
        ON CONFLICT (priority, task_id) DO NOTHING;
    """
    db.execute(f"CREATE TRIGGER queued_at_first AFTER INSERT ON executions WHEN new.state = 2 BEGIN {line_up} END")
    db.execute(
        f"CREATE TRIGGER queued_again AFTER UPDATE OF state ON executions WHEN old.state <> 2 AND new.state = 2"
        f" BEGIN {line_up} END"
    )
    db.execute(
        """
        CREATE TRIGGER left_the_queue AFTER UPDATE OF state ON executions WHEN old.state = 2 AND new.state <> 2 BEGIN
            DELETE FROM lines WHERE priority = old.priority AND task_id = old.task_id AND NOT EXISTS (
                SELECT 1 FROM executions AS queued INDEXED BY executions_queued
                WHERE queued.state = 2 AND queued.priority = old.priority AND queued.task_id = old.task_id
            );
            UPDATE lines SET turn = (SELECT max(turn) + 1 FROM lines AS others WHERE others.priority = old.priority)
            WHERE priority = old.priority AND task_id = old.task_id AND new.state = 3;
        END
        """
    )


@migrations()
def identity_of_the_instance(db: Database) -> None:
    """The id of the instance, with which its containers are labelled, so that two servers on one engine do not mix up
    theirs."""
    db.table("instance").create({"instance_id": str}, pk="instance_id", strict=True)
    db.execute("INSERT INTO instance VALUES (?)", [str(uuid4())])


@migrations()
def labels_of_jobs(db: Database) -> None:
    """The labels of jobs, in the order of their lists. They are written with a job and deleted with it."""
    db.execute(
        """
        CREATE TABLE job_labels (
            name TEXT NOT NULL, value TEXT NOT NULL, create_time INTEGER NOT NULL, seq INTEGER NOT NULL,
            PRIMARY KEY (name, value, create_time, seq)
        ) STRICT, WITHOUT ROWID
        """
    )
    db.execute(
        """
        CREATE TRIGGER labels_went_with_their_job AFTER DELETE ON jobs BEGIN
            DELETE FROM job_labels WHERE (name, value, create_time, seq) IN (
                SELECT key, value, old.create_time, old.seq FROM json_each(CAST(old.spec AS TEXT), '$.labels')
            );
        END
        """
    )


@migrations()
def upkeep(db: Database) -> None:
    """Indexes and counters for pruning, oldest end first, so that no call has to count a million rows."""
    # Room on the disk that its log takes; 0: there is none, or it was pruned. Until the files are gone it stays,
    # whatever prune_time says.
    db.execute("ALTER TABLE executions ADD COLUMN log_bytes INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE executions ADD COLUMN prune_time INTEGER")
    db.execute("CREATE INDEX executions_log_kept ON executions(end_time) WHERE log_bytes > 0")
    db.execute("CREATE INDEX executions_log_kept_of_task ON executions(task_id, end_time) WHERE log_bytes > 0")
    db.execute("CREATE INDEX executions_ended ON executions(end_time) WHERE state >= 6")
    db.execute("CREATE INDEX executions_ended_of_task ON executions(task_id, end_time) WHERE state >= 6")
    # One row: what the logs of all executions that ended take, and how many executions are queued.
    db.table("kept").create({"log_bytes": int, "waiting": int}, not_null={"log_bytes", "waiting"}, strict=True)
    db.execute("INSERT INTO kept SELECT coalesce(sum(log_bytes), 0), count(*) FILTER (WHERE state = 2) FROM executions")
    db.execute(
        """
        CREATE TRIGGER log_came_or_went AFTER UPDATE OF log_bytes ON executions WHEN old.log_bytes <> new.log_bytes BEGIN
            UPDATE kept SET log_bytes = log_bytes + new.log_bytes - old.log_bytes;
        END
        """  # noqa: E501  the text of a step stays as it is
    )
    db.execute(
        "CREATE TRIGGER one_more_waits AFTER INSERT ON executions WHEN new.state = 2"
        " BEGIN UPDATE kept SET waiting = waiting + 1; END"
    )
    db.execute(
        """
        CREATE TRIGGER waits_or_not AFTER UPDATE OF state ON executions WHEN (old.state = 2) <> (new.state = 2) BEGIN
            UPDATE kept SET waiting = waiting + (new.state = 2) - (old.state = 2);
        END
        """
    )
    db.execute(
        """
        CREATE TRIGGER execution_went AFTER DELETE ON executions BEGIN
            UPDATE kept SET log_bytes = log_bytes - old.log_bytes, waiting = waiting - (old.state = 2);
        END
        """
    )
    # A task is there as long as a job of it is.
    db.execute(
        """
        CREATE TRIGGER job_went AFTER DELETE ON jobs BEGIN
            UPDATE tasks SET jobs = jobs - 1, open_jobs = open_jobs - (old.state < 6) WHERE task_id = old.task_id;
            DELETE FROM tasks WHERE task_id = old.task_id AND jobs = 0;
        END
        """
    )


@migrations()
def state_of_jobs(db: Database) -> None:
    """A job owns its state, its outcome and its end. The store writes them; the trigger that copied the newest
    execution's state goes."""
    db.execute("DROP TRIGGER job_has_the_state_of_its_newest_execution")
    # Its current execution: the newest one.
    db.execute("ALTER TABLE jobs ADD COLUMN execution_id TEXT NOT NULL DEFAULT ''")
    # How many it has had.
    db.execute("ALTER TABLE jobs ADD COLUMN executions INTEGER NOT NULL DEFAULT 1")
    # When a caller stopped it; null: nobody has.
    db.execute("ALTER TABLE jobs ADD COLUMN stop_time INTEGER")
    # Null until it is final; the reason is the contract's number.
    for column in (
        "end_time INTEGER",
        "reason INTEGER",
        "detail TEXT",
        "exit_code INTEGER",
        "out_of_memory INTEGER",
        "stop_signal TEXT",
    ):
        db.execute(f"ALTER TABLE jobs ADD COLUMN {column}")
    # Until now a job had one execution. In parts: SQLite keeps in memory how every page was that a statement has
    # changed, which would be half a gigabyte of a million jobs.
    columns = "execution_id, end_time, reason, detail, exit_code, out_of_memory, stop_signal"
    [(last,)] = db.execute("SELECT coalesce(max(seq), 0) FROM jobs").fetchall()
    for begin in range(0, last + 1, _ROWS_AT_ONCE):
        db.execute(
            f"""
            UPDATE jobs SET ({columns}, stop_time) = (
                SELECT {columns}, iif(stop_cause = 'caller', stop_time, NULL) FROM executions WHERE executions.job_id = jobs.job_id
            )
            WHERE seq BETWEEN ? AND ?
            """,  # noqa: E501  the text of a step stays as it is
            [begin, begin + _ROWS_AT_ONCE - 1],
        )
    db.execute("DROP INDEX executions_ended")
    db.execute("DROP INDEX executions_ended_of_task")
    db.execute("CREATE INDEX jobs_ended ON jobs(end_time) WHERE state >= 6")
    db.execute("CREATE INDEX jobs_ended_of_task ON jobs(task_id, end_time) WHERE state >= 6")


@migrations()
def due_and_expire_times(db: Database) -> None:
    """Executions that wait for a time, and those that must not start after one. In a line of the queue the one that was
    due first goes first."""
    # From behind this time on it is not started any more; null: there is none.
    db.execute("ALTER TABLE executions ADD COLUMN expire_time INTEGER")
    db.execute("CREATE INDEX executions_due ON executions(due_time, seq) WHERE state = 1")
    db.execute(
        "CREATE INDEX executions_expiring ON executions(expire_time, seq) WHERE state <= 2 AND expire_time IS NOT NULL"
    )
    db.execute("DROP INDEX executions_queued")
    db.execute("CREATE INDEX executions_queued ON executions(priority DESC, task_id, due_time, seq) WHERE state = 2")
    for trigger in ("one_more_waits", "waits_or_not", "execution_went"):
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(
        "CREATE TRIGGER one_more_waits AFTER INSERT ON executions WHEN new.state <= 2"
        " BEGIN UPDATE kept SET waiting = waiting + 1; END"
    )
    db.execute(
        """
        CREATE TRIGGER waits_or_not AFTER UPDATE OF state ON executions WHEN (old.state <= 2) <> (new.state <= 2) BEGIN
            UPDATE kept SET waiting = waiting + (new.state <= 2) - (old.state <= 2);
        END
        """
    )
    db.execute(
        """
        CREATE TRIGGER execution_went AFTER DELETE ON executions BEGIN
            UPDATE kept SET log_bytes = log_bytes - old.log_bytes, waiting = waiting - (old.state <= 2);
        END
        """
    )


@migrations()
def handles_of_backends(db: Database) -> None:
    """One text for all that a backend remembers of a container. A final execution has no container any more."""
    db.execute("ALTER TABLE executions ADD COLUMN handle TEXT NOT NULL DEFAULT ''")
    db.execute(
        """
        UPDATE executions SET handle = json_object('container', container_id, 'capture', capture, 'epoch', engine_life)
        WHERE state < 6 AND capture <> ''
        """
    )
    db.execute("ALTER TABLE executions DROP COLUMN capture")
    db.execute("ALTER TABLE executions DROP COLUMN engine_life")


@migrations()
def many_executions_of_a_job(db: Database) -> None:
    """Retries, schedules, unique keys, and a bounded history of jobs that are not final."""
    for column in (
        "runs INTEGER NOT NULL DEFAULT 1",  # that it has had
        "schedule TEXT",  # JSON: the state of its schedule; null: it has none
        "tick_time INTEGER",  # the next tick of its schedule while a run is under way; null: no tick is to be handled
        "revision INTEGER NOT NULL DEFAULT 1",  # counts changes of its spec and schedule by callers
        "unique_key TEXT NOT NULL DEFAULT ''",  # empty: it has none
    ):
        db.execute(f"ALTER TABLE jobs ADD COLUMN {column}")
    for column in (
        "tick_time INTEGER",  # the tick that started its run; null: another reason did
        "tries INTEGER NOT NULL DEFAULT 0",  # failures of its run before it that use up retries
        "memory_bytes INTEGER NOT NULL DEFAULT 0",  # its own memory limit; 0: that of the spec
        "held INTEGER NOT NULL DEFAULT 0",  # why it is not queued when it is due; 0: it is
        "excess INTEGER NOT NULL DEFAULT 0",  # 1: beyond the history of its job
        "spec BLOB",  # what it was started with, if the job's spec was replaced since
    ):
        db.execute(f"ALTER TABLE executions ADD COLUMN {column}")
    db.execute("CREATE INDEX jobs_tick ON jobs(tick_time) WHERE tick_time IS NOT NULL")
    db.execute("CREATE INDEX jobs_unique ON jobs(task_id, unique_key) WHERE unique_key <> '' AND state < 6")
    db.execute("DROP INDEX executions_due")
    db.execute("CREATE INDEX executions_due ON executions(due_time, seq) WHERE state = 1 AND held = 0")
    db.execute("CREATE INDEX executions_excess ON executions(seq) WHERE excess = 1")
    # What makes a RetryJob safe to repeat.
    db.execute(
        "CREATE TABLE job_retries (job_id TEXT NOT NULL, request_id TEXT NOT NULL, PRIMARY KEY (job_id, request_id))"
        " STRICT, WITHOUT ROWID"
    )
    db.execute(
        "CREATE TRIGGER retries_went_with_their_job AFTER DELETE ON jobs"
        " BEGIN DELETE FROM job_retries WHERE job_id = old.job_id; END"
    )


@migrations()
def limits_of_tasks(db: Database) -> None:
    """Limits of tasks, and which lines of the queue they block: a claim does not see a blocked line."""
    db.execute(
        """
        CREATE TABLE task_limits (
            task_id TEXT PRIMARY KEY,
            max_running INTEGER NOT NULL,  -- 0: no limit
            paused INTEGER NOT NULL,
            max_starts INTEGER NOT NULL,  -- 0: no limit
            rate_window INTEGER NOT NULL,  -- microseconds; 0 exactly if max_starts is
            running INTEGER NOT NULL,  -- executions in the states 3 to 5
            next_start_time INTEGER,  -- the rate allows no start before this time; null: it allows one now
            blocked INTEGER NOT NULL GENERATED ALWAYS AS (
                paused OR next_start_time IS NOT NULL OR (max_running > 0 AND running >= max_running)
            )
        ) STRICT, WITHOUT ROWID
        """
    )
    db.execute("CREATE INDEX task_limits_next ON task_limits(next_start_time) WHERE next_start_time IS NOT NULL")
    # A time further away than the window tells that the clock was set back.
    db.execute(
        "CREATE INDEX task_limits_last ON task_limits(next_start_time - rate_window) WHERE next_start_time IS NOT NULL"
    )
    # The starts of tasks with a rate: those of one day, so that a longer window counts them, too.
    db.execute(
        """
        CREATE TABLE task_starts (execution_id TEXT PRIMARY KEY, task_id TEXT NOT NULL, time INTEGER NOT NULL)
        STRICT, WITHOUT ROWID
        """
    )
    db.execute("CREATE INDEX task_starts_of_task ON task_starts(task_id, time)")
    db.execute("ALTER TABLE lines ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0")
    db.execute("CREATE INDEX lines_of_task ON lines(task_id)")
    db.execute(
        """
        CREATE TRIGGER line_came_blocked AFTER INSERT ON lines
        WHEN EXISTS (SELECT 1 FROM task_limits WHERE task_id = new.task_id AND blocked) BEGIN
            UPDATE lines SET blocked = 1 WHERE priority = new.priority AND task_id = new.task_id;
        END
        """
    )
    db.execute(
        """
        CREATE TRIGGER limits_came AFTER INSERT ON task_limits WHEN new.blocked BEGIN
            UPDATE lines SET blocked = 1 WHERE task_id = new.task_id;
        END
        """
    )
    db.execute(
        """
        CREATE TRIGGER limits_changed AFTER UPDATE ON task_limits WHEN old.blocked <> new.blocked BEGIN
            UPDATE lines SET blocked = new.blocked WHERE task_id = new.task_id;
        END
        """
    )
    db.execute(
        """
        CREATE TRIGGER limits_went AFTER DELETE ON task_limits BEGIN
            UPDATE lines SET blocked = 0 WHERE task_id = old.task_id AND blocked;
            DELETE FROM task_starts WHERE task_id = old.task_id;
        END
        """
    )
    db.execute(
        """
        CREATE TRIGGER task_runs_more_or_fewer AFTER UPDATE OF state ON executions
        WHEN (old.state BETWEEN 3 AND 5) <> (new.state BETWEEN 3 AND 5) BEGIN
            UPDATE task_limits SET running = running + (new.state BETWEEN 3 AND 5) - (old.state BETWEEN 3 AND 5)
            WHERE task_id = new.task_id;
        END
        """
    )
    # A task without jobs stays as long as it has limits. It begins anew with its next job.
    db.execute(
        """
        CREATE TRIGGER limited_task_stays BEFORE DELETE ON tasks
        WHEN EXISTS (SELECT 1 FROM task_limits WHERE task_id = old.task_id) BEGIN
            SELECT RAISE(IGNORE);
        END
        """
    )
    db.execute(
        """
        CREATE TRIGGER task_begins_anew AFTER UPDATE OF jobs ON tasks WHEN old.jobs = 0 AND new.jobs > 0 BEGIN
            UPDATE tasks SET create_time = new.last_enqueue_time WHERE task_id = new.task_id;
        END
        """
    )


@migrations()
def pools_of_hosts(db: Database) -> None:
    """The pool of each line of the queue. A host claims from the lines of its pools alone."""
    # One row: the configured pools that the lines are placed by, as JSON; empty: none are configured.
    db.execute("CREATE TABLE pools_in_force (pools TEXT NOT NULL) STRICT")
    db.execute("INSERT INTO pools_in_force VALUES ('')")
    # Empty: no pool. Null: not placed yet, which the next claim does first.
    db.execute("ALTER TABLE lines ADD COLUMN pool TEXT DEFAULT ''")
    db.execute("CREATE INDEX lines_unplaced ON lines(task_id) WHERE pool IS NULL")
    # Unique, as lines_turn is: so that SQLite knows that it need not sort what the lines of one turn hold.
    db.execute("CREATE UNIQUE INDEX lines_ready ON lines(pool, priority DESC, turn) WHERE blocked = 0")
    db.execute(
        """
        CREATE TRIGGER line_came_unplaced AFTER INSERT ON lines
        WHEN EXISTS (SELECT 1 FROM pools_in_force WHERE pools <> '') BEGIN
            UPDATE lines SET pool = NULL WHERE priority = new.priority AND task_id = new.task_id;
        END
        """
    )


@migrations()
def drained_hosts(db: Database) -> None:
    """Hosts that a caller drained. A host that is not configured any more stays drained."""
    db.execute(
        "CREATE TABLE drained_hosts (host TEXT PRIMARY KEY, note TEXT NOT NULL, time INTEGER NOT NULL)"
        " STRICT, WITHOUT ROWID"
    )


@migrations()
def arrays_of_jobs(db: Database) -> None:
    """The place of a job within an array of jobs; null: the job is not part of one."""
    for column in ("array_index", "array_size"):
        db.execute(f"ALTER TABLE jobs ADD COLUMN {column} INTEGER")


@migrations()
def change_log(db: Database) -> None:
    """A row for each change of a job or an execution, written by triggers: no statement can forget it. Numbers have no
    gaps and never go back, as the newest row is kept always."""
    db.execute(
        """
        CREATE TABLE changes (
            sequence INTEGER PRIMARY KEY,
            kind INTEGER NOT NULL,  -- of store/changes.py
            job_id TEXT NOT NULL,
            task_id TEXT NOT NULL,
            execution_id TEXT NOT NULL,
            state INTEGER NOT NULL,  -- of the execution; of the job where the job itself has changed
            time INTEGER NOT NULL,
            labels TEXT  -- JSON: those of a job that was pruned; else null
        ) STRICT
        """
    )
    columns = "changes (kind, job_id, task_id, execution_id, state, time)"
    of_execution = "new.job_id, new.task_id, new.execution_id, new.state"
    now = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    db.execute(
        f"CREATE TRIGGER execution_came_into_the_log AFTER INSERT ON executions"
        f" BEGIN INSERT INTO {columns} VALUES (1, {of_execution}, new.state_time); END"
    )
    db.execute(
        f"""
        CREATE TRIGGER execution_changed_in_the_log AFTER UPDATE ON executions BEGIN
            INSERT INTO {columns} VALUES (iif(old.state <> new.state, 1, 2), {of_execution}, new.state_time);
        END
        """
    )
    # A job that gets the state of its execution is in the log by that execution.
    db.execute(
        f"""
        CREATE TRIGGER job_changed_in_the_log AFTER UPDATE ON jobs WHEN new.state >= 6 OR new.state = old.state BEGIN
            INSERT INTO {columns}
            VALUES (3, new.job_id, new.task_id, new.execution_id, new.state, coalesce(new.end_time, {now}));
        END
        """
    )
    db.execute(
        f"""
        CREATE TRIGGER job_went_in_the_log AFTER DELETE ON jobs BEGIN
            INSERT INTO changes (kind, job_id, task_id, execution_id, state, time, labels)
            VALUES (
                4, old.job_id, old.task_id, old.execution_id, old.state, {now},
                json_extract(CAST(old.spec AS TEXT), '$.labels')
            );
        END
        """
    )


@migrations()
def jobs_that_stop_unwatched(db: Database) -> None:
    """The time after which a job is stopped if nobody watches it, in microseconds; null: it is not stopped."""
    db.execute("ALTER TABLE jobs ADD COLUMN unwatched_limit INTEGER")
    db.execute(
        "CREATE INDEX jobs_unwatched ON jobs(job_id, unwatched_limit) WHERE unwatched_limit IS NOT NULL"
        " AND stop_time IS NULL AND state < 6"
    )


@migrations()
def numbers_of_metrics(db: Database) -> None:
    """Counts that metrics read. An execution that is queued at once and never retried costs nothing here."""
    db.execute("ALTER TABLE kept ADD COLUMN scheduled INTEGER NOT NULL DEFAULT 0")  # executions in state 1
    db.execute("ALTER TABLE kept ADD COLUMN skipped_ticks INTEGER NOT NULL DEFAULT 0")  # ever, of all schedules
    db.execute("UPDATE kept SET scheduled = (SELECT count(*) FROM executions WHERE state = 1)")
    db.execute(
        "CREATE TRIGGER one_more_is_scheduled AFTER INSERT ON executions WHEN new.state = 1"
        " BEGIN UPDATE kept SET scheduled = scheduled + 1; END"
    )
    db.execute(
        """
        CREATE TRIGGER scheduled_or_not AFTER UPDATE OF state ON executions WHEN (old.state = 1) <> (new.state = 1) BEGIN
            UPDATE kept SET scheduled = scheduled + (new.state = 1) - (old.state = 1);
        END
        """  # noqa: E501  the text of a step stays as it is
    )
    db.execute(
        "CREATE TRIGGER scheduled_one_went AFTER DELETE ON executions WHEN old.state = 1"
        " BEGIN UPDATE kept SET scheduled = scheduled - 1; END"
    )
    # A job that is replaced begins with a schedule of its own: between the two it has none.
    skipped = "coalesce(json_extract({}.schedule, '$.skipped'), 0)"
    more = f"{skipped.format('new')} - {skipped.format('old')}"
    db.execute(
        f"""
        CREATE TRIGGER ticks_were_skipped AFTER UPDATE OF schedule ON jobs
        WHEN old.schedule IS NOT NULL AND new.schedule IS NOT NULL AND {more} > 0 BEGIN
            UPDATE kept SET skipped_ticks = skipped_ticks + {more};
        END
        """
    )
    db.execute("CREATE INDEX executions_held ON executions(held) WHERE held > 0")
    db.execute("CREATE INDEX executions_backing_off ON executions(seq) WHERE state = 1 AND attempt > 1 AND held = 0")


@migrations()
def notifications(db: Database) -> None:
    """The outbox: notifications that are to be delivered, and how far the change log was read for them."""
    # The change by which a job became final has a kind of its own. Other changes of a final job are no end.
    now = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    db.execute("DROP TRIGGER job_changed_in_the_log")
    db.execute(
        f"""
        CREATE TRIGGER job_changed_in_the_log AFTER UPDATE ON jobs WHEN new.state >= 6 OR new.state = old.state BEGIN
            INSERT INTO changes (kind, job_id, task_id, execution_id, state, time)
            VALUES (
                iif(old.state < 6 AND new.state >= 6, 5, 3), new.job_id, new.task_id, new.execution_id, new.state,
                coalesce(new.end_time, {now})
            );
        END
        """
    )
    # One row: the sequence of the last change that was read, and the server's notifications (JSON) for jobs that have
    # none; empty: none. What ended before this release tells nobody.
    db.execute("CREATE TABLE outbox (sequence INTEGER NOT NULL, defaults TEXT NOT NULL) STRICT")
    db.execute("INSERT INTO outbox SELECT coalesce(max(sequence), 0), '' FROM changes")
    # The jobs that have notifications of their own. A job without any costs nothing.
    db.execute("CREATE TABLE notifying_jobs (job_id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID")
    # JSON: those of the task's jobs that have none of their own; empty: none.
    db.execute("ALTER TABLE task_limits ADD COLUMN notifications TEXT NOT NULL DEFAULT ''")
    db.execute("CREATE INDEX task_limits_notifying ON task_limits(task_id) WHERE notifications <> ''")
    db.execute(
        """
        CREATE TABLE deliveries (
            seq INTEGER PRIMARY KEY,
            delivery_id TEXT NOT NULL UNIQUE,
            job_id TEXT NOT NULL,
            event INTEGER NOT NULL,  -- the contract's number
            ended_state INTEGER NOT NULL,
            receiver TEXT NOT NULL,  -- a URL or an address; the notifications of a job to one receiver are in order
            host TEXT NOT NULL,  -- of the receiver: at most so many attempts at a time are made to one
            notification TEXT NOT NULL,  -- JSON: with one receiver
            snapshot TEXT NOT NULL,  -- JSON: the job and the execution when the end was noticed
            state INTEGER NOT NULL,  -- the contract's number
            attempts INTEGER NOT NULL DEFAULT 0,
            create_time INTEGER NOT NULL,
            next_time INTEGER,  -- when an attempt is due; null: it waits for an earlier one of its job, or is over
            last_time INTEGER,
            end_time INTEGER,
            detail TEXT NOT NULL DEFAULT ''
        ) STRICT
        """
    )
    db.execute("CREATE INDEX deliveries_due ON deliveries(host, next_time, seq) WHERE next_time IS NOT NULL")
    db.execute("CREATE INDEX deliveries_next ON deliveries(next_time) WHERE next_time IS NOT NULL")
    db.execute("CREATE INDEX deliveries_pending ON deliveries(job_id, receiver, seq) WHERE state = 1")
    db.execute("CREATE INDEX deliveries_of_job ON deliveries(job_id, seq)")
    db.execute("CREATE INDEX deliveries_state ON deliveries(state, seq)")
    db.execute("CREATE INDEX deliveries_ended ON deliveries(end_time) WHERE end_time IS NOT NULL")


@migrations()
def usage_of_executions(db: Database) -> None:
    """The column for what the containers of executions used."""
    # JSON: microseconds on CPUs, peak of memory, bytes read, bytes written, each or null; empty: nobody knows.
    db.execute("ALTER TABLE executions ADD COLUMN usage TEXT NOT NULL DEFAULT ''")


@migrations()
def audit(db: Database) -> None:
    """The audit: one row for each call that wrote. Jobs get the callers that enqueued and stopped them."""
    db.execute("ALTER TABLE jobs ADD COLUMN caller TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE jobs ADD COLUMN stop_caller TEXT NOT NULL DEFAULT ''")
    # Rows are only added at the end, so that a call costs no more than that.
    db.execute(
        """
        CREATE TABLE audit (
            seq INTEGER PRIMARY KEY,
            time INTEGER NOT NULL,
            method TEXT NOT NULL,
            caller TEXT NOT NULL,
            certificate TEXT NOT NULL,
            address TEXT NOT NULL,
            task_id TEXT NOT NULL,
            job_id TEXT NOT NULL,
            execution_id TEXT NOT NULL,
            detail TEXT NOT NULL
        ) STRICT
        """
    )
    # Ids begin with the time: these are added at the end, too.
    db.execute("CREATE INDEX audit_of_job ON audit(job_id) WHERE job_id <> ''")


@migrations()
def inputs(db: Database) -> None:
    """Which contents jobs name in their inputs: those are kept."""
    db.execute("CREATE TABLE job_inputs (sha256 TEXT, job_id TEXT, PRIMARY KEY (sha256, job_id)) STRICT, WITHOUT ROWID")
    db.execute("CREATE INDEX job_inputs_of_job ON job_inputs(job_id)")
    # Within a string of JSON, the quotes would be behind backslashes. A job without inputs costs the search alone.
    has_inputs = """instr({}.spec, CAST('"inputs":[' AS BLOB))"""
    insert = """
        INSERT OR IGNORE INTO job_inputs
        SELECT json_extract(value, '$.sha256'), new.job_id FROM json_each(CAST(new.spec AS TEXT), '$.inputs');
    """
    db.execute(f"CREATE TRIGGER inputs_came AFTER INSERT ON jobs WHEN {has_inputs.format('new')} BEGIN {insert} END")
    # Those of the former spec stay: an execution may be about to start with it.
    db.execute(
        f"CREATE TRIGGER inputs_changed AFTER UPDATE OF spec ON jobs WHEN {has_inputs.format('new')} BEGIN {insert} END"
    )
    db.execute(
        "CREATE TRIGGER inputs_went_with_their_job AFTER DELETE ON jobs"
        " BEGIN DELETE FROM job_inputs WHERE job_id = old.job_id; END"
    )


@migrations()
def outputs_of_executions(db: Database) -> None:
    """The column for what was kept of the outputs of executions."""
    # JSON: size and checksum of the archive, number of entries, paths that were missing, fault, detail; empty: none.
    db.execute("ALTER TABLE executions ADD COLUMN outputs TEXT NOT NULL DEFAULT ''")


@migrations()
def standard_inputs(db: Database) -> None:
    """Which contents jobs name as their standard input: those are kept, too."""
    has_stdin = """instr(new.spec, CAST('"stdin":{' AS BLOB))"""
    # What looks like a standard input may be deeper in the spec, in its metadata.
    insert = """
        INSERT OR IGNORE INTO job_inputs
        SELECT value, new.job_id FROM json_each(CAST(new.spec AS TEXT), '$.stdin') WHERE key = 'sha256';
    """
    db.execute(f"CREATE TRIGGER stdin_came AFTER INSERT ON jobs WHEN {has_stdin} BEGIN {insert} END")
    # The one of the former spec stays, as the inputs do.
    db.execute(f"CREATE TRIGGER stdin_changed AFTER UPDATE OF spec ON jobs WHEN {has_stdin} BEGIN {insert} END")


@migrations()
def traces_of_callers(db: Database) -> None:
    """The column for the trace that a job belongs to."""
    # traceparent and, behind a space, tracestate of the call that enqueued it; empty: it had none.
    db.execute("ALTER TABLE jobs ADD COLUMN trace TEXT NOT NULL DEFAULT ''")
