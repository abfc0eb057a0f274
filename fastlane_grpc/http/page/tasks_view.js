// All tasks, in the order of their names.

import { get, path } from "./api.js";
import { el, show } from "./dom.js";
import { count } from "./format.js";
import { agoOf } from "./parts.js";

const REFRESH_MS = 5000;

export async function tasksView(main, here) {
  const rows = el("ul", { class: "rows" });
  const more = el("button", { type: "button", class: "older", hidden: true, click: () => readMore() }, "More tasks");
  let token = "", added = 0;

  async function read() {
    const page = await get("/tasks", { page_size: 200 }, here.signal);
    show(rows, page.tasks.map(taskRow), page.tasks.length ? null : el("li", { class: "empty" }, "No task has a job yet."));
    token = page.next_page_token ?? "";
    more.hidden = !token;
  }

  async function readMore() {
    added++;
    const page = await get("/tasks", { page_size: 200, page_token: token }, here.signal);
    rows.append(...page.tasks.map(taskRow));
    token = page.next_page_token ?? "";
    more.hidden = !token;
  }

  here.title("Tasks");
  show(main, el("h1", {}, "Tasks"), rows, more);
  await read();
  const timer = setInterval(() => {
    if (!document.hidden && !added) read().catch(() => {});
  }, REFRESH_MS);
  here.signal.addEventListener("abort", () => clearInterval(timer));
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
