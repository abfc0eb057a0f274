// All tasks, in the order of their names.

import { get, path } from "./api.js";
import { el, show } from "./dom.js";
import { count } from "./format.js";
import { agoOf, attempts, heading, reading } from "./parts.js";

const REFRESH_MS = 5000;

export async function tasksView(main, here) {
  const rows = el("ul", { class: "rows" });
  const more = el("button", { type: "button", class: "older", hidden: true, click: () => attempt(readMore) }, "More tasks");
  const { attempt, failure } = attempts(here);
  let token = "", added = false;

  async function read(signal) {
    const page = await get("/tasks", { page_size: 200 }, signal);
    // Who reads on keeps what is there.
    if (added) return;
    show(rows, page.tasks.map(taskRow), page.tasks.length ? null : el("li", { class: "empty" }, "No task has a job yet."));
    token = page.next_page_token ?? "";
    more.hidden = !token;
  }

  async function readMore() {
    const page = await get("/tasks", { page_size: 200, page_token: token }, here.signal);
    added = true;
    rows.append(...page.tasks.map(taskRow));
    token = page.next_page_token ?? "";
    more.hidden = !token;
  }

  await read(here.signal);
  here.title("Tasks");
  show(main, heading("Tasks"), rows, failure, more);
  reading(read, here, REFRESH_MS);
}

/** Return a task as one row of a list. */
export function taskRow(task) {
  const running = Number(task.running ?? 0), open = Number(task.open_jobs ?? 0);
  const facts = [running ? `${running} running` : null, open > running ? `${count(open - running, "waiting", "waiting")}` : null,
    `${count(Number(task.jobs ?? 0), "job")}`].filter(Boolean).join(" · ");
  return el("li", { class: "row task" },
    el("a", { class: "cover", href: path("tasks", task.id), "aria-label": `Task ${task.id}` }),
    el("span", { class: "what" }, el("b", {}, task.id), task.paused ? el("span", { class: "badge", "data-kind": "waiting" }, "Paused") : null),
    el("span", { class: "why" }, facts),
    el("span", { class: "when" }, task.last_enqueue_time ? agoOf(task.last_enqueue_time) : ""),
  );
}
