// How times, durations, sizes, states and reasons are written for people.

/** Return the milliseconds of a timestamp of the server; NaN for none. */
export function millis(timestamp) {
  return timestamp ? Date.parse(timestamp) : NaN;
}

/** Return the seconds of a duration of the server, as "90s". */
export function seconds(duration) {
  return duration ? Number.parseFloat(duration) : NaN;
}

/** Return a duration in words that stay short: "840 ms", "12.3 s", "4 min 05 s", "3 h 20 min", "2 d 4 h". */
export function span(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "";
  const total = Math.max(0, milliseconds);
  if (total < 1000) return `${Math.round(total)} ms`;
  const s = total / 1000;
  if (s < 60) return s < 10 ? `${(Math.floor(s * 10) / 10).toFixed(1)} s` : `${Math.floor(s)} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min ${pad(Math.floor(s) % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${pad(minutes % 60)} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let value = Number(count), unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return unit === 0 ? `${plain(value)} ${value === 1 ? "byte" : "bytes"}` : `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Return a number with its digits in groups. */
export function plain(value) {
  return String(value).replace(/\B(?=(\d{3})+(?!\d))/g, "\u2009");
}

export function count(number, one, many = `${one}s`) {
  return `${plain(number)} ${number === 1 ? one : many}`;
}

/** Return how long ago a time was, or how far off it is: "3 min ago", "in 20 s", "now". */
export function ago(time, now) {
  const difference = now - time;
  if (!Number.isFinite(difference)) return "";
  if (Math.abs(difference) < 1500) return "now";
  const words = coarse(Math.abs(difference));
  return difference > 0 ? `${words} ago` : `in ${words}`;
}

function coarse(milliseconds) {
  const s = milliseconds / 1000;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} days`;
}

// With the zone: a schedule has one of its own, and a colleague may be elsewhere.
const DATE = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "numeric", minute: "2-digit", second: "2-digit", timeZoneName: "short",
});

export function dateTime(time) {
  return Number.isFinite(time) ? DATE.format(time) : "";
}

/** Return the time of day, with milliseconds. */
export function clockTime(time) {
  const date = new Date(time);
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** Return the time since another one, as a stop watch shows it: "+1:02.345". */
export function stopwatch(milliseconds) {
  const sign = milliseconds < 0 ? "\u2212" : "+";
  const total = Math.abs(milliseconds);
  const hours = Math.floor(total / 3600000), minutes = Math.floor(total / 60000) % 60, s = Math.floor(total / 1000) % 60;
  const part = String(Math.floor(total) % 1000).padStart(3, "0");
  return hours ? `${sign}${hours}:${pad(minutes)}:${pad(s)}.${part}` : `${sign}${minutes}:${pad(s)}.${part}`;
}

function pad(number) {
  return String(number).padStart(2, "0");
}

/** Return the end of an id of time and chance: the part in which ids differ. */
export function shortId(id) {
  return id.slice(-8);
}

const STATES = {
  STATE_SCHEDULED: ["Scheduled", "waiting"],
  STATE_QUEUED: ["Queued", "waiting"],
  STATE_PREPARING: ["Preparing", "active"],
  STATE_RUNNING: ["Running", "active"],
  STATE_STOPPING: ["Stopping", "active"],
  STATE_SUCCEEDED: ["Succeeded", "good"],
  STATE_FAILED: ["Failed", "bad"],
  STATE_TIMED_OUT: ["Timed out", "bad"],
  STATE_STOPPED: ["Stopped", "neutral"],
  STATE_EXPIRED: ["Expired", "bad"],
  STATE_LOST: ["Lost", "bad"],
};

export const ACTIVE_STATES = ["STATE_PREPARING", "STATE_RUNNING", "STATE_STOPPING"];
export const WAITING_STATES = ["STATE_QUEUED", "STATE_SCHEDULED"];
export const FAILURE_STATES = ["STATE_FAILED", "STATE_TIMED_OUT", "STATE_LOST", "STATE_EXPIRED"];
export const ALL_STATES = Object.keys(STATES);

export function stateName(state) {
  return STATES[state]?.[0] ?? words(state, "STATE_");
}

/** Return the kind of a state: waiting, active, good, bad or neutral. */
export function stateKind(state) {
  return STATES[state]?.[1] ?? "neutral";
}

export function isFinal(state) {
  return !ACTIVE_STATES.includes(state) && !WAITING_STATES.includes(state);
}

/** Return the name of an enum value in words: "REASON_EXIT_CODE" as "Exit code". */
export function words(value, prefix) {
  const text = (value ?? "").replace(prefix, "").replaceAll("_", " ").toLowerCase();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Return what there is to say of an end beyond `outcomeText`; empty for nothing. */
export function outcomeDetail(state, outcome) {
  const detail = outcome?.detail ?? "";
  return detail === outcomeText(state, outcome) || /^exited with \d+$/.test(detail) ? "" : detail;
}

/** Return how something ended, in a few words: "exit code 3", "out of memory". */
export function outcomeText(state, outcome) {
  if (!outcome) return "";
  if (state === "STATE_SUCCEEDED") return "exit code 0";
  const code = outcome.exit_code;
  if (!outcome.reason || outcome.reason === "REASON_EXIT_CODE") return code === undefined ? outcome.detail ?? "" : `exit code ${code}`;
  return words(outcome.reason, "REASON_").toLowerCase() + (code === undefined ? "" : `, exit code ${code}`);
}
