// The start of the page: which view belongs to the address, and moving between views without loading the page again.

import { Problem, get, pause } from "./api.js";
import { el, show } from "./dom.js";
import { executionView } from "./execution_view.js";
import { executionsView } from "./executions_view.js";
import { hostsView } from "./hosts_view.js";
import { jobView } from "./job_view.js";
import { jobsView } from "./jobs_view.js";
import { login } from "./login.js";
import { overview } from "./overview.js";
import { taskView } from "./task_view.js";
import { tasksView } from "./tasks_view.js";

// How long the page waits before it asks a server again that it could not reach: at first, and at most.
const WAIT_MS = 500;
const MAX_WAIT_MS = 5000;

const VIEWS = [
  [/^\/$/, overview],
  [/^\/tasks$/, tasksView],
  [/^\/tasks\/([^/]+)$/, taskView],
  [/^\/jobs$/, jobsView],
  [/^\/jobs\/([^/]+)$/, jobView],
  [/^\/executions$/, executionsView],
  [/^\/executions\/([^/]+)$/, executionView],
  [/^\/hosts$/, hostsView],
];

document.documentElement.dataset.started = "true";
const main = document.getElementById("main");
const connection = document.querySelector(".connection");
let leaving = new AbortController();

/** What a view may use: a signal of its end, the title, and the state of its connection. */
function context() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  return {
    signal,
    title: (text) => {
      if (!signal.aborted) document.title = text ? `${text} · fastlane` : "fastlane";
    },
    connected: (isConnected) => {
      if (signal.aborted) return;
      connection.textContent = isConnected === null ? "" : isConnected ? "Live" : "Reconnecting…";
      connection.dataset.state = isConnected === null ? "" : isConnected ? "live" : "lost";
    },
  };
}

async function open() {
  const path = decodePath(location.pathname);
  for (const link of document.querySelectorAll("nav a")) {
    const target = link.getAttribute("href");
    const isHere = target === "/" ? path === "/" : path === target || path.startsWith(`${target}/`);
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.className = "";
  show(main);
  const [view, ...parts] = viewAt(path);
  for (let wait = WAIT_MS, isAway = false; ; wait = Math.min(2 * wait, MAX_WAIT_MS)) {
    const here = context();
    here.connected(isAway ? false : null);
    if (!isAway) here.title("");
    try {
      await view(main, here, ...parts);
      return;
    } catch (error) {
      if (here.signal.aborted) return;
      if (!(error instanceof Problem && error.isPassing)) {
        here.connected(null);
        if (error instanceof Problem && error.status === 401) login(main, error, open);
        else fail(error);
        return;
      }
      here.connected(false);
      here.title("Not connected");
      // Said once: a screen reader would repeat it at each attempt.
      if (!isAway) waitForServer(error);
      isAway = true;
    }
    await pause(wait, here.signal);
    if (here.signal.aborted) return;
  }
}

/** Return the view of a path, and the parts of the path that are its arguments. */
function viewAt(path) {
  for (const [pattern, view] of VIEWS) {
    const match = pattern.exec(path);
    if (match) return [view, ...match.slice(1)];
  }
  return [nothing];
}

/** Fail with what the server says of an address that has no view. */
async function nothing(main, here) {
  await get(location.pathname + location.search, {}, here.signal);
  throw new Problem(404, "PATH_NOT_FOUND", "There is no such page.");
}

function waitForServer(error) {
  const text = error.status === 0 ? "It does not answer." : error.message;
  show(
    main,
    el("section", { class: "notice", role: "alert" },
      el("h1", {}, "The server cannot be reached"),
      el("p", {}, text, " This page tries again by itself, and shows what is there as soon as it can."),
    ),
  );
}

function fail(error) {
  const isProblem = error instanceof Problem;
  if (!isProblem) console.error(error);
  document.title = "Not shown · fastlane";
  show(
    main,
    el("section", { class: "notice", role: "alert" },
      el("h1", {}, isProblem && error.status === 404 ? "Not found" : "This could not be shown"),
      el("p", {}, error.message),
      el("p", {}, el("a", { href: "/" }, "Back to the overview")),
    ),
  );
}

function decodePath(path) {
  try {
    return decodeURIComponent(path).replace(/(.)\/$/, "$1");
  } catch {
    return path;
  }
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const target = new URL(link.href);
  if (target.origin !== location.origin || link.hasAttribute("download") || link.target) return;
  if (target.pathname === location.pathname && target.hash) return;
  if (!VIEWS.some(([pattern]) => pattern.test(target.pathname))) return;
  event.preventDefault();
  history.pushState(null, "", target.href);
  void open();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});

let shown = location.pathname + location.search;
addEventListener("popstate", () => {
  // A change of the fragment alone belongs to the view.
  if (shown !== location.pathname + location.search) void open();
  shown = location.pathname + location.search;
});
const push = history.pushState.bind(history);
history.pushState = (...state) => {
  push(...state);
  shown = location.pathname + location.search;
};

void open();
