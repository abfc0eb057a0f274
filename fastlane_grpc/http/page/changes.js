// Changes of jobs as they happen: GET /watch, resumed after an interruption.

import { lines, persistently } from "./api.js";

// No job has this id: a watch of it has nothing to send but its first cursor.
const NO_JOB = "00000000-0000-0000-0000-000000000000";

/**
 * Call `onJob(job)` and `onPruned(id)` for each change from now on, and `onBegin()` before the first and whenever
 * changes may have been missed: read the lists then.
 *
 * A watch of all jobs would begin with all jobs that are not final, which may be a million.
 */
export function follow(query, { signal, onBegin, onJob, onPruned = () => {}, onConnected }) {
  let cursor = "";
  return persistently(async (signal, progress) => {
    if (!cursor) {
      for await (const message of lines("/watch", { job_ids: NO_JOB }, signal)) {
        if (!message.caught_up) continue;
        cursor = message.cursor;
        break;
      }
      if (!cursor) return false;
      await onBegin();
      progress();
    }
    try {
      for await (const message of lines("/watch", { ...query, cursor }, signal)) {
        progress();
        cursor = message.cursor || cursor;
        if (message.job) onJob(message.job);
        else if (message.pruned_job_id) onPruned(message.pruned_job_id);
      }
    } catch (error) {
      // Too old, or of the data that was there before: begin anew.
      if (error.status === 400 || error.status === 410 || error.status === 416 || error.reason?.startsWith("CURSOR_")) cursor = "";
      else throw error;
    }
    return false;
  }, { signal, onConnected });
}
