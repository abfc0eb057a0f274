// The calls of the server: JSON, problems, and streams of JSON lines that go on after an interruption.

/** An error that the server, or the way to it, reports. */
export class Problem extends Error {
  constructor(status, reason, message) {
    super(message);
    this.status = status;
    this.reason = reason;
  }

  /** Whether the same request may succeed later. */
  get isPassing() {
    return this.status === 0 || this.status === 429 || this.status >= 500 && this.status !== 501;
  }
}

const WAIT_MS = 250;
const READ_RETRIES = 3;
const MAX_WAIT_MS = 5000;

/**
 * Return what `read()` returns; where its connection breaks, read again, a few times. For anything that only reads.
 * A container that starts changes the network of its machine, and the browser breaks off what it loads.
 */
export async function readAgain(read, signal) {
  for (let failures = 0; ; failures++) {
    try {
      return await read();
    } catch (error) {
      const isBroken = error instanceof Problem ? error.status === 0 : error instanceof TypeError;
      if (!isBroken || failures >= READ_RETRIES || signal?.aborted) throw error;
      await pause(WAIT_MS, signal);
    }
  }
}

/** Return the response of a GET as JSON. `query`: values, lists of values, or undefined for none. */
export function get(path, query = {}, signal) {
  const headers = { Accept: "application/json" };
  return readAgain(async () => (await request(address(path, query), { headers, signal })).json(), signal);
}

export async function post(path, body, signal) {
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  const response = await request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  return response.status === 204 ? {} : response.json();
}

export function address(path, query) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== "") parameters.append(name, each);
    }
  }
  const text = parameters.toString();
  return text ? `${path}?${text}` : path;
}

/** Return the path of a resource; a name from outside cannot lead anywhere else. */
export function path(collection, id, ...rest) {
  return ["", collection, encodeURIComponent(id), ...rest].join("/");
}

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, { ...options, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "UNREACHABLE", "The server cannot be reached.");
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Not the server's own answer.
  }
  const violations = (problem.violations ?? []).map((each) => `${each.field} ${each.description}`).join("; ");
  const message = violations || problem.detail || `The server answered ${response.status}.`;
  throw new Problem(response.status, problem.reason ?? "", message);
}

/** Yield the JSON of each line of a stream, until it ends or breaks. */
export async function* lines(path, query, signal) {
  const response = await request(address(path, query), { headers: { Accept: "application/x-ndjson" }, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parts = [];
  try {
    while (true) {
      const { done, value } = await withinSilence(reader);
      if (done) return;
      const text = decoder.decode(value, { stream: true });
      let begin = 0;
      for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", begin)) {
        parts.push(text.slice(begin, end));
        begin = end + 1;
        const line = parts.join("");
        parts.length = 0;
        if (!line) continue;
        const message = JSON.parse(line);
        if (message.problem) throw new Problem(message.problem.status ?? 500, message.problem.reason ?? "", message.problem.detail ?? "");
        yield message;
      }
      if (begin < text.length) parts.push(text.slice(begin));
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem(0, "INTERRUPTED", "The connection broke.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

// The server says something each ten seconds. After three times as long the connection is gone, whatever it looks like.
const SILENCE_MS = 30000;

async function withinSilence(reader) {
  let timer = 0;
  const silence = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Problem(0, "INTERRUPTED", "The server has fallen silent.")), SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Call `attempt(signal)` until it returns true, with growing waits; it calls `progress` when it has received anything.
 * A page that is not seen gives its connection up: a browser has six for all of its pages together.
 */
export async function persistently(attempt, { signal, onConnected }) {
  let wait = WAIT_MS;
  while (!signal.aborted) {
    await untilSeen(signal);
    if (signal.aborted) return;
    const hiding = whenHidden(signal);
    try {
      const progress = () => {
        wait = WAIT_MS;
        onConnected(true);
      };
      if (await attempt(hiding.signal, progress)) return;
    } catch (error) {
      if (signal.aborted) return;
      if (error.name !== "AbortError" && !(error instanceof Problem && error.isPassing)) throw error;
    } finally {
      hiding.dispose();
    }
    if (signal.aborted) return;
    if (document.hidden) continue;
    onConnected(false);
    await pause(wait * (0.5 + Math.random() / 2), signal);
    wait = Math.min(wait * 2, MAX_WAIT_MS);
  }
}

const HIDDEN_MS = 20000;

function whenHidden(signal) {
  const controller = new AbortController();
  let timer = 0;
  const changed = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(() => controller.abort(), HIDDEN_MS);
  };
  const abort = () => controller.abort();
  document.addEventListener("visibilitychange", changed);
  signal.addEventListener("abort", abort);
  changed();
  return {
    signal: controller.signal,
    dispose() {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", changed);
      signal.removeEventListener("abort", abort);
      controller.abort();
    },
  };
}

async function untilSeen(signal) {
  while (document.hidden && !signal.aborted) {
    await new Promise((resolve) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
      signal.addEventListener("abort", resolve, { once: true });
    });
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
    addEventListener("online", resolve, { once: true });
  });
}
