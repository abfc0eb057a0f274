// Pieces that several views show: states, lists of jobs, times that go on, confirmation.

import { path } from "./api.js";
import { el, icon } from "./dom.js";
import { ago, bytes, dateTime, isFinal, millis, outcomeText, shortId, span, stateKind, stateName, words } from "./format.js";

export function badge(state) {
  return el("span", { class: "badge", "data-kind": stateKind(state), "data-state": state }, stateName(state));
}

/** Times in the document that change by themselves, once a second. */
const texts = new Map();

/** Return an element with a text of the time, which `make(now)` returns; `title` has the exact time. */
export function living(make, title = "") {
  const element = el("time", { title: title || null }, make(Date.now()));
  texts.set(element, make);
  return element;
}

export function agoOf(timestamp) {
  const time = millis(timestamp);
  return living((now) => ago(time, now), dateTime(time));
}

setInterval(() => {
  if (document.hidden) return;
  const now = Date.now();
  for (const [element, make] of texts) {
    if (!element.isConnected) {
      texts.delete(element);
      continue;
    }
    const text = make(now);
    if (element.textContent !== text) element.textContent = text;
  }
}, 1000);

export function taskLink(id) {
  return el("a", { href: path("tasks", id) }, id);
}

// Waits for a time, which is all that is to be said of them.
const UNTIL = { WAIT_REASON_NOT_DUE: "starts", WAIT_REASON_BACKOFF: "tries again" };

/** Return why a job or an execution waits, for a person; null if it does not. */
export function waitingText(waiting) {
  if (!waiting) return null;
  const due = millis(waiting.due_time);
  if (Number.isFinite(due) && UNTIL[waiting.reason]) {
    return living((now) => `${UNTIL[waiting.reason]} ${due > now ? ago(due, now) : "now"}`, dateTime(due));
  }
  const parts = [waiting.detail || words(waiting.reason, "WAIT_REASON_")];
  if (Number(waiting.ahead)) parts.push(`${waiting.ahead >= 1000 ? "1000 or more" : waiting.ahead} ahead`);
  const text = parts.join(", ");
  return Number.isFinite(due) ? living((now) => `${text} · ${due > now ? ago(due, now) : "due"}`, dateTime(due)) : text;
}

/** Return a link to the files that were kept of an execution; null if there are none. */
export function outputsLink(execution) {
  const size = Number(execution?.outputs?.size_bytes ?? 0);
  if (!size) return null;
  return el("a", { class: "button", "data-action": "outputs", href: path("executions", execution.id, "outputs"), download: true, title: "Download the files that were kept, as a tar" },
    icon("download"), el("span", {}, `Outputs, ${bytes(size)}`));
}

/** Return how long an execution has run, or ran. */
export function runningTime(execution) {
  const times = execution?.times ?? {};
  const start = millis(times.start_time ?? times.claim_time);
  const end = millis(times.exit_time ?? times.end_time);
  if (!Number.isFinite(start)) return null;
  return Number.isFinite(end) ? span(end - start) : living((now) => span(now - start));
}

/** Return a job as one row of a list: a link to it, with what matters most in its state. */
export function jobRow(job) {
  const { execution } = job;
  const attempt = execution?.attempt > 1 ? `attempt ${execution.attempt}` : execution?.run > 1 ? `run ${execution.run}` : null;
  const isFailure = isFinal(job.state) && job.state !== "STATE_SUCCEEDED";
  const detail = isFailure ? outcomeText(job.state, job.outcome) : waitingText(execution?.waiting);
  const when = isFinal(job.state)
    ? agoOf(job.end_time)
    : runningTime(execution) ?? agoOf(job.create_time);
  return el("li", { class: "row", "data-job": job.id },
    el("a", { class: "cover", href: path("jobs", job.id), "aria-label": `Job ${shortId(job.id)} of ${job.task_id}, ${stateName(job.state)}` }),
    badge(job.state),
    el("span", { class: "what" }, el("b", {}, job.task_id), el("span", { class: "id" }, shortId(job.id)),
      attempt && el("span", { class: "quiet" }, attempt)),
    el("span", { class: "why" }, detail ?? ""),
    el("span", { class: "when" }, when),
  );
}

/** Show jobs, newest first, in a list whose elements stay as long as their job does. */
export class JobList {
  #rows = new Map();

  constructor(empty) {
    this.element = el("ul", { class: "rows" });
    this.note = el("p", { class: "empty", hidden: true }, empty);
  }

  show(jobs) {
    const next = new Map();
    for (const job of jobs) {
      const known = this.#rows.get(job.id);
      next.set(job.id, known?.job === job ? known : { job, element: jobRow(job) });
    }
    const elements = [...next.values()].map((row) => row.element);
    // Keep the focus: an element that does not move is not touched.
    elements.forEach((element, index) => {
      const there = this.element.children[index];
      if (there === element) return;
      const focused = there?.contains(document.activeElement) && there.dataset.job === element.dataset.job;
      if (there?.dataset.job === element.dataset.job) there.replaceWith(element);
      else this.element.insertBefore(element, there ?? null);
      if (focused) element.querySelector("a").focus();
    });
    while (this.element.children.length > elements.length) this.element.lastChild.remove();
    this.#rows = next;
    this.note.hidden = jobs.length > 0;
  }
}

/** Return the heading of a view, with its controls. */
export function heading(title, ...controls) {
  return el("div", { class: "heading" }, el("h1", {}, title), ...controls);
}

export function section(title, ...content) {
  const id = `part-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return el("section", { class: "part", "aria-labelledby": id }, el("h2", { id }, title), ...content);
}

// A server that takes longer to answer counts as away.
const SLOW_MS = 15000;

/** Call `read(signal)` again and again while the page is seen. The connection is as good as the last read. */
export function reading(read, here, milliseconds) {
  let timer = 0;
  const again = () => {
    timer = setTimeout(async () => {
      if (!document.hidden) await read(AbortSignal.any([here.signal, AbortSignal.timeout(SLOW_MS)])).then(() => here.connected(true), () => here.connected(false));
      if (!here.signal.aborted) again();
    }, milliseconds);
  };
  here.connected(true);
  here.signal.addEventListener("abort", () => clearTimeout(timer));
  again();
}

/** Return what calls `work()` for a control of a list, and the element that says so if it fails. */
export function attempts(here) {
  const failure = el("p", { class: "failure", role: "alert" });
  const attempt = async (work) => {
    try {
      await work();
      failure.textContent = "";
    } catch (error) {
      if (!here.signal.aborted) failure.textContent = `The list could not be loaded. ${error.message}`;
    }
  };
  return { attempt, failure };
}

/** Return what keeps up with a flood: calls `work` at most four times a second, and always after the last call. */
export function throttled(work, signal, milliseconds = 250) {
  let timer = 0, last = -Infinity;
  return () => {
    if (timer || signal.aborted) return;
    timer = setTimeout(() => {
      timer = 0;
      last = performance.now();
      if (!signal.aborted) work();
    }, Math.max(0, last + milliseconds - performance.now()));
  };
}

/**
 * Ask, and return what `act(note)` returns once it is confirmed; null if it is not. Stays open, with the reason, if the
 * call fails.
 */
export function confirm({ title, text, action, note, danger = false, act }) {
  return new Promise((resolve) => {
    const input = note ? el("input", { type: "text", name: "note", maxlength: "256", autocomplete: "off" }) : null;
    const failure = el("p", { class: "failure", role: "alert" });
    const go = el("button", { type: "submit", class: danger ? "primary danger" : "primary" }, action);
    const form = el("form", { method: "dialog", submit },
      el("h2", { id: "dialog-title" }, title),
      el("p", {}, text),
      input && el("label", {}, note, input),
      failure,
      el("div", { class: "actions" },
        el("button", { type: "button", click: () => finish(null) }, "Cancel"), go),
    );
    const dialog = el("dialog", { "aria-labelledby": "dialog-title", cancel: () => finish(null) }, form);
    const opener = document.activeElement;
    document.body.append(dialog);
    dialog.showModal();

    async function submit(event) {
      event.preventDefault();
      go.disabled = true;
      failure.textContent = "";
      try {
        finish(await act(input?.value.trim() ?? ""));
      } catch (error) {
        failure.textContent = error.message;
        go.disabled = false;
      }
    }

    function finish(value) {
      dialog.close();
      dialog.remove();
      // What opened the dialog may have been drawn anew meanwhile.
      if (!opener.isConnected && opener.dataset.action) document.querySelector(`[data-action="${opener.dataset.action}"]`)?.focus();
      resolve(value);
    }
  });
}

export function button(name, text, click, attributes = {}) {
  return el("button", { type: "button", click, ...attributes }, icon(name), el("span", {}, text));
}
