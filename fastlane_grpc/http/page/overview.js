// The overview: what runs, what waits, what failed, tasks and hosts, all live.

import { Problem, get } from "./api.js";
import { follow } from "./changes.js";
import { el, show } from "./dom.js";
import { ACTIVE_STATES, FAILURE_STATES, WAITING_STATES, millis, plain } from "./format.js";
import { hostCard } from "./hosts_view.js";
import { JobList, section, throttled } from "./parts.js";
import { taskRow } from "./tasks_view.js";

const LISTED = 12;
const MAX_TASKS = 8;
const REFRESH_MS = 2000;
const IDLE_MS = 10000;

export async function overview(main, here) {
  const lists = [
    { title: "Running now", states: ACTIVE_STATES, list: new JobList("Nothing runs."), jobs: new Map(), sort: byStart },
    { title: "Waiting", states: WAITING_STATES, list: new JobList("Nothing waits."), jobs: new Map(), sort: byNewest },
    { title: "Recent failures", states: FAILURE_STATES, list: new JobList("No failures are kept."), jobs: new Map(), sort: byEnd },
  ];
  const numbers = { running: figure("running"), waiting: figure("waiting"), tasks: figure("tasks"), slots: figure("slots free") };
  const tasks = el("ul", { class: "rows" });
  const hosts = el("div", { class: "hosts" });

  async function readLists() {
    const pages = await Promise.all(lists.map(({ states }) => get("/jobs", { states, page_size: LISTED * 2 }, here.signal)));
    pages.forEach((page, index) => {
      lists[index].jobs = new Map(page.jobs.map((job) => [job.id, job]));
    });
    draw();
  }

  function draw() {
    for (const { list, jobs, sort } of lists) list.show([...jobs.values()].sort(sort).slice(0, LISTED));
  }

  async function readTotals() {
    const [tasksPage, hostsPage] = await Promise.all([
      get("/tasks", { page_size: 1000 }, here.signal),
      get("/hosts", {}, here.signal).catch(withoutHosts),
    ]);
    const more = tasksPage.next_page_token ? "+" : "";
    const sum = (items, field) => items.reduce((total, item) => total + Number(item[field] ?? 0), 0);
    const running = sum(tasksPage.tasks, "running"), open = sum(tasksPage.tasks, "open_jobs");
    const up = hostsPage.hosts.filter((host) => host.availability === "AVAILABILITY_UP");
    numbers.running.set(`${plain(running)}${more}`);
    numbers.waiting.set(`${plain(Math.max(0, open - running))}${more}`);
    numbers.tasks.set(`${plain(tasksPage.tasks.length)}${more}`);
    numbers.slots.set(plain(Math.max(0, sum(up, "max_running") - sum(up, "running"))));
    const busiest = tasksPage.tasks
      .sort((one, other) => Number(other.open_jobs ?? 0) - Number(one.open_jobs ?? 0)
        || millis(other.last_enqueue_time) - millis(one.last_enqueue_time))
      .slice(0, MAX_TASKS);
    show(tasks, busiest.map(taskRow), busiest.length ? null : el("li", { class: "empty" }, "No task has a job yet."));
    show(hosts, hostsPage.hosts.map(hostCard));
    here.title(running ? `${running} running` : "");
  }

  const refreshTotals = throttled(() => readTotals().catch(() => {}), here.signal, REFRESH_MS);
  const redraw = throttled(draw, here.signal);

  const readAll = () => Promise.all([readLists(), readTotals()]);
  await readAll();
  show(main, el("div", { class: "overview" },
    el("h1", { class: "unseen" }, "Overview"),
    el("dl", { class: "figures" }, Object.values(numbers).map((each) => each.element)),
    el("div", { class: "columns" },
      el("div", {}, lists.map(({ title, list }) => section(title, list.element, list.note))),
      el("div", {}, section("Hosts", hosts), section("Tasks", tasks, el("p", { class: "more" }, el("a", { href: "/tasks" }, "All tasks")))),
    ),
  ));

  const idle = setInterval(refreshTotals, IDLE_MS);
  here.signal.addEventListener("abort", () => clearInterval(idle));
  await follow({}, {
    signal: here.signal,
    onConnected: here.connected,
    onBegin: readAll,
    onJob(job) {
      for (const { states, jobs } of lists) {
        jobs.delete(job.id);
        if (states.includes(job.state)) jobs.set(job.id, job);
        bound(jobs);
      }
      redraw();
      refreshTotals();
    },
    onPruned(id) {
      for (const { jobs } of lists) jobs.delete(id);
      redraw();
    },
  });
}

/** Keep what is newest of a flood. Nothing that is shown is lost unless hundreds of others came after it. */
function bound(jobs) {
  if (jobs.size > 500) jobs.delete(jobs.keys().next().value);
}

function byStart(one, other) {
  return startOf(other) - startOf(one) || byNewest(one, other);
}

function startOf(job) {
  return millis(job.execution?.times?.claim_time ?? job.create_time);
}

function byEnd(one, other) {
  return millis(other.end_time) - millis(one.end_time) || byNewest(one, other);
}

function byNewest(one, other) {
  return one.id < other.id ? 1 : -1;
}

function figure(label) {
  const value = el("dd", {}, "–");
  return {
    element: el("div", { class: "figure" }, el("dt", {}, label), value),
    set(text) {
      if (value.textContent !== text) value.textContent = text;
    },
  };
}

/** Return no hosts where the token does not show them: it is limited to some tasks. */
function withoutHosts(error) {
  if (error instanceof Problem && error.status === 403) return { hosts: [] };
  throw error;
}
