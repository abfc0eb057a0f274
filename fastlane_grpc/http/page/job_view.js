// One job: its state and why it waits, its attempts and runs, its schedule, its spec; stop and retry.

import { get, path, post } from "./api.js";
import { follow } from "./changes.js";
import { el, show, showAnew } from "./dom.js";
import { count, dateTime, isFinal, millis, outcomeDetail, outcomeText, shortId, stateName } from "./format.js";
import { agoOf, badge, button, confirm, living, outputsLink, section, taskLink, throttled, waitingText } from "./parts.js";
import { legend, timeline } from "./timeline.js";

const EXECUTIONS = 50;
const GOING_ON_MS = 1000;

export async function jobView(main, here, id) {
  let job, executions = [], more = false;
  const head = el("div", { class: "job-head" });
  const attempts = el("div", {});
  const ticks = el("div", {});
  const spec = el("div", {});

  async function read() {
    const [found, page] = await Promise.all([
      get(path("jobs", id), {}, here.signal),
      get("/executions", { job_id: id, page_size: EXECUTIONS }, here.signal),
    ]);
    job = found.job;
    executions = page.executions;
    more = Boolean(page.next_page_token);
    draw();
  }

  function draw() {
    here.title(`${stateName(job.state)} · ${job.task_id}`);
    showAnew(head, headOf(job, act));
    drawTimeline();
    show(ticks, job.schedule ? scheduleOf(job.schedule) : null);
    show(spec, specOf(job));
  }

  function drawTimeline() {
    if (attempts.contains(document.activeElement)) return;
    show(attempts, timeline(executions, Date.now()),
      more ? el("p", { class: "quiet" }, `The newest ${EXECUTIONS} of ${count(job.executions, "execution")} are shown.`) : null);
  }

  async function act(action) {
    await ACTIONS[action](job);
    await read();
  }

  await read();
  show(main, head, section("Attempts", legend(), attempts), ticks, spec);
  const timer = setInterval(() => {
    if (!document.hidden && job && !isFinal(job.state)) drawTimeline();
  }, GOING_ON_MS);
  here.signal.addEventListener("abort", () => clearInterval(timer));

  const refresh = throttled(() => read().catch(() => {}), here.signal);
  await follow({ job_ids: id }, {
    signal: here.signal,
    onConnected: here.connected,
    onBegin: read,
    onJob: refresh,
    onPruned: () => show(main, el("section", { class: "notice" }, el("h1", {}, "This job was pruned"),
      el("p", {}, "Its retention is over. ", el("a", { href: "/" }, "Back to the overview")))),
  });
}

const ACTIONS = {
  stop: (job) => confirm({
    title: "Stop this job?",
    text: job.execution?.times?.start_time
      ? "Its container gets the stop signal and, after the grace period, SIGKILL. No retry and no further run follows."
      : "It will not be started. No retry and no further run follows.",
    note: "Reason (kept with the job)",
    action: "Stop the job",
    danger: true,
    act: (note) => post(path("jobs", job.id, "stop"), note ? { note } : {}),
  }),
  retry(job) {
    // Made before the question: pressing twice starts one run.
    const requestId = `page-${Array.from(crypto.getRandomValues(new Uint32Array(4)), (each) => each.toString(16)).join("")}`;
    return confirm({
      title: "Run this job again?",
      text: "One more run of the same job starts now, with its retries counted anew.",
      action: "Run it again",
      act: () => post(path("jobs", job.id, "retry"), { request_id: requestId }),
    });
  },
  pause: (job) => confirm({
    title: "Pause the schedule?",
    text: "No further run starts until the schedule is resumed. A running execution continues.",
    action: "Pause the schedule",
    act: () => post(path("jobs", job.id, "pause"), {}),
  }),
  resume: (job) => confirm({
    title: "Resume the schedule?",
    text: "It goes on with its next tick; ticks during the pause are not made up for.",
    action: "Resume the schedule",
    act: () => post(path("jobs", job.id, "resume"), {}),
  }),
};

function headOf(job, act) {
  const final = isFinal(job.state);
  const actions = final ? [["retry", "Run again"]] : [["stop", "Stop"]];
  if (!final && job.schedule) actions.unshift(job.schedule.paused ? ["resume", "Resume", "play"] : ["pause", "Pause"]);
  const waiting = final ? null : waitingText(job.execution?.waiting);
  return [
    el("nav", { class: "crumbs", "aria-label": "Where this is" },
      el("a", { href: "/tasks" }, "Tasks"), taskLink(job.task_id)),
    el("div", { class: "heading" },
      el("h1", {}, el("span", { class: "quiet" }, "Job "), el("span", { class: "id" }, shortId(job.id)), badge(job.state)),
      el("div", { class: "actions" },
        job.execution ? el("a", { class: "button primary", href: path("executions", job.execution.id) }, "Show the log") : null,
        outputsLink(job.execution),
        actions.map(([action, text, name = action]) => button(name, text, () => act(action), { "data-action": action })))),
    final && job.outcome
      ? el("p", { class: "outcome", "data-kind": job.state === "STATE_SUCCEEDED" ? "good" : "bad" },
        el("b", {}, outcomeText(job.state, job.outcome) || stateName(job.state)),
        el("span", {}, outcomeDetail(job.state, job.outcome)))
      : null,
    waiting ? el("p", { class: "outcome", "data-kind": "waiting" }, el("b", {}, "Waiting"), el("span", {}, waiting)) : null,
    el("p", { class: "facts" },
      el("span", {}, "enqueued ", agoOf(job.create_time)),
      job.end_time ? el("span", {}, "ended ", agoOf(job.end_time)) : null,
      el("span", {}, count(Number(job.executions ?? 1), "execution")),
      job.array ? el("span", {}, `${Number(job.array.index ?? 0) + 1} of ${job.array.size} in its array`) : null,
      el("span", { class: "id" }, job.id)),
  ];
}

function scheduleOf(schedule) {
  const next = schedule.next_times ?? [];
  const skipped = Number(schedule.skipped_ticks ?? 0);
  return section("Schedule",
    el("p", { class: "lead" }, schedule.description ?? "", schedule.paused ? el("span", { class: "badge", "data-kind": "waiting" }, "Paused") : null),
    next.length
      ? el("ol", { class: "ticks" }, next.map((tick) => el("li", {}, el("time", {}, dateTime(millis(tick))), " ", el("span", { class: "quiet" }, agoOf(tick)))))
      : el("p", { class: "quiet" }, "No tick is to come."),
    el("p", { class: "quiet" }, `${count(Number(schedule.runs ?? 0), "run")} so far`,
      skipped ? `, ${count(skipped, "tick")} skipped` : "",
      schedule.last_skipped_detail ? ` (${schedule.last_skipped_detail})` : ""));
}

/** Return the whole spec: names in words, values as they were sent. */
function specOf(job) {
  const spec = job.spec ?? {};
  const rows = [];
  const add = (name, value) => rows.push(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  add("Image", code(spec.image));
  if (spec.command) add("Command", code(spec.command));
  if (spec.args?.length) add("Arguments", spec.args.map((arg) => code(arg)));
  const shown = new Set(["image", "command", "args"]);
  for (const [name, value] of Object.entries(spec)) {
    if (!shown.has(name)) add(nameOf(name), valueOf(value));
  }
  if (job.request_id) add("Request id", code(job.request_id));
  if (job.caller_address) add("Caller", code(job.caller_address));
  return section("What it runs", el("dl", { class: "spec" }, rows));
}

function nameOf(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function valueOf(value) {
  if (value && typeof value === "object" && !Array.isArray(value)) {
    return el("dl", { class: "pairs" }, Object.entries(value).map(([name, each]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, each && typeof each === "object" ? code(JSON.stringify(each)) : code(String(each))))));
  }
  return Array.isArray(value) ? value.map((each) => code(typeof each === "string" ? each : JSON.stringify(each))) : code(String(value));
}

function code(text) {
  return el("code", {}, text ?? "");
}
