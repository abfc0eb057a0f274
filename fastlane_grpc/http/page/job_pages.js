// A list of jobs by filter, newest first, kept up to date at its top, with older ones on request.

import { get } from "./api.js";
import { follow } from "./changes.js";
import { el } from "./dom.js";
import { ALL_STATES, stateName } from "./format.js";
import { JobList, attempts, throttled } from "./parts.js";

const PAGE = 50;
const MOST = 1000;

/** Return the elements of the list, `read()`, which reads it, and `run()`, which keeps it up to date. */
export function jobPages(here, filter, onChange = () => {}) {
  const list = new JobList("No jobs.");
  const { attempt, failure } = attempts(here);
  const more = el("button", { type: "button", class: "older", hidden: true, click: () => attempt(readMore) }, "Older jobs");
  const states = el("select", { name: "state", change: () => attempt(begin) },
    el("option", { value: "" }, "All states"), ALL_STATES.map((state) => el("option", { value: state }, stateName(state))));
  let jobs = new Map(), token = "", current = 0;

  const query = () => ({ ...filter, states: states.value || undefined, page_size: PAGE });
  const draw = () => list.show([...jobs.values()].sort((one, other) => (one.id < other.id ? 1 : -1)).slice(0, MOST));
  const redraw = throttled(draw, here.signal);

  async function begin() {
    const mine = ++current;
    const page = await get("/jobs", query(), here.signal);
    if (mine !== current) return;
    jobs = new Map(page.jobs.map((job) => [job.id, job]));
    took(page);
  }

  async function readMore() {
    const mine = current;
    const page = await get("/jobs", { ...query(), page_token: token }, here.signal);
    if (mine !== current) return;
    for (const job of page.jobs) jobs.set(job.id, job);
    took(page);
  }

  function took(page) {
    token = page.next_page_token ?? "";
    more.hidden = !token || jobs.size >= MOST;
    draw();
  }

  return {
    filter: el("label", { class: "filter" }, el("span", { class: "unseen" }, "State"), states),
    content: [list.element, list.note, failure, more],
    read: begin,
    run: () => follow(filter, {
      signal: here.signal,
      onConnected: here.connected,
      onBegin: begin,
      onJob(job) {
        if (states.value && job.state !== states.value) jobs.delete(job.id);
        else jobs.set(job.id, job);
        if (jobs.size > MOST * 2) jobs = new Map([...jobs].sort(([one], [other]) => (one < other ? 1 : -1)).slice(0, MOST));
        redraw();
        onChange(job);
      },
      onPruned(id) {
        jobs.delete(id);
        redraw();
      },
    }),
  };
}
