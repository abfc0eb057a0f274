// The view of a log: a window of lines that follows the end, or moves through the log.

import { el, icon, show } from "../dom.js";
import { count, plain } from "../format.js";
import { button, throttled } from "../parts.js";
import { LineWindow } from "./line_window.js";
import { LogTail } from "./log_source.js";
import { textOf } from "./output.js";
import { Painter } from "./paint.js";
import { chosenLines, hashOf } from "./chosen_lines.js";
import { LogSearch } from "./log_search.js";

// Rows, and their characters. A browser needs about 25 kB for a row, and as much again before it collects garbage.
const MAX_ROWS = 800;
const MAX_WEIGHT = 3 << 20;
// Lines that are loaded at a time, and those around a line that is gone to.
const PART_LINES = 250;
const BEFORE_LINES = 200;
// How near to the end of what is loaded more is loaded.
const NEAR_PIXELS = 800;
// How long a message stays in view.
const MESSAGE_MS = 8000;
// How often a reader is told, at most, that there is more.
const TOLD_MS = 10000;

export class LogView {
  #window = new LineWindow(MAX_ROWS, MAX_WEIGHT);
  #elements = new Map();
  #painter = new Painter();
  // Whether the last row of the window is the last one that the tail had.
  #isAttached = true;
  #isFollowing = true;
  #loading = null;
  #unseen = 0;
  #pending = [];
  #pastTop = 0;
  #told = 0;
  #messageTimer = 0;
  #settings = loadSettings();

  constructor(source, { signal, onConnected, onState, onEnd }) {
    this.source = source;
    this.signal = signal;
    this.tail = new LogTail(source);
    this.callbacks = { onConnected, onState, onEnd };
    this.#build();
  }

  /** Show the log until the view ends. */
  async run() {
    const { signal } = this;
    this.#painter.takeColours(this.scroller);
    this.#painter.stamps = this.#settings.stamps;
    this.#listen();
    const following = this.tail.run({
      signal,
      onConnected: (isConnected) => {
        this.callbacks.onConnected(isConnected);
        // A log without output says so.
        this.flush();
      },
      onRows: (rows) => this.#received(rows),
      onState: (state) => this.callbacks.onState(state),
      onEnd: (end) => this.#ended(end),
    });
    if (chosenLines(location.hash)) {
      this.#isFollowing = this.#isAttached = false;
      await this.#goToHash();
    }
    this.#showFollowing();
    await following;
  }

  set startTime(time) {
    if (this.#painter.startTime === time) return;
    this.#painter.startTime = time;
    this.#restamp();
  }

  // ---- elements

  #build() {
    const { signal } = this;
    this.rowsElement = el("div", { class: "lines" });
    this.openElement = el("div", { class: "lines open" });
    this.top = el("p", { class: "edge", hidden: true });
    this.bottom = el("p", { class: "edge", hidden: true });
    this.scroller = el("div", { class: "log", tabindex: "0", role: "region", "aria-label": "Output" },
      this.top, this.rowsElement, this.openElement, this.bottom);
    // For a screen reader alone, but for messages that nothing else in the page shows.
    this.told = el("p", { class: "unseen", role: "status" });
    this.jump = el("button", { type: "button", class: "jump", hidden: true, click: () => this.toEnd() });
    this.search = new LogSearch(this);
    const wrap = button("wrap", "Wrap", () => this.#set("wrap", !this.#settings.wrap), { "data-action": "wrap", title: "Wrap long lines (w)" });
    const follow = button("end", "Follow", () => this.toEnd(), { "data-action": "follow", title: "Go to the end and follow (f)" });
    this.buttons = { wrap, follow };
    this.stampSelect = el("select", { name: "stamps", title: "Time of each line (t)", change: (event) => this.#set("stamps", event.target.value) },
      el("option", { value: "off" }, "No times"), el("option", { value: "relative" }, "Since start"), el("option", { value: "absolute" }, "Time of day"));
    this.stampSelect.value = this.#settings.stamps;
    this.copyButton = button("copy", "Copy", () => this.copy(), { "data-action": "copy", title: "Copy the chosen lines, or all that are loaded" });
    const download = el("a", { class: "button", "data-action": "download", href: `${this.source.path}?follow=false`, download: true, title: "Download the whole log" },
      icon("download"), el("span", {}, "Download"));
    this.element = el("section", { class: "log-frame", "aria-label": "Log" },
      el("div", { class: "tools", role: "toolbar", "aria-label": "Log" },
        this.search.element,
        el("label", { class: "stamps" }, el("span", { class: "unseen" }, "Time stamps"), this.stampSelect),
        wrap, this.copyButton, download, follow),
      el("div", { class: "log-body" }, this.scroller, this.jump, this.told));
    this.#applyWrap();
    this.flush = frameThrottled(() => this.#flush(), signal);
    this.researched = throttled(() => this.search.rowsChanged(), signal, 300);
  }

  #listen() {
    const { signal, scroller } = this;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true, signal });
    // A wheel turned upwards ends following at once, before new output can scroll back.
    scroller.addEventListener("wheel", (event) => {
      if (event.deltaY < 0) this.#stopFollowing();
      this.#loadNear();
    }, { passive: true, signal });
    scroller.addEventListener("click", (event) => this.#clicked(event), { signal });
    addEventListener("hashchange", () => void this.#goToHash(), { signal });
    addEventListener("keydown", (event) => this.#key(event), { signal });
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this.#repaint(), { signal });
    // A narrower window wraps more: the end stays in view.
    const resized = new ResizeObserver(() => {
      if (this.#isFollowing) scroller.scrollTop = scroller.scrollHeight;
    });
    resized.observe(scroller);
    signal.addEventListener("abort", () => resized.disconnect());
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input, select, textarea, dialog")) return;
    const keys = {
      "/": () => this.search.focus(),
      n: () => this.search.step(1),
      N: () => this.search.step(-1),
      f: () => this.toEnd(),
      G: () => this.toEnd(),
      g: () => this.goTo(1),
      w: () => this.#set("wrap", !this.#settings.wrap),
      t: () => this.#set("stamps", { off: "relative", relative: "absolute", absolute: "off" }[this.#settings.stamps]),
    };
    if (!Object.hasOwn(keys, event.key)) {
      if (["ArrowUp", "PageUp", "Home"].includes(event.key) && event.target === this.scroller) {
        this.#stopFollowing();
        // The browser scrolls beside this thread, and forgets it where lines are added above at that moment.
        if (event.key === "Home") this.scroller.scrollTop = 0;
        // Where it cannot scroll any further, there is no event of scrolling.
        requestAnimationFrame(() => this.#loadNear());
      }
      return;
    }
    event.preventDefault();
    void keys[event.key]();
  }

  #set(name, value) {
    this.#settings[name] = value;
    saveSettings(this.#settings);
    if (name === "wrap") this.#applyWrap();
    else {
      this.#painter.stamps = value;
      this.stampSelect.value = value;
      this.#restamp();
    }
  }

  #applyWrap() {
    this.#keeping(() => {
      this.scroller.classList.toggle("wrap", this.#settings.wrap);
      this.buttons.wrap.setAttribute("aria-pressed", String(this.#settings.wrap));
    });
  }

  #restamp() {
    this.#keeping(() => {
      this.scroller.classList.toggle("stamped", this.#settings.stamps !== "off");
      for (const [row, element] of this.#elements) {
        const stamp = element.querySelector(".stamp");
        if (stamp) this.#painter.restamp(stamp, row);
      }
    });
  }

  #repaint() {
    this.#painter.takeColours(this.scroller);
    this.#elements.clear();
    show(this.rowsElement, this.#window.rows.map((row) => this.#paint(row)));
    this.#marked();
  }

  #paint(row) {
    const element = this.#painter.row(row);
    this.#elements.set(row, element);
    return element;
  }

  // ---- the end of the log

  #received(rows) {
    if (this.#isAttached) {
      this.#pending = this.#pending.concat(rows);
      // Of a flood, what could never be shown is not even kept.
      if (this.#pending.length > 2 * MAX_ROWS && this.#isFollowing) this.#pending.splice(0, this.#pending.length - MAX_ROWS);
    }
    if (!this.#isFollowing) this.#unseen += rows.filter((row) => row.number !== null).length;
    this.flush();
  }

  #ended(end) {
    this.callbacks.onEnd(end);
    this.flush();
  }

  #flush() {
    const rows = this.#pending;
    this.#pending = [];
    if (this.#isAttached && rows.length) {
      // What is being read stays: new lines are added below it while there is room.
      const room = this.#isFollowing ? rows.length : this.#window.roomFor(rows);
      if (room < rows.length) this.#isAttached = false;
      this.#append(room < rows.length ? rows.slice(0, room) : rows);
    }
    this.#showOpen();
    this.#showEdges();
    if (this.#isFollowing) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#showFollowing();
    if (rows.length) this.researched();
  }

  #append(rows) {
    const gone = this.#window.append(rows);
    const kept = new Set(gone);
    const fragment = document.createDocumentFragment();
    for (const row of rows) {
      if (!kept.has(row)) fragment.append(this.#paint(row));
    }
    this.rowsElement.append(fragment);
    this.#remove(gone);
    this.#marked();
  }

  #remove(rows) {
    for (const row of rows) {
      this.#elements.get(row)?.remove();
      this.#elements.delete(row);
    }
  }

  #showOpen() {
    show(this.openElement, this.#isAttached ? this.tail.output.openLines().map((row) => this.#painter.row(row)) : null);
  }

  #showEdges() {
    const { first, last } = this.#window;
    this.scroller.style.setProperty("--digits", Math.max(4, String(last ?? 0).length));
    const isStart = first === null || first === 1;
    this.top.hidden = isStart;
    if (!isStart) this.top.textContent = `${count(first - 1, "earlier line")}`;
    const { end } = this.tail;
    const isEmpty = !this.#window.rows.length && !this.openElement.childElementCount;
    this.bottom.hidden = this.#isAttached && !end && !isEmpty;
    if (!this.#isAttached) this.bottom.textContent = "More lines follow";
    else if (isEmpty) this.bottom.textContent = end ? "The log is empty" : "No output yet";
    else if (end) this.bottom.textContent = "End of the log";
  }

  // ---- following

  #scrolled() {
    const { scroller } = this;
    const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    const isUp = scroller.scrollTop < this.#pastTop - 2;
    this.#pastTop = scroller.scrollTop;
    if (this.#isAttached && below < 4) this.#startFollowing();
    else if (isUp && below > 4) this.#stopFollowing();
    this.#loadNear();
  }

  /** Load what is beyond an edge that is near. */
  #loadNear() {
    const { scroller } = this;
    if (this.#isFollowing) return;
    if (scroller.scrollTop < NEAR_PIXELS) void this.#loadOlder();
    const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    if (below < NEAR_PIXELS && !this.#isAttached) void this.#loadNewer();
  }

  #startFollowing() {
    this.#unseen = 0;
    if (this.#isFollowing) return;
    this.#isFollowing = true;
    this.#showFollowing();
  }

  #stopFollowing() {
    if (!this.#isFollowing) return;
    this.#isFollowing = false;
    this.#unseen = 0;
    this.#showFollowing();
  }

  #showFollowing() {
    this.buttons.follow.setAttribute("aria-pressed", String(this.#isFollowing));
    this.jump.hidden = this.#isFollowing || !this.#unseen && this.#isAttached;
    if (!this.jump.hidden) {
      const text = this.#unseen ? count(this.#unseen, "new line") : "To the end";
      show(this.jump, icon("end"), el("span", {}, text));
    }
    if (this.#unseen && performance.now() - this.#told > TOLD_MS) {
      this.#told = performance.now();
      this.#tellUnseen(`${count(this.#unseen, "new line")} below`);
    }
  }

  /** Go to the end of the log and follow it. */
  toEnd() {
    if (!this.#isAttached) this.#replace(this.tail.kept.rows.slice());
    else this.#flush();
    this.#isAttached = true;
    this.#startFollowing();
    this.#showOpen();
    this.#showEdges();
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#showFollowing();
  }

  // ---- moving through the log

  /** Show the line with this number in the middle, and return whether it could be looked for. */
  async goTo(number, { choose = null } = {}) {
    this.#stopFollowing();
    let isLoaded = true;
    // What is loaded for an edge comes first; the line is not forgotten for it.
    while (this.#loading) await this.#loading;
    if (!this.#window.row(number)) {
      isLoaded = await this.#load(async (signal) => {
        const { rows } = await this.source.part(number - BEFORE_LINES, number + PART_LINES, signal);
        if (rows.some((row) => row.number !== null)) {
          this.#replace(rows);
          this.#join();
        } else this.toEnd();
      });
    }
    const row = this.#window.row(number) ?? this.#window.rows.at(-1);
    const element = row && this.#elements.get(row);
    if (choose) this.#choose(choose);
    element?.scrollIntoView({ block: "center" });
    this.#pastTop = this.scroller.scrollTop;
    this.#showEdges();
    this.#showFollowing();
    return isLoaded;
  }

  async #loadOlder() {
    const { first } = this.#window;
    if (first === null || first <= 1) return;
    await this.#load(async (signal) => {
      const { rows } = await this.source.part(first - PART_LINES, first - 1, signal);
      if (this.#window.first !== first) return;
      this.#prepend(rows.filter((row) => !this.#isKnown(row)));
    });
  }

  async #loadNewer() {
    const { last } = this.#window;
    if (last === null) return;
    await this.#load(async (signal) => {
      const { rows } = await this.source.part(last + 1, last + PART_LINES, signal);
      if (this.#window.last !== last || this.#isAttached) return;
      this.#keeping(() => this.#append(rows.filter((row) => !this.#isKnown(row))));
      this.#join();
    });
  }

  /** Continue with what the tail has, if that follows, or overlaps, what is shown. */
  #join() {
    const { last } = this.#window;
    const { kept, output } = this.tail;
    const isNext = last !== null && kept.first !== null && kept.first <= last + 1;
    const isComplete = output.nextNumber !== null && output.nextNumber <= (last ?? 0) + 1;
    if (!isNext && !isComplete) return;
    const begin = kept.rows.findIndex((row) => row.number !== null && row.number > last);
    this.#pending = [];
    if (begin >= 0) this.#keeping(() => this.#append(kept.rows.slice(begin)));
    this.#isAttached = true;
    this.#unseen = 0;
    this.#showOpen();
  }

  /** Whether a line of fastlane's own, which has no number, is shown already. */
  #isKnown(row) {
    return row.number === null && row.kind === "line"
      && this.#window.rows.some((each) => each.number === null && each.time === row.time && textOf(each) === textOf(row));
  }

  #replace(rows) {
    this.#window.clear();
    this.#elements.clear();
    this.#pending = [];
    this.#isAttached = false;
    this.rowsElement.replaceChildren();
    this.#append(rows);
    this.researched();
  }

  #prepend(rows) {
    this.#keeping(() => {
      const gone = this.#window.prepend(rows);
      const fragment = document.createDocumentFragment();
      const dropped = new Set(gone);
      for (const row of rows) {
        if (!dropped.has(row)) fragment.append(this.#paint(row));
      }
      this.rowsElement.prepend(fragment);
      this.#remove(gone);
      if (gone.length) {
        this.#isAttached = false;
        this.#pending = [];
        this.#showOpen();
      }
      this.#showEdges();
    });
    this.#marked();
    this.researched();
  }

  /** Do the work, unless other work is being done. Return whether it was done. */
  async #load(work) {
    if (this.#loading) return false;
    this.#loading = this.#loadNow(work);
    return this.#loading;
  }

  async #loadNow(work) {
    this.element.setAttribute("aria-busy", "true");
    try {
      await work(this.signal);
      this.#showEdges();
    } catch (error) {
      if (!this.signal.aborted) this.tell(`This part of the log could not be loaded. ${error.message}`);
      return false;
    } finally {
      this.#loading = null;
      this.element.removeAttribute("aria-busy");
    }
    // The reader may have gone on to an edge meanwhile.
    requestAnimationFrame(() => {
      if (!this.signal.aborted) this.#loadNear();
    });
    return true;
  }

  /** Change what is above or beside the lines in view, and leave those where they are. */
  #keeping(change) {
    const { scroller } = this;
    if (this.#isFollowing) {
      change();
      scroller.scrollTop = scroller.scrollHeight;
      return;
    }
    const edge = scroller.getBoundingClientRect().top;
    const anchor = [...this.rowsElement.children].find((element) => element.getBoundingClientRect().bottom > edge + 1);
    const before = anchor?.getBoundingClientRect().top;
    change();
    if (anchor?.isConnected) scroller.scrollTop += anchor.getBoundingClientRect().top - before;
    this.#pastTop = scroller.scrollTop;
  }

  // ---- chosen lines

  async #goToHash() {
    const chosen = chosenLines(location.hash);
    if (!chosen) {
      this.#choose(null);
      return;
    }
    const isLoaded = await this.goTo(chosen.first, { choose: chosen });
    if (isLoaded && !this.#window.row(chosen.first)) {
      this.tell(`The log has no line ${plain(chosen.first)}${this.tail.end ? "" : " yet"}.`);
    }
  }

  #clicked(event) {
    const link = event.target.closest("a.number");
    if (!link) return;
    event.preventDefault();
    const number = Number(link.dataset.number);
    const before = chosenLines(location.hash);
    const chosen = event.shiftKey && before
      ? { first: Math.min(before.first, number), last: Math.max(before.first, number) }
      : { first: number, last: number };
    this.#stopFollowing();
    history.replaceState(history.state, "", hashOf(chosen));
    this.#choose(chosen);
  }

  #choose(chosen) {
    this.chosen = chosen;
    this.#marked();
  }

  #marked() {
    for (const element of this.rowsElement.querySelectorAll(".chosen")) {
      const number = Number(element.querySelector(".number").dataset.number);
      if (!this.chosen || number < this.chosen.first || number > this.chosen.last) element.classList.remove("chosen");
    }
    if (!this.chosen) return;
    for (const row of this.#window.rows) {
      if (row.number !== null && row.number >= this.chosen.first && row.number <= this.chosen.last) {
        this.#elements.get(row)?.classList.add("chosen");
      }
    }
  }

  // ---- copying, and what the search needs

  /** Put the chosen lines on the clipboard, or all lines that are loaded. */
  async copy() {
    const { chosen } = this;
    const rows = this.#window.rows.filter((row) => row.kind === "line"
      && (!chosen || row.number !== null && row.number >= chosen.first && row.number <= chosen.last));
    const text = rows.map((row) => `${textOf(row)}\n`).join("");
    try {
      await navigator.clipboard.writeText(text);
      this.#tellUnseen(`${count(rows.length, "line")} copied`);
      this.copyButton.lastChild.textContent = "Copied";
    } catch {
      this.tell("The browser does not allow copying here");
      this.copyButton.lastChild.textContent = "Not allowed";
    }
    setTimeout(() => {
      this.copyButton.lastChild.textContent = "Copy";
    }, 1500);
  }

  get rows() {
    return this.#window.rows;
  }

  /** The numbers of the first line shown, and of the line after the last one shown, and whether that is the log's last. */
  get extent() {
    return { first: this.#window.first ?? 1, next: (this.#window.last ?? 0) + 1, isEnd: this.#isAttached };
  }

  get linesInAll() {
    return this.tail.output.nextNumber === null ? null : this.tail.output.nextNumber - 1;
  }

  elementOf(row) {
    return this.#elements.get(row);
  }

  /** Bring a row into view, away from the edges. */
  reveal(row) {
    this.#stopFollowing();
    const element = this.#elements.get(row);
    if (!element) return;
    const box = element.getBoundingClientRect(), frame = this.scroller.getBoundingClientRect();
    if (box.top < frame.top + 40 || box.bottom > frame.bottom - 40) element.scrollIntoView({ block: "center" });
    this.#pastTop = this.scroller.scrollTop;
    this.#showFollowing();
  }

  /** Show a message for some seconds, and tell a screen reader. */
  tell(text) {
    this.#tellUnseen(text);
    this.told.className = "message";
    this.#messageTimer = setTimeout(() => {
      this.told.className = "unseen";
    }, MESSAGE_MS);
  }

  #tellUnseen(text) {
    clearTimeout(this.#messageTimer);
    this.told.className = "unseen";
    this.told.textContent = text;
  }
}

/** Return what calls `work` in the next frame, or soon where no frames are drawn. */
function frameThrottled(work, signal) {
  let isAsked = false;
  return () => {
    if (isAsked || signal.aborted) return;
    isAsked = true;
    const go = () => {
      isAsked = false;
      if (!signal.aborted) work();
    };
    if (document.hidden) setTimeout(go, 500);
    else requestAnimationFrame(go);
  };
}

const SETTINGS = "fastlane.log";

function loadSettings() {
  const settings = { wrap: true, stamps: "off" };
  try {
    const kept = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
    if (typeof kept.wrap === "boolean") settings.wrap = kept.wrap;
    if (["off", "relative", "absolute"].includes(kept.stamps)) settings.stamps = kept.stamps;
  } catch {
    // No storage, or not ours: the defaults.
  }
  return settings;
}

function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // They hold as long as the page does.
  }
}
