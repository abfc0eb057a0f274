// One execution: its state, and its log.

import { get, path, post } from "./api.js";
import { el, show, showAnew } from "./dom.js";
import { isFinal, millis, outcomeDetail, outcomeText, shortId, stateName } from "./format.js";
import { LogSource } from "./log/log_source.js";
import { LogView } from "./log/log_view.js";
import { badge, button, confirm, outputsLink, runningTime, taskLink, throttled, waitingText } from "./parts.js";

export async function executionView(main, here, id) {
  let { execution } = await get(path("executions", id), {}, here.signal);
  const head = el("div", { class: "execution-head" });
  const log = new LogView(new LogSource(id), {
    signal: here.signal,
    onConnected: here.connected,
    onState(state) {
      execution = { ...execution, state: state.state, waiting: state.waiting };
      draw();
      refresh();
    },
    onEnd: () => {
      here.connected(null);
      refresh();
    },
  });
  const refresh = throttled(async () => {
    try {
      ({ execution } = await get(path("executions", id), {}, here.signal));
      draw();
    } catch {
      // The log goes on; the next change of state asks again.
    }
  }, here.signal);

  function draw() {
    here.title(`${stateName(execution.state)} · ${execution.task_id}`);
    log.startTime = millis(execution.times?.start_time ?? execution.times?.create_time);
    showAnew(head, headOf(execution, stop));
  }

  async function stop() {
    await confirm({
      title: "Stop this execution?",
      text: "Its container gets the stop signal and, after the grace period, SIGKILL. A retry or a later run of its job may follow; to stop those too, stop the job.",
      note: "Reason (kept with the execution)",
      action: "Stop the execution",
      danger: true,
      act: (note) => post(path("executions", id, "stop"), note ? { note } : {}),
    });
    refresh();
  }

  main.className = "whole";
  show(main, head, log.element);
  draw();
  await log.run();
}

function headOf(execution, stop) {
  const final = isFinal(execution.state);
  const waiting = final ? null : waitingText(execution.waiting);
  const outcome = outcomeText(execution.state, execution.outcome);
  const detail = execution.state === "STATE_SUCCEEDED" ? "" : outcomeDetail(execution.state, execution.outcome);
  const time = runningTime(execution);
  return [
    el("nav", { class: "crumbs", "aria-label": "Where this is" },
      el("a", { href: "/tasks" }, "Tasks"), taskLink(execution.task_id),
      el("a", { href: path("jobs", execution.job_id) }, "Job ", el("span", { class: "id" }, shortId(execution.job_id)))),
    el("div", { class: "heading" },
      el("h1", {}, execution.run > 1 ? `Run ${execution.run}, attempt ${execution.attempt}` : `Attempt ${execution.attempt}`, badge(execution.state)),
      el("p", { class: "facts" },
        outcome ? el("span", { class: "outcome-text" }, outcome) : null,
        waiting ? el("span", { class: "waits" }, waiting) : null,
        time ? el("span", { title: "Time that the container runs" }, time) : null,
        execution.host ? el("span", {}, "on ", execution.host) : null),
      el("div", { class: "actions" }, outputsLink(execution), final ? null : button("stop", "Stop", stop, { "data-action": "stop" }))),
    detail ? el("p", { class: "detail" }, detail) : null,
  ];
}
