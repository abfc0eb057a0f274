// All hosts, with their slots in use.

import { get } from "./api.js";
import { el, show, svg } from "./dom.js";
import { words } from "./format.js";
import { agoOf, heading, reading } from "./parts.js";

const REFRESH_MS = 3000;
const KINDS = { AVAILABILITY_UP: "good", AVAILABILITY_DOWN: "bad", AVAILABILITY_DRAINED: "neutral", AVAILABILITY_CIRCUIT_OPEN: "waiting" };

export async function hostsView(main, here) {
  const cards = el("div", { class: "hosts wide" });
  const read = async (signal) => show(cards, (await get("/hosts", {}, signal)).hosts.map(hostCard));
  await read(here.signal);
  here.title("Hosts");
  show(main, heading("Hosts"), cards);
  reading(read, here, REFRESH_MS);
}

/** Return a host as a card: its state, its slots, and its last error where that matters. */
export function hostCard(host) {
  const running = Number(host.running ?? 0), most = Number(host.max_running ?? 0);
  const isUp = host.availability === "AVAILABILITY_UP";
  const note = host.drain_note ? `Drained: ${host.drain_note}` : isUp ? "" : host.last_error ?? "";
  return el("article", { class: "host", "data-host": host.name },
    el("h3", {}, host.name),
    el("span", { class: "badge", "data-kind": KINDS[host.availability] ?? "neutral" }, words(host.availability, "AVAILABILITY_")),
    slots(running, most),
    el("p", { class: "quiet" }, `${running} of ${most} slots in use`, host.engine_version ? ` · engine ${host.engine_version}` : "",
      host.nodes ? ` · ${host.nodes.ready ?? 0} of ${host.nodes.total ?? 0} nodes ready` : ""),
    note ? el("p", { class: "why" }, note, host.last_error_time && !isUp && !host.drain_note ? [" · ", agoOf(host.last_error_time)] : null) : null,
  );
}

function slots(running, most) {
  const part = most ? Math.min(1, running / most) : 0;
  return svg("svg", { class: "meter", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 4 }),
    svg("rect", { class: "fill", width: 100 * part, height: 4 }));
}
