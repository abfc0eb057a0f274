// The executions of a job as bars of phases, on one scale.

import { path } from "./api.js";
import { el, svg } from "./dom.js";
import { dateTime, isFinal, millis, outcomeDetail, outcomeText, span } from "./format.js";
import { agoOf, badge, living, waitingText } from "./parts.js";

/** The phases of an execution: the time in which each begins, and what it is called. */
const PHASES = [
  ["queued", "Queued", (times) => times.due_time ?? times.create_time],
  ["pulling", "Pulling", (times) => times.claim_time],
  ["starting", "Starting", (times) => times.pull_time],
  ["running", "Running", (times) => times.start_time],
  ["closing", "Closing the log", (times) => times.exit_time],
];

/** Return the phases of an execution that have begun: [{key, name, begin, end}], in milliseconds. */
export function phasesOf(execution, now) {
  const times = execution.times ?? {};
  const end = millis(times.end_time);
  const last = Number.isFinite(end) ? end : now;
  const begun = [];
  for (const [key, name, timeOf] of PHASES) {
    const begin = millis(timeOf(times));
    if (Number.isFinite(begin) && begin <= last) begun.push({ key, name, begin });
  }
  return begun.map((phase, index) => ({ ...phase, end: Math.max(phase.begin, begun[index + 1]?.begin ?? last) }));
}

export function legend() {
  return el("ul", { class: "legend", "aria-hidden": "true" },
    PHASES.slice(0, 4).map(([key, name]) => el("li", { "data-phase": key }, name)));
}

/** Return executions, newest first, as a list of bars. */
export function timeline(executions, now) {
  const longest = Math.max(1, ...executions.map((each) => {
    const phases = phasesOf(each, now);
    return phases.length ? phases.at(-1).end - phases[0].begin : 0;
  }));
  const hasRuns = executions.some((each) => each.run > 1);
  return el("ol", { class: "timeline", reversed: true }, executions.map((each) => bar(each, longest, hasRuns, now)));
}

function bar(execution, longest, hasRuns, now) {
  const phases = phasesOf(execution, now);
  const attempt = hasRuns ? `Run ${execution.run}, attempt ${execution.attempt}` : `Attempt ${execution.attempt}`;
  const detail = isFinal(execution.state)
    ? outcomeDetail(execution.state, execution.outcome) || outcomeText(execution.state, execution.outcome)
    : waitingText(execution.waiting);
  const begin = phases[0]?.begin ?? now;
  return el("li", { "data-execution": execution.id },
    el("a", { class: "cover", href: path("executions", execution.id), "aria-label": `Log of ${attempt.toLowerCase()}` }),
    el("span", { class: "attempt" }, attempt),
    badge(execution.state),
    el("span", { class: "when" }, execution.tick_time ? `tick ${dateTime(millis(execution.tick_time))}` : agoOf(execution.times?.create_time)),
    phases.length ? svg("svg", { class: "phases", viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", width: 1000, height: 10 }),
      phases.map((phase) => svg("rect", {
        "data-phase": phase.key,
        x: 1000 * (phase.begin - begin) / longest,
        width: Math.max(1.5, 1000 * (phase.end - phase.begin) / longest),
        height: 10,
      }))) : null,
    el("dl", { class: "phase-times" }, phases.filter((phase) => phase.end - phase.begin >= 1 || phase.key === "running" || phase === phases.at(-1)).map((phase, index, shown) => {
      const goesOn = index === shown.length - 1 && !isFinal(execution.state);
      return el("div", { "data-phase": phase.key }, el("dt", {}, phase.name),
        el("dd", {}, goesOn ? living((time) => span(time - phase.begin)) : span(phase.end - phase.begin)));
    })),
    detail ? el("p", { class: "why" }, detail) : null,
  );
}
