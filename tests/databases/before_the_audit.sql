BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'fastlane','tasks_and_jobs','2026-11-29 01:07:06.831123+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'fastlane','executions','2026-11-29 01:07:06.831767+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'fastlane','lines_of_the_queue','2026-11-29 01:07:06.832107+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'fastlane','identity_of_the_instance','2026-11-29 01:07:06.832309+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'fastlane','labels_of_jobs','2026-11-29 01:07:06.832442+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'fastlane','upkeep','2026-11-29 01:07:06.833224+00:00');
INSERT INTO "_sqlite_migrations" VALUES(7,'fastlane','state_of_jobs','2026-11-29 01:07:06.834791+00:00');
INSERT INTO "_sqlite_migrations" VALUES(8,'fastlane','due_and_expire_times','2026-11-29 01:07:06.839439+00:00');
INSERT INTO "_sqlite_migrations" VALUES(9,'fastlane','handles_of_backends','2026-11-29 01:07:06.845329+00:00');
INSERT INTO "_sqlite_migrations" VALUES(10,'fastlane','many_executions_of_a_job','2026-11-29 01:07:06.850091+00:00');
INSERT INTO "_sqlite_migrations" VALUES(11,'fastlane','limits_of_tasks','2026-11-29 01:07:06.850768+00:00');
INSERT INTO "_sqlite_migrations" VALUES(12,'fastlane','pools_of_hosts','2026-11-29 01:07:06.911735+00:00');
INSERT INTO "_sqlite_migrations" VALUES(13,'fastlane','drained_hosts','2026-11-29 01:07:06.911987+00:00');
INSERT INTO "_sqlite_migrations" VALUES(14,'fastlane','arrays_of_jobs','2026-11-29 01:07:06.912690+00:00');
INSERT INTO "_sqlite_migrations" VALUES(15,'fastlane','change_log','2026-11-29 01:07:06.912958+00:00');
INSERT INTO "_sqlite_migrations" VALUES(16,'fastlane','jobs_that_stop_unwatched','2026-11-29 01:07:06.924221+00:00');
INSERT INTO "_sqlite_migrations" VALUES(17,'fastlane','numbers_of_metrics','2026-11-29 01:07:06.927508+00:00');
INSERT INTO "_sqlite_migrations" VALUES(18,'fastlane','notifications','2026-11-29 01:07:06.941324+00:00');
INSERT INTO "_sqlite_migrations" VALUES(19,'fastlane','usage_of_executions','2026-11-29 01:07:06.942074+00:00');
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
        ;
INSERT INTO "changes" VALUES(1,1,'01a224d7-6aa1-7bac-a687-0cc34c6f3db1','mail','01a224d7-6aa1-7031-bbb6-ac0ccc93e507',2,1795914427041614,NULL);
INSERT INTO "changes" VALUES(2,1,'01a224d7-6aa4-705d-aa10-54b817208154','mail','01a224d7-6aa4-7277-bb04-ae410887adfa',2,1795914427044432,NULL);
INSERT INTO "changes" VALUES(3,3,'01a224d7-6aa4-705d-aa10-54b817208154','mail','01a224d7-6aa4-7277-bb04-ae410887adfa',2,1795914427099017,NULL);
INSERT INTO "changes" VALUES(4,1,'01a224d7-6aa4-705d-aa10-54b817208154','mail','01a224d7-6aa4-7277-bb04-ae410887adfa',9,1795914427099455,NULL);
INSERT INTO "changes" VALUES(5,5,'01a224d7-6aa4-705d-aa10-54b817208154','mail','01a224d7-6aa4-7277-bb04-ae410887adfa',9,1795914427099455,NULL);
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
        ;
CREATE TABLE drained_hosts (host TEXT PRIMARY KEY, note TEXT NOT NULL, time INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE "executions" (
   "seq" INTEGER PRIMARY KEY,
   "execution_id" TEXT NOT NULL,
   "job_id" TEXT NOT NULL REFERENCES "jobs"("job_id"),
   "task_id" TEXT NOT NULL,
   "priority" INTEGER NOT NULL,
   "run" INTEGER NOT NULL,
   "attempt" INTEGER NOT NULL,
   "state" INTEGER NOT NULL,
   "state_time" INTEGER NOT NULL,
   "create_time" INTEGER NOT NULL,
   "due_time" INTEGER NOT NULL,
   "claim_time" INTEGER,
   "pull_time" INTEGER,
   "container_time" INTEGER,
   "start_time" INTEGER,
   "first_byte_time" INTEGER,
   "exit_time" INTEGER,
   "seal_time" INTEGER,
   "end_time" INTEGER,
   "host" TEXT NOT NULL DEFAULT '',
   "container_id" TEXT NOT NULL DEFAULT '',
   "image_digest" TEXT NOT NULL DEFAULT '',
   "starting" INTEGER NOT NULL DEFAULT 0,
   "stop_cause" TEXT,
   "stop_time" INTEGER,
   "stop_grace" INTEGER,
   "stop_note" TEXT,
   "reason" INTEGER,
   "detail" TEXT,
   "exit_code" INTEGER,
   "out_of_memory" INTEGER,
   "stop_signal" TEXT,
   "logs" TEXT NOT NULL DEFAULT '[]'
, log_bytes INTEGER NOT NULL DEFAULT 0, prune_time INTEGER, expire_time INTEGER, handle TEXT NOT NULL DEFAULT '', tick_time INTEGER, tries INTEGER NOT NULL DEFAULT 0, memory_bytes INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0, excess INTEGER NOT NULL DEFAULT 0, spec BLOB, usage TEXT NOT NULL DEFAULT '') STRICT;
INSERT INTO "executions" VALUES(1,'01a224d7-6aa1-7031-bbb6-ac0ccc93e507','01a224d7-6aa1-7bac-a687-0cc34c6f3db1','mail',0,1,1,2,1795914427041614,1795914427041614,1795914427041614,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'','','',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]',0,NULL,NULL,'',NULL,0,0,0,0,NULL,'');
INSERT INTO "executions" VALUES(2,'01a224d7-6aa4-7277-bb04-ae410887adfa','01a224d7-6aa4-705d-aa10-54b817208154','mail',0,1,1,9,1795914427099455,1795914427044432,1795914427044432,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1795914427099455,'','','',0,'caller',1795914427099455,0,'enough',0,'stopped while it was queued: enough',NULL,0,'','[]',0,NULL,NULL,'',NULL,0,0,0,0,NULL,'');
CREATE TABLE "instance" (
   "instance_id" TEXT PRIMARY KEY
) STRICT;
INSERT INTO "instance" VALUES('e55c7658-d1cf-429f-900d-7a37fc6f542c');
CREATE TABLE job_labels (
            name TEXT NOT NULL, value TEXT NOT NULL, create_time INTEGER NOT NULL, seq INTEGER NOT NULL,
            PRIMARY KEY (name, value, create_time, seq)
        ) STRICT, WITHOUT ROWID
        ;
CREATE TABLE job_retries (job_id TEXT NOT NULL, request_id TEXT NOT NULL, PRIMARY KEY (job_id, request_id)) STRICT, WITHOUT ROWID;
CREATE TABLE "jobs" (
   "seq" INTEGER PRIMARY KEY,
   "job_id" TEXT NOT NULL,
   "task_id" TEXT NOT NULL REFERENCES "tasks"("task_id"),
   "state" INTEGER NOT NULL,
   "spec" BLOB NOT NULL,
   "create_time" INTEGER NOT NULL,
   "request_id" TEXT NOT NULL,
   "request_digest" BLOB NOT NULL,
   "caller_address" TEXT NOT NULL
, execution_id TEXT NOT NULL DEFAULT '', executions INTEGER NOT NULL DEFAULT 1, stop_time INTEGER, end_time INTEGER, reason INTEGER, detail TEXT, exit_code INTEGER, out_of_memory INTEGER, stop_signal TEXT, runs INTEGER NOT NULL DEFAULT 1, schedule TEXT, tick_time INTEGER, revision INTEGER NOT NULL DEFAULT 1, unique_key TEXT NOT NULL DEFAULT '', array_index INTEGER, array_size INTEGER, unwatched_limit INTEGER) STRICT;
INSERT INTO "jobs" VALUES(1,'01a224d7-6aa1-7bac-a687-0cc34c6f3db1','mail',2,X'7B22636F6D6D616E64223A2274727565222C22696D616765223A2262757379626F78227D',1795914427041614,'waits',X'','ipv4:10.0.0.7:51234','01a224d7-6aa1-7031-bbb6-ac0ccc93e507',1,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,NULL,NULL,1,'',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(2,'01a224d7-6aa4-705d-aa10-54b817208154','mail',9,X'7B22636F6D6D616E64223A2274727565222C22696D616765223A2262757379626F78227D',1795914427044432,'stopped',X'','ipv4:10.0.0.7:51234','01a224d7-6aa4-7277-bb04-ae410887adfa',1,1795914427099455,1795914427099455,0,'stopped while it was queued: enough',NULL,0,'',1,NULL,NULL,1,'',NULL,NULL,NULL);
CREATE TABLE "kept" (
   "log_bytes" INTEGER NOT NULL,
   "waiting" INTEGER NOT NULL
, scheduled INTEGER NOT NULL DEFAULT 0, skipped_ticks INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "kept" VALUES(0,1,0,0);
CREATE TABLE "lines" (
   "priority" INTEGER,
   "task_id" TEXT,
   "turn" INTEGER NOT NULL, blocked INTEGER NOT NULL DEFAULT 0, pool TEXT DEFAULT '',
   PRIMARY KEY ("priority", "task_id")
) STRICT;
INSERT INTO "lines" VALUES(0,'mail',1,0,'');
CREATE TABLE notifying_jobs (job_id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (sequence INTEGER NOT NULL, defaults TEXT NOT NULL) STRICT;
INSERT INTO "outbox" VALUES(0,'');
CREATE TABLE pools_in_force (pools TEXT NOT NULL) STRICT;
INSERT INTO "pools_in_force" VALUES('');
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
        , notifications TEXT NOT NULL DEFAULT '') STRICT, WITHOUT ROWID
        ;
CREATE TABLE task_starts (execution_id TEXT PRIMARY KEY, task_id TEXT NOT NULL, time INTEGER NOT NULL)
        STRICT, WITHOUT ROWID
        ;
CREATE TABLE "tasks" (
   "task_id" TEXT PRIMARY KEY,
   "create_time" INTEGER NOT NULL,
   "last_enqueue_time" INTEGER NOT NULL,
   "jobs" INTEGER NOT NULL,
   "open_jobs" INTEGER NOT NULL
) STRICT;
INSERT INTO "tasks" VALUES('mail',1795914427041614,1795914427044432,2,1);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE UNIQUE INDEX "idx_jobs_job_id"
    ON "jobs" ("job_id");
CREATE UNIQUE INDEX jobs_request ON jobs(task_id, request_id) WHERE request_id <> '';
CREATE INDEX jobs_state ON jobs(state, create_time);
CREATE INDEX jobs_task_state ON jobs(task_id, state, create_time);
CREATE TRIGGER job_came AFTER INSERT ON jobs BEGIN
            INSERT INTO tasks VALUES (new.task_id, new.create_time, new.create_time, 1, new.state < 6)
            ON CONFLICT DO UPDATE SET last_enqueue_time = new.create_time, jobs = jobs + 1, open_jobs = open_jobs + (new.state < 6);
        END;
CREATE TRIGGER job_closed_or_opened AFTER UPDATE OF state ON jobs WHEN (old.state < 6) <> (new.state < 6) BEGIN
            UPDATE tasks SET open_jobs = open_jobs + (new.state < 6) - (old.state < 6) WHERE task_id = new.task_id;
        END;
CREATE UNIQUE INDEX "idx_executions_execution_id"
    ON "executions" ("execution_id");
CREATE INDEX "idx_executions_job_id"
    ON "executions" ("job_id");
CREATE INDEX executions_state ON executions(state);
CREATE INDEX executions_task_state ON executions(task_id, state);
CREATE INDEX executions_host_state ON executions(host, state) WHERE host <> '';
CREATE UNIQUE INDEX lines_turn ON lines(priority DESC, turn);
CREATE TRIGGER queued_at_first AFTER INSERT ON executions WHEN new.state = 2 BEGIN 
        INSERT INTO lines (priority, task_id, turn)
        VALUES (new.priority, new.task_id, (SELECT coalesce(max(turn), 0) + 1 FROM lines WHERE priority = new.priority))
        ON CONFLICT (priority, task_id) DO NOTHING;
     END;
CREATE TRIGGER queued_again AFTER UPDATE OF state ON executions WHEN old.state <> 2 AND new.state = 2 BEGIN 
        INSERT INTO lines (priority, task_id, turn)
        VALUES (new.priority, new.task_id, (SELECT coalesce(max(turn), 0) + 1 FROM lines WHERE priority = new.priority))
        ON CONFLICT (priority, task_id) DO NOTHING;
     END;
CREATE TRIGGER left_the_queue AFTER UPDATE OF state ON executions WHEN old.state = 2 AND new.state <> 2 BEGIN
            DELETE FROM lines WHERE priority = old.priority AND task_id = old.task_id AND NOT EXISTS (
                SELECT 1 FROM executions AS queued INDEXED BY executions_queued
                WHERE queued.state = 2 AND queued.priority = old.priority AND queued.task_id = old.task_id
            );
            UPDATE lines SET turn = (SELECT max(turn) + 1 FROM lines AS others WHERE others.priority = old.priority)
            WHERE priority = old.priority AND task_id = old.task_id AND new.state = 3;
        END;
CREATE TRIGGER labels_went_with_their_job AFTER DELETE ON jobs BEGIN
            DELETE FROM job_labels WHERE (name, value, create_time, seq) IN (
                SELECT key, value, old.create_time, old.seq FROM json_each(CAST(old.spec AS TEXT), '$.labels')
            );
        END;
CREATE INDEX executions_log_kept ON executions(end_time) WHERE log_bytes > 0;
CREATE INDEX executions_log_kept_of_task ON executions(task_id, end_time) WHERE log_bytes > 0;
CREATE TRIGGER log_came_or_went AFTER UPDATE OF log_bytes ON executions WHEN old.log_bytes <> new.log_bytes BEGIN
            UPDATE kept SET log_bytes = log_bytes + new.log_bytes - old.log_bytes;
        END;
CREATE TRIGGER job_went AFTER DELETE ON jobs BEGIN
            UPDATE tasks SET jobs = jobs - 1, open_jobs = open_jobs - (old.state < 6) WHERE task_id = old.task_id;
            DELETE FROM tasks WHERE task_id = old.task_id AND jobs = 0;
        END;
CREATE INDEX jobs_ended ON jobs(end_time) WHERE state >= 6;
CREATE INDEX jobs_ended_of_task ON jobs(task_id, end_time) WHERE state >= 6;
CREATE INDEX executions_expiring ON executions(expire_time, seq) WHERE state <= 2 AND expire_time IS NOT NULL;
CREATE INDEX executions_queued ON executions(priority DESC, task_id, due_time, seq) WHERE state = 2;
CREATE TRIGGER one_more_waits AFTER INSERT ON executions WHEN new.state <= 2 BEGIN UPDATE kept SET waiting = waiting + 1; END;
CREATE TRIGGER waits_or_not AFTER UPDATE OF state ON executions WHEN (old.state <= 2) <> (new.state <= 2) BEGIN
            UPDATE kept SET waiting = waiting + (new.state <= 2) - (old.state <= 2);
        END;
CREATE TRIGGER execution_went AFTER DELETE ON executions BEGIN
            UPDATE kept SET log_bytes = log_bytes - old.log_bytes, waiting = waiting - (old.state <= 2);
        END;
CREATE INDEX jobs_tick ON jobs(tick_time) WHERE tick_time IS NOT NULL;
CREATE INDEX jobs_unique ON jobs(task_id, unique_key) WHERE unique_key <> '' AND state < 6;
CREATE INDEX executions_due ON executions(due_time, seq) WHERE state = 1 AND held = 0;
CREATE INDEX executions_excess ON executions(seq) WHERE excess = 1;
CREATE TRIGGER retries_went_with_their_job AFTER DELETE ON jobs BEGIN DELETE FROM job_retries WHERE job_id = old.job_id; END;
CREATE INDEX task_limits_next ON task_limits(next_start_time) WHERE next_start_time IS NOT NULL;
CREATE INDEX task_limits_last ON task_limits(next_start_time - rate_window) WHERE next_start_time IS NOT NULL;
CREATE INDEX task_starts_of_task ON task_starts(task_id, time);
CREATE INDEX lines_of_task ON lines(task_id);
CREATE TRIGGER line_came_blocked AFTER INSERT ON lines
        WHEN EXISTS (SELECT 1 FROM task_limits WHERE task_id = new.task_id AND blocked) BEGIN
            UPDATE lines SET blocked = 1 WHERE priority = new.priority AND task_id = new.task_id;
        END;
CREATE TRIGGER limits_came AFTER INSERT ON task_limits WHEN new.blocked BEGIN
            UPDATE lines SET blocked = 1 WHERE task_id = new.task_id;
        END;
CREATE TRIGGER limits_changed AFTER UPDATE ON task_limits WHEN old.blocked <> new.blocked BEGIN
            UPDATE lines SET blocked = new.blocked WHERE task_id = new.task_id;
        END;
CREATE TRIGGER limits_went AFTER DELETE ON task_limits BEGIN
            UPDATE lines SET blocked = 0 WHERE task_id = old.task_id AND blocked;
            DELETE FROM task_starts WHERE task_id = old.task_id;
        END;
CREATE TRIGGER task_runs_more_or_fewer AFTER UPDATE OF state ON executions
        WHEN (old.state BETWEEN 3 AND 5) <> (new.state BETWEEN 3 AND 5) BEGIN
            UPDATE task_limits SET running = running + (new.state BETWEEN 3 AND 5) - (old.state BETWEEN 3 AND 5)
            WHERE task_id = new.task_id;
        END;
CREATE TRIGGER limited_task_stays BEFORE DELETE ON tasks
        WHEN EXISTS (SELECT 1 FROM task_limits WHERE task_id = old.task_id) BEGIN
            SELECT RAISE(IGNORE);
        END;
CREATE TRIGGER task_begins_anew AFTER UPDATE OF jobs ON tasks WHEN old.jobs = 0 AND new.jobs > 0 BEGIN
            UPDATE tasks SET create_time = new.last_enqueue_time WHERE task_id = new.task_id;
        END;
CREATE INDEX lines_unplaced ON lines(task_id) WHERE pool IS NULL;
CREATE UNIQUE INDEX lines_ready ON lines(pool, priority DESC, turn) WHERE blocked = 0;
CREATE TRIGGER line_came_unplaced AFTER INSERT ON lines
        WHEN EXISTS (SELECT 1 FROM pools_in_force WHERE pools <> '') BEGIN
            UPDATE lines SET pool = NULL WHERE priority = new.priority AND task_id = new.task_id;
        END;
CREATE TRIGGER execution_came_into_the_log AFTER INSERT ON executions BEGIN INSERT INTO changes (kind, job_id, task_id, execution_id, state, time) VALUES (1, new.job_id, new.task_id, new.execution_id, new.state, new.state_time); END;
CREATE TRIGGER execution_changed_in_the_log AFTER UPDATE ON executions BEGIN
            INSERT INTO changes (kind, job_id, task_id, execution_id, state, time) VALUES (iif(old.state <> new.state, 1, 2), new.job_id, new.task_id, new.execution_id, new.state, new.state_time);
        END;
CREATE TRIGGER job_went_in_the_log AFTER DELETE ON jobs BEGIN
            INSERT INTO changes (kind, job_id, task_id, execution_id, state, time, labels)
            VALUES (
                4, old.job_id, old.task_id, old.execution_id, old.state, CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER),
                json_extract(CAST(old.spec AS TEXT), '$.labels')
            );
        END;
CREATE INDEX jobs_unwatched ON jobs(job_id, unwatched_limit) WHERE unwatched_limit IS NOT NULL AND stop_time IS NULL AND state < 6;
CREATE TRIGGER one_more_is_scheduled AFTER INSERT ON executions WHEN new.state = 1 BEGIN UPDATE kept SET scheduled = scheduled + 1; END;
CREATE TRIGGER scheduled_or_not AFTER UPDATE OF state ON executions WHEN (old.state = 1) <> (new.state = 1) BEGIN
            UPDATE kept SET scheduled = scheduled + (new.state = 1) - (old.state = 1);
        END;
CREATE TRIGGER scheduled_one_went AFTER DELETE ON executions WHEN old.state = 1 BEGIN UPDATE kept SET scheduled = scheduled - 1; END;
CREATE TRIGGER ticks_were_skipped AFTER UPDATE OF schedule ON jobs
        WHEN old.schedule IS NOT NULL AND new.schedule IS NOT NULL AND coalesce(json_extract(new.schedule, '$.skipped'), 0) - coalesce(json_extract(old.schedule, '$.skipped'), 0) > 0 BEGIN
            UPDATE kept SET skipped_ticks = skipped_ticks + coalesce(json_extract(new.schedule, '$.skipped'), 0) - coalesce(json_extract(old.schedule, '$.skipped'), 0);
        END;
CREATE INDEX executions_held ON executions(held) WHERE held > 0;
CREATE INDEX executions_backing_off ON executions(seq) WHERE state = 1 AND attempt > 1 AND held = 0;
CREATE TRIGGER job_changed_in_the_log AFTER UPDATE ON jobs WHEN new.state >= 6 OR new.state = old.state BEGIN
            INSERT INTO changes (kind, job_id, task_id, execution_id, state, time)
            VALUES (
                iif(old.state < 6 AND new.state >= 6, 5, 3), new.job_id, new.task_id, new.execution_id, new.state,
                coalesce(new.end_time, CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))
            );
        END;
CREATE INDEX task_limits_notifying ON task_limits(task_id) WHERE notifications <> '';
CREATE INDEX deliveries_due ON deliveries(host, next_time, seq) WHERE next_time IS NOT NULL;
CREATE INDEX deliveries_next ON deliveries(next_time) WHERE next_time IS NOT NULL;
CREATE INDEX deliveries_pending ON deliveries(job_id, receiver, seq) WHERE state = 1;
CREATE INDEX deliveries_of_job ON deliveries(job_id, seq);
CREATE INDEX deliveries_state ON deliveries(state, seq);
CREATE INDEX deliveries_ended ON deliveries(end_time) WHERE end_time IS NOT NULL;
COMMIT;
