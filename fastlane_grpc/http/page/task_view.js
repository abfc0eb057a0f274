// One task: its limits, and its jobs.

import { get, path } from "./api.js";
import { el, show } from "./dom.js";
import { count, plain } from "./format.js";
import { jobPages } from "./job_pages.js";
import { heading, throttled } from "./parts.js";

export async function taskView(main, here, id) {
  const facts = el("p", { class: "facts" });
  const read = async () => show(facts, factsOf((await get(path("tasks", id), {}, here.signal)).task));
  const refresh = throttled(() => read().catch(() => {}), here.signal, 2000);
  const pages = jobPages(here, { task_id: id }, refresh);
  await Promise.all([read(), pages.read()]);
  here.title(id);
  show(main,
    el("nav", { class: "crumbs", "aria-label": "Where this is" }, el("a", { href: "/tasks" }, "Tasks")),
    heading(id, pages.filter),
    facts,
    pages.content,
  );
  await pages.run();
}

function factsOf(task) {
  const running = Number(task.running ?? 0), open = Number(task.open_jobs ?? 0);
  const parts = [
    task.paused ? el("span", { class: "badge", "data-kind": "waiting" }, "Paused") : null,
    `${plain(running)} running`,
    `${plain(Math.max(0, open - running))} waiting`,
    count(Number(task.jobs ?? 0), "job"),
    task.max_running ? `at most ${plain(task.max_running)} at a time` : null,
    task.max_starts ? `at most ${plain(task.max_starts)} starts in ${task.rate_window}` : null,
  ];
  return parts.filter(Boolean).map((part) => el("span", {}, part));
}
