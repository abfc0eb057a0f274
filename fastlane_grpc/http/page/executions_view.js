// The newest executions of all jobs.

import { get, path } from "./api.js";
import { el, show } from "./dom.js";
import { isFinal, outcomeText, shortId, stateName } from "./format.js";
import { agoOf, badge, heading, reading, runningTime, waitingText } from "./parts.js";

const REFRESH_MS = 5000;

export async function executionsView(main, here) {
  const rows = el("ul", { class: "rows" });
  const read = async (signal) => {
    const { executions } = await get("/executions", { page_size: 50 }, signal);
    show(rows, executions.map(row), executions.length ? null : el("li", { class: "empty" }, "No executions."));
  };
  await read(here.signal);
  here.title("Executions");
  show(main, heading("Newest executions"), rows);
  reading(read, here, REFRESH_MS);
}

function row(execution) {
  const label = `Log of execution ${shortId(execution.id)} of ${execution.task_id}, ${stateName(execution.state)}`;
  return el("li", { class: "row" },
    el("a", { class: "cover", href: path("executions", execution.id), "aria-label": label }),
    badge(execution.state),
    el("span", { class: "what" }, el("b", {}, execution.task_id), el("span", { class: "id" }, shortId(execution.id))),
    el("span", { class: "why" },
      (isFinal(execution.state) ? outcomeText(execution.state, execution.outcome) : waitingText(execution.waiting)) ?? ""),
    el("span", { class: "when" }, runningTime(execution) ?? agoOf(execution.times?.create_time)),
  );
}
